"""Checks of how rows become tokens: control tokens in the data, fields that no template reads, stages that differ."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from posttrain import registry
from posttrain.config.run_config import RunConfig
from posttrain.data.markers import markers_of
from posttrain.data.rendering import ASSISTANT_MESSAGES, TemplateRefusal, encode_prompt, render_prompt
from posttrain.data.sources import further_answers
from posttrain.errors import DataError, PosttrainError
from posttrain.preflight.data import rows_text
from posttrain.preflight.preview import Preview, preview
from posttrain.preflight.template import SAMPLE, PromptEncoder

_SECONDS = 4.0  # spent on looking for control tokens in rows
# How a list of messages begins as JSON, or as Python writes it.
_MESSAGES = re.compile(r"\s*\[\s*\{\s*[\"'](role|content|from)[\"']\s*:")
_WHATS = {
    "field": "field of the messages",
    "variable": "input of the rows or of the recipe",
    "answer": "field of the demonstrations",
}
_BLOCK = 1000  # rows whose texts are looked through at once
_TRIED = 8  # rows in which a field is taken away


def rendering_findings(
    cfg: RunConfig, encoder: PromptEncoder, *, trained: bool
) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about the texts of one split."""
    unusable = list(_unusable_inputs(cfg, encoder))
    yield from ((True, finding) for finding in unusable)
    if unusable:
        return
    yield from ((False, finding) for finding in _typed(cfg, encoder, trained=trained))
    yield from ((False, finding) for finding in _messages_as_text(cfg, encoder))
    yield from ((False, finding) for finding in _beside_text(cfg, encoder))
    if encoder.tokenizer.chat_template:
        yield from ((False, finding) for finding in _unread(cfg, encoder, trained=trained))


def _unusable_inputs(cfg: RunConfig, encoder: PromptEncoder) -> Iterator[PosttrainError]:
    """Rows whose own inputs no template can take; the first of them is shown."""
    faults: list[tuple[int, DataError]] = []
    for index in range(len(encoder.rows)) if encoder.has_inputs else ():
        try:
            encoder.inputs(index)
        except DataError as error:
            faults.append((index, error))
    if faults:
        first, found = faults[0][1], [index for index, _ in faults]
        yield DataError(
            f"{first.where}: {first.what} in {len(found)} of {len(encoder.rows)} rows ({rows_text(found)})",
            where=cfg.where("data", encoder.rows.split),
            got=first.got,
            allowed=first.allowed,
            fix=first.fix,
        )


# ---- control tokens in the data ----


def _typed(cfg: RunConfig, encoder: PromptEncoder, *, trained: bool) -> Iterator[PosttrainError]:
    if cfg.data.special_tokens_in_text == "token":
        return
    rows = encoder.rows
    found, looked = encoder.kept(("typed", trained), partial(_typed_tokens, encoder, trained=trained))
    if not found:
        return
    names = ", ".join(sorted(set().union(*found.values())))
    yield DataError(
        f"control tokens are spelled in the text of {len(found)} of {looked} rows ({rows_text(found)}), and are read "
        "as text",
        where=cfg.where("data", rows.split),
        got=names,
        fix="If they are meant as tokens, as in prompts that were rendered beforehand, set "
        "data.special_tokens_in_text: token",
    )


def _typed_tokens(encoder: PromptEncoder, *, trained: bool) -> tuple[dict[int, set[str]], int]:
    """Row -> control tokens that its texts spell, and how many rows were looked at in the time there is."""
    markers, rows, end = markers_of(encoder.tokenizer), encoder.rows, time.monotonic() + _SECONDS
    learns = trained and encoder.column != "prompt"
    found: dict[int, set[str]] = {}
    looked = 0
    for start in range(0, len(rows), _BLOCK):
        block: Sequence[int] = range(start, min(start + _BLOCK, len(rows)))
        texts = [_plain_text(encoder, index, learns=learns) for index in block]
        if not markers.may_stand_in("\n".join(text or "" for text in texts)):
            block = [index for index, text in zip(block, texts, strict=True) if text is None]
        looked += len(texts) - len(block)
        for index in block:
            if time.monotonic() > end:
                return found, looked
            looked += 1
            if typed := _typed_in(encoder, index, markers, learns=learns):
                found[index] = typed
    return found, looked


def _plain_text(encoder: PromptEncoder, index: int, *, learns: bool) -> str | None:
    """Every text of a row as one; None where more than roles, contents and a demonstration in words is rendered."""
    prompt, text = encoder.rows.prompts[index], encoder.rows.solutions[index] if learns else ""
    if encoder.has_inputs or not isinstance(text, str):
        return None
    if isinstance(prompt, str):
        return f"{prompt}\n{text}"
    if any(len(message) != 2 or not isinstance(message.get("content"), str) for message in prompt):
        return None
    return "\n".join([*(f"{message.get('role')}\n{message['content']}" for message in prompt), text])


def _typed_in(encoder: PromptEncoder, index: int, markers: Any, *, learns: bool) -> set[str]:
    """Control tokens that the texts of one row spell."""
    rows = encoder.rows
    prompt = rows.prompts[index]
    messages = [{"role": "assistant", "content": prompt}] if isinstance(prompt, str) else prompt
    hidden = [markers.hide(message, role=str(message.get("role"))) for message in messages]
    if learns and isinstance(text := rows.solutions[index], str):
        while text.rstrip().endswith(str(encoder.tokenizer.eos_token)):
            text = text.rstrip().removesuffix(str(encoder.tokenizer.eos_token))
        hidden.append(markers.hide(encoder.message(index, text) or text))
    found: set[str] = markers.found(hidden)
    return found


def _messages_as_text(cfg: RunConfig, encoder: PromptEncoder) -> Iterator[PosttrainError]:
    """Prompts and demonstrations that are messages written as text, as CSV files hold them; read as the text."""
    rows = encoder.rows
    for name, texts in {"prompt": list(map(_only_text, rows.prompts)), encoder.column: rows.solutions}.items():
        found = [index for index, text in enumerate(texts) if isinstance(text, str) and _MESSAGES.match(text)]
        if found:
            yield DataError(
                f"column {name!r} holds messages written as text in {len(found)} of {len(rows)} rows "
                f"({rows_text(found)}), and is read as that text",
                where=cfg.where("data", rows.split),
                fix="Write the rows as JSON Lines or parquet, with a list of messages in the cell",
            )


def _only_text(prompt: Any) -> Any:
    """The text of a prompt that was one text in its cell."""
    return prompt if isinstance(prompt, str) else prompt[-1].get("content")


# ---- fields that no template reads ----


def _unread(cfg: RunConfig, encoder: PromptEncoder, *, trained: bool) -> Iterator[PosttrainError]:
    """Fields of messages, and inputs of rows, whose absence changes nothing that is rendered."""
    rows, where = encoder.rows, cfg.where("data", encoder.rows.split)
    chats = [index for index, prompt in enumerate(rows.prompts) if not isinstance(prompt, str)]
    fields: dict[str, list[int]] = {}
    for index in chats:
        names = {name for message in rows.prompts[index] for name, value in message.items() if value is not None}
        for name in sorted(names - {"role", "content"}):
            fields.setdefault(name, []).append(index)
    inputs: dict[str, list[int]] = {}
    if encoder.has_inputs:
        for index in chats:
            for name in sorted(set(encoder.inputs(index)) - {"special_tokens_in_text", ASSISTANT_MESSAGES}):
                inputs.setdefault(name, []).append(index)
    elif chats:
        inputs = {name: chats for name in encoder.kwargs if name != "special_tokens_in_text"}
    answers: dict[str, list[int]] = {}
    for index in chats if trained and encoder.has_inputs else ():
        message = encoder.message(index, rows.solutions[index]) or {}
        for name in sorted(message.keys() - {"role", "content"}):
            answers.setdefault(name, []).append(index)
    template = json.dumps(encoder.tokenizer.chat_template, ensure_ascii=False)
    for kind, found, without in (
        ("field", fields, _without_field),
        ("variable", inputs, _without_input),
        ("answer", answers, None),
    ):
        for name, indices in found.items():
            # What a template says of its prompts need not hold for the last turn.
            is_named = kind != "answer" and re.search(rf"\b{re.escape(name)}\b", template)
            if is_named or _changes(encoder, name, indices[:_TRIED], without):
                continue
            what = _WHATS[kind]
            yield DataError(
                f"the chat template does not read this {what}, which {len(indices)} of {len(rows)} rows have",
                where=where,
                got=name,
                fix="Use a tokenizer whose template reads it, or take it out",
            )


def _beside_text(cfg: RunConfig, encoder: PromptEncoder) -> Iterator[PosttrainError]:
    """Inputs of a template beside prompts that are text, which no template reads."""
    rows = encoder.rows
    texts = [index for index, prompt in enumerate(rows.prompts) if isinstance(prompt, str)]
    inputs = {name: texts for name in encoder.kwargs if name != "special_tokens_in_text"}
    inputs |= {name: [index for index in texts if cells[index]] for name, cells in encoder.own.items()}
    for name, found in inputs.items():
        if found:
            yield DataError(
                f"prompts that are text go through no chat template, and {len(found)} of {len(rows)} rows have an "
                "input of it",
                where=cfg.where("data", rows.split),
                got=name,
                fix="Write the prompts as messages, or take it out",
            )


Without = Callable[[Any, dict[str, Any], str], tuple[Any, dict[str, Any]]]


def _without_field(prompt: Any, inputs: dict[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    return [{key: value for key, value in message.items() if key != name} for message in prompt], inputs


def _without_input(prompt: Any, inputs: dict[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    return prompt, {key: value for key, value in inputs.items() if key != name}


def _changes(encoder: PromptEncoder, name: str, indices: list[int], without: Without | None) -> bool:
    """Whether any of the prompts, or with `without` None of the demonstrations, reads differently without it.

    A template that fails without it does read it.
    """
    for index in indices:
        prompt, inputs, answer = encoder.rows.prompts[index], encoder.inputs(index), None
        if without is not None:
            prompt, inputs = without(prompt, inputs, name)
        else:
            answer = encoder.rows.solutions[index]
            prompt, inputs = _without_field([*prompt, encoder.message(index, answer)], inputs, name)
        try:
            mine = render_prompt(encoder.tokenizer, prompt, add_generation_prompt=answer is None, **inputs)
            if mine.text != encoder.rendered(index, answer).text:
                return True
        except TemplateRefusal:
            return True
    return False


# ---- stages ----


def stage_findings(
    stages: Mapping[str, tuple[RunConfig, PromptEncoder]], origins: Mapping[str, str | None]
) -> Iterator[PosttrainError]:
    """Stages that read the same prompt as other tokens than the stage whose model they go on with.

    Args:
        stages: configuration and encoder of the training rows, by name in order.
        origins: name of the stage whose model each starts from.
    """
    for name, (cfg, encoder) in stages.items():
        earlier = origins.get(name)
        while earlier is not None and (earlier not in stages or not _is_chat(*stages[earlier])):
            earlier = origins.get(earlier)
        if earlier is None or not _is_chat(cfg, encoder):
            continue
        before, other = stages[earlier]
        if before.data.system_prompt != cfg.data.system_prompt:
            yield DataError(
                f"stage {name!r} puts another system message before its prompts than stage {earlier!r}, whose model "
                "it goes on with",
                where=cfg.where("data", "system_prompt"),
                got=cfg.data.system_prompt,
                allowed=repr(before.data.system_prompt),
            )
        yield from _other_variables(name, cfg, encoder, earlier, other)


def _is_chat(cfg: RunConfig, encoder: PromptEncoder) -> bool:
    if "documents" in registry.get(cfg.method.name).inputs:
        return False
    return any(not isinstance(prompt, str) for prompt in encoder.rows.prompts[:SAMPLE])


def _other_variables(
    name: str, cfg: RunConfig, encoder: PromptEncoder, earlier: str, other: PromptEncoder
) -> Iterator[PosttrainError]:
    """A prompt that reads otherwise with the template variables of an earlier stage."""
    if encoder.kwargs == other.kwargs:
        return

    differing, shown = 0, ("", "")
    looked = min(SAMPLE, len(encoder.rows))
    for index in range(looked):
        mine, own = encoder.prompt(index), encoder.inputs(index)
        shared = {
            key: value for key, value in own.items() if key not in encoder.kwargs or value != encoder.kwargs[key]
        }
        theirs = encode_prompt(encoder.tokenizer, encoder.rows.prompts[index], **{**other.kwargs, **shared})
        if mine == theirs:
            continue
        differing += 1
        place = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
        place = min(len(mine), len(theirs)) if place is None else place
        decoded = [encoder.tokenizer.decode(ids[max(0, place - 4) : place + 12]) for ids in (theirs, mine)]
        shown = (decoded[0], decoded[1])
    if differing:
        yield DataError(
            f"stage {name!r} reads {differing} of {looked} prompts as other tokens than stage {earlier!r}, whose "
            f"model it goes on with: {shown[1]!r} in place of {shown[0]!r}",
            where=cfg.where("data", "chat_template_kwargs"),
            got=encoder.kwargs,
            allowed=f"{other.kwargs}, as stage {earlier!r} has it",
            fix="Set data.chat_template_kwargs once for all stages, unless that is meant",
        )


# ---- what is shown ----


def reward_facts(cfg: RunConfig, tokenizer: Any) -> list[str]:
    """What rewards are given of the special tokens of a completion; nothing for a method without rollouts."""
    if cfg.rollout is None:
        return []
    ends = {tokenizer.eos_token, tokenizer.pad_token} - {None}
    shown = [str(token) for token in tokenizer.all_special_tokens if token not in ends]
    written = f", such as {', '.join(shown[:3])}," if shown else ""
    return [
        f"rewards read special tokens within a completion{written} as text; those that end or pad it "
        f"({', '.join(sorted(ends))}) are cut off"
    ]


def previews(cfg: RunConfig, encoder: PromptEncoder, *, trained: bool, count: int) -> Iterator[Preview]:
    """The first rows as they are trained."""
    rows, tokenizer = encoder.rows, encoder.tokenizer
    kept = [index for index in range(len(rows)) if index not in rows.dropped]
    limit = getattr(cfg.rollout, "max_completion_length", None) if cfg.rollout is not None else None
    sampled = f"a completion of up to {limit} tokens is sampled and trained up to its stop token"
    for index in kept[:count]:
        text = rows.solutions[index] if trained else None
        title = f"train row {index} ({cfg.method.name})"
        if isinstance(text, str) and text.strip():
            gated = f"demonstration, trained where the gate opens; elsewhere {sampled}"
            yield preview(title, tokenizer, *encoder.row(index), note="" if cfg.rollout is None else gated)
            for column in further_answers(cfg.method):
                yield preview(f"{title}, {column}", tokenizer, *encoder.row(index, column=column))
        else:
            note = "the demonstration is empty" if cfg.rollout is None else sampled
            yield preview(title, tokenizer, encoder.prompt(index), [], note=note)
