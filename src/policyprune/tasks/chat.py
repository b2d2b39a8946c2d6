"""Conversations as the chat template of a tokenizer sets them."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from policyprune.errors import UsageError, describe
from policyprune.storage.sources import locate
from policyprune.tasks.tables import NoTableError, in_one_line, named, text_of

DATE = {"%d": "26", "%B": "July", "%b": "Jul", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
TODAY = (  # to templates that ask for the date, so that a conversation is the same text every day
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{code}', '{words}')" for code, words in DATE.items())
    + " }}{%- endmacro %}"
)


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer, and the Jinja template that it sets conversations by."""

    tokenizer: PreTrainedTokenizerBase
    template: str

    @property
    def digest(self) -> str:
        """What a record calls the template."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:12]

    def text(self, messages: list[dict[str, Any]], where: str, answer: bool = False) -> str:
        """The text of messages; `answer`: as far as the beginning of the assistant's next one.

        NoTableError, naming `where` they stand, for those that the template refuses.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=TODAY * ("strftime_now" in self.template) + self.template,
                tokenize=False,
                add_generation_prompt=answer,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise NoTableError(f"has {where}, which the chat template refuses: {describe(error)}") from error
        assert isinstance(text, str)
        return text


def template_of(tokenizer: PreTrainedTokenizerBase, file: str | None = None) -> ChatTemplate:
    """The template in a file, or the tokenizer's own. UsageError where there is none."""
    if file is not None:
        path = locate("task.template", file)
        if path is None:
            raise UsageError(f"task.template: {file!r} does not exist")
        with in_one_line("task.template", file):
            return ChatTemplate(tokenizer, text_of(path))
    try:
        return ChatTemplate(tokenizer, tokenizer.get_chat_template())
    except ValueError as error:
        raise UsageError(
            "task.template: this tokenizer has no chat template; take an instruct model, which has one, or name a file "
            "with one (Jinja)"
        ) from error


def messages_of(content: Any, where: str) -> list[dict[str, Any]]:
    """The messages of a conversation, without what is null in them; NoTableError where they are none."""
    if not isinstance(content, list) or not content:
        found = "an empty list" if content == [] else named(content)
        raise NoTableError(f"holds {found} as {where}, where a list of messages is meant")
    for number, message in enumerate(content, 1):
        if not isinstance(message, dict):
            raise NoTableError(f"holds {named(message)} as message {number} of {where}, where an object is meant")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise NoTableError(
                    f"holds {named(message.get(key))} as {key!r} of message {number} of {where}, where a text is meant"
                )
    return [{key: value for key, value in message.items() if value is not None} for message in content]


def key_of(messages: list[dict[str, Any]]) -> str:
    """What a conversation is hashed by, whatever the template: who says what."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
