"""Graphs as text, and back: `from_text(to_text(graph))` equals `graph`.

One node a line: results, op with the attributes that differ from their defaults, operands, types, and
behind `@` the path of blocks and the place in the spec. Inputs read the same way, their kind in the op's
place; a region stands indented below its node:

    graph lm(stream=time) {
      %tokens = input : i32[batch, time] @ tokens lm.yaml:3:5
      %table = parameter(path="table", init=normal(0.02)) : f32[vocab=256, d=64] @ table
      %weight = parameter(path="lm.layer[0:2].weight", init=fan_in(1.0), stacked=1) : f32[2, d=64, 64]
      %x = embed %tokens, %table : f32[batch, time, d=64] @ lm.embed lm.yaml:9:12
      %layer = repeat(count=2, carries=1, stacks=1) %x, %weight : f32[batch, time, d=64] @ lm.layer
        region lm.layer {
          %x = argument : f32[batch, time, d=64]
          %weight = argument : f32[d=64, 64]
          %linear = linear(out=[d=64]) %x, %weight : f32[batch, time, d=64] @ lm.layer[0:2] lm.yaml:5:3
          return %linear
        }
      return hidden=%layer
    }

Attributes are numbers, `true`, `false`, `none`, "strings", dims (`dim[ff=128]`), lists of dims
(`[ff=128, d=64]`), other lists (`(1, 2.0)`), types (`f32[d=64]`), sizes (`size(2*time)`) and initial values
(`normal(0.02)`). An empty path is written `-`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, NoReturn

import numpy as np

from .ir import Argument, Buffer, Graph, Init, Input, Node, Origin, Parameter, State, Value
from .ops import OPS
from .ops.contract import Op, load_extensions
from .size import Polynomial, parse_size
from .types import DTYPES, Dim, TensorType, TypeMismatch

_KINDS: dict[str, type[Value]] = {
    "input": Input,
    "parameter": Parameter,
    "buffer": Buffer,
    "state": State,
    "argument": Argument,
}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_BARE = re.compile(r"[A-Za-z_][\w.\[\]:/-]*")


class TextError(ValueError):
    """A text that is no graph: `line` and `column` count from one."""

    def __init__(self, message: str, line: int, column: int, text: str = "") -> None:
        self.message, self.line, self.column = message, line, column
        caret = f"\n  {text}\n  {' ' * (column - 1)}^" if text else ""
        super().__init__(f"line {line}, column {column}: {message}{caret}")


def equal(a: Graph, b: Graph) -> bool:
    """Whether two graphs are the same but for the identity of their values."""
    return to_text(a) == to_text(b)


# ---- writing ----


def to_text(graph: Graph) -> str:
    """The graph as text, ending in a newline."""
    return "\n".join(_lines(graph, "graph", "")) + "\n"


def _lines(graph: Graph, word: str, margin: str) -> Iterator[str]:
    stream = f"(stream={_name(graph.stream)})" if graph.stream else ""
    yield f"{margin}{word} {_name(graph.name)}{stream} {{"
    inner = margin + "  "
    for v in graph.inputs:
        if type(v) not in _KIND_NAMES:
            raise ValueError(f"%{v.name} is an input of no kind")
        head = _KIND_NAMES[type(v)] + _attributes(v, skip=("name", "type", "origin"))
        yield f"{inner}{_value(v)} = {head} : {v.type}{_origin(v.origin)}"
    for n in graph.nodes:
        results = ", ".join(map(_value, n.outputs))
        operands = " " + ", ".join(map(_value, n.inputs)) if n.inputs else ""
        types = ", ".join(str(v.type) for v in n.outputs)
        yield f"{inner}{results} = {n.op.name}{_attributes(n.op)}{operands} : {types}{_origin(n.origin)}"
        if n.region:
            yield from _lines(n.region, "region", inner + "  ")
    named = [f"{_name(k)}={_value(v)}" for k, v in graph.outputs.items()]
    if list(graph.outputs) == [str(i) for i in range(len(named))]:
        named = [_value(v) for v in graph.outputs.values()]
    yield f"{inner}return {', '.join(named)}".rstrip()
    yield margin + "}"


def _name(text: str) -> str:
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _value(v: Value) -> str:
    return "%" + _name(v.name)


def _origin(origin: Origin) -> str:
    if not origin.path and origin.place is None:
        return ""
    path = origin.path if re.fullmatch(r'[^\s"-]\S*', origin.path) else json.dumps(origin.path) if origin.path else "-"
    return f" @ {path}" + (f" {origin.place}" if origin.place is not None else "")


def _attributes(owner: Any, skip: tuple[str, ...] = ()) -> str:
    found = []
    for f in fields(owner):
        if f.name in skip:
            continue
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        written = attribute_text(getattr(owner, f.name))
        if default is MISSING or written != attribute_text(default):
            found.append(f"{f.name}={written}")
    return f"({', '.join(found)})" if found else ""


def attribute_text(value: Any) -> str:
    """An attribute's value as text. Raises: ValueError for a kind that has none."""
    match value:
        case bool() | np.bool_():
            return "true" if value else "false"
        case None:
            return "none"
        case int() | np.integer():
            return str(int(value))
        case float() | np.floating():
            return repr(float(value))
        case str():
            return json.dumps(value)
        case Dim():
            return f"dim[{value}]"
        case Init() | TensorType():
            return str(value)
        case Polynomial():
            return f"size({value})"
        case tuple() | list():
            if value and all(isinstance(d, Dim) for d in value):
                return f"[{', '.join(map(str, value))}]"
            comma = "," if len(value) == 1 else ""
            return f"({', '.join(map(attribute_text, value))}{comma})"
    raise ValueError(f"an attribute can't be {value!r}")


def op_text(op: Op) -> str:
    """An op with its attributes: equal texts mean equal ops."""
    return op.name + _attributes(op)


# ---- reading ----


def from_text(text: str) -> Graph:
    """The graph that a text describes. Raises: TextError."""
    load_extensions()
    reader = _Reader(text)
    graph = reader.graph("graph")
    if reader.more():
        reader.fail("nothing may follow the graph")
    return graph


_WORD = re.compile(r"[A-Za-z_]\w*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|inf|nan)\b")
_DIMS = re.compile(r"\[[^\[\]]*\]")
_PATH = re.compile(r'[^\s"]\S*')


class _Reader:
    """Reads line by line; within a line, token by token."""

    def __init__(self, text: str) -> None:
        self.lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        self.row, self.at = 0, 0

    # -- places --

    @property
    def line(self) -> str:
        return self.lines[self.row][1]

    def more(self) -> bool:
        return self.row < len(self.lines)

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        if not self.more():
            number = self.lines[-1][0] + 1 if self.lines else 1
            raise TextError(message, number, 1)
        number, text = self.lines[self.row]
        raise TextError(message, number, (self.at if at is None else at) + 1, text)

    def next_line(self) -> None:
        self.skip()
        if self.at < len(self.line):
            self.fail(f"unexpected `{self.line[self.at :]}`")
        self.row, self.at = self.row + 1, 0

    # -- tokens --

    def skip(self) -> None:
        while self.at < len(self.line) and self.line[self.at].isspace():
            self.at += 1

    def peek(self, mark: str) -> bool:
        if not self.more():
            return False
        self.skip()
        return self.line.startswith(mark, self.at)

    def take(self, mark: str) -> bool:
        found = self.peek(mark)
        if found:
            self.at += len(mark)
        return found

    def expect(self, mark: str, what: str | None = None) -> None:
        if not self.take(mark):
            self.fail(f"expected {what or f'`{mark}`'}")

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        if not self.more():
            self.fail(f"expected {what}")
        self.skip()
        m = pattern.match(self.line, self.at)
        if not m:
            self.fail(f"expected {what}")
        self.at = m.end()
        return m[0]

    def string(self) -> str:
        start = self.at
        text = self.match(_STRING, "a string")
        try:
            return str(json.loads(text))
        except ValueError:
            self.fail("not a string", start)

    def name(self, what: str = "a name") -> str:
        return self.string() if self.peek('"') else self.match(_BARE, what)

    # -- parts --

    def types(self) -> list[TensorType]:
        found = [self.tensor_type()]
        while self.take(","):
            found.append(self.tensor_type())
        return found

    def tensor_type(self) -> TensorType:
        self.skip()
        start = self.at
        dtype = self.match(_WORD, "a type")
        if dtype not in DTYPES:
            self.fail(f"no dtype `{dtype}`", start)
        return TensorType(dtype, self.dims())

    def dims(self) -> tuple[Dim, ...]:
        self.skip()
        start = self.at
        inner = self.match(_DIMS, "dims in brackets")[1:-1]
        try:
            found = tuple(map(Dim.parse, inner.split(","))) if inner.strip() else ()
            TensorType("f32", found)
        except (ValueError, TypeMismatch) as e:
            self.fail(str(e), start)
        return found

    def origin(self) -> Origin:
        if not self.take("@"):
            return Origin()
        path = self.string() if self.peek('"') else self.match(_PATH, "a path of blocks")
        place = self.line[self.at :].strip() or None
        self.at = len(self.line)
        return Origin("" if path == "-" else path, place)

    def attributes(self) -> dict[str, tuple[Any, int]]:
        """name -> (value, where the name stands)."""
        found: dict[str, tuple[Any, int]] = {}
        if not self.take("("):
            return found
        while not self.take(")"):
            if found:
                self.expect(",", "`,` or `)`")
            self.skip()
            start = self.at
            key = self.match(_WORD, "an attribute")
            if key in found:
                self.fail(f"`{key}` is given twice", start)
            self.expect("=")
            found[key] = (self.attribute(), start)
        return found

    def attribute(self) -> Any:
        if self.peek('"'):
            return self.string()
        if self.peek("["):
            return self.dims()
        if self.take("("):
            return self.items()
        self.skip()
        start = self.at
        if m := _NUMBER.match(self.line, self.at):
            self.at = m.end()
            return float(m[0]) if re.search(r"[.naife]", m[0]) else int(m[0])
        word = self.match(_WORD, "a value")
        if word in ("true", "false", "none"):
            return {"true": True, "false": False, "none": None}[word]
        if word == "size" and self.peek("("):
            return self.size()
        if word == "dim" and self.peek("["):
            dims = self.dims()
            if len(dims) != 1:
                self.fail("expected one dim", start)
            return dims[0]
        if self.peek("["):
            self.at = start
            return self.tensor_type()
        return Init(word, tuple(map(self.number, self.items())) if self.take("(") else ())

    def items(self) -> tuple[Any, ...]:
        """What stands in brackets that are already open."""
        found: list[Any] = []
        while not self.take(")"):
            if found:
                self.expect(",", "`,` or `)`")
                if self.take(")"):
                    break
            found.append(self.attribute())
        return tuple(found)

    def number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail("an initialisation takes numbers")
        return value

    def size(self) -> Any:
        self.skip()
        start, depth, end = self.at, 0, self.at
        while end < len(self.line):
            depth += {"(": 1, ")": -1}.get(self.line[end], 0)
            end += 1
            if not depth:
                break
        if depth:
            self.fail("expected `)`", len(self.line))
        self.at = end
        try:
            return parse_size(self.line[start + 1 : end - 1])
        except ValueError as e:
            self.fail(str(e), start)

    def build(self, make: type, word: str, attributes: dict[str, tuple[Any, int]], start: int) -> Any:
        """An instance with the attributes, which must be its fields."""
        known = {f.name for f in fields(make)}
        for key, (_, at) in attributes.items():
            if key not in known:
                self.fail(f"`{word}` has no attribute `{key}`", at)
        try:
            return make(**{k: v for k, (v, _) in attributes.items()})
        except TypeError as e:
            self.fail(str(e), start)

    # -- graphs --

    def graph(self, word: str) -> Graph:
        if self.match(_WORD, f"`{word}`") != word:
            self.fail(f"expected `{word}`", 0)
        name, stream = self.name(), None
        if self.take("("):
            self.match(re.compile("stream="), "`stream=`")
            stream = self.name()
            self.expect(")")
        self.expect("{")
        self.next_line()
        inputs: list[Value] = []
        nodes: list[Node] = []
        values: dict[str, Value] = {}
        while self.peek("%"):
            self.statement(inputs, nodes, values)
        outputs = self.outputs(values)
        self.expect("}")
        self.next_line()
        return Graph(name, tuple(inputs), tuple(nodes), outputs, stream)

    def statement(self, inputs: list[Value], nodes: list[Node], values: dict[str, Value]) -> None:
        names: list[tuple[str, int]] = []
        while not names or self.take(","):
            self.expect("%")
            names.append((self.name(), self.at))
            if names[-1][0] in values or names[-1] in names[:-1]:
                self.fail(f"%{names[-1][0]} is defined twice", names[-1][1] - len(names[-1][0]))
        self.expect("=")
        self.skip()
        start = self.at
        word = self.match(_WORD, "an op or a kind of input")
        attributes = self.attributes()
        if word in _KINDS:
            self.expect(":")
            t = self.tensor_type()
            if len(names) != 1:
                self.fail(f"`{word}` makes one value", start)
            if nodes:
                self.fail("inputs stand before nodes", start)
            made = self.input(word, names[0][0], t, attributes, start)
            made.origin = self.origin()
            self.next_line()
            inputs.append(made)
            values[made.name] = made
            return
        if word not in OPS:
            self.fail(f"no op `{word}`", start)
        op = self.build(OPS[word], word, attributes, start)
        operands = [self.operand(values)] if self.peek("%") else []
        while operands and self.take(","):
            operands.append(self.operand(values))
        self.expect(":")
        at = self.at
        types = self.types()
        if len(types) != len(names):
            self.fail(f"{len(names)} results and {len(types)} types", at)
        origin = self.origin()
        row = self.row
        self.next_line()
        region = self.graph("region") if self.peek("region ") else None
        self.check(op, operands, region, types, row, start)
        results = tuple(Value(name, t, origin) for (name, _), t in zip(names, types))
        values.update((v.name, v) for v in results)
        nodes.append(Node(op, tuple(operands), results, origin, region))

    def input(self, word: str, name: str, t: TensorType, attributes: dict[str, tuple[Any, int]], start: int) -> Value:
        if taken := {"name", "type", "origin"} & set(attributes):
            self.fail(f"`{word}` has no attribute `{min(taken)}`", start)
        made: Value = self.build(_KINDS[word], word, {**attributes, "name": (name, start), "type": (t, start)}, start)
        return made

    def check(
        self, op: Op, operands: list[Value], region: Graph | None, types: list[TensorType], row: int, at: int
    ) -> None:
        """The types written must be those that the op's rule gives."""
        after, self.row = self.row, row
        if (region is None) == hasattr(op, "infer_region"):
            self.fail(f"`{op.name}` needs a region" if region is None else f"`{op.name}` has no region", at)
        try:
            if region:
                found: Any = op.infer_region(region, operands)  # type: ignore[attr-defined]
            else:
                found = op.infer(*(v.type for v in operands))
        except (TypeMismatch, AssertionError, AttributeError, IndexError, TypeError, ValueError) as e:
            self.fail(f"`{op.name}` can't take these operands: {e}", at)
        inferred = [found] if isinstance(found, TensorType) else list(found)
        if inferred != types:
            self.fail(f"`{op.name}` gives {', '.join(map(str, inferred))} here", at)
        self.row = after

    def operand(self, values: dict[str, Value]) -> Value:
        self.expect("%", "a value")
        start = self.at
        name = self.name()
        if name not in values:
            self.fail(f"%{name} is not defined", start)
        return values[name]

    def outputs(self, values: dict[str, Value]) -> dict[str, Value]:
        if self.match(_WORD, "`return`") != "return":
            self.fail("expected `return`", 0)
        found: dict[str, Value] = {}
        while self.more() and not self.peek("}") and self.at < len(self.line):
            if found:
                self.expect(",")
            if self.peek("%"):
                key = str(len(found))
            else:
                key = self.name("an output")
                self.expect("=")
            found[key] = self.operand(values)
            self.skip()
        self.next_line()
        return found
