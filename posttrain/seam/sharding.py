"""Engines that spread a model over processes: which one was asked for, and whether it is the one that runs.

DeepSpeed and FSDP are chosen by the accelerate config file. Several settings end in plain data parallelism or in runs
that know nothing of each other, without a word; so a run measures what each process holds before its first step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.utils import cpp_extension
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
def zero3_disabled() -> Iterator[None]:
    """While the block runs, models are built and loaded whole, also where ZeRO-3 would spread them at once.

    For models that one process alone makes: the others would not take part in the spreading.
    """
    kept = zero._hf_deepspeed_config_weak_ref
    zero.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        zero._hf_deepspeed_config_weak_ref = kept


def is_sharded(model: Any) -> bool:
    """Whether ZeRO-3 has spread a model's weights over the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def gathered_weights(model: Any) -> Iterator[None]:
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


def measure_before_zero3(trainer: Any) -> None:
    """Before `train()`: let callbacks with a method `measure_before_zero3` measure a model that ZeRO-3 has spread.

    Nothing happens to another model; its callbacks measure when training begins.
    """
    if is_sharded(trainer.model):
        with gathered_weights(trainer.model):
            for callback in trainer.callback_handler.callbacks:
                if hasattr(callback, "measure_before_zero3"):
                    callback.measure_before_zero3()
