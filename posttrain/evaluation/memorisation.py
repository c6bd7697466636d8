"""How much of an answer a model holds word by word, and whether it was trained on it: extraction and membership.

arXiv 2510.16629 lists them among its metrics; the formulas are those of the open-unlearning benchmark as the
specification states them. Nothing here runs a model; `answer_scores` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import rankdata

from posttrain.errors import ConfigError, DataError

MIN_K_FRACTION = 0.2


def extraction_strength(predicted: Sequence[int], labels: Sequence[int], *, es_compat: bool = False) -> float:
    """1 - k/n, k the shortest prefix of the answer after which greedy, teacher-forced tokens equal all the rest.

    Args:
        predicted: likeliest token at each position of the answer, given the tokens before it; n of them.
        labels: the answer's tokens, without the end token.
        es_compat: as open-unlearning counts, where the prefix is never the whole answer: a wrong last token then
            gives 1/n instead of 0.

    Returns:
        In [0, 1]; 1 = the prompt alone brings back the whole answer, 0 = not even the last token follows.

    Raises:
        DataError: no tokens, or not as many predictions as labels.
    """
    count = _paired(predicted, labels)
    prefix = count
    while prefix > 0 and predicted[prefix - 1] == labels[prefix - 1]:
        prefix -= 1
    return 1 - min(prefix, count - 1 if es_compat else count) / count


def exact_memorisation(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Share of positions at which the likeliest token is the answer's, in [0, 1]; arguments as above."""
    count = _paired(predicted, labels)
    return sum(one == other for one, other in zip(predicted, labels, strict=True)) / count


def min_k_score(logps: Sequence[float], *, fraction: float = MIN_K_FRACTION) -> float:
    """Negative mean of the least likely tokens' log-probabilities: low for a text that the model was trained on.

    Args:
        logps: log-probability of each token.
        fraction: part of the tokens that counts, in (0, 1]; rounded down, but at least one token.

    Raises:
        ConfigError: a fraction out of range. DataError: no tokens, or a log-probability that is no number.
    """
    if not 0 < fraction <= 1:
        raise ConfigError("out of range", where="min-k fraction", got=fraction, allowed="float in (0, 1]")
    if not len(logps):
        raise DataError("the answer has no tokens", where="min-k", fix="Drop the row")
    if any(math.isnan(value) for value in logps):
        raise DataError("a log-probability is no number", where="min-k", fix="Look for NaN in the model's weights")
    # In floats 0.29 * 100 is a little less than 29.
    count = max(1, math.floor(fraction * len(logps) + 1e-9))
    return -math.fsum(sorted(logps)[:count]) / count


def membership_auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """Chance that a held-out text scores higher than one of the forget set; a tie counts half.

    Args:
        forget: `min_k_score` of each text that was trained on and then unlearned.
        holdout: of texts of the same kind that no training saw; the positive class.

    Returns:
        In [0, 1]: 1 where the forget set is far likelier than the held-out one, .5 where nothing tells them apart.

    Raises:
        DataError: one of the two is empty.
    """
    if not len(forget) or not len(holdout):
        raise DataError("two sets of texts are needed", where="membership", got=(len(forget), len(holdout)))

    ranks = rankdata([*holdout, *forget])[: len(holdout)]
    return float((ranks.sum() - len(holdout) * (len(holdout) + 1) / 2) / (len(holdout) * len(forget)))


def privacy_leakage(auc: float, auc_retrained: float) -> float:
    """100 * ((1 - AUC) - (1 - AUC_ref)) / (1 - AUC_ref), in per cent of the retrained model's.

    Args:
        auc: `membership_auc` of the unlearned model.
        auc_retrained: of a model that was never trained on the forget set.

    Returns:
        0 where both are alike; negative where the forget set still stands out as known (too little was unlearned),
        positive where it is less likely than to a model that never saw it (too much).

    Raises:
        DataError: the retrained model tells the two sets apart without an error, so that there is no scale.
    """
    if auc_retrained == 1:
        what = "the retrained model's AUC is 1, so there is no scale"
        raise DataError(what, where="privacy leakage", fix="Take held-out rows of the same kind as the forget set")
    return 100 * ((1 - auc) - (1 - auc_retrained)) / (1 - auc_retrained)


def _paired(predicted: Sequence[int], labels: Sequence[int]) -> int:
    if not len(labels):
        raise DataError("the answer has no tokens", where="extraction", fix="Drop the row")
    if len(predicted) != len(labels):
        what = "as many predictions as labels are needed"
        raise DataError(what, where="extraction", got=(len(predicted), len(labels)))
    return len(labels)
