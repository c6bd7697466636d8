"""Defaults of training arguments that fit the device."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import TrainingArguments

from posttrain.errors import SupportError
from posttrain.seam.engine_file import refuse_overrides
from posttrain.seam.sharding import asked_engine, cpu_group, refuse_offload


def device_defaults(config: Any) -> dict[str, Any]:
    """Fill what the user left open with what fits the device, and say what was chosen.

    On CUDA: bf16 where the card has it, and activation checkpointing, as TRL does. Elsewhere: float32, no recompute
    (bf16 autocast and recomputation only cost time there), no pinned memory, and `use_cpu`, without which several
    processes on a CPU would silently train apart from each other. DeepSpeed and FSDP set the device themselves.

    Returns:
        field -> chosen value, for the run report.

    Raises:
        SupportError: `use_cpu` with a sharding engine, which it would switch off without a word; an offload that the
            engine does not have, or that would train something else; files of the launcher that override the recipe.
    """
    if config.use_cpu and asked_engine():
        raise SupportError(
            f"use_cpu would switch {asked_engine()} off",
            where="trainer.use_cpu",
            got=config.use_cpu,
            fix="Remove it, or train with accelerate_configs/ddp.yaml",
        )
    refuse_offload(config)
    forced_cpu = config.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1")
    cuda = torch.cuda.is_available() and not forced_cpu
    chosen: dict[str, Any] = {}
    if config.bf16 is None:
        chosen["bf16"] = bool(cuda and torch.cuda.is_bf16_supported() and not config.fp16)
    if config.gradient_checkpointing is None:
        chosen["gradient_checkpointing"] = bool(cuda)
    if not cuda:
        chosen["dataloader_pin_memory"] = False
        chosen |= cpu_group() if asked_engine() else {"use_cpu": True}
    for name, value in chosen.items():
        setattr(config, name, value)
    if isinstance(config, TrainingArguments):  # an evaluation has a few of its fields alone
        refuse_overrides(config)
    return chosen
