"""XLA: a graph as a JAX function, its parameters as JAX arrays."""

from .lower import lower
from .policy import Policy
from .rules import EXCLUDED, RULES
from .storage import Stored, from_logical, initial_states, initialise, shardings, storage, to_logical

__all__ = [
    "EXCLUDED",
    "RULES",
    "Policy",
    "Stored",
    "from_logical",
    "initial_states",
    "initialise",
    "lower",
    "shardings",
    "storage",
    "to_logical",
]
