"""What adapters, chosen parameters and a measured table do to the reference; what is logged; what does nothing."""

from __future__ import annotations

import math

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.methods.unlearning_paths.config import UnlearnConfig
from tests.methods.unlearning_paths.test_trainer import LORA, LOSSES, build, fresh_model, place, rows  # noqa: F401


def first_logged(trainer, name: str) -> float:
    return next(entry[name] for entry in trainer.state.log_history if name in entry)


def test_a_measured_reference_is_the_model_with_the_adapter_it_has_learnt(tiny_dir, place):  # noqa: F811
    learnt = build(tiny_dir, place, peft_config=LORA, learning_rate=1e-2, max_steps=20, **LOSSES["ga"])
    learnt.train()
    trainer = build(learnt.model, place, reference="precomputed", max_steps=1, **LOSSES["npo"])
    assert trainer.reference.sha != build(fresh_model(tiny_dir), place, max_steps=1).reference.sha
    trainer.train()
    assert first_logged(trainer, "unlearning/log_ratio") == pytest.approx(0.0, abs=1e-5)
    assert first_logged(trainer, "unlearning/forget_loss") == pytest.approx(2 / 0.5 * math.log(2), rel=1e-5)


def test_reading_the_reference_does_not_let_other_parameters_be_trained(tiny_dir, place):  # noqa: F811
    options = {"reference": "adapter_off", "trainable_params_regex": [r".*layers\.0.*"], "max_steps": 2}
    trainer = build(tiny_dir, place, peft_config=LORA, **options, **LOSSES["npo"])
    before = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    trainer.train()
    assert [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad] == before
    assert all("layers.0" in name for name in before) and before


def test_a_logged_mean_is_over_sequences_however_they_are_split(tiny_dir, place):  # noqa: F811
    found = []
    for size, steps in ((8, 1), (4, 2), (3, 3)):
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "learning_rate": 2e-2}
        trainer = build(tiny_dir, place, max_steps=3, **layout, **LOSSES["npo"])
        trainer.train()
        found.append([e["unlearning/log_ratio"] for e in trainer.state.log_history if "unlearning/log_ratio" in e])
    assert found[1] == pytest.approx(found[0], rel=1e-3) and found[2] == pytest.approx(found[0], rel=1e-3)
    assert min(found[0]) < -0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlearn_loss": "ga", "beta": 3.0}, r"method\.beta: ga does not read it .*npo, simnpo, dpo, idkdpo"),
        ({"margin": 2.0}, r"method\.margin: npo does not read it"),
        ({"length_normalize": False}, r"method\.length_normalize: npo does not read it"),
        ({"steering_coeff": 3.0}, r"method\.steering_coeff: npo does not read it .*rmu"),
        ({"idk_responses": ["no"]}, r"method\.idk_responses: npo does not read it"),
        ({"forget_weight": 0.0}, r"method\.forget_weight: the loss would be 0"),
        ({"module_regex": "model.layers.(0"}, r"method\.module_regex: not a regular expression"),
        ({"trainable_params_regex": ["("]}, r"method\.trainable_params_regex: not a regular expression"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        UnlearnConfig(output_dir=str(tmp_path), **changes)


def test_check_knows_of_the_adapter_and_of_empty_answers(tmp_path):
    args = UnlearnConfig(output_dir=str(tmp_path))
    assert [str(error.where) for error in args.tokenizer_findings(None, has_adapter=False)] == ["method.reference"]
    assert not list(args.tokenizer_findings(None, has_adapter=True))
    dpo = UnlearnConfig(output_dir=str(tmp_path), unlearn_loss="dpo")
    data = rows(4).map(lambda row, index: {"alternate": " " if index == 2 else "n"}, with_indices=True)
    (error,) = dpo.data_findings({"train": data}, world_size=1)
    assert isinstance(error, DataError) and "train row 2, column 'alternate'" in str(error)
