"""A controller moves the shares of a policy run's prompts: by what it measures, in time, the same after a resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.config.loader import load
from posttrain.errors import ConfigError, DataError, ResumeError, SupportError
from posttrain.methods.aioli.prompts import PromptController, PromptSettings
from posttrain.methods.aioli.readers import kept_for
from posttrain.methods.aioli.rounds import RECORD
from posttrain.preflight.check import check
from posttrain.run import run
from tests.batteries.runs import Recorder, as_groups, build, dataset, weights

ROUND = {"mixing_rounds_every": 5, "learn_sweeps": 1, "learn_steps": 1, "one_hot_factor": 0.5, "eta": 3.0}
NAMES = ["group0", "group1", "group2"]
RECIPE = Path(__file__).parents[3] / "recipes" / "aioli" / "prompts.yaml"


def from_weights(model) -> list[float]:
    """Made-up shares that any change of the weights changes."""
    total = sum(float(value.double().abs().sum()) for value in model.state_dict().values())
    return [0.5 + 0.4 * float(np.sin(total * (group + 1))) for group in range(3)]


def make(model, folder, *, settings=None, accuracies=from_weights, key="grpo", data=None, **overrides):
    """4 prompts of 4 attempts a batch, 3 batches an epoch, one optimizer step each."""
    given = settings or {}
    reward, settings = Recorder(), {**kept_for(given.get("controller", "aioli"), ROUND), **given}
    layout = {"per_device_train_batch_size": 8, "max_steps": 10, "changing_shares": True, **overrides}
    data = as_groups(dataset()) if data is None else data
    trainer = build(key, model, folder, reward=reward, data=data, **layout)
    controller = PromptController(trainer, PromptSettings.read(settings), accuracies=accuracies)
    return trainer, controller, reward


def drawn(reward: Recorder) -> list[Counter]:
    """Prompts of each group in every generation batch."""
    groups = [int(prompt.split("+")[0]) % 3 for prompt, _ in reward.seen]
    return [Counter(groups[first : first + 16 : 4]) for first in range(0, len(groups), 16)]


def test_proportions_follow_from_what_was_measured(tiny_dir, tmp_path):
    """Every number from the record of the run, by the equations; and the prompts that were then asked."""
    trainer, controller, reward = make(tiny_dir, tmp_path, settings={"mixing_rounds_every": 6}, max_steps=12)
    trainer.train()
    record = json.loads((tmp_path / RECORD).read_text())
    measured = [event["losses"] for event in record["records"] if event["event"] in ("start", "probe")][:4]
    schedule = controller.controller.learn_schedule(0)
    batches = drawn(reward)
    drops, mixtures = np.zeros((3, 3)), np.zeros((3, 3))
    for place, group in enumerate(schedule):
        drops[:, group] = np.array(measured[place]) - np.array(measured[place + 1])
        mixtures[group] = [batches[place][number] / 4 for number in range(3)]
        assert batches[place] == {group: 2, (group + 1) % 3: 1, (group + 2) % 3: 1}
    matrix = np.linalg.solve(mixtures, drops.T).T
    matrix = matrix - min(matrix.min(), 0)
    weight = np.exp(3.0 * (matrix / matrix.sum()).sum(axis=0))
    update = next(event for event in record["records"] if event["event"] == "update")
    assert update["proportions"] == pytest.approx((weight / weight.sum()).tolist(), rel=1e-9)
    assert (update["step"], update["first_step"]) == (3, 4)
    # Batches 4 and 5 hold 8 prompts by these shares, each group within one prompt of its own.
    asked = batches[4] + batches[5]
    assert all(abs(asked[group] - 8 * share) < 1.01 for group, share in enumerate(update["proportions"]))
    logged = [entry for entry in trainer.state.log_history if "mixture/group0_proportion" in entry]
    assert logged[4]["mixture/group0_proportion"] == pytest.approx(update["proportions"][0])
    assert record["cost"]["validation_measurements"] == 1 + 2 * 3 + 2
    seen = [entry for entry in trainer.state.log_history if "validation/group1_accuracy" in entry]
    assert seen[0]["validation/group1_accuracy"] == pytest.approx(1 - measured[1][1])


@pytest.mark.parametrize("stopped", [2, 4, 5, 8])
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(stopped, tiny_dir, tmp_path):
    layout = {"save_strategy": "steps", "save_steps": stopped}
    whole, first, asked = make(tiny_dir, tmp_path, **layout)
    whole.train()
    end = first.state()["rounds"]
    rest, second, again = make(tiny_dir, tmp_path, **layout)
    torch.manual_seed(3)
    rest.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stopped}"))
    assert again.seen == asked.seen[-len(again.seen) :]
    assert second.state()["rounds"] == end
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())


def test_batches_that_several_steps_use_are_counted_once(tiny_dir, tmp_path):
    layout = {"steps_per_generation": 4, "per_device_train_batch_size": 4, "max_steps": 8}
    trainer, controller, reward = make(tiny_dir, tmp_path, settings={"mixing_rounds_every": 5}, **layout)
    trainer.train()
    assert controller.steps_per_batch == 2
    for place, group in enumerate(controller.controller.learn_schedule(0)):
        assert drawn(reward)[place][group] == 2
    record = json.loads((tmp_path / RECORD).read_text())
    assert next(e for e in record["records"] if e["event"] == "update")["step"] == 3, "in batches"


def test_skill_it_reads_the_failures(tiny_dir, tmp_path):
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps({"groups": NAMES, "skill_graph": [[0.3, 0.1, 0], [0.05, 0.4, 0], [0, 0, 0.2]]}))
    settings = {"controller": "skillit", "skill_graph": str(graph), "mixing_rounds_every": 2, "eta": 1.0}
    trainer, controller, _ = make(
        tiny_dir, tmp_path, settings=settings, accuracies=lambda model: [0.0, 0.5, 1.0], max_steps=3
    )
    trainer.train()
    weight = np.exp([0.3 * 1.0 + 0.1 * 0.5, 0.05 * 1.0 + 0.4 * 0.5, 0.0])
    assert controller.controller.proportions == pytest.approx(weight / weight.sum())


def test_a_run_is_not_continued_without_its_controller(tiny_dir, tmp_path):
    layout = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make(tiny_dir, tmp_path, **layout)[0].train()
    layout["per_device_train_batch_size"] = 8
    other = build("grpo", tiny_dir, tmp_path, data=as_groups(dataset()), **layout)
    with pytest.raises(ResumeError, match=r"parts was \['prompt_shares'\], is None"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"controller": "doge"}, r"prompt_shares\.controller: .*aioli, skillit, stratified, natural"),
        ({"learn_step": 2}, "not a setting .*got 'learn_step'.*Did you mean learn_steps"),
        ({"eta": -1.0}, r"prompt_shares\.eta: .*>= 0"),
        ({"one_hot_factor": 0.3}, r"prompt_shares\.one_hot_factor: mixtures that favour no group"),
        ({"mixing_rounds_every": 3}, r"prompt_shares\.mixing_rounds_every: measuring would take the whole round"),
        ({"prior": [0.5, 0.5], "prior_steps": 1}, r"prompt_shares\.prior: .*3 numbers"),
        ({"prior": [0.5, 0.3, 0.2]}, r"prompt_shares\.prior_steps: "),
        (
            {"controller": "natural", "eta": 1.0},
            r"prompt_shares\.eta: read by the controllers aioli, skillit alone",
        ),
        ({"controller": "skillit"}, r"prompt_shares\.skill_graph: "),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message, tiny_dir, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make(tiny_dir, tmp_path, settings=settings)


def test_runs_that_cannot_follow_a_controller_are_refused(tiny_dir, tmp_path):
    with pytest.raises(DataError, match="the training rows have no group"):
        make(tiny_dir, tmp_path, data=dataset())
    with pytest.raises(SupportError, match="draws its prompts an epoch ahead"):
        make(tiny_dir, tmp_path, key="sasr")
    with pytest.raises(SupportError, match="the method has an order of prompts of its own"):
        build("rmt", tiny_dir, tmp_path, prompt_proportions={"a": 1.0})
    with pytest.raises(ConfigError, match="the shares of the prompts are given once"):
        make(tiny_dir, tmp_path, prompt_proportions={"group0": 1.0})
    alone = build("grpo", tiny_dir, tmp_path, data=as_groups(dataset()), changing_shares=True)
    with pytest.raises(ConfigError, match="changing_shares and what changes the shares go together"):
        alone.train()


def messages(*overrides: str) -> str:
    return "\n".join(str(error) for error in check(load(RECIPE, overrides)).errors)


def test_check_finds_what_a_recipe_lacks():
    assert messages() == ""
    assert "there are none" in messages("stages.1.data.validation=null")
    assert "a group has no validation row" in messages("stages.1.data.validation.options.digits=[1,2]")
    assert "measuring would take the whole round" in messages("stages.1.rollout.prompt_shares.learn_steps=5")
    fixed = ("stages.1.data.validation=null", "stages.1.rollout.prompt_shares=null")
    shares = "stages.1.method={name: grpo, prompt_proportions: {1 digit: 0.5, 2 digits: 0.5, 4 digits: 0}}"
    assert "the shares of the prompts are given once" in messages(shares)
    assert "these are not the groups of the prompts" in messages(shares, *fixed)
    nothing = "stages.1.method={name: grpo, prompt_proportions: {}}"
    assert "these are not the groups of the prompts" in messages(nothing, *fixed)
    assert "reads no held-out prompts" in messages("stages.1.rollout.prompt_shares={name: aioli, controller: natural}")


@pytest.mark.slow
def test_the_recipe_measures_on_held_out_prompts(tmp_path):
    run(RECIPE, [f"trainer.output_dir={tmp_path}"])
    record = json.loads((tmp_path / "grpo" / RECORD).read_text())
    assert record["groups"] == ["1 digit", "2 digits", "3 digits"]
    losses = [event["losses"] for event in record["records"] if "losses" in event]
    # The start, three mixtures in each of two rounds, the end of the first.
    assert len(losses) == 1 + 2 * 3 + 1
    assert losses[0][0] < losses[0][2], "sums of one digit are solved more often"
    assert sum(record["proportions"]) == pytest.approx(1)
