"""Versioned, typed records: frozen dataclasses as JSON files, with one clear error for anything that is wrong with one.

A record is a dataclass. Its file holds ``{"version": N}`` and its fields. When a file is read, cattrs checks the type
of each field: a text where a number is expected is not converted, but raises an error that names file and field. A
class declares its version, and how older ones are read, with two optional members:

``RECORD_VERSION: ClassVar[int]``
    Version that is written (1 if not given). A file of a newer version is refused.
``upgrade(content: dict, version: int) -> dict``
    Class method that converts the content of an older version to the current one.

Fields missing in a file get the dataclass's default. Unknown fields are refused, because they mean that the file
belongs to another program or a newer version. Fields with ``init=False`` follow from the others and are not written.
JSON has neither arrays nor bytes nor numbers as keys: an array is a list of lists, or base64 if its field is a
:data:`satunet.types.PackedFloats`; bytes are base64; a slice is its start and stop; an integer key is a string.

Formats of other programs (nnU-Net's plans, fingerprints, ``dataset.json``, splits and ``summary.json``;
sentence-transformers' folders) are not records. They are read and written by the code that uses them; what satunet adds
to such a file is a record under one key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import errno
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

from satunet.errors import SatunetError, UserError
from satunet.jobs.files import read_json, seal, unseal, write_json
from satunet.jobs.quick import Reader, collection_paused, quick_reader

if TYPE_CHECKING:  # commands that read no array need not import numpy
    from numpy.typing import NDArray

Record = TypeVar("Record")

_SHOWN = 3  # number of a file's faults that a message lists


def to_plain(record: Any, *, sealed: bool = False) -> dict[str, Any]:
    """A record as plain values, with its version.

    Args:
        record: Instance of a dataclass.
        sealed: Whether to add a digest, for a record in a file of another format; :func:`from_plain` checks it.
    """
    content = {"version": _version(type(record))} | fields_of(record)
    return seal(json.loads(json.dumps(content))) if sealed else content


def fields_of(record: Any) -> dict[str, Any]:
    """A record as plain values without its version, for parts of a file that has a version of its own."""
    fields: dict[str, Any] = _converter().unstructure(record)
    return fields


def from_plain(content: Any, cls: type[Record], *, source: Path | str, error: type[SatunetError] = UserError) -> Record:
    """The inverse of :func:`to_plain`.

    Args:
        content: Content of a JSON file.
        cls: Dataclass to make.
        source: Origin of the content, for messages.
        error: Class of the error to raise.

    Raises:
        SatunetError: ``error``, with the source, the version and the fields that are wrong.
    """
    what = _noun(cls)
    try:
        content = unseal(content, source)
    except ValueError as problem:
        raise error(str(problem)) from problem
    if not isinstance(content, Mapping):
        raise error(f"{source}: not {what}: expected a JSON object, got {_kind(content)}")
    fields = dict(content)
    version = fields.pop("version", 1)
    newest = _version(cls)
    if type(version) is not int or version < 1:
        raise error(f"{source}: not {what}: its version is {version!r}, expected a number from 1 to {newest}")
    if version > newest:
        raise error(
            f"{source}: {what} of version {version}; this satunet reads up to version {newest}, a newer one wrote it"
        )
    if version == newest:
        # An error of any kind: cattrs decides, and says what is wrong.
        with contextlib.suppress(Exception), collection_paused():
            quick: Record = _quick_reader(cls)(fields)  # type: ignore[arg-type]  # a class is hashable
            return quick
    import cattrs

    try:
        upgrade = getattr(cls, "upgrade", None)
        if version < newest and upgrade is not None:
            fields = upgrade(fields, version)
        record: Record = _converter().structure(fields, cls)
        return record
    except SatunetError as problem:  # the record itself refused a value
        raise error(f"{source}: {problem}") from problem
    except (cattrs.BaseValidationError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise error(f"{source}: not {what} of version {version}: {_faults(problem)}") from problem


def save_record(path: Path, record: Any) -> None:
    """Write a record, whole and sealed (:func:`satunet.jobs.files.write_json`)."""
    write_json(path, to_plain(record), sealed=True)


def load_record(path: Path, cls: type[Record], *, error: type[SatunetError] = UserError) -> Record:
    """Read what :func:`save_record` wrote.

    Raises:
        SatunetError: ``error``: the file does not exist, cannot be read, or is not such a record; the message names it.
    """
    return from_plain(load_json(path, what=_noun(cls), error=error), cls, source=path, error=error)


def load_json(path: Path, *, what: str = "a JSON file", error: type[SatunetError] = UserError) -> Any:
    """As :func:`satunet.jobs.files.read_json`, with one class of error for all faults.

    Args:
        path: The file.
        what: Description of what it should be, for messages.
        error: Class of the error to raise.

    Raises:
        SatunetError: ``error``: the file does not exist, is not readable, not in UTF-8, not JSON or nested too deeply.
    """
    try:
        return read_json(path)
    except FileNotFoundError as problem:
        raise error(f"{path}: no such file; expected {what}") from problem
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem})") from problem
    except ValueError as problem:
        raise error(str(problem)) from problem


@contextlib.contextmanager
def understanding(source: Path | str, what: str, error: type[SatunetError] = UserError) -> Iterator[None]:
    """Parse the content of a file that is not a record in this block; anything unexpected becomes one error.

    Args:
        source: The file, for messages.
        what: Description of what it should be.
        error: Class of the error to raise.

    Raises:
        SatunetError: ``error``, with the file: a key is missing, or a value is of another kind. The project's own
            errors in the block are passed on.
    """
    try:
        yield
    except SatunetError:
        raise
    except OSError as problem:
        if problem.errno != errno.ENAMETOOLONG:  # a full or broken disk is no fault of the content
            raise
        raise error(
            f"{source}: not {what} (a name in it is too long for a file: {problem.filename!s:.200})"
        ) from problem
    except MALFORMED as problem:
        why = f"{problem} is missing" if isinstance(problem, KeyError) else f"{type(problem).__name__}: {problem}"
        raise error(f"{source}: not {what} ({why:.300})") from problem


MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""Errors that Python raises for content of an unexpected kind."""


def _version(cls: type[Any]) -> int:
    return int(getattr(cls, "RECORD_VERSION", 1))


def _noun(cls: type[Any]) -> str:
    """``ScanRecord`` → ``a scan record``."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in cls.__name__).strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def _faults(problem: BaseException) -> str:
    import cattrs

    if isinstance(problem, RecursionError):
        return "nested too deeply"
    if isinstance(problem, cattrs.BaseValidationError):
        told = [
            t.replace(" @ $.", " in ").replace(" @ $", "")
            for t in cattrs.transform_error(problem, format_exception=_told)
        ]
        more = f" (and {len(told) - _SHOWN} more)" if len(told) > _SHOWN else ""
        return "; ".join(told[:_SHOWN]) + more
    return f"{type(problem).__name__}: {problem}"


def _told(problem: BaseException, wanted: type[Any] | None) -> str:
    import cattrs

    if isinstance(problem, KeyError):
        return f"{problem.args[0]!r} is missing"
    if isinstance(problem, cattrs.ForbiddenExtraKeysError):
        return f"{', '.join(sorted(problem.extra_fields))} not known to this version"
    return str(problem) or type(problem).__name__


@functools.cache
def _quick_reader(cls: type[Any]) -> Reader:
    """Function that makes a record of plain values that are as they were written, and raises for any others."""
    return quick_reader(cls, lambda value, kind: _converter().structure(value, kind))


@functools.cache
def _converter() -> Any:
    """A cattrs converter with strict plain types: no value is converted to a number or a text."""
    import cattrs  # here, so that commands that read no record need not import it
    from cattrs.gen import make_dict_structure_fn

    converter = cattrs.Converter(detailed_validation=True, unstruct_collection_overrides={tuple: list})

    def exactly(kind: type[Any], *allowed: type[Any]) -> None:
        def structure(value: Any, _: type[Any]) -> Any:
            if type(value) not in allowed:
                raise TypeError(f"expected {_expected(kind)}, got {value!r:.80}")
            return kind(value)

        converter.register_structure_hook(kind, structure)

    exactly(int, int)
    exactly(float, float, int)
    exactly(str, str)
    exactly(bool, bool)
    converter.register_structure_hook(Path, lambda value, _: Path(converter.structure(value, str)))
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook_func(lambda t: t is Any, lambda value, _: value)
    converter.register_unstructure_hook(int, int)  # numpy's numbers, which JSON cannot write
    converter.register_unstructure_hook(float, float)
    converter.register_unstructure_hook(bool, bool)  # bool is a subclass of int, whose hook would write 1
    converter.register_unstructure_hook_func(
        lambda t: getattr(t, "__origin__", t) in (set, frozenset), lambda values: sorted(values)
    )
    converter.register_structure_hook_func(_is_choice_of_scalars, _scalar)
    converter.register_structure_hook_factory(_has_whole_keys, lambda t: _whole_keys(converter, t))
    _register_arrays(converter)
    converter.register_structure_hook_factory(
        dataclasses.is_dataclass,
        lambda cls: make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True),
    )
    return converter


def _register_arrays(converter: Any) -> None:
    import numpy as np

    from satunet.types import PackedFloats

    converter.register_unstructure_hook_func(
        lambda t: t is np.ndarray or _number_type(t) is not None, lambda array: np.asarray(array).tolist()
    )
    converter.register_structure_hook_func(lambda t: _number_type(t) is not None, _array)
    packed = np.dtype("<f4")
    converter.register_unstructure_hook_func(
        lambda t: t is PackedFloats, lambda array: base64.b64encode(array.astype(packed).tobytes()).decode()
    )
    converter.register_structure_hook_func(
        lambda t: t is PackedFloats, lambda value, _: np.frombuffer(_bytes(value), dtype=packed).astype(np.float32)
    )
    converter.register_unstructure_hook(slice, lambda part: [part.start, part.stop])
    converter.register_structure_hook(slice, lambda value, _: slice(*converter.structure(value, tuple[int, int])))
    converter.register_unstructure_hook(bytes, lambda value: base64.b64encode(value).decode())
    converter.register_structure_hook(bytes, lambda value, _: _bytes(value))


def _array(value: Any, kind: Any) -> NDArray[Any]:
    import numpy as np

    try:
        return np.array(value, dtype=_number_type(kind))
    except (ValueError, TypeError) as error:
        raise TypeError(f"expected numbers in lists of one length, got {value!r:.80}") from error


def _number_type(kind: Any) -> Any:
    """``np.float64`` for ``NDArray[np.float64]``; ``None`` if the type is not an array."""
    import numpy as np

    origin = get_origin(kind)
    if origin is np.ndarray:
        return get_args(get_args(kind)[1])[0]
    # Since numpy 2.5, NDArray is an alias that keeps its own name.
    return get_args(kind)[0] if getattr(origin, "__name__", None) == "NDArray" else None


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise TypeError(f"expected base64, got {value!r:.80}") from error


_SCALARS = (str, int, float, bool, type(None))


def _is_choice_of_scalars(kind: Any) -> bool:
    """Whether a type is like ``int | str``; not like ``int | None``, which cattrs can handle."""
    members = get_args(kind)
    return (
        get_origin(kind) in (Union, UnionType)
        and set(members) <= set(_SCALARS)
        and len(set(members) - {type(None)}) > 1
    )


def _scalar(value: Any, kind: Any) -> Any:
    if type(value) not in get_args(kind):
        allowed = " or ".join("null" if t is type(None) else _expected(t) for t in get_args(kind))
        raise TypeError(f"expected {allowed}, got {value!r:.80}")
    return value


def _has_whole_keys(kind: Any) -> bool:
    return get_origin(kind) in (dict, Mapping) and get_args(kind)[0] is int


def _whole_keys(converter: Any, kind: Any) -> Any:
    inner = dict[str, get_args(kind)[1]]  # type: ignore[misc,valid-type]  # decided when it runs

    def structure(value: Any, _: Any) -> dict[int, Any]:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected a JSON object, got {_kind(value)}")
        found = converter.structure(value, inner)
        wrong = [key for key in found if not key.removeprefix("-").isdecimal()]
        if wrong:
            raise TypeError(f"expected whole numbers as keys, got {wrong[0]!r:.80}")
        return {int(key): content for key, content in found.items()}

    return structure


def _expected(kind: type[Any]) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
