"""What a checkpoint may make a run do: nothing but continue. Its files are data, also those that torch reads."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from posttrain.errors import ResumeError
from posttrain.seam.checkpoint import manifest
from tests.batteries.runs import build

# All that transformers keeps in torch's own format.
PICKLED = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]
SETTINGS = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


class Evil:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def saved(tiny_dir, tmp_path_factory):
    """A run's checkpoint after its first step."""
    folder = tmp_path_factory.mktemp("saved")
    build("sft", tiny_dir, folder, **SETTINGS).train()
    return folder / "checkpoint-1"


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoint-1"))


def test_there_is_no_other_pickled_file(saved):
    found = {path.name for path in saved.rglob("*") if path.is_file() and path.suffix not in (".json", ".safetensors")}
    assert found - {"README.md", "chat_template.jinja", "training_args.bin"} == set(PICKLED)


@pytest.mark.parametrize("name", [*PICKLED, "trainer_state.json", "model.safetensors", "posttrain_state.json"])
@pytest.mark.parametrize("harm", ["replaced", "cut", "flipped"])
def test_a_file_that_is_not_the_one_that_was_written_is_refused_from_python_too(name, harm, copy, tiny_dir, tmp_path):
    if not (copy / name).exists():
        pytest.skip(f"this method has no {name}")
    marker, content = tmp_path / "marker", (copy / name).read_bytes()
    if harm == "replaced":
        (copy / name).write_bytes(pickle.dumps(Evil(marker)))
    elif harm == "cut":
        (copy / name).write_bytes(content[:-1])
    else:
        (copy / name).write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    with pytest.raises(ResumeError, match=f"the checkpoint is damaged: .*{name}"):
        build("sft", tiny_dir, tmp_path / "run", **SETTINGS).train(resume_from_checkpoint=str(copy))
    assert not marker.exists()


@pytest.mark.parametrize("name", PICKLED)
def test_even_a_file_with_a_right_hash_runs_no_code(name, copy, tiny_dir, tmp_path):
    """Whoever can write the file can write the manifest: torch's own restriction is the second wall."""
    marker = tmp_path / "marker"
    (copy / name).write_bytes(pickle.dumps(Evil(marker)))
    manifest.seal(copy, step=1)
    with pytest.raises(pickle.UnpicklingError):
        build("sft", tiny_dir, tmp_path / "run", **SETTINGS).train(resume_from_checkpoint=str(copy))
    assert not marker.exists()
    # The file does what it is meant to: unpickled without restriction it leaves the marker.
    pickle.loads((copy / name).read_bytes())  # noqa: S301
    assert marker.exists()


def test_hashes_are_compared_once_in_a_process(copy, monkeypatch):
    manifest.refuse_damaged(copy)
    monkeypatch.setattr(manifest, "damage", lambda folder: pytest.fail("compared again"))
    manifest.refuse_damaged(copy)
