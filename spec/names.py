"""Are all names known, and are blocks and graphs called as they are defined?"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from .ast import Body, Call, Expr, Name, String
from .calls import check_calls, only_in_training
from .cycles import check_cycles
from .diagnostics import Diagnostic, Diagnostics, did_you_mean
from .model import GraphDef, Section, Spec, TensorDecl, Used
from .scope import UNIVERSAL, bodies, expression_body, free_names, symbols

_WORD = re.compile(r"[A-Za-z_]\w*")


def check_names(spec: Spec, known: Collection[str], found: Diagnostics, fields: Collection[str] = ()) -> None:
    """Adds PF022x for unknown names, wrong arguments, circular blocks, unknown outputs and sharded dims.

    `known` are the names of ops, initializers, optimizers, schedules and data sources; `fields` those that
    the data source supplies beyond the ones its call names.
    """
    _Check(spec, known, found, fields).run()


class _Check:
    def __init__(self, spec: Spec, known: Collection[str], found: Diagnostics, fields: Collection[str]) -> None:
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
            for body, bound in bodies(block):
                self.body(body, bound)
        check_cycles(self.spec, self.known, self.found)
        for graph in self.spec.graphs.values():
            self.graph(graph)
        self.sharding()
        if self.spec.train is not None:
            self.train(self.spec.train)
        if self.spec.sample is not None:
            self.sample(self.spec.sample)

    # -- graphs ---------------------------------------------------------------------------------------------

    def graph(self, graph: GraphDef) -> None:
        dims = frozenset({*self.spec.dims, *self.symbols})
        for decl in graph.inputs.values():
            self.declaration(decl, dims)
        self.body(graph.body, frozenset(graph.inputs))
        names = [s.name for s in graph.body.statements if s.name]
        last = graph.body.statements[-1]
        if last.name is None:
            self.found.add(
                Diagnostic(
                    "PF0226",
                    f"the last value of graph `{graph.name}` has no name",
                    last.value.span,
                    "its callers can't select it",
                    help="name it: `y = ...`",
                )
            )
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
            for body in self.all_bodies()
            for statement in body.statements
            for node in statement.value.walk()
            if isinstance(node, String)
            for word in _WORD.findall(node.value)
        }
        dims = sorted({*self.spec.dims, *self.symbols})
        for rule in self.spec.sharding:
            if rule.dim not in dims and rule.dim not in patterns:
                self.found.add(
                    Diagnostic(
                        "PF0227",
                        f"there is no dim `{rule.dim}` to shard",
                        rule.span,
                        help=did_you_mean(rule.dim, dims) or "known are " + ", ".join(dims),
                    )
                )

    def all_bodies(self) -> Iterator[Body]:
        for block in self.spec.blocks.values():
            yield block.body
        for graph in self.spec.graphs.values():
            yield graph.body

    # -- training -------------------------------------------------------------------------------------------

    def train(self, section: Section) -> None:
        values = section.values
        data = values.get("data")
        arguments = data.arguments if isinstance(data, Call) else ()
        named = {a.value.name for a in arguments if a.name is None and isinstance(a.value, Name)}
        inputs = {name for graph in self.spec.graphs.values() for name in graph.inputs}
        targets = values.get("targets") or {}
        bound = {*self.fields, *named, *inputs, *targets}
        copies = self.copies()
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
            evaluate = update.get("evaluate") or {}
            parts = [update.get("loss"), update.get("optimizer"), evaluate.get("loss")]
            parts += (evaluate.get("metrics") or {}).values()
            inner = update.get("inner")
            if isinstance(inner, dict):
                parts += [inner.get("start"), inner.get("rates"), inner.get("loss")]
            loss, priority = update.get("loss"), update.get("priority")
            if isinstance(loss, Body) and isinstance(priority, Body):
                defined = {s.name for s in loss.statements if s.name}
                self.body(priority, here | defined, copies, self.spec.uses)
            for part in parts:
                if isinstance(part, Expr):
                    part = expression_body(part)
                if isinstance(part, Body):
                    self.body(part, here, copies, self.spec.uses)

    def sample(self, section: Section) -> None:
        draws = section.values.get("draws") or {}
        for decl in draws.values():
            if isinstance(decl, TensorDecl):
                self.declaration(decl, {*self.spec.dims, *self.symbols})
        inputs = {name for graph in self.spec.graphs.values() for name in graph.inputs}
        copies = self.copies()
        for key, levels in (("value", ()), ("step", ("now", "after"))):
            if isinstance(section.values.get(key), Body):
                self.body(section.values[key], frozenset({*inputs, *draws, *copies, *levels}), copies)

    def copies(self) -> dict[str, GraphDef]:
        """The graphs that slow copies are of, by the copies' names."""
        return {name: self.spec.graphs[of] for name, of in self.spec.copies.items()}

    # -- names and calls ------------------------------------------------------------------------------------

    def body(
        self,
        body: Body,
        bound: frozenset[str] = frozenset(),
        copies: dict[str, GraphDef] | None = None,
        used: Mapping[str, Used] | None = None,
    ) -> None:
        local = bound | {s.name for s in body.statements if s.name}
        choices = self.globals | (used or {}).keys()
        for name, later in free_names(body, bound):
            if name.name in choices:
                continue
            if name.name in self.spec.uses:
                self.found.add(only_in_training(self.spec.uses[name.name], name.span))
            else:
                self.unknown(name, choices | local, "name", later)
        copied = copies or {}
        graphs = {**self.spec.graphs, **copied}
        hidden = local - copied.keys()
        for statement in body.statements:
            check_calls(statement.value, self.spec.blocks, graphs, hidden, self.found, used or {})

    def unknown(self, node: Name, choices: Collection[str], what: str, later: bool = False) -> None:
        if self.found.full:
            return
        help = did_you_mean(node.name, sorted(set(choices) - {node.name}))
        if later:
            help = "it is defined further down; move that line above this one"
        elif node.name in ("null", "None", "NONE"):
            help = "nothing is written `none`"
        elif node.name in ("True", "False"):
            help = f"did you mean `{node.name.lower()}`?"
        self.found.add(Diagnostic("PF0220", f"unknown {what} `{node.name}`", node.span, help=help))
