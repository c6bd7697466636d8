"""Checks of tokenizer and chat template: what turns a good row into wrong training without an error.

Each trap costs a run when it is not seen: a stop token that is never trained, a doubled BOS or think tag, a template
that drops the question, a demonstration that looks unlike what the model generates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.config.checks_data import Rows, prompt_text, rows_text
from posttrain.config.run_config import RunConfig
from posttrain.errors import DataError, PosttrainError

# Rows looked at token by token: the traps come from the template, or from the way a data set was made.
SAMPLE = 64
_THINK = "<think>"
Finding = tuple[bool, PosttrainError]


class PromptEncoder:
    """Tokens of prompts and demonstrations, exactly as training makes them."""

    def __init__(
        self, tokenizer: Any, chat_template_kwargs: dict[str, Any] | None = None, *, column: str = "solution"
    ):
        self.tokenizer, self.kwargs, self.column = tokenizer, chat_template_kwargs or {}, column

    def prompt(self, prompt: Any) -> list[int]:
        """Ids that generation starts from."""
        from posttrain.data.demonstrations import encode_prompt

        return encode_prompt(self.tokenizer, prompt, **self.kwargs)

    def demonstration(self, text: str, prompt_ids: list[int]) -> list[int]:
        """Ids that are trained, stop token included."""
        from posttrain.data.demonstrations import encode_demonstration

        return encode_demonstration(self.tokenizer, text, prompt_ids=prompt_ids)

    def row(self, prompt: Any, text: str) -> tuple[list[int], list[int]]:
        """Ids that are given, and ids that are trained."""
        from posttrain.data.demonstrations import encode_row

        return encode_row(self.tokenizer, prompt, text, column=self.column, **self.kwargs)

    def rendered(self, prompt: list[dict[str, str]], solution: str | None = None) -> str:
        """Text of the chat: up to the generation prompt, or with the assistant's answer in it."""
        turns = prompt if solution is None else [*prompt, {"role": "assistant", "content": solution}]
        return str(
            self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=solution is None, tokenize=False, **self.kwargs
            )
        )


def tokenizer_findings(cfg: RunConfig, tokenizer: Any, rows: Rows) -> Iterator[Finding]:
    """Stop token, padding, and a chat template where the prompts are chats."""
    where = cfg.where("model")
    if tokenizer.eos_token_id is None:
        yield (
            True,
            DataError(
                "the tokenizer has no end token, so no completion can end",
                where=where,
                fix="Set eos_token in tokenizer_config.json",
            ),
        )
    if tokenizer.pad_token_id is None:
        yield (
            False,
            DataError("the tokenizer has no padding token; its end token pads, masked by position", where=where),
        )
    if any(isinstance(prompt, list) for prompt in rows.prompts[:SAMPLE]) and not tokenizer.chat_template:
        yield (
            True,
            DataError(
                "the prompts are chats, but the tokenizer has no chat template",
                where=where,
                fix=f"Use an instruct model, or set data.{rows.split}.format: text",
            ),
        )


def template_findings(cfg: RunConfig, encoder: PromptEncoder, rows: Rows, *, trained: bool) -> Iterator[Finding]:
    """Traps that show in rows: errors of the template, lost text, doubled BOS or think tag, stop tokens.

    Args:
        cfg: the run.
        encoder: tokenizer with the template's arguments.
        rows: one split.
        trained: whether the demonstrations are trained.
    """
    from posttrain.config.checks_clock import clock_findings

    dated = list(clock_findings(cfg, encoder, rows, trained=trained))
    yield from dated
    if any(stops for stops, _ in dated):
        return
    where = cfg.where("data", rows.split)
    faults: dict[str, tuple[list[int], str]] = {}
    notes: dict[str, tuple[list[int], str]] = {}
    looked = min(SAMPLE, len(rows))
    for index in range(looked):
        # A document is its own demonstration: what is wrong with it is told of the prompt.
        solution = rows.solutions[index] if trained and encoder.column != "prompt" else None
        solution = solution if isinstance(solution, str) and solution.strip() else None
        for stops, told, fix in _row_faults(encoder, rows.prompts[index], solution):
            (faults if stops else notes).setdefault(told, ([], fix))[0].append(index)
    for stops, found in ((True, faults), (False, notes)):
        for told, (indices, fix) in found.items():
            text = f"{told} ({len(indices)} of the first {looked} rows: {rows_text(indices)})"
            yield stops, DataError(text, where=where, fix=fix)


def _row_faults(encoder: PromptEncoder, prompt: Any, solution: str | None) -> Iterator[tuple[bool, str, str]]:
    """(whether it stops the run, what, fix) for one row."""
    from jinja2 import TemplateError

    tokenizer = encoder.tokenizer
    try:
        ids = encoder.prompt(prompt)
        text = prompt if isinstance(prompt, str) else encoder.rendered(prompt)
    except (TemplateError, TypeError, ValueError, KeyError) as problem:
        reason = " ".join(str(problem).split())[:120]
        yield True, f"the chat template refuses the prompt: {reason}", "Check the roles of the messages"
        return
    if not ids:
        yield True, "the prompt has no tokens", "Check the chat template"
        return
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        yield True, f"two BOS tokens ({tokenizer.bos_token}) open the prompt", "Take it out of the text of the prompts"
    lost = [part for part in _parts(prompt) if part.strip() and part.strip() not in text]
    if lost:
        yield True, f"the chat template drops text of the prompt ({lost[0].strip()[:40]!r})", "Use another template"
    if _decoded_differs(tokenizer, prompt_text(prompt)):
        yield False, "characters of the prompt do not survive the tokenizer", "Replace them, or use another tokenizer"
    if solution is not None:
        yield from _demonstration_faults(encoder, prompt, ids, solution)


def _parts(prompt: Any) -> list[str]:
    return [] if isinstance(prompt, str) else [str(message.get("content") or "") for message in prompt]


def _decoded_differs(tokenizer: Any, text: str) -> bool:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return "".join(tokenizer.decode(ids).split()) != "".join(text.split())


def _demonstration_faults(
    encoder: PromptEncoder, prompt: Any, prompt_ids: list[int], solution: str
) -> Iterator[tuple[bool, str, str]]:
    tokenizer = encoder.tokenizer
    eos = tokenizer.eos_token_id
    if eos is None:
        return
    ids = encoder.demonstration(solution, prompt_ids)
    if ids[-1] != eos:
        yield True, "the stop token of the demonstration is not trained", "Set the tokenizer's eos_token"
    if len(ids) < 2:
        yield True, "no token of the demonstration is trained but the stop token", "Check the demonstration's text"
    if eos in ids[:-1]:
        fix = f"Remove {tokenizer.eos_token!r} from the demonstrations; it is added at their end"
        yield True, f"the stop token {tokenizer.eos_token!r} stands inside the demonstration", fix
    around = tokenizer.decode([*prompt_ids[-16:], *ids[:16]])
    if "".join(around.split()).count(_THINK) > 1:
        fix = "Remove the tag from the demonstrations; the template opens it"
        yield True, "the think tag is opened twice, by the template and by the demonstration", fix
    if _decoded_differs(tokenizer, solution):
        fix = "Replace them, or use another tokenizer"
        yield False, "characters of the demonstration do not survive the tokenizer", fix
    if not isinstance(prompt, str):
        yield from _turn_faults(encoder, prompt, prompt_ids, ids, solution)


def _turn_faults(
    encoder: PromptEncoder, prompt: list[dict[str, str]], prompt_ids: list[int], ids: list[int], solution: str
) -> Iterator[tuple[bool, str, str]]:
    """The assistant's turn as the template writes it, against the turn that is trained."""
    from jinja2 import TemplateError

    tokenizer = encoder.tokenizer
    try:
        start, full = encoder.rendered(prompt), encoder.rendered(prompt, solution)
    except (TemplateError, TypeError, ValueError, KeyError):
        yield False, "the chat template refuses an assistant message", "Only matters for several turns"
        return
    if not full.startswith(start):
        yield (
            False,
            "the generation prompt is not how the template begins the assistant's turn, so an answer reads "
            "differently once it is history",
            "Training and evaluation here are of one turn and agree; a chat of several turns would not",
        )
        return
    turn = full[len(start) :]
    trained = tokenizer.decode(ids)
    if not turn.startswith(trained) and "".join(turn.split()) != "".join(trained.split()):
        shown = turn[turn.find(solution) + len(solution) :][:40] if solution in turn else turn[:40]
        yield (
            False,
            f"the template writes the assistant's turn differently from what is trained (it has {shown!r} where "
            f"training ends with {tokenizer.eos_token!r})",
            "Set the tokenizer's eos_token to the token that ends a turn, unless a base model is meant to stop so",
        )
