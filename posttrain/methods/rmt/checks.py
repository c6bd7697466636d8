"""Checks of methods that read documents instead of prompts: what they will ask, made from a few documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from posttrain.config.run_config import RunConfig
from posttrain.config.steps import StageStep
from posttrain.config.validation import raise_all
from posttrain.errors import DataError, PosttrainError
from posttrain.methods.rmt.corpus import refuse_other_tokens
from posttrain.methods.rmt.entropy_scoring import encode_documents
from posttrain.methods.rmt.questions import ContinuationRows, find_targets, index_in_memory
from posttrain.preflight.data import Rows
from posttrain.preflight.model import is_unreachable
from posttrain.preflight.rewards import placed

ROWS = 32


def document_findings(cfg: RunConfig, rows: Rows, tokenizer: Any) -> Iterator[PosttrainError]:
    """Rows that are no documents, and a tokenizer that cannot ask."""
    where = cfg.where("data", "train")
    chats = [index for index, prompt in enumerate(rows.prompts) if not isinstance(prompt, str)]
    if chats:
        yield DataError(
            "the method reads documents, not chats",
            where=where,
            got=rows.prompts[chats[0]],
            fix="Set data.train.format: text, and name the text under data.train.columns.prompt",
        )
    if not tokenizer.chat_template:
        yield DataError(
            "the tokenizer has no chat template, and the questions about the text are chats",
            where=cfg.where("model"),
            fix="Use an instruct model",
        )
    yield from _scorer_findings(cfg, tokenizer)


def _scorer_findings(cfg: RunConfig, tokenizer: Any) -> Iterator[PosttrainError]:
    """A scorer that cuts text into other tokens; nothing where the Hub that has it is out of reach."""
    if cfg.method.entropy_model is None:
        return
    try:
        refuse_other_tokens(cfg.method.entropy_model, tokenizer)
    except PosttrainError as error:
        if not is_unreachable(error):
            yield placed(error, cfg.where("method", "entropy_model"))


class DocumentStep(StageStep):
    """Shows the rewards what a run will ask about its documents."""

    def questions(self, run: RunConfig, rows: Any, tokenizer: Any) -> Rows:
        raise_all(list(document_findings(run, rows, tokenizer)))
        return questions(run, rows, tokenizer)


def questions(cfg: RunConfig, rows: Rows, tokenizer: Any) -> Rows:
    """Rows as the rewards will see them, about the token in the middle of the first documents.

    Raises:
        PosttrainError: no document can be asked about.
    """
    _, documents, _ = encode_documents(rows.prompts[:ROWS], tokenizer)
    index = index_in_memory(documents)
    method = cfg.method
    maker = ContinuationRows(
        index,
        tokenizer,
        method.match_reward or "prefix",
        extraction=method.answer_extraction,
        template=method.prompt_template,
        budget_template=method.budget_prompt,
    )
    usable = set(find_targets(index, tokenizer, thresholds=(0.0, 0.0, 0.0)).positions.tolist())
    made = []
    for number in range(index.num_documents):
        begin, end = int(index.starts[number]), int(index.starts[number + 1])
        places = [place for place in range(begin + 1, end) if place in usable]
        if places:
            row = maker.row(places[len(places) // 2])
            made.append(row | {"solution": f"<think></think>\\boxed{{{row['answer']}}}"})
    dataset = Dataset.from_list(made)
    return Rows(
        rows.split,
        list(dataset["prompt"]),
        list(dataset["answer"]),
        list(dataset["solution"]),
        list(dataset.column_names),
        dataset,
    )
