import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from planform.runtime import environment
from planform.runtime.environment import DISPATCH, cpu_environment, on_cpu

PACKAGE = str(Path(__file__).parents[2] / ".pkg")
BARE = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
KEEP = f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=20000000000:glibc.malloc.arena_max=1:{BARE}"
FAST = f"glibc.malloc.hugetlb=1:{KEEP}"
COUNT = "--xla_force_host_platform_device_count"
SAFE = f"{environment.FUSION}={environment.WITHOUT} {environment.REGIONS}=true"

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the tunables are glibc's")


def test_what_is_added():
    assert cpu_environment(1, {}) == {"GLIBC_TUNABLES": FAST, "XLA_FLAGS": SAFE, DISPATCH: "0"}
    assert cpu_environment(4, {}) == {"GLIBC_TUNABLES": FAST, "XLA_FLAGS": f"{SAFE} {COUNT}=4", DISPATCH: "0"}


def test_what_the_user_set_stays():
    tunables = "glibc.malloc.hugetlb=0:glibc.malloc.check=1"
    given = {
        "GLIBC_TUNABLES": tunables,
        "XLA_FLAGS": f"{COUNT}=8 {environment.FUSION}= {environment.REGIONS}=false",
        DISPATCH: "1",
    }
    assert cpu_environment(2, given) == {"GLIBC_TUNABLES": f"{tunables}:{KEEP}"}
    older = {"MALLOC_MMAP_MAX_": "9", "MALLOC_TRIM_THRESHOLD_": "9", "MALLOC_ARENA_MAX": "9"}
    few = {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:{BARE}", "XLA_FLAGS": SAFE, DISPATCH: "0"}
    assert cpu_environment(1, older) == few
    assert cpu_environment(1, older | given) == {"GLIBC_TUNABLES": f"{tunables}:{BARE}"}
    assert cpu_environment(2, {"XLA_FLAGS": "--xla_dump_to=x"})["XLA_FLAGS"] == f"--xla_dump_to=x {SAFE} {COUNT}=2"


def test_on_cpu(monkeypatch, tmp_path):
    assert on_cpu({"JAX_PLATFORMS": "cpu"}) and on_cpu({"JAX_PLATFORMS": "cpu,cuda"})
    assert not on_cpu({"JAX_PLATFORMS": "cuda,cpu"})
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(environment.importlib.metadata, "entry_points", lambda group: ())
    assert on_cpu({})
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(environment, "TPUS", (str(tmp_path / "accel[0-9]*"),))
    assert on_cpu({})
    (tmp_path / "accel0").touch()
    assert not on_cpu({})
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: name == "jax_plugins" or None)
    assert not on_cpu({})


SCRIPT = """
import json, os, sys
from pathlib import Path
print("start", flush=True)
from planform.runtime.environment import reexec_with
reexec_with(int(sys.argv[1]))
assert "jax" not in sys.modules
assert __spec__, "started as a file instead of with -m"
print(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


def plain() -> dict[str, str]:
    """This process's environment without what `cpu_environment` adds."""
    added = ("GLIBC_TUNABLES", "XLA_FLAGS", DISPATCH, environment.GUARD)
    kept = {k: v for k, v in os.environ.items() if k not in added}
    return kept | {"PYTHONPATH": PACKAGE, "JAX_PLATFORMS": "cpu"}


def starts(tmp_path: Path, *arguments: str, **variables: str) -> tuple[int, list[str], dict[str, str]]:
    """How often the script began, and the arguments and the environment it ended up with."""
    (tmp_path / "script.py").write_text(SCRIPT)
    child = subprocess.run(
        [sys.executable, "-m", "script", *arguments],
        env=plain() | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *begun, last = child.stdout.splitlines()
    argv, final = json.loads(last)
    return len(begun), argv, final


def test_a_command_starts_itself_again_once(tmp_path):
    count, argv, final = starts(tmp_path, "2", "a b", "--c=*")
    assert count == 2 and argv == ["2", "a b", "--c=*"]
    assert final["GLIBC_TUNABLES"] == FAST and final["XLA_FLAGS"] == f"{SAFE} {COUNT}=2"


def test_not_when_there_is_nothing_to_add(tmp_path):
    assert starts(tmp_path, "2", GLIBC_TUNABLES=FAST, XLA_FLAGS=f"{SAFE} {COUNT}=8", **{DISPATCH: "0"})[0] == 1
    assert starts(tmp_path, "2", JAX_PLATFORMS="tpu")[0] == 1


def test_a_command_within_a_command_gets_its_own_number(tmp_path):
    _, _, outer = starts(tmp_path, "2", XLA_FLAGS="--xla_dump_to=x")
    ours = {name: outer[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS", DISPATCH, environment.GUARD)}
    count, _, inner = starts(tmp_path, "4", **ours)
    assert count == 2 and inner["XLA_FLAGS"] == f"--xla_dump_to=x {SAFE} {COUNT}=4"
    assert inner["GLIBC_TUNABLES"] == FAST
    moved = ours | {"XLA_FLAGS": f"{COUNT}=2 {SAFE} --xla_dump_to=x"}
    assert starts(tmp_path, "2", **ours)[0] == starts(tmp_path, "2", **moved)[0] == 1
    assert starts(tmp_path, "1", **ours)[2]["XLA_FLAGS"] == f"--xla_dump_to=x {SAFE}"


def test_jax_sees_the_devices(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from planform.runtime.environment import reexec_with\nreexec_with(3)\nimport jax\nprint(jax.device_count())\n"
    )
    out = subprocess.run([sys.executable, str(script)], env=plain(), capture_output=True, text=True, check=True)
    assert out.stdout == "3\n"


def test_sums_over_many_dims(tmp_path):
    """XLA's own choice of what to fuse dies of this one (jaxlib 0.10.2, x86-64)."""
    script = tmp_path / "script.py"
    script.write_text(
        "from planform.runtime.environment import reexec_with\nreexec_with(1)\nimport jax, jax.numpy as jnp\n"
        "x, y = jnp.ones((2, 3, 1, 2, 2, 8, 8, 8))\nprint(jax.jit(lambda a, b: jnp.sum(a * b, 3))(x, y).sum())\n"
    )
    out = subprocess.run([sys.executable, str(script)], env=plain(), capture_output=True, text=True, check=True)
    assert out.stdout == "6144.0\n"
