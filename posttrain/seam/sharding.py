"""Engines that spread a model over processes: which one was asked for, and whether it is the one that runs.

DeepSpeed and FSDP are chosen by the accelerate config file. Several settings end in plain data parallelism or in runs
that know nothing of each other, without a word; so a run measures what each process holds before its first step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor
from torch.utils import cpp_extension
from transformers import TrainerCallback
from transformers.integrations import deepspeed as zero

from posttrain.errors import SupportError

ON_CPU = "POSTTRAIN_FSDP_ON_CPU"
# What an engine can keep in the memory of the machine instead of the accelerator's.
OFFLOADS: dict[str, frozenset[str]] = {
    "zero1": frozenset({"optimizer"}),
    "zero2": frozenset({"optimizer"}),
    "zero3": frozenset({"optimizer", "parameters"}),
    # FSDP2 has one switch for both.
    "fsdp2": frozenset({"parameters"}),
}
# accelerate 1.15 replaces any optimizer by DeepSpeed's Adam on the CPU where the optimizer's state is kept there.
_ADAMW = ("adamw_torch", "adamw_torch_fused")


def asked_engine() -> str | None:
    """Sharding engine that `accelerate launch` has chosen for this process: zero1 to zero3, fsdp1, fsdp2, or None."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return f"zero{_stage_of_file() or os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    return None


def _zero_block_of_file() -> dict[str, Any]:
    """The block zero_optimization of the user's own DeepSpeed file; empty without one, or where it is not read."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if not file or file == "none":
        return {}
    try:
        block = json.loads(Path(file).read_text())["zero_optimization"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return block if isinstance(block, dict) else {}


def _stage_of_file() -> int | None:
    """ZeRO stage of a DeepSpeed file of the user's own; None without one, or where it cannot be read."""
    try:
        return int(_zero_block_of_file()["stage"])
    except (ValueError, KeyError, TypeError):
        return None


def asked_offload() -> dict[str, str]:
    """What `accelerate launch` has chosen to be kept off the accelerator: {"optimizer": "cpu"}; also "parameters"."""
    engine, found = asked_engine() or "", {}
    # Of a launch without an engine both are read: what it would not honour is refused.
    if not engine.startswith("fsdp"):
        for part, key in (("optimizer", "OPTIMIZER"), ("parameters", "PARAM")):
            written = _zero_block_of_file().get(f"offload_{key.lower()}")
            device = written.get("device") if isinstance(written, dict) else None
            found[part] = str(device or os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{key}_DEVICE", "none")).lower()
    if not engine.startswith("zero") and os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        found["parameters"] = "cpu"
    return {part: device for part, device in found.items() if device != "none"}


def offload_finding(engine: str | None, asked: dict[str, str]) -> SupportError | None:
    """Why an engine cannot keep these parts off the accelerator; None where it can.

    Args:
        engine: of `asked_engine`; None = plain data parallelism.
        asked: of `asked_offload`.
    """
    able = OFFLOADS.get(engine or "", frozenset())
    for part, device in asked.items():
        if device != "cpu":
            return SupportError(
                f"offload of the {part} goes to the CPU's memory alone: nothing has compared the gradients elsewhere",
                where="accelerate config",
                got=device,
                fix="Write cpu or none",
            )
        if part not in able:
            return SupportError(
                f"{engine or 'data parallelism'} has no offload of the {part}",
                where="accelerate config",
                got=part,
                allowed=", ".join(sorted(able)) or "none",
                fix="Train with "
                + " or ".join(f"accelerate_configs/{name}.yaml" for name in ("zero2_offload", "zero3_offload")),
            )
    return None


def refuse_offload(config: Any) -> None:
    """Stop at the start where the offload that was asked for would fail later, or train something else.

    Args:
        config: training arguments.

    Raises:
        SupportError: the engine has no such offload; the optimizer is not AdamW, which accelerate 1.15 replaces by
            DeepSpeed's Adam on the CPU without a word; that Adam cannot be compiled here.
    """
    engine, asked = asked_engine(), asked_offload()
    found = offload_finding(engine, asked)
    if found is not None:
        raise found
    if "optimizer" not in asked:
        return
    name = str(getattr(config.optim, "value", config.optim))
    if name not in _ADAMW:
        raise SupportError(
            "would be replaced by DeepSpeed's AdamW on the CPU, since the optimizer is offloaded",
            where="trainer.optim",
            got=name,
            allowed=", ".join(_ADAMW),
            fix="Remove the line, or set offload_optimizer_device to none in the accelerate config",
        )
    if (lacking := missing_for_cpu_adam()) is not None:
        raise SupportError(
            f"{engine} with an offloaded optimizer needs {lacking}, which is not here",
            where="accelerate config",
            fix="Install it, or set offload_optimizer_device to none",
        )


def missing_for_cpu_adam() -> str | None:
    """What this machine lacks to compile DeepSpeed's Adam on the CPU, at its first use; None if it can."""
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        return f"a C++ compiler ({compiler})"
    return None if cpp_extension.is_ninja_available() else "the program ninja"


def refuse_replaced(optimizer: Any) -> None:
    """The same for an optimizer that was passed as an object or a class.

    Raises:
        SupportError: it is not torch's AdamW, and it would be replaced.
    """
    if "optimizer" in asked_offload() and not isinstance(optimizer, torch.optim.AdamW):
        raise SupportError(
            "would be replaced by DeepSpeed's Adam on the CPU, since the optimizer is offloaded",
            where="optimizers",
            got=type(optimizer).__name__,
            allowed="AdamW",
            fix="Set offload_optimizer_device to none in the accelerate config",
        )


def cpu_group() -> dict[str, str]:
    """What a config needs so that a sharding engine's processes meet on a machine without an accelerator.

    Raises:
        SupportError: FSDP, which accelerate 1.15 starts on accelerators alone; elsewhere it makes independent runs.
    """
    if (asked_engine() or "").startswith("fsdp"):
        if os.environ.get(ON_CPU) != "1":
            raise SupportError(
                "FSDP needs an accelerator, and there is none here",
                where="accelerate config",
                got=asked_engine(),
                fix=f"Train with ddp or a ZeRO stage; for tests set {ON_CPU}=1",
            )
        _let_fsdp_meet_on_cpu()
    else:
        _leave_out_inference_kernel()
    return {"ddp_backend": "gloo"}


def _leave_out_inference_kernel() -> None:
    """DeepSpeed 0.19 compiles a kernel for inference on CPUs at its start, for which all processes wait.

    Training never calls it; and a run that is killed meanwhile leaves a lock behind that later runs wait on for ever.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _let_fsdp_meet_on_cpu() -> None:
    """For tests on machines without an accelerator: accelerate 1.15 then forms a gloo group, as it does for nccl."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    if "parameters" in asked_offload():
        # Pinned memory is that of an accelerator; without one torch cannot give any.
        FullyShardedDataParallelPlugin.set_cpu_offload = lambda self: setattr(
            self, "cpu_offload", CPUOffloadPolicy(pin_memory=False)
        )


@contextmanager
def whole_models() -> Iterator[None]:
    """While the block runs, models are built and loaded whole, also where ZeRO-3 would spread them at once.

    For models that one process alone makes: the others would not take part in the spreading.
    """
    kept = zero._hf_deepspeed_config_weak_ref
    zero.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        zero._hf_deepspeed_config_weak_ref = kept


def is_spread(model: Any) -> bool:
    """Whether ZeRO-3 has spread a model's weights over the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def whole_weights(model: Any) -> Iterator[None]:
    """While the block runs, every process has all of a model's weights, which ZeRO-3 spreads while it loads them.

    For use before training; the engine that `train()` prepares gathers by itself. Every rank must come here.
    """
    spread = [p for p in model.parameters() if hasattr(p, "ds_id")]
    if not spread:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(spread):
        yield


def measure_ahead(trainer: Any) -> None:
    """Before `train()`: let callbacks with a method `measure_ahead` measure a model that ZeRO-3 has spread.

    Nothing happens to another model; its callbacks measure when training begins.
    """
    if is_spread(trainer.model):
        with whole_weights(trainer.model):
            for callback in trainer.callback_handler.callbacks:
                if hasattr(callback, "measure_ahead"):
                    callback.measure_ahead()


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
    with whole_weights(trainer.model):
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


def refuse_switched_off(accelerator: Any) -> None:
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
    is_spread = facts["optimizer_held"] <= bound and (not spreads_weights or facts["parameters_held"] <= bound)
    if facts["engine"] != asked or not is_spread:
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
