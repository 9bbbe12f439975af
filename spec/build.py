"""From a checked document to the parts of a `Spec`: expressions parsed, signatures read, places kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

from pydantic import BaseModel

from .diagnostics import Diagnostic, Diagnostics, SpecError, did_you_mean
from .document import place, plain
from .expressions import RESERVED, parse_body, parse_expression, parse_signature, parse_tensor
from .model import BlockDef, DimDef, GraphDef, ParamDef, Section, ShardingRule, Spec, TensorDecl, Used
from .schema import DRAWS, DTYPES, SIGNATURE, Form, Sample, Train
from .source import Span
from .yaml import Entry, Mapping, Node, Scalar, Sequence
from .yaml_traps import BLOCK, comment_cut


class Builder:
    """Builds the parts one by one; what fails is reported to `found` and left out."""

    def __init__(self, found: Diagnostics) -> None:
        self.found = found

    def dims(self, node: Node | None, origin: Callable[[str], str]) -> dict[str, DimDef]:
        out = {}
        for name, entry in _entries(node):
            if self.reserved(entry.key):
                continue
            value = self.parse(parse_expression, entry.value)
            if value is not None:
                out[name] = DimDef(name, value, entry.key.span, origin(name))
        return out

    def params(self, node: Node | None) -> dict[str, ParamDef]:
        out = {}
        for name, entry in _entries(node):
            if self.reserved(entry.key) or not isinstance(entry.value, Mapping):
                continue
            shape, init = entry.value.get("shape"), entry.value.get("init")
            if not isinstance(shape, Sequence):
                continue
            dims = [self.parse(parse_expression, item) for item in shape.items]
            value = self.parse(parse_expression, init) if init is not None else None
            if all(d is not None for d in dims):
                out[name] = ParamDef(name, tuple(d for d in dims if d is not None), value, entry.key.span)
        return out

    def blocks(self, node: Node | None, prelude: bool = False) -> dict[str, BlockDef]:
        out: dict[str, BlockDef] = {}
        for key, entry in _entries(node):
            if not re.match(SIGNATURE, key):
                continue  # the schema reports it
            signature = self.parse(parse_signature, entry.key)
            body = self.parse(parse_body, entry.value)
            if signature is None or body is None:
                continue
            name, span, parameters = signature
            if name in out:
                self.found.add(
                    Diagnostic(
                        "PF0104", f"block `{name}` is defined twice", span,
                        f"first defined at line {out[name].span.line}", help="remove one of the two",
                    )
                )  # fmt: skip
                continue
            out[name] = BlockDef(name, parameters, body, span, prelude)
        return out

    def graphs(self, node: Node | None) -> dict[str, GraphDef]:
        out = {}
        for name, entry in _entries(node):
            graph = entry.value
            if self.reserved(entry.key) or not isinstance(graph, Mapping):
                continue
            inputs: dict[str, TensorDecl] = {}
            for label, item in _entries(graph.get("inputs")):
                decl = None if self.reserved(item.key) else self.tensor(item.value, DTYPES)
                if decl is not None:
                    inputs[label] = decl
            text = graph.get("body")
            body = self.parse(parse_body, text) if text is not None else None
            outputs, stream = graph.get("outputs"), graph.get("stream")
            if body is None:
                continue
            names = tuple(str(n) for n in plain(outputs)) if isinstance(outputs, Sequence) else ()
            axis = stream.text if isinstance(stream, Scalar) else None
            where = graph.entries["outputs"].key.span if outputs is not None else None
            out[name] = GraphDef(name, inputs, body, names, axis, entry.key.span, where)
        return out

    def sharding(self, node: Node | None) -> tuple[ShardingRule, ...]:
        rules = []
        for name, entry in _entries(node):
            value = plain(entry.value)
            axes = tuple(value) if isinstance(value, list) else (str(value),)
            span = entry.value.span if isinstance(entry.value, Sequence) else place(entry.value, entry.key)
            rules.append(ShardingRule(name, axes, entry.key.span, span))
        return tuple(rules)

    def uses(self, node: Node | None, reader: Callable[[Span], Callable[[], Spec]]) -> dict[str, Used]:
        out = {}
        for name, entry in _entries(node):
            text = entry.value
            if not self.reserved(entry.key) and isinstance(text, Scalar) and isinstance(text.value, str):
                out[name] = Used(name, text.text, entry.key.span, reader(text.content))
        return out

    def section(self, entry: Entry | None, model: type[BaseModel] | None = None) -> Section | None:
        """A section as data; fields that `model` marks with a `Form` are parsed."""
        if entry is None or not isinstance(entry.value, Mapping):
            return None
        spans: dict[str, Span] = {}
        values = self._read(entry.value, model, (), spans)
        return Section(values, spans, entry.key.span)

    def train(self, entry: Entry | None) -> Section | None:
        section = self.section(entry, Train)
        if section is not None and "updates" in section.values:
            for name in ("loss", "priority", "optimizer", "params", "repeat", "sample", "inner"):
                if name in section.values:
                    self.found.add(
                        Diagnostic(
                            "PF0505",
                            f"`train.{name}` can't stand beside `train.updates`",
                            section.spans[name],
                            help=f"each update has its own `{name}`",
                        )
                    )
        return section

    def sample(self, entry: Entry | None) -> Section | None:
        section = self.section(entry, Sample)
        if section is None:
            return None
        stepwise = ("variable", "start", "steps", "step")
        if "value" in section.values:
            for name in stepwise:
                if name in section.values:
                    message = f"`sample.{name}` can't stand beside `sample.value`"
                    self.found.add(Diagnostic("PF0514", message, section.spans[name],
                                              help="samples are made at once, by `value`, or in steps"))  # fmt: skip
        elif missing := [name for name in stepwise if name not in section.values]:
            many = len(missing) == len(stepwise)
            what = "neither a `value` nor steps" if many else f"no `{missing[0]}`"
            help = f"`value` makes a sample at once; {', '.join(stepwise)} carry one from noise"
            self.found.add(Diagnostic("PF0204", f"`sample` has {what}", section.span, help=help))
        return section

    def _read(self, node: Node, annotation: Any, path: tuple[str, ...], spans: dict[str, Span]) -> Any:
        form, below = _form(annotation), _below(annotation)
        if form is Form.EXPRESSION:
            return self.parse(parse_expression, node)
        if form is Form.BODY:
            return self.parse(parse_body, node)
        if form is Form.TENSOR:
            return self.tensor(node, DRAWS)
        if not isinstance(node, Mapping):
            return plain(node)
        out = {}
        for name, entry in node.entries.items():
            here = (*path, name)
            spans[".".join(here)] = place(entry.value, entry.key)
            out[name] = self._read(entry.value, below(name), here, spans)
        return out

    def tensor(self, node: Node, words: tuple[str, ...]) -> TensorDecl | None:
        decl: TensorDecl | None = self.parse(parse_tensor, node)
        if decl is not None and decl.dtype not in words:
            start = decl.span.start
            self.found.add(
                Diagnostic(
                    "PF0208",
                    f"unknown type `{decl.dtype}`",
                    Span(decl.span.source, start, start + len(decl.dtype)),
                    help=did_you_mean(decl.dtype, words) or "known are " + ", ".join(words),
                    expected=words,
                )
            )
            return None
        return decl

    def parse(self, parser: Callable[..., Any], node: Node) -> Any:
        """The parsed content of a scalar, or None when it was reported."""
        if not isinstance(node, Scalar) or node.value is None:
            return None  # the schema has reported it
        content = node.content
        quoted = "\\" if node.style == "double" else "''" if node.style == "single" else None
        if quoted is not None and quoted in content.text:
            at = content.start + content.text.index(quoted)
            self.found.add(
                Diagnostic(
                    "PF0109",
                    "an expression in quotes can't hold escapes",
                    Span(content.source, at, at + 2),
                    help=BLOCK,
                )
            )
            return None
        try:
            return parser(content.source, content.start, content.end)
        except SpecError as error:
            cut = comment_cut(node.span) if node.style == "plain" else None
            if content.start == content.end:
                self.found.add(Diagnostic("PF0110", "an expression is missing", node.span, "nothing stands here"))
            else:
                self.found.extend([cut] if cut else error.diagnostics)
            return None

    def reserved(self, key: Scalar) -> bool:
        if key.text not in RESERVED:
            return False
        self.found.add(
            Diagnostic(
                "PF0117", f"`{key.text}` has a fixed meaning and can't be defined", key.span,
                help="choose another name",
            )
        )  # fmt: skip
        return True


def value_spans(root: Mapping) -> dict[str, Span]:
    """The place of every key path of the document: "graphs.lm.inputs.tokens"."""
    spans: dict[str, Span] = {}

    def visit(node: Mapping, path: str) -> None:
        for name, entry in node.entries.items():
            here = f"{path}.{name}" if path else name
            spans[here] = place(entry.value, entry.key)
            if isinstance(entry.value, Mapping):
                visit(entry.value, here)

    visit(root, "")
    return spans


def _entries(node: Node | None) -> list[tuple[str, Entry]]:
    return list(node.entries.items()) if isinstance(node, Mapping) else []


def _alternatives(annotation: Any) -> list[Any]:
    """The members of `X | None` without None; a marked type keeps its marks."""
    args = get_args(annotation)
    if type(None) in args:
        return [a for a in args if a is not type(None)]
    return [annotation]


def _form(annotation: Any) -> Form | None:
    for a in _alternatives(annotation):
        for mark in getattr(a, "__metadata__", ()):
            if isinstance(mark, Form):
                return mark
    return None


def _below(annotation: Any) -> Callable[[str], Any]:
    """The annotation of a field, by its name, inside a model or a mapping."""
    for a in _alternatives(annotation):
        if isinstance(a, type) and issubclass(a, BaseModel):
            # Annotations as written: pydantic moves the marks of a bare Annotated into the field's metadata.
            hints = _hints(a)
            return lambda name: hints.get(name)
        args = get_args(a)
        if len(args) == 2 and getattr(a, "__origin__", None) is dict:
            return lambda _name: args[1]
    return lambda _name: None


def _hints(model: type[BaseModel]) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(model, include_extras=True)
