"""Running a model in plain onnxruntime, with the streaming state kept in place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import onnxruntime as ort

from .pages import large_pages
from .prepared import prepared, write

if TYPE_CHECKING:
    import onnx_ir as ir

    from .lowering import Lowered

Source: TypeAlias = Union[str, Path, bytes, "ir.Model", "Lowered"]
"""A folder made by `export`, a `.onnx` file, or a model in memory (below 2 GB)."""

MODEL = "model.onnx"
PAST, PRESENT = "past/", "present/"
LENGTH, COUNT, ATTENTION_MASK = "length", "count", "attention_mask"
NAMES = "planform.names"
"""Metadata of a model made for another runtime: what its inputs and outputs are called there, by our names."""
CHUNK = 256
"""Entries of a prompt that are taken at once: attention computes all scores of a chunk, those that a later entry of it
would see too, so smaller ones save work; below 128 the products lose more."""
PREPACKING_OFF = "session.disable_prepacking"
IN_PLACE = ("linear", "window")
"""Layouts whose successor may be written over the state itself: one kernel reads and writes them."""

_NUMPY = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
          "tensor(bool)": np.bool_, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}  # fmt: skip


def physical_cores() -> int:
    """Cores this process may use; hyperthreads of one core count once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    found = set()
    for cpu in allowed:
        try:
            topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
            found.add(tuple((topology / n).read_text().strip() for n in ("physical_package_id", "core_id")))
        except OSError:
            found.add((str(cpu),))
    return max(1, len(found))


def options(
    threads: int | None = None, spin: bool = True, packed: bool = True, sizes: Mapping[str, int] | None = None
) -> ort.SessionOptions:
    """Session options: all optimisations, one thread a core.

    spin: workers busy-wait for the next operator. Faster alone, far slower where others need the cores.
    packed: float32 weights are laid out anew for long prompts when the model is loaded. Without it they are read where
    the file is mapped: loading takes no time and no memory, prompts 1.3 times as long, tokens the same. Quantised
    weights want it. Nor does onnxruntime then plan a run's memory as a whole, which takes it besides what the first
    run took (20 MB of a 222M model's), or keep buffers from one layer to the next (8 MB), and a `Session` takes half
    a `CHUNK` at once (18 MB).
    sizes: of dims that the model leaves open, by name, where every input will have them: a convolution is planned for
    its image, and a ResNet-50 is 5 to 9% faster.
    """
    out = ort.SessionOptions()
    out.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    out.intra_op_num_threads = threads or physical_cores()
    out.inter_op_num_threads = 1
    out.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    out.add_session_config_entry(PREPACKING_OFF, str(int(not packed)))
    out.enable_mem_pattern = out.enable_mem_reuse = packed
    out.log_severity_level = 3
    for dim, size in (sizes or {}).items():
        out.add_free_dimension_override_by_name(dim, size)
    return out


def load(source: Source, settings: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """An onnxruntime session on the CPU, whose weights soon lie in large pages (`large_pages`). Of a folder that was
    prepared for this machine (`prepare`), what was prepared, unless the settings ask for the weights as they are.

    Raises: what onnxruntime raises for a model that it refuses."""
    settings = settings or options()
    if isinstance(source, (str, Path)):
        model: str | bytes = str((prepared(Path(source)) if _lays_out(settings) else None) or _file(source))
    else:
        model = _bytes(source)
    with large_pages():
        return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def prepare(folder: str | Path) -> int:
    """Lays out the weights of a folder made by `export` for this machine, beside its model, which stays as it is:
    `load` then takes them. Returns their bytes. Raises: OSError where onnxruntime refuses or nothing can be written."""
    return write(Path(folder), MODEL, options())


def _lays_out(settings: ort.SessionOptions) -> bool:
    try:
        return settings.get_session_config_entry(PREPACKING_OFF) != "1"
    except RuntimeError:  # it isn't set
        return True


def _file(source: str | Path) -> Path:
    path = Path(source)
    return path / MODEL if path.is_dir() else path


def _bytes(source: bytes | ir.Model | Lowered) -> bytes:
    if isinstance(source, bytes):
        return source
    import onnx_ir as ir  # a second, and of no use to a model that is a file

    from .lowering import Lowered

    return ir.to_proto(source.model if isinstance(source, Lowered) else source).SerializeToString()


def run(source: Source | ort.InferenceSession, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Runs a model once. Raises: ValueError for an input that is missing."""
    session = source if isinstance(source, ort.InferenceSession) else load(source)
    feed: dict[str, np.ndarray] = {}
    for i in session.get_inputs():
        if i.name not in inputs:
            raise ValueError(f"input `{i.name}` {i.shape} is missing")
        feed[i.name] = np.asarray(inputs[i.name], _NUMPY[i.type], order="C")
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def intermediates(source: Source, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every value that the model computes, by name: to find the first one that is wrong.

    The values are made outputs of a copy in memory, run with the same kernels but no further fusions.
    """
    import onnx

    settings = options()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if isinstance(source, (str, Path)):
        path = _file(source)
        proto = onnx.load(str(path), load_external_data=False)
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    else:
        proto = onnx.load_from_string(_bytes(source))
    known = {o.name for o in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            if name and name not in known:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return run(session, inputs)


class Session:
    """A model in step form, with the state of a batch of streams.

    After `reset`, `advance` takes the next chunk of every stream: the whole prompt or one token.
    """

    def __init__(
        self, source: Source | ort.InferenceSession, *, threads: int | None = None, spin: bool = True,
        packed: bool = True,
    ) -> None:  # fmt: skip
        """`threads`, `spin` and `packed` as for `options`, for a model that is not loaded yet.

        Raises: ValueError where the model isn't in step form.
        """
        if not isinstance(source, ort.InferenceSession):
            source = load(source, options(threads, spin, packed))
        self.session: ort.InferenceSession = source
        self.chunk = CHUNK if packed else CHUNK // 2
        about = self.session.get_modelmeta().custom_metadata_map
        if "planform.states" not in about:
            raise ValueError("this model isn't in step form: it has no streaming state")
        self._theirs: dict[str, str] = json.loads(about.get(NAMES, "{}"))
        ours = {theirs: name for name, theirs in self._theirs.items()}
        given = {ours.get(i.name, i.name): i for i in self.session.get_inputs()}
        found = [ours.get(o.name, o.name) for o in self.session.get_outputs()]
        self.past = {n.removeprefix(PAST): i for n, i in given.items() if n.startswith(PAST)}
        self._own = {COUNT} if LENGTH in self.past else {ATTENTION_MASK}  # inputs that are filled in here
        self._own &= set(given)
        self.inputs = {n: i for n, i in given.items() if not n.startswith(PAST) and n not in self._own}
        made = dict(zip(found, self.session.get_outputs(), strict=True))
        self._made = {n: o for n, o in made.items() if not n.startswith(PRESENT)}
        self.outputs = list(self._made)
        self.layouts: dict[str, str] = json.loads(about["planform.states"])
        longest = about["planform.max_positions"]
        self.max_positions = int(longest) if longest else None
        self.batch = self.capacity = 0

    def reset(self, batch: int, capacity: int = 0) -> None:
        """Begins `batch` new streams with room for `capacity` entries each, padding of chunks included. Those of a
        model without `max_positions` go on without end, and there the capacity says nothing.

        Raises: ValueError where the model's tables don't reach that far.
        """
        if self.max_positions is not None and capacity > self.max_positions:
            raise ValueError(f"room for {capacity} entries, but the model was made for {self.max_positions} positions")
        self.batch, self.capacity = batch, capacity
        self.length = np.zeros(batch, np.int64)
        env = {"batch": batch, "capacity": capacity}
        self._binding = self.session.io_binding()
        self._moving: dict[str, tuple[ort.OrtValue, ort.OrtValue]] = {}
        self._arrays: list[np.ndarray] = []  # the memory that states live in
        self._kept: dict[str, np.ndarray] = {}  # of those that stay in place
        fixed = {n: o for n, o in self._made.items() if all(isinstance(d, int) or d == "batch" for d in o.shape)}
        self._growing = [n for n in self.outputs if n not in fixed]
        for name in self._growing:
            self._binding.bind_output(self._their(name))
        self._results: dict[str, np.ndarray] = {}  # of a known shape: bound once, since binding costs at each step
        for name, o in fixed.items():
            self._results[name] = np.empty([env.get(d, d) for d in o.shape], _NUMPY[o.type])
            value = ort.OrtValue.ortvalue_from_numpy(self._results[name])
            self._binding.bind_ortvalue_output(self._their(name), value)
        for path, i in self.past.items():
            shape = [d if isinstance(d, int) else env[d] for d in i.shape]
            state = self._zeros(shape, i.type)
            self._binding.bind_ortvalue_input(self._their(PAST + path), state)
            if self.layouts[path] in IN_PLACE:
                self._binding.bind_ortvalue_output(self._their(PRESENT + path), state)
                self._kept[path] = self._arrays[-1]
            else:
                self._moving[path] = (state, self._zeros(shape, i.type))

    def _their(self, name: str) -> str:
        """What the file calls it."""
        return self._theirs.get(name, name)

    @property
    def state_bytes(self) -> int:
        """What the states of all streams take, once `reset` has made room for them."""
        return sum(a.nbytes for a in self._arrays)

    def _zeros(self, shape: list[int], type: str) -> ort.OrtValue:
        self._arrays.append(np.zeros(shape, _NUMPY[type]))
        return ort.OrtValue.ortvalue_from_numpy(self._arrays[-1])

    def step(self, inputs: Mapping[str, Any], count: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Feeds the next chunk of every stream.

        inputs: by name, [batch, time, ..]; count: int[batch], how many entries of each row are valid, the
        rest of a row being padding at its end (default: all). A row may have none, except as its first.
        Returns the outputs by name. Raises: ValueError where a chunk doesn't fit.
        """
        valid, feeds = self._feeds(inputs, count)
        b = self._binding
        for name, array in feeds.items():
            b.bind_cpu_input(name, array)
        for path, (now, after) in self._moving.items():
            b.bind_ortvalue_input(self._their(PAST + path), now)
            b.bind_ortvalue_output(self._their(PRESENT + path), after)
        for name in self._growing:
            b.bind_output(self._their(name))  # again each time: an output keeps the shape of the run before
        self.session.run_with_iobinding(b)
        self._moving = {path: (after, now) for path, (now, after) in self._moving.items()}
        self.length += valid
        found = {name: array.copy() for name, array in self._results.items()}
        if self._growing:
            # In the order in which they were first bound: these before everything else.
            found |= {name: x.numpy() for name, x in zip(self._growing, b.get_outputs(), strict=False)}
        return found

    def _feeds(self, inputs: Mapping[str, Any], count: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(the valid entries of each row, what the file wants besides the states) for a step."""
        feeds: dict[str, np.ndarray] = {}
        for k, v in inputs.items():
            feeds[k] = np.ascontiguousarray(v, _NUMPY[self.inputs[k].type])
        time = next(iter(feeds.values())).shape[1]
        valid = np.full(self.batch, time, np.int32) if count is None else np.asarray(count, np.int32)
        self._check(time, valid)
        if COUNT in self._own:
            feeds[COUNT] = valid
        elif self._own:
            feeds[ATTENTION_MASK] = self._mask(time, valid)
        return valid, {self._their(name): array for name, array in feeds.items()}

    def feeds(self, inputs: Mapping[str, Any], count: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What the next `step` would give the model, states too, by the file's names: for `intermediates`."""
        now = {p: moving[0] for p, moving in self._moving.items()}
        states = {self._their(PAST + p): now[p].numpy() if p in now else self._kept[p] for p in self.past}
        return {**self._feeds(inputs, count)[1], **{name: np.array(array) for name, array in states.items()}}

    def caches(self) -> dict[str, np.ndarray]:
        """What the caches hold now, [batch, heads, entries, width] by path: the memory itself."""
        return {path: array for path, array in self._kept.items() if array.ndim == 4}

    def _mask(self, time: int, count: np.ndarray) -> np.ndarray:
        """int64[batch, past + time]: one for an entry of the stream, zero for padding."""
        past = np.arange(int(self.length.max())) < self.length[:, None]
        return np.concatenate([past, np.arange(time) < count[:, None]], axis=1).astype(np.int64)

    def _check(self, time: int, count: np.ndarray) -> None:
        if not self.batch:
            raise ValueError("call `reset` first")
        if count.shape != (self.batch,) or count.min() < 0 or count.max() > time:
            raise ValueError(f"`count` must be {self.batch} numbers from 0 to {time}")
        if np.any((self.length == 0) & (count == 0)):
            raise ValueError("the first chunk of a stream must have at least one entry")
        if self.max_positions is not None and self.length.max() + time > self.capacity:
            raise ValueError(f"{self.length.max()} + {time} entries in a stream with room for {self.capacity}")

    def advance(self, tokens: np.ndarray, count: np.ndarray | None = None) -> np.ndarray:
        """`step` for a model with one input and one output: tokens [batch, time] -> logits."""
        (name,) = self.inputs
        return self.step({name: tokens}, count)[self.outputs[0]]

    def prefill(self, tokens: np.ndarray, count: np.ndarray | None = None, chunk: int | None = None) -> np.ndarray:
        """`advance` in chunks (default: `self.chunk`), which bounds the memory of long prompts. Returns the logits that
        follow the last valid entry of each row, [batch, 1, ..], for a model with outputs of the last entry only."""
        valid = np.full(self.batch, tokens.shape[1]) if count is None else np.asarray(count)
        chunk, out = chunk or self.chunk, None
        for start in range(0, int(valid.max()), chunk):
            part = np.clip(valid - start, 0, chunk)
            logits = self.advance(tokens[:, start : min(start + chunk, int(valid.max()))], part)
            out = logits if out is None else np.where((part > 0).reshape(-1, *[1] * (logits.ndim - 1)), logits, out)
        assert out is not None
        return out
