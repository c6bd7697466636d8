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

from tokenizers import Tokenizer

from posttrain.errors import DataError

# Private characters of Unicode's last plane: one stands for a marker in the data, one for the token itself.
_TYPED, _TOKEN, _LAST = 0x108000, 0x10C000, 0x10FFFD
# Tags that a model writes within its turn, and that prompts ask for.
_THOUGHT = re.compile(r"think|thought|reason|scratchpad|reflect|answer|solution", re.IGNORECASE)
_TOOL = re.compile(r"tool|function|call|param|python_tag", re.IGNORECASE)
_FROM_OUTSIDE = ("user", "tool", "function", "ipython", "observation", "environment")

_IS_TYPED = re.compile(f"[{chr(_TYPED)}-{chr(_TOKEN - 1)}]")
_RESERVED = re.compile(f"[{chr(_TYPED)}-{chr(_LAST)}]")

_known: WeakKeyDictionary[Any, tuple[Any, Markers]] = WeakKeyDictionary()


def markers_of(tokenizer: Any) -> Markers:
    """The control tokens of a tokenizer; found once, and again when template or vocabulary were changed."""
    state = (len(tokenizer), tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token)
    known = _known.get(tokenizer)
    if known is None or known[0] != state:
        known = _known[tokenizer] = (state, Markers.of(tokenizer))
    return known[1]


def _looks_like_control(text: str) -> bool:
    """Whether text of the data may not become this token; what is spelled like a word or a blank may."""
    spelled = text.strip()
    return len(spelled) > 2 and not spelled.replace(" ", "").isalnum() and any(map(str.isalnum, spelled))


@dataclass(frozen=True)
class Markers:
    """Control tokens of one tokenizer: `tokens[i]` with id `ids[i]`.

    Those in `inner` are tags of thought and tools, which are tokens in the model's own words; those in `tags` are tags
    of thought that are tokens in everybody's.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    inner: frozenset[str]
    tags: frozenset[str]
    backend: Any

    @classmethod
    def of(cls, tokenizer: Any) -> Markers:
        """Special tokens, and added ones that the template spells."""
        template = json.dumps(tokenizer.chat_template, ensure_ascii=False) if tokenizer.chat_template else ""
        special = set(tokenizer.all_special_tokens)
        found, inner, tags = {}, set(), set()
        for number, token in tokenizer.added_tokens_decoder.items():
            name, is_special = token.content, token.special or token.content in special
            if not _looks_like_control(name) or not (is_special or name.strip() in template):
                continue
            found[name] = number
            if name not in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token):
                inner |= {name} if _THOUGHT.search(name) or _TOOL.search(name) else set()
                tags |= {name} if _THOUGHT.search(name) and not is_special else set()
        # Where one begins like another, the longer is looked for first.
        ordered = sorted(found, key=len, reverse=True)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return cls(tuple(ordered), tuple(found[name] for name in ordered), frozenset(inner), frozenset(tags), backend)

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """What is looked for in the model's own words, and in those of others."""
        own, outside = (
            [re.escape(token) for token in self.tokens if token not in kept] for kept in (self.inner, self.tags)
        )
        return re.compile("|".join([*own, _RESERVED.pattern])), re.compile("|".join([*outside, _RESERVED.pattern]))

    @cached_property
    def _starts(self) -> list[str]:
        """What tokens begin with: few pieces, where there may be hundreds of tokens."""
        return sorted({token[:2] for token in self.tokens})

    @cached_property
    def _places(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens)}

    def hide(self, value: Any, *, role: str = "assistant") -> Any:
        """The value with every marker in its texts put aside.

        Args:
            value: text, or lists and mappings of texts; anything else stays as it is. role: who wrote it.
        """
        pattern = self._patterns[role in _FROM_OUTSIDE]
        if isinstance(value, str):
            return pattern.sub(self._aside, value) if pattern.search(value) else value
        if isinstance(value, Mapping):
            return {self.hide(key, role=role): self.hide(item, role=role) for key, item in value.items()}
        return [self.hide(item, role=role) for item in value] if isinstance(value, list | tuple) else value

    def may_stand_in(self, text: str) -> bool:
        """Whether a text, or several as one, can spell any of them, whoever wrote it; a no is sure, and cheap."""
        return any(start in text for start in self._starts) or (
            not text.isascii() and _RESERVED.search(text) is not None
        )

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
