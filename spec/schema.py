"""The shape of a spec document, as pydantic models: one place for its keys and their meaning.

The models check plain parts (what is a mapping, a list, a number, a word) and give the JSON schema for
editors. Expressions pass through as text; `build.py` parses them where a field is marked `Form`.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError


class Form(Enum):
    """How the text of a field is parsed."""

    EXPRESSION = "expression"
    BODY = "body"
    TENSOR = "tensor"


NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
SIGNATURE = r"^[A-Za-z_][A-Za-z0-9_]*(\s*\(.*\))?$"
_SIZE = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"

DTYPES = (
    "float", "int", "bool",
    "float16", "bfloat16", "float32", "float64", "int8", "int32", "int64", "uint8",
)  # fmt: skip
"""What an input's type can be: a kind whose width `precision` decides, or an exact one."""

DRAWS = ("normal", "uniform", "category")
"""What `sample` can draw."""


def _scalar(value: Any) -> Any:
    if isinstance(value, (str, int, float)):
        return value
    raise PydanticCustomError("expression", "an expression")


def _text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    raise PydanticCustomError("text", "text that holds an expression")


def _one_or_more(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, str) for item in items):
        return value
    raise PydanticCustomError("words", "a word or a list of words")


_EXPRESSION_SCHEMA = WithJsonSchema({"type": ["string", "number", "boolean"], "description": "an expression"})
_TEXT_SCHEMA = WithJsonSchema({"type": "string", "description": "`name = expr` lines and a last expression"})
_WORDS_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
)

Expression = Annotated[Any, BeforeValidator(_scalar), _EXPRESSION_SCHEMA, Form.EXPRESSION]
BodyText = Annotated[Any, BeforeValidator(_text), _TEXT_SCHEMA, Form.BODY]
TensorText = Annotated[
    Any,
    BeforeValidator(_text),
    WithJsonSchema({"type": "string", "pattern": r"^\s*[A-Za-z_][A-Za-z0-9_]*\s*\[[\s\S]*\]\s*$"}),
    Form.TENSOR,
]
Words = Annotated[Any, BeforeValidator(_one_or_more), _WORDS_SCHEMA]
SizeName = Annotated[str, StringConstraints(pattern=_SIZE)]
Signature = Annotated[str, StringConstraints(pattern=SIGNATURE)]
Word = Annotated[str, StringConstraints(pattern=NAME)]
Count = Annotated[int, Field(ge=1, le=2**40)]
FloatType = Literal["float16", "bfloat16", "float32", "float64"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Param(_Strict):
    """A tensor that several places share."""

    shape: list[Expression] = Field(description="One size per dim: names from `dims`, numbers or arithmetic.")
    init: Expression | None = Field(None, description="An initializer, such as `normal(0.02)`.")


class Graph(_Strict):
    """A function from input tensors to output tensors; it owns its parameters."""

    inputs: dict[Word, TensorText] = Field(description="Each input as `dtype[dim, dim]`: `int[batch, time]`.")
    body: BodyText = Field(description="`name = expr` lines; the last name is the output unless `outputs` says.")
    outputs: list[Word] | None = Field(None, description="The names of the body that callers see.")
    stream: Word | None = Field(None, description="The sequence axis, where it isn't evident.")


class Inner(_Strict):
    """An optimization inside the loss; it reduces over everything but `batch`."""

    variable: Word = Field(description="The input that is fitted; after the loop it means the fitted value.")
    start: Expression = Field(description="Its value before the first step: `zeros`, a number or a tensor.")
    steps: Count = Field(description="Gradient steps.")
    rates: Expression = Field(description="Step sizes: a number, a tensor or `learned(variable)`.")
    loss: BodyText = Field(description="What the steps minimise, for each entry of `batch` by itself.")
    first_order: bool | None = Field(None, description="Outer gradients take the inner ones as constants.")
    remat: bool | None = Field(None, description="A step is computed again for the outer gradient, not kept.")


class Update(_Strict):
    """One optimizer with its loss, in a training program of several."""

    params: Words | None = Field(None, description="Selectors of what it changes: a graph, a path glob, `kind:...`.")
    sample: dict[Word, TensorText] | None = Field(None, description="Fresh draws: `z: normal[batch, noise]`.")
    inner: Inner | None = Field(None, description="An optimization inside the loss.")
    loss: BodyText = Field(description="What is minimised; the value of the last expression.")
    priority: BodyText | None = Field(
        None, description="How much there was to learn from each entry of the batch, for a replay that draws by it; it "
        "may name what the loss defines."
    )  # fmt: skip
    optimizer: Expression = Field(description="`adamw(3e-4)`, with a schedule in place of the rate if wanted.")
    repeat: Count | None = Field(None, description="How often it runs per step, each with fresh data and draws.")


class Evaluate(_Strict):
    """When the held-out loss is measured."""

    every: Count | None = Field(None, description="Steps between two evaluations.")
    batches: Count | None = Field(None, description="Batches that one evaluation averages over.")
    loss: BodyText | None = Field(None, description="What is measured, where that isn't what is minimised.")
    metrics: dict[Word, BodyText] | None = Field(None, description="What else is measured, by name.")


class Sample(_Strict):
    """How samples are made: at once, or as a variable that is carried from noise to a sample, step by step."""

    draws: dict[Word, TensorText] | None = Field(
        None, description="Fresh draws of a sample, or of a step: `z: normal[batch, noise]`."
    )
    value: BodyText | None = Field(None, description="A sample, at once, from draws and what is given.")
    variable: Word | None = Field(None, description="An input of a graph, which steps carry to a sample.")
    start: Literal["normal", "uniform", "zeros"] | None = Field(None, description="What it starts from.")
    steps: Count | None = Field(None, description="Steps of equal length from `now` = 1 to 0.")
    step: BodyText | None = Field(None, description="The variable at `after`, from it at `now`.")


class Checkpoint(_Strict):
    """When the state is saved."""

    every: Count | None = Field(None, description="Steps between two saves.")
    keep: Count | None = Field(None, description="How many are kept.")


class Train(_Strict):
    """How the model learns: data, losses and optimizers."""

    data: Expression | None = Field(None, description="The source and the names of its fields: `text(tokens)`.")
    loss: BodyText | None = Field(None, description="What is minimised; the value of the last expression.")
    priority: BodyText | None = Field(None, description="How much there was to learn from each entry of the batch.")
    optimizer: Expression | None = Field(None, description="`adamw(3e-4, weight_decay=0.1, clip=1.0)`.")
    batch: Count | None = Field(None, description="Global examples per step, over all devices.")
    steps: Count | None = Field(None, description="Optimizer steps.")
    accumulate: Count | None = Field(None, description="Parts that a batch is split into, one after another.")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = Field(None, description="Where all randomness starts.")
    params: Words | None = Field(None, description="Selectors of what is trained; everything unless written.")
    sample: dict[Word, TensorText] | None = Field(None, description="Fresh draws: `z: normal[batch, noise]`.")
    inner: Inner | None = Field(None, description="An optimization inside the loss.")
    repeat: Count | None = Field(None, description="How often the update runs per step.")
    targets: dict[Word, Expression] | None = Field(None, description="Slow copies: `slow: copy(actor, every=100)`.")
    simultaneous: bool | None = Field(None, description="All gradients from the parameters before the step.")
    updates: dict[Word, Update] | None = Field(None, description="Several updates, run in the order written.")
    evaluate: Evaluate | None = Field(None, description="When the held-out loss is measured.")
    checkpoint: Checkpoint | None = Field(None, description="When the state is saved.")


class Precision(_Strict):
    """Floating point types of what is stored and computed."""

    parameters: FloatType | None = Field(None, description="Of the parameters and the optimizer's state.")
    compute: FloatType | None = Field(None, description="Of activations and matrix products.")
    state: FloatType | None = Field(None, description="Of streaming state such as a KV cache.")


class WeightsFormat(_Strict):
    """One other library's checkpoints."""

    architecture: str | None = Field(None, description="What the library calls this architecture.")
    config: dict[str, Any] | None = Field(
        None,
        description="Fields of its configuration: the name of a dim, or the value the field must have; "
        "a list is cycled through the layers.",
    )
    tensors: dict[str, str] = Field(
        description="Parameter paths, `[*]` for every layer, to tensor names, with `*` for the same number; "
        '`name >> "(h e) d -> d h e"` where the layout differs; `name[0]`, `name[*]` for an entry of the first dim.'
    )
    ignore: list[str] | None = Field(None, description="Tensors of theirs that hold nothing new.")


class Document(_Strict):
    """A Planform spec."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Planform spec")

    planform: Literal[1] = Field(description="The language's version.")
    model: str = Field(description="The model's name.")
    paper: str | None = Field(None, description="Where it is described: an arXiv number or an address.")
    extends: str | None = Field(None, description="Another spec that this one changes: a file or a shipped name.")
    uses: dict[Word, str] | None = Field(
        None, description="Other specs by name, whose graphs `train` can call: a frozen teacher."
    )
    dims: dict[Word, Expression] | None = Field(None, description="Named sizes: numbers, or arithmetic on others.")
    sizes: dict[SizeName, dict[Word, Expression]] | None = Field(
        None, description="Variants, each with dims of its own; `model@size` picks one."
    )
    default: str | None = Field(None, description="The size that is meant when none is asked for.")
    params: dict[Word, Param] | None = Field(None, description="Tensors that several places share.")
    blocks: dict[Signature, BodyText] | None = Field(
        None,
        description="Functions of a tensor: `name: expr` or `name(parameter, other=default): expr`.",
    )
    graphs: dict[Word, Graph] = Field(description="What is compiled: functions with named inputs and outputs.")
    sharding: dict[Word, Words] | None = Field(None, description="Dim names to mesh axes; earlier entries win.")
    train: Train | None = Field(None, description="How the model learns.")
    sample: Sample | None = Field(None, description="How samples are made.")
    precision: Precision | None = Field(None, description="Floating point types.")
    weights: dict[Word, WeightsFormat] | None = Field(
        None, description="How other libraries name and lay out the parameters, by format: `huggingface`, `deepmind`."
    )


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a spec, for editors."""
    whole = Document.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_nullable(whole),
        "required": ["planform"],
        # What a spec extends brings the rest, down to the parts of a graph.
        "anyOf": [{"required": ["extends"]}, _demands(whole, whole["$defs"])],
    }


def _demands(node: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """What must be there, and nothing else of a schema."""
    if "$ref" in node:
        return _demands(definitions[node["$ref"].rpartition("/")[2]], definitions)
    found: dict[str, Any] = {}
    for choice in node.get("anyOf", ()):
        found |= _demands(choice, definitions)
    if "required" in node:
        found["required"] = node["required"]
    for kind in ("properties", "patternProperties"):
        if inner := {k: d for k, v in node.get(kind, {}).items() if (d := _demands(v, definitions))}:
            found[kind] = inner
    return found


def _nullable(node: Any) -> Any:
    """Null deletes what `extends` brought in, so it may stand for any value; what must be there says `_demands`."""
    if isinstance(node, list):
        return [_nullable(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {
        key: _nullable(value)
        for key, value in node.items()
        if not (key == "default" and value is None) and not (key == "required" and isinstance(value, list))
    }
    null = {"type": "null"}
    if isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = {"anyOf": [out["additionalProperties"], null]}
    if "patternProperties" in out:
        out["patternProperties"] = {k: {"anyOf": [v, null]} for k, v in out["patternProperties"].items()}
        out["additionalProperties"] = False
    return out
