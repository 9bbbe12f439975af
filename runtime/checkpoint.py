"""Checkpoints of a training state: named arrays and a small JSON-able mapping, in FOLDER/checkpoints/STEP.

orbax writes them: in the background, each process its own shards, beside the place and then renamed. A folder
named by a number is therefore whole; what a killed process leaves has another name and goes at the next
start.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from .errors import UserError

Arrays = dict[str, Any]
"""Arrays by name: jax.Array, or np.ndarray where the caller asked for those."""

FOLDER = "checkpoints"
LOCK = ".lock"
UNFINISHED = ("*.orbax-checkpoint-tmp*", "*.deleted")
SPARE = 1 << 20
"""Bytes that a checkpoint takes beside its arrays, generously."""

SHOWN = 5
"""Names listed in a message before "and so on"."""


class Kind(NamedTuple):
    """Shape and dtype, without the narrowing to 32 bits that jax's own description does."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Checkpoints:
    """The checkpoints of one run; the only writer of its folder.

    folder  of the run; made if need be
    keep    how many checkpoints stay; an older one goes only after a newer one is whole

    Use it in a `with` statement, or close it: a save still under way when the interpreter ends waits for
    threads that no longer start, for minutes.

    In a run of several processes all of them make one of these, on a file system that they share, and make
    the same calls. Raises UserError when another run holds the folder or it can't be written.
    """

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        if keep < 1:
            raise UserError(f"{keep} checkpoints can't be kept", help="keep 1 or more")
        self._run = Path(folder).absolute()
        self._root = self._run / FOLDER
        self._keep = keep
        quiet()
        self._first = jax.process_index() == 0
        self._pending: int | None = None
        self._lock: IO[str] | None = None
        if self._first:
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(self._run)
                _clean(self._root)
            except OSError as error:
                raise UserError(f"can't write in {self._run}: {error.strerror or error}") from error
        _meet("checkpoints open")
        self._writer = ocp.AsyncCheckpointer(_handler())

    def save(self, step: int, arrays: Mapping[str, Any], meta: Mapping[str, Any], wait: bool = False) -> None:
        """Saves a state; returns as soon as the arrays may change or be donated again, with wait when it is
        on disk.

        arrays  name -> jax.Array of any sharding, also over several processes (random keys as their key data)
        meta    JSON-able
        A step that is there already is left as it is (see `discard_after`).

        Raises UserError when the disk has no room for it, or when the save before this one failed meanwhile;
        the checkpoints that were there are still there.
        """
        self.wait()
        if step in self.steps():
            return
        self._check_room(sum(int(a.nbytes) for a in arrays.values()))
        # orbax refuses arrays without entries; their shapes are all there is to them
        empty = {name: [list(a.shape), a.dtype.name] for name, a in arrays.items() if not a.size}
        full = {name: array for name, array in arrays.items() if array.size}
        try:
            self._writer.save(
                self._root / str(step),
                args=ocp.args.Composite(
                    arrays=ocp.args.PyTreeSave(full),
                    meta=ocp.args.JsonSave({"meta": dict(meta), "empty": empty}),
                ),
            )
        except OSError as error:
            self._fail(step, error)
        self._pending = step
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is on disk and old ones are gone. Raises UserError if that save
        failed."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        try:
            self._writer.wait_until_finished()
        except Exception as error:  # whatever the storage library raises
            self._fail(step, error)
        if self._first:
            for old in self.steps()[: -self._keep]:
                _remove(self._root / str(old))

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return steps(self._run)

    def latest(self) -> int | None:
        """The newest step, or None in a fresh folder."""
        return max(self.steps(), default=None)

    def restore(self, step: int, like: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
        """The arrays and the meta of a step, bit for bit.

        like  name -> what to make of it: anything with shape, dtype and sharding (jax.ShapeDtypeStruct). The
              mesh and the sharding may differ from those it was saved with; without a sharding it becomes an
              np.ndarray

        Raises UserError when there is no such step, when names, shapes or dtypes differ (each is named), or
        when files are damaged.
        """
        self.wait()
        return _restore(self._run, step, like)

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: a run that goes back takes another path from there."""
        self.wait()
        _meet("checkpoints read")
        if self._first:
            for later in self.steps():
                if later > step:
                    _remove(self._root / str(later))
        _meet("checkpoints discarded")

    def close(self) -> None:
        """Finishes the last save and lets the folder go. Raises UserError if that save failed."""
        try:
            self.wait()
        finally:
            self._writer.close()
            if self._lock:
                self._lock.close()
                self._lock = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self._root).free
        if jax.process_count() > 1:  # all must come to the same answer, or some would wait for the others for ever
            # in MiB: jax has no integers of 64 bits unless asked for them
            free = int(multihost_utils.broadcast_one_to_all(np.int32(free >> 20))) << 20
        if free < size + SPARE:
            raise UserError(
                f"the disk is full: a checkpoint takes {_bytes(size)}, {self._run} has {_bytes(free)} left",
                help="free some space and start the run again; it goes on from the last checkpoint",
            )

    def _fail(self, step: int, error: Exception) -> None:
        """Raises UserError for a save that failed, after removing what it left."""
        if self._first:
            _clean(self._root)
        text = str(error)
        if "No space left" in text or "RESOURCE_EXHAUSTED" in text or "ENOSPC" in text:
            message = f"the disk became full while the checkpoint of step {step} was written to {self._run}"
        else:
            message = f"the checkpoint of step {step} could not be written to {self._run}: {_first_line(error)}"
        kept = self.steps()
        state = f"the checkpoint of step {kept[-1]} is whole" if kept else "there is no earlier checkpoint"
        raise UserError(message, help=f"{state}; mend the cause and start the run again") from error


def steps(folder: str | Path) -> list[int]:
    """Steps of the whole checkpoints of a run, ascending; none for a folder without any. Takes no lock."""
    root = Path(folder) / FOLDER
    return sorted(int(p.name) for p in root.glob("[0-9]*") if p.name.isdigit()) if root.is_dir() else []


def read_arrays(
    folder: str | Path, step: int | None = None, only: Callable[[str], bool] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a run's checkpoint (its newest unless a step is given), without mesh, device or lock.

    only  chooses names; the others aren't read

    Raises UserError when there is no such checkpoint or it is damaged.
    """
    step = _choose(folder, step)
    found, empty = _contents(Path(folder), step)
    chosen = {name: a for name, a in (found | empty).items() if only is None or only(name)}
    return _read(Path(folder), step, chosen, empty)


def read_meta(folder: str | Path, step: int | None = None) -> dict[str, Any]:
    """The meta of a run's checkpoint (its newest unless a step is given).

    Raises UserError when there is no such checkpoint or it is damaged.
    """
    meta: dict[str, Any] = _json(Path(folder), _choose(folder, step))["meta"]
    return meta


def _choose(folder: str | Path, step: int | None) -> int:
    there = steps(folder)
    if not there:
        raise UserError(f"there is no checkpoint in {folder}", help="give the folder of a run that has saved one")
    if step is not None and step not in there:
        raise UserError(
            f"there is no checkpoint of step {step} in {folder}",
            help=f"there are {', '.join(map(str, there))}",
        )
    return there[-1] if step is None else step


def _handler() -> ocp.CompositeCheckpointHandler:
    return ocp.CompositeCheckpointHandler(arrays=ocp.PyTreeCheckpointHandler(), meta=ocp.JsonCheckpointHandler())


def _place(folder: Path, step: int) -> Path:
    return folder.absolute() / FOLDER / str(step)


def _json(folder: Path, step: int) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads((_place(folder, step) / "meta" / "metadata").read_text())
        return value
    except (OSError, ValueError) as error:
        raise _damaged(folder, step, error) from error


def _contents(folder: Path, step: int) -> tuple[dict[str, Kind], dict[str, Kind]]:
    """Shape and dtype of what was saved: the arrays in files, and those without entries."""
    try:
        with ocp.Checkpointer(_handler()) as reader:
            tree = reader.metadata(_place(folder, step)).item_metadata["arrays"].tree
        found = {name: Kind(tuple(a.shape), np.dtype(a.dtype)) for name, a in tree.items()}
    except Exception as error:
        raise _damaged(folder, step, error) from error
    empty = {
        name: Kind(tuple(shape), jnp.dtype(dtype)) for name, (shape, dtype) in _json(folder, step)["empty"].items()
    }
    return found, empty


def _restore(folder: Path, step: int, like: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    _choose(folder, step)
    found, empty = _contents(folder, step)
    _compare(folder, step, found | empty, like)
    return _read(folder, step, like, empty), _json(folder, step)["meta"]


def _read(folder: Path, step: int, like: Mapping[str, Any], empty: Mapping[str, Any]) -> Arrays:
    item: dict[str, Any] = {}
    how: dict[str, Any] = {}
    for name, a in like.items():
        if name not in empty:
            item[name] = 0
            sharding = getattr(a, "sharding", None)
            if sharding is None:
                how[name] = ocp.RestoreArgs(restore_type=np.ndarray)
            else:
                how[name] = ocp.ArrayRestoreArgs(sharding=sharding, global_shape=a.shape, dtype=a.dtype)
    arrays: Arrays = {}
    try:
        if item:
            with ocp.Checkpointer(_handler()) as reader:
                arguments = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
                restored = reader.restore(_place(folder, step), args=ocp.args.Composite(arrays=arguments))
            arrays.update(restored["arrays"])
    except Exception as error:
        raise _damaged(folder, step, error) from error
    for name in empty.keys() & like.keys():
        zeros = np.zeros(like[name].shape, like[name].dtype)
        sharding = getattr(like[name], "sharding", None)
        arrays[name] = zeros if sharding is None else jax.device_put(zeros, sharding)
    return {name: arrays[name] for name in like}


def _compare(folder: Path, step: int, found: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    def names(which: list[str]) -> str:
        return ", ".join(which[:SHOWN]) + (f" and {len(which) - SHOWN} more" if len(which) > SHOWN else "")

    def kind(a: Any) -> str:
        return f"{np.dtype(a.dtype).name}[{', '.join(map(str, a.shape))}]"

    missing = [name for name in like if name not in found]
    extra = [name for name in found if name not in like]
    other = [name for name in like if name in found and kind(like[name]) != kind(found[name])]
    faults = []
    if missing:
        faults.append(f"it lacks {names(missing)}")
    if extra:
        faults.append(f"the model has no {names(extra)}")
    if other:
        faults.append(names([f"{n} is {kind(found[n])} there and {kind(like[n])} in the model" for n in other]))
    if faults:
        raise UserError(
            f"the checkpoint of step {step} in {folder} doesn't fit this model: {'; '.join(faults)}",
            help="use the spec it was trained with, or another folder for this run",
        )


def _damaged(folder: Path, step: int, error: Exception) -> UserError:
    earlier = [s for s in steps(folder) if s != step]
    return UserError(
        f"the checkpoint of step {step} in {folder} can't be read: {_first_line(error)}",
        help=f"remove {_place(folder, step)} to go on from step {earlier[-1]}" if earlier else None,
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _lock(run: Path) -> IO[str]:
    """The open lock file; the lock goes with the process, however that ends."""
    file = open(run / LOCK, "a+")  # noqa: SIM115 (held until close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UserError(
            f"another run is writing in {run}" + (f" (process {holder})" if holder else ""),
            help="wait for it, end it, or choose another folder",
        ) from None
    except OSError:
        pass  # a file system without locks
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _remove(checkpoint: Path) -> None:
    """Renames first, so that a process killed here leaves no half checkpoint under a whole one's name."""
    gone = checkpoint.with_name(checkpoint.name + ".deleted")
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _clean(root: Path) -> None:
    for pattern in UNFINISHED:
        for path in root.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def quiet() -> None:
    """Keeps the storage library's log, with its tracebacks, off the terminal: a fault comes back as an
    exception."""
    log = logging.getLogger("absl")
    if _not_from_storage not in log.filters:
        log.addFilter(_not_from_storage)


def _not_from_storage(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


def _meet(where: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
