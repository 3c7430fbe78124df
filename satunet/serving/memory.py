"""A server's memory: prepared scans, the features that the network has encoded, and what running jobs share.

The network encodes a scan once and decodes any number of prompts, so that further prompts on a known scan cost only
their decoding. The memories of scans and features are bounded in bytes; the least recently used entries are dropped first.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from satunet.jobs.fresh import FileState
from satunet.network.model import ImageFeatures
from satunet.prediction.door.inputs import Scan
from satunet.prediction.masks.found import PreparedScan

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The most recently used values by key, up to a number of bytes; threads may share it.

    Args:
        most_bytes: Largest size of all values together; a single value that is larger is not kept.
        size_of: Function that returns the size of a value in bytes.
    """

    def __init__(self, most_bytes: int, size_of: Callable[[Value], int]) -> None:
        self.most_bytes = most_bytes
        self._size_of = size_of
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.used_bytes = 0
        self.hits = self.misses = 0

    def get(self, key: Hashable) -> Value | None:
        """The value, if it is still there."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                self.misses += 1
                return None
            self._values.move_to_end(key)
            self.hits += 1
            return found[0]

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value, and drop the least recently used ones if necessary."""
        size = self._size_of(value)
        with self._lock:
            self._drop(key)
            if size > self.most_bytes:
                return
            self._values[key] = (value, size)
            self.used_bytes += size
            while self.used_bytes > self.most_bytes:
                self._drop(next(iter(self._values)))

    def forget(self, matches: Callable[[Hashable], bool]) -> None:
        """Drop the values whose keys match."""
        with self._lock:
            for key in [key for key in self._values if matches(key)]:
                self._drop(key)

    def _drop(self, key: Hashable) -> None:
        found = self._values.pop(key, None)
        if found is not None:
            self.used_bytes -= found[1]


class RememberingNetwork:
    """A network that does not encode the same window twice; see :class:`satunet.windows.engine.Network`.

    Windows are identified by their content: the same voxels in the same precision give the same features, in any scan.

    Args:
        network: The network.
        features: Memory of encoded features.
        number: Number of the network, which tells the networks of several models apart.
    """

    def __init__(self, network: Any, features: Recent[ImageFeatures], number: int) -> None:
        self.network, self.features, self.number = network, features, number

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """(B, 1, X, Y, Z) → features."""
        content = hashlib.blake2b(image.detach().cpu().numpy().tobytes(), digest_size=16).digest()
        kind = image.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else image.dtype
        key = (self.number, tuple(image.shape), content, precision)
        found = self.features.get(key)
        if found is None:
            found = self.network.encode_image(image)
            # A copy, because the CPU engine reuses the memory of its maps for the next window; only of the map at full
            # resolution, because masks need no other.
            self.features.put(key, replace(found, memory=found.memory.clone(), maps=(found.maps[0].clone(),)))
        return found

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        """(B, N, D) → (B, N, E) mask embeddings per scale, full resolution first."""
        decoded: tuple[Tensor, ...] = self.network.decode(features, queries, modality)
        return decoded


class PreparedScans:
    """Prepared scans, valid as long as their files do not change (:class:`satunet.prediction.call.ScanMemory`).

    Args:
        most_bytes: Largest size of all prepared scans together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._recent: Recent[tuple[PreparedScan, tuple[FileState, ...]]] = Recent(most_bytes, _prepared_bytes)

    def get(self, scan: Scan) -> tuple[PreparedScan, tuple[FileState, ...]] | None:
        """The prepared scan and the state of its files, if they have not changed."""
        found = self._recent.get(scan.path)
        if found is None or len(found[1]) != len(scan.files):
            return None
        states = []
        for state, file in zip(found[1], scan.files, strict=True):
            if not state.is_of(file):
                return None
            # A file that had just been written when its state was taken is hashed once more; then its times decide.
            states.append(state if state.is_untouched(file) else FileState.of(file, sha256=state.sha256))
        return found[0], tuple(states)

    def put(self, scan: Scan, prepared: PreparedScan, files: tuple[FileState, ...]) -> None:
        """Remember a prepared scan and the state of its files."""
        self._recent.put(scan.path, (prepared, files))

    def forget(self, scan: Scan) -> None:
        """Drop a prepared scan."""
        self._recent.forget(lambda key: key == scan.path)

    @property
    def used_bytes(self) -> int:
        """Size of all prepared scans in bytes."""
        return self._recent.used_bytes


class WorkingMemory:
    """Memory that running jobs share, until one of them needs all of it."""

    def __init__(self) -> None:
        self._inside = 0
        self._one = False
        self._changed = threading.Condition()

    @property
    def crowded(self) -> bool:
        """Whether there is more than one job inside."""
        return self._inside > 1

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Be inside, perhaps with others."""
        self._enter(lambda: not self._one)
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within :meth:`shared`: wait until the others have left, and let nobody in meanwhile."""
        self._leave()  # two that want to be alone would otherwise wait for each other
        self._enter(lambda: not self._one and not self._inside, one=True)
        try:
            yield
        finally:
            with self._changed:
                self._one = False
                self._changed.notify_all()

    def _enter(self, may: Callable[[], bool], *, one: bool = False) -> None:
        with self._changed:
            self._changed.wait_for(may)
            self._inside += 1
            self._one = one

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()


def feature_bytes(features: ImageFeatures) -> int:
    """Size of a window's features in bytes."""
    tensors = [features.memory, *features.maps]
    return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor))


def _prepared_bytes(value: tuple[PreparedScan, tuple[FileState, ...]]) -> int:
    scan = value[0]
    return int(
        scan.image.array.nbytes + sum({id(view.volume): view.volume.nbytes for view in scan.views.values()}.values())
    )
