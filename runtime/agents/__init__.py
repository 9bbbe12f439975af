"""Agents: environments, the actors that play in them, and the replay that a learner draws from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:  # an actor's process loads no compiler
    from planform.compiler.program import Program

    from ..data.source import Share
    from .actor import Play
    from .source import ReplayData

SEEN = "replay{}.npz"
"""In a run's folder: what its actors saw; those of further processes of the run have a number."""


def play_of(program: Program) -> Play:
    """How actors play in a program's environment. Raises: UserError where none is named."""
    from .actor import Play
    from .export import policy_of

    a, action = program.data.arguments, program.data.fields[1]
    if a["environment"] is None:
        raise UserError("no environment to learn in is named", help="--environment cartpole:balance")
    assert program.policy is not None
    return Play(a["environment"], policy_of(program.policy, action), a["n"], a["gamma"], a["noise"], a["repeat"])


def open_replay(program: Program, share: Share, folder: Path, ray: str | None = None) -> ReplayData:
    """The data of a program that learns from what it sees; `ray` is the address of a cluster to play on. Raises:
    UserError."""
    from ..distributed import processes
    from .process import Process
    from .ray import on_ray
    from .source import ReplayData

    a = program.data.arguments
    if ray is not None and not a["actors"]:
        raise UserError("nobody plays on the Ray cluster: without actors the learner plays itself", help="--actors 2")
    if share.of != processes():
        raise UserError(
            f"{processes()} processes see {processes()} things, and the mesh has {share.of} of them in a batch",
            help="split the batch over as many devices as there are processes, or more: --mesh data=2",
        )
    return ReplayData(
        play_of(program), program.data.fields, share, program.seed, actors=a["actors"], capacity=a["capacity"],
        ratio=a["ratio"], first=a["first"], exponent=a["priority"], file=folder / SEEN.format(share.process or ""),
        hire=on_ray(ray) if ray is not None else Process,
    )  # fmt: skip
