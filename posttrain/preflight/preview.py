"""Rows as the model will see them: token by token, trained and not trained told apart by colour or by brackets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from rich.text import Text

_IDS = 32  # shown of a row


@dataclass(frozen=True)
class Preview:
    """One row: its title, its tokens as text, and for each token whether it is trained. `note` follows the tokens;
    `ids` are those of the trained ones.
    """

    title: str
    tokens: tuple[str, ...]
    trained: tuple[bool, ...]
    note: str = ""
    ids: tuple[int, ...] = ()

    def plain(self) -> str:
        """Without colour: every trained token in square brackets, line breaks shown as a sign before the break."""
        body = "".join(
            f"[{_visible(token, trained=True)}]" if trained else _visible(token)
            for token, trained in zip(self.tokens, self.trained, strict=True)
        )
        return f"{self._head()}{body}{self._note()}"

    def render(self, *, colour: bool) -> Text:
        """For a rich console. Trained tokens are green, with alternating shade to show where each begins and ends."""
        if not colour:
            return Text(self.plain())
        text = Text(self._head(), style="bold")
        count = 0
        for token, trained in zip(self.tokens, self.trained, strict=True):
            count += trained
            style = ("black on green3" if count % 2 else "black on pale_green1") if trained else "dim"
            text.append(_visible(token, trained=trained), style=style)
        text.append(self._note(), style="italic cyan")
        return text

    def header(self) -> str:
        """Title with the counts."""
        return f"-- {self.title}: {len(self.tokens)} tokens, {sum(self.trained)} trained --"

    def _head(self) -> str:
        """Header, and the first trained ids."""
        shown = f"trained ids: {' '.join(map(str, self.ids[:_IDS]))}{' ...' * (len(self.ids) > _IDS)}\n"
        return f"{self.header()}\n{shown * bool(self.ids)}"

    def _note(self) -> str:
        return f"\n{self.note}" if self.note else ""


def preview(
    title: str, tokenizer: object, prompt_ids: list[int], trained_ids: list[int], *, note: str = ""
) -> Preview:
    """Preview of a row whose prompt is given and whose continuation is trained.

    Args:
        title: what the row is, "train row 3".
        tokenizer: decodes the ids one by one; special tokens are shown.
        prompt_ids: tokens that are not trained.
        trained_ids: tokens that are.
        note: line below the row, e.g. that completions will be sampled here.
    """
    ids = [*prompt_ids, *trained_ids]
    tokens = tuple(_piece(tokenizer, token) for token in ids)
    trained = (False,) * len(prompt_ids) + (True,) * len(trained_ids)
    return Preview(title, tokens, trained, note, tuple(trained_ids))


def _piece(tokenizer: Any, token: int) -> str:
    """Text of one token with the blanks that it holds, which decoders drop at the start of a text."""
    text, spelled = str(tokenizer.decode([token])), str(tokenizer.convert_ids_to_tokens(token))
    if "\u2581" in spelled:
        return spelled.replace("\u2581", " ")
    return text if text and text != "\ufffd" else spelled


def _visible(token: str, *, trained: bool = False) -> str:
    """Line breaks as a sign before the break; in a trained token, blanks as a sign."""
    shown = token.replace(" ", "\u2423").replace("\t", "\u21e5") if trained else token
    return shown.replace("\n", "\u23ce\n")
