"""Runs of real processes that the tests of faults start, hurt and start again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = """
model:
  tiny: {architecture: llama, hidden_size: 32, num_layers: 2, num_heads: 2, intermediate_size: 64, seed: 0}
  dtype: float32
data: {train: {task: arithmetic, size: 256, seed: 0, options: {digits: 2, split: train}}, max_prompt_length: 64}
rollout: {num_generations: 4, max_completion_length: 16, rewards: [{name: REWARD, weight: 1.0}]}
trainer:
  output_dir: OUTPUT
  max_steps: STEPS
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 1
  learning_rate: 1.0e-3
  lr_scheduler_type: constant
  logging_steps: 1
  save_strategy: steps
  save_steps: 4
  save_total_limit: 2
  seed: 0
method: {name: grpo}
"""
# Rewards what an untrained model does now and then, so that every step changes the weights.
REWARD = """
def digits(completions, **columns):
    return [sum(c.isdigit() for c in str(text)) / 20 for text in completions]
"""


def write_recipe(folder: Path, *, output: Path, steps: int) -> Path:
    """A GRPO recipe in a folder of its own, with its reward beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reward.py").write_text(REWARD)
    text = RECIPE.replace("OUTPUT", str(output)).replace("STEPS", str(steps))
    (folder / "recipe.yaml").write_text(text.replace("REWARD", '"reward.py:digits"'))
    return folder / "recipe.yaml"


class Launched:
    """A run in processes of its own, its output in a file."""

    def __init__(self, recipe: Path, *overrides: str, processes: int = 1, log: Path | None = None):
        launch = ["-m", "posttrain.run"]
        if processes > 1:
            config = str(ROOT / "accelerate_configs" / "ddp.yaml")
            launch = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", str(processes)]
            launch += ["-m", "posttrain.run"]
        self.recipe, self.log = recipe, log or recipe.with_suffix(".log")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *launch, str(recipe), *overrides],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # as a terminal's job, which Ctrl-C reaches as a whole
            )

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.ranks().values():
            os.kill(pid, 9)
        self.process.kill()
        self.process.wait()

    def ranks(self) -> dict[int, int]:
        """Rank -> process id of those that run now."""
        listed = subprocess.run(["pgrep", "-f", f"posttrain.run {self.recipe}"], capture_output=True, text=True)
        found = {}
        for pid in map(int, listed.stdout.split()):
            try:
                names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
            found |= {int(name[5:]): pid for name in names if name.startswith(b"RANK=")}
        return found

    def wait_for_step(self, output: Path, step: int, *, seconds: float = 120) -> None:
        """Until the log of the run tells this step."""
        metrics, until = output / "metrics.jsonl", time.monotonic() + seconds
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < until, self.text()
            time.sleep(0.05)

    def end(self, *, seconds: float = 120) -> tuple[int, float]:
        """(exit status, seconds until it ended)."""
        began = time.monotonic()
        status = self.process.wait(seconds)
        return status, time.monotonic() - began

    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")


def finished(recipe: Path, *overrides: str, processes: int = 1) -> str:
    """Run to the end; what it printed."""
    with Launched(recipe, *overrides, processes=processes, log=recipe.with_suffix(".again.log")) as run:
        status, _ = run.end(seconds=250)
    assert status == 0, run.text()
    return run.text()


def same_weights(one: Path, other: Path) -> bool:
    """Whether two finished runs ended with the same bytes."""
    files = [folder / "model" / "model.safetensors" for folder in (one, other)]
    return files[0].read_bytes() == files[1].read_bytes()


needs_linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
