"""Chat templates: transformers renders and encodes the same; a hostile one gets nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.chat_folder import TEMPLATE, json_folder, pieces_folder

from planform.runtime.data import load_tokenizer
from planform.runtime.errors import UserError
from planform.runtime.generation.chat import ChatTemplate, load_template
from planform.runtime.generation.model import Model

TALKS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "hi there"}],
    [{"role": "user", "content": "  how now\n"}, {"role": "assistant", "content": "brown cow "},
     {"role": "user", "content": "größe 🙂 {{ bos_token }} <b> & 'x'"}],
    [{"role": "user", "content": "the end <end_of_turn>"}, {"role": "assistant", "content": ""}],
]  # fmt: skip
OTHERS = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "helpers": "{{ bos_token }}{{ messages | tojson }} {{ messages | tojson(indent=2) }} {{ strftime_now('%Y') }}"
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content[:3] }}{% endfor %}",
    "blocks": "  {% if true %}\n  a\n  {% endif %}\n{% generation %}b{% endgeneration %}\n",
    "tools": "{{ tools is none }}{{ documents is none }}{{ nonsense is defined }}",
    "state": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
}


def model(folder: Path) -> Model:
    tokenizer = load_tokenizer(folder)
    return Model(decoder=None, tokenizer=tokenizer, template=load_template(folder, tokenizer.specials))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[False, True], ids=["in the settings", "apart"])
def words(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return json_folder(tmp_path_factory.mktemp("json"), apart=request.param)


@pytest.mark.parametrize("talk", TALKS, ids=["one", "three", "answered"])
def test_transformers_renders_and_encodes_the_same(words: Path, talk: list[dict[str, str]]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(words)
    ours = model(words)
    want = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert ours.template and ours.template.render(talk) == want
    assert ours.template.render(talk, answer=False) == theirs.apply_chat_template(talk, tokenize=False)
    ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert ours.conversation(talk).tolist() == ids
    assert ids.count(theirs.bos_token_id) == 1 and ids[0] == ours.tokenizer.bos


@pytest.mark.parametrize("name", OTHERS)
def test_transformers_renders_other_templates_the_same(words: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(words)
    ours = ChatTemplate(OTHERS[name], load_tokenizer(words).specials)
    for talk in TALKS:
        want = theirs.apply_chat_template(talk, chat_template=OTHERS[name], tokenize=False, add_generation_prompt=True)
        assert ours.render(talk) == want


def test_pieces_are_encoded_by_their_marks(tmp_path: Path) -> None:
    """bos is a control piece, which no text holds; the marks of turns are pieces of their own."""
    ours = model(pieces_folder(tmp_path / "a", apart=True))
    ids = ours.conversation(TALKS[0]).tolist()
    start, end = ours.tokenizer.token("<start_of_turn>"), ours.tokenizer.token("<end_of_turn>")
    assert ids[:2] == [ours.tokenizer.bos, start] and ids.count(2) == 1 and ids.count(end) == 1
    text = "".join(load_tokenizer(tmp_path / "a").decode(ids))
    assert text == "<start_of_turn>user\nhi there<end_of_turn>\n<start_of_turn>model\n"


def test_bos_stands_once_where_the_template_has_none(words: Path) -> None:
    ours = model(words)
    without = Model(ours.decoder, ours.tokenizer, ChatTemplate(TEMPLATE.partition("\n")[2], ours.tokenizer.specials))
    assert without.conversation(TALKS[1]).tolist() == ours.conversation(TALKS[1]).tolist()
    assert ours.prompt("hi").tolist() == ours.prompt("<bos>hi").tolist()


def test_a_tokenizer_that_adds_no_bos(tmp_path: Path) -> None:
    folder = json_folder(tmp_path / "words")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": False}))
    ours = model(folder)
    assert ours.prompt("hi").tolist() == ours.tokenizer.encode("hi").tolist()
    assert ours.conversation(TALKS[0])[0] == ours.tokenizer.token("<bos>")  # the template writes it all the same


@pytest.mark.parametrize(
    ("template", "end"),
    [(TEMPLATE, "<end_of_turn>"), ("{{ messages[-1].content }} <eos>", "<eos>"), (OTHERS["chatml"], None),
     ("{{ messages[-1].content }}\n", None), ("{{ raise_exception('never') }}", None)],
)  # fmt: skip
def test_the_token_that_ends_a_turn_is_the_templates(words: Path, template: str, end: str | None) -> None:
    ours = model(words)
    found = Model(ours.decoder, ours.tokenizer, ChatTemplate(template, ours.tokenizer.specials), frozenset([9]))
    assert found.turn_ends() == {9, *([ours.tokenizer.token(end)] if end else [])}


def test_the_default_of_several_templates(tmp_path: Path) -> None:
    folder = json_folder(tmp_path / "words", template=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": several}))
    assert (
        model(folder).conversation(TALKS[0]).tolist()
        == model(json_folder(tmp_path / "b")).conversation(TALKS[0]).tolist()
    )


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__globals__ }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ '{0.__class__.__base__}'.format(messages) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ messages.append({'role': 'user'}) }}",
    "{% set _ = messages[0].update({'content': 'x'}) %}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ undefined.attribute }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_gets_nowhere(source: str) -> None:
    """One sentence, and nothing of the machine in it. What an attribute with an underscore gives is nothing at all."""
    talk = [{"role": "user", "content": "hi"}]
    try:
        text = ChatTemplate(source, {}).render(talk)
    except UserError as error:
        assert error.message.startswith("the chat template refuses") and "\n" not in error.message and error.help
        assert "root:" not in error.message
    else:
        assert text == "", text
    assert talk == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("source", ["{{ messages", "{% for %}", "{% nonsense %}", "{{ " + "(" * 5000])
def test_a_template_that_is_none_is_told(source: str) -> None:
    with pytest.raises(UserError, match="can't be read"):
        ChatTemplate(source, {})


def test_a_refusal_is_told_in_the_templates_words(words: Path) -> None:
    with pytest.raises(UserError, match="there is no system in this house"):
        model(words).conversation([{"role": "system", "content": "be kind"}, *TALKS[0]])


def test_a_model_without_a_template_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        model(json_folder(tmp_path / "words", template=None)).conversation(TALKS[0])
