"""Spec to graph: evaluates the block algebra and builds the IR.

Expressions have values of four kinds (values.py). Applying a block to a tensor emits nodes; every use makes
parameters of its own, named by the path of blocks that led there. A repetition is elaborated once, as a
region. Mistakes become diagnostics with the place, the path of blocks and the sizes that were involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from planform.spec import (
    BlockDef,
    Diagnostic,
    Diagnostics,
    GraphDef,
    Note,
    Span,
    Spec,
    SpecError,
    TensorDecl,
    ast,
    did_you_mean,
    dim_values,
    output_names,
)

from .algebra import arithmetic, numeric_call
from .binding import BindError, bind, to_dim
from .ir import (
    Argument,
    Builder,
    Graph,
    Init,
    Input,
    Origin,
    Parameter,
    Value,
    free_values,
    stacked_dim,
    substitute,
)
from .ops import OPS
from .ops.contract import Op, ParameterDecl
from .ops.control import Repeat
from .ops.elementwise import Add, Div, Elementwise, Mul, Neg, Sub, number
from .ops.sequence import Iota
from .ops.shape import Rearrange
from .parameters import INITS, slice_text
from .size import Polynomial, symbol
from .types import WORDS, Dim, TensorType, TypeMismatch
from .values import (
    Arithmetic,
    Block,
    Composite,
    Constant,
    GraphUse,
    Identity,
    Named,
    Negated,
    OpUse,
    Outputs,
    Pipe,
    Repeated,
    describe,
    is_number,
)

_TENSOR_OPS = {"+": Add, "-": Sub, "*": Mul, "/": Div}
_MOST_NODES = 100_000
_DEEPEST = 60


@dataclass(frozen=True)
class Env:
    """What names mean in one body: its own names over those of the spec (or the prelude)."""

    names: dict[str, Any]
    prelude: bool = False


@dataclass
class Frame:
    """One block being applied: for the uniqueness of sibling names."""

    used: dict[str, int] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        n = self.used.get(name, 0) + 1
        self.used[name] = n
        return name if n == 1 else f"{name}_{n}"


@dataclass
class Region:
    """A graph under construction and, inside a repetition, the stacks that its region takes."""

    builder: Builder
    count: int = 1
    stacks: list[tuple[Value, Value]] = field(default_factory=list)  # (outside, inside)
    parameters: dict[str, Value] = field(default_factory=dict)  # by path
    implicit: dict[tuple[str, tuple[Dim, ...]], Input] = field(default_factory=dict)


class Elaborator:
    """Builds one graph of a spec. Use `elaborate` or `elaborate_loss`."""

    def __init__(self, spec: Spec, name: str, stream: str | None) -> None:
        self.spec, self.stream = spec, stream
        found = Diagnostics()
        self.dims = dim_values(spec.dims, found)
        found.raise_errors()
        self.regions = [Region(Builder(name, stream=stream))]
        self.base = 0  # the region that owns parameters: a graph call inside a repetition shares them
        self.frames = [Frame()]
        self.path: list[str] = []
        self.trail: list[str] = []
        self.emitted = 0
        self.own: dict[
            str, Any
        ] = {}  # names of the graph being built, for expressions of the training program

    # ---- places and errors ----

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        label: str = "",
        help: str | None = None,
        notes: Sequence[Note] = (),
    ) -> SpecError:
        trail = [Note("in " + " > ".join(self.trail))] if self.trail else []
        return SpecError(Diagnostic(code, message, span, label, (*notes, *trail), help))

    def sizes_in(self, expr: ast.Expr) -> list[Note]:
        """Notes on the dims that an expression names: their sizes and where they were set."""
        notes: dict[str, Note] = {}
        for e in expr.walk():
            if isinstance(e, ast.Name) and e.name in self.spec.dims and e.name in self.dims:
                d = self.spec.dims[e.name]
                where = "by --set" if d.origin == "--set" else f"at line {d.span.line}"
                notes[e.name] = Note(f"{e.name} = {self.dims[e.name]}, set {where}")
        return list(notes.values())

    @contextmanager
    def inside(self, element: str | None, trail: str | None = None) -> Iterator[None]:
        """Works under a path element (None: the path stays)."""
        if element is not None:
            self.path.append(element)
        if trail or element:
            self.trail.append(trail or str(element))
        self.frames.append(Frame())
        if len(self.frames) > 8 * _DEEPEST:
            raise RecursionError
        try:
            yield
        finally:
            self.frames.pop()
            if trail or element:
                self.trail.pop()
            if element is not None:
                self.path.pop()

    @property
    def builder(self) -> Builder:
        return self.regions[-1].builder

    def emit(self, op: Op, *inputs: Value, span: Span, element: str | None = None) -> Any:
        """Adds a node at the current path. Raises: SpecError where the op refuses its inputs."""
        self.emitted += 1
        if self.emitted > _MOST_NODES:
            raise self.error("PF0330", f"this model has over {_MOST_NODES} ops", span,
                             help="write equal layers as `layer ^ n` or `cycle([..], n)`: they stay one region")  # fmt: skip
        path = ".".join([*self.path, *([element] if element else [])])
        self.builder.origin = Origin(path, str(span))
        try:
            return self.builder.emit(op, *inputs)
        except TypeMismatch as e:
            raise self.error(e.code, str(e), span, e.label, e.help) from None

    # ---- names ----

    def lookup(self, node: ast.Name, env: Env) -> Any:
        name = node.name
        if name in env.names:
            return env.names[name]
        if name == "id":
            return Identity(span=node.span)
        spec = self.spec
        if not env.prelude:
            if name in spec.dims:
                size = self.dims[name]
                return Dim(name, size) if isinstance(size, int) else size
            if name in spec.params:
                return self.shared(name)
            if name in spec.graphs:
                return GraphUse(name, span=node.span)
            if name in self.symbols:
                return Dim(name, symbol(name))
            if name in self.own:
                return self.own[name]
        if name in spec.blocks and (spec.blocks[name].prelude or not env.prelude):
            return Composite(spec.blocks[name], {}, span=node.span)
        if name in OPS and OPS[name].spelled:
            return OpUse(OPS[name], {}, {}, None, span=node.span)
        if name in INITS:
            return Init(name)
        if name == "in":
            raise self.error(
                "PF0205", "`in` means something only inside a block: its input's last dim", node.span
            )
        known = [
            *env.names,
            *spec.dims,
            *spec.params,
            *spec.graphs,
            *spec.blocks,
            *OPS,
            *INITS,
            *self.symbols,
        ]
        raise self.error("PF0203", f"unknown name `{name}`", node.span, help=did_you_mean(name, known))

    @property
    def symbols(self) -> set[str]:
        found: set[str] = set()
        for g in self.spec.graphs.values():
            for decl in g.inputs.values():
                for e in decl.dims:
                    found |= {n.name for n in e.walk() if isinstance(n, ast.Name)}
        return found - set(self.spec.dims)

    def shared(self, name: str) -> Value:
        """The tensor declared under `params`, made at its first use."""
        decl = self.spec.params[name]
        dims = tuple(self.dim(e, Env({})) for e in decl.shape)
        init = self.value(decl.init, Env({})) if decl.init is not None else Init("normal", (0.02,))
        if not isinstance(init, Init):
            raise self.error("PF0303", f"expected an initialisation, got {describe(init)}", decl.span)
        root = self.regions[0]
        if name not in root.parameters:
            try:
                t = TensorType("f32", dims)
            except TypeMismatch as e:
                raise self.error(e.code, str(e), decl.span, help=e.help) from None
            p = Parameter(name, t, Origin(name, str(decl.span)), path=name, init=init)
            root.parameters[name] = root.builder.add(p)
        return root.parameters[name]

    # ---- expressions ----

    def value(self, expr: ast.Expr, env: Env) -> Any:
        """The value of an expression. Raises: SpecError."""
        match expr:
            case ast.Number(value=v) | ast.String(value=v) | ast.Constant(value=v):
                return v
            case ast.Name():
                return self.lookup(expr, env)
            case ast.ListExpr(items=items):
                return [self.value(i, env) for i in items]
            case ast.Negate(operand=inner):
                v = self.value(inner, env)
                if isinstance(v, Dim):
                    v = v.size
                if is_number(v):
                    return -v
                if isinstance(v, Block):
                    return Negated(v, span=expr.span)
                return self.emit(Neg(), self.tensor(v, inner), span=expr.span)
            case ast.Binary():
                return self.binary(expr, env)
            case ast.Attribute():
                return self.attribute(expr, env)
            case ast.Call():
                return self.call(expr, env)
        raise AssertionError(f"no rule for {type(expr).__name__}")

    def dim(self, expr: ast.Expr, env: Env) -> Dim:
        try:
            return to_dim(self.value(expr, env))
        except BindError as e:
            raise self.error(e.code, str(e), expr.span, help=e.help, notes=self.sizes_in(expr)) from None

    def tensor(self, value: Any, expr: ast.Expr) -> Value:
        if isinstance(value, Outputs):
            if len(value.values) == 1:
                return next(iter(value.values.values()))
            raise self.error("PF0304", f"graph `{value.graph}` has several outputs: choose one", expr.span,
                             help=" or ".join(f"`.{n}`" for n in value.values))  # fmt: skip
        if is_number(value) and not isinstance(value, Polynomial):
            self.builder.origin = Origin(".".join(self.path), str(expr.span))
            return number(self.builder, value)
        if isinstance(value, Value):
            return value
        raise self.error("PF0301", f"expected a tensor, got {describe(value)}", expr.span)

    def block(self, value: Any, span: Span) -> Block:
        if isinstance(value, Block):
            return value
        if isinstance(value, str):
            return OpUse(
                Rearrange, {"pattern": value, "sizes": self.pattern_sizes(value)}, {}, "x", span=span
            )
        if isinstance(value, (Value, Outputs)) or is_number(value):
            return Constant(value, span=span)
        help = "write `id` for the block that changes nothing" if value is None else None
        raise self.error("PF0301", f"expected a block, got {describe(value)}", span, help=help)

    def pattern_sizes(self, pattern: str) -> tuple[Dim, ...]:
        words = pattern.replace("(", " ").replace(")", " ").split()
        return tuple(Dim(w, int(self.dims[w])) for w in dict.fromkeys(words) if w in self.dims)

    def binary(self, expr: ast.Binary, env: Env) -> Any:
        left, right = self.value(expr.left, env), self.value(expr.right, env)
        op = expr.operator
        if op == ">>":
            if isinstance(left, (Value, Outputs)):
                return self.apply(self.block(right, expr.right.span), self.tensor(left, expr.left))
            if not isinstance(left, (Block, str)):
                raise self.error(
                    "PF0301",
                    f"`>>` takes a tensor or a block on its left, got {describe(left)}",
                    expr.left.span,
                )
            return Pipe(self.block(left, expr.left.span), self.block(right, expr.right.span), span=expr.span)
        if op == "^" and isinstance(left, Block):
            return Repeated((left,), self.count(right, expr.right), span=expr.span)
        if isinstance(left, Block) or isinstance(right, Block):
            if op not in _TENSOR_OPS:
                raise self.error("PF0301", f"`{op}` works on numbers, not on blocks", expr.operator_span)
            return Arithmetic(
                op, self.block(left, expr.left.span), self.block(right, expr.right.span), span=expr.span
            )
        if isinstance(left, (Value, Outputs)) or isinstance(right, (Value, Outputs)):
            if op not in _TENSOR_OPS:
                raise self.error("PF0301", f"`{op}` works on numbers, not on tensors", expr.operator_span)
            a, b = self.tensor(left, expr.left), self.tensor(right, expr.right)
            return self.emit(_TENSOR_OPS[op](), a, b, span=expr.span)
        try:
            return arithmetic(op, left, right)
        except BindError as e:
            raise self.error(e.code, str(e), expr.span, help=e.help, notes=self.sizes_in(expr)) from None

    def count(self, value: Any, expr: ast.Expr) -> int:
        if isinstance(value, Dim):
            value = value.size
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100_000:
            return value
        raise self.error("PF0305", f"a block is repeated a whole number of times, not {describe(value)}", expr.span,
                         notes=self.sizes_in(expr))  # fmt: skip

    def attribute(self, expr: ast.Attribute, env: Env) -> Any:
        value = self.value(expr.value, env)
        if not isinstance(value, Outputs):
            raise self.error(
                "PF0304", f"only a graph's outputs have names, this is {describe(value)}", expr.span
            )
        if expr.name not in value.values:
            raise self.error("PF0204", f"graph `{value.graph}` has no output `{expr.name}`", expr.name_span,
                             help=did_you_mean(expr.name, value.values) or "it has " + ", ".join(value.values))  # fmt: skip
        return value.values[expr.name]

    # ---- calls ----

    def call(self, expr: ast.Call, env: Env) -> Any:
        if isinstance(expr.function, ast.Name) and expr.function.name == "cycle" and "cycle" not in env.names:
            return self.cycle(expr, env)
        function = self.value(expr.function, env)
        positional = [self.value(a.value, env) for a in expr.arguments if a.name is None]
        keywords = {a.name: self.value(a.value, env) for a in expr.arguments if a.name is not None}
        name = keywords.pop("name", None)
        if name is not None and not (isinstance(name, str) and name.isidentifier()):
            raise self.error("PF0303", f"`name` is an identifier in quotes, not {describe(name)}", expr.span)
        if isinstance(function, Init):
            return self.initialisation(expr, function, positional)
        if isinstance(function, Composite):
            made: Any = self.bind_composite(expr, function, positional, keywords)
        elif isinstance(function, OpUse):
            made = self.bind_op(expr, function, positional, keywords)
        elif isinstance(function, GraphUse):
            return self.call_graph(expr, function, positional, keywords)
        else:
            raise self.error("PF0301", f"{describe(function)} can't be called", expr.function.span)
        if name is not None and isinstance(made, Block):
            return Named(name, made, span=expr.span)
        return made

    def argument_span(self, expr: ast.Call, argument: int | str | None) -> Span:
        if isinstance(argument, str):
            for a in expr.arguments:
                if a.name == argument:
                    return a.value.span
        plain = [a for a in expr.arguments if a.name is None]
        if isinstance(argument, int) and argument < len(plain):
            return plain[argument].value.span
        return expr.span

    def initialisation(self, expr: ast.Call, function: Init, positional: list[Any]) -> Init:
        numbers = [v.size if isinstance(v, Dim) else v for v in positional]
        if len(numbers) > INITS[function.name] or not all(is_number(v) for v in numbers):
            raise self.error(
                "PF0302", f"`{function.name}` takes at most {INITS[function.name]} numbers", expr.span
            )
        return Init(function.name, tuple(float(v) for v in numbers))

    def bind_composite(
        self, expr: ast.Call, use: Composite, positional: list[Any], keywords: dict[str, Any]
    ) -> Composite:
        d = use.definition
        names = [p.name for p in d.parameters]
        if len(positional) > len(names):
            raise self.error("PF0302", f"block `{d.name}` takes {len(names)} arguments, {len(positional)} given",
                             self.argument_span(expr, len(names)), notes=[Note("defined here", d.span)])  # fmt: skip
        given = dict(zip(names, positional))
        for key, value in keywords.items():
            if key not in names:
                raise self.error("PF0204", f"block `{d.name}` has no argument `{key}`", self.argument_span(expr, key),
                                 help=did_you_mean(key, names), notes=[Note("defined here", d.span)])  # fmt: skip
            if key in given:
                raise self.error("PF0302", f"`{key}` is given twice", self.argument_span(expr, key))
            given[key] = value
        return Composite(d, {**use.arguments, **given}, span=expr.span)

    def bind_op(self, expr: ast.Call, use: OpUse, positional: list[Any], keywords: dict[str, Any]) -> Any:
        if not keywords and issubclass(use.cls, Elementwise) and positional:
            plain = [v.size if isinstance(v, Dim) else v for v in positional]
            if all(is_number(v) and not isinstance(v, Polynomial) for v in plain):
                return numeric_call(use.cls, plain)
        init = keywords.pop("init", None)
        try:
            attributes, tensors, primary = bind(use.cls, positional, keywords)
        except BindError as e:
            help = (did_you_mean(str(e.argument), e.choices) if e.choices else None) or e.help
            span = self.argument_span(expr, e.argument)
            raise self.error(e.code, str(e), span, help=help, notes=self.sizes_in(expr)) from None
        if init is not None and not isinstance(init, Init):
            raise self.error(
                "PF0303",
                f"expected an initialisation, got {describe(init)}",
                self.argument_span(expr, "init"),
            )
        made = OpUse(use.cls, attributes, tensors, primary, init, span=expr.span)
        if primary is None and not any(isinstance(t, Block) for t in tensors.values()):
            return self.apply(made, None)
        return made

    def cycle(self, expr: ast.Call, env: Env) -> Block:
        values = [self.value(a.value, env) for a in expr.arguments]
        if len(values) != 2 or not isinstance(values[0], list) or not values[0]:
            raise self.error("PF0302", "`cycle` takes a list of blocks and how many layers there are", expr.span,
                             help="cycle([layer(window), layer(none)], layers)")  # fmt: skip
        items = expr.arguments[0].value
        spans = (
            [i.span for i in items.items]
            if isinstance(items, ast.ListExpr)
            else [items.span] * len(values[0])
        )
        bodies = tuple(self.block(v, s) for v, s in zip(values[0], spans))
        return Repeated(bodies, self.count(values[1], expr.arguments[1].value), span=expr.span)

    # ---- application ----

    def apply(self, block: Block, x: Value | None) -> Value:
        """The tensor that a block makes of x. Raises: SpecError."""
        match block:
            case Identity():
                assert x is not None
                return x
            case Constant(value=v):
                return self.tensor(v, ast.Name("constant", span=block.span))
            case Pipe(first=f, then=g):
                return self.apply(g, self.apply(f, x))
            case Arithmetic(operator=op, left=f, right=g):
                a, b = self.apply(f, x), self.apply(g, x)
                return self.emit(_TENSOR_OPS[op](), a, b, span=block.span)
            case Negated(operand=f):
                return self.emit(Neg(), self.apply(f, x), span=block.span)
            case Named():
                return self.named(block, x)
            case Composite():
                return self.composite(block, x, block.definition.name)
            case OpUse():
                return self.op(block, x, block.cls.name)
            case GraphUse(graph=name):
                return self.tensor(self.run_graph(name, [x], block.span), ast.Name(name, span=block.span))
            case Repeated():
                return self.repeated(block, x)
        raise AssertionError(f"no rule for {type(block).__name__}")

    def named(self, block: Named, x: Value | None) -> Value:
        match block.body:
            case Composite():
                return self.composite(block.body, x, block.name)
            case OpUse():
                return self.op(block.body, x, block.name)
            case Repeated():
                return self.repeated(block.body, x, block.name)
        with self.inside(self.frames[-1].unique(block.name)):
            return self.apply(block.body, x)

    def composite(self, use: Composite, x: Value | None, name: str, element: str | None = None) -> Value:
        d = use.definition
        assert x is not None
        env = self.scope(use, x)
        with self.inside(element or self.frames[-1].unique(name), d.name):
            return self.body(d.body, env, x, d)

    def scope(self, use: Composite, x: Value) -> Env:
        d = use.definition
        names: dict[str, Any] = {"in": x.type.dims[-1]} if x.type.rank else {}
        env = Env(names, d.prelude)
        for p in d.parameters:
            if p.name in use.arguments:
                names[p.name] = use.arguments[p.name]
            elif p.default is not None:
                names[p.name] = self.value(p.default, env)
            else:
                raise self.error(
                    "PF0302",
                    f"block `{d.name}` needs `{p.name}`",
                    use.span,
                    notes=[Note("defined here", d.span)],
                )
        return env

    def body(self, body: ast.Body, env: Env, x: Value, d: BlockDef) -> Value:
        result: Any = None
        for s in body.statements:
            result = self.value(s.value, env)
            if s.name is not None:
                if isinstance(result, Block):
                    result = Named(s.name, result, span=s.value.span)
                env.names[s.name] = result
        last = body.statements[-1].value
        if isinstance(result, (Value, Outputs)):
            return self.tensor(result, last)
        return self.apply(self.block(result, last.span), x)

    def op(self, use: OpUse, x: Value | None, name: str) -> Value:
        cls, attributes, tensors, primary = use.cls, use.attributes, use.tensors, use.primary
        if not attributes and not tensors and primary is None and x is not None:
            # Written as a bare name, such as `gelu_tanh`: everything but the input has its default.
            try:
                attributes, tensors, primary = bind(cls, [], {})
            except BindError as e:
                raise self.error(e.code, str(e), use.span, help=e.help) from None
        element = self.frames[-1].unique(name)
        op = cls(**attributes)
        with self.inside(element, name):
            inputs = []
            for t in cls.tensors:
                given = tensors.get(t.rstrip("?"), x if t.rstrip("?") == primary else None)
                if isinstance(given, Block):
                    given = self.apply(given, x)
                if given is not None:
                    inputs.append(given)
            try:
                declared = op.parameters(*(v.type for v in inputs))
            except TypeMismatch as e:
                raise self.error(e.code, str(e), use.span, e.label, e.help) from None
            for i, (key, decl) in enumerate(declared.items()):
                if use.init is not None and i == 0:
                    decl = replace(decl, init=use.init)
                inputs.append(self.parameter(key, decl, use.span))
            inputs += self.implicit(op, inputs, use.span)
            if use.init is not None and not declared:
                raise self.error("PF0302", f"`{cls.name}` has no parameters to initialise", use.span)
            try:
                return self.emit(op, *inputs, span=use.span)
            except SpecError as e:
                raise self.with_sizes(e, use) from None

    def with_sizes(self, e: SpecError, use: OpUse) -> SpecError:
        """Adds the sizes of the dims that went into the op, and where they were set."""
        d = e.diagnostics[0]
        names: dict[str, None] = {}
        for v in [*use.attributes.values(), *use.tensors.values()]:
            for one in v if isinstance(v, tuple) else (v,):
                if isinstance(one, Dim) and one.name in self.spec.dims:
                    names[str(one.name)] = None
                if isinstance(one, Value):
                    names.update({str(q.name): None for q in one.type.dims if q.name in self.spec.dims})
                if isinstance(one, Block):
                    names.update(dict.fromkeys(self.dims_of(one)))
        notes = []
        for n in names:
            where = self.spec.dims[n]
            at = "by --set" if where.origin == "--set" else f"at line {where.span.line}"
            notes.append(Note(f"{n} = {self.dims[n]}, set {at}"))
        return SpecError(replace(d, notes=(*notes, *d.notes)))

    def dims_of(self, block: Block) -> list[str]:
        match block:
            case Named(body=b):
                return self.dims_of(b)
            case Pipe(first=f, then=g):
                return self.dims_of(f) + self.dims_of(g)
            case OpUse(attributes=attributes):
                items = [i for v in attributes.values() for i in (v if isinstance(v, tuple) else (v,))]
                return [str(i.name) for i in items if isinstance(i, Dim) and i.name in self.spec.dims]
        return []

    # ---- parameters and implicit inputs ----

    def parameter(self, key: str, decl: ParameterDecl, span: Span) -> Value:
        """The parameter `key` at the current path; inside repetitions, this layer's slice of a stack."""
        path = ".".join([*self.path, key])
        levels = self.regions[self.base :]
        lead = tuple(stacked_dim(r.count) for r in levels[1:])
        origin = Origin(path, str(span))
        root = self.regions[0]
        if path not in root.parameters:
            t = TensorType(decl.dtype, (*lead, *decl.dims))
            p = Parameter(self.hint(key), t, origin, path=path, init=decl.init, stacked=len(lead))
            root.parameters[path] = root.builder.add(p)
        value = root.parameters[path]
        for i, region in enumerate(levels[1:]):
            if path not in region.parameters:
                inner = Argument(self.hint(key), TensorType(decl.dtype, (*lead[i + 1 :], *decl.dims)), origin)
                region.parameters[path] = region.builder.add(inner)
                region.stacks.append((value, inner))
            value = region.parameters[path]
        return value

    def hint(self, key: str) -> str:
        element = self.path[-1].partition("[")[0] if self.path else ""
        return f"{element}.{key}" if element else key

    def implicit(self, op: Op, inputs: Sequence[Value], span: Span) -> list[Value]:
        """The position, document or random draw that an op reads besides its arguments."""
        reads = op.reads()
        if not reads:
            return []
        x = inputs[0].type
        axis = x.axis(self.stream) if self.stream else None
        if axis is None:
            if "document" in reads:  # masks count from the start of the axis and know one document
                if op.name == "attend":
                    return []
                raise self.error("PF0331", f"`{op.name}` works along the sequence axis, and {x} has none", span,
                                 help="name it with `stream:` in the graph")  # fmt: skip
            return [self.emit(Iota(x.dims[:-2]), span=span, element="position")]
        if op.name in ("attend", "rope") and axis != x.rank - 3:
            raise self.error(
                "PF0331", f"`{op.name}` needs [.., {self.stream}, heads, head_dim], its input is {x}", span
            )
        root = self.regions[0]
        dims = x.dims[: axis + 1]
        found = []
        for name in reads:
            key = (name, dims)
            if key not in root.implicit:
                default = {"position": "iota", "document": "zeros"}[name]
                root.implicit[key] = root.builder.add(
                    Input(name, TensorType("i32", dims), Origin(name), default)
                )
            found.append(root.implicit[key])
        return found

    # ---- repetition ----

    def repeated(self, block: Repeated, x: Value | None, name: str | None = None) -> Value:
        assert x is not None
        k, n = len(block.bodies), block.count
        whole = n // k if n // k > 1 else 0
        elements = [name or self.element(b) for b in block.bodies]
        taken = {e: self.frames[-1].unique(e) for e in dict.fromkeys(elements)}
        elements = [taken[e] for e in elements]
        if whole:
            names = [f"{e}{slice_text(j, whole * k, k)}" for j, e in enumerate(elements)]
            x = self.region(block, x, whole, names)
        for i in range(whole * k, n):
            y = self.layer(block.bodies[i % k], x, f"{elements[i % k]}[{i}]")
            self.same_type(block, x, y)
            x = y
        return x

    def element(self, block: Block) -> str:
        match block:
            case Named(name=name):
                return name
            case Composite(definition=d):
                return d.name
            case OpUse(cls=cls):
                return cls.name
        return "layer"

    def layer(self, block: Block, x: Value, element: str) -> Value:
        while isinstance(block, Named):
            block = block.body
        if isinstance(block, Composite):
            return self.composite(block, x, element, element)
        with self.inside(element):
            if isinstance(block, OpUse):
                # The op itself takes the layer's path, without an element of its own.
                with self.as_element(block, x) as y:
                    return y
            return self.apply(block, x)

    @contextmanager
    def as_element(self, block: OpUse, x: Value) -> Iterator[Value]:
        yield self.op(block, x, block.cls.name)

    def region(self, block: Repeated, x: Value, count: int, elements: Sequence[str]) -> Value:
        builder = Builder(f"{self.builder.name}.{elements[0].partition('[')[0]}", stream=self.stream)
        carry = builder.add(Argument("x", x.type, Origin(".".join(self.path), str(block.span))))
        region = Region(builder, count)
        self.regions.append(region)
        try:
            y: Value = carry
            for body, element in zip(block.bodies, elements):
                y = self.layer(body, y, element)
        finally:
            self.regions.pop()
        self.same_type(block, x, y)
        graph = builder.finish({"x": y})
        captured = free_values(graph)
        inner = [builder.add(Argument(v.name, v.type, v.origin)) for v in captured]
        graph = substitute(
            replace(graph, inputs=(carry, *(i for _, i in region.stacks), *inner)), dict(zip(captured, inner))
        )
        op = Repeat(count, 1, len(region.stacks))
        path = ".".join([*self.path, elements[0].partition("[")[0]])
        self.builder.origin = Origin(path, str(block.span))
        outs = self.builder.emit(op, x, *(o for o, _ in region.stacks), *captured, region=graph)
        return outs[0]

    def same_type(self, block: Repeated, x: Value, y: Value) -> None:
        if x.type != y.type:
            raise self.error(
                "PF0332", f"a repeated block must give what it takes: {x.type} in, {y.type} out", block.span
            )

    # ---- graphs ----

    def call_graph(
        self, expr: ast.Call, use: GraphUse, positional: list[Any], keywords: dict[str, Any]
    ) -> Outputs:
        g = self.spec.graphs[use.graph]
        names = list(g.inputs)
        if len(positional) > len(names):
            raise self.error("PF0302", f"graph `{g.name}` takes {len(names)} inputs, {len(positional)} given", expr.span,
                             notes=[Note("defined here", g.span)])  # fmt: skip
        given = dict(zip(names, positional))
        for key, value in keywords.items():
            if key not in names:
                raise self.error("PF0204", f"graph `{g.name}` has no input `{key}`", self.argument_span(expr, key),
                                 help=did_you_mean(key, names), notes=[Note("defined here", g.span)])  # fmt: skip
            given[key] = value
        missing = [n for n in names if n not in given]
        if missing:
            raise self.error(
                "PF0302",
                f"graph `{g.name}` needs `{missing[0]}`",
                expr.span,
                notes=[Note("defined here", g.span)],
            )
        return self.run_graph(use.graph, [self.tensor(given[n], expr) for n in names], expr.span)

    def run_graph(self, name: str, inputs: Sequence[Value | None], span: Span) -> Outputs:
        g = self.spec.graphs[name]
        for key, value in zip(g.inputs, inputs, strict=False):
            want = self.declared(g.inputs[key])
            if value is None or [value.type.dtype, value.type.rank] != [want.dtype, want.rank]:
                raise self.error(
                    "PF0314", f"input `{key}` of graph `{name}` is {want}, got {describe(value)}", span
                )
        if name in self.trail_graphs:
            raise self.error("PF0206", f"graph `{name}` calls itself", span)
        path, frames, trail, base = self.path, self.frames, self.trail, self.base
        # A graph owns its parameters: they stand under its name, wherever it is called from.
        self.path, self.frames, self.trail = [name], [Frame()], [*trail, name]
        self.base = len(self.regions) - 1
        try:
            return self.graph_body(g, {k: v for k, v in zip(g.inputs, inputs) if v is not None})
        finally:
            self.path, self.frames, self.trail, self.base = path, frames, trail, base

    @property
    def trail_graphs(self) -> set[str]:
        return {t for t in self.trail if t in self.spec.graphs}

    def declared(self, decl: TensorDecl) -> TensorType:
        dims = []
        for e in decl.dims:
            if isinstance(e, ast.Name) and e.name not in self.spec.dims:
                dims.append(Dim(e.name, symbol(e.name)))
            else:
                dims.append(self.dim(e, Env({})))
        try:
            return TensorType(WORDS.get(decl.dtype, decl.dtype), tuple(dims))
        except TypeMismatch as e:
            raise self.error(e.code, str(e), decl.span, help=e.help) from None

    def graph_body(self, g: GraphDef, inputs: Mapping[str, Value]) -> Outputs:
        env = Env(dict(inputs))
        for s in g.body.statements:
            v = self.value(s.value, env)
            if s.name is not None:
                env.names[s.name] = Named(s.name, v, span=s.value.span) if isinstance(v, Block) else v
        found = {}
        for name in output_names(g):
            v = env.names.get(name)
            if not isinstance(v, (Value, Outputs)):
                raise self.error(
                    "PF0301",
                    f"output `{name}` of graph `{g.name}` must be a tensor, it is {describe(v)}",
                    g.span,
                )
            found[name] = self.tensor(v, g.body.statements[-1].value)
        if not found:
            raise self.error(
                "PF0208", f"graph `{g.name}` names no output", g.span, help="end its body with `name = ..`"
            )
        return Outputs(g.name, found)


def stream_of(g: GraphDef, spec: Spec) -> str | None:
    """The sequence axis of a graph: as written, else `time` where an input has it."""
    if g.stream:
        return g.stream
    names = {e.name for decl in g.inputs.values() for e in decl.dims if isinstance(e, ast.Name)}
    return "time" if "time" in names and "time" not in spec.dims else None


def elaborate(spec: Spec, graph: str | None = None) -> Graph:
    """The IR of one graph of a spec (the only one, if none is named). Raises: SpecError."""
    g = _choose(spec, graph)
    e = Elaborator(spec, g.name, stream_of(g, spec))
    with _bounded(g.span):
        inputs = {
            n: e.builder.add(Input(n, e.declared(d), Origin(n, str(d.span)))) for n, d in g.inputs.items()
        }
        outputs = e.run_graph(g.name, list(inputs.values()), g.span)
    return e.builder.finish(outputs.values)


def elaborate_loss(spec: Spec, loss: ast.Body, inputs: Mapping[str, TensorType], name: str = "loss") -> Graph:
    """The IR of a loss expression over graphs and data tensors; its output is `loss`, a scalar.

    Raises: SpecError.
    """
    streams = {stream_of(g, spec) for g in spec.graphs.values()} - {None}
    e = Elaborator(spec, name, next(iter(streams)) if len(streams) == 1 else None)
    with _bounded(loss.span):
        e.own = {n: e.builder.add(Input(n, t, Origin(n))) for n, t in inputs.items()}
        env, result = Env({}), None
        for s in loss.statements:
            result = e.value(s.value, env)
            if s.name is not None:
                env.names[s.name] = result
        last = loss.statements[-1].value
        value = e.tensor(result, last)
        if value.type.rank:
            raise e.error(
                "PF0501",
                f"a loss is a scalar, this is {value.type}",
                last.span,
                help="mean(..) or sum(..) makes one",
            )
    return e.builder.finish({"loss": value})


def _choose(spec: Spec, graph: str | None) -> GraphDef:
    if graph is None and len(spec.graphs) == 1:
        return next(iter(spec.graphs.values()))
    if graph in spec.graphs:
        return spec.graphs[graph]
    span = spec.spans.get("graphs") or Span(spec.source, 0, 1)
    names = ", ".join(spec.graphs)
    raise SpecError(Diagnostic("PF0207", f"no graph `{graph}`" if graph else "this spec has several graphs", span,
                               help=(did_you_mean(graph, spec.graphs) if graph else None) or f"one of {names}"))  # fmt: skip


@contextmanager
def _bounded(span: Span) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise SpecError(Diagnostic("PF0333", "blocks are nested too deeply", span,
                                   help="a block that uses itself, even through its arguments, never ends")) from None  # fmt: skip
