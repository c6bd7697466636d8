"""What a study will run, and what it refuses to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, ResumeError
from posttrain.reproduce.plan import Plan, find_study, make_plan
from posttrain.training.resuming import mark_finished
from tests.config.recipes import REMOVE, changed
from tests.reproduce.studies import CLAIMS, RECIPE, study_folder

TRAINER = RECIPE["trainer"]
SAMPLED = {"eval.num_generations": 4, "eval.temperature": 1.0}


def plan(root: Path, *, recipe: dict | None = None, claims: dict | None = None, **more: Any) -> Plan:
    path = study_folder(root, recipe=changed(RECIPE, recipe or {}), claims=changed(CLAIMS, claims or {}))
    return make_plan("hpt", path, output=root / "out", **more)


def refusal(root: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        plan(root, **changes)
    return str(refused.value)


def test_a_seed_reaches_every_stage_and_the_model(tmp_path):
    found = plan(tmp_path, seeds=[5, 6, 7])
    assert [run.seed for run in found.runs] == [5, 6, 7]
    for run in found.runs:
        assert run.folder == tmp_path / "out" / f"seed-{run.seed}"
        for name, _, config in run.stages:
            assert config.trainer.seed == run.seed and config.model.tiny.seed == run.seed
            assert config.trainer.output_dir == str(run.folder / name)
            assert config.trainer.max_steps == (1 if name == "warm_up" else 2)  # the rest of the block stays
    assert "and the weights the model starts with" in found.seeds_reach()


def test_a_model_that_is_not_made_keeps_its_weights(tmp_path, tiny_dir):
    found = plan(tmp_path, recipe={"model": {"path": str(tiny_dir)}})
    assert not any(text.startswith("model") for run in found.runs for text in run.overrides)
    assert "but not the weights the model starts with" in found.seeds_reach()


def test_a_finished_stage_with_a_reference_is_finished(tmp_path):
    """As the runner wrote it: the divergence was measured from another stage than the parent."""
    stages = [*RECIPE["stages"]]
    trainer = {**TRAINER, "beta": 0.1}
    stages[2] = {**stages[2], "reference_from": "grpo", "trainer": trainer}
    (run, *_) = plan(tmp_path, recipe={"stages": stages}).runs
    folders = {name: run.stage_folder(name) for name, _, _ in run.stages}
    models = {name: folder / "model" for name, folder in folders.items()}
    for name, parent, config in run.stages:
        models[name].mkdir(parents=True)
        reference = models["grpo"] if name == "hpt" else None
        mark_finished(folders[name], config, parent=models[parent] if parent else None, reference=reference)
    assert run.finished() == ["warm_up", "grpo", "hpt"]
    mark_finished(folders["grpo"], run.stages[1][2], parent=models["warm_up"])  # trained anew
    with pytest.raises(ResumeError, match="another parent or reference stage"):
        run.finished()


def test_what_all_variants_share_is_no_variants_own(tmp_path):
    found = plan(tmp_path)
    assert [stage.name for stage in found.preparation] == ["warm_up"]
    assert [[stage.name for stage in variant.own] for variant in found.variants] == [["grpo"], ["hpt"]]
    # 8 rows a step are 2 prompts of 4 rollouts.
    assert {variant.amount for variant in found.variants} == {(2, 4.0, (2.0,))}
    assert found.steps == {"warm_up": 1, "grpo": 2, "hpt": 2}


def two_stages(steps: int) -> dict[str, Any]:
    """A variant of SFT, then GRPO."""
    half = {"name": "half", "start_from": "warm_up", "method": {"name": "sft"}}
    sft = {**half, "trainer": {**TRAINER, "max_steps": steps, "per_device_train_batch_size": 2}}
    rest = {"name": "sft_then_grpo", "start_from": "half", "method": {"name": "grpo"}}
    stages = [*RECIPE["stages"], sft, {**rest, "trainer": {**TRAINER, "max_steps": 1}}]
    return {"recipe": {"stages": stages}, "claims": {"variants": ["grpo", "hpt", "sft_then_grpo"]}}


def test_an_variant_of_two_stages_counts_both(tmp_path):
    variant = plan(tmp_path, **two_stages(1)).variants[2]
    assert [stage.name for stage in variant.own] == ["half", "sft_then_grpo"]
    assert variant.amount == (2, 4.0, (2.0,))


def test_a_batch_used_twice_has_half_the_prompts(tmp_path):
    trainer = {**TRAINER, "num_iterations": 2, "per_device_train_batch_size": 16}
    variant = plan(tmp_path, recipe={"stages.1.trainer": trainer}).variants[0]
    assert variant.amount == (2, 4.0, (2.0,))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"recipe": {"stages.2.trainer": {**TRAINER, "max_steps": 3}}},
            "the variant hpt is not trained like grpo: 3 steps of 2 prompts, not 2 steps of 2 prompts. "
            "Make them equal in "
            "reproduce.yaml, or say why: unequal: {hpt: reason}.",
        ),
        (
            {"recipe": {"stages.2.trainer": {**TRAINER, "per_device_train_batch_size": 16}}},
            "the variant hpt is not trained like grpo: 2 steps of 4 prompts, not 2 steps of 2 prompts",
        ),
        (
            two_stages(2),
            "the variant sft_then_grpo is not trained like grpo: 2 steps of 2 prompts + 1 steps of 2 prompts, not",
        ),
        ({"claims": {"unequal": {"hpt": "it is"}}}, "unequal.hpt: this variant is trained like the others"),
        (
            {"recipe": {"stages.2.eval": {**RECIPE["eval"], "num_prompts": 4, "seed": 3}}},
            "the variant hpt is not evaluated like grpo: num_prompts, seed differ",
        ),
        (
            {"recipe": {"stages.2.data": changed(RECIPE["data"], {"eval.seed": 3})}},
            "the variant hpt is not evaluated like grpo: data.eval differ",
        ),
        ({"recipe": {"stages.2.eval": None}}, "this variant is not evaluated (got 'hpt')"),
        (
            {"recipe": {"trainer.max_steps": REMOVE}},
            "the steps of grpo are not known beforehand. Write trainer.max_steps",
        ),
        ({"recipe": {"stages": REMOVE, "method": {"name": "grpo"}}}, "a reproduction needs a recipe with stages"),
        (
            {"claims": {"variants": ["gropo", "hpt"], "claims.0.baselines": ["gropo"]}},
            "variants.0: not a stage of reproduce.yaml (got 'gropo'; allowed: warm_up, grpo, hpt). Perhaps you mean",
        ),
        ({"claims": {"metric": "acuracy"}}, "an evaluation has no such number (got 'acuracy'"),
        ({"claims": {"claims.0.metric": "pergroup.x.accuracy"}}, "an evaluation has no such number"),
        ({"claims": {"metric": "pass_at_k.4"}}, "an evaluation has no such number (got 'pass_at_k.4'"),
        ({"claims": {"metric": "pass@4"}}, "an evaluation has no such number (got 'pass@4'"),
        ({"claims": {"metric": "per_group.1.5 digits.acuracy"}}, "Perhaps you mean 'per_group.1.5 digits.accuracy'."),
        ({"claims": {"metric": "partial"}}, "an evaluation has no such number (got 'partial'"),
        ({"claims": {"metric": "continual.forgeting"}}, "an evaluation has no such number (got 'continual.forgeting'"),
        ({"claims": {"metric": "accuracy.value"}}, "an evaluation has no such number (got 'accuracy.value'"),
        (
            {"recipe": SAMPLED, "claims": {"metric": "pass_at_k.3"}},
            "an evaluation has no such number (got 'pass_at_k.3'",
        ),
        ({"overrides": ["trainer.seed=7"]}, "override trainer.seed=7: decided by the study. Use --seeds"),
        ({"overrides": ["stages.1.trainer.seed=7"]}, "stages.1.trainer.seed=7: decided by the study. Use --seeds"),
        ({"overrides": ["model.tiny.seed=7"]}, "override model.tiny.seed=7: decided by the study. Use --seeds"),
        ({"overrides": ["trainer.output_dir=x"]}, "decided by the study. Use --output FOLDER."),
        ({"overrides": ["trainer={max_steps: 2, seed: 7}"]}, "Take trainer.seed out of the block. Use --seeds"),
        ({"overrides": ["stages.1={name: a, trainer: {seed: 7}}"]}, "Take stages.1.trainer.seed out of the block"),
        ({"overrides": ["model={tiny: {seed: 7}}"]}, "Take model.tiny.seed out of the block"),
        ({"overrides": ["trainer.max_stebs=3"]}, "override trainer.max_stebs=3: unknown key"),
    ],
)
def test_an_unfair_or_impossible_study_is_refused(tmp_path, changes, expected):
    assert expected in refusal(tmp_path, **changes)


@pytest.mark.parametrize(
    "metric",
    [
        *("pass@4", "pass_at_k.2", "mean_length", "per_group.1.5 digits.pass@1", "per_group.1.5 digits.accuracy"),
        *("continual.forgetting_measure", "tasks.copy.accuracy"),
    ],
)
def test_numbers_an_evaluation_will_have_are_accepted(tmp_path, metric):
    assert plan(tmp_path, recipe=SAMPLED, claims={"metric": metric}).study.metrics() == [metric]


def test_a_stated_reason_allows_what_is_unequal(tmp_path):
    steps = {"stages.2.trainer": {**TRAINER, "max_steps": 3}}
    found = plan(tmp_path, recipe=steps, claims={"unequal": {"hpt": "It stops\nlater."}})
    assert found.study.block.unequal == {"hpt": "It stops later."}


def test_the_starting_point_may_be_an_variant(tmp_path):
    """A variant without steps of its own, which says so."""
    recipe = {"stages": [{**RECIPE["stages"][0], "eval": RECIPE["eval"]}, *RECIPE["stages"][1:]]}
    claims = {"variants": ["warm_up", "grpo", "hpt"], "unequal": {"warm_up": "It is where all variants begin."}}
    found = plan(tmp_path, recipe=recipe, claims=claims)
    assert found.variants[0].own == () and found.variants[0].amount_text() == "no steps of its own"
    assert found.variants[1].amount == (2, 4.0, (2.0,))


def test_a_study_is_found_by_name(tmp_path, monkeypatch):
    path = study_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_study("hpt", None, tmp_path) == Path("recipes/hpt/claims.yaml")
    path.rename(path.with_name("claims_small.yaml"))
    assert find_study("hpt", None, tmp_path) == Path("recipes/hpt/claims_small.yaml")  # the only one
    for key, study, expected in (
        ("hpt", "smal", "no such study (got 'smal'; allowed: small). Perhaps you mean 'small'."),
        ("grpo", None, "nothing to reproduce: there is no claims.yaml"),
        ("htp", None, "unknown method (got 'htp'"),
    ):
        with pytest.raises(ConfigError) as refused:
            find_study(key, study, tmp_path)
        assert expected in str(refused.value)
