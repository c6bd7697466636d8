"""Seconds of training when the generation limit follows the thinking budget, against the fixed limit, in one process.

A tiny untrained model that may not stop by itself: every rollout runs into its limit, so the figure is the most that
the limit can save. The budget falls from B_0 to gamma * B_0 over the run, as in recipes/rmt. Timed is all of `train()`
(generation, rewards and updates; not the scoring of the corpus), after a short run that is not counted. Each runs
`--repeats` times in turn with the other; printed are generated tokens, the median of the seconds, and the ratios.

    python scripts/bench/completion_limit.py [--steps 12] [--budget 64] [--hidden-size 64] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer
from transformers.utils import logging

from posttrain.data.tasks.woven_text import generate
from posttrain.methods.rmt.config import RMTConfig
from posttrain.methods.rmt.trainer import RMTTrainer
from posttrain.models.tiny import build_tiny

GENERATIONS, ROWS, MARGIN = 4, 16, 32


def nothing_right(prompts: list, completions: list, **_: Any) -> list[float]:
    """No reward; what is measured is generation."""
    return [0.0] * len(completions)


def measure(limit: str, folder: Path, *, steps: int, budget: int, size: int) -> tuple[float, float]:
    """(generated tokens, seconds of training) of one run."""
    model = build_tiny(folder / "model", hidden_size=size, num_heads=4, intermediate_size=4 * size)
    args = RMTConfig(
        output_dir=str(folder / limit),
        prompt_template="Next token?\n{context}",
        budget_prompt="{budget} tokens.",
        token_budget_initial=budget,
        max_completion_length=2 * budget + MARGIN,
        completion_margin=MARGIN,
        completion_limit=limit,
        max_rollouts_without_answer=None,
        use_ntp=False,
        num_generations=GENERATIONS,
        per_device_train_batch_size=ROWS,
        max_steps=steps,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        generation_kwargs={"suppress_tokens": [0, 3]},  # padding and end: no rollout stops early
    )
    rows = Dataset.from_list([{"text": row["prompt"]} for row in generate(32, seed=0)])
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    trainer = RMTTrainer(str(model), [nothing_right], args, rows, processing_class=tokenizer)
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    tokens = [entry["cost/generated_tokens"] for entry in trainer.state.log_history if "cost/prompts" in entry]
    return tokens[-1], seconds


def main() -> None:
    """Run both variants and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    runs: dict[str, list[tuple[float, float]]] = {"fixed": [], "budget": []}
    sizes = {"budget": options.budget, "size": options.hidden_size}
    with tempfile.TemporaryDirectory() as folder:
        measure("fixed", Path(folder), steps=1, **sizes)  # loads and allocates what the first run would pay for
        for _ in range(options.repeats):
            for limit, measured in runs.items():
                measured.append(measure(limit, Path(folder), steps=options.steps, **sizes))
    found = {
        limit: (measured[0][0], statistics.median(seconds for _, seconds in measured))
        for limit, measured in runs.items()
    }
    for limit, (tokens, seconds) in found.items():
        print(f"{limit:>7}: {tokens:8.0f} tokens, {seconds:6.1f} s")
    fixed, budget = found["fixed"], found["budget"]
    ratios = f"{budget[0] / fixed[0]:.2f} of the tokens, {budget[1] / fixed[1]:.2f} of the time"
    print(f"the limit that follows the budget: {ratios}")


if __name__ == "__main__":
    main()
