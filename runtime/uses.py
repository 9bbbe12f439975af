"""The weights of the specs that a program uses: found in other runs' folders, checked, recorded.

`run.json` keeps, for each used spec, the folder its weights came from, the step, and a fingerprint of them: a run that
goes on must go on with the same ones.
"""

from __future__ import annotations

import hashlib
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph, Weight
from planform.compiler.text import to_text
from planform.spec import Diagnostics, Spec, Used, did_you_mean, dim_values

from .checkpoint import steps
from .companions import FOLDER as TOKENIZER
from .data import Tokenizer, load_tokenizer
from .errors import UserError
from .run import parameters_of_run, read_run, spec_of_run

KEY = "uses"
"""Where `run.json` has them."""


@dataclass(frozen=True)
class Weights:
    """The weights of one used spec: those of a run at a step (0: as they were imported)."""

    name: str
    text: str  # as `uses` names the spec
    folder: Path
    step: int

    @cached_property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """By logical name, as its own run has them."""
        return parameters_of_run(self.folder, self.step or None)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal weights, wherever they lie."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self.parameters):
            array = np.ascontiguousarray(self.parameters[name])
            digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def told(self) -> dict[str, Any]:
        """For `run.json`."""
        return {"spec": self.text, "folder": str(self.folder), "step": self.step, "fingerprint": self.fingerprint}


def parse_with(texts: Sequence[str]) -> dict[str, Path]:
    """Folders by name from `teacher=runs/teacher`. Raises: UserError."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UserError(f"`--with {text}` names no folder", help="write it as --with teacher=RUN")
        if name in found:
            raise UserError(f"two folders are given for `{name}`", help="give each --with once")
        found[name] = Path(folder)
    return found


def needed(graphs: Iterable[Graph]) -> dict[str, Weight]:
    """The frozen weights of some graphs, by path."""
    return {w.path: w for g in graphs for w in g.weights if w.frozen}


def find(
    spec: Spec,
    graphs: Sequence[Graph],
    given: Mapping[str, str | Path],
    told: Mapping[str, Any] | None = None,
    words: Tokenizer | None = None,
) -> dict[str, Weights]:
    """The weights of every used spec that the graphs of a program call, checked.

    given  folders by name, from the command line
    told   what `run.json` says, if the run goes on: the same weights must be found
    words  the tokenizer of this run's text, which theirs must equal

    Raises: UserError where a folder isn't given, isn't there, or holds another model; SpecError.
    """
    for name in given:
        if name not in spec.uses:
            help = did_you_mean(name, spec.uses) or (f"it uses {', '.join(spec.uses)}" if spec.uses else None)
            raise UserError(f"{spec.name} uses no spec `{name}`", help=help)
    called = {path.partition(".")[0] for path in needed(graphs)}
    found = {}
    for name, used in spec.uses.items():
        if name in called:
            weights = _one(used, given.get(name), (told or {}).get(name))
            _check_model(used, weights)
            if words:
                _check_tokenizer(weights, words)
            found[name] = weights
    return found


def get(weights: Mapping[str, Weights]) -> Callable[[str], np.ndarray]:
    """What gives a frozen parameter by its logical path: `teacher.table`."""

    def one(path: str) -> np.ndarray:
        name, _, own = path.partition(".")
        return weights[name].parameters[own]

    return one


def not_given(path: str) -> np.ndarray:
    """For programs that use no other spec. Raises: UserError."""
    name = path.partition(".")[0]
    raise UserError(f"the weights of `{name}` are not given", help=f"--with {name}=RUN, the folder of its run")


def of_run(
    folder: str | Path, spec: Spec, graphs: Sequence[Graph], given: Mapping[str, str | Path]
) -> dict[str, Weights]:
    """The weights that a run trained with, for graphs that need them; `given` says where they are now, if they were
    moved. Raises: UserError, SpecError."""
    return find(spec, graphs, given, read_run(folder).get(KEY, {})) if needed(graphs) or given else {}


def all_parameters(
    folder: str | Path, spec: Spec, graphs: Sequence[Graph], given: Mapping[str, str | Path]
) -> Mapping[str, np.ndarray]:
    """The parameters of a run by logical name, those of used specs too where the graphs need them (see `of_run`).

    Raises: UserError, SpecError.
    """
    own = parameters_of_run(folder)
    used = of_run(folder, spec, graphs, given).values()
    others = [{f"{w.name}.{n}": a for n, a in w.parameters.items()} for w in used]
    return ChainMap(dict(own), *others) if others else own


# -- one of them -------------------------------------------------------------------------------------------


def _one(used: Used, given: str | Path | None, told: Mapping[str, Any] | None) -> Weights:
    again = f"--with {used.name}=RUN, the folder of its run"
    if given is None and told is None:
        raise UserError(f"`{used.name}: {used.text}` comes without weights", help=again)
    folder = Path(given if given is not None else told["folder"]).absolute()  # type: ignore[index]
    if not folder.is_dir():
        moved = given is None
        what = f"the weights of `{used.name}` were in {folder}, which is gone" if moved else f"there is no {folder}"
        raise UserError(what, help=f"say where it is now: {again}" if moved else again)
    read_run(folder)
    there = steps(folder)
    step = there[-1] if there else 0
    if told is None:
        return Weights(used.name, used.text, folder, step)
    if told["step"] in there:
        step = told["step"]
    found = Weights(used.name, used.text, folder, step)
    if found.fingerprint != told["fingerprint"]:
        raise UserError(
            f"{folder} holds other weights for `{used.name}` than those this run began with",
            help="give the folder with the same ones, or begin a new run in another folder",
        )
    return found


def _check_model(used: Used, weights: Weights) -> None:
    """Raises: UserError where the run's graphs aren't those of the named spec."""
    theirs = spec_of_run(weights.folder)
    for name in used.spec.graphs:
        if name not in theirs.graphs or _plain(elaborate(used.spec, name)) != _plain(elaborate(theirs, name)):
            raise UserError(
                f"{weights.folder} holds another model than `{used.name}: {used.text}`" + _differing(theirs, used.spec),
                help=f"let `uses` name the spec that was trained there, sizes included: {theirs.source.name}",
            )


def _plain(graph: Graph) -> str:
    """A graph as text without the places in its file."""
    return re.sub(r" @ .*$", "", to_text(graph), flags=re.MULTILINE)


def _differing(theirs: Spec, ours: Spec) -> str:
    a, b = (dim_values(s.dims, Diagnostics()) for s in (theirs, ours))
    found = [f"{n} is {a[n]} there and {b[n]} here" for n in b if n in a and a[n] != b[n] and isinstance(b[n], int)]
    return f": {', '.join(found)}" if found else ""


def _check_tokenizer(weights: Weights, words: Tokenizer) -> None:
    """Raises: UserError where the run's tokens mean other texts than ours."""
    folder = weights.folder / TOKENIZER
    if not folder.is_dir():
        return
    theirs = load_tokenizer(folder)
    if theirs.fingerprint != words.fingerprint:
        raise UserError(
            f"`{weights.name}` reads the tokens of {theirs.name} and this run those of {words.name}: what it says of "
            "the next token means nothing here",
            help=f"--tokenizer {folder}",
        )
