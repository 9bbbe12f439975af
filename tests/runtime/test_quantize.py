"""export --quantize: what it measures, what it keeps, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.tiny_run import tiny_run

from planform.backends.onnx import Divergence, Session, verify_contract
from planform.backends.onnx.quantization import Product, Scheme
from planform.runtime.artefact import is_artefact
from planform.runtime.errors import UserError
from planform.runtime.exporting import export_run
from planform.runtime.quantize import Wish, of_run
from planform.runtime.quantize.budget import FINER, promotions, within
from planform.runtime.quantize.measure import metrics_of

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests. " * 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "tiny", more=("head_dim=16", "query_scale=16"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def export(run: Path, folder: Path, text: Path, **wish: object) -> dict[str, object]:
    return export_run(run, folder, positions=512, wish=Wish(**wish), calibrate=text)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["int4", "w8", "int8"])
def test_the_divergence_is_measured_and_verified_again(run: Path, text: Path, tmp_path: Path, weights: str) -> None:
    found = export(run, tmp_path / "q", text, weights=weights, block=32)
    contract = json.loads((tmp_path / "q" / "contract.json").read_text())
    told = contract["quantization"]
    assert told == found["quantization"] and told["divergence"]["metric"] == "kl"
    assert told["divergence"]["entries"] == "text.txt"
    verdict = verify_contract(tmp_path / "q")
    assert verdict.holds and verdict.metrics == {"logits": "kl"}
    limit = contract["fixture"]["limits"]["logits"]["limit"]
    assert 0 < verdict.errors["logits"] <= limit and "tolerance" not in contract["fixture"]
    if weights == "int4":
        assert told["divergence"]["value"] > 1e-4 and 1.4 < limit / verdict.errors["logits"] < 1.6
    assert "quantised" in (tmp_path / "q" / "README.txt").read_text()


def test_a_model_that_is_further_off_is_found(run: Path, text: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "q", text, weights="w8", block=32)
    path = tmp_path / "q" / "contract.json"
    contract = json.loads(path.read_text())
    contract["fixture"]["limits"]["logits"]["limit"] = 1e-9
    path.write_text(json.dumps(contract))
    verdict = verify_contract(tmp_path / "q")
    assert not verdict.holds and "Kullback-Leibler" in verdict.problems[0]


def test_the_budget_is_kept_with_as_few_bits_as_needed(run: Path, text: Path, tmp_path: Path) -> None:
    free = export(run, tmp_path / "free", text, weights="int4", block=32)["quantization"]
    value = free["divergence"]["value"]  # type: ignore[index]
    export(run, tmp_path / "kept", text, weights="int4", block=32, budget=value / 4)
    told = json.loads((tmp_path / "kept" / "contract.json").read_text())["quantization"]
    assert told["divergence"]["value"] <= value / 4 == told["divergence"]["budget"]
    assert {"int4, blocks of 32", "w8, blocks of 128"} <= set(told["weights"])
    assert sum(told["weights"].values()) == sum(free["weights"].values())  # type: ignore[index]
    assert verify_contract(tmp_path / "kept").holds


def test_a_budget_that_cant_be_kept_is_refused(run: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="over the budget of 1e-12") as caught:
        export(run, tmp_path / "q", text, weights="int8", budget=1e-12)
    assert caught.value.help == "allow more"
    with pytest.raises(UserError, match="over the budget"):
        export(run, tmp_path / "q", text, cache=True, budget=1e-12)
    assert not list(tmp_path.iterdir())


def test_an_8_bit_cache(run: Path, text: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "q", text, cache=True)
    contract = json.loads((tmp_path / "q" / "contract.json").read_text())
    kinds = {s["path"]: s["dtype"] for s in contract["states"]}
    assert kinds.pop("length") == "int32" and set(kinds.values()) == {"int8"}
    assert contract["quantization"]["weights"] == {} and contract["quantization"]["cache"] == "int8"
    assert verify_contract(tmp_path / "q").holds
    session = Session(tmp_path / "q")
    session.reset(1, 64)
    assert session.advance(np.zeros((1, 40), np.int32)).shape == (1, 1, 256)


def test_heads_that_the_kernel_cant_keep_in_8_bits_are_told(text: Path, tmp_path: Path) -> None:
    narrow = tiny_run(tmp_path / "narrow")  # heads of 8
    with pytest.raises(UserError, match="no cache that the runtime can keep in 8 bits"):
        export(narrow, tmp_path / "q", text, cache=True)
    assert not (tmp_path / "q").exists()


def test_the_same_bytes_each_time(run: Path, text: Path, tmp_path: Path) -> None:
    for name in "ab":
        export(run, tmp_path / name, text, weights="int4", block=32, cache=True)
    for name in ("model.onnx", "model.onnx.data", "contract.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_entries_come_from_the_run_or_the_text(run: Path, text: Path, tmp_path: Path) -> None:
    from planform.compiler.elaborate import elaborate
    from planform.runtime.run import spec_of_run

    graph = elaborate(spec_of_run(run))
    given = of_run(run, graph, text)
    tokens = np.concatenate([*(c["tokens"] for c in given.calibration), given.held_out["tokens"]]).reshape(-1)
    assert bytes(tokens.astype(np.uint8)).decode() == TEXT[: len(tokens)]
    assert len(given.held_out["tokens"]) == 3 and given.source == "text.txt"
    own = of_run(run, graph, None)
    assert "run's own" in own.source and own.held_out["tokens"].shape == (16, 32)
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(UserError, match="only 9 tokens"):
        of_run(run, graph, short)
    with pytest.raises(UserError, match="can't read"):
        of_run(run, graph, tmp_path / "none.txt")
    assert metrics_of(graph) == {"logits": "kl"}
    assert not is_artefact(tmp_path)


def test_promotions_go_by_cost_for_each_byte() -> None:
    def product(name: str, rows: int) -> Product:
        return Product(name, None, None, rows, 64, False)  # type: ignore[arg-type]

    products = [product("small", 128), product("large", 1024), product("idle", 128)]
    schemes = dict.fromkeys(("small", "large", "idle"), Scheme("int4", 128))
    steps = promotions(products, schemes, {"small": 1.0, "large": 1.5, "idle": 0.01})
    assert steps == [(n, FINER) for n in ("small", "large", "idle")] + [(n, None) for n in ("small", "large", "idle")]
    eight = promotions(products, dict.fromkeys(schemes, FINER), {"small": 1.0, "large": 9.0, "idle": 0.01})
    assert eight == [("large", None), ("small", None), ("idle", None)]


def test_the_fewest_promotions_are_found() -> None:
    steps = [(f"m{i}", FINER) for i in range(37)]
    for needed in (1, 2, 17, 36, 37):
        asked: list[int] = []

        def measure(chosen: dict[str, object], asked: list[int] = asked, needed: int = needed) -> float:
            asked.append(len(chosen))
            return 1.0 if len(chosen) < needed else 0.1

        found = within(0.5, steps, measure, 1.0)  # type: ignore[arg-type]
        assert found == (dict(steps[:needed]), 0.1) and len(asked) <= 7
    assert within(0.5, steps, lambda chosen: 0.9, 1.0) is None


def test_the_metrics() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 5, 7))
    kl = Divergence("kl")
    kl.add(a[:2], b[:2])
    kl.add(a[2:], b[2:] + 100)  # a constant doesn't change a distribution
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    assert kl.value == pytest.approx(float((p * np.log(p / q)).sum(-1).mean()))
    rms = Divergence("rms")
    rms.add(a, a * 1.1)
    assert rms.value == pytest.approx(0.1)
    rms.add(a, a * np.nan)
    assert rms.value == float("inf")
