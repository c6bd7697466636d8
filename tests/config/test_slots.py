"""Slots of a recipe: a room in another folder fills them for a method that knows nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import posttrain.methods
from posttrain import registry
from posttrain.config.loader import load
from posttrain.preflight.check import check
from posttrain.run import run
from posttrain.training.stage import Stage
from tests.config.recipes import GRPO, SFT, changed, write

DECLARED = '''
"""A paper that is four settings."""
from posttrain.registry import Method, Paper

METHOD = Method(
    kind="setting",
    summary="plain steps, falling rates, rows in reverse, an average",
    paper=Paper("An Example", "2401.00001", 2024),
    slots={
        "trainer.optimizer": "steps:Plain",
        "trainer.schedule": "steps:Falling",
        "trainer.averaging": "steps:Average",
        "data.order": "steps:Reverse",
    },
)
'''
STEPS = '''
"""What the example adds to a run."""
import torch
from pydantic import Field
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from posttrain.config.block import Block
from posttrain.config.steps import StageStep


class PlainBlock(Block):
    factor: float = Field(default=1.0, gt=0.0, description="of the learning rate")


class Plain(StageStep):
    block = PlainBlock

    def optimizer(self, run, args):
        return torch.optim.SGD, {"lr": args.learning_rate * self.settings.factor}


class Falling(StageStep):
    block = Block

    def schedule(self, run):
        return lambda optimizer, num_steps: LambdaLR(optimizer, lambda step: 1.0 - step / (num_steps + 1))


class Reverse(StageStep):
    block = Block

    def order(self, run, rows):
        return lambda epoch: range(len(rows) - 1, -1, -1)


class Mean(TrainerCallback):
    """Sum of the first weight over the steps, in a checkpoint as in the run."""

    def __init__(self, trainer):
        self.trainer, self.total = trainer, 0.0

    def state(self):
        return {"total": self.total}

    def load(self, state):
        self.total = state["total"]

    def on_step_end(self, args, state, control, **kwargs):
        self.total += float(next(self.trainer.model.parameters()).flatten()[0])
        self.trainer.set_metric("example/total", self.total)


class Average(StageStep):
    block = Block

    def attach(self, run, trainer, data):
        part = Mean(trainer)
        trainer.attach("example", part)
        trainer.add_callback(part)
'''
ALL = {
    "trainer.optimizer": {"name": "example", "factor": 0.5},
    "trainer.schedule": {"name": "example"},
    "trainer.averaging": {"name": "example"},
    "data.order": {"name": "example"},
}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A room `example` beside those of the package, and its key."""
    room = tmp_path / "rooms" / "example"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text(DECLARED)
    (room / "steps.py").write_text(STEPS)
    monkeypatch.setattr(posttrain.methods, "__path__", [*posttrain.methods.__path__, str(room.parent)])
    monkeypatch.setattr(registry, "KEYS", (*registry.KEYS, "example"))


def logged(folder: Path) -> list[dict]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event for event in events if "loss" in event]


def test_settings_of_a_paper_work_with_a_method_that_does_not_know_it(example, tmp_path):
    path = write(tmp_path, changed(SFT, {**ALL, "trainer.max_steps": 4}))
    report = check(load(path))
    assert report.ok, report.lines()
    outcome = run(path)[0]
    events = logged(outcome.folder)
    # 0.001 * 0.5, falling by a fifth a step.
    assert [event["learning_rate"] for event in events] == pytest.approx([0.0005, 0.0004, 0.0003, 0.0002])
    assert all("example/total" in event for event in events)
    config = load(path)
    trainer, _ = Stage(config, name="run").build()
    assert list(trainer._get_train_sampler()) == list(range(31, -1, -1))
    assert isinstance(trainer.create_optimizer(), torch.optim.SGD)


def test_a_stopped_run_goes_on_with_its_settings(example, tmp_path):
    values = changed(SFT, {**ALL, "trainer.max_steps": 4})
    whole = run(write(tmp_path, changed(values, {"trainer.output_dir": str(tmp_path / "whole")})))[0]
    path = write(tmp_path, changed(values, {"trainer.output_dir": str(tmp_path / "cut")}))
    run(path, ["trainer.max_steps=4"])
    for name in ("model", "finished.json", "checkpoint-3", "checkpoint-4"):
        target = tmp_path / "cut" / name
        if target.is_dir():
            for file in sorted(target.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            target.rmdir()
        elif target.exists():
            target.unlink()
    again = run(path)[0]
    ours = ("loss", "learning_rate", "example/total")
    assert [[e[k] for k in ours] for e in logged(again.folder)] == [[e[k] for k in ours] for e in logged(whole.folder)]
    left, right = _weights(whole.model), _weights(again.model)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_another_setting_is_another_run(example, tmp_path):
    path = write(tmp_path, changed(SFT, {"trainer.optimizer": {"name": "example"}}))
    run(path)
    other = write(tmp_path, changed(SFT, {"trainer.optimizer": {"name": "example", "factor": 2.0}}))
    with pytest.raises(Exception, match="a run with other settings"):
        run(other)


def test_policy_methods_take_them_too(example, tmp_path):
    path = write(tmp_path, changed(GRPO, ALL))
    trainer, _ = Stage(load(path), name="run").build()
    drawn = list(dict.fromkeys(trainer._get_train_sampler()))
    assert drawn == list(range(31, -1, -1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer.optimizer": {"factor": 2.0}}, "trainer.optimizer: the name of what fills it is missing"),
        (
            {"trainer.optimizer": {"name": "exampel"}},
            "optimizer.name: nothing of this name fills it .*'example'",
        ),
        ({"trainer.optimizer": {"name": "example", "facter": 2}}, r"optimizer.facter: unknown key. Perhaps .*factor"),
        ({"trainer.optimizer": {"name": "example", "factor": -1}}, r"optimizer.factor: .*got -1.* > 0"),
        ({"trainer.optimizer": "example"}, "trainer.optimizer: a mapping of keys is expected"),
        ({"rollout.prompt_shares": {"name": "example"}}, "one of: aioli"),
        ({"method": {"name": "example"}}, "method.name: example fills trainer.optimizer"),
    ],
)
def test_what_a_slot_refuses(example, changes, message, tmp_path):
    with pytest.raises(Exception, match=message):
        load(write(tmp_path, changed(GRPO, changes)))


def test_a_slot_that_nothing_fills_says_so(tmp_path):
    with pytest.raises(Exception, match="allowed: nothing yet, so leave it out"):
        load(write(tmp_path, changed(SFT, {"trainer.schedule": {"name": "wsd"}})))


def test_an_order_of_its_own_is_kept(example, tmp_path):
    """Aioli draws by groups, so an order of rows is refused and not ignored."""
    from tests.config.recipes import BASES

    path = write(tmp_path, changed(BASES["aioli"], {"data.order": {"name": "example"}}))
    with pytest.raises(Exception, match="data.order: the method draws its rows in an order of its own"):
        run(path)
