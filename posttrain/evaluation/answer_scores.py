"""What a model thinks of given answers: teacher-forced log-probabilities and likeliest tokens, in batches.

The model and the random number generators are left as found. Every process that calls this scores all rows itself, so
that all make the same number of forwards; nothing is gathered.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.data.demonstrations import encode_pair
from posttrain.data.rendering import template_inputs
from posttrain.errors import DataError
from posttrain.evaluation.generate import as_found
from posttrain.evaluation.memorisation import exact_memorisation, extraction_strength, min_k_score
from posttrain.evaluation.unlearning import mean_logp
from posttrain.models.positions import with_positions

Progress = Callable[[int, int], None]
ANSWER_COLUMNS = ("solution", "answer")  # the first that a row has something in


@dataclass(frozen=True)
class Encoded:
    """A prompt and its answer as token ids; the answer ends with the end token."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class AnswerScore:
    """What the model gave each token of an answer, the end token last."""

    logps: tuple[float, ...]
    labels: tuple[int, ...]
    predicted: tuple[int, ...]  # likeliest token at each position, given the answer's tokens before it

    @property
    def logp(self) -> float:
        """Mean log-probability, end token included: a model that learnt the answer learnt to stop, too."""
        return mean_logp(self.logps)


@dataclass(frozen=True)
class AnswerRow:
    """One question with all the answers that are scored; lists are empty where the data has none."""

    key: str  # hash of question and answer: two measurements of one row have the same
    label: Encoded
    paraphrases: tuple[Encoded, ...] = ()  # in other words, question and answer
    paraphrased: Encoded | None = None  # the question as it is, the first answer in other words
    perturbed: tuple[Encoded, ...] = ()  # the question as it is, wrong answers

    def all(self) -> list[Encoded]:
        """Every answer that is to be scored, in the order that `split` expects."""
        own = [self.paraphrased] if self.paraphrased is not None else []
        return [self.label, *self.paraphrases, *own, *self.perturbed]


def answer_of(row: Mapping[str, Any]) -> str:
    """The answer of a row: its demonstration, else its answer; "" without either."""
    return next((row[key] for key in ANSWER_COLUMNS if row.get(key)), "")


def encode_rows(
    tokenizer: Any, dataset: Any, *, name: str, with_perturbed: bool = True, **chat_template_kwargs: Any
) -> list[AnswerRow]:
    """The rows of a set as tokens.

    Args:
        tokenizer: of the model.
        dataset: rows with `prompt`, `solution` or `answer`, and optionally `paraphrases` with `paraphrased_prompts`,
            and `perturbed`: lists of texts, or one text.
        name: of the set, for messages.
        with_perturbed: False leaves out what only the truth ratio needs.
        chat_template_kwargs: variables of the template, as given to the trainer.

    Raises:
        DataError: no row, an empty answer, or other numbers of paraphrased questions and answers; names the row.
    """
    if len(dataset) == 0:
        raise DataError("there are no rows", where=name, fix="Give the set rows, or leave it out")
    found = []
    for index, row in enumerate(dataset):
        where, inputs = f"{name} row {index}", template_inputs(row, chat_template_kwargs)

        def pair(prompt: Any, text: Any, *, where: str = where, inputs: Mapping[str, Any] = inputs) -> Encoded:
            if not isinstance(text, str) or not text.strip():
                raise DataError("the answer is empty or no text", where=where, got=text, fix="Drop the row")
            return Encoded(*encode_pair(tokenizer, prompt, text, **inputs))

        prompt, answer = row["prompt"], answer_of(row)
        texts, questions = _texts(row, "paraphrases", where), _texts(row, "paraphrased_prompts", where)
        if questions and len(questions) != len(texts):
            what = "as many paraphrased questions as answers are needed"
            raise DataError(what, where=where, got=f"{len(questions)} questions, {len(texts)} answers")
        asked = [_asked(prompt, question) for question in questions] or [prompt] * len(texts)
        wrong = _texts(row, "perturbed", where) if with_perturbed else []
        every = json.dumps([prompt, answer, asked, texts, wrong])
        found.append(
            AnswerRow(
                key=hashlib.sha256(every.encode()).hexdigest()[:16],
                label=pair(prompt, answer),
                paraphrases=tuple(pair(*item) for item in zip(asked, texts, strict=True)),
                paraphrased=pair(prompt, texts[0]) if texts and wrong else None,
                perturbed=tuple(pair(prompt, text) for text in wrong),
            )
        )
    return found


def score(
    model: nn.Module,
    answers: Sequence[Encoded],
    *,
    pad: int,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[AnswerScore]:
    """Score each answer after its prompt, in one forward for every `batch_size` of them.

    Args:
        model: causal LM; also PEFT. Under several processes every rank must call this with the same answers.
        answers: from `encode_rows`.
        pad: token id to fill up shorter rows with, on the right.
        batch_size: rows of a forward; those of similar length go together.
        progress: called with (answers done, answers in all) after each batch.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(answers)), key=lambda place: len(answers[place]))
    found: dict[int, AnswerScore] = {}
    with as_found(model):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            for place, one in zip(places, _forward(model, [answers[i] for i in places], pad, device), strict=True):
                found[place] = one
            if progress is not None:
                progress(len(found), len(answers))
    return [found[place] for place in range(len(answers))]


def _forward(model: Any, answers: Sequence[Encoded], pad: int, device: torch.device) -> list[AnswerScore]:
    width = max(map(len, answers))
    ids = torch.full((len(answers), width), pad, dtype=torch.long)  # (B, S)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(answers):
        ids[row, : len(item)] = torch.tensor(item.prompt + item.answer)
        mask[row, : len(item)] = 1
    inputs = with_positions(model, {"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    logits = model(**inputs, use_cache=False).logits  # (B, S, V)
    found = []
    for row, item in enumerate(answers):
        begin = len(item.prompt)
        part = logits[row, begin - 1 : len(item) - 1].float()  # (T, V): what the answer's tokens were predicted with
        labels = torch.tensor(item.answer, device=device)
        logps = part.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        found.append(AnswerScore(tuple(logps.tolist()), tuple(item.answer), tuple(_likeliest(part))))
    return found


def _likeliest(logits: Tensor) -> list[int]:
    return [int(token) for token in logits.argmax(-1)]


def score_rows(
    model: nn.Module,
    rows: Sequence[AnswerRow],
    *,
    pad: int,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The numbers of each row that the unlearning metrics are made of, as plain JSON values.

    Returns:
        For each row: `key`; `logp`, the mean log-probability of the answer; `paraphrase_logps`; `paraphrased_nll` and
        `perturbed_nlls` for the truth ratio (None and [] without); `min_k`; `extraction_strength`, also as
        open-unlearning counts it, and `exact_memorisation`, both without the end token.
    """
    scores = iter(
        score(model, [item for row in rows for item in row.all()], pad=pad, batch_size=batch_size, progress=progress)
    )
    found = []
    for row in rows:
        label = next(scores)
        paraphrases = [next(scores).logp for _ in row.paraphrases]
        own = next(scores).logp if row.paraphrased is not None else None
        wrong = [-next(scores).logp for _ in row.perturbed]
        numbers: dict[str, Any] = {
            "key": row.key,
            "logp": label.logp,
            "paraphrase_logps": paraphrases,
            "paraphrased_nll": None if own is None else -own,
            "perturbed_nlls": wrong,
        }
        found.append(numbers | _memorised(label))
    return found


def mean_logps(model: nn.Module, rows: Sequence[AnswerRow], *, pad: int, batch_size: int = 32) -> dict[str, float]:
    """Mean log-probability a token of the answers, `label`; with paraphrases also theirs, `paraphrases`, and `forms`.

    Means over rows of means over a row's answers; see `score_rows` for what is one answer's. `forms` counts the label
    as one of the paraphrases: its fall is the forget score.
    """
    scores = iter(
        score(model, [item for row in rows for item in (row.label, *row.paraphrases)], pad=pad, batch_size=batch_size)
    )
    labels, others, forms = [], [], []
    for row in rows:
        labels.append(next(scores).logp)
        own = [next(scores).logp for _ in row.paraphrases]
        forms.append(mean_logp([labels[-1], *own]))
        others += [mean_logp(own)] if own else []
    found = {"label": mean_logp(labels)}
    return found | ({"paraphrases": mean_logp(others), "forms": mean_logp(forms)} if others else {})


def _memorised(label: AnswerScore) -> dict[str, Any]:
    # A diverged model gives NaN; that is a finding of the unlearning, and no reason to stop measuring.
    is_finite = not any(math.isnan(value) for value in label.logps)
    predicted, labels = label.predicted[:-1], label.labels[:-1]
    return {
        "min_k": min_k_score(label.logps) if is_finite else math.nan,
        "extraction_strength": extraction_strength(predicted, labels),
        "extraction_strength_compat": extraction_strength(predicted, labels, es_compat=True),
        "exact_memorisation": exact_memorisation(predicted, labels),
    }


def _texts(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    value = row.get(column)
    texts = [value] if isinstance(value, str) and value else list(value or [])
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError("a list of texts is expected", where=f"{where}, column {column!r}", got=value)
    return texts


def _asked(prompt: Any, question: str) -> Any:
    """The prompt with another question: the last message of a chat, or the text."""
    return question if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": question}]
