"""Chat templates: a conversation as the text that a model was tuned on.

A template comes with a checkpoint and is a program in Jinja's language. It runs in Jinja's sandbox, where it reaches no
attribute that begins with an underscore, changes none of what it is given and has no files, with the helpers that
transformers gives it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.special import chat_template
from ..errors import UserError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, str]
"""`role` (user, assistant, system) and `content`."""

_PROBE = "PROBE"


class ChatTemplate:
    """A chat template, compiled.

    source    its text
    specials  how special tokens are written, by role: the template's variables `bos_token` and so on

    Raises: UserError for a template that isn't one.
    """

    def __init__(self, source: str, specials: Mapping[str, str]) -> None:
        import jinja2

        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(
                f"the chat template can't be read: {_sentence(error)}",
                help="write without --chat, or mend the template",
            ) from error
        self._specials = dict(specials)

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The conversation as text; `answer`: up to where the model's next turn begins.

        Raises: UserError where the template refuses it, or does what it may not.
        """
        given = [dict(m) for m in messages]
        try:
            return self._template.render(
                **self._specials, messages=given, tools=None, documents=None, add_generation_prompt=answer
            )
        except Exception as error:  # whatever a foreign program may raise
            raise UserError(
                f"the chat template refuses this conversation: {_sentence(error)}",
                help="templates differ in the roles they take; write without --system, or without --chat",
            ) from error

    def turn_end(self) -> str:
        """What follows an assistant's words: the token that ends a turn, and what the template puts behind it."""
        try:
            text = self.render([{"role": "user", "content": "-"}, {"role": "assistant", "content": _PROBE}], False)
        except UserError:
            return ""  # it takes no answers
        return text.rpartition(_PROBE)[2]


def load_template(folder: Path, specials: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template in a tokenizer's folder, or None. Raises: UserError for one that can't be read."""
    source = chat_template(folder)
    return None if source is None else ChatTemplate(source, specials)


def _environment() -> jinja2.Environment:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks an assistant's words for training; here they are text like any other."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(
        x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = as_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return made


def _sentence(error: BaseException) -> str:
    """The first line of what an exception says, which may come from the template and be anything."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text[:200].rstrip(".")
