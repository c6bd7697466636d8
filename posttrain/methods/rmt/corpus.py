"""The documents of a run as a scored token index, and the order in which their tokens are asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from posttrain.data.rendering import encode_prompt
from posttrain.errors import DataError, SupportError
from posttrain.evaluation.progress import EvaluationProgress
from posttrain.methods.rmt import token_index
from posttrain.methods.rmt.config import NextTokenConfig
from posttrain.methods.rmt.entropy_scoring import score_corpus, store_entropies
from posttrain.methods.rmt.questions import (
    ContinuationRows,
    Targets,
    find_targets,
    round_trip_fraction,
    tier_counts,
)
from posttrain.methods.rmt.token_curriculum import TierDraws
from posttrain.methods.rmt.token_index import TokenIndex
from posttrain.models.loading import load_model, load_tokenizer
from posttrain.seam.sampling import EpochRepeatSampler
from posttrain.seam.sharding import gathered_weights, zero3_disabled

_logger = logging.getLogger(__name__)
# Share of targets that may be lost by re-tokenising before exact_token gives way to prefix.
MAX_LOST = 0.2


class CurriculumSampler(EpochRepeatSampler):
    """Targets drawn by a curriculum, in the layout that group-based training needs; block b is the same after a
    resume."""

    def __init__(self, data: Any, *, draws: TierDraws, **layout: Any):
        super().__init__(data, **layout)
        self.draws = draws

    def blocks(self) -> Iterator[list[int]]:
        count = len(self.data) // self.prompts_per_batch
        for number in range(self.epoch * count, (self.epoch + 1) * count):
            yield self.draws.block(number)


def documents_of(dataset: Any) -> tuple[list[Any], list[Any] | None]:
    """Texts of the training rows, and their column `entropy` if there is one. A column `prompt` goes before `text`: it
    is what a recipe maps and checks, and a file's own `text` may lie beside it.

    Raises:
        DataError, SupportError: a stream, or rows without text.
    """
    if not isinstance(dataset, Dataset):
        raise SupportError(
            "the corpus must have an end: tokens are scored and drawn over all of it, and the length of the run is "
            "not known without it",
            where="train dataset",
            got=type(dataset).__name__,
            allowed="a datasets.Dataset",
            fix="Take a part of the stream as a file, and set trainer.max_steps",
        )
    names = dataset.column_names
    column = next((name for name in ("prompt", "text") if name in names), None)
    if column is None:
        raise DataError("there is no text", where="train dataset", got=names, allowed="a column text or prompt")
    texts = list(dataset[column])
    if texts and not isinstance(texts[0], str):
        raise DataError(
            "mid-training reads documents, not chats",
            where="train dataset",
            got=texts[0],
            fix="Set data.train.format: text and name the text under data.train.columns.prompt",
        )
    return texts, list(dataset["entropy"]) if "entropy" in names else None


def corpus_index(
    dataset: Any, *, args: NextTokenConfig, tokenizer: Any, model: PreTrainedModel, folder: Path | None = None
) -> TokenIndex:
    """The index of some rows: opened, finished or made; by the first process, and again on machines that do not share
    its disk.

    Args:
        folder: of the index; None = `token_index` of the settings, or that in the run's folder.

    Raises:
        DataError: unusable documents, or an index that was made from something else. SupportError: a scorer with
            another vocabulary.
    """
    texts, entropies = documents_of(dataset)
    folder = folder or Path(args.token_index or Path(args.output_dir) / "token_index")
    # The first process of all, then the first of each machine, then the others: two never write the same folder.
    state = args.distributed_state
    with gathered_weights(model), zero3_disabled(), state.main_process_first(), state.local_main_process_first():
        if entropies is not None:
            return store_entropies(texts, entropies, folder=folder, tokenizer=tokenizer)
        return scored(texts, folder=folder, args=args, tokenizer=tokenizer, model=model)


def scored(
    texts: list[Any], *, folder: Path, args: NextTokenConfig, tokenizer: Any, model: PreTrainedModel
) -> TokenIndex:
    """Score a corpus with the configured scorer under a progress bar."""
    scorer = model
    if args.entropy_model is not None:
        refuse_other_tokens(args.entropy_model, tokenizer)
        scorer = load_model({"path": args.entropy_model}, path=args.entropy_model)
    home = next(scorer.parameters()).device
    scorer.to(args.device)
    with EvaluationProgress(words=("scoring", "scored", "documents")) as progress:
        index = score_corpus(
            texts,
            folder=folder,
            tokenizer=tokenizer,
            model=scorer,
            top_k=args.entropy_top_k,
            progress=progress if args.process_index == 0 else None,
        )
    scorer.to(home)
    if index is None:
        raise DataError("the token index is not finished", where=str(folder))
    return index


def refuse_other_tokens(scorer: str, tokenizer: Any) -> None:
    """SupportError if a scorer has another vocabulary, other special tokens or other cuts than the policy."""
    if token_index.tokenizer_digest(load_tokenizer({"path": scorer})) != token_index.tokenizer_digest(tokenizer):
        raise SupportError(
            "the scorer cuts text into other tokens than the policy",
            where="method.entropy_model",
            got=scorer,
            allowed="a model with the policy's tokenizer",
            fix="Take a smaller model of the policy's family, or leave the line out: the policy scores",
        )


def targets_of(index: TokenIndex, *, args: NextTokenConfig, tokenizer: Any, is_main: bool) -> Targets:
    """Tokens that may be asked for; says how many, and what was left out."""
    targets = find_targets(index, tokenizer, thresholds=args.entropy_thresholds, max_entropy=args.max_entropy)
    dropped = {**index.record["dropped_documents"], **targets.left_out}
    if is_main:
        counts = ", ".join(f"{count} {name}" for name, count in tier_counts(targets.tiers).items())
        lost = "".join(f"; left out: {count} ({reason})" for reason, count in dropped.items())
        _logger.info("%d of %d tokens can be asked for: %s%s", len(targets.positions), len(index.tokens), counts, lost)
    return targets


def rows_of(
    index: TokenIndex, targets: Targets, *, args: NextTokenConfig, tokenizer: Any, budget_template: str
) -> ContinuationRows:
    """Makes the questions; exact_token gives way to prefix where too many targets are lost by re-tokenising."""
    rows = ContinuationRows(
        index=index,
        tokenizer=tokenizer,
        rule=args.rule,  # type: ignore[arg-type]
        extraction=args.answer_extraction,
        template=args.prompt_template,
        budget_template=budget_template,
    )
    if rows.rule != "exact_token":
        return rows
    lost = 1.0 - round_trip_fraction(rows, targets.positions, seed=args.seed)
    if lost <= MAX_LOST:
        return rows
    instead = "it stays, as method.match_reward asks" if args.match_reward else "prefix is used instead"
    _logger.warning(
        "exact_token: %.0f %% of the targets are not one token again when re-tokenised; %s", 100 * lost, instead
    )
    if args.match_reward:
        return rows
    return ContinuationRows(index, tokenizer, "prefix", args.answer_extraction, args.prompt_template, budget_template)


def refuse_long_questions(
    questions: ContinuationRows,
    targets: Targets,
    *,
    positions: int | None,
    longest: int,
    variables: Mapping[str, Any] | None = None,
) -> None:
    """DataError if the longest question and a completion do not fit the model's positions."""
    index = questions.index
    starts = index.starts[numpy.searchsorted(index.starts, targets.positions, side="right") - 1]
    place = int((targets.positions - starts).argmax())
    row = questions.row(int(targets.positions[place]), budget=longest)
    size = len(encode_prompt(questions.tokenizer, row["prompt"], **(variables or {})))
    if positions is not None and size + longest > positions:
        raise DataError(
            "the longest question and its completion do not fit the model",
            where="data.max_prompt_length",
            got=f"{size} + {longest} tokens",
            allowed=f"at most {positions} positions",
            fix="A row is a document and is never cut: split long ones into several rows beforehand, leave them out (a"
            " lower data.max_prompt_length with data.overlong_prompts: drop), or lower rollout.max_completion_length",
        )


def as_dataset(targets: Targets) -> Dataset:
    """One row for each target; the words are made when the row is drawn."""
    return Dataset.from_dict({"position": targets.positions.tolist(), "tier": targets.tiers.tolist()})


def document_rows(index: TokenIndex, positions: torch.Tensor) -> dict[int, list[int]]:
    """First prompt group that asks about a document, and the document's positions asked for in any group.

    Args:
        positions: (N,) flat positions, one for each group.

    Returns:
        group -> flat positions, in the order of the groups.
    """
    owners: dict[int, int] = {}
    asked: dict[int, list[int]] = {}
    for group, position in enumerate(positions.tolist()):
        group_of_document = owners.setdefault(index.document_of(position), group)
        asked.setdefault(group_of_document, []).append(position)
    return asked


def document_ids(index: TokenIndex, position: int) -> tuple[int, numpy.ndarray]:
    """Where the document of a position begins, and its token ids."""
    number = index.document_of(position)
    return int(index.starts[number]), index.document(number)
