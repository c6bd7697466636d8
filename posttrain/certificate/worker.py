"""One process of a group: trains every cell of `FOLDER/spec.json`, and rank 0 leaves the update that each made.

Usage: -m posttrain.certificate.worker FOLDER, with FOLDER/spec.json:
{"recipes": {trainer: {"path", "overrides", "method"}}, "models": FOLDER, "cells": [{"trainer", "split": [4, 2]}]}.
Leaves facts.json and, for cell number i, i.safetensors (the update) and i.start.safetensors (the weights before it).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from posttrain.certificate.recipes import STEPS, battery_recipe, micro_rows, replay, tiny_copy, trained_run
from posttrain.config.loader import load
from posttrain.console import quiet_libraries
from posttrain.errors import PosttrainError
from posttrain.seam.running_engine import spread_small_parameters, whole_tensors
from posttrain.training.stage import Stage

Change = Callable[[Any], None]


class _Run(Stage):
    """A run that is built as any other, and keeps to itself what its engine holds."""

    facts: dict[str, Any] = {}

    def note_engine(self, facts: dict[str, Any]) -> None:
        self.facts = facts


class _FewSteps(TrainerCallback):
    """Ends training after `STEPS` optimizer steps, whatever the recipe's schedule is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= STEPS


def train_cell(
    run: Any, *, model: Path, folder: Path, split: tuple[int, int], change: Change | None = None
) -> dict[str, Any]:
    """Train one cell.

    Args:
        run: one run of the user's recipe, without stages.
        model: tiny copy of its model. folder: of the run.
        split: rows of a micro-batch over all processes, and micro-batches.
        change: done to the trainer before it trains; for tests of the battery itself.

    Returns:
        {"start", "update": tensors by name, "engine": facts, "losses"}; every rank must call this.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    config = battery_recipe(run, model=model, folder=folder, rows=micro_rows(split, world), splits=split[1])
    stage = _Run(config, name="run")
    stage.folder.path.mkdir(parents=True, exist_ok=True)
    trainer, _ = stage.build()
    if config.rollout is not None:
        trainer.rollout_func = replay
    spread_small_parameters(trainer)
    if change is not None:
        change(trainer)
    trainer.add_callback(_FewSteps())
    start = whole_tensors(trainer)
    trainer.train()
    end = whole_tensors(trainer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.close()
    update = {name: end[name] - start[name] for name in start}
    return {"start": start, "update": update, "engine": stage.facts, "losses": losses}


def main(folder: Path, change: Change | None = None) -> None:
    """Run every cell of `folder/spec.json`; a cell that fails is noted with its error, on all ranks alike."""
    torch.set_num_threads(1)
    quiet_libraries()
    spec = json.loads((folder / "spec.json").read_text())
    is_main = int(os.environ.get("RANK", "0")) == 0
    found: list[dict[str, Any]] = []
    runs: dict[str, Any] = {}
    for number, cell in enumerate(spec["cells"]):
        began, key = time.monotonic(), cell["trainer"]
        try:
            if key not in runs:
                given = spec["recipes"][key]
                runs[key] = trained_run(load(given["path"], given["overrides"]), given["method"])
            model = Path(spec["models"]) / key
            told = None if (model / "config.json").exists() else tiny_copy(runs[key], model)
            place = folder / f"run{number}"
            made = train_cell(runs[key], model=model, folder=place, split=tuple(cell["split"]), change=change)
        except PosttrainError as error:
            found.append({"error": str(error), "is_refusal": True})
            continue
        except Exception as error:  # noqa: BLE001 - the other cells tell all the same
            found.append({"error": f"{type(error).__name__}: {error}".splitlines()[0], "is_refusal": False})
            continue
        seconds = round(time.monotonic() - began, 2)
        found.append({"engine": made["engine"], "losses": made["losses"], "seconds": seconds, "told": told})
        if is_main:
            save_file(made["update"], folder / f"{number}.safetensors")
            save_file(made["start"], folder / f"{number}.start.safetensors")
    if is_main:
        (folder / "facts.json").write_text(json.dumps(found))


def launched(change: Change | None = None) -> None:
    """What `-m posttrain.certificate.worker FOLDER` does; the console is left to the launcher's errors."""
    with redirect_stdout(sys.stderr):
        main(Path(sys.argv[1]), change)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    # torch 2.13: a gloo group that is taken down while a model still refers to it can wait for ever.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    launched()
