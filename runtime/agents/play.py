"""What a trained agent does: returns of its episodes, and a film of the first. What `planform play` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..evaluate import as_it_ran
from ..files import write_json
from ..functa.images import write_picture
from ..run import parameters_of_run, read_run, spec_of_run
from ..train import as_agent
from . import play_of
from .actor import episodes as played
from .environment import Environment

FRAMES = 25
"""A second, of the film; players of GIFs keep no faster pace."""


def play(
    run: str | Path,
    out: str | Path | None = None,
    *,
    episodes: int = 5,
    environment: str | None = None,
    seed: int = 0,
    step: int | None = None,
    size: tuple[int, int] = (240, 320),
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Plays with the policy of a run, without noise.

    out          folder for `episode.gif`, the first `seconds` of the first episode in the environment's own time, and
                 `returns.json`; None writes nothing
    environment  in place of the run's
    seed         of the episodes
    step         of the checkpoint; the newest without one
    size         height and width of the film
    Returns what `returns.json` says. Raises: UserError, SpecError.
    """
    chosen = as_it_ran(spec_of_run(run), read_run(run))
    if chosen.policy is None:
        raise UserError(f"{run} holds no agent, it learned from {chosen.data.name}")
    chosen = as_agent(chosen, environment=environment)
    how, clock = play_of(chosen), 0.0
    frames: list[Image.Image] = []

    def see(episode: int, shown: Environment) -> None:
        nonlocal clock
        if not episode and clock < seconds and clock * FRAMES >= len(frames):
            # Without dithering what stands still takes no space.
            frames.append(Image.fromarray(shown.picture(*size)).quantize(128, dither=Image.Dither.NONE))
        clock += shown.seconds

    returns = played(how, parameters_of_run(run, step), episodes, seed, see if out is not None else None)
    told = {"environment": how.environment, "seed": seed, "returns": returns, "mean": float(np.mean(returns))}
    if out is not None:
        film = {"save_all": True, "append_images": frames[1:], "duration": 1000 // FRAMES, "loop": 0}
        write_picture(Path(out) / "episode.gif", frames[0], **film)
        write_json(Path(out) / "returns.json", told)
    return told
