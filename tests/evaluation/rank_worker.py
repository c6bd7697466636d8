"""One rank of the two-process evaluation test: runs every scenario and writes what it got to a file of its own."""

import json
import os
import re
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import RewardError
from posttrain.evaluation.generate import EvalSettings, evaluate

# 11 prompts in batches of 2 for each rank: the last round has 3 prompts, 2 and 1. With 9 the second rank has none.
SETTINGS = {
    "greedy": EvalSettings(max_new_tokens=10, batch_size=2),
    "sampled": EvalSettings(max_new_tokens=10, batch_size=4, temperature=1.0, num_generations=2),
    "uneven": EvalSettings(max_new_tokens=10, batch_size=2, num_prompts=9),
}
BUDGET = EvalSettings(max_new_tokens=2, batch_size=1, time_budget_seconds=1.0)
ROWS = [{"prompt": [{"role": "user", "content": "y" * i}], "answer": str(i), "group": "ab"[i % 2]} for i in range(11)]


def has_digit(prompts, completions, **columns):
    return [float(bool(re.search(r"\d", completion[0]["content"]))) for completion in completions]


def run(model, tokenizer, accelerator):
    found = {}
    for name, settings in SETTINGS.items():
        seen = []
        result = evaluate(
            model,
            tokenizer,
            ROWS,
            has_digit,
            settings=settings,
            accelerator=accelerator,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )
        found[name] = {**result.to_dict(), "seconds": None}
        found[f"{name} progress"] = seen
    return found


def run_unequal_ranks(model, tokenizer, accelerator):
    """What only the second rank meets, both ranks must act on."""
    second = accelerator.process_index == 1

    def fails(completions, **columns):
        return None if second else [1.0] * len(completions)

    def sleeps(completions, **columns):
        time.sleep(1.1 if second else 0)
        return [1.0] * len(completions)

    try:
        evaluate(model, tokenizer, ROWS, fails, settings=SETTINGS["greedy"], accelerator=accelerator)
        error = None
    except RewardError as problem:
        error = str(problem)
    slow = evaluate(model, tokenizer, ROWS, sleeps, settings=BUDGET, accelerator=accelerator)
    return {"error": error, "partial": slow.partial, "num_prompts": slow.num_prompts}


def main(model_dir, output_dir):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = accelerator.prepare(AutoModelForCausalLM.from_pretrained(model_dir))
    found = {
        "wrapped": type(model).__name__,
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        **run(model, tokenizer, accelerator),
        **run_unequal_ranks(model, tokenizer, accelerator),
    }
    Path(output_dir, f"rank{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
    # torch 2.13: a gloo group that is taken down while a DDP model still refers to it can wait for ever.
    os._exit(0)
