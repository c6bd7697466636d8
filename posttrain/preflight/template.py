"""Checks of tokenizer and chat template: what turns a good row into wrong training without an error.

Each trap costs a run when it is not seen: a stop token that is never trained, a doubled BOS or think tag, a template
that drops the question, a demonstration that looks unlike what the model generates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from posttrain.config.run_config import RunConfig
from posttrain.config.verdict import template_variables
from posttrain.data.answers import message_of
from posttrain.data.demonstrations import encode_joined, encode_row
from posttrain.data.rendering import ROW_INPUTS, TemplateRefusal, encode_prompt, render_prompt, template_inputs
from posttrain.errors import DataError, PosttrainError
from posttrain.models.trial import trouble
from posttrain.preflight.clock import clock_findings
from posttrain.preflight.data import Rows, kept, prompt_text, rows_text

# Rows looked at token by token: the traps come from the template, or from the way a data set was made.
SAMPLE = 64
_THINK = "<think>"
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_TRIED = 4  # rows on which a template is tried for an end
_MOST_CHARACTERS = 10_000_000  # that it may write for them, on top of what they hold
_SHOWN = 12  # tokens of a difference
Finding = tuple[bool, PosttrainError]


class PromptEncoder:
    """Tokens of prompts and demonstrations of one split, exactly as training makes them."""

    def __init__(
        self,
        tokenizer: Any,
        rows: Rows,
        chat_template_kwargs: dict[str, Any] | None = None,
        *,
        column: str = "solution",
    ):
        self.tokenizer, self.rows, self.kwargs, self.column = tokenizer, rows, chat_template_kwargs or {}, column
        self.own = {name: list(rows.dataset[name]) for name in ROW_INPUTS if name in rows.columns}

    @classmethod
    def of(cls, cfg: RunConfig, tokenizer: Any, rows: Rows, *, column: str) -> PromptEncoder:
        """With the variables of the recipe."""
        return cls(tokenizer, rows, template_variables(cfg), column=column)

    @property
    def has_inputs(self) -> bool:
        """Whether the rows have variables of the template of their own."""
        return bool(self.own)

    def inputs(self, index: int) -> dict[str, Any]:
        """Variables of the template for a row."""
        own = {name: cells[index] for name, cells in self.own.items()}
        return template_inputs({**own, "prompt": self.rows.prompts[index]}, self.kwargs)

    def prompt(self, index: int) -> list[int]:
        """Ids that generation starts from."""
        return encode_prompt(self.tokenizer, self.rows.prompts[index], **self.inputs(index))

    def row(self, index: int, *, column: str | None = None) -> tuple[list[int], list[int]]:
        """Ids that are given, and ids that are trained, stop token included; of another column's text, if named."""
        prompt, text = self.rows.prompts[index], self.rows.solutions[index]
        text = text if column is None else self.rows.dataset[index][column]
        try:
            return encode_row(self.tokenizer, prompt, text, column=column or self.column, **self.inputs(index))
        except DataError as error:
            raise error.at(f"{self.rows.split} row {index}") from error

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned when it was first called for these rows, tokenizer and variables, and this key."""
        return kept(self.rows.dataset, (self.tokenizer, repr(self.kwargs), self.column, key), make)

    def rendered(self, index: int, solution: str | None = None) -> Any:
        """The chat, `Rendered`: up to the generation prompt, or with the assistant's answer in it."""
        prompt = self.rows.prompts[index]
        answer = self.message(index, solution) or {"role": "assistant", "content": solution}
        turns = prompt if solution is None else [*prompt, answer]
        return render_prompt(self.tokenizer, turns, add_generation_prompt=solution is None, **self.inputs(index))

    def message(self, index: int, solution: str | None) -> dict[str, Any] | None:
        """The message that a demonstration was written as, None if it was a text."""
        return message_of(solution, self.inputs(index)) if self.has_inputs else None


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
    endless = encoder.kept(("trial", trained), partial(_endless, encoder, trained=trained))
    if endless is not None:
        what, fix = f"the chat template {endless} on the first rows", "Use another template, or correct its loops"
        yield True, DataError(what, where=cfg.where("model"), fix=fix)
        return
    dated = list(clock_findings(cfg, encoder, rows, trained=trained))
    yield from dated
    if any(stops for stops, _ in dated):
        return
    where = cfg.where("data", rows.split)
    # By what is told and what to do, without the example in brackets: that of the first row is shown.
    faults: dict[tuple[str, str], tuple[list[int], str]] = {}
    notes: dict[tuple[str, str], tuple[list[int], str]] = {}
    looked = min(SAMPLE, len(rows))
    for index in range(looked):
        # A document is its own demonstration: what is wrong with it is told of the prompt.
        solution = rows.solutions[index] if trained and encoder.column != "prompt" else None
        solution = solution if isinstance(solution, str) and solution.strip() else None
        for stops, told, fix in encoder.kept(("row", index, solution), partial(_found, encoder, index, solution)):
            kind = (told.partition(" (")[0], fix)
            (faults if stops else notes).setdefault(kind, ([], told))[0].append(index)
    for stops, found in ((True, faults), (False, notes)):
        for (_, fix), (indices, told) in found.items():
            text = f"{told} ({len(indices)} of the first {looked} rows: {rows_text(indices)})"
            yield stops, DataError(text, where=where, fix=fix)


def _endless(encoder: PromptEncoder, *, trained: bool) -> str | None:
    """What is wrong with a template that does not end soon; tried on a few rows, in a process of its own."""
    if not encoder.tokenizer.chat_template:
        return None
    prompts, solutions = encoder.rows.prompts[:_TRIED], encoder.rows.solutions[:_TRIED]
    size = sum(len(prompt_text(prompt)) for prompt in prompts) + sum(len(str(text)) for text in solutions)

    def render() -> int:
        made = 0
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                made += len(encoder.rendered(index).text)
                if trained and isinstance(text := solutions[index], str):
                    made += len(encoder.rendered(index, text).text)
        return made

    return trouble(render, most=_MOST_CHARACTERS + 100 * size)


def _found(encoder: PromptEncoder, index: int, solution: str | None) -> list[tuple[bool, str, str]]:
    return list(_row_faults(encoder, index, solution))


def _row_faults(encoder: PromptEncoder, index: int, solution: str | None) -> Iterator[tuple[bool, str, str]]:
    """(whether it stops the run, what, fix) for one row."""
    tokenizer, prompt = encoder.tokenizer, encoder.rows.prompts[index]
    try:
        ids = encoder.prompt(index)
        rendered = encoder.rendered(index)
    except DataError as problem:
        place = f"{problem.where}: " if problem.where else ""
        yield True, f"{place}{problem.what}", problem.fix or "Remove the row"
        return
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        yield True, f"two BOS tokens ({tokenizer.bos_token}) open the prompt", "Take it out of the text of the prompts"
    text = rendered.markers.spelled(rendered.text)
    lost = [part for part in _parts(prompt) if part not in text and json.dumps(part)[1:-1] not in text]
    if lost:
        yield True, f"the chat template drops text of the prompt ({lost[0][:40]!r})", "Use another template"
    yield from _lost_characters(tokenizer, prompt_text(prompt), "prompt")
    if solution is not None:
        yield from _demonstration_faults(encoder, index, solution)


def _parts(prompt: Any) -> list[str]:
    """Texts that the rendered prompt must hold; of an earlier turn of the assistant, what follows its thought."""
    if isinstance(prompt, str):
        return []
    texts = [
        str(message.get("content") or "").rpartition("</think>")[2]
        if message.get("role") == "assistant"
        else str(message.get("content") or "")
        for message in prompt
    ]
    return [text.strip() for text in texts if text.strip()]


def _lost_characters(tokenizer: Any, text: str, name: str) -> Iterator[tuple[bool, str, str]]:
    """Characters that the tokenizer replaces, and blanks that it does not see."""
    fix = "Replace them, or use another tokenizer"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if "".join(tokenizer.decode(ids).split()) != "".join(text.split()):
        yield False, f"characters of the {name} do not survive the tokenizer", fix
    plain = " ".join(text.split())
    if plain != text.strip() and ids == tokenizer(plain, add_special_tokens=False)["input_ids"]:
        yield False, f"line breaks and repeated blanks of the {name} are not seen by the tokenizer", fix


def _demonstration_faults(encoder: PromptEncoder, index: int, solution: str) -> Iterator[tuple[bool, str, str]]:
    tokenizer, prompt = encoder.tokenizer, encoder.rows.prompts[index]
    eos = tokenizer.eos_token_id
    if eos is None:
        return
    try:
        given, ids, begins = encode_joined(tokenizer, prompt, solution, **encoder.inputs(index))
    except DataError as problem:
        yield True, f"{problem.what} ({problem.got!r}; {problem.allowed})", problem.fix or "Remove the row"
        return
    if (message := encoder.message(index, solution)) is not None:
        written = tokenizer.decode(ids)
        for name, text in message.items():
            if name != "role" and isinstance(text, str) and text.strip() not in written:
                what = f"the chat template drops the field {name!r} of the demonstration ({text.strip()[:40]!r})"
                yield name == "content", what, "Use a tokenizer whose template writes it, or take it out"
    if len(ids) < 2:
        yield True, "no token of the demonstration is trained but the stop token", "Check the demonstration's text"
    if eos in ids[:-1]:
        fix = f"Remove {tokenizer.eos_token!r} from the demonstrations; it is added at their end"
        yield True, f"the stop token {tokenizer.eos_token!r} stands inside the demonstration", fix
    if not begins:
        yield (
            False,
            "the tokenizer joins the end of the prompt and the beginning of the demonstration into other tokens; what "
            "is trained is the demonstration behind the prompt's own tokens, from which generation starts",
            "End the prompts where a token ends, as before a blank, and begin the demonstrations with it",
        )
    around = tokenizer.decode([*given[-16:], *ids[:16]])
    if "".join(around.split()).count(_THINK) > 1:
        fix = "Remove the tag from the demonstrations; the template opens it"
        yield True, "the think tag is opened twice, by the template and by the demonstration", fix
    yield from _lost_characters(tokenizer, solution, "demonstration")
    if not isinstance(prompt, str):
        yield from _turn_faults(encoder, index, given, ids, solution)


def _turn_faults(
    encoder: PromptEncoder, index: int, given: list[int], ids: list[int], solution: str
) -> Iterator[tuple[bool, str, str]]:
    """The tokens of the assistant's turn as the template writes it, against those that are trained."""
    tokenizer, trained = encoder.tokenizer, [*given, *ids]
    try:
        full = encoder.rendered(index, solution).ids(tokenizer)
    except TemplateRefusal:
        yield False, "the chat template refuses an assistant message", "Only matters for several turns"
        return
    place = next(
        (i for i, (a, b) in enumerate(zip(trained, full, strict=False)) if a != b), min(len(trained), len(full))
    )
    if place == len(trained) or _only_forgets(tokenizer.decode(trained), tokenizer.decode(full)):
        return
    theirs, ours = (tokenizer.decode(found[place : place + _SHOWN]) for found in (full, trained))
    same = theirs == ours
    theirs, ours = (found[place : place + _SHOWN] for found in (full, trained)) if same else (theirs, ours)
    shown = f"{'the tokens ' * same}{theirs!r}"
    if place < len(given):
        yield (
            False,
            "the generation prompt is not how the template begins the assistant's turn, so an answer reads "
            f"differently once it is history (it has {shown} there, and the generation prompt {ours!r})",
            "Training and evaluation here are of one turn and agree; a chat of several turns would not",
        )
        return
    told = "the template writes the assistant's turn differently from what is trained"
    if place == len(trained) - 1:
        yield (
            False,
            f"{told} (it has {theirs!r} where training ends with {tokenizer.eos_token!r})",
            "Set the tokenizer's eos_token to the token that ends a turn, unless a base model is meant to stop so",
        )
        return
    yield (
        False,
        f"{told} (it has {shown} where training has {ours!r})",
        "Write the demonstrations as the template does, or set data.chat_template_kwargs so that it asks for them so",
    )


def _only_forgets(trained: str, full: str) -> bool:
    """Whether the template leaves out a thought that is trained, as many do with earlier turns, and nothing else."""
    without = _THOUGHT.sub("", trained)
    return without != trained and "".join(full.split()).startswith("".join(without.split()))
