"""Starts the processes of a group: `accelerate launch` with the very settings that `accelerate_configs/` has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from posttrain.certificate.plan import OFFLOADS, Cell, Group
from posttrain.certificate.recipes import STEPS, TRAINER
from posttrain.errors import SupportError, is_installed, missing
from posttrain.seam.sharding import ON_CPU, missing_for_cpu_adam

WORKER = "posttrain.certificate.worker"
# What every file of accelerate_configs/ for several processes holds.
_COMMON = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0, "main_process_port": 0}
_COMMON |= {"mixed_precision": "no", "use_cpu": False}
_FSDP2 = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": False,
}


@dataclass(frozen=True)
class Recipe:
    """A recipe of the user's, and the method in it that is meant; None = its last stage."""

    path: str
    overrides: tuple[str, ...] = ()
    method: str | None = None

    def record(self) -> dict[str, Any]:
        """As the worker reads it."""
        return {"path": self.path, "overrides": list(self.overrides), "method": self.method}


@dataclass
class Launched:
    """What a group left: one entry a cell, in their order, or the error that ended all of it."""

    folder: Path
    cells: list[Cell]
    facts: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def fact(self, cell: Cell) -> dict[str, Any]:
        """What the worker noted of a cell: engine, losses, seconds, or error."""
        return self.facts[self.cells.index(cell)]

    def file(self, cell: Cell, name: str = "") -> Path:
        """The file of a cell's update; name ".start": of the weights before it."""
        return self.folder / f"{self.cells.index(cell)}{name}.safetensors"


def accelerate_config(group: Group) -> dict[str, Any]:
    """What `accelerate launch` is told, as in `accelerate_configs/`."""
    away = OFFLOADS[group.offload]
    config: dict[str, Any] = {**_COMMON, "num_processes": group.processes}
    if group.engine == "ddp":
        # Also right on a CPU: it selects the launcher that starts several processes.
        return {**config, "distributed_type": "MULTI_GPU", "gpu_ids": "all"}
    if group.engine == "fsdp2":
        return {
            **config,
            "distributed_type": "FSDP",
            "fsdp_config": {**_FSDP2, "fsdp_offload_params": "parameters" in away},
        }
    is_third = group.engine == "zero3"
    block: dict[str, Any] = {"zero_stage": int(group.engine.removeprefix("zero"))}
    block |= {"offload_optimizer_device": "cpu" if "optimizer" in away else "none"}
    block |= {"offload_param_device": "cpu" if "parameters" in away else "none"}
    block |= {"zero3_init_flag": is_third, "zero3_save_16bit_model": is_third}
    return {**config, "distributed_type": "DEEPSPEED", "deepspeed_config": block}


def lacking(group: Group) -> str | None:
    """What this machine lacks for a group, in a sentence that says what to do; None where it can be started."""
    if group.engine.startswith("zero") and not is_installed("deepspeed"):
        return str(missing("deepspeed")).rstrip(".")
    if "optimizer" in OFFLOADS[group.offload] and (what := missing_for_cpu_adam()) is not None:
        return f"DeepSpeed's Adam on the CPU needs {what}, which is not here"
    accelerators = _accelerators()
    if group.engine == "fsdp2" and not accelerators and os.environ.get(ON_CPU) != "1":
        return f"FSDP needs an accelerator, and there is none here (for a test: {ON_CPU}=1)"
    if 0 < accelerators < group.processes:
        return f"{group.processes} processes need {group.processes} accelerators, and there is {accelerators}"
    return None


def _accelerators() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def spec_of(cells: list[Cell], recipes: Mapping[str, Recipe], models: Path) -> dict[str, Any]:
    """What the worker reads."""
    named = {key: recipes[key].record() for key in dict.fromkeys(cell.trainer for cell in cells)}
    listed = [{"trainer": cell.trainer, "split": list(cell.split)} for cell in cells]
    return {"recipes": named, "models": str(models), "cells": listed, "settings": {"steps": STEPS, **TRAINER}}


def launch(
    group: Group,
    cells: list[Cell],
    *,
    recipes: Mapping[str, Recipe],
    models: Path,
    folder: Path,
    config: Path | None = None,
    worker: str = WORKER,
    timeout: float = 1800.0,
) -> Launched:
    """Train the cells of a group and wait for it.

    Args:
        group: engine, offload and processes.
        cells: trainers and splits, in order.
        recipes: of every trainer.
        models: folder of the tiny copies, made by whoever comes first.
        folder: for this group's files.
        config: the user's own accelerate config file, instead of the group's.
        worker: module that is started.
        timeout: seconds.

    Returns:
        What it left; `error` where the whole of it failed.

    Raises:
        SupportError: the machine lacks what the group needs.
    """
    if (what := lacking(group)) is not None:
        raise SupportError(what, where=group.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "facts.json").unlink(missing_ok=True)
    (folder / "spec.json").write_text(json.dumps(spec_of(cells, recipes, models)))
    command = [sys.executable, "-m", worker, str(folder)]
    if group.processes > 1 or group.engine != "ddp" or config is not None:
        file = config or folder / "accelerate.yaml"
        if config is None:
            file.write_text(json.dumps(accelerate_config(group)))  # JSON is YAML
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
        command += ["--num_processes", str(group.processes), "--num_machines", "1", "--machine_rank", "0"]
        command += ["--mixed_precision", "no", "-m", worker, str(folder)]
    done = Launched(folder, cells)
    status, told = _wait(command, folder / "log.txt", timeout)
    if (folder / "facts.json").exists():
        done.facts = json.loads((folder / "facts.json").read_text())
    else:
        done.error = f"ended with status {status}: {told}"
    return done


def _wait(command: list[str], log: Path, timeout: float) -> tuple[int | str, str]:
    """Run a command in a process group of its own, its output in a file; its status and the last telling line."""
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            status: int | str = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = f"timeout after {timeout:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = [line for line in log.read_text(errors="replace").splitlines() if "rror" in line]
    return status, lines[-1].strip() if lines else "no error was told"
