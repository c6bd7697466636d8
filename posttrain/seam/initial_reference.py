"""A reference model that is not the one a policy run starts from, as in a sequence of stages with one reference."""

from __future__ import annotations

from typing import Any

from posttrain.errors import ConfigError, SupportError


def set_reference(trainer: Any, model: Any) -> None:
    """Give the reference model other weights, before training; every rank loads them whole.

    Args:
        trainer: a `PolicyTrainer` with a reference model, that is with `beta` above 0 and without an adapter.
        model: of the same architecture; its weights are copied.

    Raises:
        SupportError: there is no reference model, or its weights are spread over ranks. ConfigError: other shapes.
    """
    where = "reference_from"
    if trainer.ref_model is None:
        fix = "Set trainer.beta above 0, and leave model.lora out"
        raise SupportError("this run has no reference model", where=where, fix=fix)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        what = "a reference of its own is not set where weights are spread over ranks"
        raise SupportError(what, where=where, fix="Remove it, or train with ddp")
    reference = trainer.accelerator.unwrap_model(trainer.ref_model)
    try:
        reference.load_state_dict(model.state_dict())
    except RuntimeError as problem:
        told = " ".join(str(problem).split())[:200]
        raise ConfigError(f"the reference is another architecture: {told}", where=where) from None
