"""Check of optimizer and learning-rate schedule: made once over a single number and stepped, as the run will."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer, get_scheduler

from posttrain.config.run_config import RunConfig
from posttrain.errors import ConfigError, PosttrainError

# Optimizers of torch and transformers itself: the others need a model, a package or a device to be made.
_PLAIN = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
_STEPS = 4
# Schedules of transformers 5.17 that take these settings without a word and read nothing of them.
_WITHOUT_KWARGS = ("constant", "constant_with_warmup")
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")


def optimizer_findings(cfg: RunConfig, args: Any) -> Iterator[PosttrainError]:
    """Settings of which no optimizer or schedule can be made, or that the chosen one does not read.

    Args:
        cfg: the run. args: of its trainer.
    """
    written = args.optim_args
    parts = [part.split("=") for part in str(written).replace(" ", "").split(",")] if written else []
    if any(len(part) != 2 or not all(part) for part in parts):
        where = cfg.where("trainer", "optim_args")
        yield ConfigError("no list of settings", where=where, got=written, allowed="name=value,name=value")
        return
    name = getattr(args.optim, "value", str(args.optim))
    if name not in _PLAIN:
        return
    try:
        optimizer = _made(args, name, [key for key, _ in parts])
    except Exception as problem:  # noqa: BLE001 - each optimizer refuses in its own way
        key = "optim_args" if parts else "optim"
        told = " ".join(str(problem).split())[:200].rstrip(".")
        what = f"no optimizer can be made: {told}"
        yield ConfigError(what, where=cfg.where("trainer", key), got=written if parts else name)
        return
    yield from _schedule(cfg, args, optimizer)


def _made(args: Any, name: str, keys: list[str]) -> Any:
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    for key in keys:
        other = copy.copy(args)
        kept = [part for part in args.optim_args.replace(" ", "").split(",") if part.partition("=")[0] != key]
        other.optim_args = ",".join(kept) or None
        if str(settings) == str(Trainer.get_optimizer_cls_and_kwargs(other)[1]):
            raise ValueError(f"{name} does not read {key}")
    settings = {key: value for key, value in settings.items() if key != "fused"}
    optimizer = kind([torch.nn.Parameter(torch.ones(2, 2))], **settings)
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(2, 2)
    optimizer.step()
    return optimizer


def _schedule(cfg: RunConfig, args: Any, optimizer: Any) -> Iterator[PosttrainError]:
    name = getattr(args.lr_scheduler_type, "value", str(args.lr_scheduler_type))
    given = args.lr_scheduler_kwargs
    if given and name in _WITHOUT_KWARGS:
        where, what = cfg.where("trainer", "lr_scheduler_kwargs"), f"the schedule {name} reads no further settings"
        yield ConfigError(what, where=where, got=given, fix="Remove the line, or choose another schedule")
        return
    if args.warmup_steps and name in _WITHOUT_WARMUP:
        where, what = cfg.where("trainer", "warmup_steps"), f"the schedule {name} has no warm-up"
        fix = "Write trainer.lr_scheduler_type: constant_with_warmup, or remove the line"
        yield ConfigError(what, where=where, got=args.warmup_steps, fix=fix)
    try:
        schedule = get_scheduler(
            name,
            optimizer=optimizer,
            num_warmup_steps=1,
            num_training_steps=_STEPS,
            scheduler_specific_kwargs=dict(given) if given else None,
        )
        for _ in range(_STEPS):
            optimizer.step()
            schedule.step(*([0.0] if name == "reduce_lr_on_plateau" else []))
    except Exception as problem:  # noqa: BLE001 - each schedule refuses in its own way
        told = " ".join(str(problem).split())[:200].rstrip(".")
        key = "lr_scheduler_kwargs" if given else "lr_scheduler_type"
        where = cfg.where("trainer", key)
        yield ConfigError(f"no schedule {name} can be made: {told}", where=where, got=given or name)
