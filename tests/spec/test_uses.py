"""`uses`: other specs by name, found from the file that names them, read when they are wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from planform.spec import Diagnostics, SpecError, check_names, load, load_text

GRAPH = """
graphs:
  lm:
    inputs:
      tokens: int[batch, time]
    body: y = tokens >> embed(table)
"""
TEACHER = "planform: 1\nmodel: {name}\ndims: {{vocab: 9, d: {d}}}\nparams:\n  table: {{shape: [vocab, d]}}\n" + GRAPH
STUDENT = TEACHER + "uses: {{teacher: {teacher}}}\ntrain: {{loss: |\n  {loss}\n}}\n"


def write(path: Path, text: str = TEACHER, **words: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {"name": path.stem, "d": 4, **words}
    path.write_text(text.format(**words).replace("{loss: |\n  ", "\n  loss: ").replace("\n}\n", "\n"))
    return path


def student(path: Path, teacher: str = "teacher.yaml", loss: str = "teacher.lm(tokens).y", **words: object) -> Path:
    return write(path, STUDENT, teacher=teacher, loss=loss, **words)


def test_a_file_beside_the_spec_a_shipped_name_and_a_size(tmp_path: Path) -> None:
    write(tmp_path / "teacher.yaml", d=7)
    spec = load(student(tmp_path / "student.yaml"))
    used = spec.uses["teacher"]
    assert (used.name, used.text, used.spec.name) == ("teacher", "teacher.yaml", "teacher")
    assert used.spec.dims["d"].value.value == 7  # its own dims, whatever they are called here
    shipped = load(student(tmp_path / "other.yaml", "gemma2@small")).uses["teacher"]
    assert (shipped.spec.name, shipped.spec.size) == ("gemma2", "small")
    assert shipped.graph() is shipped.graph("lm") is not None and shipped.graph("ml") is None


def test_what_extends_brings_is_found_from_where_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "below" / "teacher.yaml", d=7)
    write(tmp_path / "mine.yaml", d=8)
    student(tmp_path / "below" / "student.yaml")
    over = tmp_path / "over.yaml"
    over.write_text("planform: 1\nextends: below/student.yaml\nmodel: over\n")
    assert load(over).uses["teacher"].spec.dims["d"].value.value == 7
    over.write_text("planform: 1\nextends: below/student.yaml\nuses: {teacher: mine.yaml}\n")
    assert load(over).uses["teacher"].spec.dims["d"].value.value == 8
    again = load(tmp_path / "below" / "student.yaml", overrides=["uses.teacher=../mine.yaml"])
    assert again.uses["teacher"].spec.dims["d"].value.value == 8


def test_a_circle_through_others(tmp_path: Path) -> None:
    student(tmp_path / "a.yaml", "b.yaml")
    student(tmp_path / "b.yaml", "c.yaml")
    student(tmp_path / "c.yaml", "a.yaml")
    with pytest.raises(SpecError) as e:
        load(tmp_path / "a.yaml")
    (found,) = e.value.diagnostics
    assert found.code == "PF0209" and found.span is not None and found.span.source.name.endswith("c.yaml")
    assert len(found.notes) == 2


def test_a_used_spec_with_a_mistake_is_shown_in_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "teacher.yaml").write_text("planform: 1\nmodel: teacher\ngraph: {}\n")
    with pytest.raises(SpecError) as e:
        load(student(tmp_path / "student.yaml"))
    assert {d.span.source.name for d in e.value.diagnostics if d.span} == {str(tmp_path / "teacher.yaml")}


def test_a_trained_model_needs_no_teacher(tmp_path: Path) -> None:
    """What comes after training reads the spec alone: the used one may be gone, until it is asked for."""
    text = student(tmp_path / "student.yaml").read_text()
    spec = load_text(text, folder=tmp_path, complete=False)
    assert list(spec.graphs) == ["lm"]
    with pytest.raises(SpecError, match="there is no spec `teacher.yaml`"):
        _ = spec.uses["teacher"].spec
    with pytest.raises(SpecError, match="there is no spec"):
        load_text(text, folder=tmp_path)


@pytest.mark.parametrize("loss, codes", [
    ("teacher(tokens)", []),
    ("teacher.lm(tokens)", []),
    ("tokens >> teacher", []),
    ("tokens >> teacher.lm", []),
    ("teacher.lm(tokens).y", []),
    ("teacher.ml(tokens)", ["PF0225"]),
    ("teacher.lm(tokens).z", ["PF0225"]),
    ("teacher.lm()", ["PF0224"]),
    ("teacher(tokens, tokens)", ["PF0224"]),
    ("teecher.lm(tokens)", ["PF0220"]),
    ("teacher = tokens\n    teacher", []),  # a local name hides it, as it hides a block
])  # fmt: skip
def test_calls(tmp_path: Path, loss: str, codes: list[str]) -> None:
    write(tmp_path / "teacher.yaml")
    path = student(tmp_path / "student.yaml", loss="|\n    " + loss)
    found = Diagnostics()
    check_names(load(path), ["embed"], found)
    assert [d.code for d in found.found] == codes


def test_one_of_several_graphs_must_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "teacher.yaml")
    path.write_text(path.read_text() + GRAPH.replace("graphs:\n", "").replace("lm:", "other:"))
    found = Diagnostics()
    check_names(load(student(tmp_path / "student.yaml", loss="teacher(tokens)")), ["embed"], found)
    (one,) = found.found
    assert one.code == "PF0229" and one.help == "one of teacher.lm, teacher.other"
