"""Training in groups: the weights are used, the order is the same for every split, a run resumes inside a measurement,
and what cannot work is refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from posttrain.data.tasks.markov_text import generate
from posttrain.errors import ConfigError, DataError
from posttrain.methods.aioli.config import AioliConfig
from posttrain.methods.aioli.readers import kept_for
from posttrain.methods.aioli.trainer import RECORD, AioliTrainer
from tests.batteries.runs import COMMON, fresh_model, losses, weights

GROUPS = ["easy", "hard", "hardest"]
ROUND = {"mixing_rounds_every": 9, "learn_sweeps": 1, "learn_steps": 2, "one_hot_factor": 0.5, "max_steps": 18}


def documents(size: int, seed: int, split: str = "train", groups=GROUPS) -> Dataset:
    rows = generate(size, seed=seed, length=24, split=split, groups=groups)
    return Dataset.from_list([{key: row[key] for key in ("prompt", "group")} for row in rows])


class Watched(AioliTrainer):
    """Remembers the rows of every optimizer step."""

    def get_batch_samples(self, *args, **kwargs):
        batches, number = super().get_batch_samples(*args, **kwargs)
        rows = [tuple(ids) for batch in batches for ids in batch["input_ids"].tolist()]
        self.__dict__.setdefault("steps", []).append(rows)
        return batches, number


def build(model, folder, *, train=None, validation=None, trainer_class=Watched, peft_config=None, **overrides):
    arguments = {
        **COMMON,
        "demonstration_column": "prompt",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "mixing_eval_examples": 4,
        **kept_for(overrides.get("controller", "aioli"), ROUND),
        **overrides,
    }
    return trainer_class(
        model=fresh_model(model),
        args=AioliConfig(output_dir=str(folder), **arguments),
        train_dataset=documents(60, 1) if train is None else train,
        eval_dataset=documents(30, 2, "eval") if validation is None else validation or None,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=peft_config,
    )


def shown(trainer, prefix: str) -> dict[str, float]:
    return {k: v for entry in trainer.state.log_history for k, v in entry.items() if k.startswith(prefix)}


def record(folder) -> dict:
    return json.loads((folder / RECORD).read_text())


# ---- the weights are used ----


@pytest.mark.parametrize("favoured", [0, 2])
def test_rows_follow_the_proportions(favoured, tiny_dir, tmp_path):
    proportions = [0.1, 0.1, 0.1]
    proportions[favoured] = 0.8
    trainer = build(tiny_dir, tmp_path, controller="static", proportions=proportions)
    trainer.train()
    found = shown(trainer, "mixture/")
    assert found[f"mixture/{GROUPS[favoured]}_rows"] == pytest.approx(0.8 * 8 * 18, abs=1)
    assert found[f"mixture/{GROUPS[favoured]}_rows_fraction"] == pytest.approx(0.8, abs=0.01)
    assert found[f"mixture/{GROUPS[favoured]}_intended_fraction"] == pytest.approx(0.8)
    assert sum(found[f"mixture/{name}_rows"] for name in GROUPS) == 8 * 18


def test_what_is_favoured_is_learnt_better(tiny_dir, tmp_path):
    reached = []
    for proportions in ([0.9, 0.05, 0.05], [0.05, 0.05, 0.9]):
        trainer = build(tiny_dir, tmp_path, controller="static", proportions=proportions, max_steps=40)
        trainer.train()
        reached.append(record(tmp_path)["records"][-1]["losses"])
    assert reached[0][0] < reached[1][0] - 0.1
    assert reached[1][2] < reached[0][2] - 0.1


def test_a_measurement_trains_the_mixture_of_its_group(tiny_dir, tmp_path):
    trainer = build(tiny_dir, tmp_path)
    trainer.train()
    schedule = trainer.controller.learn_schedule(0)
    assert sorted(schedule) == [0, 1, 2]
    groups = {tuple(row["input_ids"]): row["group"] for row in trainer.train_dataset}
    for block, group in enumerate(schedule):
        rows = [groups[row] for step in trainer.steps[2 * block : 2 * block + 2] for row in step]
        assert Counter(rows)[GROUPS[group]] == 8, "half of 16 rows"


def test_proportions_that_follow_from_the_record(tiny_dir, tmp_path):
    """The matrix, and the proportions, from the losses that the run has written down."""
    trainer = build(tiny_dir, tmp_path, eta=2.0)
    trainer.train()
    events = record(tmp_path)["records"]
    measured = [event for event in events if event["event"] in ("start", "probe")][:4]
    drops = np.zeros((3, 3))
    for (before, after), group in zip(
        zip(measured, measured[1:], strict=False), trainer.controller.learn_schedule(0), strict=True
    ):
        drops[:, group] = np.array(before["losses"]) - np.array(after["losses"])
    mixtures = np.full((3, 3), 0.25) + np.eye(3) * 0.25
    matrix = np.stack([np.linalg.solve(mixtures, row) for row in drops])
    matrix = matrix - min(matrix.min(), 0)
    matrix = matrix / matrix.sum()
    weight = np.exp(2.0 * matrix.sum(axis=0))
    update = next(event for event in events if event["event"] == "update")
    assert update["proportions"] == pytest.approx((weight / weight.sum()).tolist(), rel=1e-9)
    assert update["step"] == 6 and update["first_step"] == 7
    logged = [e["mixture/easy_proportion"] for e in trainer.state.log_history if "mixture/easy_proportion" in e]
    assert logged[6] == pytest.approx(1 / 3), "the lag: one more step of the old proportions"
    assert logged[7] == logged[8] == pytest.approx(update["proportions"][0])


def test_rows_held_back_are_scored_at_the_end_and_decide_nothing(tiny_dir, tmp_path):
    trainer = build(tiny_dir, tmp_path, mixing_test_examples=3)
    trainer.train()
    chosen, held_back = set(trainer.validation.chosen), set(trainer.validation.held_back)
    assert len(chosen) == 12 and len(held_back) == 9 and not chosen & held_back
    last = record(tmp_path)["records"][-1]
    assert last["event"] == "test" and last["step"] == 18
    assert last["test_losses"] == pytest.approx(trainer.validation.test_losses().tolist(), rel=1e-6)
    logged = [e["test/hard_loss"] for e in trainer.state.log_history if "test/hard_loss" in e]
    assert logged == [pytest.approx(last["test_losses"][1], rel=1e-6)]
    with pytest.raises(DataError, match="no validation row is left to decide on .*below 10"):
        build(tiny_dir, tmp_path, mixing_test_examples=10)


def test_equal_proportions_where_nothing_is_learnt_from_the_matrix(tiny_dir, tmp_path):
    trainer = build(tiny_dir, tmp_path, eta=0.0)
    trainer.train()
    assert record(tmp_path)["proportions"] == pytest.approx([1 / 3] * 3)


def test_validation_losses_are_means_over_rows_of_means_over_tokens(tiny_dir, tmp_path):
    trainer = build(tiny_dir, tmp_path, mixing_eval_examples=None)
    found = trainer.validation.losses()
    expected: dict[str, list[float]] = {name: [] for name in GROUPS}
    trainer.model.eval()
    for row in trainer.eval_dataset:
        ids = torch.tensor(row["input_ids"])
        with torch.no_grad():
            log_probs = trainer.model(input_ids=ids[None]).logits.log_softmax(-1)[0]
        expected[row["group"]].append(float(-log_probs[:-1].gather(1, ids[1:, None]).mean()))
    assert found.tolist() == pytest.approx([sum(v) / len(v) for v in expected.values()], rel=1e-5)


# ---- splits, ranks (see the batteries), resume ----


def test_rows_of_a_step_do_not_depend_on_the_split(tiny_dir, tmp_path):
    compare_splits(lambda **layout: build(tiny_dir, tmp_path, **layout))


def compare_splits(make):
    """The same rows in every step, and the same losses, of 8 x 1, 4 x 2 and 2 x 4 rows."""
    seen, curves = [], []
    for rows, steps in ((8, 1), (4, 2), (2, 4)):
        trainer = make(per_device_train_batch_size=rows, gradient_accumulation_steps=steps)
        trainer.train()
        seen.append([Counter(step) for step in trainer.steps])
        curves.append(losses(trainer))
    assert seen[0] == seen[1] == seen[2]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert curves[2] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 9, 13])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_run_stopped_anywhere_in_a_round_resumes_bit_equal(stop, ema, tiny_dir, tmp_path):
    layout = {"save_strategy": "steps", "save_steps": stop, "ema": ema}
    whole = build(tiny_dir, tmp_path / "whole", **layout)
    whole.train()
    rest = build(tiny_dir, tmp_path / "whole", **layout)
    torch.manual_seed(99)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert rest.steps == whole.steps[stop:]
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())
    assert rest.controller.state() == whole.controller.state()
    assert rest.rounds.records == whole.rounds.records
    assert shown(rest, "mixture/") == shown(whole, "mixture/")


@pytest.mark.parametrize("controller", ["doremi", "doge", "skillit"])
def test_other_controllers_change_the_proportions_and_resume(controller, tiny_dir, tmp_path):
    if controller == "doremi":  # a reference that knows more than the model
        reference = build(tiny_dir, tmp_path / "reference", controller="stratified", max_steps=30)
        reference.train()
        reference.save_model(str(tmp_path / "reference" / "model"))
    graph = tmp_path / "graph.json"
    matrix = [[0.3, 0.1, 0.0], [0.0, 0.4, 0.1], [0.0, 0.0, 0.5]]
    graph.write_text(json.dumps({"groups": GROUPS, "skill_graph": matrix}))
    own = {
        "doremi": {"reference_model": str(tmp_path / "reference" / "model"), "step_size": 1.0},
        "doge": {"step_size": 0.01},
        "skillit": {"skill_graph": str(graph)},
    }
    layout = {"controller": controller, **own[controller], "mixing_rounds_every": 3, "save_strategy": "steps"}
    layout |= {"save_steps": 4, "max_steps": 9}
    whole = build(tiny_dir, tmp_path / "run", **layout)
    whole.train()
    rest = build(tiny_dir, tmp_path / "run", **layout)
    rest.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert rest.steps == whole.steps[4:]
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())
    final = record(tmp_path / "run")
    assert final["proportions"] != pytest.approx([1 / 3] * 3, abs=1e-6)
    assert sum(final["proportions"]) == pytest.approx(1)
    assert rest.controller.result.tolist() == whole.controller.result.tolist()


def test_the_result_is_written_where_nothing_is_measured(tiny_dir, tmp_path):
    reference = build(tiny_dir, tmp_path / "reference", controller="stratified", max_steps=2, validation=[])
    reference.train()
    assert record(tmp_path / "reference")["proportions"] == pytest.approx([1 / 3] * 3)
    reference.save_model(str(tmp_path / "reference" / "model"))
    own = {"reference_model": str(tmp_path / "reference" / "model"), "step_size": 1.0}
    trainer = build(tiny_dir, tmp_path, controller="doremi", validation=[], **own)
    trainer.train()
    assert record(tmp_path)["proportions"] == trainer.controller.result.tolist()


@pytest.mark.parametrize("controller", ["doge", "doremi", "skillit"])
def test_a_prior_holds_for_its_steps_with_every_controller(controller, tiny_dir, tmp_path):
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps({"groups": GROUPS, "skill_graph": np.eye(3).tolist()}))
    own = {"doge": {}, "doremi": {"reference_model": str(tiny_dir)}, "skillit": {"skill_graph": str(graph)}}
    layout = {"prior": [0.8, 0.1, 0.1], "prior_steps": 4, "max_steps": 8, "mixing_rounds_every": 4}
    trainer = build(tiny_dir, tmp_path, controller=controller, **layout, **own[controller])
    trainer.train()
    logged = [e["mixture/easy_proportion"] for e in trainer.state.log_history if "mixture/easy_proportion" in e]
    assert logged[:4] == pytest.approx([0.8] * 4) and all(share != pytest.approx(0.8) for share in logged[4:])


def test_rows_without_a_group_are_refused_and_small_groups_are_told(tiny_dir, tmp_path):
    rows = documents(60, 1)
    nameless = Dataset.from_list([{**row, "group": "" if i == 7 else row["group"]} for i, row in enumerate(rows)])
    with pytest.raises(DataError, match="data.train: a row has no group .*row 7, column .*1 of 60 rows"):
        build(tiny_dir, tmp_path, train=nameless)
    few = Dataset.from_list([row for row in rows if row["group"] != "easy"] + [rows[0]])
    with pytest.warns(UserWarning, match="group 'easy' has 1 rows and a block .* draws 8: each comes up to 8 times"):
        build(tiny_dir, tmp_path, train=few)


def test_numbers_that_the_controller_does_not_read_are_told(tiny_dir, tmp_path):
    with pytest.warns(UserWarning, match=r"doge does not read method.ema .aioli., method.eta .aioli/skillit."):
        build(tiny_dir, tmp_path, controller="doge", eta=0.5, ema=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataloader_num_workers": 2}, "reads further ahead than the lag .*at least 5 with 2 loader workers"),
        ({"proportions_lag": 9}, "a decision would not reach the next round .*below 9"),
        ({"groups": ["easy", "easy"]}, "a group is named twice"),
        ({"train_sampling_strategy": "sequential"}, "rows come in the order of the groups' shares"),
    ],
)
def test_settings_that_would_show_late_are_refused_at_once(changes, message, tiny_dir, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(tiny_dir, tmp_path, **changes)


def test_a_reference_that_is_not_there_stops_before_the_first_step(tiny_dir, tmp_path):
    own = {"controller": "doremi", "reference_model": str(tmp_path / "no"), "prior": [1, 1, 1], "prior_steps": 9}
    trainer = build(tiny_dir, tmp_path, **own)
    with pytest.raises(ConfigError, match="reference"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_prior_holds_until_the_first_decision(tiny_dir, tmp_path):
    trainer = build(tiny_dir, tmp_path, prior=[0.7, 0.2, 0.1], prior_steps=4, max_steps=13)
    trainer.train()
    logged = [e["mixture/easy_proportion"] for e in trainer.state.log_history if "mixture/easy_proportion" in e]
    assert logged[:4] == pytest.approx([0.7] * 4)
    assert set(logged[4:10]) == {0.25, 0.5}, "the measurement"
    assert logged[12] == pytest.approx(record(tmp_path)["proportions"][0])


def test_packed_rows_are_of_one_group(tiny_dir, tmp_path):
    packed = {"packing": True, "packing_strategy": "wrapped", "max_length": 40}
    trainer = build(tiny_dir, tmp_path, train=documents(120, 1), **packed)
    trainer.train()
    found = shown(trainer, "mixture/")
    assert sum(found[f"mixture/{name}_rows"] for name in GROUPS) == 8 * 18
    assert record(tmp_path)["records"][-1]["step"] == 18


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, r"max_steps: the number of steps must be known"),
        ({"max_steps": 20}, r"mixing_rounds_every: the rounds do not divide the steps .*9, with 20 - 0"),
        ({"prior": [0.5, 0.3, 0.2]}, r"prior_steps: a prior and the steps"),
        ({"controller": "static"}, r"proportions: static proportions are given once"),
        ({"controller": "skillit"}, r"skill_graph: the controller skillit needs it"),
        ({"controller": "doremi"}, r"reference_model: the controller doremi needs it"),
        ({"skill_graph": "x"}, r"skill_graph: read by the controller skillit alone"),
        ({"one_hot_factor": 1 / 3}, r"one_hot_factor"),
        ({"learn_sweeps": 5}, r"learn"),
        ({"controller": "static", "proportions": [0.5, 0.5]}, r"proportions"),
        ({"prior": [0.0, 0.0, 0.0], "prior_steps": 9}, r"prior"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message, tiny_dir, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(tiny_dir, tmp_path, **changes)


def test_rows_that_cannot_be_mixed_are_refused(tiny_dir, tmp_path):
    with pytest.raises(DataError, match="the training rows have no group"):
        build(tiny_dir, tmp_path, train=documents(9, 1).remove_columns("group"))
    with pytest.raises(DataError, match="one group has nothing to be mixed with"):
        build(tiny_dir, tmp_path, train=documents(9, 1, groups="easy"), validation=documents(9, 1, groups="easy"))
    with pytest.raises(DataError, match="a group has no validation row.*hardest"):
        build(tiny_dir, tmp_path, validation=documents(8, 1, groups=["easy", "hard"]))
    with pytest.raises(DataError, match=r"data\.validation"):
        build(tiny_dir, tmp_path, validation=False)
    with pytest.raises(DataError, match="groups that are not listed"):
        build(tiny_dir, tmp_path, groups=["easy", "hard"])


def test_a_group_that_is_not_learnt_stops_the_run_by_name(tiny_dir, tmp_path):
    trainer = build(tiny_dir, tmp_path)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="group 'easy', after optimizer step 0"):
        trainer.train()


@pytest.mark.parametrize("controller", ["doremi", "doge"])
def test_a_signal_that_is_not_a_number_is_not_taken_for_an_absent_group(controller, tiny_dir, tmp_path):
    own = {"step_size": 0.01}
    if controller == "doremi":
        reference = fresh_model(tiny_dir)
        with torch.no_grad():
            next(reference.parameters()).fill_(float("nan"))
        reference.save_pretrained(tmp_path / "reference")
        own["reference_model"] = str(tmp_path / "reference")
    trainer = build(tiny_dir, tmp_path, controller=controller, mixing_rounds_every=3, max_steps=3, **own)
    if controller == "doge":
        trainer.rounds.begin(0)
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(float("nan"))
        trainer.begin = lambda: None  # the losses before training were fine
    with pytest.raises(DataError, match=r"group '\w+', after optimizer step 0: what the proportions follow from"):
        trainer.train()
