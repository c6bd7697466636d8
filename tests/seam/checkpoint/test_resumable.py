"""What every trainer of the seam shares, on both kinds: state hooks, the gradient norm, the layout it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from posttrain.errors import ResumeError
from posttrain.registry import METHODS, trained
from posttrain.seam.checkpoint.resumable import ResumableTrainer
from tests.batteries.runs import build

KEYS = ["grpo", "sft"]


def remembering(key: str) -> type:
    """The trainer of `key` with a state of its own: numbers, nested lists, tensors."""

    class Remembering(METHODS[key].load_trainer()):
        norms: list[float]
        restored = None
        restored_rank = None

        def on_grad_norm(self, norm):
            super().on_grad_norm(norm)
            self.norms = [*getattr(self, "norms", []), norm]

        def method_state(self):
            return {"norms": self.norms, "mean": {"weights": [torch.tensor(self.norms)]}, "step": None}

        def load_method_state(self, state):
            self.restored, self.step_at_restore = state, self.state.global_step
            self.norms = list(state["norms"])

        def rank_state(self):
            return {**super().rank_state(), "mine": torch.full((2,), self.norms[-1])}

        def load_rank_state(self, state):
            self.restored_rank = state.pop("mine")
            super().load_rank_state(state)

    return Remembering


@pytest.mark.parametrize("key", KEYS)
def test_a_methods_state_is_saved_and_given_back(key, tiny_dir, tmp_path):
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "trainer_class": remembering(key)}
    first = build(key, tiny_dir, tmp_path, **saving)
    first.train()
    assert len(first.norms) == 4 and first.norms[-1] == first.last_grad_norm
    logged = [entry["grad_norm"] for entry in first.state.log_history if "grad_norm" in entry]
    assert first.norms == pytest.approx(logged)  # before clipping, once a step

    again = build(key, tiny_dir, tmp_path, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.restored["norms"] == first.norms[:2] and again.restored["step"] is None
    torch.testing.assert_close(again.restored["mean"]["weights"][0], torch.tensor(first.norms[:2]))
    assert again.restored_rank.tolist() == pytest.approx([first.norms[1]] * 2)
    assert again.norms == first.norms


@pytest.mark.parametrize("key", KEYS)
def test_a_state_that_cannot_be_saved_names_the_place(key, tiny_dir, tmp_path):
    class Odd(METHODS[key].load_trainer()):
        def method_state(self):
            return {"seen": {1, 2}}

    trainer = build(key, tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1, trainer_class=Odd)
    with pytest.raises(TypeError, match="state at method/seen is a set"):
        trainer.train()
    assert not (tmp_path / "checkpoint-1" / "posttrain_complete.json").exists()


@pytest.mark.parametrize("key", KEYS)
def test_the_mark_of_a_whole_checkpoint_is_written_last(key, tiny_dir, tmp_path):
    """Everything else in the folder is older, or as old."""
    build(key, tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "checkpoint-1").iterdir()}
    assert files.pop("posttrain_complete.json") >= max(files.values())


def test_weights_without_optimizer_are_no_checkpoint_to_continue_from(tiny_dir, tmp_path):
    build("sft", tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1, save_only_model=True).train()
    assert (tmp_path / "checkpoint-1").is_dir()
    assert not (tmp_path / "checkpoint-1" / "posttrain_complete.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_device_train_batch_size": 8}, "per_device_train_batch_size was 4, is 8"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps was 2, is 4"),
        ({"data_seed": 3}, "data_seed was None, is 3"),
    ],
)
def test_a_changed_layout_is_told(change, message, tiny_dir, tmp_path):
    build("grpo", tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    again = build("grpo", tiny_dir, tmp_path, max_steps=2, **change)
    with pytest.raises(ResumeError, match="laid out differently") as refused:
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert message in str(refused.value) and "checkpoint-1" in str(refused.value)


def test_another_method_does_not_continue_a_run(tiny_dir, tmp_path):
    build("grpo", tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ResumeError, match="trainer was 'PolicyTrainer', is 'HPTTrainer'"):
        build("hpt", tiny_dir, tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_damaged_state_file_is_named(tiny_dir, tmp_path):
    build("sft", tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    path = tmp_path / "checkpoint-1" / "posttrain_state.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ResumeError, match=r"the checkpoint is damaged: posttrain_state.json has"):
        build("sft", tiny_dir, tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_the_layout_is_plain_json(tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    saved = json.loads((tmp_path / "checkpoint-1" / "posttrain_state.json").read_text())
    assert saved["layout"] == {
        "trainer": "SupervisedTrainer",
        "engine": None,
        "world_size": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "seed": 5,
        "data_seed": None,
        "parts": None,
        "train_rows": 12,
    }
    assert saved["method"] == {}


@pytest.mark.parametrize("key", sorted(trained()))
def test_the_model_card_names_method_and_paper(key, tiny_dir, tmp_path):
    trainer = build(key, tiny_dir, tmp_path)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert trainer.name in card and "posttrain" in card
    assert METHODS[key].paper.arxiv in card
    assert issubclass(type(trainer), ResumableTrainer)
