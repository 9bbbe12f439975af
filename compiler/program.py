"""The training program of a spec: named updates, each a loss graph, what it trains, and an optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from planform.spec import Diagnostic, Section, Span, Spec, SpecError, TensorDecl, ast, did_you_mean, output_names

from .agents import check_fields, check_priority, policy
from .elaborate import Elaborator, Env, Inner, elaborate, elaborate_loss
from .ir import Graph, Parameter
from .parameters import layers
from .recipes import OPTIMIZERS, SOURCES, Recipe, read
from .size import symbol
from .targets import Target, read_targets, target
from .types import Dim, TensorType

_EXAMPLES = {
    "loss": "loss: cross_entropy(lm(tokens).logits, next(tokens))",
    "optimizer": "optimizer: adamw(warmup_cosine(3e-4, warmup=100), clip=1.0)",
}


@dataclass(frozen=True)
class Update:
    """Gradient descent on one loss, `repeat` times a step; `params` are selectors of what it trains (none: all).

    `heldout` is what is measured on data that isn't trained on: `evaluate.loss`, else the loss, without what acts in
    training only (dropout), and the metrics. `inner` is fitted in both first; `fit` makes graphs of it alone.
    """

    name: str
    loss: Graph
    heldout: Graph
    optimizer: Recipe
    params: tuple[str, ...] = ()
    repeat: int = 1
    inner: Inner | None = None


@dataclass(frozen=True)
class Program:
    """Everything the trainer needs from a spec. Lengths and counts are in examples and steps.

    Updates come one after another, each on data of its own; `simultaneous` ones all start from the same parameters and
    get the same data.
    """

    data: Recipe
    updates: tuple[Update, ...]
    targets: tuple[Target, ...] = ()
    simultaneous: bool = False
    batch: int = 16
    steps: int = 1000
    accumulate: int = 1
    seed: int = 0
    evaluate_every: int = 100
    evaluate_batches: int = 8
    checkpoint_every: int = 100
    keep: int = 2
    precision: Mapping[str, str] = field(default_factory=dict)
    policy: Graph | None = None  # from observations to actions, where the data are what an agent sees

    def having(self, **arguments: Any) -> Program:
        """The program with arguments of its data in place of its own."""
        return replace(self, data=replace(self.data, arguments={**self.data.arguments, **arguments}))

    @property
    def unit(self) -> str:
        """What speed is counted in."""
        return "tokens" if any(u.loss.stream for u in self.updates) else "examples"


def selects(selector: str, parameter: Parameter) -> bool:
    """Whether a selector means a parameter, or any layer of a stack of them.

    `kind:matrix` (two or more dims, stacks aside) or `kind:vector`; else a path or its beginning up to a dot or a
    layer (`lm`, `lm.layer`, `lm.layer[3]`), in which `*` stands for anything (`lm.layer*.attend.*`).
    """
    kind, _, word = selector.rpartition(":")
    if kind == "kind":
        return word == ("matrix" if parameter.type.rank - parameter.stacked >= 2 else "vector")
    glob = selector.replace("[", "[[]")
    return any(fnmatchcase(path, f"{glob}{end}") for path in layers(parameter.path) for end in ("", ".*", "[[]*"))


def program(spec: Spec) -> Program:
    """Reads and checks the `train` section. Raises: SpecError."""
    train = spec.train
    if train is None:
        raise SpecError(
            Diagnostic(
                "PF0500",
                f"`{spec.name}` has no training program",
                Span(spec.source, 0, 1),
                help="add a `train:` section with data, loss and optimizer",
            )
        )
    values = train.values
    evaluate_ = Elaborator(spec, "train", None)
    number = lambda e: _value(evaluate_, e)  # noqa: E731
    if "data" not in values:
        raise SpecError(Diagnostic("PF0500", "`train` has no `data`", train.span, help="data: text(tokens)"))
    data = read(values["data"], SOURCES, "data source", number)
    inputs = _fields(spec, data)
    copies = read_targets(spec, values.get("targets") or {}, number)
    copied = {name: how.fields[0] for name, how in copies.items()}
    updates = []
    sections = values.get("updates") or {"train": values}
    evaluate, checkpoint = values.get("evaluate") or {}, values.get("checkpoint") or {}
    for key in ("loss", "metrics"):
        if key in evaluate and len(sections) > 1:
            message = f"`train.evaluate.{key}` can't stand beside several updates"
            span = train.spans[f"evaluate.{key}"]
            raise SpecError(Diagnostic("PF0505", message, span, help="each measures its own loss"))
    if "loss" in (evaluate.get("metrics") or {}):
        raise SpecError(Diagnostic("PF0505", "`loss` is measured anyway", train.spans["evaluate.metrics.loss"],
                                   help="`evaluate.loss` says what it is"))  # fmt: skip
    for name, one in sections.items():
        place = f"updates.{name}." if "updates" in values else ""
        updates.append(_update(spec, train, place, name, one, inputs, number, evaluate, copied))
    simultaneous = values.get("simultaneous", False)
    if simultaneous:
        _check_simultaneous(updates, train)
    given: dict[str, Any] = {k: values[k] for k in ("batch", "steps", "accumulate", "seed") if k in values}
    made = Program(
        data,
        tuple(updates),
        tuple(target(spec, name, how, [u.loss for u in updates]) for name, how in copies.items()),
        simultaneous,
        **given,
        evaluate_every=evaluate.get("every", 100),
        evaluate_batches=evaluate.get("batches", 8),
        checkpoint_every=checkpoint.get("every", 100),
        keep=checkpoint.get("keep", 2),
        precision=dict(spec.precision.values) if spec.precision else {},
        policy=policy(spec, data, copied) if "policy" in data.arguments else None,
    )
    check_priority(made, train)
    if made.batch % made.accumulate:
        raise SpecError(
            Diagnostic(
                "PF0503",
                f"a batch of {made.batch} can't be split into {made.accumulate} equal parts",
                train.spans["accumulate"],
                help="`batch` must be a multiple of `accumulate`",
            )
        )
    return made


def _value(e: Elaborator, expr: ast.Expr) -> Any:
    v = e.value(expr, Env({}))
    return v.size if isinstance(v, Dim) else v


def _update(
    spec: Spec,
    train: Section,
    place: str,
    name: str,
    one: Mapping[str, Any],
    inputs: dict[str, TensorType],
    number: Any,
    evaluate: Mapping[str, Any],
    targets: Mapping[str, str],
) -> Update:
    for key in ("loss", "optimizer"):
        if key not in one:
            span = train.spans.get(place.removesuffix("."), train.span)
            raise SpecError(Diagnostic("PF0500", f"`train` has no `{place}{key}`", span, help=_EXAMPLES[key]))
    inner = _inner(train, f"{place}inner", one["inner"]) if "inner" in one else None
    draws = _draws(train, f"{place}sample", one.get("sample") or {}, inputs)
    named: dict[str, Any] = {"inner": inner, "draws": draws, "targets": targets}
    loss = elaborate_loss(spec, one["loss"], inputs, name, **named, priority=one.get("priority"))
    measured, metrics = evaluate.get("loss") or one["loss"], evaluate.get("metrics") or {}
    heldout = elaborate_loss(spec, measured, inputs, name, training=False, metrics=metrics, **named)
    trained = [p for p in loss.parameters if not p.frozen]
    _check_measured(heldout, trained, train)
    optimizer = read(one["optimizer"], OPTIMIZERS, "optimizer", number)
    params = one.get("params") or ()
    params = (params,) if isinstance(params, str) else tuple(params)
    written = [(selector, train.spans[place + "params"]) for selector in params]
    if optimizer.arguments.get("weight_decay"):
        written.append((optimizer.arguments["decay"], optimizer.span or train.span))
    for selector, span in written:
        if not any(selects(selector, p) for p in trained):
            known = ["kind:matrix", "kind:vector", *_beginnings(p.path for p in trained)]
            message, help = f"`{selector}` selects no parameter of this loss", did_you_mean(selector, known)
            if any(selects(selector, p) for p in loss.parameters):
                message, help = f"`{selector}` is frozen", "the parameters of a used spec are never trained"
            raise SpecError(Diagnostic("PF0504", message, span, help=help))
    if not trained:
        raise SpecError(Diagnostic("PF0504", "this loss has no parameter of this model to train", one["loss"].span))
    return Update(name, loss, heldout, optimizer, params, one.get("repeat", 1), inner)


def _check_simultaneous(updates: Iterable[Update], train: Section) -> None:
    """Raises: SpecError where simultaneous updates would change the same parameter, or one is repeated."""
    seen: dict[str, str] = {}
    for u in updates:
        if u.repeat > 1:
            message = f"`{u.name}` can't be repeated in a step of simultaneous updates"
            raise SpecError(Diagnostic("PF0515", message, train.spans[f"updates.{u.name}.repeat"]))
        for p in u.loss.parameters:
            if not p.frozen and (not u.params or any(selects(s, p) for s in u.params)):
                for name in layers(p.path):
                    if (other := seen.setdefault(name, u.name)) != u.name:
                        message = f"`{name}` is trained by `{other}` and by `{u.name}` at once"
                        raise SpecError(Diagnostic("PF0515", message, train.spans["simultaneous"],
                                                   help="give each update its own `params`"))  # fmt: skip


def _draws(
    train: Section, place: str, draws: Mapping[str, TensorDecl], inputs: Mapping[str, TensorType]
) -> Mapping[str, TensorDecl]:
    """Raises: SpecError for a draw of a name that the data has."""
    for name in draws:
        if name in inputs:
            message = f"`{name}` is given by the data, so it can't be drawn"
            raise SpecError(Diagnostic("PF0513", message, train.spans[f"{place}.{name}"]))
    return draws


def _inner(train: Section, place: str, values: Mapping[str, Any]) -> Inner:
    spans = {k: train.spans[f"{place}.{k}"] for k in values}
    return Inner.of(values, spans)


def _check_measured(heldout: Graph, trained: Iterable[Parameter], train: Section) -> None:
    """Raises: SpecError where what is measured needs parameters that are neither trained nor frozen."""
    known = {name for p in trained for name in layers(p.path)}
    for p in heldout.parameters:
        if not p.frozen and not known.issuperset(layers(p.path)):
            raise SpecError(
                Diagnostic(
                    "PF0504",
                    f"what is measured needs `{p.path}`, which the loss doesn't have",
                    train.spans.get("evaluate.loss", train.span),
                    help="measure graphs that are trained, or those of a used spec",
                )
            )


def _beginnings(paths: Iterable[str]) -> Iterator[str]:
    """`lm`, `lm.layer`, `lm.layer.attend` .. of `lm.layer[0:4:2].attend...`."""
    for path in paths:
        elements = re.sub(r"\[[^]]*\]", "", path).split(".")
        yield from (".".join(elements[: i + 1]) for i in range(len(elements)))


def _fields(spec: Spec, data: Recipe) -> dict[str, TensorType]:
    """Types of the data's fields: those of the graphs' inputs of that name, else of their outputs (what these should
    be). Raises: SpecError."""
    assert data.span is not None
    if not data.fields:
        raise SpecError(Diagnostic("PF0502", f"`{data.name}` names no fields", data.span, help=f"{data.name}(tokens)"))
    if data.name == "text":
        if len(data.fields) > 1:
            raise SpecError(Diagnostic("PF0502", "`text` gives one field, the tokens", data.span))
        return {data.fields[0]: TensorType("i32", (Dim("batch", symbol("batch")), Dim("time", symbol("time"))))}
    found: dict[str, TensorType] = {}
    signature = SOURCES[data.name]
    if data.name == "replay":
        check_fields(data)
    specs = [spec, *(u.spec for u in spec.uses.values())]
    for i, name in enumerate(data.fields):
        if dtype := signature.types.get(i):
            found[name] = TensorType(dtype, (Dim("batch", symbol("batch")),))
            continue
        if i in signature.like:
            found[name] = found[data.fields[signature.like[i]]]
            continue
        declared = [(s, g.inputs[name]) for s in specs for g in s.graphs.values() if name in g.inputs]
        if not declared:
            maker = next((g.name for g in spec.graphs.values() if name in output_names(g)), None)
            if maker is not None:
                found[name] = elaborate(spec, maker).outputs[name].type
                continue
            known = [k for s in specs for g in s.graphs.values() for k in (*g.inputs, *output_names(g))]
            raise SpecError(
                Diagnostic(
                    "PF0502",
                    f"no graph has an input or output `{name}`, so its type is unknown",
                    data.span,
                    help=did_you_mean(name, known),
                )
            )
        owner, decl = declared[0]
        found[name] = Elaborator(owner, "train", None).declared(decl)
    return found
