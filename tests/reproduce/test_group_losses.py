"""Studies that are decided on validation losses of groups: read, compared, reported; what is refused beforehand."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.reproduce.collect import collect
from posttrain.reproduce.group_losses import losses_table
from posttrain.reproduce.plan import make_plan
from posttrain.reproduce.report import write_report
from posttrain.run import run
from tests.config.recipes import BASES, changed, write

GROUPS = ["easy", "hardest"]
CLAIMS = {
    "paper_claim": "Aioli is ahead of equal proportions in six settings of six.",
    "setting": "A model of no size on two groups.",
    "seeds": [0, 1, 2],
    "metric": "mixing.mean_perplexity",
    "variants": ["stratified", {"stage": "natural", "label": "by size"}, "aioli"],
    "claims": [
        {
            "name": "beats_equal",
            "statement": "Aioli has the lower perplexity.",
            "treatment": "aioli",
            "baselines": ["stratified"],
            "direction": "less",
        },
        {
            "name": "hardest_gets_more",
            "statement": "The hardest group gets more than its equal share.",
            "treatment": "aioli",
            "baselines": ["stratified"],
            "metric": "mixing.proportion.hardest",
        },
    ],
}


def study(root: Path, *, claims=None, **changes) -> Path:
    options = {"groups": list(GROUPS), "length": 16}
    values = {
        "data.train.options": options,
        "data.validation.options": {**options, "groups": list(GROUPS), "split": "eval"},
        "method.mixing_rounds_every": 4,
        "method.learn_sweeps": 1,
        "method.learn_steps": 1,
        "method.one_hot_factor": 0.75,
        "trainer.max_steps": 4,
        "trainer.save_strategy": "no",
        "stages": {"preset": "mixing", "groups": list(GROUPS), "variants": ["stratified", "natural", "aioli"]},
    }
    base = changed(BASES["aioli"], {**values, **changes})
    base["data"].pop("eval"), base.pop("eval")
    folder = root / "recipes" / "aioli"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, base, "reproduce.yaml")
    return write(folder, {**CLAIMS, **(claims or {})}, "claims.yaml")


def test_losses_of_every_variant_and_seed_decide_the_claims(tmp_path):
    plan = make_plan("aioli", study(tmp_path), seeds=[0, 1], output=tmp_path / "out")
    for one in plan.runs:
        run(plan.study.recipe, list(one.overrides))
    result = collect(plan, jobs=1, device="cpu")
    for variant in result.variants:
        for one in variant.seeds:
            record = json.loads((tmp_path / "out" / f"seed-{one.seed}" / variant.stage / "mixing.json").read_text())
            losses = record["records"][-1]["losses"]
            assert one.values["mixing.mean_loss"] == pytest.approx(sum(losses) / 2)
            assert one.values["mixing.mean_perplexity"] == pytest.approx(sum(map(exp, losses)) / 2)
            assert one.values["mixing.perplexity.hardest"] == pytest.approx(exp(losses[1]))
            assert one.values["mixing.proportion.easy"] == record["proportions"][0]
            assert one.values["mixing.probe_steps"] == (2 if variant.stage == "aioli" else 0)
            assert one.num_prompts == 16 and one.failed == 0
    shown = result.claims[0].decision.comparisons[0]
    by_variant = {
        variant.stage: [one.values["mixing.mean_perplexity"] for one in variant.seeds] for variant in result.variants
    }
    expected = sum(a - b for a, b in zip(by_variant["aioli"], by_variant["stratified"], strict=True)) / 2
    assert shown.effect == pytest.approx(expected)

    page = write_report(plan, result).read_text()
    assert "| variant | ppl easy | ppl hardest | p easy | p hardest | steps that measure |" in page
    assert "2 of 4" in losses_table(result) and "percentage" not in page.partition("## How")[0]


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"metric": "mixing.mean_perplexities"}, r"a run records no such number \(got 'mixing.mean_perplexities'"),
        ({"metric": "mixing.perplexity"}, "a run records no such number"),
        ({"metric": "accuracy"}, r"this variant is not evaluated.*Write data\.eval"),
    ],
)
def test_metrics_that_no_run_has_are_refused(claims, message, tmp_path):
    with pytest.raises(PosttrainError, match=message):
        make_plan("aioli", study(tmp_path, claims=claims), output=tmp_path / "out")


def test_variants_must_be_measured_on_the_same_rows(tmp_path):
    method = BASES["aioli"]["method"]
    stages = [
        {"name": "stratified"},
        {"name": "natural", "method": {**method, "mixing_eval_examples": 4}},
        {"name": "aioli", "method": {**method, "controller": "natural"}},
    ]
    with pytest.raises(
        PosttrainError, match=r"natural is not evaluated like stratified: method\.mixing_eval_examples"
    ):
        make_plan("aioli", study(tmp_path, stages=stages), output=tmp_path / "out")
