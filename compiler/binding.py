"""Binding the arguments of a call to an op's signature, and turning values into attributes."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from .ir import Init, Value
from .ops.contract import Op
from .ops.elementwise import Elementwise
from .parameters import INITS
from .size import Polynomial
from .types import Dim
from .values import Block, Outputs, describe, is_number


class BindError(Exception):
    """The arguments don't fit. `argument` is its index, or its keyword, where one is to blame."""

    def __init__(
        self,
        message: str,
        argument: int | str | None = None,
        *,
        code: str = "PF0302",
        help: str | None = None,
        choices: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.argument, self.code, self.help, self.choices = argument, code, help, tuple(choices)


@cache
def attribute_types(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def signature(cls: type[Op]) -> str:
    """The call as people read it: `attend(query, key, value, scale, causal=false, ..)`."""
    parts = [t.rstrip("?") + ("=none" if t.endswith("?") else "") for t in cls.tensors]
    for f in fields(cls):
        parts.append(f.name if f.default is MISSING else f"{f.name}={written(f.default)}")
    return f"{cls.name}({', '.join(parts)})"


def written(default: Any) -> str:
    """A default as a spec would write it."""
    if isinstance(default, str):
        return f'"{default}"'
    return {"None": "none", "True": "true", "False": "false"}.get(str(default), str(default))


def as_tensor(value: Any, cls: type[Op] | None = None) -> Any:
    """The value as a tensor, or as a block that makes one; None where it is neither. Elementwise ops take
    numbers too, as in `maximum(x, 0)`."""
    if isinstance(value, Outputs) and len(value.values) == 1:
        return next(iter(value.values.values()))
    if cls is not None and issubclass(cls, Elementwise):
        number = value.size if isinstance(value, Dim) else value
        if is_number(number) and not isinstance(number, Polynomial):
            return number
    return value if isinstance(value, (Value, Block)) else None


def _is_list(want: Any) -> bool:
    return any(get_origin(o) is tuple for o in (want, *get_args(want)))


def to_dim(value: Any) -> Dim:
    """Raises: BindError where the value is no size."""
    if isinstance(value, Dim):
        if isinstance(value.size, int) and value.size < 1:
            raise BindError(f"`{value.name}` is a dim of size {value.size}", code="PF0313", help="sizes are at least 1")
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Polynomial) or (isinstance(value, int) and not isinstance(value, bool)):
        if isinstance(value, int) and value < 1:
            raise BindError(f"a dim of size {value}", code="PF0313", help="sizes are at least 1")
        return Dim(None, value)
    raise BindError(f"expected a dim or a size, got {describe(value)}", code="PF0303")


def to_init(value: Any) -> Init:
    """Raises: BindError where the value is no initialisation."""
    if isinstance(value, Init):
        return value
    raise BindError(
        f"expected an initialisation, got {describe(value)}",
        code="PF0303",
        help="one of " + ", ".join(f"{n}(..)" if k else n for n, k in INITS.items()),
    )


def coerce(value: Any, want: Any) -> Any:
    """A value of the language as a Python attribute of type `want`. Raises: BindError."""
    if get_origin(want) in (Union, types.UnionType):
        options = get_args(want)
        if value is None and type(None) in options:
            return None
        rest = [o for o in options if o is not type(None)]
        fits = [o for o in rest if (o is str) == isinstance(value, str)]
        return coerce(value, (fits or rest)[0])
    if want is Dim:
        return to_dim(value)
    if get_origin(want) is tuple:
        inner = get_args(want)[0]
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(coerce(v, inner) for v in items)
    if want is Init:
        return to_init(value)
    if want is bool:
        if isinstance(value, bool):
            return value
        raise BindError(f"expected true or false, got {describe(value)}", code="PF0303")
    if want is str:
        if isinstance(value, str):
            return value
        raise BindError(f"expected a string, got {describe(value)}", code="PF0303")
    if isinstance(value, Dim):
        value = value.size
    if want is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise BindError(f"expected a whole number, got {describe(value)}", code="PF0303")
    if want is float:
        if is_number(value) and not isinstance(value, Polynomial):
            return float(value)
        raise BindError(f"expected a number, got {describe(value)}", code="PF0303")
    raise AssertionError(f"attributes of type {want} can't be written in a spec")


def bind(
    cls: type[Op], positional: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """(attributes, tensors by name, primary): how a call's arguments meet an op's signature.

    Where every required tensor is given the call is complete and `primary` is None; where only the first
    is missing, `>>` supplies it. Raises: BindError.
    """
    try:
        return _assign(cls, positional, keywords, whole=True)
    except BindError as whole:
        try:
            return _assign(cls, positional, keywords, whole=False)
        except BindError as partial:
            # The reading to complain about is the one that its tensors suggest.
            required = [t for t in cls.tensors if not t.endswith("?")]
            kinds = Value if len(required) == 1 else (Value, Block)  # `softcap(f)` gives no cap rather than no input
            given = sum(isinstance(as_tensor(v), kinds) for v in positional)
            given += sum(t.rstrip("?") in keywords for t in cls.tensors)
            raise (whole if given >= len(required) else partial) from None


def _assign(
    cls: type[Op], positional: Sequence[Any], keywords: Mapping[str, Any], whole: bool
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    tensors = [t.rstrip("?") for t in cls.tensors]
    required = [t for t in cls.tensors if not t.endswith("?")]
    primary = tensors[0] if tensors and not whole else None
    hints: dict[str, Any] = attribute_types(cls)  # type: ignore[arg-type]
    order = [t for t in tensors if t != primary] + list(hints)
    if len(positional) > len(order) and order and len(hints) == 1 and _is_list(hints[order[-1]]):
        # Its only attribute is a list, whose items may be given one by one: `local_coordinates(rows, columns)`.
        positional = [*positional[: len(order) - 1], list(positional[len(order) - 1 :])]
    if len(positional) > len(order):
        many = f"{len(order)} argument{'s' if len(order) != 1 else ''}" if order else "no arguments"
        raise BindError(f"`{cls.name}` takes at most {many} here", len(order), help=signature(cls))
    given: dict[str, tuple[int | str, Any]] = {}
    for i, value in enumerate(positional):
        given[order[i]] = (i, value)
    for key, value in keywords.items():
        if key not in tensors and key not in hints:
            raise BindError(
                f"`{cls.name}` has no argument `{key}`",
                key,
                code="PF0224",
                help=signature(cls),
                choices=[*tensors, *hints],
            )
        if key in given or key == primary:
            raise BindError(f"`{key}` is given twice", key)
        given[key] = (key, value)
    found: dict[str, Any] = {}
    for t in tensors:
        if t in given:
            tensor = as_tensor(given[t][1], cls)
            if tensor is None:
                raise BindError(
                    f"`{t}` of `{cls.name}` must be a tensor or a block, got {describe(given[t][1])}",
                    given[t][0],
                    code="PF0301",
                    help=signature(cls),
                )
            found[t] = tensor
    missing = [t for t in required if t not in found and t != primary]
    if missing:
        raise BindError(f"`{cls.name}` needs `{missing[0]}`", help=signature(cls))
    attributes: dict[str, Any] = {}
    for f in fields(cls):
        if f.name in given:
            try:
                attributes[f.name] = coerce(given[f.name][1], hints[f.name])
            except BindError as e:
                e.argument = given[f.name][0]
                e.args = (f"`{f.name}` of `{cls.name}`: {e}",)
                raise
        elif f.default is MISSING:
            raise BindError(f"`{cls.name}` needs `{f.name}`", help=signature(cls))
    return attributes, found, primary
