"""Checks of a run that need neither its data nor its tokenizer: arithmetic of batches and ranks, support, disk."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_token

from posttrain import registry
from posttrain.config.rules_engine import uses_vllm
from posttrain.config.run_config import RunConfig
from posttrain.console import mark_reported
from posttrain.errors import ConfigError, PosttrainError, SupportError, is_installed, missing
from posttrain.preflight import engine as checks_engine
from posttrain.registry import Method
from posttrain.seam.row_use import RowUse, batch_use, prompt_use
from posttrain.seam.sharding import asked_engine

# Package an optimizer or a logging target of transformers needs.
_OPTIMIZER_PACKAGES = {
    "bitsandbytes": ("bnb", "8bit", "32bit"),
    "torchao": ("adamw_torch_4bit", "adamw_torch_8bit"),
    "galore_torch": ("galore",),
    "lomo_optim": ("lomo",),
    "grokadamw": ("grokadamw",),
    "schedulefree": ("schedule_free",),
    "apollo_torch": ("apollo",),
    "optimi": ("stable_adamw",),
}
_REPORTERS = ("wandb", "tensorboard", "trackio", "mlflow", "swanlab", "clearml", "neptune", "comet_ml", "codecarbon")


def batch_arithmetic(cfg: RunConfig, entry: Method, *, world_size: int) -> Iterator[PosttrainError]:
    """Whether batches, groups and ranks divide each other."""
    if not entry.generates or cfg.rollout is None:
        return
    trainer, group = cfg.trainer, cfg.rollout.num_generations
    rows, steps = rows_per_micro_step(cfg, world_size), steps_per_generation(cfg, world_size)
    written = trainer.fields
    if steps is None:
        yield ConfigError(
            "a generation batch is made of whole micro-batches of all ranks",
            where=cfg.where("trainer", "generation_batch_size"),
            got=written["generation_batch_size"],
            allowed=f"a multiple of per_device_train_batch_size * {world_size} ranks = {rows}",
        )
        return
    if steps % trainer.gradient_accumulation_steps:
        key = "generation_batch_size" if written.get("generation_batch_size") else "steps_per_generation"
        yield ConfigError(
            f"a generation batch of {steps} micro-steps does not hold whole optimizer steps",
            where=cfg.where("trainer", key),
            got=written.get(key),
            allowed="micro-steps that are a multiple of trainer.gradient_accumulation_steps "
            f"({trainer.gradient_accumulation_steps})",
        )
    if rows * steps % group:
        unit = group // math.gcd(group, world_size * steps)
        yield ConfigError(
            f"a generation batch of {rows * steps} rows does not hold whole groups of {group} completions",
            where=cfg.where("rollout", "num_generations"),
            got=group,
            allowed=f"a divisor of per_device_train_batch_size ({trainer.per_device_train_batch_size}) * "
            f"{world_size} ranks * {steps} micro-steps = {rows * steps}",
            fix=f"For example set trainer.per_device_train_batch_size to a multiple of {unit}",
        )


def rows_per_micro_step(cfg: RunConfig, world_size: int) -> int:
    """Rows of one micro-step over all ranks."""
    return int(cfg.trainer.per_device_train_batch_size) * world_size


def steps_per_generation(cfg: RunConfig, world_size: int) -> int | None:
    """Micro-steps of one generation batch; None if the batch is not made of whole ones."""
    trainer = cfg.trainer
    if trainer.generation_batch_size:
        steps, rest = divmod(int(trainer.generation_batch_size), rows_per_micro_step(cfg, world_size))
        return None if rest or not steps else steps
    return int(trainer.steps_per_generation or trainer.gradient_accumulation_steps)


def run_length(cfg: RunConfig, entry: Method, *, num_rows: int | None, world_size: int) -> tuple[int, list[str]]:
    """Optimizer steps of the run, and what to tell about it.

    Args:
        cfg: the run; its arithmetic must be sound.
        entry: the method.
        num_rows: training rows left after filtering; None = streams.
        world_size: ranks.
    """
    trainer = cfg.trainer
    rows = rows_per_micro_step(cfg, world_size) * trainer.gradient_accumulation_steps
    if num_rows is None:
        return trainer.max_steps, [f"{trainer.max_steps} optimizer steps of {rows} rows, drawn from streams"]
    if entry.generates and cfg.rollout is not None:
        group, steps = cfg.rollout.num_generations, steps_per_generation(cfg, world_size) or 1
        prompts = rows_per_micro_step(cfg, world_size) * steps // group
        updates = steps * trainer.num_iterations // trainer.gradient_accumulation_steps
        per_epoch, drawn, every = num_rows // prompts * updates, prompts, max(updates, 1)
        told = f"{prompts} prompts x {group} completions make {max(updates, 1)} optimizer step(s) of {rows} rows"
    else:
        used = _row_use(cfg, entry, num_rows=num_rows, world_size=world_size).used
        per_epoch, drawn, every = max(1, math.ceil(used / rows)), rows, 1
        told = f"{rows} rows an optimizer step"
    total = trainer.max_steps if trainer.max_steps > 0 else math.ceil(trainer.num_train_epochs * per_epoch)
    epochs = total / per_epoch if per_epoch else math.inf
    lines = [f"{num_rows} training rows; {told}", f"{total} optimizer steps, {epochs:.3g} passes over the data"]
    sentence = _row_use(cfg, entry, num_rows=num_rows, world_size=world_size).sentence
    is_read = not entry.generates or "documents" not in entry.inputs  # else it asks about tokens of the rows
    if sentence is not None and is_read and not _draws_by_shares(cfg):
        mark_reported(sentence)
        lines.append(sentence)
    if _draws_by_shares(cfg):
        lines.append("rows are drawn by the shares of their groups: in a pass a row may come several times, or never")
    elif epochs < 1:
        # Whole batches are drawn, and a generation batch that is begun has all its prompts.
        lines.append(f"the run ends within its first pass: about {math.ceil(total / every) * drawn} rows are used")
    return total, lines


def _draws_by_shares(cfg: RunConfig) -> bool:
    """Whether the shares of groups decide which rows are drawn."""
    names = ("prompt_proportions", "prompt_proportions_from")
    has_shares = any(cfg.method.fields.get(name) is not None for name in names)
    by_groups = "streams" in registry.get(cfg.method.name).inputs
    return has_shares or by_groups or "rollout.prompt_shares" in cfg.slots


def _row_use(cfg: RunConfig, entry: Method, *, num_rows: int, world_size: int) -> RowUse:
    """The rows that an epoch can use, by the arithmetic of the trainers."""
    trainer, written = cfg.trainer, cfg.trainer.fields
    if entry.generates and cfg.rollout is not None:
        batch = rows_per_micro_step(cfg, world_size) * (steps_per_generation(cfg, world_size) or 1)
        group = cfg.rollout.num_generations
        is_shuffled = bool(written.get("shuffle_dataset", True))
        return prompt_use(num_rows, prompts=batch // group, num_generations=group, is_shuffled=is_shuffled)
    return batch_use(
        num_rows,
        size=trainer.per_device_train_batch_size * world_size,
        drops_last=bool(written.get("dataloader_drop_last")),
        is_shuffled=written.get("train_sampling_strategy") != "sequential",
    )


def length_warnings(cfg: RunConfig, *, total_steps: int) -> Iterator[PosttrainError]:
    """Saving and warm-up against the length of the run."""
    trainer = cfg.trainer
    if trainer.save_strategy == "steps" and 1 <= total_steps < trainer.save_steps:
        yield ConfigError(
            f"the run has {total_steps} steps, so no checkpoint is written before its end",
            where=cfg.where("trainer", "save_steps"),
            got=trainer.save_steps,
            fix="Lower trainer.save_steps if an interrupted run should continue",
        )
    if trainer.max_steps <= 0 and trainer.warmup_steps > total_steps:
        yield ConfigError(
            f"the warm-up is longer than the run of {total_steps} steps",
            where=cfg.where("trainer", "warmup_steps"),
            got=trainer.warmup_steps,
        )


def support(cfg: RunConfig, entry: Method, *, world_size: int) -> Iterator[PosttrainError]:
    """Combinations the method does not support, whatever the machine."""
    wanted = {
        "peft": (cfg.model.lora is not None, ("model", "lora"), "adapters"),
        "vllm": (uses_vllm(cfg), ("rollout", "engine"), "vLLM rollouts"),
        "packing": (bool(cfg.trainer.fields.get("packing")), ("trainer", "packing"), "packed rows"),
        "ddp": (world_size > 1, ("method", "name"), f"{world_size} processes"),
    }
    for feature, (asked, key, told) in wanted.items():
        if asked and feature not in entry.supports:
            yield _unsupported(entry, told, cfg.where(*key))
    engine = parallel_engine()
    if engine is not None and engine not in entry.supports:
        yield _unsupported(entry, f"{engine} (from the accelerate config)", cfg.where("method", "name"))
    elif engine is not None:
        yield from _spread_weights(cfg, engine)
    lora = cfg.model.lora
    if lora is not None and isinstance(lora.targets, list) and "lm_head" in lora.targets:
        yield SupportError(
            "an adapter on lm_head does not go with losses on log-probabilities",
            where=cfg.where("model", "lora", "targets"),
            got=lora.targets,
            fix="Remove lm_head",
        )


def _spread_weights(cfg: RunConfig, engine: str) -> Iterator[PosttrainError]:
    """Settings that were not made for an engine that spreads the weights over processes."""
    if engine not in ("zero3", "fsdp2"):
        return
    lora, stage = cfg.model.lora, cfg.stage
    written = {**cfg.trainer.fields, **cfg.method.fields}
    asked = [
        (lora is not None and lora.merge_on_save, ("model", "lora", "merge_on_save")),
        (lora is not None and uses_vllm(cfg), ("rollout", "engine")),
        (bool(written.get("sync_ref_model")), ("trainer", "sync_ref_model")),
        (written.get("kl_reference") == "warmup", ("method", "kl_reference")),
        (written.get("switch_controller") == "kl", ("method", "switch_controller")),
        (stage is not None and stage.reference_from is not None, ("stages",)),
    ]
    for is_asked, key in asked:
        if is_asked:
            yield SupportError(
                f"needs all weights in one process, and {engine} spreads them",
                where=cfg.where(*key),
                fix="Remove it, or train with ddp, zero1 or zero2",
            )


def _unsupported(entry: Method, told: str, where: str) -> SupportError:
    return SupportError(
        f"{entry.key} does not support {told}",
        where=where,
        allowed=f"{entry.key} supports: {', '.join(sorted(entry.supports)) or 'none of it'}",
    )


def parallel_engine() -> str | None:
    """Sharding engine that `accelerate launch` has chosen, "multi_node" for several machines, or None."""
    engine = asked_engine()
    if engine is not None:
        return engine
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    return "multi_node" if local and world and int(local) < int(world) else None


def machine(cfg: RunConfig) -> Iterator[PosttrainError]:
    """What the run needs that this machine lacks: errors where it would start here, warnings elsewhere."""
    cuda = torch.cuda.is_available()
    written, model = cfg.trainer.fields, cfg.model
    needs = [
        (model.load_in_4bit, ("model", "load_in_4bit"), "CUDA", cuda),
        (bool(written.get("tf32")), ("trainer", "tf32"), "CUDA", cuda),
        (bool(written.get("fp16")), ("trainer", "fp16"), "CUDA", cuda),
        (bool(written.get("bf16")) and not written.get("use_cpu"), ("trainer", "bf16"), "CUDA", cuda),
    ]
    flash = (model.attn_implementation or "").startswith("flash")
    needs += [(flash, ("model", "attn_implementation"), "CUDA", cuda)]
    packages = [("bitsandbytes", ("model", "load_in_4bit"))] * model.load_in_4bit
    packages += [("flash_attn", ("model", "attn_implementation"))] * flash
    optimizer = str(written.get("optim", ""))
    for package, names in _OPTIMIZER_PACKAGES.items():
        if any(name in optimizer for name in names) and (package != "bitsandbytes" or "torch" not in optimizer):
            packages.append((package, ("trainer", "optim")))
    asked = written.get("report_to")
    for name in [asked] if isinstance(asked, str) else asked or []:
        if name in _REPORTERS:
            packages.append((name, ("trainer", "report_to")))
    yield from checks_engine.on_this_machine(cfg)
    for asked_for, key, what, present in needs:
        if asked_for and not present:
            yield SupportError(f"needs {what}, which is not here", where=cfg.where(*key))
    yield from (missing(name, where=cfg.where(*key)) for name, key in packages if not is_installed(name))
    if cfg.hub.push and not _hub_token():
        fix = "Set the environment variable HF_TOKEN, or run `hf auth login`"
        yield SupportError("pushing needs a token of the Hub", where=cfg.where("hub", "push"), fix=fix)


def _hub_token() -> str | None:
    return get_token()


def output_folder(cfg: RunConfig, *, checkpoint_bytes: int | None) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about the folder of the run and the space on its disk.

    Args:
        cfg: the run.
        checkpoint_bytes: estimated size of one checkpoint; None = not known.
    """
    folder = Path(str(cfg.trainer.output_dir)).expanduser()
    where = cfg.where("trainer", "output_dir")
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        yield True, ConfigError("there is a file where the folder should be", where=where, got=str(parent))
        return
    if not os.access(parent, os.W_OK | os.X_OK):
        yield True, ConfigError("the folder cannot be written", where=where, got=str(parent))
        return
    if checkpoint_bytes is None:
        return
    free = shutil.disk_usage(parent).free
    kept = cfg.trainer.save_total_limit
    for number, stops in ((1, True), (kept or 1, False)):
        if free < number * checkpoint_bytes:
            yield (
                stops,
                ConfigError(
                    f"{number} checkpoint(s) of about {_gigabytes(checkpoint_bytes)} do not fit on the disk",
                    where=where,
                    got=f"{_gigabytes(free)} free",
                    fix="Free some space, choose another folder, or lower trainer.save_total_limit",
                ),
            )
            return


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def dry_run_changes(cfg: RunConfig, *, world_size: int, will_train: bool) -> dict[str, Any]:
    """Fields to change so that the config class can be built here for another layout and device.

    The class multiplies batch sizes by the ranks it sees; one process with larger batches gives the same sums.
    """
    changes: dict[str, Any] = {"report_to": "none", "push_to_hub": False}
    here = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != here:
        rows = cfg.trainer.per_device_train_batch_size * world_size
        changes["per_device_train_batch_size"] = max(1, rows // here)
    # Where the run starts here, the processes must meet in the group that training will use.
    if not will_train and not torch.cuda.is_available():
        changes |= {"use_cpu": True}
        changes |= {"tf32": None} if cfg.trainer.fields.get("tf32") else {}
    return changes
