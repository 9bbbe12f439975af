"""The words of a training program: optimizers, schedules, slow copies and data sources, with their arguments.

The compiler checks their use; the runtime gives them their meaning (optax, grain).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planform.spec import Diagnostic, Span, SpecError, ast, did_you_mean

from .binding import written
from .values import describe

REQUIRED = object()


@dataclass(frozen=True)
class Signature:
    """Arguments in order with their defaults (REQUIRED: none); `rate` marks those that may be a schedule."""

    doc: str
    arguments: Mapping[str, Any]
    rate: str | None = None
    fields: bool = False  # leading positional arguments are names: data fields, or a graph
    types: Mapping[int, str] = field(default_factory=dict)  # dtypes of those that are one number an example
    like: Mapping[int, int] = field(default_factory=dict)  # those that have the type of another


@dataclass(frozen=True)
class Recipe:
    """A checked call: its name and all its arguments, a nested recipe among them for a schedule."""

    name: str
    arguments: Mapping[str, Any]
    fields: tuple[str, ...] = ()
    span: Span | None = None


_ADAM = {"learning_rate": REQUIRED, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip": None}
OPTIMIZERS = {
    "sgd": Signature(
        "Stochastic gradient descent, with weight_decay / 2 times the sum of squares of what `decay` selects added to "
        "the loss.",
        {
            "learning_rate": REQUIRED,
            "momentum": 0.0,
            "nesterov": False,
            "clip": None,
            "weight_decay": 0.0,
            "decay": "kind:matrix",
        },
        "learning_rate",
    ),
    "adam": Signature("Adam (arXiv:1412.6980).", _ADAM, "learning_rate"),
    "adamw": Signature(
        "Adam with decoupled weight decay (arXiv:1711.05101) on what `decay` selects.",
        {**_ADAM, "weight_decay": 1e-4, "decay": "kind:matrix"},
        "learning_rate",
    ),
}
SCHEDULES = {
    "constant": Signature("The same rate at every step.", {"value": REQUIRED}),
    "warmup_cosine": Signature(
        "Linear from 0 to the peak in `warmup` steps, `hold` steps there, then a cosine down to `end` * peak at the "
        "last step (arXiv:1608.03983); `steps` defaults to the program's.",
        {"peak": REQUIRED, "warmup": 0, "steps": None, "end": 0.1, "hold": 0},
    ),
    "warmup_linear": Signature(
        "Linear from 0 to the peak in `warmup` steps, `hold` steps there, then linearly down to `end` * peak at the "
        "last step.",
        {"peak": REQUIRED, "warmup": 0, "steps": None, "end": 0.0, "hold": 0},
    ),
}
TARGETS = {
    "copy": Signature("The graph's weights as they are after every `every`-th step.", {"every": 1}, fields=True),
    "ema": Signature(
        "The graph's parameters followed at 1 - `decay`, every `every`-th step; its buffers as they are then.",
        {"decay": REQUIRED, "every": 1},
        fields=True,
    ),
}
SOURCES = {
    "text": Signature(
        "Windows of `length` tokens over documents: int[batch, time].",
        {"length": 256, "files": None, "tokenizer": "bytes", "heldout": 0.05},
        fields=True,
    ),
    "signals": Signature(
        "Signals on regular grids (images, sound, volumes): the coordinates of their points, float[batch, points, "
        "axes], their values there, float[batch, points, channels], and perhaps labels, int[batch].",
        {"file": None, "heldout": 0.05},
        fields=True,
        types={2: "i32"},
    ),
    "images": Signature(
        "Images of `size` x `size`, float[batch, height, width, channels], and perhaps labels, int[batch]. In training "
        "a part of the area between `crop` and 1 is cut out, moved by up to `shift` pixels, and with `flip` mirrored "
        "half the time; held out, the `centre` of the shorter side is seen. Values from 0 to 1, less `mean`, over "
        "`std`.",
        {
            "file": None,
            "size": None,
            "crop": None,
            "shift": 0,
            "flip": False,
            "centre": 1.0,
            "mean": None,
            "std": None,
            "heldout": 0.05,
        },
        fields=True,
        types={1: "i32"},
    ),
    "functaset": Signature(
        "Latents of signals, each feature normalised: float[batch, ..], and perhaps the signals' labels, int[batch].",
        {"file": None},
        fields=True,
        types={1: "i32"},
    ),
    "arrays": Signature("Fields of an .npz file, by name.", {"file": None, "heldout": 0.05}, fields=True),
    "replay": Signature(
        "Transitions that actors gather with the graph `policy` in an environment of the control suite: what was "
        "observed, the action, the sum of the next `n` rewards, what the future after them counts for (0 where the "
        "episode is over), and what was observed then; a sixth field is the weight of each where transitions are drawn "
        "by `priority` (an exponent). `gamma` discounts a step; `noise` is added to actions; an action is taken "
        "`repeat` times; the newest `capacity` transitions are kept, drawn from when there are `first`, each `ratio` "
        "times on average; `actors` are processes, with 0 the learner plays itself.",
        {
            "environment": None,
            "policy": "actor",
            "n": 5,
            "gamma": 0.99,
            "noise": 0.3,
            "repeat": 1,
            "capacity": 1000000,
            "first": 1000,
            "ratio": 32.0,
            "priority": 0.0,
            "actors": 1,
        },
        fields=True,
        types={2: "f32", 3: "f32", 5: "f32"},
        like={4: 0},
    ),
}


def read(expr: ast.Expr, table: Mapping[str, Signature], what: str, number: Any) -> Recipe:
    """The recipe that an expression calls; `number(expr)` evaluates plain values.

    Raises: SpecError for unknown names, unknown or missing arguments.
    """
    call = expr if isinstance(expr, ast.Call) else ast.Call(expr, (), span=expr.span)
    if not isinstance(call.function, ast.Name):
        raise SpecError(Diagnostic("PF0502", f"expected {what}", expr.span, help="one of " + ", ".join(table)))
    name = call.function.name
    if name not in table:
        help = did_you_mean(name, table) or "one of " + ", ".join(table)
        raise SpecError(Diagnostic("PF0502", f"unknown {what} `{name}`", call.function.span, help=help))
    signature = table[name]
    order = list(signature.arguments)
    found: dict[str, Any] = {}
    fields: list[str] = []
    for a in call.arguments:
        if a.name is None and signature.fields and isinstance(a.value, ast.Name) and not found:
            fields.append(a.value.name)
            continue
        key = a.name
        if key is None:
            rest = [k for k in order if k not in found]
            if not rest or signature.fields:
                raise SpecError(Diagnostic("PF0502", f"`{name}` takes no more arguments", a.value.span))
            key = rest[0]
        if key not in order:
            help = did_you_mean(key, order) or "it takes " + ", ".join(order)
            raise SpecError(
                Diagnostic("PF0502", f"`{name}` has no argument `{key}`", a.name_span or a.value.span, help=help)
            )
        if key in found:
            raise SpecError(Diagnostic("PF0502", f"`{key}` is given twice", a.value.span))
        nested = isinstance(a.value, ast.Call) and isinstance(a.value.function, ast.Name)
        if key == signature.rate and nested and a.value.function.name not in ("sqrt",):  # type: ignore[attr-defined]
            found[key] = read(a.value, SCHEDULES, "schedule", number)
        else:
            found[key] = _plain(number(a.value), signature.arguments[key], key, a.value)
    missing = [k for k in order if signature.arguments[k] is REQUIRED and k not in found]
    if missing:
        parts = [k if v is REQUIRED else f"{k}={written(v)}" for k, v in signature.arguments.items()]
        help = f"{name}({', '.join(parts)})"
        raise SpecError(Diagnostic("PF0502", f"`{name}` needs `{missing[0]}`", expr.span, help=help))
    whole = {k: found.get(k, signature.arguments[k]) for k in order}
    return Recipe(name, whole, tuple(fields), expr.span)


def _plain(value: Any, default: Any, key: str, expr: ast.Expr) -> Any:
    """The value, checked against the kind of the default."""
    kinds: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    want = float if default is REQUIRED or default is None else type(default)
    if value is None and default is None:
        return None
    if default is None and isinstance(value, (str, list)):
        return value
    if want is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if want in (bool, int, str) and type(value) is want:
        return value
    raise SpecError(Diagnostic("PF0502", f"`{key}` must be {kinds[want]}, got {describe(value)}", expr.span))
