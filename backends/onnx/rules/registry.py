"""The table of lowering rules: one a family of ops, one file a family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planform.compiler.ir import Node

from ..emitter import Emitter

Rule = Callable[..., Any]
"""(emitter, node of the IR, its inputs as ONNX values..) -> the ONNX value of its result, or a tuple."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule for one or several ops. Raises: ValueError when one has a rule already."""

    def add(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"op `{name}` has an ONNX rule already")
            RULES[name] = function
        return function

    return add


EXCLUDED: dict[str, str] = {
    "cross_entropy": "training only: an artefact gives logits",
    "linear_cross_entropy": "training only: an artefact gives logits",
    "linear_soft_cross_entropy": "training only: an artefact gives logits",
    "accuracy": "training only: an artefact gives logits",
    "psnr": "training only: an artefact gives the signal",
    "count_targets": "training only: weighs the loss of a batch",
}

__all__ = ["EXCLUDED", "RULES", "Emitter", "Node", "Rule", "rule"]
