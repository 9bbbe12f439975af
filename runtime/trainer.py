"""The trainer: runs any training program on any mesh, saves, resumes, and stops when asked to."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from planform.compiler.elaborate import PRIORITY
from planform.compiler.program import Program

from .checkpoint import Checkpoints
from .data import Batch, DataSource
from .data.source import Following
from .errors import UserError
from .mesh import mesh_text
from .state import State, restore
from .updates import Layout, Updates, means
from .uses import not_given

Values = dict[str, float]


class Observer(Protocol):
    """Who is told how a run goes; process 0 has one."""

    def step(self, step: int, tokens: int, values: Values) -> None:
        """After a step of so many tokens (examples, where nothing is a sequence), a step late: loss, gradient_norm,
        learning_rate, tokens_per_second."""

    def evaluation(self, step: int, values: Values) -> None:
        """After a measurement on held-out data: heldout_loss, metrics, and bits_per_byte where the data is text."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    step               steps done
    values             the last ones that the observer was told, those of the last evaluation among them
    tokens_per_second  of this process's run, compiling, saving and evaluating left out
    signal             that stopped it early, or None
    unit               what the speed counts: tokens, or examples where nothing is a sequence
    """

    step: int
    values: Values
    tokens_per_second: float
    signal: int | None = None
    unit: str = "tokens"

    @property
    def exit_code(self) -> int:
        """0 when all steps were done; 128 + signal when one stopped the run early, as shells count: its state is
        saved, and the same command goes on with it."""
        return 128 + self.signal if self.signal else 0


class Trainer:
    """One run of a program.

    data      batches; each process reads its own share (`mesh.share_of`)
    frozen    gives each parameter of the specs that the program uses, by its path (`uses.get`)
    folder    where checkpoints go; None keeps none
    observer  None to tell nobody

    The state is made at once: the last checkpoint's where the folder has one, else the first.
    Raises: UserError when that checkpoint doesn't fit the program or the data.
    """

    def __init__(
        self,
        program: Program,
        data: DataSource,
        layout: Layout,
        folder: str | Path | None = None,
        observer: Observer | None = None,
        frozen: Callable[[str], np.ndarray] = not_given,
    ) -> None:
        self.program, self.data, self.layout, self.observer = program, data, layout, observer
        self.folder = Path(folder) if folder is not None else None
        self.updates = Updates(program, layout)
        self.frozen = self.updates.place_frozen(frozen)
        reading = [u.repeat for u in self.updates.each if u.inputs]
        self._batches = 1 if program.simultaneous else sum(reading)  # in a step
        self._facts = data.describe()
        self._checkpoints = Checkpoints(self.folder, program.keep) if self.folder else None
        self._saved: int | None = None
        self._values: Values = {}
        self._size = 0
        try:
            self.state = self._first_state()
        except BaseException:
            self.close()
            raise

    def _first_state(self) -> State:
        parameters = self.updates.initialise(self.program.seed)
        optimizers = {u.name: u.initial({n: parameters[n] for n in u.trained}) for u in self.updates.each}
        state = State(parameters, optimizers)
        latest = self._checkpoints.latest() if self._checkpoints else None
        if latest is None:
            return state
        assert self._checkpoints and self.folder
        self._saved = latest
        return restore(self._checkpoints, self.folder, latest, state, self._check)

    def _check(self, meta: Mapping[str, Any]) -> None:
        """Raises: UserError when the run that saved was another one."""
        theirs, mine = meta["data"], self._facts["fingerprint"]
        if theirs != mine:
            raise UserError(
                f"{self.folder} holds a run on other data, or with another batch, length or seed",
                help="give the same ones to go on with it, or another folder to begin anew",
            )
        if meta["seed"] != self.program.seed:
            raise UserError(
                f"{self.folder} holds a run with seed {meta['seed']}", help="give the same seed, or another folder"
            )

    def close(self) -> None:
        """Finishes what is being saved and lets the folder go."""
        if self._checkpoints:
            self._checkpoints.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self, steps: int | None = None) -> Result:
        """Trains until the program's number of steps is done (or `steps` in all), or until SIGTERM or SIGINT.

        Stopped by one of these it finishes the step and saves. Raises: UserError when the loss stops being a number,
        or a checkpoint can't be written.
        """
        try:
            return self._run(self.program.steps if steps is None else min(steps, self.program.steps))
        except jax.errors.JaxRuntimeError as error:
            if explained := _explained(error):
                raise explained from error
            raise

    def _run(self, last: int) -> Result:
        clock = _Clock()
        with ExitStack() as stack:
            stop = stack.enter_context(_stopping())
            batches = self.data.batches(self.state.step * self._batches)
            stack.callback(getattr(batches, "close", lambda: None))
            waiting: tuple[int, dict[str, Any]] | None = None
            self._tell()
            while self.state.step < last and not stop.asked(self.state.step):
                made = self._step(batches)
                self._tell()
                step = self.state.step
                if waiting:
                    self._report(*waiting, clock)
                waiting = (step, made)
                evaluate = step % self.program.evaluate_every == 0 or step == last
                save = step % self.program.checkpoint_every == 0 or step == last
                if evaluate or save:
                    # A state that a broken step made is never saved.
                    self._report(*waiting, clock)
                    waiting = None
                    if evaluate:
                        self.evaluate()
                    if save:
                        self.save()
                    clock.restart()
            if waiting:
                self._report(*waiting, clock)
            self.save(wait=True)
        if not self._values:  # there was nothing left to do
            self.measure()
        return Result(self.state.step, dict(self._values), clock.rate, stop.signal, self.program.unit)

    def _step(self, batches: Iterator[Batch]) -> dict[str, Any]:
        """One step of the program; returns metrics that are still being computed."""
        advance = self._at_once if self.program.simultaneous else self._in_turn
        parameters, optimizers, made = advance(batches)
        step = self.state.step + 1
        self.state = State(self.updates.follow(parameters, step), optimizers, step)
        return made

    def _in_turn(self, batches: Iterator[Batch]) -> tuple[dict[str, jax.Array], dict[str, Any], dict[str, Any]]:
        """Every update, as often as it says, in order."""
        parameters, optimizers, made = self.state.parameters, dict(self.state.optimizers), {}
        self._size = 0
        for update in self.updates.each:
            for again in range(update.repeat):
                batch = self._place(update.inputs, next(batches) if update.inputs else {})
                self._size += update.size(batch)
                number = self.state.step * update.repeat + again + 1
                parameters, optimizers[update.name], made[update.name] = update.step(
                    parameters, optimizers[update.name], batch, number, self.frozen
                )
        return parameters, optimizers, made

    def _at_once(self, batches: Iterator[Batch]) -> Any:
        """All updates from the same parameters."""
        batch = self._place({n: s for u in self.updates.each for n, s in u.inputs.items()}, next(batches))
        self._size = max(u.size(batch) for u in self.updates.each)
        return self.updates.together(
            self.state.parameters, self.state.optimizers, batch, self.state.step + 1, self.frozen
        )

    def _tell(self) -> None:
        """Lets data that depend on what is learned follow the run."""
        if follow := getattr(self.data, "follow", None):
            follow(self.state.step, self.state.logical)

    def _place(self, inputs: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """This process's part of a batch as global arrays, those of the given names and places."""
        found = {}
        for name, sharding in inputs.items():
            if name in batch:
                local = batch[name]
                shape = (self.program.batch, *local.shape[1:])
                found[name] = jax.make_array_from_process_local_data(sharding, local, shape)
        return found

    def _report(self, step: int, made: dict[str, Any], clock: _Clock) -> None:
        """Waits for a step's metrics and hands them on. Raises: UserError for a loss that is no number."""
        values: Values = {}
        for name, metrics in jax.device_get(made).items():
            prefix = f"{name}/" if len(self.updates.each) > 1 else ""
            if PRIORITY in metrics:
                cast(Following, self.data).learned(metrics.pop(PRIORITY))
            values.update({prefix + k: float(v) for k, v in metrics.items() if k != "weight"})
        clock.tick(self._size)
        broken = [k for k, v in values.items() if not math.isfinite(v)]
        if broken:
            kept = self._checkpoints.latest() if self._checkpoints else None
            raise UserError(
                f"the {broken[0].replace('_', ' ')} of step {step} is {values[broken[0]]}, so the run stopped",
                help="a lower learning rate, a longer warmup or clip=1.0 may help"
                + (f"; the checkpoint of step {kept} is whole" if kept is not None else ""),
            )
        if clock.last:
            values["tokens_per_second"] = clock.last
        self._values.update(values)
        if self.observer:
            self.observer.step(step, self._size, values)

    # -- now and then --------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Measures, and tells the observer."""
        values = self.measure()
        if self.observer:
            self.observer.evaluation(self.state.step, values)

    def measure(self) -> Values:
        """The losses and metrics on held-out data, each a mean over all entries that have a target."""
        totals: dict[str, list[Any]] = {u.name: [] for u in self.updates.each}
        for number, batch in enumerate(self.data.heldout(self.program.evaluate_batches)):
            for update in self.updates.each:
                placed = self._place(update.inputs, batch)
                totals[update.name].append(update.measure(self.state.parameters, placed, self.frozen, number))
        values: Values = {}
        for name, made in jax.device_get(totals).items():
            prefix = f"{name}/" if len(totals) > 1 else ""
            values.update({prefix + n: v for n, v in means(made).items()})
        if measure := getattr(self.data, "measure", None):
            values.update(measure(self.program.evaluate_batches))
        bits = getattr(self.data, "bits_per_byte", None)
        if bits and len(totals) == 1 and self.updates.each[0].per_target:
            values["bits_per_byte"] = bits(values["heldout_loss"])
        self._values.update(values)
        return values

    def save(self, wait: bool = False) -> None:
        """Saves the state, if there is a folder and it isn't there yet; with `wait` returns when it is on disk."""
        if not self._checkpoints:
            return
        if self._saved != self.state.step and self.state.step:
            arrays = self.state.named()
            meta = {
                "arrays": sorted(arrays),
                "data": self._facts["fingerprint"],
                "seed": self.program.seed,
                "mesh": mesh_text(self.layout.mesh.shape),
            }
            self._checkpoints.save(self.state.step, arrays, meta)
            self._saved = self.state.step
        if wait:
            self._checkpoints.wait()


def _explained(error: Exception) -> UserError | None:
    """What a person can do about a fault of the machine; None for other faults."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return UserError(
            "a step needs more memory than there is",
            help="a smaller batch, --accumulate to take it in parts, or a mesh that splits the model",
        )
    if jax.process_count() > 1 and any(word in text for word in ("Gloo", "UNAVAILABLE", "coordination")):
        return UserError(
            "another process of this run has ended or can't be reached",
            help="start the run again; it goes on from its last checkpoint",
        )
    return None


class _Clock:
    """Tokens a second, from the moments at which steps were done."""

    def __init__(self) -> None:
        self.last = 0.0
        self._before: float | None = None
        self._seconds, self._tokens = 0.0, 0

    def tick(self, tokens: int) -> None:
        now = time.perf_counter()
        if self._before is not None:
            self.last = tokens / (now - self._before)
            self._seconds += now - self._before
            self._tokens += tokens
        self._before = now

    def restart(self) -> None:
        """What happened since the last step doesn't count."""
        if self._before is not None:
            self._before = time.perf_counter()

    @property
    def rate(self) -> float:
        return self._tokens / self._seconds if self._seconds else self.last


class _Stop:
    """Whether the run was asked to stop. `signal` is set once it has been heeded."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._heard: int | None = None

    def hear(self, number: int, _frame: Any) -> None:
        if self._heard is not None:  # asked twice: at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._heard = number

    def asked(self, step: int) -> bool:
        if jax.process_count() > 1:
            # All processes stop after the same step, whichever was asked. jax hears SIGTERM itself.
            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        else:
            self.signal = self._heard
        return self.signal is not None


@contextmanager
def _stopping() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield stop
        return
    before = {s: signal.signal(s, stop.hear) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
