"""Text of the data that spells a control token of the tokenizer, read as the text that it is.

A user who types `<|im_end|>` has not ended a turn. Before a template is rendered, every such piece in the data is put
aside as one private character; afterwards the text is cut by a copy of the tokenizer that knows its control tokens
under other names, so that only those that the template wrote are found. Rows without such a piece never pay for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from posttrain.errors import DataError

# Private characters of Unicode's last plane: one stands for a marker in the data, one for the token itself.
_TYPED, _TOKEN, _LAST = 0x108000, 0x10C000, 0x10FFFD
# Tags that a model writes within its turn, and that prompts ask for: they are tokens wherever they stand.
_THOUGHT = re.compile(r"think|thought|reason|scratchpad|reflect|answer|solution", re.IGNORECASE)
# Tags of tools: tokens where the model or the author of the prompt writes, text where a user or a tool does.
_TOOL = re.compile(r"tool|function|call|param|python_tag", re.IGNORECASE)
_FROM_OUTSIDE = ("user", "tool", "function", "ipython", "observation", "environment")

_IS_TYPED = re.compile(f"[{chr(_TYPED)}-{chr(_TOKEN - 1)}]")

_known: WeakKeyDictionary[Any, tuple[Any, Markers]] = WeakKeyDictionary()


def markers_of(tokenizer: Any) -> Markers:
    """The control tokens of a tokenizer; found once, and again when template or vocabulary were changed."""
    state = (len(tokenizer), tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token)
    known = _known.get(tokenizer)
    if known is None or known[0] != state:
        known = _known[tokenizer] = (state, Markers.of(tokenizer))
    return known[1]


def _is_marker(text: str, *, is_special: bool, template: str) -> bool:
    """Whether text of the data must not become this token. A token that is spelled like a word or a blank may."""
    spelled = text.strip()
    looks = len(spelled) > 2 and not spelled.replace(" ", "").isalnum() and any(map(str.isalnum, spelled))
    return looks and (is_special or spelled in template) and not _THOUGHT.search(spelled)


@dataclass(frozen=True)
class Markers:
    """Control tokens of one tokenizer: `tokens[i]` with id `ids[i]`; `ends` open, close or pad a sequence."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    ends: frozenset[str]
    backend: Any

    @classmethod
    def of(cls, tokenizer: Any) -> Markers:
        """Special tokens, and added ones that the template spells, without the tags of thought."""
        template = json.dumps(tokenizer.chat_template, ensure_ascii=False) if tokenizer.chat_template else ""
        special = set(tokenizer.all_special_tokens)
        found = {}
        for number, token in tokenizer.added_tokens_decoder.items():
            if _is_marker(token.content, is_special=token.special or token.content in special, template=template):
                found[token.content] = number
        # Where one begins like another, the longer is looked for first.
        ordered = sorted(found, key=len, reverse=True)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        ends = frozenset({tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token} - {None})
        return cls(tuple(ordered), tuple(found[token] for token in ordered), ends, backend)

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """What is looked for in the model's own words, and in those of others."""
        reserved = f"[{chr(_TYPED)}-{chr(_LAST)}]"
        own = [re.escape(token) for token in self.tokens if token in self.ends or not _TOOL.search(token)]
        return re.compile("|".join([*own, reserved])), re.compile("|".join([*map(re.escape, self.tokens), reserved]))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens)}

    def hide(self, value: Any, *, role: str = "assistant") -> Any:
        """The value with every marker in its texts put aside; None in a mapping is left out.

        Args:
            value: text, or lists and mappings of texts; anything else stays as it is. role: who wrote it.
        """
        pattern = self._patterns[role in _FROM_OUTSIDE]
        if isinstance(value, str):
            return pattern.sub(self._aside, value) if pattern.search(value) else value
        if isinstance(value, Mapping):
            return {
                self.hide(key, role=role): self.hide(item, role=role)
                for key, item in value.items()
                if item is not None
            }
        return [self.hide(item, role=role) for item in value] if isinstance(value, list | tuple) else value

    def found(self, value: Any) -> set[str]:
        """Markers that were put aside in a hidden value."""
        if isinstance(value, str):
            return {self.spelled(typed) for typed in _IS_TYPED.findall(value)}
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        return set().union(*map(self.found, value)) if isinstance(value, list | tuple) else set()

    def encode(self, tokenizer: Any, text: str) -> list[int]:
        """Ids of a text, without tokens that the tokenizer adds; markers that were put aside are read as text."""
        if text.isascii() or not _IS_TYPED.search(text):
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        text = re.sub("|".join(map(re.escape, self.tokens)), lambda m: chr(_TOKEN + self._places[m[0]]), text)
        return list(self._renamed.encode(self.spelled(text), add_special_tokens=False).ids)

    def spelled(self, text: str) -> str:
        """The text with the markers that were put aside in their places again."""
        return _IS_TYPED.sub(lambda match: self.tokens[ord(match[0]) - _TYPED], text)

    def _aside(self, match: re.Match[str]) -> str:
        if match[0] not in self._places:
            raise DataError(
                "the text holds a private character that is needed to read control tokens as text",
                got=f"U+{ord(match[0]):X}",
                allowed=f"characters below U+{_TYPED:X}",
                fix="Take it out of the text",
            )
        return chr(_TYPED + self._places[match[0]])

    @cached_property
    def _renamed(self) -> Any:
        """A copy of the tokenizer whose control tokens are spelled as single private characters."""
        from tokenizers import Tokenizer

        if self.backend is None:
            raise DataError(
                "the data spells a control token, and this kind of tokenizer cannot read it as text",
                got=type(self).__name__,
                fix="Take it out of the data, use the model's fast tokenizer, or set data.special_tokens_in_text",
            )
        names = {token: chr(_TOKEN + place) for place, token in enumerate(self.tokens)}
        parts = json.loads(self.backend.to_str())
        parts |= {"truncation": None, "padding": None, "post_processor": None}
        for token in parts["added_tokens"]:
            if token["content"] in names:
                token |= {"content": names[token["content"]], "normalized": False, "special": True}
        model = parts["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        made = Tokenizer.from_str(json.dumps(parts))
        if wrong := [
            token
            for token, number in zip(self.tokens, self.ids, strict=True)
            if made.token_to_id(names[token]) != number
        ]:
            raise DataError(
                "the data spells a control token that this tokenizer cannot read as text",
                got=wrong[0],
                fix="Take it out of the data, or set data.special_tokens_in_text: token",
            )
        return made
