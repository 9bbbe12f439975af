"""The document's shape, and its JSON schema for editors."""

from __future__ import annotations

import re
from typing import Any

import pytest

from planform.spec import SpecError, json_schema, load_text, shipped
from planform.spec.document import plain
from planform.spec.source import Source
from planform.spec.yaml import parse

GRAPH = "graphs:\n  g:\n    inputs: {x: 'float[batch]'}\n    body: x >> f\n"


def findings(text: str) -> list[tuple[str, str, str | None]]:
    with pytest.raises(SpecError) as error:
        load_text(text, "t")
    return [(d.code, str(d.span), d.help) for d in error.value.diagnostics]


@pytest.mark.parametrize(
    ("text", "code", "place", "help"),
    [
        ("model: m\n" + GRAPH, "PF0201", "t:1:1", "start with `planform: 1`"),
        ("planform: '1'\nmodel: m\n" + GRAPH, "PF0201", "t:1:12", None),
        ("planform: 7\nnew: stuff\n", "PF0201", "t:1:11", None),
        ("planform: 1\n" + GRAPH, "PF0204", "t:1:1", "add `model: NAME`"),
        ("planform: 1\nmodel: m\n", "PF0204", "t:1:1", "a spec has at least one graph"),
        ("planform: 1\nmodel: m\nblock: {}\n" + GRAPH, "PF0202", "t:3:1", "did you mean `blocks`?"),
        ("planform: 1\nmodel: m\noptimizer: x\n" + GRAPH, "PF0202", "t:3:1", "`optimizer` belongs under `train`"),
        ("planform: 1\nmodel: m\ntrain: {evaluate: {evry: 1}}\n" + GRAPH, "PF0202", "t:3:20", "did you mean `every`?"),
        (
            "planform: 1\nmodel: m\ntrain: {updates: {u: {los: a, optimizer: b}}}\n" + GRAPH,
            "PF0202", "t:3:23", "did you mean `loss`?",
        ),
        ("planform: 1\nmodel: m\ngraphs: {g: {input: {}}}\n", "PF0202", "t:3:14", "did you mean `inputs`?"),
        ("planform: 1\nmodel: m\ntrain: {seed: -1}\n" + GRAPH, "PF0205", "t:3:15", None),
        ("", "PF0201", "t:1:1", "start with `planform: 1`"),
        ("# nothing yet\n", "PF0201", "t:1:1", "start with `planform: 1`"),
        ("---\n", "PF0101", "t:2:1", "start with `planform: 1`"),
        ("planform: 1\nmodel: 7\n" + GRAPH, "PF0205", "t:2:8", "put it in quotes"),
        ("planform: 1\nmodel:\n" + GRAPH, "PF0205", "t:2:1", "give it a value"),
        ("planform: 1\nmodel: m\ndims: [a]\n" + GRAPH, "PF0205", "t:3:1", "write `key: value` lines"),
        ("planform: 1\nmodel: m\ndims: {2d: 3}\n" + GRAPH, "PF0203", "t:3:8", "names hold letters"),
        ("planform: 1\nmodel: m\nblocks: {a-b: id}\n" + GRAPH, "PF0203", "t:3:10", "write `name` or"),
        ("planform: 1\nmodel: m\nblocks: {a: 3}\n" + GRAPH, "PF0205", "t:3:13", None),
        ("planform: 1\nmodel: m\nblocks: {a: [x]}\n" + GRAPH, "PF0205", "t:3:10", "YAML read a list here"),
        ("planform: 1\nmodel: m\nblocks:\n  a:\n    b: c\n" + GRAPH, "PF0205", "t:4:3", "YAML read a mapping"),
        ("planform: 1\nmodel: m\ntrain: {simultaneous: yes}\n" + GRAPH, "PF0205", "t:3:23", "YAML 1.2 knows no"),
        ("planform: 1\nmodel: m\ntrain: {batch: 0}\n" + GRAPH, "PF0205", "t:3:16", None),
        ("planform: 1\nmodel: m\ntrain: {batch: 1.5}\n" + GRAPH, "PF0205", "t:3:16", None),
        ("planform: 1\nmodel: m\ntrain: {batch: true}\n" + GRAPH, "PF0205", "t:3:16", None),
        ("planform: 1\nmodel: m\ntrain: {steps: 9999999999999}\n" + GRAPH, "PF0115", "t:3:16", "whole numbers"),
        (
            "planform: 1\nmodel: m\nprecision: {compute: bfloat}\n" + GRAPH,
            "PF0205", "t:3:22", "did you mean `bfloat16`?",
        ),
        ("planform: 1\nmodel: m\nsharding: {d: [1]}\n" + GRAPH, "PF0205", "t:3:12", None),
        ("planform: 1\nmodel: m\nweights: {a: [x]}\n" + GRAPH, "PF0205", "t:3:11", "write `key: value` lines"),
        ("planform: 1\nmodel: m\nparams: {t: {init: zeros}}\n" + GRAPH, "PF0204", "t:3:10", None),
        ("planform: 1\nmodel: m\ngraphs: {g: {inputs: {}}}\n", "PF0204", "t:3:10", None),
        ("planform: 1\nmodel: m\ngraphs: {g: {inputs: {x: 'flot[b]'}, body: x}}\n", "PF0208", "t:3:27",
         "did you mean `float`?"),
        ("planform: 1\nmodel: m\ntrain: {loss: x, optimizer: y, updates: {u: {loss: x, optimizer: y}}}\n" + GRAPH,
         "PF0505", "t:3:15", "each update has"),
    ],
)  # fmt: skip
def test_faults(text: str, code: str, place: str, help: str | None) -> None:
    found = findings(text)
    assert (code, place) in [(c, p) for c, p, _ in found]
    said = next(h for c, p, h in found if (c, p) == (code, place))
    assert said is None if help is None else (said or "").startswith(help)


def test_several_faults_in_the_order_of_the_file() -> None:
    text = "planform: 1\nmodel: m\nblock: {}\ndims: {a: 3 +}\nsizes: {}\ntrain: {batch: x}\n" + GRAPH
    assert [(c, p) for c, p, _ in findings(text)] == [
        ("PF0202", "t:3:1"),
        ("PF0111", "t:4:13"),
        ("PF0205", "t:6:16"),
    ]


def test_train_holds_parsed_expressions_of_every_form() -> None:
    spec = load_text(
        "planform: 1\nmodel: m\ntrain:\n  updates:\n    u:\n      sample:\n        z: normal[2 * batch, 3]\n"
        "      loss: |\n        q = g(z)\n        q ^ 2\n      optimizer: adam(1)\n      params: [g, 'g.*']\n"
        "      repeat: 5\n      inner: {variable: z, start: zeros, steps: 3, rates: 0.1, loss: g(z)}\n" + GRAPH
    )
    assert spec.train is not None
    update = spec.train.values["updates"]["u"]
    assert update["sample"]["z"].dtype == "normal"
    assert [s.name for s in update["loss"].statements] == ["q", None]
    assert update["params"] == ["g", "g.*"]
    assert update["inner"]["steps"] == 3
    assert spec.train.spans["updates.u.inner.rates"].text == "0.1"


def valid(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    """Whether a value satisfies a JSON schema: the part of the standard that ours uses, and nothing else."""
    if isinstance(schema, bool):
        return schema
    known = {"$ref", "type", "properties", "patternProperties", "additionalProperties", "required", "items",
             "anyOf", "enum", "const", "pattern", "minimum", "maximum", "minItems", "title", "description",
             "$schema", "$defs", "propertyNames"}  # fmt: skip
    assert set(schema) <= known, set(schema) - known
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None),
             "number": (int, float)}  # fmt: skip
    if "$ref" in schema and not valid(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root):
        return False
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(isinstance(value, types[n]) and (n == "boolean" or type(value) is not bool) for n in names):
            return False
    if "anyOf" in schema and not any(valid(value, s, root) for s in schema["anyOf"]):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, (int, float)):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if isinstance(value, list):
        items = all(valid(v, schema.get("items", True), root) for v in value)
        return items and len(value) >= schema.get("minItems", 0)
    if isinstance(value, dict):
        if not set(schema.get("required", [])) <= set(value):
            return False
        for key, inner in value.items():
            if not valid(key, schema.get("propertyNames", True), root):
                return False
            matching = [s for p, s in schema.get("patternProperties", {}).items() if re.search(p, key)]
            if key in schema.get("properties", {}):
                matching.append(schema["properties"][key])
            if not all(valid(inner, s, root) for s in matching or [schema.get("additionalProperties", True)]):
                return False
    return True


def editor_accepts(text: str) -> bool:
    schema = json_schema()
    return valid(plain(parse(Source("t", text))), schema, schema)


def test_json_schema_describes_every_field() -> None:
    schema = json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    for thing in [schema, *schema["$defs"].values()]:
        assert thing["additionalProperties"] is False
        for name, field in thing["properties"].items():
            assert field.get("description"), name


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_specs_satisfy_the_json_schema(name: str) -> None:
    assert editor_accepts(shipped()[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("planform: 1\nmodel: m\n" + GRAPH, True),
        ("planform: 1\nextends: base\nsharding: {d: null}\ntrain: null\nblocks: {'f(x)': null}\n", True),
        ("planform: 1\nextends: base\ngraphs: {lm: {body: a}}\n", True),
        ("planform: 1\nmodel: m\ngraphs: {lm: {body: a}}\n", False),
        ("planform: 1\n" + GRAPH, False),
        ("planform: 2\nmodel: m\n" + GRAPH, False),
        ("planform: 1\nmodel: m\nblock: {}\n" + GRAPH, False),
        ("planform: 1\nmodel: m\nblocks: {'f x': id}\n" + GRAPH, False),
        ("planform: 1\nmodel: m\nblocks: {'f(x, y=3)': id}\n" + GRAPH, True),
        ("planform: 1\nmodel: m\nblocks: {f: [id]}\n" + GRAPH, False),
        ("planform: 1\nmodel: m\nsharding: {d: [a, b], e: c}\n" + GRAPH, True),
        ("planform: 1\nmodel: m\nsharding: {d: []}\n" + GRAPH, False),
        ("planform: 1\nmodel: m\nsharding: {d e: a}\n" + GRAPH, False),
        ("planform: 1\nmodel: m\ntrain: {batch: 0}\n" + GRAPH, False),
        ("planform: 1\nmodel: m\ntrain: {updates: {u: {loss: a}}}\n" + GRAPH, False),
        ("planform: 1\nmodel: m\nprecision: {compute: float8}\n" + GRAPH, False),
    ],
)
def test_the_editor_and_we_agree(text: str, accepted: bool) -> None:
    assert editor_accepts(text) == accepted
    if "extends" not in text:
        try:
            load_text(text)
        except SpecError:
            assert not accepted
        else:
            assert accepted
