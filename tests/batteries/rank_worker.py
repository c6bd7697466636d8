"""One process of `test_ranks`: builds trainers from a spec file, saves the gradient of one optimizer step of each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch
from safetensors.torch import save_file

from posttrain.data.mixture import SOURCE_COLUMN
from posttrain.registry import METHODS, trained
from tests.batteries.runs import build, dataset, gradients, losses, marked_right, replay, weights
from tests.methods.case import case_of


def resume(key: str, model: Path, folder: Path) -> dict:
    """Largest difference between the weights of an uninterrupted run and those of a stopped and continued one."""
    layout = {"per_device_train_batch_size": 4, "max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    if METHODS[key].generates:
        layout["steps_per_generation"] = 4
    layout |= case_of(key).resume
    whole = build(key, model, folder, **layout)
    whole.train()
    rest = build(key, model, folder, **layout)
    torch.manual_seed(9)
    rest.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    left, right = weights(whole), weights(rest)
    difference = max(float((left[name] - right[name]).abs().max()) for name in left)
    return {"weights": difference, "losses": losses(whole) == losses(rest)}


def main(folder: Path) -> None:
    """Run every case of `folder/spec.json` and leave `facts.json` and `<case>.safetensors` there."""
    torch.set_num_threads(1)
    spec = json.loads((folder / "spec.json").read_text())
    logged, shares = [], []
    for number, run in enumerate(spec["runs"]):
        data, case = dataset(), dict(run["case"])
        if "prompts" in case:
            data = data.select(case.pop("prompts"))
        if case.pop("mixture", False):
            data = data.add_column(SOURCE_COLUMN, [f"source{row % 3}" for row in range(len(data))])
        if METHODS[run["key"]].generates:
            case |= {"reward": marked_right, "trainer_kwargs": {"rollout_func": replay}, "shuffle_dataset": False}
        trainer = build(
            run["key"],
            Path(spec["model"]),
            folder / f"run{number}",
            data=data,
            per_device_train_batch_size=spec["rows"],
            gradient_accumulation_steps=1,
            max_steps=1,
            max_grad_norm=0.0,
            **case,
        )
        caught = gradients(trainer)
        logged.append(losses(trainer)[0])
        shares.append({k: v for k, v in trainer.state.log_history[0].items() if k.startswith("mixture/")})
        if trainer.accelerator.is_main_process:
            save_file(caught, folder / f"{number}.safetensors")
    resumed = {key: resume(key, Path(spec["model"]), folder / key) for key in trained()}
    model = Path(spec["model"])
    own = {key: make(model, folder / f"own-{key}") for key in trained() if (make := case_of(key).on_ranks) is not None}
    if trainer.accelerator.is_main_process:
        facts = {"world_size": trainer.accelerator.num_processes, "losses": logged, "resumed": resumed}
        facts["shares"] = shares
        facts["own"] = own
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    # torch 2.13: a gloo group that is taken down while a DDP model still refers to it can wait for ever.
    sys.stdout.flush()
    os._exit(0)
