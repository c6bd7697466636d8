"""The recipes that use vLLM, end to end: alone, with two processes, and with a server that two processes share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rollouts.conftest import wait_until

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[2]
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/ddp.yaml", "-m"]


def run(recipe: str, output: Path, *overrides: str, launcher: list[str]) -> str:
    """What a run printed."""
    command = [sys.executable, *launcher, "posttrain.run", f"recipes/{recipe}", f"trainer.output_dir={output}"]
    done = subprocess.run(
        [*command, *overrides],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def logged(folder: Path, name: str) -> list[float]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event[name] for event in events if name in event]


@pytest.mark.parametrize("launcher", [["-m"], LAUNCH], ids=["one process", "two processes"])
@pytest.mark.parametrize(("recipe", "stage"), [("grpo/smoke_vllm.yaml", "grpo"), ("hpt/smoke_vllm.yaml", "")])
def test_recipes_with_a_colocated_engine(recipe, stage, launcher, tmp_path):
    told = run(recipe, tmp_path, launcher=launcher)
    folder = next(tmp_path.glob(f"*{stage}/metrics.jsonl")).parent if stage else tmp_path
    assert len(logged(folder, "rollout/sync_seconds")) == 4
    assert max(logged(folder, "sampling/sampling_logp_difference/max")) <= 1e-4
    assert (folder / "finished.json").exists() and "Traceback" not in told
    processes = json.loads((folder / "run.json").read_text())["world"]["num_processes"]
    assert processes == (2 if launcher is LAUNCH else 1)


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_weights_that_are_spread_over_processes_reach_the_engine_whole(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_FSDP_ON_CPU", "1")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{engine}.yaml", "-m"]
    run("hpt/smoke_vllm.yaml", tmp_path, launcher=launcher)
    world = json.loads((tmp_path / "run.json").read_text())["world"]
    assert world["engine"] == engine and world["optimizer_held"] == 0.5
    assert len(logged(tmp_path, "rollout/sync_seconds")) == 4
    assert max(logged(tmp_path, "sampling/sampling_logp_difference/max")) <= 1e-4


def test_two_processes_share_a_server_that_the_run_starts_and_ends(tmp_path):
    told = run("hpt/smoke_vllm.yaml", tmp_path, "rollout.mode=server", launcher=LAUNCH)
    assert "Traceback" not in told
    assert max(logged(tmp_path, "sampling/sampling_logp_difference/max")) <= 1e-4
    assert "Application startup complete" in (tmp_path / "_engine.log").read_text()

    def is_gone() -> bool:
        return subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).returncode == 1

    wait_until(is_gone, 30)


def test_a_server_that_was_started_beforehand(engine_dir, server, tmp_path):
    """`rollout.vllm_server_base_url`: the run leaves it running."""
    from posttrain.rollouts.guard import TOKEN_VARIABLE

    os.environ[TOKEN_VARIABLE] = server.token
    try:
        run(
            "hpt/smoke_vllm.yaml",
            tmp_path,
            "rollout.mode=server",
            f"rollout.vllm_server_base_url={server.url}",
            f"model={{path: {engine_dir}, dtype: float32}}",
            launcher=["-m"],
        )
    finally:
        del os.environ[TOKEN_VARIABLE]
    assert max(logged(tmp_path, "sampling/sampling_logp_difference/max")) <= 1e-4
    assert server.process.poll() is None
