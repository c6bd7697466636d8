"""SASR: which kind of step comes when, what it reduces to, how it resumes, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.methods.sasr.controllers import SAME_NORMS
from posttrain.methods.sasr.trainer import SASRConfig
from tests.batteries.runs import Recorder, build, costs, losses, weights

MIXED = {"warmup_sft_steps": 2, "beta": 0.0}


def logged(trainer, name):
    """Values of one metric, None where a step has none."""
    return [
        None if name not in entry else float(entry[name]) for entry in trainer.state.log_history if "loss" in entry
    ]


def test_probability_follows_the_last_supervised_norm(tiny_dir, tmp_path):
    """Recomputed from the logged norms alone, with the formula written out."""
    trainer = build("sasr", tiny_dir, tmp_path, max_steps=14, warmup_norm_stat="mean", gradnorm_gamma=0.5, **MIXED)
    trainer.train()
    modes, norms = logged(trainer, "sasr/mode"), logged(trainer, "grad_norm")
    assert modes[:2] == [1, 1] and 0 < sum(modes[2:]) < 12
    warmup, last = (norms[0] + norms[1]) / 2, norms[1]
    for step in range(2, 14):
        assert logged(trainer, "sasr/supervised_prob")[step] == pytest.approx(last / (last + 0.5 * warmup), rel=1e-3)
        if modes[step]:
            last = norms[step]
            assert logged(trainer, "sasr/g_sft")[step] == pytest.approx(last, rel=1e-3)
            assert logged(trainer, "sasr/g_warm")[step] == pytest.approx(warmup, rel=1e-3)
    assert logged(trainer, "sasr/sft_fraction")[-1] == pytest.approx(sum(modes[2:]) / 12, rel=1e-3)
    assert [value is not None for value in logged(trainer, "sft/loss")] == [mode == 1 for mode in modes]
    assert [value is not None for value in logged(trainer, "rl/loss")] == [mode == 0 for mode in modes]


def test_a_large_gamma_is_grpo_bit_for_bit(tiny_dir, tmp_path):
    """From the weights after the warm-up; SGD, so that the optimizer brings nothing along. Four policy steps:
    at the end of an epoch of six steps torch's loader takes a random number, and the two runs reach it at other times.
    """
    layout = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "beta": 0.05}
    ours, theirs = Recorder(), Recorder()
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer = build(
        "sasr", tiny_dir, tmp_path / "a", reward=ours, max_steps=6, gradnorm_gamma=1e300, warmup_sft_steps=2,
        kl_reference="warmup", **layout, **saving,
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "sasr/mode") == [1, 1, 0, 0, 0, 0]
    warm = tmp_path / "a" / "checkpoint-2"
    grpo = build("grpo", warm, tmp_path / "b", reward=theirs, max_steps=4, preset="grpo", **layout)
    grpo.train()
    assert ours.seen == theirs.seen
    assert losses(trainer)[2:] == losses(grpo)
    for name, value in weights(grpo).items():
        assert torch.equal(value, weights(trainer)[name]), name
    for name, value in grpo.ref_model.state_dict().items():
        assert torch.equal(value, trainer.ref_model.state_dict()[name]), name


def test_sequential_without_a_warmup_is_grpo(tiny_dir, tmp_path):
    trainer = build(
        "sasr", tiny_dir, tmp_path / "a", max_steps=7, switch_controller="sequential", warmup_sft_steps=0, beta=0.0
    )
    trainer.train()
    grpo = build("grpo", tiny_dir, tmp_path / "b", max_steps=7, preset="grpo")
    grpo.train()
    assert losses(trainer) == losses(grpo) and costs(trainer) == costs(grpo)
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in weights(grpo).items())


def test_a_least_probability_of_one_is_supervised_training(tiny_dir, tmp_path):
    """Equal to the supervised trainer by tests/seam/policy/test_alternation.py; here: nothing is ever generated."""
    trainer = build("sasr", tiny_dir, tmp_path, max_steps=6, sft_prob_min=1.0, **MIXED)
    trainer.train()
    assert logged(trainer, "sasr/mode") == [1] * 6
    assert "cost/generated_tokens" not in costs(trainer) and costs(trainer)["cost/demonstrations"] == 48


def test_a_warmup_that_leaves_no_divergence_is_refused_by_its_own_name(tiny_dir, tmp_path):
    layout = {"max_steps": 2, "warmup_sft_steps": 1, "switch_controller": "kl", "learning_rate": 1e-30}
    trainer = build("sasr", tiny_dir, tmp_path, **layout)
    with pytest.raises(DataError, match=r"method.switch_controller: .*no ratio of divergences .*divergence of 0.0"):
        trainer.train()


@pytest.mark.parametrize("controller", ["grad_norm", "fixed", "cosine", "kl"])
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_resumed_run_takes_the_same_branches(stop, controller, tiny_dir, tmp_path):
    layout = {"max_steps": 9, "warmup_sft_steps": 2, "beta": 0.05, "switch_controller": controller}
    if controller == "fixed":
        layout["kl_reference"] = "warmup"  # the moved reference is in the checkpoint, too
    saving = {**layout, "save_strategy": "steps", "save_steps": stop}
    whole = build("sasr", tiny_dir, tmp_path / "a", **layout)
    whole.train()
    build("sasr", tiny_dir, tmp_path / "b", **saving).train()
    rest = build("sasr", tiny_dir, tmp_path / "b", **saving)
    torch.manual_seed(3)
    rest.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{stop}"))
    for name in ("sasr/mode", "sasr/supervised_prob", "sasr/sft_fraction", "sasr/g_sft", "loss"):
        assert logged(rest, name) == logged(whole, name), name
    assert 0 < sum(logged(whole, "sasr/mode")[2:]) < 7 or controller == "cosine"
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())


def test_divergence_controller_starts_at_the_warmups(tiny_dir, tmp_path):
    trainer = build("sasr", tiny_dir, tmp_path, max_steps=8, warmup_sft_steps=2, switch_controller="kl")
    trainer.train()
    probes = logged(trainer, "sasr/probe_kl")
    assert probes[:2] == [None, None] and all(value > 0 for value in probes[2:])
    for probe, p in zip(probes[2:], logged(trainer, "sasr/supervised_prob")[2:], strict=True):
        assert p == pytest.approx(probe / (probe + probes[2]), rel=2e-3)


def test_adapters_work_with_every_ratio(tiny_dir, tmp_path):
    """The reference is the model without its adapter; the norm is that of the adapter."""
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    for controller in ("grad_norm", "kl"):
        trainer = build(
            "sasr", tiny_dir, tmp_path / controller, max_steps=6, warmup_sft_steps=2, switch_controller=controller,
            learning_rate=0.05, trainer_kwargs={"peft_config": lora},
        )  # fmt: skip
        before = weights(trainer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        told = any("that of the adapter alone" in str(item.message) for item in caught)
        assert told == (controller == "grad_norm")
        changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
        assert changed and all("lora" in name for name in changed)
        assert 0 < logged(trainer, "sasr/supervised_prob")[-1] < 1
    with pytest.raises(SupportError, match=r"method.kl_reference: .*without its adapter.*initial with LoRA"):
        build("sasr", tiny_dir, tmp_path, kl_reference="warmup", trainer_kwargs={"peft_config": lora})


def test_norms_after_clipping_are_noticed(tiny_dir, tmp_path):
    """An engine that reports the clipped norm: every one is max_grad_norm, and p stays at 1 / (1 + gamma)."""
    layout = {"max_steps": SAME_NORMS + 2, "switch_controller": "grad_norm", "sft_prob_min": 1.0, **MIXED}
    trainer = build("sasr", tiny_dir, tmp_path / "a", **layout)
    trainer._clip_grad_norm = lambda model, clip=trainer._clip_grad_norm: clip(model) * 0 + 1.0
    with pytest.warns(
        UserWarning, match=rf"{SAME_NORMS} supervised steps in a row have the gradient norm 1 .*after cl"
    ):
        trainer.train()
    honest = build("sasr", tiny_dir, tmp_path / "b", **layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        honest.train()
    assert len(set(logged(honest, "sasr/g_sft"))) > SAME_NORMS / 2


def test_the_norm_of_the_controller_is_the_one_before_clipping(tiny_dir, tmp_path):
    clipped = build("sasr", tiny_dir, tmp_path / "a", max_steps=1, max_grad_norm=1e-3, **MIXED)
    free = build("sasr", tiny_dir, tmp_path / "b", max_steps=1, max_grad_norm=0.0, **MIXED)
    for trainer in (clipped, free):
        trainer.train()
    assert clipped.controller.seen == pytest.approx(free.controller.seen, rel=1e-6)
    assert clipped.controller.seen[0] > 1


def test_length_of_the_warmup(tiny_dir, tmp_path):
    """12 demonstrations, 8 a step."""
    assert build("sasr", tiny_dir, tmp_path).warmup_steps == 2
    assert build("sasr", tiny_dir, tmp_path, warmup_sft_epochs=2.1).warmup_steps == 4
    assert build("sasr", tiny_dir, tmp_path, warmup_sft_steps=5).warmup_steps == 5


def test_a_warmup_without_end_is_told(tiny_dir, tmp_path):
    trainer = build("sasr", tiny_dir, tmp_path, max_steps=2, warmup_sft_steps=2)
    with pytest.warns(UserWarning, match="the warm-up takes all 2 steps, so no policy step follows"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradnorm_gamma": 0.0}, r"gradnorm_gamma.*got 0.0.*> 0"),
        ({"gradnorm_gamma": -1.0}, r"gradnorm_gamma.*got -1.0.*> 0"),
        (
            {"warmup_sft_steps": 0},
            r"without a warm-up the controller grad_norm.*warmup_sft_steps or .*warmup_sft_epochs",
        ),
        ({"warmup_sft_epochs": 0.0}, r"without a warm-up the controller grad_norm.*warmup_sft_steps or "),
        ({"warmup_sft_steps": 0, "switch_controller": "kl"}, "without a warm-up the controller kl"),
        ({"sft_prob_min": 0.6, "sft_prob_max": 0.5}, r"sft_prob_min: the least probability is above .*got 0.6"),
        ({"warmup_sft_steps": 1, "warmup_sft_epochs": 1.0}, "two lengths of one warm-up"),
        (
            {"switch_controller": "kl", "beta": 0.0},
            r"trainer.beta: method.switch_controller needs the reference model",
        ),
        ({"kl_reference": "warmup", "beta": 0.0}, r"trainer.beta: method.kl_reference needs the reference model"),
        ({"switch_controller": "kl", "kl_reference": "warmup"}, "begins at 0, so there is no ratio to it"),
        ({"kl_reference": "warmup", "sync_ref_model": True}, "two rules would move the reference model"),
        ({"switch_controller": "gradnorm"}, r"switch_controller.*got 'gradnorm'.*grad_norm"),
        ({"norm_ema": 1.0}, r"norm_ema.*got 1.0.*< 1"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        SASRConfig(output_dir=str(tmp_path), **settings)
