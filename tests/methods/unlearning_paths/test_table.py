"""Which metrics a measurement allows: their values from rows made by hand, and a reason for each that is missing."""

from __future__ import annotations

import math

import pytest

from posttrain.errors import DataError
from posttrain.evaluation.unlearning import forget_quality, model_utility
from posttrain.methods.unlearning_paths.table import MEANINGS, NEEDS_BEFORE, NEEDS_RETRAINED, measure


def row(key: str, logp: float, **changes):
    numbers = {"key": key, "logp": logp, "paraphrase_logps": [logp - 1], "paraphrased_nll": 1 - logp}
    numbers |= {"perturbed_nlls": [2 - logp], "min_k": -2 * logp, "rouge_l_recall": 0.5, "completion": "x"}
    numbers |= {"extraction_strength": 0.25, "extraction_strength_compat": 0.3, "exact_memorisation": 0.75}
    return numbers | changes


def rows(logp: float, **changes):
    return [row("a", logp, **changes), row("b", 2 * logp, **changes)]


FULL = {"forget": rows(-2.0), "retain": rows(-0.5), "real_authors": rows(-1.0), "world_facts": rows(-1.0)}
FULL |= {"holdout": rows(-3.0)}


def test_every_metric_has_a_value_where_the_data_has_all_it_needs():
    found = measure(FULL, before={**FULL, "forget": rows(-0.5)}, retrained={**FULL, "forget": rows(-2.5)})
    assert all(item.value is not None and item.count for item in found.values()), found
    assert found["forget.logp"].value == -3 and found["forget.paraphrase_logp"].value == -4
    assert found["forget.probability"].value == pytest.approx((math.exp(-2) + math.exp(-4)) / 2)
    assert found["forget.truth_ratio"].value == pytest.approx(math.exp(-1))  # min(TR, 1 / TR)
    assert found["retain.truth_ratio"].value == pytest.approx(1 - math.exp(-1))
    assert found["world_facts.probability"].value == pytest.approx(
        (math.exp(-1) / (math.exp(-1) + math.exp(-3)) + math.exp(-2) / (math.exp(-2) + math.exp(-4))) / 2
    )
    # Label and paraphrase went from -.5 and -1 to -2 and -4, and each paraphrase is one below its label.
    assert found["forget_score"].value == pytest.approx((1.5 + 3) / 2)
    assert found["kept_utility"].value == 1
    assert found["forget_quality"].value == pytest.approx(forget_quality([math.exp(-1)] * 2, [math.exp(-1)] * 2))
    names = ("retain", "real_authors", "world_facts")
    nine = [
        found[f"{name}.{part}"].value for name in names for part in ("probability", "rouge_l_recall", "truth_ratio")
    ]
    assert found["model_utility"].value == pytest.approx(model_utility(nine))
    # min-k of forget: 4, 8; of holdout: 6, 12: three of four pairs are greater. Retrained: 5, 10, so three, too.
    assert found["membership_auc"].value == 0.75 and found["privacy_leakage"].value == 0
    assert {name.rpartition(".")[2] for name in found} == set(MEANINGS)


def test_what_is_missing_is_said_and_never_a_number():
    found = measure({"forget": rows(-2.0, paraphrase_logps=[], paraphrased_nll=None, rouge_l_recall=None)})
    missing = {name: item.reason for name, item in found.items() if item.value is None}
    assert missing == {
        "forget.paraphrase_logp": "the rows have no paraphrases",
        "forget.rouge_l_recall": "no answer was generated",
        "forget.truth_ratio": "the rows lack paraphrases or perturbed answers",
        "forget_score": NEEDS_BEFORE,
        "kept_utility": "there are no retain rows",
        "forget_quality": NEEDS_RETRAINED,
        "model_utility": "nine numbers are needed; missing: retain.probability, retain.rouge_l_recall, "
        "retain.truth_ratio, real_authors.probability, real_authors.rouge_l_recall, real_authors.truth_ratio, "
        "world_facts.probability, world_facts.rouge_l_recall, world_facts.truth_ratio",
        "membership_auc": "there are no holdout rows",
        "privacy_leakage": "there are no holdout rows",
    }
    told = measure(FULL, retrained={"retain": FULL["retain"]})
    assert told["forget_quality"].reason == "the other result has no forget rows"
    assert told["privacy_leakage"].reason == "the retrained model's result: there are no forget rows"
    assert measure(FULL)["privacy_leakage"].reason == NEEDS_RETRAINED
    options = measure({"world_facts": rows(-1.0, perturbed_nlls=[])})["world_facts.probability"]
    assert options.reason == "the rows lack wrong options (perturbed)"
    certain = {"forget": rows(-0.1), "holdout": rows(-9.0)}
    assert "AUC is 1" in measure(certain, retrained=certain)["privacy_leakage"].reason


def test_a_diverged_model_gives_reasons_instead_of_nan():
    found = measure({**FULL, "forget": rows(math.nan)}, before=FULL, retrained=FULL)
    for name in ("forget.logp", "forget.min_k", "forget_score", "membership_auc"):
        assert found[name].value is None and "no number" in found[name].reason or "NaN" in found[name].reason, name


def test_general_knowledge_needs_no_paraphrases():
    plain = rows(-1.0, paraphrase_logps=[], paraphrased_nll=None)
    found = measure({"real_authors": plain, "retain": plain})
    assert found["real_authors.truth_ratio"].value == pytest.approx(1 - math.exp(-2))  # NLL 1, wrong 3; 2, wrong 4
    assert found["retain.truth_ratio"].value is None


def test_another_measurement_of_other_rows_is_refused():
    other = {"forget": [row("a", -1.0), row("c", -1.0)]}
    with pytest.raises(DataError, match="--against: the earlier result has other forget rows. Evaluate both models"):
        measure(FULL, before=other)
    with pytest.raises(DataError, match="--reference: the earlier result has other forget rows"):
        measure(FULL, retrained=other)
