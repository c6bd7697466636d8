"""Seconds of one policy optimizer step: posttrain against TRL on the same work, in one process, taken in turn.

Same tiny model, same replayed rollouts (no generation in the figure), same loss (Dr.GRPO). The baseline is TRL tuned
for a CPU: float32 and no checkpointing; its defaults (bf16 autocast, checkpointing) are slower and compute something
else. Prints medians, the ratio to ours, and the relative difference of the gradient norms.

    python scripts/bench/policy_step.py [--vocabulary 8000] [--steps 8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from posttrain import PolicyConfig, PolicyTrainer
from posttrain.data.demonstrations import encode_prompt
from posttrain.models.tiny import build_tiny

PROMPT_CHARACTERS, COMPLETION_TOKENS, ROWS, GENERATIONS = 120, 48, 16, 8


def replay(prompts: list, trainer: object) -> dict:
    """Completions of unequal length that depend on the row's place alone."""
    ids = trainer.processing_class("Answer: 0123456789" * 4, add_special_tokens=False)["input_ids"]
    end = trainer.processing_class.eos_token_id
    rows = range(len(prompts))
    completions = [[*ids[: COMPLETION_TOKENS // 4 + (7 * i) % (COMPLETION_TOKENS * 3 // 4 - 1)], end] for i in rows]
    return {
        "prompt_ids": [encode_prompt(trainer.processing_class, prompt) for prompt in prompts],
        "completion_ids": completions,
        "logprobs": None,
    }


def reward(completions: list, **_: object) -> list[float]:
    """Every group is mixed, so that no row may leave the update and both do the same work."""
    return [float(i % 2) for i in range(len(completions))]


def build(trainer_class: type, config_class: type, model_dir: Path, folder: str, **arguments: object) -> object:
    """A trainer on its own copy of the model."""
    text = ("what is the sum of these many numbers? " * 8)[:PROMPT_CHARACTERS]
    rows = [{"prompt": [{"role": "user", "content": f"{i} {text}"}]} for i in range(64)]
    return trainer_class(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        reward_funcs=reward,
        args=config_class(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            num_generations=GENERATIONS,
            max_completion_length=COMPLETION_TOKENS,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            max_steps=1,
            shuffle_dataset=False,
            **arguments,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        rollout_func=replay,
    )


def main() -> None:
    """Take the variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000, help="rows of the output head")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    disable_progress_bars()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"num_layers": chosen.layers, "num_heads": 4, "intermediate_size": 4 * chosen.hidden_size}
        model_dir = build_tiny(Path(folder) / "model", hidden_size=chosen.hidden_size, **sizes)
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        model.resize_token_embeddings(chosen.vocabulary)
        model.save_pretrained(model_dir)
        trl = {"loss_type": "dr_grpo", "scale_rewards": "none"}
        variants = {
            "posttrain": build(PolicyTrainer, PolicyConfig, model_dir, f"{folder}/a", preset="dr_grpo"),
            "trl": build(
                GRPOTrainer, GRPOConfig, model_dir, f"{folder}/b", bf16=False, gradient_checkpointing=False, **trl
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        norms: dict[str, float] = {}
        for step in range(chosen.steps + 1):
            for name, trainer in variants.items():
                began = time.perf_counter()
                trainer.train()
                if step:  # the first is warm-up
                    seconds[name].append(time.perf_counter() - began)
                else:
                    norms[name] = next(
                        float(log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log
                    )
    ours = statistics.median(seconds["posttrain"])
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:10s} {median:.3f} s a step ({spread}), {median / ours:.2f} x posttrain")
    difference = abs(norms["posttrain"] - norms["trl"]) / norms["trl"]
    print(f"gradient norm, relative difference: {difference:.1e}")


if __name__ == "__main__":
    main()
