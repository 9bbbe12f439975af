"""From files to a spec: sizes, extends, overrides, and the places that survive them."""

from __future__ import annotations

from pathlib import Path

import pytest

from planform.spec import (
    Diagnostics,
    Spec,
    SpecError,
    ast,
    dim_values,
    load,
    load_text,
    shipped,
    unparse,
)

BASE = """\
planform: 1
model: base
dims: {d: 8, e: 2 * d}
sizes:
  one: {layers: 1}
  two: {layers: 2, e: 5}
blocks:
  norm: rms_norm(1)
  layer(width, act=relu): norm >> linear(width) >> act
graphs:
  lm:
    inputs:
      x: float[batch, time, d]
    body: |
      y = x >> layer(e) ^ layers
sharding: {batch: data, d: fsdp}
train:
  data: arrays(x)
  loss: mse(lm(x).y, x)
  optimizer: adam(3e-4)
  batch: 16
"""


def sizes(spec: Spec) -> dict[str, int | float]:
    found = Diagnostics()
    values = dim_values(spec.dims, found)
    assert not found.found
    return values


def error(text: str = BASE, **options: object) -> tuple[str, str, str]:
    """The only finding's code, place and help."""
    with pytest.raises(SpecError) as raised:
        load_text(text, "base.yaml", **options)  # type: ignore[arg-type]
    (found,) = raised.value.diagnostics
    return found.code, str(found.span), found.help or ""


def test_the_parts_of_a_spec() -> None:
    spec = load_text(BASE, size="one")
    assert (spec.name, spec.size, spec.sizes) == ("base", "one", ("one", "two"))
    assert [p.name for p in spec.blocks["layer"].parameters] == ["width", "act"]
    assert spec.blocks["layer"].span.text == "layer"
    assert spec.blocks["glu"].prelude
    assert not spec.blocks["norm"].prelude
    assert spec.graphs["lm"].inputs["x"].dtype == "float"
    assert [(r.dim, r.axes) for r in spec.sharding] == [("batch", ("data",)), ("d", ("fsdp",))]
    assert spec.train is not None
    assert spec.train.values["batch"] == 16
    assert spec.train.spans["optimizer"].text == "adam(3e-4)"
    assert isinstance(spec.train.values["loss"], ast.Body)
    assert spec.spans["graphs.lm.inputs.x"].text == "float[batch, time, d]"
    assert spec.warnings == ()


def test_sizes_lie_over_dims_and_overrides_over_both() -> None:
    assert sizes(load_text(BASE, size="one")) == {"d": 8, "e": 16, "layers": 1}
    assert sizes(load_text(BASE, size="two")) == {"d": 8, "e": 5, "layers": 2}
    spec = load_text(BASE, size="two", overrides=["e=d + 1", "d=3"])
    assert sizes(spec) == {"d": 3, "e": 4, "layers": 2}
    assert [spec.dims[n].origin for n in ("d", "e", "layers")] == ["--set", "--set", "size two"]
    assert str(spec.dims["d"].span) == "<--set d=3>:1:1"


def test_a_size_must_be_chosen_unless_one_is_the_default() -> None:
    code, place, help = error()
    assert (code, place) == ("PF0214", "base.yaml:4:1")
    assert "one, two" in help
    assert error(size="twoo")[2] == "did you mean `two`?"
    assert load_text(BASE + "default: two\n").size == "two"
    assert error(BASE + "default: tow\n")[:2] == ("PF0214", "base.yaml:22:10")
    assert error("planform: 1\nmodel: m\ngraphs: {g: {inputs: {}, body: f}}\n", size="x")[0] == "PF0214"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dd=3", ("PF0207", "<--set dd=3>:1:1", "did you mean `d`?")),
        ("dims.dd=3", ("PF0207", "<--set dims.dd=3>:1:6", "did you mean `d`?")),
        ("blocks.nrm=id", ("PF0207", "<--set blocks.nrm=id>:1:8", "did you mean `norm`?")),
        ("trian.batch=3", ("PF0207", "<--set trian.batch=3>:1:1", "did you mean `train`?")),
        ("train.bach=3", ("PF0202", "<--set train.bach=3>:1:7", "did you mean `batch`?")),
        ("train.batch=x", ("PF0205", "<--set train.batch=x>:1:13", "")),
        ("train.batch=[1]", ("PF0205", "<--set train.batch=[1]>:1:7", "")),
        ("train.batch.x=1", ("PF0207", "<--set train.batch.x=1>:1:7", "")),
        ("blocks.norm=rms_norm(1", ("PF0120", "<--set blocks.norm=rms_norm(1>:1:21", "")),
        ("sharding.e=null", ("PF0206", "<--set sharding.e=null>:1:10", "only what")),
        ("sharding.d=[a", ("PF0101", "<--set sharding.d=[a>:1:12", "lists are")),
        ("d", ("PF0207", "<--set d>:1:1", "`--set d=512`")),
        ("d=", ("PF0205", "<--set d=>:1:1", "give it a value")),
    ],
)
def test_a_wrong_override_is_shown_in_its_own_text(text: str, expected: tuple[str, str, str]) -> None:
    code, place, help = error(size="one", overrides=[text])
    assert (code, place) == expected[:2]
    assert help.startswith(expected[2])


def test_overrides_reach_every_field() -> None:
    spec = load_text(
        BASE,
        size="one",
        overrides=[
            "train.batch=32",
            "train.evaluate.every=5",
            "sharding.d=null",
            "sharding.batch=[data, fsdp]",
            "blocks.layer=linear(width) >> act",
            "precision.compute=bfloat16",
        ],
    )
    assert spec.train is not None
    assert spec.train.values["batch"] == 32
    assert spec.train.values["evaluate"] == {"every": 5}
    assert [(r.dim, r.axes) for r in spec.sharding] == [("batch", ("data", "fsdp"))]
    assert [p.name for p in spec.blocks["layer"].parameters] == ["width", "act"]
    assert unparse(spec.blocks["layer"].body) == "linear(width) >> act"
    assert spec.precision is not None
    assert spec.precision.values == {"compute": "bfloat16"}


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def test_extends_merges_deeply_replaces_and_deletes(tmp_path: Path) -> None:
    child = """\
planform: 1
model: child
extends: base.yaml@two
dims: {d: 4}
blocks:
  layer(n): linear(n)
sharding: {d: null, time: sequence}
train: {batch: 2, optimizer: sgd(1)}
"""
    write(tmp_path, base=BASE, child=child)
    spec = load(tmp_path / "child.yaml")
    assert sizes(spec) == {"d": 4, "e": 5, "layers": 2}
    assert spec.sizes == ()  # the base's size is settled
    assert [p.name for p in spec.blocks["layer"].parameters] == ["n"]
    assert [r.dim for r in spec.sharding] == ["batch", "time"]
    assert spec.train is not None
    assert sorted(spec.train.values) == ["batch", "data", "loss", "optimizer"]
    # what was kept still points into the base
    assert spec.train.spans["loss"].source.name == str(tmp_path / "base.yaml")
    assert spec.train.spans["loss"].line == 19
    assert spec.train.spans["optimizer"].source.name == str(tmp_path / "child.yaml")


def test_extends_keeps_the_base_sizes_open_without_an_at(tmp_path: Path) -> None:
    write(tmp_path, base=BASE, child="planform: 1\nextends: base.yaml\nsizes: {two: {d: 1}, six: {layers: 6}}\n")
    spec = load(f"{tmp_path}/child.yaml@two")
    assert sizes(spec) == {"d": 1, "e": 5, "layers": 2}
    assert spec.sizes == ("one", "two", "six")


def test_extends_can_name_a_shipped_spec() -> None:
    spec = load_text("planform: 1\nmodel: tiny\nextends: gemma2@small\ndims: {layers: 2}\n")
    assert sizes(spec)["layers"] == 2


@pytest.mark.parametrize(
    ("files", "code", "place"),
    [
        ({"a": "planform: 1\nextends: a.yaml\n"}, "PF0209", "a.yaml:2:10"),
        ({"a": "planform: 1\nextends: b.yaml\n", "b": "planform: 1\nextends: a.yaml\n"}, "PF0209", "b.yaml:2:10"),
        ({"a": "planform: 1\nextends: bb.yaml\n", "b": "planform: 1\n"}, "PF0601", "a.yaml:2:10"),
        ({"a": "planform: 1\nextends: b.yaml\nmodle: x\n", "b": BASE}, "PF0214", "b.yaml:4:1"),
        ({"a": "planform: 1\nextends: b.yaml@tow\n", "b": BASE}, "PF0214", "a.yaml:2:10"),
        ({"a": "planform: 1\nextends: b.yaml\nsharding: {x: null}\n", "b": BASE}, "PF0206", "a.yaml:3:12"),
        ({"a": "planform: 2\nextends: b.yaml\n"}, "PF0201", "a.yaml:1:11"),
    ],
)
def test_extends_faults(tmp_path: Path, files: dict[str, str], code: str, place: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(SpecError) as raised:
        load(tmp_path / "a.yaml")
    (found,) = raised.value.diagnostics
    assert (found.code, str(found.span)) == (code, f"{tmp_path}/{place}")


def test_null_deletes_nothing_where_nothing_is_inherited() -> None:
    assert error(BASE.replace("d: fsdp", "d: null"), size="one")[:2] == ("PF0206", "base.yaml:16:25")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"planform: 1\nmodel: \xe9\n")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 3_000_000)
    for name, code in (("latin.yaml", "PF0603"), ("huge.yaml", "PF0602"), (".", "PF0601"), ("no.yaml", "PF0601")):
        with pytest.raises(SpecError) as raised:
            load(tmp_path / name)
        assert raised.value.diagnostics[0].code == code
    with pytest.raises(SpecError, match="did you mean `gemma2`"):
        load("gema2")
    with pytest.raises(SpecError, match=r"latin\.yaml"):
        load(tmp_path / "latn.yaml")


def test_null_characters_and_long_names_are_no_files() -> None:
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(SpecError) as raised:
            load(name)
        assert raised.value.diagnostics[0].code == "PF0601"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_spec_loads_in_every_size(name: str) -> None:
    with_default = load(name, size=None) if not offered(name) else None
    for spec in [load(name, size) for size in offered(name)] + ([with_default] if with_default else []):
        assert spec.warnings == ()
        assert sizes(spec)


def offered(name: str) -> tuple[str, ...]:
    try:
        return load(name).sizes
    except SpecError as e:
        return e.diagnostics[0].expected


def test_gemma2_is_short() -> None:
    text = shipped()["gemma2"].read_text(encoding="utf-8")
    model = text[: text.index("\ntrain:")]
    assert len(model.splitlines()) <= 45
    assert offered("gemma2") == ("2b", "9b", "27b", "small")
