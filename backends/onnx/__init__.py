"""Graphs as ONNX models for plain onnxruntime: lowering, export with its contract, and running.

Names are imported when they are first asked for: running an exported model loads no compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import Fixture, Verdict, difference, reference_fixture, valid_entries, verify_contract
    from .divergence import METRICS, Divergence
    from .emitter import CannotLower
    from .genai import Generation
    from .lowering import Lowered, lower
    from .prepared import discard
    from .quantization import PLAIN, Quantization, Scheme
    from .rules import EXCLUDED, RULES, rule
    from .session import MODEL, Session, intermediates, load, prepare, run
    from .writing import export, save

_MODULES = {
    "contract": "Fixture Verdict difference reference_fixture valid_entries verify_contract",
    "divergence": "METRICS Divergence",
    "emitter": "CannotLower",
    "genai": "Generation",
    "lowering": "Lowered lower",
    "prepared": "discard",
    "quantization": "PLAIN Quantization Scheme",
    "rules": "EXCLUDED RULES rule",
    "session": "MODEL Session intermediates load prepare run",
    "writing": "export save",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


__all__ = [
    "EXCLUDED",
    "METRICS",
    "MODEL",
    "PLAIN",
    "RULES",
    "CannotLower",
    "Divergence",
    "Fixture",
    "Generation",
    "Lowered",
    "Quantization",
    "Scheme",
    "Session",
    "Verdict",
    "difference",
    "discard",
    "export",
    "intermediates",
    "load",
    "lower",
    "prepare",
    "reference_fixture",
    "rule",
    "run",
    "save",
    "valid_entries",
    "verify_contract",
]
