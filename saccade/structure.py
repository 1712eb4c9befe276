"""JSON and TOML tables to dataclasses and back, strictly: no coercion, no unknown keys, all problems at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from reprlib import repr as short_repr
from types import GenericAlias, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import cattrs
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, mapping_structure_factory
from cattrs.v import transform_error

from saccade.errors import SaccadeError

T = TypeVar("T")
_Hook = Callable[[Any, Any], Any]


def structure(value: Any, cls: type[T], *, source: str, error: type[SaccadeError]) -> T:
    """Build `cls` from plain values.

    source : what is being read, for the message (a path)
    Raises `error` listing every missing, unknown or wrongly typed key with its path.
    """
    try:
        return _converter().structure(value, cls)
    except (cattrs.BaseValidationError, TypeError) as problem:
        lines = transform_error(problem, path="", format_exception=_describe)
        raise error(f"{source}: " + "; ".join(map(_with_place, lines))) from None


def unstructure(instance: Any) -> Any:
    """Plain JSON values of a dataclass."""
    return _converter().unstructure(instance)


def _describe(problem: BaseException, _: type | None) -> str:
    if isinstance(problem, KeyError):
        return f"{problem.args[0]!r} is missing"
    if isinstance(problem, ForbiddenExtraKeysError):
        return f"unknown key{'s' if len(problem.extra_fields) > 1 else ''} {', '.join(sorted(problem.extra_fields))}"
    return str(problem) or type(problem).__name__


def _with_place(line: str) -> str:
    """`problem @ .a.b` as `problem in a.b`."""
    problem, _, place = line.rpartition(" @ ")
    if problem.endswith(" is missing"):  # the problem names the key; what lacks it is the place
        place = place.rpartition(".")[0]
    return f"{problem} in {place.removeprefix('.')}" if place else problem


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(unstruct_collection_overrides={tuple: list})
    for primitive in (int, float, str, bool):
        converter.register_structure_hook(primitive, _strict(primitive))
    converter.register_structure_hook(int | str, _strict(int, str))
    converter.register_structure_hook_func(_has_origin(Literal), _one_of)

    @converter.register_structure_hook_factory(_is_union_of_kinds)
    def union_hook(cls: Any) -> _Hook:
        kinds = {kind: table for table in get_args(cls) for kind in get_args(get_type_hints(table)["kind"])}

        def hook(value: Any, _: Any) -> Any:
            kind = value.get("kind")
            if kind not in list(kinds):  # a list, because the value may be no key
                found = short_repr(kind) if "kind" in value else "none"
                raise TypeError(f"expected kind {' or '.join(map(repr, kinds))}, got {found}")
            return converter.structure(value, kinds[kind])

        return _only(dict, "an object", hook)

    # cattrs itself takes any iterable for a tuple, a string too, and of what is no mapping says how reading it failed.
    @converter.register_structure_hook_factory(is_dataclass)
    def table_hook(cls: Any) -> _Hook:
        return _only(dict, "an object", make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True))

    @converter.register_structure_hook_factory(_has_origin(dict))
    def mapping_hook(cls: Any) -> _Hook:
        return _only(dict, "an object", mapping_structure_factory(cls, converter))

    @converter.register_structure_hook_factory(_is_tuple_of_one_type)
    def tuple_hook(cls: Any) -> _Hook:
        element, *others = get_args(cls)
        length = None if ... in others else 1 + len(others)
        elements: Any = GenericAlias(list, element)

        def hook(value: Any, _: Any) -> Any:
            if length not in (None, len(value)):
                raise TypeError(f"expected {length} values, got {short_repr(value)}")
            return tuple(converter.structure(value, elements))

        return _only(list, "a list", hook)

    return converter


def _has_origin(origin: Any) -> Callable[[Any], bool]:
    return lambda cls: get_origin(cls) is origin


def _is_tuple_of_one_type(cls: Any) -> bool:
    return get_origin(cls) is tuple and len({*get_args(cls)} - {...}) == 1


def _is_union_of_kinds(cls: Any) -> bool:
    """Whether it is one of several dataclasses, and the value's `kind` says which."""
    return isinstance(cls, UnionType) and all(
        is_dataclass(table) and "kind" in get_type_hints(table) for table in get_args(cls)
    )


def _strict(*types: type) -> _Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) in types:
            return value
        if types == (float,) and type(value) is int:
            return float(value)
        raise TypeError(f"expected {' or '.join(one.__name__ for one in types)}, got {short_repr(value)}")

    return hook


def _only(kind: type, name: str, hook: _Hook) -> _Hook:
    def checked(value: Any, cls: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"expected {name}, got {short_repr(value)}")
        return hook(value, cls)

    return checked


def _one_of(value: Any, literal: Any) -> Any:
    choices = get_args(literal)
    if value not in choices:
        raise TypeError(f"expected {' or '.join(map(repr, choices))}, got {short_repr(value)}")
    return value
