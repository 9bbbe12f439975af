"""`planform verify`: do all executions of a graph mean the same?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, GraphName, Set, Size, With, label

if TYPE_CHECKING:
    from planform.spec import Diagnostic, Spec

    from ..verify import Agreement, Divergence

EPILOG = "Example: planform verify runs/small --onnx runs/small/onnx"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(verify)


def verify(
    target: Annotated[str, typer.Argument(metavar="RUN|SPEC", help="A training run, or a spec: random weights.")],
    size: Size = None,
    overrides: Set = None,
    graph: GraphName = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="FOLDER", help="Check this exported folder as well.")
    ] = None,
    backends: Annotated[list[str] | None, typer.Option("--backend", help="Only these. [default: xla and onnx]")] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Of max |a - b| / max |b|.")] = 2e-5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of inputs and random weights.")] = 0,
    break_it: Annotated[
        bool, typer.Option("--mutate", help="Break the graph, one fact at a time: is each mistake noticed?")
    ] = False,
    uses: With = None,
    as_json: AsJson = False,
) -> None:
    """Run a graph by the float64 reference, XLA and ONNX, in every form; name the first value that differs.

    Inputs are longer than two windows and hold several documents; prompts are padded; then token by token across the
    windows. Exit code 1 if anything differs by more than the tolerance.
    """
    from ..artefact import is_artefact
    from .console import out, print_json

    if is_artefact(target):
        found = artefact(Path(target))
        failed = bool(found["problems"])
        if as_json:
            print_json(found)
        else:
            _print_artefact(found)
        raise typer.Exit(int(failed))

    from planform.compiler.graphs import graph_named

    from ..run import spec_of_run
    from ..uses import all_parameters, parse_with
    from ..verify import verify as run
    from .options import load_spec

    trained = Path(target).is_dir()
    spec = spec_of_run(target, tuple(overrides or ())) if trained else load_spec(target, size, overrides)
    found_graph = graph_named(spec, graph)
    small_enough(found_graph)
    if break_it:
        raise typer.Exit(int(not _mutations(found_graph, label(spec), backends, seed, tolerance, as_json)))
    weights = all_parameters(target, spec, losses(spec), parse_with(uses or ())) if trained else None
    folder = artefact(onnx) if onnx else None
    exact = folder and not folder["problems"] and not folder["metrics"]  # a quantised one isn't meant to be equal
    usable = onnx if trained and folder and exact and folder["form"] == "step" else None
    if not as_json:
        out().print(f"[bold]{label(spec)}[/]: one graph, {'the weights of ' + target if trained else 'random weights'}")
    table = None if as_json else _Table(tolerance)
    report = run(
        found_graph,
        weights,
        backends=backends or ("xla", "onnx"),
        losses=losses(spec),
        artefact=usable,
        seed=seed,
        tolerance=tolerance,
        report=table.add if table else lambda _: None,
    )
    failed = not report.holds or bool(folder and folder["problems"])
    if as_json:
        print_json({
            "spec": label(spec), "ok": not failed, "tolerance": tolerance, "time": report.time, "batch": report.batch,
            "window": report.window, "notes": report.notes,
            "agreements": [vars(a) for a in report.agreements],
            "divergences": [{**vars(d), "error": _finite(d.error), "output_error": _finite(d.output_error)}
                            for d in report.divergences],
            "artefact": folder,
        })  # fmt: skip
        raise typer.Exit(int(failed))
    _conclude(report, spec, folder, onnx, usable is not None)
    raise typer.Exit(int(failed))


def _mutations(graph: Any, title: str, backends: list[str] | None, seed: int, tolerance: float, as_json: bool) -> bool:
    """Whether every wrong version of the graph is told from the right one."""
    from ..errors import UserError
    from ..mutate import Trial, mutate
    from .console import out, print_json

    def show(trial: Trial) -> None:
        mark = "[bold green]✓[/]" if trial.caught else "[bold red]✗[/]"
        how = "refused" if trial.refused else f"{trial.error:.0e}"
        out().print(f"  {mark} {trial.backend:<5} {how:<8} {trial.mistake:<36} [dim]{trial.path}[/]", soft_wrap=True)

    if not as_json:
        out().print(f"[bold]{title}[/]: wrong versions of one graph, random weights")
    try:
        trials = mutate(graph, backends=backends or ("xla", "onnx"), seed=seed, tolerance=tolerance,
                        report=show if not as_json else lambda _: None)  # fmt: skip
    except ValueError as error:
        raise UserError(str(error), help="planform verify shows where") from error
    caught = sum(t.caught for t in trials)
    good = caught == len(trials) > 0
    if as_json:
        print_json({"spec": title, "ok": good, "caught": caught, "of": len(trials),
                    "trials": [{**vars(t), "error": _finite(t.error)} for t in trials]})  # fmt: skip
    else:
        mark = "[bold green]✓ all" if good else f"[bold red]✗ {caught} of"
        out().print(f"{mark} {len(trials)} caught[/] [dim](more than {tolerance:g} off, or refused)[/]")
    return good


def losses(spec: Spec) -> list[Any]:
    """The losses of the training program, where the spec has one; as they are measured on held-out data, since what
    a training step draws at random is no two times the same."""
    from planform.compiler.program import program

    return [u.heldout for u in program(spec).updates] if spec.train else []


class _Table:
    """Results as lines, each as it comes."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def add(self, one: Agreement | Divergence) -> None:
        from .console import out

        refused = getattr(one, "refused", None)
        error = getattr(one, "output_error", one.error)
        text = "refused" if refused else f"{error:.1e}"
        good = not hasattr(one, "output_error")
        mark = "[bold green]✓[/]" if good else "[bold red]✗[/]"
        bound = getattr(one, "bound", self.tolerance)
        note = f" [dim]float32 tells this graph within {bound:.1e} only[/]" if bound > self.tolerance else ""
        out().print(f"  {mark} {one.form:<16} {one.backend:<10} {text}{note}", soft_wrap=True)


def _conclude(report: Any, spec: Spec, folder: dict[str, Any] | None, path: Path | None, ran: bool) -> None:
    from .console import out, print_diagnostics

    console = out()
    for note in report.notes:
        console.print(f"  [dim]{note}[/]", soft_wrap=True)
    if folder and path:
        _print_artefact(folder)
        if not ran and not folder["problems"]:
            why = "it is quantised" if folder["metrics"] else "its weights aren't those of a run given here"
            console.print(f"  [dim]only by its own fixture: {why}[/]")
    if report.divergences:
        console.print()
        print_diagnostics([diagnostic(d, spec) for d in report.divergences], console)
        return
    rows = f"{report.batch} × {report.time} entries" if report.time else f"{report.batch} rows"
    beyond = f", window {report.window}" if report.window else ""
    bound = max(a.bound for a in report.agreements)
    console.print(
        f"[bold green]✓[/] all agree with the float64 reference within {bound:.2g} [dim]({rows}{beyond})[/]",
        soft_wrap=True,
    )


def diagnostic(d: Divergence, spec: Spec) -> Diagnostic:
    """A divergence as a finding at its place in the spec."""
    from planform.spec import Diagnostic, Note

    if d.refused:
        lines = d.refused.split("\n")
        return Diagnostic("PF0701", f"{d.backend} refuses the graph it was given in the form `{d.form}`", None,
                          notes=tuple(Note(line.strip(" =")) for line in lines))  # fmt: skip
    notes = [Note(f"in {d.path.replace('.', ' > ')}")]
    if d.at:
        notes.append(Note(f"noticed at {d.at}"))
    notes.append(Note(f"the output is off by {d.output_error:.1e} of its largest value"))
    message = f"{d.backend} differs from the reference in the form `{d.form}`, first at `{d.path}`"
    return Diagnostic("PF0700", message, span_of(d.place, spec), f"`{d.op}` is off by {d.error:.1e}", tuple(notes))


def span_of(place: str | None, spec: Spec) -> Any:
    """The characters at `file:line:column` of the spec: the word or the call that begins there."""
    from planform.spec import Span

    m = re.fullmatch(r"(.*):(\d+):(\d+)", place or "")
    if not m or m[1] != spec.source.name:
        return None
    lines = spec.source.text.split("\n")
    line, column = int(m[2]), int(m[3])
    start = sum(len(text) + 1 for text in lines[: line - 1]) + column - 1
    word = re.match(r"\w+|.", lines[line - 1][column - 1 :])
    return Span(spec.source, start, start + (len(word[0]) if word else 1))


def artefact(folder: Path) -> dict[str, Any]:
    """What an exported folder's own contract and fixture say. Raises: UserError where there is no contract."""
    import json

    from planform.backends.onnx import verify_contract

    from ..artefact import CONTRACT, is_artefact
    from ..errors import UserError

    if not is_artefact(folder):
        raise UserError(f"{folder} isn't an exported model", help="planform export RUN makes one")
    try:
        verdict = verify_contract(folder)
        form = json.loads((folder / CONTRACT).read_text())["form"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the contract in {folder} can't be read: {error}", help="export it again") from error
    except Exception as error:  # the runtime refuses a damaged model with exceptions of its own
        problem = str(error).split("\n")[0]
        return {"folder": str(folder), "form": "", "problems": [problem], "errors": {}, "metrics": {}}
    return {"folder": str(folder), "form": form, "problems": verdict.problems,
            "errors": {k: _finite(v) for k, v in verdict.errors.items()}, "metrics": verdict.metrics}  # fmt: skip


def _print_artefact(found: dict[str, Any]) -> None:
    from .console import out

    console = out()
    for problem in found["problems"]:
        console.print(f"  [bold red]✗[/] {found['folder']}: {problem}", soft_wrap=True)
    if not found["problems"]:
        metrics = found["metrics"]
        errors = ", ".join(
            f"{name} {error:.1e}{' ' + metrics[name] if name in metrics else ''}"
            for name, error in found["errors"].items()
        )
        console.print(f"  [bold green]✓[/] {found['folder']}: contract and fixture hold ({errors})", soft_wrap=True)


def small_enough(graph: Any) -> None:
    """Raises: UserError for a graph that the reference can't run in reasonable time and memory."""
    from planform.compiler.parameters import count

    from ..errors import UserError
    from ..probe import probe_length

    numbers, time = count(graph), probe_length(graph)
    if numbers > 2e8 or time > 4096:
        why = f"{numbers:,} parameters" if numbers > 2e8 else f"sequences of {time:,} entries, over two windows,"
        raise UserError(
            f"{why} are too much for the float64 reference",
            help="verify a smaller size of the same spec: `@small`, or --set window=64 --set layers=4 and the like",
        )


def _finite(x: float) -> float | None:
    return float(x) if x < float("inf") else None
