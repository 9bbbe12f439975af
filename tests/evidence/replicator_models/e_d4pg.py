"""D4PG: how fast the learner and the actors are, and what is learned."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from planform.runtime.agents.play import play
from planform.runtime.functa.curves import curve
from planform.runtime.functa.images import write_png
from planform.runtime.metrics import read_metrics
from planform.runtime.train import train
from planform.spec import load
from tests.benchmarks.d4pg import actors, learner
from tests.benchmarks.ratios import judged
from tests.evidence import row
from tests.models.d4pg_run import measured

SECONDS = 60
KEPT = Path("runs/evidence/replicator_models")


@row(
    "replicator_models",
    "d4pg_trajectories",
    "the learner by hand with rlax, one device and eight, from states and from pictures: ends of equal runs apart by "
    "less than 1e-3 of how far they went",
    2,
)
def trajectories() -> tuple[Any, bool]:
    found = measured()
    return {name: f"{value:.1e}" for name, value in found.items()}, max(found.values()) < 1e-3


@row(
    "replicator_models",
    "d4pg_learner",
    "learner steps/s at a batch of 256, batches from the host, >= 1.0 x the same losses by hand in JAX with rlax",
    2,
)
def learner_speed() -> tuple[Any, bool | str]:
    found = learner(SECONDS, 100)
    return found, judged(found["low"], found["high"], 1.0)


@row(
    "replicator_models",
    "d4pg_actor",
    "actor steps/s, transitions and noise included, >= 0.9 x bare dm_control with the same policy in onnxruntime",
    2,
)
def actor_speed() -> tuple[Any, bool | str]:
    found = actors(SECONDS, 2000)
    return found, judged(found["low"], found["high"], 0.9)


def learned(model: str, environment: str, aim: float, steps: int, seeds: int = 1) -> tuple[Any, bool]:
    """Trains with every seed; the returns of ten episodes that no run measured itself with. Keeps curves and films."""
    figure: dict[str, Any] = {}
    for seed in range(seeds):
        kept = KEPT / f"{environment.replace(':', '-')}-{seed}"
        with TemporaryDirectory() as folder:
            train(load(model), folder, environment=environment, steps=steps, seed=seed, quiet=True)
            returns = [(v["step"], v["episode_return"]) for v in read_metrics(folder) if "episode_return" in v]
            found = play(folder, kept, episodes=10, seed=1000 + seed)
        drawn = curve(returns, f"return of an episode of {environment}", "steps of the learner")
        write_png(kept / "curve.png", drawn)
        figure[f"seed {seed}"] = {
            "returns": [round(r, 1) for r in found["returns"]],
            "mean": round(found["mean"], 1),
            "curve": {int(step): round(r, 1) for step, r in returns},
            "kept": str(kept),
        }
    return figure, all(f["mean"] > aim for f in figure.values())


@row("replicator_models", "d4pg_balance", "cartpole balance from states, three seeds: returns above 900", 60)
def balance() -> tuple[Any, bool]:
    return learned("d4pg@cartpole", "cartpole:balance", 900, 15_000, seeds=3)


@row("replicator_models", "d4pg_swingup", "cartpole swingup from states, three seeds: returns above 750", 60)
def swingup() -> tuple[Any, bool]:
    return learned("d4pg@cartpole", "cartpole:swingup", 750, 50_000, seeds=3)


@row("replicator_models", "d4pg_reacher", "reacher easy from states: returns above 900", 60)
def reacher() -> tuple[Any, bool]:
    return learned("d4pg@reacher", "reacher:easy", 900, 100_000)
