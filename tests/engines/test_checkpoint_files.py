"""DeepSpeed's own files in a checkpoint: read without running what they name, and refused when they were changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from posttrain.seam.checkpoint import manifest
from tests.engines.test_launch import launch

SHORT = Path(__file__).with_name("short.yaml")
pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]


class Payload:
    """Code that runs where a pickle is read without care."""

    def __init__(self, place: str):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """Folder of a run of two steps, as if it had been stopped there."""
    folder = tmp_path_factory.mktemp("zero1") / "run"
    done = launch("zero1", folder, "trainer.max_steps=2", recipe=SHORT)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "finished.json").unlink()
    return folder


def model_states(folder: Path) -> Path:
    return next((folder / "checkpoint-2" / "global_step2").glob("*model_states.pt"))


def test_a_changed_file_is_refused_and_code_in_it_is_not_run(stopped, tmp_path):
    file, proof = model_states(stopped), tmp_path / "it_ran"
    whole = file.read_bytes()
    state = torch.load(file, weights_only=False)  # of our own making
    torch.save({**state, "extra": Payload(str(proof))}, file)
    named = f"trainer.resume={stopped / 'checkpoint-2'}"
    changed = launch("zero1", stopped, named, recipe=SHORT)
    assert changed.returncode != 0 and not proof.exists()
    assert "model_states.pt" in changed.stderr + changed.stdout
    # Whoever can change the file can change its hash, too.
    manifest.seal(stopped / "checkpoint-2", step=2)
    forged = launch("zero1", stopped, named, recipe=SHORT)
    assert forged.returncode != 0 and not proof.exists()
    assert "a file of the checkpoint names code, which is not run" in forged.stderr
    file.write_bytes(whole)
    manifest.seal(stopped / "checkpoint-2", step=2)
    again = launch("zero1", stopped, named, recipe=SHORT)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "continuing from" in again.stdout
