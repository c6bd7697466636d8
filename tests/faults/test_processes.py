"""One of two processes is killed, stopped or fails: the other ends soon, the cause stands last, nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.config.recipes import HPT, changed, write
from tests.faults.launched import ROOT, Launched, finished, needs_linux, same_weights, write_recipe

pytestmark = [pytest.mark.faults, needs_linux]
STEPS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    finished(write_recipe(folder, output=folder / "run", steps=STEPS), processes=2)
    return folder / "run"


def checkpoints(output):
    return sorted(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_and_the_next_call_goes_on(rank, whole, tmp_path):
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path, output=output, steps=STEPS)
    with Launched(recipe, processes=2) as run:
        run.wait_for_step(output, 10)
        os.kill(run.ranks()[rank], signal.SIGKILL)
        status, seconds = run.end()
        assert run.ranks() == {}
    assert status != 0 and seconds < 60
    told = run.text()
    cause = told[told.index("Root Cause") :]
    assert f"rank      : {rank} " in cause and "Signal 9 (SIGKILL)" in cause
    assert f"rank {1 - rank}: another process of this run ended; the cause is told below" in told
    assert "[rank" not in told.replace("[rank0]:[W", "").replace("[rank1]:[W", ""), "a traceback of the survivor"
    print(f"rank {rank} killed: the run ended after {seconds:.1f} s, checkpoints {checkpoints(output)}")
    assert "continuing from" in finished(recipe, processes=2)
    assert same_weights(output, whole)


@pytest.mark.parametrize("who", ["rank 0", "rank 1", "launcher"])
def test_sigterm_to_one_process_saves_and_stops_all(who, whole, tmp_path):
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path, output=output, steps=STEPS)
    with Launched(recipe, processes=2) as run:
        run.wait_for_step(output, 6)
        os.kill(run.process.pid if who == "launcher" else run.ranks()[int(who[-1])], signal.SIGTERM)
        status, seconds = run.end()
        assert run.ranks() == {}
    assert status != 0 and seconds < 20, "schedulers kill 30 s after SIGTERM"
    found = re.search(r"stopped by SIGTERM, with a checkpoint after optimizer step (\d+)", run.text())
    assert found and checkpoints(output)[-1] == int(found[1]) >= 6
    print(f"SIGTERM to {who}: ended after {seconds:.1f} s with checkpoint {found[1]}")
    assert f"continuing from {output}/checkpoint-{found[1]}" in finished(recipe, processes=2)
    assert same_weights(output, whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_saves_and_stops(processes, whole, tmp_path):
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path, output=output, steps=STEPS)
    with Launched(recipe, processes=processes) as run:
        run.wait_for_step(output, 6)
        os.killpg(run.process.pid, signal.SIGINT)
        status, seconds = run.end()
        assert run.ranks() == {}
    assert status == (130 if processes == 1 else 1) and seconds < 20
    found = re.search(r"stopped by Ctrl-C, with a checkpoint after optimizer step (\d+)", run.text())
    assert found and checkpoints(output)[-1] == int(found[1]) >= 6
    if processes == 2:
        assert f"continuing from {output}/checkpoint-" in finished(recipe, processes=2)
        assert same_weights(output, whole)


SLOW = """
import time
from pathlib import Path

def verdict(prompts, completions, **columns):
    if Path(__file__).with_name("run").joinpath("run.json").exists():
        print("scoring", flush=True)
        time.sleep(60)
    return [0.0 for _ in completions]
"""


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    changes = {"eval": None, "data.eval": None, "rollout.rewards": ["slow.py:verdict"], "rollout.reward_workers": 0}
    recipe = write(tmp_path, changed(HPT, changes))
    with Launched(recipe) as run:
        while "scoring" not in run.text():
            time.sleep(0.1)
        os.killpg(run.process.pid, signal.SIGINT)
        time.sleep(1.2)  # sooner it could be what a launcher passes on
        os.killpg(run.process.pid, signal.SIGINT)
        status, seconds = run.end()
    assert status == 130 and seconds < 5
    told = run.text()
    assert "Ctrl-C again leaves at once" in told and "left by Ctrl-C; what is complete stays in" in told
    assert "Traceback" not in told


SCRIPT = """
import os, torch.distributed as dist
from posttrain import run as main
dist.init_process_group("gloo")
def fails(recipe, overrides):
    if os.environ["RANK"] == "1":
        raise ValueError("the mistake of rank 1")
    dist.barrier()
main.run = fails
raise SystemExit(main.main(["recipe.yaml"]))
"""


def test_the_traceback_of_the_rank_that_failed_stands_last(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(SCRIPT)
    config = str(ROOT / "accelerate_configs" / "ddp.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    last = done.stderr[done.stderr.index("Root Cause") :]
    assert "ValueError: the mistake of rank 1" in last and "rank      : 1 " in last
    assert "rank 0: another process of this run ended" in done.stderr
