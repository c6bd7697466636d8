"""Streams on two processes, with shares that follow from gradients of both: each reads the files for itself, and
together they train what one process does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.run import run
from tests.config.recipes import BASES, changed, write
from tests.distributed.test_launch import launch, record
from tests.preflight.test_streaming import mixture, recipe


def test_two_processes_learn_what_one_does_and_continue_alike(tmp_path: Path):
    changes = recipe(mixture(tmp_path, rows=21)) | {"eval": None, "data.eval": None, "trainer.max_steps": 6}
    changes |= {"trainer.save_steps": 3, "trainer.learning_rate": 0.005, "method.mixing_rounds_every": 3}
    changes |= {"method.controller": "doge", "method.step_size": 0.5}
    file = write(tmp_path, changed(BASES["aioli"], changes))
    own = "trainer.per_device_train_batch_size=4"
    done = launch(file, own, f"trainer.output_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record(tmp_path / "two")
    run(file, [f"trainer.output_dir={tmp_path / 'one'}"])
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    start = load_file(tmp_path / "one" / "initial" / "tiny" / "model.safetensors")
    difference = sum(float(((one[name] - two[name]).double() ** 2).sum()) for name in one) ** 0.5
    moved = sum(float(((one[name] - start[name]).double() ** 2).sum()) for name in one) ** 0.5
    assert difference / moved < 1e-4

    shares = [json.loads((tmp_path / name / "mixing.json").read_text())["proportions"] for name in ("one", "two")]
    assert shares[1] == pytest.approx(shares[0], rel=1e-4) and abs(shares[0][0] - 0.5) > 1e-3
    rows = [_last(tmp_path / name, "mixture/easy_rows") for name in ("one", "two")]
    assert rows[0] == rows[1]
    (tmp_path / "two" / "finished.json").unlink()
    again = launch(file, own, f"trainer.output_dir={tmp_path / 'two'}", f"trainer.resume={tmp_path}/two/checkpoint-3")
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-4000:]
    continued = load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert all(bool((continued[name] == value).all()) for name, value in two.items())


def _last(folder: Path, name: str) -> float:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in found if name in row][-1]
