"""Checkpoints of sharded states: other meshes, several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

PACKAGE = str(Path(__file__).parents[2] / ".pkg")

ONE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from planform.runtime.checkpoint import Checkpoints, read_arrays

w = np.random.default_rng(0).standard_normal((8, 12)).astype(jnp.bfloat16)
devices = np.array(jax.devices())
square, line = Mesh(devices.reshape(2, 2), ("data", "fsdp")), Mesh(devices, ("fsdp",))
alone = Mesh(devices[:1], ("fsdp",))
saved = {
    "sharded": jax.device_put(w, NamedSharding(square, P("data", "fsdp"))),
    "replicated": jax.device_put(w, NamedSharding(square, P())),
    "half": jax.device_put(w, NamedSharding(square, P(None, "fsdp"))),
}
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, saved, {})
    for mesh, spec in ((line, P("fsdp")), (line, P()), (alone, P()), (square, P("fsdp", "data"))):
        sharding = NamedSharding(mesh, spec)
        like = {name: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding) for name in saved}
        arrays, _ = checkpoints.restore(1, like)
        for name, array in arrays.items():
            assert array.sharding == sharding, name
            assert np.asarray(array).tobytes() == w.tobytes(), name
for name, array in read_arrays(sys.argv[1]).items():
    assert array.tobytes() == w.tobytes(), name
print("done")
"""

TWO = """
import sys
import jax
folder, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, process)
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from planform.runtime.checkpoint import Checkpoints

w = np.random.default_rng(0).standard_normal((8, 12))
w = w.astype(np.float32)
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "fsdp"))
put = lambda spec: jax.make_array_from_callback(w.shape, NamedSharding(mesh, spec), lambda i: w[i])
with Checkpoints(folder, keep=2) as checkpoints:
    for step in range(4):
        checkpoints.save(step, {"sharded": put(P("data", "fsdp")), "replicated": put(P())}, {"step": step})
    sharding = NamedSharding(mesh, P("fsdp", "data"))
    like = {n: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding) for n in ("sharded", "replicated")}
    arrays, meta = checkpoints.restore(3, like)
    assert meta == {"step": 3}
    for array in arrays.values():
        for shard in array.addressable_shards:
            assert np.asarray(shard.data).tobytes() == w[shard.index].tobytes()
    checkpoints.discard_after(2)
    assert checkpoints.steps() == [2]
print("done")
"""


def start(script: str, devices: int, *arguments: object) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"PYTHONPATH": PACKAGE, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen) -> None:
    try:
        out, err = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 0 and out.endswith("done\n"), err


def test_onto_another_mesh(tmp_path):
    finish(start(ONE, 4, tmp_path))


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = [start(TWO, 2, tmp_path, port, process) for process in range(2)]
    for child in children:
        finish(child)
