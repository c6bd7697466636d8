"""Checkpoints are whole or not there: hashes, renaming, old ones kept until the new one stands, no room to write."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from posttrain.registry import METHODS
from posttrain.seam.checkpoint import manifest
from posttrain.seam.checkpoint.state import complete_checkpoints
from tests.batteries.runs import build


class Best(TrainerCallback):
    """The step that ends is the best so far."""

    def on_step_end(self, args, state, control, **kwargs):
        state.best_global_step = state.global_step


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "_staging" / "checkpoint-3"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "inner" / "part.json").write_text("{}")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    manifest.seal(folder, step=3)
    return folder


def test_the_manifest_names_every_file_with_size_and_hash(sealed: Path):
    written = json.loads((sealed / "posttrain_complete.json").read_text())
    assert written["step"] == 3 and set(written["files"]) == {
        "inner/part.json",
        "model.safetensors",
        "trainer_state.json",
    }
    fact = written["files"]["model.safetensors"]  # of b"weights"; the hash by another program
    assert fact == {"bytes": 7, "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"}
    assert manifest.damage(sealed) is None


def test_every_kind_of_damage_is_told(sealed: Path):
    path = sealed / "model.safetensors"
    path.write_bytes(b"wEights")
    assert manifest.damage(sealed) == "the content of model.safetensors was changed"
    assert manifest.damage(sealed, hashes=False) is None
    path.write_bytes(b"weigh")
    assert manifest.damage(sealed, hashes=False) == "model.safetensors has 5 bytes instead of 7"
    path.unlink()
    assert manifest.damage(sealed) == "model.safetensors is missing"
    (sealed / "posttrain_complete.json").write_text('{"step"')
    assert manifest.damage(sealed) == "posttrain_complete.json cannot be read (JSONDecodeError)"


FACT = {"bytes": 2, "sha256": "x"}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"step": 3},
        {"step": 3, "files": {}},
        {"step": 3, "files": ["trainer_state.json"]},
        {"step": 3, "files": {"trainer_state.json": None}},
        {"step": 3, "files": {"trainer_state.json": {"bytes": "2", "sha256": "x"}}},
        {"step": True, "files": {"trainer_state.json": FACT}},
        {"step": 3, "files": {"trainer_state.json": FACT, "../secret": FACT}},
        {"step": 3, "files": {"trainer_state.json": FACT, "/etc/passwd": FACT}},
        {"step": 3, "files": {"trainer_state.json": FACT, "a\0b": FACT}},
    ],
)
def test_a_manifest_that_seal_did_not_write_verifies_nothing(sealed: Path, content):
    (sealed / "posttrain_complete.json").write_text(json.dumps(content))
    told = "posttrain_complete.json does not name files with their sizes and hashes, trainer_state.json among them"
    assert manifest.damage(sealed) == told


@pytest.mark.parametrize("state", ["{}", "[]", '{"global_step": 2}', '{"global_step": null}'])
def test_a_state_that_was_sealed_anew_is_not_that_of_the_step(sealed: Path, state: str):
    (sealed / "trainer_state.json").write_text(state)
    manifest.seal(sealed, step=3)
    assert manifest.damage(sealed) == "trainer_state.json is not the state after step 3"


@pytest.mark.parametrize("state", ["", "nul", "[" * 100_000])
def test_a_state_that_is_no_json_is_told(sealed: Path, state: str):
    (sealed / "trainer_state.json").write_text(state)
    manifest.seal(sealed, step=3)
    assert str(manifest.damage(sealed)).startswith("a file cannot be read (")


def test_links_to_nowhere_and_to_themselves_are_missing_files(sealed: Path):
    for target in ("nowhere", "model.safetensors"):
        (sealed / "model.safetensors").unlink()
        (sealed / "model.safetensors").symlink_to(target)
        assert manifest.damage(sealed) == "model.safetensors is missing"


def test_a_checkpoint_of_an_attempt_before_is_replaced_by_the_new_one(sealed: Path, tmp_path: Path):
    final = tmp_path / "checkpoint-3"
    final.mkdir()
    (final / "old").write_text("old")
    manifest.publish(sealed, final)
    assert manifest.damage(final) is None and not (final / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize("renamed", [0, 1])
def test_a_kill_while_one_is_replaced_loses_neither(renamed, sealed: Path, tmp_path: Path, monkeypatch):
    final = tmp_path / "checkpoint-3"
    final.mkdir()
    (final / "old").write_text("old")
    (final / "trainer_state.json").write_text('{"global_step": 3}')
    manifest.seal(final, step=3)
    rename, done = Path.rename, []

    def killed(path: Path, target: Path) -> Path:
        if len(done) == renamed:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        manifest.publish(sealed, final)
    assert manifest.recover(tmp_path) == ([] if renamed == 0 else [final])
    assert manifest.damage(final) is None
    assert (final / "old").exists() == (renamed == 0)


def test_what_was_not_sealed_or_is_damaged_is_not_recovered(sealed: Path, tmp_path: Path):
    (sealed / "model.safetensors").write_bytes(b"wEights")
    (sealed.parent / "checkpoint-4").mkdir()
    assert manifest.recover(tmp_path) == []
    assert complete_checkpoints(tmp_path) == []


@pytest.mark.parametrize("key", ["sft", "grpo"])
def test_older_checkpoints_go_after_the_new_one_stands(key, tiny_dir, tmp_path):
    build(key, tiny_dir, tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    assert all(manifest.damage(path) is None for path in complete_checkpoints(tmp_path))
    assert not (tmp_path / manifest.STAGING).exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
    ids=["system", "safetensors", "torch"],
)
def test_no_room_is_one_clear_error_and_costs_no_checkpoint(error, tiny_dir, tmp_path):
    class Full(METHODS["sft"].load_trainer()):
        def method_state(self):
            if self.state.global_step == 2:
                raise error
            return {}

    Full.__name__ = METHODS["sft"].load_trainer().__name__  # a part of the layout that a run continues with
    trainer = build(
        "sft",
        tiny_dir,
        tmp_path,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        trainer_class=Full,
    )
    with pytest.raises(manifest.CheckpointError, match="could not be written: .*continues from the last complete"):
        trainer.train()
    (kept,) = complete_checkpoints(tmp_path)
    assert kept.name == "checkpoint-1" and manifest.damage(kept) is None
    assert not (tmp_path / "checkpoint-2").exists()
    assert trainer.args.save_total_limit == 1

    again = build("sft", tiny_dir, tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    again.train(resume_from_checkpoint=str(kept))
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_another_error_stays_what_it_is(tmp_path):
    assert manifest.not_written(ValueError("x"), tmp_path) is None
    assert manifest.not_written(torch.OutOfMemoryError("CUDA out of memory"), tmp_path) is None


def test_the_best_checkpoint_is_named_by_the_place_it_has(tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.add_callback(Best())
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    stored = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert stored["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")
    assert manifest.damage(tmp_path / "checkpoint-1") is None
