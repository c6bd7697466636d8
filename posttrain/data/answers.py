"""Demonstrations that are a message of the assistant: tool calls, a thought and whatever else a template reads.

The demonstration's column holds a text, which rewards and reports read. Where the cell was a message with more than
role and content, the whole message goes along in the row's `assistant_messages`, and is what the model learns: the
chat template writes it behind the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posttrain.data.cells import written
from posttrain.data.rendering import ASSISTANT_MESSAGES, Rendered, TemplateRefusal, render_prompt, without_none
from posttrain.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OTHER = "Map another column"
_PLAIN = "x"  # an answer that every template writes as it is


# ---- read ----


def answer_text(cell: Any, where: str, *, keeps: bool = False) -> str:
    """A cell as text: scalars as they are written, nothing is "", one assistant message as `message_text` has it.

    Args:
        cell: scalar, message, or list of one message.
        where: its place, for messages.
        keeps: whether what a message has beside role and content is kept elsewhere.

    Raises:
        DataError: it is no text and no message of the assistant, or something would be lost.
    """
    if cell is None:
        return ""
    message = _message(cell)
    if message is not None:
        if message.get("role", "assistant") != "assistant":
            fix = "Map the column of the assistant's messages"
            what, role = "a demonstration is the assistant's", message["role"]
            raise DataError(what, where=where, got=role, allowed="role assistant", fix=fix)
        content, further = message.get("content"), _further(message)
        if further and not keeps:
            raise DataError(
                "only a text can stand here, and this message has more",
                where=where,
                got=", ".join(further),
                fix="Write its fields into the text as the chat template would, or take them out; demonstrations of "
                "prompts that are messages keep them",
            )
        if further and (content is None or isinstance(content, str)):
            return message_text(message)
        cell = content
    text = written(cell)
    if text is None:
        fix = "Map another column, or write one message of the assistant" if isinstance(cell, list) else _OTHER
        raise DataError("the cell is neither text nor a number", where=where, got=cell, fix=fix)
    return text


def with_messages(
    known: list[str | None] | None, cells: Sequence[Any], place: Callable[[int], str]
) -> list[str | None] | None:
    """The messages of each row that are more than a text, JSON of a list, with those of one more column; or None.

    Args:
        known: of the columns before. cells: of the column. place: of a cell, for messages.

    Raises:
        DataError: two of a row have the same content and other fields, so that their texts do not tell them apart.
    """
    found = known
    for index, cell in enumerate(cells):
        message = _message(cell)
        if message is None or not _further(message):
            continue
        found = found or [None] * len(cells)
        message, others = {**message, "role": "assistant"}, json.loads(found[index] or "[]")
        if any(message_text(other) == message_text(message) and other != message for other in others):
            what = "two demonstrations of a row have the same content and other fields"
            raise DataError(what, where=place(index), got=cell, fix="Leave one of the columns out")
        found[index] = json.dumps([*others, message], ensure_ascii=False)
    return found


def _message(cell: Any) -> dict[str, Any] | None:
    """The message of a cell that is one, or a list of one, without None fields."""
    if isinstance(cell, list):
        cell = cell[0] if len(cell) == 1 else None
        return without_none(cell) if isinstance(cell, Mapping) else None
    return without_none(cell) if isinstance(cell, Mapping) and "role" in cell else None


def _further(message: Mapping[str, Any]) -> list[str]:
    """Names of what a message has beside role and content."""
    return sorted(message.keys() - {"role", "content"})


# ---- rendered ----


def message_text(message: Mapping[str, Any]) -> str:
    """What stands in the demonstration's column for a message: its content, or else its other fields as JSON."""
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        return content
    further = _further(message)
    return json.dumps({name: value for name, value in message.items() if name in further}, ensure_ascii=False)


def message_of(text: Any, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The message that a text of a row stands for, None where it is the text alone.

    Args:
        text: cell of the row. inputs: of `template_inputs`.
    """
    found = (message for message in inputs.get(ASSISTANT_MESSAGES) or () if message_text(message) == text)
    return next(found, None)


def render_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Mapping[str, Any]],
    message: Mapping[str, Any],
    rendered: Rendered,
    **chat_template_kwargs: Any,
) -> tuple[str, bool]:
    """What the template writes of a message behind the generation prompt, without the end token of the tokenizer.

    Control tokens that the message's fields spell are put aside, those of the template are not.

    Args:
        rendered: the prompt with the generation prompt.

    Returns:
        The text, and whether it ends with a control token that the template has for this kind of turn alone, such as
        the one that hands over to a tool; no other is to follow then.

    Raises:
        DataError: the template refuses the message, or does not go on from its own generation prompt.
    """
    full = _turn(tokenizer, prompt, message, chat_template_kwargs)
    if not full.startswith(rendered.text):
        differs = next((n for n, (a, b) in enumerate(zip(rendered.text, full, strict=False)) if a != b), len(full))
        raise DataError(
            "the chat template writes this message otherwise than it lets the model begin it, so it cannot be learnt",
            got=rendered.markers.spelled(full[differs : differs + 60]),
            allowed=f"what goes on from {rendered.markers.spelled(rendered.text[-60:])!r}",
            fix="Set data.chat_template_kwargs as the demonstrations were written (such as enable_thinking), or take "
            "the fields out of the message",
        )
    plain = _turn(tokenizer, prompt, {"role": "assistant", "content": _PLAIN}, chat_template_kwargs)
    body, end, stop = full[len(rendered.text) :], plain.rpartition(_PLAIN)[2], str(tokenizer.eos_token)
    if end and body.endswith(end):
        return body.removesuffix(end), False
    if (ended := body.rstrip()).endswith(stop):
        return ended.removesuffix(stop), False
    return (ended, True) if end and ended.endswith(tuple(rendered.markers.tokens)) else (body, False)


def _turn(tokenizer: Any, prompt: Sequence[Mapping[str, Any]], message: Any, variables: Mapping[str, Any]) -> str:
    try:
        turns = [*prompt, without_none(message)]
        return render_prompt(tokenizer, turns, add_generation_prompt=False, **variables).text
    except TemplateRefusal as error:
        what = f"the chat template refuses the demonstration's message: {error.reason}"
        raise DataError(what, got=message, fix="Use another template, or write the demonstration as text") from error
