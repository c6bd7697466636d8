"""Checks of `rollout.engine: vllm` that depend on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from posttrain.config.rules_engine import uses_vllm
from posttrain.config.run_config import RunConfig
from posttrain.errors import ConfigError, PosttrainError, SupportError, is_installed, missing
from posttrain.rollouts.guard import TOKEN_VARIABLE

# vllm 0.31's attention on a CPU knows these widths of a head, and only there is the list so short.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def on_this_machine(cfg: RunConfig) -> Iterator[PosttrainError]:
    """What this machine lacks for the engine."""
    rollout = cfg.rollout
    if rollout is None or not uses_vllm(cfg):
        return
    needed = ("vllm", "requests") if rollout.mode == "server" else ("vllm",)
    for package in needed:
        if not is_installed(package):
            yield missing(package, where=cfg.where("rollout", "engine"))
    address = rollout.fields.get("vllm_server_base_url")
    if rollout.mode == "server" and address is not None and not os.environ.get(TOKEN_VARIABLE):
        yield SupportError(
            "the server's token is missing",
            where=cfg.where("rollout", "vllm_server_base_url"),
            fix=f"Set the environment variable {TOKEN_VARIABLE} to what `posttrain serve` has written",
        )
    own_server = rollout.mode == "server" and address is None
    if own_server and torch.cuda.is_available() and rollout.fields.get("engine_devices") is None:
        yield ConfigError(
            "the server needs GPUs of its own",
            where=cfg.where("rollout", "mode"),
            fix='Name them, as in rollout.engine_devices: "7", and start the training processes on the others',
        )


def model_on_cpu(cfg: RunConfig, *, head_size: int | None) -> Iterator[PosttrainError]:
    """Models that vLLM cannot run on a CPU."""
    if not uses_vllm(cfg) or torch.cuda.is_available() or head_size is None or head_size in CPU_HEAD_SIZES:
        return
    yield SupportError(
        "vLLM on a CPU has no attention for heads of this width",
        where=cfg.where("model"),
        got=head_size,
        allowed="one of: " + ", ".join(map(str, CPU_HEAD_SIZES)),
        fix="Set rollout.engine to hf here; on a GPU the model may run",
    )
