"""Are all names known, and are blocks and graphs called as they are defined? The compiler asks, with its ops."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from .ast import Attribute, Binary, Body, Call, Expr, Name, Negate, String
from .diagnostics import Diagnostic, Diagnostics, Note, did_you_mean
from .model import BlockDef, GraphDef, Section, Spec, TensorDecl
from .prelude import prelude
from .scope import UNIVERSAL, block_names, expression_body, free_names, output_names, symbols
from .source import Span

_WORD = re.compile(r"[A-Za-z_]\w*")


def check_names(spec: Spec, known: Collection[str], found: Diagnostics, fields: Collection[str] = ()) -> None:
    """Adds PF022x for unknown names, wrong arguments, circular blocks, unknown outputs, streams and sharded dims.

    `known` are the names of ops, initializers, optimizers, schedules and data sources; `fields` those that the
    data source supplies beyond the ones its call names.
    """
    _Check(spec, known, found, fields).run()


class _Check:
    def __init__(
        self, spec: Spec, known: Collection[str], found: Diagnostics, fields: Collection[str]
    ) -> None:
        self.spec, self.found = spec, found
        self.known = frozenset(known)
        self.fields = frozenset(fields)
        self.symbols = symbols(spec)
        self.globals = frozenset(
            {
                *UNIVERSAL,
                *spec.dims,
                *self.symbols,
                *spec.params,
                *spec.blocks,
                *spec.graphs,
                *spec.uses,
                *known,
            }
        )

    def run(self) -> None:
        for param in self.spec.params.values():
            for expr in (*param.shape, *([param.init] if param.init else [])):
                self.body(expression_body(expr))
        for block in self.spec.blocks.values():
            if block.prelude:
                continue  # it is ours, and its names mean other things than here
            bound = frozenset(p.name for p in block.parameters)
            for parameter in block.parameters:
                if parameter.default is not None:
                    self.body(expression_body(parameter.default))
            self.body(block.body, bound)
        self.cycles()
        for graph in self.spec.graphs.values():
            self.graph(graph)
        self.sharding()
        if self.spec.train is not None:
            self.train(self.spec.train)

    # -- graphs ---------------------------------------------------------------------------------------------

    def graph(self, graph: GraphDef) -> None:
        dims = frozenset({*self.spec.dims, *self.symbols})
        for decl in graph.inputs.values():
            self.declaration(decl, dims)
        self.body(graph.body, frozenset(graph.inputs))
        names = [s.name for s in graph.body.statements if s.name]
        for name in graph.outputs:
            if name not in names:
                self.found.add(
                    Diagnostic(
                        "PF0226",
                        f"graph `{graph.name}` has no `{name}` to put out",
                        self.spec.spans.get(f"graphs.{graph.name}.outputs", graph.outputs_span or graph.span),
                        help=did_you_mean(name, names) or "outputs are names that the body defines",
                    )
                )
        axes = [d.name for decl in graph.inputs.values() for d in decl.dims if isinstance(d, Name)]
        if graph.stream is not None and graph.stream not in axes:
            self.found.add(
                Diagnostic(
                    "PF0226",
                    f"no input of `{graph.name}` has a dim `{graph.stream}`",
                    self.spec.spans.get(f"graphs.{graph.name}.stream", graph.span),
                    help=did_you_mean(graph.stream, axes) or "`stream` names the sequence axis of an input",
                )
            )

    def declaration(self, decl: TensorDecl, dims: Collection[str]) -> None:
        for dim in decl.dims:
            for node in dim.walk():
                if isinstance(node, Name) and node.name not in dims:
                    self.unknown(node, dims, "dim")

    def sharding(self) -> None:
        # An op may introduce dims of its own by a pattern string; those can be sharded too.
        patterns = {
            word
            for body in self.bodies()
            for statement in body.statements
            for node in statement.value.walk()
            if isinstance(node, String)
            for word in _WORD.findall(node.value)
        }
        dims = {*self.spec.dims, *self.symbols}
        for rule in self.spec.sharding:
            if rule.dim not in dims and rule.dim not in patterns:
                self.found.add(
                    Diagnostic(
                        "PF0227",
                        f"there is no dim `{rule.dim}` to shard",
                        rule.span,
                        help=did_you_mean(rule.dim, dims) or "known are " + ", ".join(sorted(dims)),
                    )
                )

    def bodies(self) -> Iterator[Body]:
        for block in self.spec.blocks.values():
            yield block.body
        for graph in self.spec.graphs.values():
            yield graph.body

    # -- training -------------------------------------------------------------------------------------------

    def train(self, section: Section) -> None:
        values = section.values
        data = values.get("data")
        named = {n.name for n in data.walk() if isinstance(n, Name)} if isinstance(data, Expr) else set()
        inputs = {name for graph in self.spec.graphs.values() for name in graph.inputs}
        targets = values.get("targets") or {}
        bound = {*self.fields, *named, *inputs, *targets}
        copies = {name: graph for name, expr in targets.items() if (graph := self._copied(expr)) is not None}
        for expr in targets.values():
            if isinstance(expr, Expr):
                self.body(expression_body(expr), frozenset(bound))
        if isinstance(data, Expr):
            self.body(expression_body(data), frozenset(bound))
        for update in [values, *(values.get("updates") or {}).values()]:
            if not isinstance(update, dict):
                continue
            sample = update.get("sample") or {}
            dims = {*self.spec.dims, *self.symbols}
            for decl in sample.values():
                if isinstance(decl, TensorDecl):
                    self.declaration(decl, dims)
            here = frozenset({*bound, *sample})
            parts = [update.get("loss"), update.get("optimizer")]
            inner = update.get("inner")
            if isinstance(inner, dict):
                parts += [inner.get("start"), inner.get("rates"), inner.get("loss")]
            for part in parts:
                if isinstance(part, Expr):
                    part = expression_body(part)
                if isinstance(part, Body):
                    self.body(part, here, copies)

    def _copied(self, expr: object) -> GraphDef | None:
        """The graph that a target such as `copy(actor, every=100)` is a copy of."""
        if isinstance(expr, Call) and expr.arguments and isinstance(expr.arguments[0].value, Name):
            return self.spec.graphs.get(expr.arguments[0].value.name)
        return None

    # -- names and calls ------------------------------------------------------------------------------------

    def body(
        self,
        body: Body,
        bound: frozenset[str] = frozenset(),
        copies: dict[str, GraphDef] | None = None,
    ) -> None:
        local = bound | {s.name for s in body.statements if s.name}
        for node, later in free_names(body, bound):
            if node.name in self.globals:
                continue
            self.unknown(node, self.globals | local, "name", later)
        graphs = {**self.spec.graphs, **(copies or {})}
        for statement in body.statements:
            called = {id(node.function) for node in statement.value.walk() if isinstance(node, Call)}
            for node in statement.value.walk():
                if isinstance(node, Call) and isinstance(node.function, Name):
                    name = node.function.name
                    if name in local and name not in graphs:
                        continue
                    if name in self.spec.blocks:
                        self.block_call(node, self.spec.blocks[name])
                    elif name in graphs:
                        self.graph_call(node, graphs[name])
                elif isinstance(node, Attribute):
                    self.attribute(node, graphs, local)
            self.bare_blocks(statement.value, local, called)

    def unknown(self, node: Name, choices: Collection[str], what: str, later: bool = False) -> None:
        help = did_you_mean(node.name, sorted(set(choices) - {node.name}))
        if later:
            help = "it is defined further down; move that line above this one"
        elif node.name in ("null", "None", "NONE"):
            help = "nothing is written `none`"
        elif node.name in ("True", "False"):
            help = f"did you mean `{node.name.lower()}`?"
        self.found.add(Diagnostic("PF0220", f"unknown {what} `{node.name}`", node.span, help=help))

    def block_call(self, call: Call, block: BlockDef) -> None:
        parameters = [p.name for p in block.parameters]
        signature = f"{block.name}({', '.join(_signature(block))})" if parameters else block.name
        note = Note(f"defined as `{signature}`", block.span)
        positional = [a for a in call.arguments if a.name is None]
        given = set(parameters[: len(positional)])
        if len(positional) > len(parameters):
            extra = positional[len(parameters)].value
            help = f"apply a block to a tensor with `x >> {block.name}`" if not parameters else None
            takes = f"at most {len(parameters)}" if parameters else "no"
            self.found.add(
                Diagnostic(
                    "PF0224",
                    f"`{block.name}` takes {takes} argument{'s' if len(parameters) != 1 else ''}, not {len(positional)}",
                    extra.span,
                    notes=(note,),
                    help=help,
                )
            )
        for argument in call.arguments:
            if argument.name is None or argument.name == "name":
                continue
            if argument.name not in parameters:
                self.found.add(
                    Diagnostic(
                        "PF0224",
                        f"`{block.name}` has no argument `{argument.name}`",
                        argument.name_span,
                        notes=(note,),
                        help=did_you_mean(argument.name, [*parameters, "name"]),
                    )
                )
            elif argument.name in given:
                self.found.add(
                    Diagnostic(
                        "PF0224",
                        f"argument `{argument.name}` is given twice",
                        argument.name_span,
                        "given by position already",
                        (note,),
                    )
                )
            given.add(argument.name)
        missing = [p.name for p in block.parameters if p.default is None and p.name not in given]
        if missing:
            self.missing(block, missing, call.function.span, note)

    def missing(self, block: BlockDef, missing: list[str], span: Span, note: Note) -> None:
        words = ", ".join(f"`{m}`" for m in missing)
        self.found.add(
            Diagnostic(
                "PF0224",
                f"`{block.name}` needs {words}",
                span,
                "missing here",
                (note,),
                expected=tuple(missing),
            )
        )

    def bare_blocks(self, expr: Expr, local: Collection[str], called: set[int]) -> None:
        """A block with required arguments can be passed on by its bare name, but not be run."""
        operands: list[Expr] = [expr]
        for node in expr.walk():
            if isinstance(node, Binary):
                operands += [node.left, node.right]
            elif isinstance(node, Negate):
                operands.append(node.operand)
        for node in operands:
            if not isinstance(node, Name) or node.name in local or id(node) in called:
                continue
            block = self.spec.blocks.get(node.name)
            if block is None:
                continue
            missing = [p.name for p in block.parameters if p.default is None]
            if missing:
                note = Note(f"defined as `{block.name}({', '.join(_signature(block))})`", block.span)
                self.missing(block, missing, node.span, note)

    def graph_call(self, call: Call, graph: GraphDef) -> None:
        inputs = list(graph.inputs)
        note = Note(f"`{graph.name}` takes {', '.join(inputs)}", graph.span)
        positional = [a for a in call.arguments if a.name is None]
        given = set(inputs[: len(positional)])
        if len(positional) > len(inputs):
            span = positional[len(inputs)].value.span
            self.found.add(
                Diagnostic(
                    "PF0224", f"`{graph.name}` has {len(inputs)} inputs, not {len(positional)}", span,
                    notes=(note,),
                )
            )  # fmt: skip
        for argument in call.arguments:
            if argument.name is None or argument.name == "name":
                continue
            if argument.name not in inputs:
                self.found.add(
                    Diagnostic(
                        "PF0224",
                        f"`{graph.name}` has no input `{argument.name}`",
                        argument.name_span,
                        notes=(note,),
                        help=did_you_mean(argument.name, inputs),
                    )
                )
            given.add(argument.name)
        missing = [name for name in inputs if name not in given]
        if missing:
            self.found.add(
                Diagnostic(
                    "PF0224",
                    f"`{graph.name}` needs {', '.join(f'`{m}`' for m in missing)}",
                    call.function.span,
                    "missing here",
                    (note,),
                )
            )

    def attribute(self, node: Attribute, graphs: dict[str, GraphDef], local: Collection[str]) -> None:
        value = node.value
        if not (isinstance(value, Call) and isinstance(value.function, Name)):
            return
        graph = graphs.get(value.function.name)
        if graph is None:
            return
        names = output_names(graph)
        if node.name not in names:
            help = did_you_mean(node.name, names) or ("it puts out " + ", ".join(names) if names else None)
            defined = {s.name for s in graph.body.statements}
            if node.name in defined:
                help = f"list it: `outputs: [{', '.join((*names, node.name))}]`"
            self.found.add(
                Diagnostic(
                    "PF0225",
                    f"graph `{graph.name}` has no output `{node.name}`",
                    node.name_span,
                    notes=(Note("defined", graph.span),),
                    help=help,
                    expected=names,
                )
            )

    # -- cycles ---------------------------------------------------------------------------------------------

    def cycles(self) -> None:
        """Blocks and graphs that contain themselves. Depth first without recursion: chains may be long."""
        edges: dict[str, list[Name]] = {}
        ours = prelude()
        for block in self.spec.blocks.values():
            scope = ours if block.prelude else self.spec.blocks
            edges[block.name] = [n for n in block_names(block) if n.name in scope]
        for graph in self.spec.graphs.values():
            names = (n for n, _ in free_names(graph.body, graph.inputs))
            edges[graph.name] = [n for n in names if n.name in self.spec.blocks or n.name in self.spec.graphs]
        done: set[str] = set()
        for root in edges:
            path: list[str] = [root]
            stack = [iter(edges[root])]
            while stack and root not in done:
                name = next(stack[-1], None)
                if name is None:
                    done.add(path.pop())
                    stack.pop()
                elif name.name in path:
                    self.cycle(path[path.index(name.name) :], name)
                elif name.name not in done:
                    path.append(name.name)
                    stack.append(iter(edges[name.name]))

    def cycle(self, circle: list[str], last: Name) -> None:
        if len(circle) == 1:
            text = f"`{circle[0]}` contains itself"
            hides = circle[0] in self.known
            help = (
                "the block hides the op of the same name; give the block another name"
                if hides
                else "a block is repeated with `^`: `layer ^ 12`"
            )
        else:
            text = f"`{circle[0]}` contains itself: " + " -> ".join((*circle, circle[0]))
            help = "blocks are built from other blocks, down to ops; break the circle"
        notes = []
        for name in circle:
            place = self.spec.blocks[name].span if name in self.spec.blocks else self.spec.graphs[name].span
            notes.append(Note(f"`{name}` is defined", place))
        self.found.add(Diagnostic("PF0223", text, last.span, "the circle closes here", tuple(notes), help))


def _signature(block: BlockDef) -> list[str]:
    return [p.name if p.default is None else f"{p.name}=..." for p in block.parameters]
