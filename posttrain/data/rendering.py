"""Prompts as tokens: one way for training, rollouts, evaluation and checks.

What a model reads are the ids of the rendered prompt; what it is to write are the ids that follow them in the rendered
whole (`posttrain.data.demonstrations`). No piece is cut into tokens alone where it stands in a text, and the tokens
that a tokenizer puts behind every text of its own accord do not close a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.data.markers import Markers, markers_of
from posttrain.errors import ConfigError, DataError, PosttrainError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Columns of a row that are variables of the chat template.
ASSISTANT_MESSAGES = "assistant_messages"  # that texts of the row were written as, see `posttrain.data.answers`
ROW_INPUTS = ("tools", "documents", "chat_template_kwargs", ASSISTANT_MESSAGES)
# Among the variables of the template: "text" reads control tokens that the data spells as text, "token" as tokens.
SPECIAL_TOKENS = "special_tokens_in_text"
# Set here, so that a recipe or a row cannot.
_OURS = (
    *("conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict"),
    *("return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs", "padding", "truncation", "max_length"),
)


class TemplateRefusal(DataError):
    """The chat template raised an error; `reason` is its text."""

    def __init__(self, what: str, *, reason: str = "", **facts: Any):
        super().__init__(what, **facts)
        self.reason = reason


@dataclass(frozen=True)
class Rendered:
    """A prompt as text, in which control tokens of the data are put aside; `opening` are ids that come before it."""

    text: str
    opening: tuple[int, ...]
    markers: Markers
    hides: bool

    def ids(self, tokenizer: Any, continuation: str = "") -> list[int]:
        """Token ids of the prompt, with a hidden continuation behind it."""
        return [*self.opening, *self.markers.encode(tokenizer, self.text + continuation)]

    def hide(self, text: str, *, role: str = "assistant") -> str:
        """A text that is to follow, with its control tokens put aside."""
        return str(self.markers.hide(text, role=role)) if self.hides else text


def template_inputs(row: Mapping[str, Any], variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Variables of the chat template for one row: those of the run, and what the row itself brings.

    Args:
        row: may have `tools` and `documents` (lists, or JSON of lists) and `chat_template_kwargs` (a mapping, or JSON
            of one), which comes before the run's, and `assistant_messages`, which the reader made. Fields that are
            None are left out, since tables fill rows up with them; those of JSON text stay.

    Raises:
        DataError: they are of another kind.
    """
    found = dict(variables or {})
    if isinstance(row.get("prompt"), str):  # no template reads it
        return found
    for name in ROW_INPUTS:
        if (value := _plain(row.get(name), name)) is None:
            continue
        if name != "chat_template_kwargs":
            found[name] = value
            continue
        if taken := sorted({"chat_template", SPECIAL_TOKENS, *_OURS} & set(value)):
            raise DataError("a row may not set this", where=f"column {name!r}", got=taken[0], fix="Take it out")
        found |= value
    return found


def _plain(value: Any, name: str) -> Any:
    """A cell without None fields but those of JSON text, or None for an empty one."""
    if isinstance(value, str):
        value = _parsed(value, name)
    else:
        value = without_none(value)
    if not value:
        return None
    wanted = Mapping if name == "chat_template_kwargs" else list
    if not isinstance(value, wanted):
        allowed = "a mapping" if wanted is Mapping else "a list, or JSON of one"
        raise _unusable(name, value, allowed)
    if isinstance(value, list):
        value = [
            _parsed(item, name) if isinstance(item, str) and item.lstrip().startswith("{") else item for item in value
        ]
    if name in ("tools", ASSISTANT_MESSAGES) and not all(isinstance(item, Mapping) for item in value):
        raise _unusable(name, value, f"a list of {'schemas' if name == 'tools' else 'messages'}, which are mappings")
    return value


def _parsed(text: str, name: str) -> Any:
    """JSON text as it stands: a null that is written there is no cell that a table filled up."""
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        kind = "a mapping" if name == "chat_template_kwargs" else "a list"
        raise _unusable(name, text, f"{kind}, or JSON of one") from None


def _unusable(name: str, value: Any, allowed: str) -> DataError:
    fix = "Rename the column if it is not meant for the chat template"
    return DataError("the template cannot take this", where=f"column {name!r}", got=value, allowed=allowed, fix=fix)


def without_none(value: Any) -> Any:
    """The value with every None field of its mappings left out; to a template, None is not the same as nothing."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    special_tokens_in_text: str = "text",
    add_generation_prompt: bool = True,
    assistant_messages: Any = None,
    **chat_template_kwargs: Any,
) -> Rendered:
    """The prompt as the tokenizer is given it; arguments as in `encode_prompt`. What follows it is not looked at.

    Raises:
        TemplateRefusal: the template raised an error.
    """
    if special_tokens_in_text not in ("text", "token"):
        raise ConfigError(
            "unknown value", where=SPECIAL_TOKENS, got=special_tokens_in_text, allowed="one of: text, token"
        )
    markers, hides = markers_of(tokenizer), special_tokens_in_text == "text"
    if isinstance(prompt, str):
        return Rendered(str(markers.hide(prompt)) if hides else prompt, opening_ids(tokenizer), markers, hides)
    if isinstance(prompt, Mapping | bytes) or not isinstance(prompt, Iterable):
        raise DataError("a prompt is text or a list of messages", got=prompt, fix="Write it so, or drop the row")
    if tokenizer.chat_template is None:
        raise DataError(
            "the prompts are chat messages but the tokenizer has no chat template",
            fix="Use an instruct model's tokenizer, or text prompts (data format: text)",
        )
    if taken := [name for name in _OURS if name in chat_template_kwargs]:
        raise ConfigError("a variable of the template cannot be set", where="chat_template_kwargs", got=taken[0])
    messages = [_message(message, markers if hides else None) for message in prompt]
    if hides:
        # A template, and a token in place of another, are no data.
        chat_template_kwargs = {
            key: value
            if key == "chat_template" or (isinstance(value, str) and value in markers.tokens)
            else markers.hide(value)
            for key, value in chat_template_kwargs.items()
        }
    try:
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False, **chat_template_kwargs
        )
    except (PosttrainError, MemoryError):
        raise
    except Exception as error:  # a template is a program, which may fail in any way
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        fix = "Check the roles of the messages, and the template"
        raise TemplateRefusal(f"the chat template refuses the prompt: {reason}", reason=reason, fix=fix) from error
    return Rendered(str(text), (), markers, hides)


def _message(message: Mapping[str, Any], markers: Markers | None) -> dict[str, Any]:
    """A message as templates expect it: without None fields, and with a text where it calls tools only."""
    found = without_none(message)
    if markers is not None:
        found = markers.hide(found, role=str(message.get("role")))
    return found if "content" in found else {**found, "content": ""}


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that the tokenizer puts before every text of its own accord, as BOS; those behind it are not among them."""
    if not tokenizer.num_special_tokens_to_add():
        return ()
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = (place for place in range(len(whole)) if list(whole[place : place + len(alone)]) == list(alone))
    return tuple(whole[: next(starts, 0)])


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, Any]], **chat_template_kwargs: Any
) -> list[int]:
    """Token ids that generation starts from: chat messages through the template, text as it is.

    Text opens with what the tokenizer puts before every text (BOS), and does not close with what it puts behind it.
    Control tokens that the data spells, as a user who types `<|im_end|>`, are read as text.

    Args:
        tokenizer: with a chat template if the prompt is messages.
        prompt: messages or text.
        chat_template_kwargs: variables of the template, as given to the trainer, see `template_inputs`. With
            `special_tokens_in_text="token"` control tokens in the data are tokens, as text that was rendered
            beforehand needs it.

    Raises:
        DataError: messages but no chat template, or a prompt without any token.
    """
    ids = render_prompt(tokenizer, prompt, **chat_template_kwargs).ids(tokenizer)
    if not ids:
        raise DataError("a prompt has no tokens", got=prompt, fix="Remove the row")
    return ids


def encode_document(
    tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens_in_text: str = "text", **_: Any
) -> list[int]:
    """Token ids of a text that nothing follows, with all that the tokenizer puts around it."""
    markers = markers_of(tokenizer)
    hidden = str(markers.hide(text))
    if special_tokens_in_text != "text" or hidden == text:
        return list(tokenizer(text)["input_ids"])
    alone, whole = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))
    opening = opening_ids(tokenizer)
    return [*opening, *markers.encode(tokenizer, hidden), *whole[len(opening) + len(alone) :]]


def completion_text(tokenizer: Any, ids: Sequence[int], ends: Collection[int | None]) -> str:
    """What the model wrote, as rewards and graders read it: special tokens included, but for those at its end.

    Args:
        ids: tokens of the completion. ends: ids that stop or pad a completion.
    """
    count = len(ids)
    while count and ids[count - 1] in ends:
        count -= 1
    return str(tokenizer.decode(list(ids[:count]), skip_special_tokens=False))
