"""The battery of `posttrain doctor --gradients` over engines: a selection in which every pair of factors is met, and
the two published bugs, which it must see. The whole table is `scripts/gradients.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.certificate.battery import run_plan
from posttrain.certificate.command import DEFAULT, check_gradients, every_recipe
from posttrain.certificate.compare import TOLERANCE
from posttrain.certificate.launching import Recipe, accelerate_config
from posttrain.certificate.plan import Cell, Group, covering, groups
from posttrain.registry import trained
from posttrain.seam.sharding import ON_CPU

ROOT = Path(__file__).parents[2]
PLAN = covering(list(trained()), groups()[0])
pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of all groups, so that the reference is trained once."""
    return tmp_path_factory.mktemp("certificate")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setenv(ON_CPU, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize("group", PLAN, ids=lambda group: group.name)
def test_every_trainer_makes_the_update_of_one_process(group, folder):
    results = run_plan({group: PLAN[group]}, every_recipe(ROOT / "recipes"), folder, trainers=trained())
    assert len(results) == len(PLAN[group])
    odd = [(r.cell, r.outcome, r.figure, r.tensor, r.error, r.skipped) for r in results if not r.is_equal]
    assert not odd


@pytest.mark.parametrize("group", [Group("ddp", "none", 2), Group("zero2", "optimizer", 2)], ids=lambda g: g.name)
def test_the_published_bugs_are_seen(group, tmp_path):
    """Four micro-batches lose one (under offload, all but the last), two are averaged each by itself."""
    (tmp_path / "recipe.yaml").write_text(DEFAULT)
    recipes = {key: Recipe(str(tmp_path / "recipe.yaml"), (), key) for key in ("sft", "grpo")}
    cells = [Cell(key, split) for key in recipes for split in ((2, 4), (4, 2), (8, 1))]
    results = run_plan({group: cells}, recipes, tmp_path, worker="tests.certificate.seeded")
    for result in results:
        assert result.error is None and result.figure is not None
        if result.cell.split == (8, 1):
            assert result.is_equal
        else:
            assert result.outcome == "DIFFERS" and result.figure > 100 * TOLERANCE


def test_the_doctor_prints_one_table_and_ends_well(capsys):
    from rich.console import Console

    file = ROOT / "accelerate_configs" / "single.yaml"
    assert check_gradients(None, config_file=str(file), console=Console(width=200))
    shown = capsys.readouterr().out
    assert "4 of 4 updates equal (relative 1e-05)" in shown
    assert [line.split()[7] for line in shown.splitlines() if line.startswith("│")] == ["sft", "sft", "grpo", "grpo"]


def test_a_refused_combination_ends_at_the_start_with_one_line(tmp_path):
    file = tmp_path / "accelerate.yaml"
    file.write_text(json.dumps(accelerate_config(Group("zero1", "parameters", 1))))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "-m", "posttrain.run"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("short.yaml")), f"trainer.output_dir={tmp_path / 'run'}"],
        env={**{k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode != 0
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert "zero1 has no offload of the parameters" in line and not (tmp_path / "run").exists()
