"""Expressions and their values."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from planform.spec import (
    Note,
    Span,
    SpecError,
    ast,
    did_you_mean,
    no_such_graph,
    only_in_training,
    which_graph,
)

from ..algebra import arithmetic, numeric_call
from ..binding import BindError, bind, to_dim
from ..gradient import gradient
from ..ir import Init, Origin, Parameter, Value
from ..ops import OPS
from ..ops.elementwise import Add, Div, Elementwise, Mul, Neg, Sub, number
from ..ops.shape import Rearrange
from ..parameters import INITS
from ..size import Polynomial, symbol
from ..types import Dim, TensorType, TypeMismatch
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
from .context import Context, Env

MOST_LAYERS = 100_000
INIT_HELP = "one of " + ", ".join(f"{n}(..)" if k else n for n, k in INITS.items())
TENSOR_OPS = {"+": Add, "-": Sub, "*": Mul, "/": Div}


class Expressions(Context):
    """Evaluates expressions of the algebra to numbers, dims, tensors and blocks."""

    def apply(self, block: Block, x: Value | None) -> Value:
        raise NotImplementedError  # blocks.py

    def call_graph(self, expr: ast.Call, use: GraphUse, positional: list[Any], keywords: dict[str, Any]) -> Outputs:
        raise NotImplementedError  # blocks.py

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
            if name in spec.uses:
                return self.other_graph(name, None, node)
            if name in self.targets:
                return GraphUse(self.targets[name], name, span=node.span)
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
            raise self.error("PF0228", "`in` means something only inside a block: its input's last dim", node.span)
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
        raise self.error("PF0220", f"unknown name `{name}`", node.span, help=did_you_mean(name, known))

    def other_graph(self, name: str, graph: str | None, node: ast.Expr) -> GraphUse:
        """A graph of a used spec, by its name or as its only one."""
        used = self.spec.uses[name]
        if name not in self.others:
            raise SpecError(only_in_training(used, node.span))
        found = used.graph(graph)
        if found is None and isinstance(node, ast.Attribute):
            raise SpecError(no_such_graph(used, node))
        if found is None:
            raise SpecError(which_graph(used, node.span))
        return GraphUse(found.name, name, span=node.span)

    @cached_property
    def symbols(self) -> set[str]:
        """Names in the types of inputs that aren't dims of the spec: `batch`, `time`."""
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
            span = decl.init.span if decl.init is not None else decl.span
            raise self.error("PF0303", f"expected an initialisation, got {describe(init)}", span, help=INIT_HELP)
        root = self.regions[0]
        path = ".".join([*self.prefix, name])
        if path not in root.parameters:
            try:
                t = TensorType("f32", dims)
            except TypeMismatch as e:
                raise self.error(e.code, str(e), decl.span, help=e.help) from None
            self.add_weight(Parameter, path, t, path, Origin(path, str(decl.span)), init)
        return root.parameters[path]

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
                operand = self.value(inner, env)
                if isinstance(operand, Dim):
                    operand = operand.size
                if is_number(operand):
                    return -operand
                if isinstance(operand, Block):
                    return Negated(operand, span=expr.span)
                return self.emit(Neg(), self.tensor(operand, inner), span=expr.span)
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
            raise self.error(
                "PF0304",
                f"graph `{value.graph}` has several outputs: choose one",
                expr.span,
                help=" or ".join(f"`.{n}`" for n in value.values),
            )
        if isinstance(value, Dim):
            value = value.size
        if is_number(value) and not isinstance(value, Polynomial):
            self.builder.origin = Origin(".".join(self.path), str(expr.span))
            return number(self.builder, value)
        if isinstance(value, Value):
            return value
        raise self.error("PF0301", f"expected a tensor, got {describe(value)}", expr.span)

    def block(self, value: Any, span: Span, constant: bool = False) -> Block:
        """The value as a block; numbers and tensors only where a constant makes sense, as in `2 * f`."""
        if isinstance(value, Block):
            return value
        if isinstance(value, str):
            return OpUse(Rearrange, {"pattern": value, "sizes": self.pattern_sizes(value)}, {}, "x", span=span)
        if constant and (isinstance(value, (Value, Outputs)) or is_number(value)):
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
            there = self.written_at(expr.right, env)
            if isinstance(left, (Value, Outputs)):
                return self.apply(self.block(right, there), self.tensor(left, expr.left))
            if not isinstance(left, (Block, str)):
                raise self.error(
                    "PF0301",
                    f"`>>` takes a tensor or a block on its left, got {describe(left)}",
                    expr.left.span,
                )
            return Pipe(self.block(left, self.written_at(expr.left, env)), self.block(right, there), span=expr.span)
        if op == "^" and isinstance(left, Block):
            return Repeated((left,), self.count(right, expr.right), span=expr.span)
        if isinstance(left, Block) or isinstance(right, Block):
            if op not in TENSOR_OPS:
                raise self.error("PF0301", f"`{op}` works on numbers, not on blocks", expr.operator_span)
            a, b = self.block(left, expr.left.span, True), self.block(right, expr.right.span, True)
            return Arithmetic(op, a, b, span=expr.span)
        if isinstance(left, (Value, Outputs)) or isinstance(right, (Value, Outputs)):
            if op not in TENSOR_OPS:
                raise self.error("PF0301", f"`{op}` works on numbers, not on tensors", expr.operator_span)
            x, y = self.tensor(left, expr.left), self.tensor(right, expr.right)
            return self.emit(TENSOR_OPS[op](), x, y, span=expr.span)
        try:
            return arithmetic(op, left, right)
        except BindError as e:
            raise self.error(e.code, str(e), expr.span, help=e.help, notes=self.sizes_in(expr)) from None

    def count(self, value: Any, expr: ast.Expr) -> int:
        if isinstance(value, Dim):
            value = value.size
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and 0 <= value <= MOST_LAYERS:
            return int(value)
        if whole and value > MOST_LAYERS:
            message = f"a block is repeated {MOST_LAYERS:,} times at most, not {value:,} times"
        else:
            message = (
                f"a block is repeated a whole number of times, not {value if is_number(value) else describe(value)}"
            )
        raise self.error("PF0305", message, expr.span, notes=self.sizes_in(expr))

    def attribute(self, expr: ast.Attribute, env: Env) -> Any:
        of = expr.value.name if isinstance(expr.value, ast.Name) else ""
        if of in self.spec.uses and of not in env.names and not env.prelude:
            return self.other_graph(of, expr.name, expr)
        value = self.value(expr.value, env)
        if not isinstance(value, Outputs):
            raise self.error("PF0304", f"only a graph's outputs have names, this is {describe(value)}", expr.span)
        if expr.name not in value.values:
            raise self.error(
                "PF0225",
                f"graph `{value.graph}` has no output `{expr.name}`",
                expr.name_span,
                help=did_you_mean(expr.name, value.values) or "it has " + ", ".join(value.values),
            )
        return value.values[expr.name]

    # ---- calls ----

    def call(self, expr: ast.Call, env: Env) -> Any:
        if isinstance(expr.function, ast.Name) and expr.function.name == "cycle" and "cycle" not in env.names:
            return self.cycle(expr, env)
        if isinstance(expr.function, ast.Name) and expr.function.name == "grad" and "grad" not in env.names:
            return self.grad(expr, env)
        function = self.value(expr.function, env)
        positional = [self.value(a.value, env) for a in expr.arguments if a.name is None]
        keywords = {a.name: self.value(a.value, env) for a in expr.arguments if a.name is not None}
        name = keywords.pop("name", None)
        if name is not None and not (isinstance(name, str) and name.isidentifier()):
            raise self.error("PF0303", f"`name` is an identifier in quotes, not {describe(name)}", expr.span)
        if isinstance(function, Init):
            return self.initialisation(expr, function, positional)
        if isinstance(function, Composite):
            made: Any = self.bind_composite(expr, function, positional, keywords, env)
        elif isinstance(function, OpUse):
            for a, v in zip(expr.arguments, [*positional, *keywords.values()]):
                if isinstance(v, Outputs) and len(v.values) > 1:
                    self.tensor(v, a.value)  # says which outputs there are
            made = self.bind_op(expr, function, positional, keywords, env)
        elif isinstance(function, GraphUse):
            return self.call_graph(expr, function, positional, keywords)
        else:
            raise self.error("PF0301", f"{describe(function)} can't be called", expr.function.span)
        if name is not None and isinstance(made, Block):
            return Named(name, made, span=expr.span)
        return made

    def argument_span(self, expr: ast.Call, argument: int | str | None, env: Env | None = None) -> Span:
        """Where an argument's value was written: with `env`, outside the block that hands its own argument on."""
        found: ast.Expr | None = None
        if isinstance(argument, str):
            found = next((a.value for a in expr.arguments if a.name == argument), None)
        plain = [a for a in expr.arguments if a.name is None]
        if isinstance(argument, int) and argument < len(plain):
            found = plain[argument].value
        if found is None:
            return expr.span
        return self.written_at(found, env) if env else found.span

    def name_span(self, expr: ast.Call, name: str) -> Span:
        """Where the name of a keyword argument stands."""
        return next((a.name_span for a in expr.arguments if a.name == name and a.name_span), expr.span)

    def written_at(self, expr: ast.Expr, env: Env) -> Span:
        """Where the value of an expression was written: that of a block's argument is written where it is called."""
        return env.places.get(expr.name, expr.span) if isinstance(expr, ast.Name) else expr.span

    def initialisation(self, expr: ast.Call, function: Init, positional: list[Any]) -> Init:
        numbers: list[Any] = [v.size if isinstance(v, Dim) else v for v in positional]
        plain = all(is_number(v) and not isinstance(v, Polynomial) for v in numbers)
        if len(numbers) > INITS[function.name] or not plain:
            raise self.error("PF0302", f"`{function.name}` takes at most {INITS[function.name]} numbers", expr.span)
        return Init(function.name, tuple(float(v) for v in numbers))

    def bind_composite(
        self, expr: ast.Call, use: Composite, positional: list[Any], keywords: dict[str, Any], env: Env
    ) -> Composite:
        d = use.definition
        names = [p.name for p in d.parameters]
        if len(positional) > len(names):
            raise self.error(
                "PF0302",
                f"block `{d.name}` takes {len(names)} arguments, {len(positional)} given",
                self.argument_span(expr, len(names)),
                notes=[Note("defined here", d.span)],
            )
        given = dict(zip(names, positional))
        for key, value in keywords.items():
            if key not in names:
                raise self.error(
                    "PF0224",
                    f"block `{d.name}` has no argument `{key}`",
                    self.name_span(expr, key),
                    help=did_you_mean(key, names),
                    notes=[Note("defined here", d.span)],
                )
            if key in given:
                raise self.error("PF0302", f"`{key}` is given twice", self.name_span(expr, key))
            given[key] = value
        plain = [a.value for a in expr.arguments if a.name is None]
        places = {n: self.written_at(e, env) for n, e in zip(names, plain)}
        places |= {a.name: self.written_at(a.value, env) for a in expr.arguments if a.name in given}
        return Composite(d, {**use.arguments, **given}, {**use.places, **places}, span=expr.span)

    def bind_op(self, expr: ast.Call, use: OpUse, positional: list[Any], keywords: dict[str, Any], env: Env) -> Any:
        if not keywords and issubclass(use.cls, Elementwise) and len(positional) == len(use.cls.tensors):
            plain = [v.size if isinstance(v, Dim) else v for v in positional]
            if all(is_number(v) and not isinstance(v, Polynomial) for v in plain):
                return numeric_call(use.cls, plain)
        init, weight = keywords.pop("init", None), keywords.pop("weight", None)
        try:
            attributes, tensors, primary = bind(use.cls, positional, keywords)
        except BindError as e:
            help = (did_you_mean(str(e.argument), e.choices) if e.choices else None) or e.help
            unknown = isinstance(e.argument, str) and e.choices
            span = self.name_span(expr, str(e.argument)) if unknown else self.argument_span(expr, e.argument, env)
            raise self.error(e.code, str(e), span, help=help, notes=self.sizes_in(expr)) from None
        if init is not None and not isinstance(init, Init):
            raise self.error(
                "PF0303",
                f"expected an initialisation, got {describe(init)}",
                self.argument_span(expr, "init", env),
                help=INIT_HELP,
            )
        through = None if weight is None else self.block(weight, self.argument_span(expr, "weight", env))
        made = OpUse(use.cls, attributes, tensors, primary, init, through, span=expr.span)
        if primary is None and not any(isinstance(t, Block) for t in tensors.values()):
            return self.apply(made, None)
        return made

    def grad(self, expr: ast.Call, env: Env) -> Value:
        """`grad(y, x)`: the gradient of sum(y) with respect to a tensor that y was made from."""
        arguments = [a.value for a in expr.arguments]
        if len(arguments) != 2 or any(a.name for a in expr.arguments):
            help = "grad(y, x), where y was made from x"
            raise self.error("PF0302", "`grad` takes two tensors", expr.span, help=help)
        y, x = (self.tensor(self.value(a, env), a) for a in arguments)
        for v, a in zip((y, x), arguments):
            if not v.type.is_float:
                raise self.error("PF0301", f"`grad` works on floats, this is {v.type}", a.span)
        return self.gradient(y, x, expr.span, "`grad` with respect to what the value doesn't depend on")

    def gradient(self, y: Value, x: Value, span: Span, none: str) -> Value:
        """The gradient of sum(y) with respect to x, where y was made. Raises: SpecError where there is none: `none`
        says so."""
        region = next((r for r in reversed(self.regions) if any(y in n.outputs for n in r.builder.nodes)), None)
        builder = (region or self.regions[-1]).builder
        before = len(builder.nodes)
        try:
            (found,) = gradient(builder, y, [x])
        except SpecError as e:
            d = e.diagnostics[0]
            raise self.error(d.code, d.message, span, notes=d.notes) from None
        self.counted(len(builder.nodes) - before, span)
        if found is None:
            raise self.error("PF0344", none, span, "it would be zero everywhere")
        return found

    def cycle(self, expr: ast.Call, env: Env) -> Block:
        values = [self.value(a.value, env) for a in expr.arguments]
        if len(values) != 2 or not isinstance(values[0], list) or not values[0]:
            raise self.error(
                "PF0302",
                "`cycle` takes a list of blocks and how many layers there are",
                expr.span,
                help="cycle([layer(window), layer(none)], layers)",
            )
        items = expr.arguments[0].value
        spans = [i.span for i in items.items] if isinstance(items, ast.ListExpr) else [items.span] * len(values[0])
        bodies = tuple(self.block(v, s) for v, s in zip(values[0], spans))
        return Repeated(bodies, self.count(values[1], expr.arguments[1].value), span=expr.span)
