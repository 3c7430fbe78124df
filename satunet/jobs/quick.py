"""Records from plain values: the fast path, for content that is exactly as it was written.

cattrs calls a function for every number, and collects all faults; for the records of 22,000 scans, that takes longer
than everything else that a command does. Here, one function is generated from the annotations of each dataclass, as
``dataclasses`` generates ``__init__``. It accepts only what :mod:`satunet.jobs.records` writes, and returns what cattrs
would return. For anything else it raises: the caller then asks cattrs, which decides and says what is wrong.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

Reader = Callable[[Any], Any]


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection while plain values are made: none of them can be garbage, and this halves the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def collection_resumed() -> Iterator[None]:
    """Resume garbage collection within :func:`collection_paused`, for work that makes more than plain values."""
    was = gc.isenabled()
    gc.enable()
    try:
        yield
    finally:
        if not was:
            gc.disable()


def quick_reader(cls: type[Any], otherwise: Callable[[Any, Any], Any]) -> Reader:
    """A function that makes instances of a dataclass of plain values (objects, lists, texts, numbers of JSON).

    It raises an exception, of any kind, for values that it does not know to be right.

    Args:
        cls: The dataclass.
        otherwise: ``otherwise(value, kind)`` makes values of the types that are not known here.

    Raises:
        NameError: An annotation cannot be resolved.
    """
    return _Maker(otherwise).reader(cls)


def _odd(_: Any = None) -> NoReturn:
    raise TypeError


def _real(value: Any) -> float:
    """A number that is not a float."""
    return float(value) if type(value) is int else _odd()


class _Whole(dict[Any, int]):
    """Cache of keys that are whole numbers, key → number; the same few label ids are in every record."""

    def __missing__(self, key: Any) -> int:
        number = int(key) if type(key) is str and key.removeprefix("-").isdecimal() else _odd()
        if len(self) < _MOST_KEYS:
            self[key] = number
        return number


_MOST_KEYS = 10_000


class _Maker:
    """Source of the functions, and the names that they use, which begin with an underscore unlike those of fields."""

    def __init__(self, otherwise: Callable[[Any, Any], Any]) -> None:
        self._otherwise = otherwise
        self._names: dict[str, Any] = {"_odd": _odd, "_real": _real, "_whole": _Whole(), "_Path": Path}
        self._readers: dict[type[Any], str] = {}

    def reader(self, cls: type[Any]) -> Reader:
        """The function of a dataclass."""
        made: Reader = self._names[self._of_dataclass(cls)]
        return made

    def _named(self, value: Any) -> str:
        name = f"_of{len(self._names)}"
        self._names[name] = value
        return name

    def _compiled(self, source: str) -> str:
        """Name of a function, whose own names are looked up when it is called."""
        return self._named(eval(source, self._names))

    def _of_dataclass(self, cls: type[Any]) -> str:
        if cls in self._readers:
            return self._readers[cls]
        self._readers[cls] = name = self._named(None)  # before its fields, which may be of the same class
        hints = get_type_hints(cls)
        kinds = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
        expressions = {field: self._expression(kind, field) for field, kind in kinds.items()}
        values = ", ".join(f"{field}={expression}" for field, expression in expressions.items())
        every = self._compiled(f"lambda *, {', '.join(kinds)}: {self._named(cls)}({values})") if kinds else "_odd"
        readers = {field: self._names[self._compiled(f"lambda {field}: {e}")] for field, e in expressions.items()}

        def some(value: dict[str, Any]) -> Any:
            """An instance from content that lacks fields with defaults."""
            return cls(**{field: readers[field](content) for field, content in value.items()})

        whole = f"type(_v) is dict and len(_v) == {len(kinds)}"  # ** would accept other mappings as well
        part = f"{self._named(some)}(_v) if type(_v) is dict else _odd()"
        self._names[name] = self._names[self._compiled(f"lambda _v: {every}(**_v) if {whole} else {part}")]
        return name

    def _expression(self, kind: Any, v: str) -> str:
        """Expression for a value of a type, made of the plain value in variable ``v``."""
        origin, inner = get_origin(kind), get_args(kind)
        if kind in (int, str, bool):
            return f"({v} if type({v}) is {kind.__name__} else _odd())"
        if kind is float:
            return f"({v} if type({v}) is float else _real({v}))"
        if kind is Path:
            return f"_Path({v} if type({v}) is str else _odd())"
        if kind is Any:
            return v
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return f"{self._of_dataclass(kind)}({v})"
        if origin in (Union, UnionType) and len(inner) == 2 and NoneType in inner:
            (other,) = (one for one in inner if one is not NoneType)
            return f"(None if {v} is None else {self._expression(other, v)})"
        if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
            return f"tuple([{self._expression(inner[0], '_e')} for _e in ({v} if type({v}) is list else _odd())])"
        if origin is tuple and inner:
            return f"{self._fixed(inner)}({v})"
        if origin in (dict, collections.abc.Mapping) and inner[0] in (int, str):
            return f"{self._mapping(*inner)}({v})"
        return f"{self._named(lambda value: self._otherwise(value, kind))}({v})"

    def _fixed(self, kinds: tuple[Any, ...]) -> str:
        names, values = self._parts(kinds)
        make = self._compiled(f"lambda {', '.join(names)}: ({values},)")
        return self._compiled(f"lambda _v: {make}(*_v) if type(_v) is list else _odd()")

    def _parts(self, kinds: tuple[Any, ...]) -> tuple[list[str], str]:
        """Variables for the parts of a tuple, and expressions of them."""
        names = [f"_e{number}" for number in range(len(kinds))]
        return names, ", ".join(self._expression(kind, name) for kind, name in zip(kinds, names, strict=True))

    def _mapping(self, key: Any, kind: Any) -> str:
        named = "(_k if type(_k) is str else _odd())" if key is str else "_whole[_k]"
        each, value = "_e", self._expression(kind, "_e")
        if get_origin(kind) is tuple and set(get_args(kind)) <= {int, float}:
            # Unpacked in place; of JSON's values, only lists have such parts.
            names, values = self._parts(get_args(kind))
            each, value = f"({', '.join(names)},)", f"({values},)"
        return self._compiled(
            f"lambda _v: {{{named}: {value} for _k, {each} in _v.items()}} if type(_v) is dict else _odd()"
        )
