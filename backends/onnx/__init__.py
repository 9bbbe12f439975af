"""Graphs as ONNX models for plain onnxruntime: lowering, export with its contract, and running."""

from .contract import Fixture, Verdict, difference, reference_fixture, valid_entries, verify_contract
from .divergence import METRICS, Divergence
from .emitter import CannotLower
from .genai import Generation
from .lowering import Lowered, lower
from .quantization import PLAIN, Quantization, Scheme
from .rules import EXCLUDED, RULES, rule
from .session import MODEL, Session, intermediates, load, run
from .writing import export, save

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
    "export",
    "intermediates",
    "load",
    "lower",
    "reference_fixture",
    "rule",
    "run",
    "save",
    "valid_entries",
    "verify_contract",
]
