"""Graphs as ONNX models for plain onnxruntime: lowering, export with its contract, and running."""

from .contract import Fixture, Verdict, difference, reference_fixture, verify_contract
from .emitter import CannotLower
from .genai import Generation
from .lowering import Lowered, lower
from .quantization import Quantization, Scheme
from .rules import EXCLUDED, RULES, rule
from .session import Session, intermediates, load, run
from .writing import export

__all__ = [
    "EXCLUDED",
    "RULES",
    "CannotLower",
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
    "verify_contract",
]
