"""Every unlearning metric that some measured sets allow, and why the others cannot be computed.

Sets by name: `forget` (what was unlearned), `retain` (what should stay), `holdout` (of the kind of the forget set, and
never trained on), `real_authors` and `world_facts` (general knowledge, with wrong options), and any other, which is
measured as far as its rows allow. Rows are those of `answer_scores.score_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import DataError
from posttrain.evaluation import memorisation, unlearning

Row = Mapping[str, Any]
Sets = Mapping[str, Sequence[Row]]
KNOWLEDGE = ("real_authors", "world_facts")
UTILITY_SETS = ("retain", *KNOWLEDGE)
NEEDS_BEFORE = "needs the result of the model before unlearning (--against)"
NEEDS_RETRAINED = "needs the result of a model trained without the forget set (--reference)"


@dataclass(frozen=True)
class Measured:
    """A number, or None with the reason why there is none; `count` rows are in it."""

    value: float | None
    reason: str = ""
    count: int = 0


MEANINGS = {
    "logp": "mean log-probability of the answers, nats a token",
    "paraphrase_logp": "the same of the answers in other words",
    "probability": "exp of it, mean over rows; of the last two sets, the true answer's share among all options",
    "rouge_l_recall": "words of the answer that greedy decoding gives, in their order",
    "truth_ratio": "forget: 1 where right and wrong answers are equally likely; others: 1 where wrong are unlikely",
    "extraction_strength": "part of the answer that follows word by word from the prompt and the rest",
    "extraction_strength_compat": "as open-unlearning counts it",
    "exact_memorisation": "positions whose likeliest token is the answer's",
    "min_k": "negative mean of the 20 % least likely tokens; low for what was trained on",
    "forget_score": "nats a token by which the answers, and they in other words, became less likely; more = forgotten",
    "kept_utility": "1 - change of the mean log-probability of answers to keep",
    "forget_quality": "p-value: may the truth ratios be those of the retrained model?",
    "model_utility": "harmonic mean of probability, ROUGE and truth ratio on retain, real_authors and world_facts",
    "membership_auc": "min-k: 1 = forget far likelier than held-out rows, .5 = alike",
    "privacy_leakage": "per cent from the retrained model's AUC: below 0 too little was forgotten, above 0 too much",
}


def measure(sets: Sets, *, before: Sets | None = None, retrained: Sets | None = None) -> dict[str, Measured]:
    """All metrics by name, "<set>.<metric>" for those of one set.

    Args:
        sets: the measured rows of the model in question.
        before: of the model before unlearning, on the same rows.
        retrained: of a model that was trained without the forget set, on the same rows.

    Raises:
        DataError: an earlier measurement is of other rows.
    """
    for name, other in (("--against", before), ("--reference", retrained)):
        _refuse_other_rows(sets, other, name)
    found: dict[str, Measured] = {}
    for name, rows in sets.items():
        found |= {f"{name}.{metric}": value for metric, value in _of_a_set(name, rows).items()}
    found["forget_score"] = _compared(sets, before, "forget", NEEDS_BEFORE, _forget_score)
    found["kept_utility"] = _compared(sets, before, "retain", NEEDS_BEFORE, _kept_utility)
    found["forget_quality"] = _compared(sets, retrained, "forget", NEEDS_RETRAINED, _forget_quality)
    found["model_utility"] = _model_utility(found)
    found["membership_auc"] = _auc(sets)
    found["privacy_leakage"] = _leakage(sets, retrained)
    return found


def truth_ratios(rows: Sequence[Row], *, name: str = "forget") -> list[float]:
    """Truth ratio of each row that has what it needs.

    Of general knowledge, which no row taught in these words, the answer itself stands for a missing paraphrase, as in
    the reference code of TOFU.
    """
    found = []
    for row in rows:
        right = -row["logp"] if row["paraphrased_nll"] is None and name in KNOWLEDGE else row["paraphrased_nll"]
        if right is not None and row["perturbed_nlls"]:
            found.append(unlearning.truth_ratio(right, row["perturbed_nlls"]))
    return found


def answers_of(row: Row) -> list[float]:
    """Mean log-probabilities of the label and of each paraphrase, as `forget_score` takes them."""
    return [row["logp"], *row["paraphrase_logps"]]


def _of_a_set(name: str, rows: Sequence[Row]) -> dict[str, Measured]:
    found = {"logp": _mean([row["logp"] for row in rows])}
    paraphrased = [_plain_mean(row["paraphrase_logps"]) for row in rows if row["paraphrase_logps"]]
    found["paraphrase_logp"] = _mean(paraphrased, missing="the rows have no paraphrases")
    found["probability"] = _probability(name, rows)
    greedy = [row["rouge_l_recall"] for row in rows if row.get("rouge_l_recall") is not None]
    found["rouge_l_recall"] = _mean(greedy, missing="no answer was generated")
    ratios = truth_ratios(rows, name=name)
    aggregate = unlearning.truth_ratio_of_forgotten if name == "forget" else unlearning.truth_ratio_of_kept
    missing = "the rows lack paraphrases or perturbed answers"
    found["truth_ratio"] = _made(lambda: aggregate(ratios), len(ratios)) if ratios else Measured(None, missing)
    for metric in ("extraction_strength", "extraction_strength_compat", "exact_memorisation", "min_k"):
        found[metric] = _mean([row[metric] for row in rows])
    return found


def _probability(name: str, rows: Sequence[Row]) -> Measured:
    """Of general knowledge the share among the options, otherwise the probability itself."""
    if name not in KNOWLEDGE:
        return _mean([unlearning.probability(-row["logp"]) for row in rows])
    if not all(row["perturbed_nlls"] for row in rows):
        return Measured(None, "the rows lack wrong options (perturbed)")
    return _mean([unlearning.normalised_probability(-row["logp"], row["perturbed_nlls"]) for row in rows])


def _forget_score(rows: Sequence[Row], other: Sequence[Row]) -> float | None:
    return unlearning.forget_score([answers_of(row) for row in other], [answers_of(row) for row in rows])


def _kept_utility(rows: Sequence[Row], other: Sequence[Row]) -> float | None:
    return unlearning.kept_utility([row["logp"] for row in other], [row["logp"] for row in rows])


def _forget_quality(rows: Sequence[Row], other: Sequence[Row]) -> float | None:
    if not truth_ratios(rows):
        raise DataError("the rows lack paraphrases or perturbed answers")
    return unlearning.forget_quality(truth_ratios(rows), truth_ratios(other))


def _compared(sets: Sets, others: Sets | None, name: str, needs: str, call: Callable[..., float | None]) -> Measured:
    if name not in sets:
        return Measured(None, f"there are no {name} rows")
    if others is None:
        return Measured(None, needs)
    if name not in others:
        return Measured(None, f"the other result has no {name} rows")
    return _made(lambda: call(sets[name], others[name]), len(sets[name]))


def _model_utility(found: Mapping[str, Measured]) -> Measured:
    names = [f"{name}.{part}" for name in UTILITY_SETS for part in ("probability", "rouge_l_recall", "truth_ratio")]
    parts = [found[name].value if name in found else None for name in names]
    missing = [name for name, part in zip(names, parts, strict=True) if part is None]
    if missing:
        return Measured(None, f"nine numbers are needed; missing: {', '.join(missing)}")
    return _made(lambda: unlearning.model_utility([part for part in parts if part is not None]), len(parts))


def _auc(sets: Sets) -> Measured:
    if not {"forget", "holdout"} <= sets.keys():
        return Measured(None, f"there are no {'holdout' if 'forget' in sets else 'forget'} rows")
    scores = [[row["min_k"] for row in sets[name]] for name in ("forget", "holdout")]
    if any(math.isnan(value) for part in scores for value in part):
        return Measured(None, "a log-probability is no number")
    return Measured(memorisation.membership_auc(*scores), count=sum(map(len, scores)))


def _leakage(sets: Sets, retrained: Sets | None) -> Measured:
    own = _auc(sets)
    if own.value is None:
        return own
    if retrained is None:
        return Measured(None, NEEDS_RETRAINED)
    other = _auc(retrained)
    if other.value is None:
        return Measured(None, f"the retrained model's result: {other.reason}")
    auc, reference = own.value, other.value
    return _made(lambda: memorisation.privacy_leakage(auc, reference), own.count)


def _made(call: Callable[[], float | None], count: int) -> Measured:
    try:
        value = call()
    except DataError as problem:
        return Measured(None, problem.what)
    return Measured(value, count=count) if value is None or not math.isnan(value) else Measured(None, _NOT_A_NUMBER)


_NOT_A_NUMBER = "the model gives numbers that are none (NaN)"


def _mean(values: Sequence[float], *, missing: str = "there are no rows") -> Measured:
    if not values:
        return Measured(None, missing)
    mean = _plain_mean(values)
    return Measured(None, _NOT_A_NUMBER) if math.isnan(mean) else Measured(mean, count=len(values))


def _plain_mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _refuse_other_rows(sets: Sets, others: Sets | None, option: str) -> None:
    for name in sets.keys() & (others or {}).keys():
        if [row["key"] for row in sets[name]] != [row["key"] for row in (others or {})[name]]:
            what = f"the earlier result has other {name} rows"
            raise DataError(what, where=option, fix="Evaluate both models with the same recipe")
