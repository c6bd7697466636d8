"""The way of `method.switch_gate` from the recipe to the loss, and that no other paper is on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.config.loader import load
from posttrain.errors import ConfigError
from posttrain.training.stage import Stage
from tests.config.recipes import HPT, changed, write

ROOT = Path(__file__).parents[3]
RUN = """
import json, sys
from posttrain.run import run
run(sys.argv[1])
print("LOADED", json.dumps([name for name in sys.modules if name.startswith("posttrain.methods.")]))
"""


def test_a_plain_run_loads_no_module_of_another_paper(tmp_path: Path):
    """Declarations of all methods are read; what they declare is not."""
    path = write(tmp_path, changed(HPT, {"trainer.max_steps": 1, "trainer.save_strategy": "no", "eval": None}))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = done.stdout.split("LOADED ")[1]
    parts = {name for name in loaded.strip('[]\n"').split('", "') if name.count(".") > 2}
    assert parts == {"posttrain.methods.hpt.trainer"}


def test_the_gate_is_told_wrong_once_and_reaches_the_trainer_as_written(tmp_path: Path):
    with pytest.raises(ConfigError, match="method.switch_gate: ") as caught:
        load(write(tmp_path, changed(HPT, {"method.switch_gate": 2.0})))
    assert not hasattr(caught.value, "errors"), "one finding, not one for each place that knows the range"
    trainer, _ = Stage(load(write(tmp_path, changed(HPT, {"method.switch_gate": 0.25}))), name="run").build()
    assert trainer.args.switch_gate == 0.25 and trainer.config_class is type(trainer.args)
