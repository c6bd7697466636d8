"""Every method: a run that was stopped and continued is bit-equal to one that was not."""

from __future__ import annotations

import json

import pytest
import torch

from posttrain.errors import ResumeError
from posttrain.registry import METHODS, trained
from posttrain.seam.checkpoint.resumable import NonFiniteError
from tests.batteries.runs import Recorder, build, costs, losses, weights
from tests.methods.case import case_of

POLICY_KEYS = [key for key, entry in METHODS.items() if entry.generates]
ALL_KEYS = list(trained())
# Six prompts a block of two optimizer steps makes an epoch of 4 steps; passes over a block twice in the last case.
LAYOUTS = {
    "aligned": {},
    "inside a rollout block": {"steps_per_generation": 4},
    "two passes over a block": {"num_iterations": 2},
}


def _pair(key, warm_dir, tmp_path, stop, total, **overrides):
    whole_reward, first_reward, rest_reward = Recorder(), Recorder(), Recorder()
    kwargs = {"max_steps": total, **overrides}
    whole = build(key, warm_dir, tmp_path / "whole", reward=whole_reward, **kwargs)
    whole.train()
    saving = {**kwargs, "save_strategy": "steps", "save_steps": stop, "save_total_limit": None}
    build(key, warm_dir, tmp_path / "cut", reward=first_reward, **saving).train()
    rest = build(key, warm_dir, tmp_path / "cut", reward=rest_reward, **saving)
    torch.manual_seed(12345)  # a resumed process starts from any generator state
    rest.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{stop}"))
    return whole, rest, whole_reward.seen, rest_reward.seen


def _assert_equal(whole, rest, stop):
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name]), name
    assert losses(rest) == losses(whole)
    assert costs(rest) == costs(whole) != {}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stop", [1, 3, 8])
@pytest.mark.parametrize("key", POLICY_KEYS)
def test_policy_run_resumes_bit_equal(key, stop, layout, warm_dir, tmp_path):
    whole, rest, seen_whole, seen_rest = _pair(key, warm_dir, tmp_path, stop, 10, **LAYOUTS[layout])
    _assert_equal(whole, rest, stop)
    assert seen_rest == seen_whole[len(seen_whole) - len(seen_rest) :]
    is_sure = stop < 9 and layout == "aligned" and not case_of(key).may_not_generate
    assert 0 < len(seen_rest) < len(seen_whole) or not is_sure


@pytest.mark.parametrize("stop", [2, 4])
@pytest.mark.parametrize("key", [key for key, entry in METHODS.items() if entry.learns_rows])
def test_supervised_run_resumes_bit_equal(key, stop, warm_dir, tmp_path):
    whole, rest, _, _ = _pair(key, warm_dir, tmp_path, stop, 7)
    _assert_equal(whole, rest, stop)


@pytest.mark.parametrize("key", POLICY_KEYS)
def test_synchronised_reference_is_kept(key, warm_dir, tmp_path):
    overrides = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
    whole, rest, _, _ = _pair(key, warm_dir, tmp_path, 3, 6, **overrides)
    _assert_equal(whole, rest, 3)
    for name, value in whole.ref_model.state_dict().items():
        assert torch.equal(value, rest.ref_model.state_dict()[name]), name


@pytest.mark.parametrize("key", POLICY_KEYS)
def test_second_train_call_makes_new_rollouts(key, warm_dir, tmp_path):
    reward = Recorder()
    trainer = build(key, warm_dir, tmp_path, reward=reward, max_steps=1, steps_per_generation=4)
    trainer.train()
    first = len(reward.seen)
    trainer.train()
    assert len(reward.seen) == 2 * first


@pytest.mark.parametrize("key", ALL_KEYS)
def test_missing_state_is_refused_not_ignored(key, warm_dir, tmp_path):
    build(key, warm_dir, tmp_path, max_steps=2, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-1" / "posttrain_state.json").unlink()
    again = build(key, warm_dir, tmp_path, max_steps=2)
    with pytest.raises(ResumeError, match=r"the checkpoint is damaged: posttrain_state.json is missing"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("key", ALL_KEYS)
def test_another_layout_is_refused(key, warm_dir, tmp_path):
    build(key, warm_dir, tmp_path, max_steps=2, save_strategy="steps", save_steps=1).train()
    again = build(key, warm_dir, tmp_path, max_steps=2, seed=6)
    with pytest.raises(ResumeError, match="seed was 5, is 6"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    "change", [{"num_generations": 2}, {"steps_per_generation": 4}, {"num_iterations": 2}], ids=str
)
@pytest.mark.parametrize("key", POLICY_KEYS)
def test_another_rollout_layout_is_refused(key, change, warm_dir, tmp_path):
    build(key, warm_dir, tmp_path, max_steps=2, save_strategy="steps", save_steps=1).train()
    again = build(key, warm_dir, tmp_path, max_steps=2, **change)
    with pytest.raises(ResumeError, match=next(iter(change))):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("key", ALL_KEYS)
def test_logged_losses_continue_between_two_log_lines(key, warm_dir, tmp_path):
    whole, rest, _, _ = _pair(key, warm_dir, tmp_path, 3, 6, logging_steps=2)
    assert losses(rest) == losses(whole)


@pytest.mark.parametrize("key", POLICY_KEYS)
def test_a_non_finite_step_right_after_a_resume_is_named(key, warm_dir, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 4}
    build(key, warm_dir, tmp_path, max_steps=2, **saving).train()
    again = build(key, warm_dir, tmp_path, max_steps=2, **saving)
    loss = again.policy_loss

    def spoiled(batch):
        output = loss(batch)
        output.values = output.values * float("nan")
        return output

    again.policy_loss = spoiled
    with pytest.raises(NonFiniteError, match="optimizer step 2"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("key", ALL_KEYS)
def test_state_files_are_json_and_safetensors(key, warm_dir, tmp_path):
    build(key, warm_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    ours = sorted(p.name for p in (tmp_path / "checkpoint-1").glob("posttrain_*"))
    assert ours == [
        "posttrain_complete.json",
        "posttrain_rank0.json",
        "posttrain_rank0.safetensors",
        "posttrain_state.json",
    ]
    manifest = json.loads((tmp_path / "checkpoint-1" / "posttrain_complete.json").read_text())
    files = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert manifest["step"] == 1 and set(manifest["files"]) == files - {"posttrain_complete.json"}
