"""What `rollout.one_step_off` gains and costs: GRPO with and without it against one vLLM server, in one process.

A tiny model learns two-digit sums from demonstrations for a while, then by GRPO from there, `--steps` steps for each
seed and variant, the variants in turn. Printed for each variant: seconds a step (median over seeds), the solved
fraction of the rollouts of the last quarter of the steps (mean and standard error over seeds), the mean difference of
the engine's and the trainer's log-probabilities, and the ratios between the variants. Needs vLLM: scripts/setup.sh
dev vllm.

    python scripts/bench/one_step_off.py [--steps 60] [--seeds 3] [--learning-rate 5e-4]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from posttrain.rollouts.cpu import is_cpu_engine
from posttrain.rollouts.guard import TOKEN_VARIABLE
from posttrain.rollouts.server import EngineServer, ServerSettings
from posttrain.run import run

WARM_UP = """
model:
  tiny: {architecture: llama, hidden_size: 128, num_layers: 2, num_heads: 4, intermediate_size: 512, seed: 0}
  dtype: float32
data: {train: {task: arithmetic, size: 20000, seed: 1, options: {digits: [1, 2], split: train}}, max_prompt_length: 64}
trainer:
  output_dir: FOLDER/warm_up
  max_steps: 300
  per_device_train_batch_size: 64
  gradient_accumulation_steps: 1
  learning_rate: 3.0e-3
  lr_scheduler_type: constant_with_warmup
  warmup_steps: 20
  max_length: 128
  logging_steps: 500
  save_strategy: "no"
  seed: 0
method: {name: sft, loss_aggregation: token_mean}
"""
POLICY = """
model: {path: FOLDER/warm_up/model, dtype: float32}
data: {train: {task: arithmetic, size: 4096, seed: 3, options: {digits: [1, 2], split: train}}, max_prompt_length: 64}
rollout:
  engine: vllm
  mode: server
  vllm_server_base_url: ADDRESS
  vllm_importance_sampling_mode: token_truncate
  one_step_off: AHEAD
  num_generations: 8
  max_completion_length: 48
  rewards: [exact]
trainer:
  output_dir: FOLDER/NAME
  max_steps: STEPS
  per_device_train_batch_size: 64
  gradient_accumulation_steps: 1
  learning_rate: RATE
  lr_scheduler_type: constant
  beta: 0.0
  logging_steps: 1
  save_strategy: "no"
  seed: SEED
method: {name: grpo}
"""


def trained(text: str, folder: Path, name: str, **values: object) -> Path:
    """The folder of a run of this recipe."""
    for key, value in {"FOLDER": folder, "NAME": name, **values}.items():
        text = text.replace(key, str(value))
    recipe = folder / f"{name}.yaml"
    recipe.write_text(text)
    return run(recipe)[0].folder


def measured(folder: Path) -> tuple[float, float, float]:
    """(seconds a step, solved fraction at the end, mean log-probability difference) of a run."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if "rollout/accuracy" in event]
    last = steps[-len(steps) // 4 :]
    # The first steps also pay for what is loaded and allocated once.
    seconds = (steps[-1]["elapsed_seconds"] - steps[4]["elapsed_seconds"]) / (len(steps) - 5)
    differences = [step["sampling/sampling_logp_difference/mean"] for step in steps]
    return seconds, statistics.fmean(step["rollout/accuracy"] for step in last), statistics.fmean(differences)


def main() -> None:
    """Run both variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {"false": [], "true": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = trained(WARM_UP, folder, "warm_up") / "model"
        settings = ServerSettings(model=str(model), dtype="float32", max_model_length=112, seed=0)
        with EngineServer(settings, log=folder / "engine.log", is_cpu=is_cpu_engine()) as server:
            os.environ[TOKEN_VARIABLE] = server.token
            for seed in range(arguments.seeds):
                for ahead, results in found.items():
                    values = {"ADDRESS": server.url, "AHEAD": ahead, "SEED": seed, "STEPS": arguments.steps}
                    name = f"ahead-{ahead}-{seed}"
                    rate = arguments.learning_rate
                    results.append(measured(trained(POLICY, folder, name, RATE=rate, **values)))
    table = {}
    for ahead, results in found.items():
        seconds, solved, difference = (list(column) for column in zip(*results, strict=True))
        error = statistics.stdev(solved) / math.sqrt(len(solved)) if len(solved) > 1 else float("nan")
        table[ahead] = statistics.median(seconds)
        end = f"{100 * statistics.fmean(solved):.1f} ± {100 * error:.1f} %"
        off = f"{statistics.fmean(difference):.1e}"
        print(f"one_step_off {ahead:5}: {table[ahead]:.3f} s a step, solved at the end {end}, logps differ by {off}")
    print(f"seconds with / without: {table['true'] / table['false']:.2f}")


if __name__ == "__main__":
    main()
