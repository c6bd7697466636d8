"""Unlearning metrics: the specification's numbers, what each says at its ends, what it refuses."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import random

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.evaluation.memorisation import (
    exact_memorisation,
    extraction_strength,
    membership_auc,
    min_k_score,
    privacy_leakage,
)
from posttrain.evaluation.unlearning import (
    forget_quality,
    forget_score,
    kept_utility,
    mean_logp,
    model_utility,
    normalised_probability,
    probability,
    rouge_l_recall,
    truth_ratio,
    truth_ratio_of_forgotten,
    truth_ratio_of_kept,
)

RATIOS = [truth_ratio(own, wrong) for own, wrong in zip([1.2, 0.8, 2.0], [[2, 1], [1.5, 2.5], [1, 3]], strict=True)]
LOGPS = [-0.1, -3, -0.2, -5, -1, -0.5, -0.05, -2, -0.3, -0.4]


# ---- forgetting and keeping ----


def test_forget_score_counts_every_paraphrase_as_much_as_the_label():
    assert forget_score([[-1.0, *[-2.0] * 20]], [[-4.0, *[-2.5] * 20]]) == pytest.approx(0.61904762)
    # Two examples with other numbers of paraphrases: each counts as one.
    before, after = [[-1.0], [-1.0, -3.0]], [[-2.0], [-1.0, -3.0]]
    assert forget_score(before, after) == pytest.approx(0.5)
    assert forget_score(after, before) == pytest.approx(-0.5)


def test_kept_utility_falls_whichever_way_the_answers_move():
    assert kept_utility([-1.0, -2.0], [-1.0, -2.0]) == 1
    assert kept_utility([-1.0, -2.0], [-1.5, -1.5]) == pytest.approx(0.5)


@pytest.mark.parametrize("measure", [forget_score, kept_utility])
def test_two_measurements_of_other_examples_are_refused(measure):
    with pytest.raises(DataError, match="the two measurements are not of the same examples"):
        measure([[-1.0, -2.0]], [[-1.0]]) if measure is forget_score else measure([-1.0, -2.0], [-1.0])


def test_probabilities():
    assert mean_logp([-1.0, -2.0]) == -1.5 and probability(1.5) == pytest.approx(math.exp(-1.5))
    assert normalised_probability(1.0, [1.0, 1.0]) == pytest.approx(1 / 3)
    expected = math.exp(-0.5) / (math.exp(-0.5) + math.exp(-2) + math.exp(-3))
    assert normalised_probability(0.5, [2, 3]) == pytest.approx(expected)
    assert normalised_probability(5000.0, [6000.0]) == 1  # where exp(-NLL) itself is 0
    with pytest.raises(DataError, match="row 3: the answer has no tokens. Drop the row"):
        mean_logp([], where="row 3")
    with pytest.raises(DataError, match="no wrong option"):
        normalised_probability(1.0, [])


def test_truth_ratio_and_both_aggregates():
    assert pytest.approx([0.74081822, 0.30119421, 1.0]) == RATIOS
    assert truth_ratio_of_forgotten(RATIOS) == pytest.approx(0.68067081)
    assert truth_ratio_of_kept(RATIOS) == pytest.approx(0.31932918)
    # The wrong answers far likelier, or far less likely: both tell that the model knew, neither is kept knowledge.
    for own, wrong in ((5000.0, [0.0]), (0.0, [5000.0])):
        assert truth_ratio_of_forgotten([truth_ratio(own, wrong)]) == 0
    assert truth_ratio_of_kept([truth_ratio(5000.0, [0.0])]) == 0
    assert truth_ratio_of_kept([truth_ratio(0.0, [5000.0])]) == 1
    with pytest.raises(DataError, match="the truth ratio needs wrong answers"):
        truth_ratio(1.0, [])


def test_forget_quality_is_a_p_value_and_never_1_without_a_retrained_model(caplog):
    assert forget_quality(RATIOS, [0.9, 1.1, 0.95]) == pytest.approx(0.6)
    assert forget_quality(RATIOS, RATIOS) == 1
    assert forget_quality([0.1] * 50, [0.9] * 50) < 1e-10
    with caplog.at_level(logging.WARNING):
        assert forget_quality(RATIOS, None) is None
    assert "needs the truth ratios of a model trained without the forget set" in caplog.text
    with pytest.raises(DataError, match="a test of two samples needs both"):
        forget_quality(RATIOS, [])


def test_model_utility_is_a_harmonic_mean_of_nine():
    assert model_utility([0.5] * 9) == pytest.approx(0.5)
    assert model_utility([1.0] * 8 + [0.5]) == pytest.approx(0.9)
    assert model_utility([1.0] * 8 + [0.0]) == 0
    with pytest.raises(DataError, match=r"harmonic mean of nine numbers \(got 8; allowed: 9\)"):
        model_utility([0.5] * 8)
    for bad in (-0.1, math.nan):
        with pytest.raises(DataError, match="a utility is 0 or more"):
            model_utility([0.5] * 8 + [bad])


def longest_common(one: list[str], other: list[str]) -> int:
    """By definition: the longest choice of words of one that comes in the other in this order."""
    for size in range(min(len(one), len(other)), 0, -1):
        for chosen in itertools.combinations(one, size):
            rest = iter(other)
            if all(word in rest for word in chosen):
                return size
    return 0


def test_rouge_recall_is_the_longest_common_subsequence_over_the_reference():
    assert rouge_l_recall("Mara was born in Tarvo.", "mara was BORN in tarvo") == 1
    assert rouge_l_recall("in Tarvo, Mara", "Mara was born in Tarvo") == pytest.approx(2 / 5)
    assert rouge_l_recall("", "Mara") == 0 and rouge_l_recall("Über", "über") == 1
    draw = random.Random(0)
    for _ in range(60):
        one, other = ([draw.choice("abc") for _ in range(draw.randint(1, 7))] for _ in range(2))
        assert rouge_l_recall(" ".join(one), " ".join(other)) == longest_common(one, other) / len(other)
    with pytest.raises(DataError, match="the reference answer has no words"):
        rouge_l_recall("Mara", "...")


@pytest.mark.skipif(importlib.util.find_spec("rouge_score") is None, reason="rouge-score comes with the extra eval")
def test_rouge_recall_equals_the_package_without_stems():
    from rouge_score.rouge_scorer import RougeScorer

    scorer, draw = RougeScorer(["rougeL"], use_stemmer=False), random.Random(1)
    for _ in range(40):
        one, other = (" ".join(draw.choices(["Ada", "won", "3", "prizes,", "in"], k=draw.randint(1, 8))) for _ in "ab")
        assert rouge_l_recall(one, other) == pytest.approx(scorer.score(other, one)["rougeL"].recall)


# ---- memorisation and privacy ----


def test_extraction_strength_and_exact_memorisation():
    labels = [1, 2, 3, 4, 5]
    assert extraction_strength([1, 9, 3, 4, 5], labels) == pytest.approx(0.6)
    assert extraction_strength([1, 2, 3, 4, 9], labels) == 0
    assert extraction_strength([1, 2, 3, 4, 9], labels, es_compat=True) == pytest.approx(0.2)
    assert extraction_strength(labels, labels) == extraction_strength(labels, labels, es_compat=True) == 1
    assert exact_memorisation([1, 9, 3, 4, 5], labels) == pytest.approx(0.8)
    for measure in (extraction_strength, exact_memorisation):
        with pytest.raises(DataError, match="the answer has no tokens"):
            measure([], [])
        with pytest.raises(DataError, match=r"as many predictions as labels are needed \(got \(2, 1\)"):
            measure([1, 2], [1])


def test_min_k_takes_the_least_likely_tokens():
    assert min_k_score(LOGPS) == pytest.approx(4.0)
    assert min_k_score(LOGPS, fraction=1.0) == pytest.approx(-sum(LOGPS) / 10)
    assert min_k_score([-0.5]) == 0.5  # one token at least
    assert min_k_score([-1.0, -2, -3, -4]) == 4  # 20 % of four is none, so one
    assert min_k_score([-2.0, -1.0, -math.inf]) == math.inf
    assert min_k_score([-float(i) for i in range(100)], fraction=0.29) == pytest.approx(sum(range(71, 100)) / 29)
    with pytest.raises(DataError, match="min-k: the answer has no tokens"):
        min_k_score([])
    with pytest.raises(DataError, match="min-k: a log-probability is no number"):
        min_k_score([-1.0, math.nan])
    for fraction in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"min-k fraction: out of range .*float in \(0, 1\]"):
            min_k_score(LOGPS, fraction=fraction)


def test_auc_is_the_chance_that_a_held_out_text_scores_higher():
    assert membership_auc([0.1, 0.2], [3.0, 4.0]) == 1
    assert membership_auc([3.0, 4.0], [0.1, 0.2]) == 0
    draw = random.Random(0)
    forget, holdout = ([draw.randint(0, 5) for _ in range(size)] for size in (7, 11))
    pairs = [(one > other) + 0.5 * (one == other) for one in holdout for other in forget]
    assert membership_auc(forget, holdout) == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(DataError, match="two sets of texts are needed"):
        membership_auc([1.0], [])


def test_privacy_leakage_is_relative_to_the_retrained_model():
    assert privacy_leakage(0.7, 0.5) == pytest.approx(-40)
    assert privacy_leakage(0.5, 0.5) == 0 and privacy_leakage(0.2, 0.5) == pytest.approx(60)
    with pytest.raises(DataError, match="the retrained model's AUC is 1, so there is no scale"):
        privacy_leakage(0.7, 1.0)
