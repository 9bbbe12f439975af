"""Text to checked spec: YAML with positions, the block algebra, schema, prelude, overrides, diagnostics."""

from . import ast
from .calls import no_such_graph, only_in_training, which_graph
from .diagnostics import (
    Diagnostic,
    Diagnostics,
    Note,
    SpecError,
    as_json,
    did_you_mean,
    in_order,
    render,
    suggest,
)
from .dims import dim_values, evaluate
from .expressions import parse_body, parse_expression, parse_signature, parse_tensor
from .find import shipped
from .load import load, load_text
from .model import (
    BlockDef,
    DimDef,
    GraphDef,
    ParamDef,
    Parameter,
    Section,
    ShardingRule,
    Spec,
    TensorDecl,
    Used,
)
from .names import check_names
from .prelude import prelude
from .schema import json_schema
from .scope import output_names, symbols
from .source import Source, Span
from .unparse import unparse

__all__ = [
    "BlockDef",
    "Diagnostic",
    "Diagnostics",
    "DimDef",
    "GraphDef",
    "Note",
    "ParamDef",
    "Parameter",
    "Section",
    "ShardingRule",
    "Source",
    "Span",
    "Spec",
    "SpecError",
    "TensorDecl",
    "Used",
    "as_json",
    "ast",
    "check_names",
    "did_you_mean",
    "dim_values",
    "evaluate",
    "in_order",
    "json_schema",
    "load",
    "load_text",
    "no_such_graph",
    "only_in_training",
    "output_names",
    "parse_body",
    "parse_expression",
    "parse_signature",
    "parse_tensor",
    "prelude",
    "render",
    "shipped",
    "suggest",
    "symbols",
    "unparse",
    "which_graph",
]
