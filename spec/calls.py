"""Are blocks and graphs called as they are defined?"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .ast import Attribute, Binary, Call, Expr, Name, Negate
from .diagnostics import Diagnostic, Diagnostics, Note, did_you_mean
from .model import BlockDef, GraphDef, Used
from .scope import output_names
from .source import Span
from .unparse import unparse


def check_calls(
    expr: Expr,
    blocks: Mapping[str, BlockDef],
    graphs: Mapping[str, GraphDef],
    local: Collection[str],
    found: Diagnostics,
    used: Mapping[str, Used] | None = None,
) -> None:
    """Adds PF0224 for arguments that don't fit, PF0225 for outputs and graphs of `used` specs that don't exist.

    `local` names mean something else here than a block or graph would.
    """
    others = {name: u for name, u in (used or {}).items() if name not in local}

    def graph_of(function: Expr) -> GraphDef | None:
        """The graph that `lm`, `teacher.lm` or `teacher` means."""
        if isinstance(function, Name) and function.name in others:
            return others[function.name].graph()
        if isinstance(function, Attribute) and isinstance(function.value, Name) and function.value.name in others:
            return others[function.value.name].graph(function.name)
        return graphs.get(function.name) if isinstance(function, Name) and function.name not in local else None

    for node in expr.walk():
        if isinstance(node, Call):
            name = node.function.name if isinstance(node.function, Name) else ""
            graph = graph_of(node.function)
            if name in blocks and name not in local:
                _block_call(node, blocks[name], found)
            elif graph is not None:
                _graph_call(node, graph, found)
            elif name in others:
                found.add(which_graph(others[name], node.function.span))
        elif isinstance(node, Attribute) and isinstance(node.value, Call):
            graph = graph_of(node.value.function)
            if graph is not None:
                _output(node, graph, found)
        elif isinstance(node, Attribute) and isinstance(node.value, Name) and node.value.name in others:
            found.extend([] if graph_of(node) else [no_such_graph(others[node.value.name], node)])
    for node in _operands(expr):
        # A block with required arguments can be passed on by its bare name, but not be run.
        if isinstance(node, Name) and node.name in blocks and node.name not in local:
            block = blocks[node.name]
            missing = [p.name for p in block.parameters if p.default is None]
            _missing(block.name, missing, node.span, _defined(block), found)


def only_in_training(used: Used, span: Span) -> Diagnostic:
    return Diagnostic(
        "PF0230",
        f"`{used.name}` is another spec, which only `train` can call",
        span,
        notes=(Note("named", used.span),),
        help="what every artefact of this model needs must be part of its own graphs",
    )


def which_graph(used: Used, span: Span) -> Diagnostic:
    names = [f"{used.name}.{graph}" for graph in used.spec.graphs]
    return Diagnostic("PF0229", f"`{used.name}` has several graphs", span, help="one of " + ", ".join(names))


def no_such_graph(used: Used, node: Attribute) -> Diagnostic:
    graphs = used.spec.graphs
    help = did_you_mean(node.name, graphs) or "it has " + ", ".join(graphs)
    note = Note(f"`{used.name}` is {used.text}", used.span)
    return Diagnostic("PF0225", f"`{used.name}` has no graph `{node.name}`", node.name_span, notes=(note,), help=help)


def _operands(expr: Expr) -> list[Expr]:
    out = [expr]
    for node in expr.walk():
        if isinstance(node, Binary):
            out += [node.left, node.right]
        elif isinstance(node, Negate):
            out.append(node.operand)
    return out


def _defined(block: BlockDef) -> Note:
    words = [p.name if p.default is None else f"{p.name}={unparse(p.default)}" for p in block.parameters]
    signature = f"{block.name}({', '.join(words)})" if words else block.name
    return Note(f"defined as `{signature}`", block.span)


def _missing(name: str, missing: list[str], span: Span, note: Note, found: Diagnostics) -> None:
    if missing:
        words = ", ".join(f"`{m}`" for m in missing)
        text = f"`{name}` needs {words}"
        found.add(Diagnostic("PF0224", text, span, "missing here", (note,), expected=tuple(missing)))


def _block_call(call: Call, block: BlockDef, found: Diagnostics) -> None:
    help = f"a block is applied to a tensor with `x >> {block.name}`"
    needs = {p.name: p.default is None for p in block.parameters}
    _bind(call, block.name, needs, "argument", _defined(block), help, found)


def _graph_call(call: Call, graph: GraphDef, found: Diagnostics) -> None:
    note = Note(f"`{graph.name}` takes {', '.join(graph.inputs)}", graph.span)
    _bind(call, graph.name, dict.fromkeys(graph.inputs, True), "input", note, None, found)


def _bind(
    call: Call, name: str, needs: dict[str, bool], what: str, note: Note, help: str | None, found: Diagnostics
) -> None:
    """Reports arguments that can't be bound, else those that are missing; `name=` fits every call.

    `needs` are the parameters in order, and whether a call must give them.
    """
    takes = list(needs)
    positional = [a for a in call.arguments if a.name is None]
    given = set(takes[: len(positional)])
    faults = []
    if len(positional) > len(takes):
        most = "" if all(needs.values()) else "at most "
        limit = f"{most}{len(takes) or 'no'} {what}{'' if len(takes) == 1 else 's'}"
        span = positional[len(takes)].value.span
        text = f"`{name}` takes {limit}, not {len(positional)}"
        faults.append(Diagnostic("PF0224", text, span, notes=(note,), help=None if takes else help))
    for argument in call.arguments:
        if argument.name is None or argument.name == "name":
            continue
        if argument.name not in takes:
            text = f"`{name}` has no {what} `{argument.name}`"
            near = did_you_mean(argument.name, [*takes, "name"])
            faults.append(Diagnostic("PF0224", text, argument.name_span, notes=(note,), help=near))
        elif argument.name in given:
            text = f"{what} `{argument.name}` is given twice"
            label = "given by position already"
            faults.append(Diagnostic("PF0224", text, argument.name_span, label, (note,)))
        given.add(argument.name)
    found.extend(faults)
    if not faults:
        missing = [parameter for parameter, needed in needs.items() if needed and parameter not in given]
        _missing(name, missing, call.function.span, note, found)


def _output(node: Attribute, graph: GraphDef, found: Diagnostics) -> None:
    names = output_names(graph)
    if node.name in names:
        return
    defined = [s.name for s in graph.body.statements]
    if any(name not in defined for name in graph.outputs):
        return  # the list of outputs is at fault, and reported
    if node.name in defined:
        help: str | None = f"list it in the graph: `outputs: [{', '.join((*names, node.name))}]`"
    else:
        help = did_you_mean(node.name, names) or ("it puts out " + ", ".join(names) if names else None)
    note = Note("the graph is defined", graph.span)
    text = f"graph `{graph.name}` has no output `{node.name}`"
    found.add(Diagnostic("PF0225", text, node.name_span, notes=(note,), help=help, expected=names))
