"""JSON and TOML tables to dataclasses and back, strictly: no coercion, no unknown keys, all problems at once."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import cattrs
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.v import transform_error

from saccade.errors import SaccadeError

T = TypeVar("T")


def structure(value: Any, cls: type[T], *, source: str, error: type[SaccadeError]) -> T:
    """Build `cls` from plain values.

    source : what is being read, for the message (a path)
    Raises `error` listing every missing, unknown or wrongly typed key with its path.
    """
    try:
        return _converter().structure(value, cls)
    except (cattrs.BaseValidationError, TypeError, ValueError, AttributeError, SaccadeError) as problem:
        lines = transform_error(problem, path="", format_exception=_describe)
        raise error(
            f"{source}: " + "; ".join(line.replace(" @ .", " in ", 1).replace(" @ ", "") for line in lines)
        ) from None


def unstructure(instance: Any) -> Any:
    """Plain JSON values of a dataclass."""
    return _converter().unstructure(instance)


def _describe(problem: BaseException, type_: type | None) -> str:
    if isinstance(problem, KeyError):
        return f"{problem.args[0]!r} is missing"
    if isinstance(problem, ForbiddenExtraKeysError):
        return f"unknown key{'s' if len(problem.extra_fields) > 1 else ''} {', '.join(sorted(problem.extra_fields))}"
    if isinstance(problem, TypeError) and type_ is not None and "expected" not in str(problem):
        return f"expected {getattr(type_, '__name__', type_)}"
    return str(problem) or type(problem).__name__


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, unstruct_collection_overrides={tuple: list})
    for primitive in (int, float, str, bool):
        converter.register_structure_hook(primitive, _strict(primitive))
    converter.register_structure_hook(int | str, _strict(int, str))
    return converter


def _strict(*types: type) -> Any:
    def hook(value: Any, _: Any) -> Any:
        if type(value) in types:
            return value
        if types == (float,) and type(value) is int:
            return float(value)
        raise TypeError(f"expected {' or '.join(one.__name__ for one in types)}, got {value!r}")

    return hook
