"""The engine that runs: which it is, how much of the model one process holds, and whether it is the one asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from posttrain.errors import SupportError
from posttrain.seam.sharding import asked_engine, asked_offload, gathered_weights


def shard_facts(trainer: Any) -> dict[str, Any]:
    """Engine at work, and the largest part of the parameters and of the optimizer's that one process holds.

    Args:
        trainer: with its model prepared, as it is from the beginning of `train()` on.

    Returns:
        {"engine": "zero3", "offload": ["optimizer"], "parameters_held": 0.5, "optimizer_held": 0.5}; 1.0 means that
        nothing is spread. Every rank must call this.
    """
    engine = running_engine(trainer)
    parameters = list(trainer.model.parameters())
    whole = sum(_size(p) for p in parameters)
    trained = sum(_size(p) for p in parameters if p.requires_grad)
    held = torch.tensor(
        [sum(_held(p) for p in parameters) / whole, _optimizer_held(trainer.optimizer) / max(1, trained)],
        device=trainer.accelerator.device,
    )
    most = trainer.accelerator.gather(held.unsqueeze(0)).max(dim=0).values.tolist()
    parts = {"parameters_held": round(most[0], 4), "optimizer_held": round(most[1], 4)}
    return {"engine": engine, "offload": running_offload(trainer), **parts}


def running_offload(trainer: Any) -> list[str]:
    """What the engine at work keeps off the accelerator: optimizer, parameters, both or nothing."""
    if trainer.is_deepspeed_enabled:
        # DeepSpeed 0.19: `cpu_offload` in the stages 1 and 2, the other two in stage 3.
        inner = trainer.model_wrapped.optimizer
        is_optimizer = getattr(inner, "cpu_offload", False) or getattr(inner, "offload_optimizer", False)
        found = {"optimizer": is_optimizer, "parameters": getattr(inner, "offload_param", False)}
        return [part for part, is_away in found.items() if is_away]
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return ["parameters"] if isinstance(getattr(plugin, "cpu_offload", None), CPUOffloadPolicy) else []


def whole_tensors(trainer: Any) -> dict[str, Tensor]:
    """Every trained parameter, whole and on the CPU, under any engine; a copy. Every rank must call this."""
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    with gathered_weights(trainer.model):
        return {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().to("cpu", copy=True).contiguous()
            for name, p in trained.items()
        }


def spread_small_parameters(trainer: Any) -> None:
    """Before `train()`: have ZeRO-3 spread every parameter; it keeps those below 100 000 elements whole otherwise.

    A small model, as of a test, would not be spread at all.
    """
    if trainer.is_deepspeed_enabled:
        block = trainer.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        block["stage3_param_persistence_threshold"] = 0


def running_engine(trainer: Any) -> str:
    """Engine that holds the trainer's model: single, ddp, zero0 to zero3, fsdp1 or fsdp2."""
    wrapped = trainer.model_wrapped
    if hasattr(wrapped, "zero_optimization_stage"):
        return f"zero{wrapped.zero_optimization_stage()}"
    if any(isinstance(p, DTensor) for p in wrapped.parameters()):
        return "fsdp2"
    if trainer.accelerator.distributed_type == DistributedType.FSDP:
        return "fsdp1"
    return "ddp" if trainer.accelerator.num_processes > 1 else "single"


def require_engine_active(accelerator: Any) -> None:
    """Stop a run whose processes were not set up for the engine that was asked for; cheap, before anything is done.

    Raises:
        SupportError: with what they were set up for.
    """
    asked = asked_engine()
    if asked is None:
        return
    wanted = DistributedType.DEEPSPEED if asked.startswith("zero") else DistributedType.FSDP
    if accelerator.distributed_type != wanted:
        raise _not_at_work(asked, f"processes set up for {accelerator.distributed_type.value}")


def refuse_other_engine(facts: dict[str, Any], *, asked: str | None, world: int, offload: Iterable[str] = ()) -> None:
    """Stop a run that was asked for a sharding engine and does not spread what that engine spreads.

    Args:
        facts: of `shard_facts`.
        asked: of `asked_engine`; None asks for nothing.
        world: processes.
        offload: parts of `asked_offload`.

    Raises:
        SupportError: with what was found.
    """
    if asked is None:
        return
    spreads_weights = asked in ("zero3", "fsdp1", "fsdp2")
    # The parts are rounded up to equal sizes, so a process may hold somewhat more than its share.
    bound = 1.0 if world == 1 else (1.0 + 1.0 / world) / 2
    is_sharded = facts["optimizer_held"] <= bound and (not spreads_weights or facts["parameters_held"] <= bound)
    if facts["engine"] != asked or not is_sharded:
        raise _not_at_work(
            asked,
            f"{facts['engine']}; one of {world} processes holds {facts['parameters_held']:.0%} of the parameters and "
            f"{facts['optimizer_held']:.0%} of the optimizer's",
        )
    if sorted(offload) != sorted(facts.get("offload", offload)):
        raise _not_at_work(
            f"offload of {' and '.join(offload) or 'nothing'}", ", ".join(facts["offload"]) or "no offload"
        )


def _not_at_work(asked: str, found: str) -> SupportError:
    return SupportError(
        f"{asked} was asked for, and the model is not trained by it",
        where="accelerate config",
        got=found,
        fix="Start it with `accelerate launch` and a file of accelerate_configs/, without trainer.use_cpu and "
        "ACCELERATE_USE_CPU",
    )


class EngineCheck(TrainerCallback):
    """Before the first step: measures the engine, stops a run with the wrong one, and reports the facts.

    Args:
        trainer: it is added to.
        report: called with `shard_facts` on every rank.
    """

    def __init__(self, trainer: Any, *, report: Callable[[dict[str, Any]], None]):
        self.trainer, self.report = trainer, report

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        facts = shard_facts(self.trainer)
        world = self.trainer.accelerator.num_processes
        refuse_other_engine(facts, asked=asked_engine(), world=world, offload=asked_offload())
        self.report(facts)


def _size(parameter: Tensor) -> int:
    """Elements of the whole parameter."""
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()


def _held(parameter: Tensor) -> int:
    """Elements of a parameter that this process keeps for good."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel()
    # DeepSpeed 0.19 keeps small parameters whole beside their part; that copy is not counted.
    return parameter.ds_tensor.numel() if hasattr(parameter, "ds_tensor") else parameter.numel()


def _optimizer_held(optimizer: Any) -> int:
    """Elements that this process's optimizer updates."""
    while True:
        # DeepSpeed 0.19, stage 3: the inner optimizer is given these parts one after another, in its step.
        parts = getattr(optimizer, "fp32_partitioned_groups_flat", None)
        if parts is not None:
            return sum(part.numel() for part in parts)
        if not hasattr(optimizer, "optimizer"):  # accelerate's wrapper, DeepSpeed's own, then torch's
            return sum(_held(p) for group in optimizer.param_groups for p in group["params"])
        optimizer = optimizer.optimizer
