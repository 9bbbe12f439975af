"""Training programs whose data are what an agent sees: `data: replay(..)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from planform.spec import Diagnostic, Section, Spec, SpecError, did_you_mean

from .elaborate import PRIORITY, elaborate
from .ir import Graph, Input
from .recipes import Recipe

if TYPE_CHECKING:
    from .program import Program

FIELDS = ("observation", "action", "reward", "discount", "next_observation", "weight")
"""What a replay gives, in this order; the weight only where it draws by priority."""

LEAST = {"n": 1, "gamma": 0, "noise": 0, "repeat": 1, "first": 1, "ratio": 0.01, "priority": 0, "actors": 0}
"""What the arguments of a replay are at least."""


def check_fields(data: Recipe) -> None:
    """Raises: SpecError unless there is a name for everything that a replay gives, and its numbers make sense."""
    a = data.arguments
    wrong = [f"`{k}` is {a[k]:g}, it must be at least {least:g}" for k, least in LEAST.items() if a[k] < least]
    if a["gamma"] > 1:
        wrong.append(f"`gamma` is {a['gamma']:g}, it must be at most 1")
    if a["capacity"] < a["first"]:
        wrong.append(f"a `capacity` of {a['capacity']:,} never holds the `first` {a['first']:,} transitions")
    if wrong:
        raise SpecError(Diagnostic("PF0502", wrong[0], data.span))
    wanted = FIELDS[: 6 if data.arguments["priority"] else 5]
    if len(data.fields) != len(wanted):
        help = f"replay({', '.join(wanted)}, ..): names of these, in this order"
        message = f"`replay` gives {len(wanted)} fields here, {len(data.fields)} are named"
        raise SpecError(Diagnostic("PF0502", message, data.span, help=help))


def policy(spec: Spec, data: Recipe, copied: Mapping[str, str]) -> Graph:
    """The graph that acts, or the slow copy of one. Raises: SpecError unless it goes from observations to actions."""
    name, (observation, action, *_) = data.arguments["policy"], data.fields
    known = [*spec.graphs, *copied]
    if name not in known:
        help = did_you_mean(name, known) or "one of " + ", ".join(known)
        raise SpecError(Diagnostic("PF0502", f"no graph `{name}` to act with", data.span, help=help))
    found = elaborate(spec, copied.get(name, name), name if name in copied else None)
    taken = [v.name for v in found.of_kind(Input) if v.default is None]
    if taken != [observation] or action not in found.outputs:
        message = f"`{name}` doesn't act: it takes {', '.join(taken)} and gives {', '.join(found.outputs)}"
        help = f"a policy takes `{observation}` alone and gives `{action}`, as the fields of `{data.name}` are called"
        raise SpecError(Diagnostic("PF0502", message, data.span, help=help))
    return found


def check_priority(made: Program, train: Section) -> None:
    """Raises: SpecError where the data want a priority that no update gives, or one is given to nobody."""
    giving = [u for u in made.updates if PRIORITY in u.loss.outputs]
    if not made.data.arguments.get("priority"):
        if giving:
            place = f"updates.{giving[0].name}.priority" if f"updates.{giving[0].name}" in train.spans else "priority"
            raise SpecError(Diagnostic("PF0517", f"`{made.data.name}` doesn't draw by priority here",
                                       train.spans[place], help="replay(.., weight, priority=0.6)"))  # fmt: skip
        return
    if len(giving) != 1:
        gives = f"{len(giving)} updates give" if giving else "no update gives"
        message = f"`{made.data.name}` draws by a priority, and {gives} one"
        raise SpecError(Diagnostic("PF0517", message, made.data.span, help="`priority: error` beside one loss"))
    if made.accumulate > 1 or not made.simultaneous and (len(made.updates) > 1 or giving[0].repeat > 1):
        message = "a step of a program with a priority takes one batch, as a whole"
        raise SpecError(Diagnostic("PF0517", message, made.data.span, help="`simultaneous: true`, no `accumulate`"))
