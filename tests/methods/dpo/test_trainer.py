"""DPO: TRL's numbers on the same pairs, a literal step, each place of the reference, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import DPOConfig as TRLConfig
from trl import DPOTrainer as TRLTrainer

from posttrain.errors import ConfigError, DataError, ResumeError, SupportError
from posttrain.methods.dpo.trainer import REFERENCE_COLUMNS
from posttrain.models.tiny import build_tiny
from posttrain.seam.frozen import next_token_logps
from tests.batteries.runs import build, dataset, fresh_model, gradients, relative_difference, weights
from tests.methods.dpo.cases import inputs

ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def pairs(count: int = 8) -> Dataset:
    return inputs(dataset(count))[0]


def sums_of(model, trainer) -> torch.Tensor:
    """(2 N,) sums of log-probs of all pairs of a trainer, in the order of its rows."""
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    return next_token_logps(model, batch).sum(dim=1)


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("sigmoid", {}, {}),
        ("hinge", {}, {}),
        ("robust", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
    ],
)
def test_the_gradient_is_trls(kind, ours, theirs, tiny_dir, tmp_path):
    """After a first step, so that the policy is not the reference; TRL encodes the same chats."""
    data = pairs()
    chats = Dataset.from_list(
        [
            {
                "prompt": row["prompt"],
                **{name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")},
            }
            for row in data
        ]
    )
    layout = {"max_steps": 2, "max_grad_norm": 0.0, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    layout |= {"gradient_accumulation_steps": 1, "lr_scheduler_type": "constant", "optim": "sgd"}
    mine = build("dpo", tiny_dir, tmp_path / "a", data=data, preference_loss=kind, beta=0.3, **layout, **ours)
    mine.train()
    args = TRLConfig(
        output_dir=str(tmp_path / "b"), loss_type=[kind], beta=0.3, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, seed=5, save_strategy="no", max_length=None,
        logging_steps=1, disable_dropout=False, **{**layout, **theirs},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    native = TRLTrainer(fresh_model(tiny_dir), None, args, train_dataset=chats, processing_class=tokenizer)
    native.train()
    left, right = weights(mine), dict(native.model.state_dict())
    start = fresh_model(tiny_dir).state_dict()
    moved = {name: left[name] - start[name] for name in left}
    assert relative_difference(moved, {name: right[name] - start[name] for name in left}) < 1e-4
    ours_logged = [entry for entry in mine.state.log_history if "rewards/margins" in entry]
    theirs_logged = [entry for entry in native.state.log_history if "rewards/margins" in entry]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "loss"):
        assert float(ours_logged[1][name]) == pytest.approx(float(theirs_logged[1][name]), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "robust", "simpo"])
def test_the_gradient_of_a_step_is_that_of_the_literal_loss(kind, tiny_dir, tmp_path):
    more = {"robust": {"label_smoothing": 0.1}, "simpo": {"target_margin": 0.5}}.get(kind, {})
    reference = fresh_model(tiny_dir)
    with torch.no_grad():  # another model than the policy, so that margins are not 0
        for value in reference.parameters():
            value.add_(0.02 * torch.randn_like(value))
    options = {"preference_loss": kind, "beta": 0.4, **more}
    probe = build("dpo", tiny_dir, tmp_path / "probe", data=pairs(), **ONE_STEP, **options)
    with torch.no_grad():
        known = sums_of(reference, probe)
    data = pairs()
    if kind != "simpo":
        options["reference"] = "precomputed"
        for place, name in enumerate(REFERENCE_COLUMNS):
            data = data.add_column(name, known[place::2].tolist())
    ours = gradients(build("dpo", tiny_dir, tmp_path / "run", data=data, **ONE_STEP, **options))
    model = fresh_model(tiny_dir)
    policy = sums_of(model, probe)
    lengths = [
        sum(label != -100 for label in row[name + "labels"])
        for row in probe.train_dataset
        for name in ("", "rejected_")
    ]
    loss = torch.zeros(())
    for row in range(8):
        c, r, rc, rr = policy[2 * row], policy[2 * row + 1], known[2 * row], known[2 * row + 1]
        h = (c - rc) - (r - rr)
        loss = (
            loss
            + {
                "sigmoid": lambda h=h: -torch.log(torch.sigmoid(0.4 * h)),
                "ipo": lambda h=h: (h - 1.25) ** 2,
                "hinge": lambda h=h: torch.clamp(1 - 0.4 * h, min=0),
                "robust": lambda h=h: (
                    (-0.9 * torch.log(torch.sigmoid(0.4 * h)) + 0.1 * torch.log(torch.sigmoid(-0.4 * h))) / 0.8
                ),
                "simpo": lambda c=c, r=r, row=row: (
                    -torch.log(torch.sigmoid(0.4 * (c / lengths[2 * row] - r / lengths[2 * row + 1]) - 0.5))
                ),
            }[kind]()
            / 8
        )
    loss.backward()
    theirs = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert relative_difference({name: ours[name] for name in theirs}, theirs) < 1e-4


def test_at_the_start_the_loss_is_ln_2_and_no_reward_is_given(tiny_dir, tmp_path):
    trainer = build("dpo", tiny_dir, tmp_path, **ONE_STEP)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert [float(entry[f"rewards/{name}"]) for name in ("chosen", "rejected", "margins")] == pytest.approx(
        [0] * 3, abs=1e-5
    )


def test_all_places_of_the_reference_make_the_same_weights(tiny_dir, tmp_path):
    layout = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
    }
    data, lora = pairs(), {"peft_config": LORA}
    inside = build("dpo", tiny_dir, tmp_path / "a", data=data, trainer_kwargs=lora, **layout)
    assert inside.reference.kind == "adapter_off" and inside.reference.frozen is None
    with torch.no_grad():
        known = sums_of(fresh_model(tiny_dir), inside)
    for place, name in enumerate(REFERENCE_COLUMNS):
        data = data.add_column(name, known[place::2].tolist())
    written = build("dpo", tiny_dir, tmp_path / "b", data=data, trainer_kwargs=lora, reference="precomputed", **layout)
    inside.train()
    written.train()
    left = {name: value for name, value in weights(inside).items() if ".lora_" in name}
    assert left and relative_difference({name: weights(written)[name] for name in left}, left) < 1e-5
    beside = build("dpo", tiny_dir, tmp_path / "c", data=pairs(), **layout)
    assert beside.reference.kind == "copy" and beside.reference.frozen is not None
    assert build("dpo", tiny_dir, tmp_path / "d", preference_loss="simpo", target_margin=0.0).reference.kind is None


def test_a_run_on_another_model_is_not_continued(tiny_dir, tmp_path):
    other = build_tiny(tmp_path / "model", hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, seed=1)
    build("dpo", other, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    again = build("dpo", tiny_dir, tmp_path, max_steps=2)
    with pytest.raises(ResumeError, match="not those it was begun with, so the reference would change"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beta": 0.0}, ConfigError, "beta: .*got 0.0.* > 0"),
        ({"preference_loss": "robust"}, ConfigError, "method.label_smoothing: read by the loss robust"),
        ({"label_smoothing": 0.1}, ConfigError, "label_smoothing: .*got 0.1.*preference_loss is sigmoid"),
        ({"preference_loss": "robust", "label_smoothing": 0.5}, ConfigError, "label_smoothing: .*got 0.5.* < 0.5"),
        ({"preference_loss": "simpo"}, ConfigError, "method.target_margin: read by the loss simpo alone"),
        (
            {"preference_loss": "simpo", "target_margin": 0.5, "reference": "copy"},
            ConfigError,
            "method.reference: simpo reads no reference",
        ),
        ({"loss_aggregation": "seq_mean_token_mean"}, ConfigError, "loss_aggregation: read by supervised losses"),
        ({"loss_type": "dft"}, ConfigError, "loss_type: read by supervised losses of tokens"),
        ({"reference": "adapter_off"}, ConfigError, "the model has no adapter to switch off"),
        ({"reference": "precomputed"}, DataError, "a column that the method reads is missing .*ref_chosen_logps"),
        ({"packing": True, "max_length": 64}, SupportError, "trainer.packing"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(change, error, message, tiny_dir, tmp_path):
    with pytest.raises(error, match=message):
        build("dpo", tiny_dir, tmp_path, **change)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("rejected", None, "a column that the method reads is missing .*got 'rejected'; allowed: columns: .*chosen"),
        ("rejected", ["", "a", "b", "c"], r"an answer is empty in 1 of 4 rows \(row 0, column 'rejected'\)"),
        ("rejected", "chosen", r"'chosen' and 'rejected' are the same in 4 of 4 rows \(row 0\)"),
    ],
)
def test_pairs_that_teach_nothing_are_refused(column, values, message, tiny_dir, tmp_path):
    data = pairs(4)
    found = data.remove_columns(column)
    if values is not None:
        found = found.add_column(column, data[values] if isinstance(values, str) else values)
    with pytest.raises(DataError, match=message):
        build("dpo", tiny_dir, tmp_path, data=found)
