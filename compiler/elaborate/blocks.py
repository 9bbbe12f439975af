"""Blocks applied to tensors: this is where nodes come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from planform.spec import (
    BlockDef,
    GraphDef,
    Note,
    Span,
    SpecError,
    TensorDecl,
    ast,
    did_you_mean,
    output_names,
)

from ..binding import BindError, bind
from ..ir import Argument, Buffer, Builder, Origin, Value, free_values, substitute
from ..ops.contract import Op
from ..ops.control import Repeat
from ..ops.elementwise import Neg, number
from ..parameters import slice_text
from ..size import symbol
from ..types import WORDS, Dim, TensorType, TypeMismatch
from ..values import (
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
from .context import Env, Frame, Region, stream_of
from .expressions import TENSOR_OPS, Expressions


class Elaborator(Expressions):
    """Builds one graph of a spec. Use `elaborate` or `elaborate_loss`."""

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
                return self.emit(TENSOR_OPS[op](), a, b, span=block.span)
            case Negated(operand=f):
                return self.emit(Neg(), self.apply(f, x), span=block.span)
            case Named():
                return self.named(block, x)
            case Composite():
                return self.composite(block, x, block.definition.name)
            case OpUse():
                return self.op(block, x, block.cls.name)
            case GraphUse(graph=name):
                return self.tensor(self.run(block, [x], block.span), ast.Name(name, span=block.span))
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
        mine = use.span.source is not self.prelude
        if mine:
            self.uses.append(use.span)
        try:
            env = self.scope(use, x)
            with self.inside(element or self.frames[-1].unique(name), d.name):
                return self.body(d.body, env, x, d)
        finally:
            if mine:
                self.uses.pop()

    def scope(self, use: Composite, x: Value) -> Env:
        d = use.definition
        names: dict[str, Any] = {"in": x.type.dims[-1]} if x.type.rank else {}
        env = Env(names, d.prelude, use.places)
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
        # Blocks among the arguments are siblings of the op: their paths don't lead through it.
        inputs: list[Value] = []
        for t in cls.tensors:
            given = tensors.get(t.rstrip("?"), x if t.rstrip("?") == primary else None)
            if isinstance(given, Block):
                given = self.apply(given, x)
            elif is_number(given):
                given = number(self.builder, given)
            if given is not None:
                inputs.append(given)
        if self.kept:
            op = op.each(self.kept, *(v.type for v in inputs))
        with self.inside(element, name):
            if cls.trains_only and not self.training and inputs:
                return inputs[0]
            changing = self.owned(op, use, inputs)
            inputs += self.implicit(op, inputs, use.span)
            try:
                made = self.emit(op.training() if changing else op, *inputs, span=use.span)
            except SpecError as e:
                raise self.with_sizes(e, use) from None
            if not changing:
                return made
            for path, value in zip(changing, made[1:], strict=True):
                self.once |= {path} if op.once else set()
                self.update(path, value)
            return made[0]

    def owned(self, op: Op, use: OpUse, inputs: list[Value]) -> list[str]:
        """Adds what a use of an op owns to its inputs. Returns the paths of the buffers that it changes here."""
        try:
            types = [v.type for v in inputs]
            declared, buffers = op.parameters(*types), op.buffers(*types)
        except TypeMismatch as e:
            raise self.error(e.code, str(e), use.span, e.label, e.help) from None
        if (use.init or use.weight) and not declared:
            raise self.error("PF0302", f"`{op.name}` has no parameters of its own", use.span)
        for i, (key, decl) in enumerate(declared.items()):
            if use.init is not None and i == 0:
                decl = replace(decl, init=use.init)
            weight = self.parameter(key, decl, use.span)
            inputs.append(self.through(use.weight, weight) if use.weight and i == 0 else weight)
        inputs += [self.parameter(key, decl, use.span, Buffer) for key, decl in buffers.items()]
        if not self.training:
            return []
        if buffers and any(r.fits for r in self.regions):
            message = f"`{op.name}` changes what it keeps when it is evaluated, so it can't stand in an inner loop"
            raise self.error("PF0512", message, use.span)
        return [".".join([*self.path, key]) for key in buffers]

    def through(self, block: Block, weight: Value) -> Value:
        """A parameter as its op gets it: what a block makes of it. Raises: SpecError where that has another type."""
        made = self.apply(block, weight)
        if made.type != weight.type:
            message = f"what `weight=` names must give what it takes: {weight.type} in, {made.type} out"
            raise self.error("PF0332", message, block.span)
        return made

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
        changed = {path: region.successors.get(path, region.parameters[path]) for path in region.carries}
        changed |= {path: v for path, v in region.successors.items() if path in region.stacks}
        graph = builder.finish({"x": y, **changed})
        captured = free_values(graph)
        inner = [builder.add(Argument(v.name, v.type, v.origin)) for v in captured]
        taken = [(x, carry), *region.carries.values(), *region.stacks.values(), *zip(captured, inner)]
        graph = substitute(replace(graph, inputs=tuple(i for _, i in taken)), dict(zip(captured, inner)))
        op = Repeat(count, 1 + len(region.carries), len(region.stacks))
        path = ".".join([*self.path, elements[0].partition("[")[0]])
        self.builder.origin = Origin(path, str(block.span))
        result, *after = self.builder.emit(op, *(o for o, _ in taken), region=graph)
        for path, value in zip(changed, after, strict=True):
            self.update(path, value)
        return result

    def same_type(self, block: Repeated, x: Value, y: Value) -> None:
        if x.type != y.type:
            raise self.error(
                "PF0332", f"a repeated block must give what it takes: {x.type} in, {y.type} out", block.span
            )

    # ---- graphs ----

    def call_graph(self, expr: ast.Call, use: GraphUse, positional: list[Any], keywords: dict[str, Any]) -> Outputs:
        g = (self.spec.uses[use.of].spec if use.of in self.spec.uses else self.spec).graphs[use.graph]
        names = list(g.inputs)
        if len(positional) > len(names):
            raise self.error(
                "PF0302",
                f"graph `{g.name}` takes {len(names)} inputs, {len(positional)} given",
                expr.span,
                notes=[Note("defined here", g.span)],
            )
        given = dict(zip(names, positional))
        for key, value in keywords.items():
            if key not in names:
                raise self.error(
                    "PF0224",
                    f"graph `{g.name}` has no input `{key}`",
                    self.argument_span(expr, key),
                    help=did_you_mean(key, names),
                    notes=[Note("defined here", g.span)],
                )
            given[key] = value
        missing = [n for n in names if n not in given]
        if missing:
            raise self.error(
                "PF0302",
                f"graph `{g.name}` needs `{missing[0]}`",
                expr.span,
                notes=[Note("defined here", g.span)],
            )
        return self.run(use, [self.tensor(given[n], expr) for n in names], expr.span)

    def run(self, use: GraphUse, inputs: Sequence[Value | None], span: Span) -> Outputs:
        if use.of is None:
            return self.run_graph(use.graph, inputs, span)
        if use.of in self.targets:
            with self.copied(use.of):
                return self.run_graph(use.graph, inputs, span)
        used = self.spec.uses[use.of]
        with self.within(used):
            self.stream = stream_of(used.spec.graphs[use.graph], used.spec)
            return self.run_graph(use.graph, inputs, span)

    def run_graph(self, name: str, inputs: Sequence[Value | None], span: Span) -> Outputs:
        g = self.spec.graphs[name]
        for key, value in zip(g.inputs, inputs, strict=False):
            want = self.declared(g.inputs[key])
            if value is None or not _fits(value.type, want):
                raise self.error("PF0314", f"input `{key}` of graph `{name}` is {want}, got {describe(value)}", span)
        if ".".join([*self.prefix, name]) in self.trail_graphs:
            raise self.error("PF0223", f"graph `{name}` calls itself", span)
        path, frames, trail, base, kept = self.path, self.frames, self.trail, self.base, self.kept
        # A graph owns its parameters: they stand under its name, wherever it is called from.
        self.path, self.frames, self.trail = [*self.prefix, name], [Frame()], [*trail, ".".join([*self.prefix, name])]
        self.base, self.kept = len(self.regions) - 1, None
        try:
            return self.graph_body(g, {k: v for k, v in zip(g.inputs, inputs) if v is not None})
        finally:
            self.path, self.frames, self.trail, self.base, self.kept = path, frames, trail, base, kept

    @property
    def trail_graphs(self) -> set[str]:
        own = {".".join([*self.prefix, g]) for g in self.spec.graphs}
        return own.intersection(self.trail)

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
        places: dict[str, Span] = {}
        for s in g.body.statements:
            v = self.value(s.value, env)
            if s.name is not None:
                places[s.name] = s.value.span
                env.names[s.name] = Named(s.name, v, span=s.value.span) if isinstance(v, Block) else v
        found = {}
        for name in output_names(g):
            v = env.names.get(name)
            if not isinstance(v, (Value, Outputs)):
                help = "a block needs an input: `x >> block`" if isinstance(v, Block) else None
                message = f"output `{name}` of graph `{g.name}` must be a tensor, it is {describe(v)}"
                raise self.error("PF0301", message, places.get(name, g.span), help=help)
            found[name] = self.tensor(v, g.body.statements[-1].value)
        if not found:
            raise self.error(
                "PF0226", f"graph `{g.name}` names no output", g.span, help="end its body with `name = ..`"
            )
        return Outputs(g.name, found)


def _fits(given: TensorType, want: TensorType) -> bool:
    """Whether a graph that declares an input so can take this; its symbols stand for any size."""
    sizes = [(a, b) for a, b in zip(given.sizes, want.sizes) if isinstance(a, int) and isinstance(b, int)]
    return (given.dtype, given.rank) == (want.dtype, want.rank) and all(a == b for a, b in sizes)
