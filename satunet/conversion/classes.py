"""Label maps from other forms of labels: other ids, stacks of masks, one file per class.

In a stack of masks, a voxel may belong to several classes; in a label map, it has one id. Therefore an id stands for a
*combination* of classes. Without overlap there is one id per class; each combination of overlapping classes gets an id
of its own, which its classes list (``"brain": [1, 5], "tumor": [5]``). Nothing is lost, and :mod:`satunet.labels`
understands such labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.catalogue import CatalogueRecord
from satunet.images.image import unique_ids
from satunet.images.label_ids import dense_ids
from satunet.labels.unions import canonical_names

Combination = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """The classes of a dataset.

    Attributes:
        names: Classes as the source names them, in its order (for a stack, the order of its channels).
        labels: Label name → id, for ``dataset.json``.
        members: Id → the source's classes to which its voxels belong.
        stored_ids: Id in the source's label maps → id; ``None`` if they are the same.
        fixed: Whether the ids are published ones; a combination without an id then gets that of the nearest one.
    """

    names: tuple[str, ...]
    labels: Mapping[str, int]
    members: Mapping[int, Combination]
    stored_ids: Mapping[int, int] | None = None
    fixed: bool = False

    def extended(self, combinations: Iterable[Combination]) -> ClassTable:
        """The table with ids for combinations that have none."""
        known = dict(self.members)
        for combination in combinations:
            if combination not in known.values():
                known[max(known) + 1] = combination
        return ClassTable(
            names=self.names, labels=self.labels, members=known, stored_ids=self.stored_ids, fixed=self.fixed
        )

    def id_of(self, combination: Combination) -> int | None:
        """The id of a combination of classes; ``None`` if it has none yet."""
        if not combination:
            return 0
        for label, members in self.members.items():
            if members == combination:
                return label
        if not self.fixed:
            return None
        # The published id with the fewest wrong classes; among several, the one that is painted last.
        return min(self.members, key=lambda label: (len(self.members[label] ^ combination), -label))

    def dataset_labels(self) -> dict[str, int | list[int]]:
        """Value of ``labels`` in ``dataset.json``."""
        if all(len(members) <= 1 for members in self.members.values()) or self.fixed:
            return {"background": 0, **self.labels}
        own = {name: [i for i, members in self.members.items() if name in members] for name in self.names}
        return {"background": 0} | {name: ids[0] if len(ids) == 1 else ids for name, ids in own.items() if ids}


def plain_table(names: Iterable[str]) -> ClassTable:
    """Classes with the ids 1, 2, 3 … in their order."""
    names = tuple(dict.fromkeys(names))
    return ClassTable(
        names=names,
        labels={name: i for i, name in enumerate(names, start=1)},
        members={i: frozenset([name]) for i, name in enumerate(names, start=1)},
    )


def published_table(names: Iterable[str], record: CatalogueRecord) -> ClassTable:
    """Classes of a dataset that the catalogue knows, with its published ids.

    Args:
        names: Names as the source gives them, including unions such as "kidney".
        record: Record of the catalogue.
    """
    names = tuple(names)
    ids = source_ids(names, record)
    members = {
        label: frozenset(name for name in names if label in ids.get(name, ())) for label in record.labels.values()
    }
    return ClassTable(
        names=names, labels=dict(record.labels), members=members, stored_ids=record.stored_ids or None, fixed=True
    )


def source_ids(names: tuple[str, ...], record: CatalogueRecord) -> dict[str, tuple[int, ...]]:
    """The source's class → published ids; matched by name, and by position if names only differ in wording."""
    canonical = canonical_names(names)
    own = canonical_names(record.labels)
    found = {name: tuple(record.classes[canonical[name]]) for name in names if canonical[name] in record.classes}
    named = set(map(canonical.get, names))
    left = [label for source, label in record.labels.items() if own[source] not in named]
    for name, label in zip((name for name in dict.fromkeys(names) if name not in found), left, strict=False):
        found[name] = next((tuple(ids) for ids in record.classes.values() if ids == (label,)), (label,))
    return found


@dataclass
class Combiner:
    """Combines masks one by one into an array with the number of each voxel's combination.

    Attributes:
        combinations: Number → combination; 0 is that of no class.
    """

    combinations: list[Combination] = field(default_factory=lambda: [frozenset()])

    def start(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """An array in which no voxel belongs to a class."""
        return np.zeros(shape, dtype=np.int32)

    def add(self, numbers: NDArray[np.int32], name: str, inside: NDArray[np.bool_]) -> None:
        """Add a class to the voxels of a mask, in place."""
        values = numbers[inside]
        if not values.size:
            return
        after = np.zeros(len(self.combinations), dtype=np.int32)
        for number in np.flatnonzero(np.bincount(values, minlength=after.size)):
            after[number] = self._number(self.combinations[number] | {name})
        numbers[inside] = after[values]

    def _number(self, combination: Combination) -> int:
        if combination not in self.combinations:
            self.combinations.append(combination)
        return self.combinations.index(combination)


def masks_of_stack(volume: Any, names: tuple[str, ...], first: bool) -> Iterator[tuple[slice, str, NDArray[np.bool_]]]:
    """Masks of a four-dimensional file, in slabs, so that it is never in memory as a whole.

    Args:
        volume: Object with a shape that returns arrays when it is indexed, such as nibabel's proxy.
        names: Class of each mask.
        first: Whether the masks are along the first axis; else they are along the last.

    Yields:
        A range of slices along the third spatial axis, a class, and its mask there.
    """
    shape = volume.shape
    count, depth = (shape[0], shape[3]) if first else (shape[3], shape[2])
    voxels = int(np.prod([n for axis, n in enumerate(shape) if axis != (3 if first else 2)]))
    thickness = max(1, (1 << 27) // voxels)
    for start in range(0, depth, thickness):
        slab = slice(start, min(start + thickness, depth))
        array = np.asanyarray(volume[..., slab] if first else volume[:, :, slab])
        for channel in range(count):
            yield slab, names[channel], (array[channel] if first else array[..., channel]) > 0.5


def used(numbers: NDArray[np.int32], combiner: Combiner) -> list[Combination]:
    """Combinations that occur, in the order in which they were found, without the empty one."""
    present = np.bincount(numbers.ravel(order="K"), minlength=len(combiner.combinations))
    return [c for c, voxels in zip(combiner.combinations, present, strict=True) if voxels and c]


def approximated(numbers: NDArray[np.int32], combiner: Combiner, table: ClassTable) -> int:
    """Number of voxels whose combination has no id of its own among published ids."""
    present = np.bincount(numbers.ravel(order="K"), minlength=len(combiner.combinations))
    exact: set[Combination] = {*table.members.values(), frozenset()}
    return int(sum(v for c, v in zip(combiner.combinations, present, strict=True) if c not in exact))


def renumbered(numbers: NDArray[np.int32], combiner: Combiner, table: ClassTable) -> NDArray[np.unsignedinteger[Any]]:
    """The label map of combined masks; every combination must have an id."""
    ids = np.array([table.id_of(combination) or 0 for combination in combiner.combinations])
    return ids.astype(np.min_scalar_type(int(ids.max(initial=0))))[numbers]


def other_ids(
    labels: NDArray[np.unsignedinteger[Any]], stored_ids: Mapping[int, int]
) -> NDArray[np.unsignedinteger[Any]]:
    """A label map with other ids; ids without one keep theirs."""
    mapped = {i: stored_ids.get(i, i) for i in unique_ids(labels)}
    if all(before == after for before, after in mapped.items()):
        return labels
    ids, places = dense_ids(labels)
    table = np.array([mapped.get(i, 0) for i in ids], dtype=np.min_scalar_type(max(mapped.values())))
    result: NDArray[np.unsignedinteger[Any]] = table[places]
    return result
