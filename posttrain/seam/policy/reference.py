"""The reference model of a policy run: which weights it holds, and the divergence from it on given rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from posttrain.errors import ConfigError, SupportError
from posttrain.losses.kl import exact_kl
from posttrain.models.positions import with_positions
from posttrain.seam.policy.batches import trainable_mask


def copy_to_reference(trainer: Any) -> None:
    """Give the reference model the current weights; every rank has both whole."""
    current = trainer.accelerator.unwrap_model(trainer.model)
    trainer.accelerator.unwrap_model(trainer.ref_model).load_state_dict(current.state_dict())


def set_reference(trainer: Any, model: Any) -> None:
    """Give the reference model other weights, before training, as in a sequence of stages with one reference.

    Every rank loads them whole.

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


def reference_kl(trainer: Any, batch: dict[str, Any]) -> float:
    """KL(pi || reference) summed over the vocabulary, mean over the trained completion tokens of a batch.

    The reference is the reference model, or with an adapter the model without it. Two forwards without gradient on the
    calling rank; the logits of the batch, (B, P + T, V), are held twice.
    """
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attended = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].size(1)
    current = trainer.accelerator.unwrap_model(trainer.model)
    without: AbstractContextManager[Any] = nullcontext()
    reference = current
    if isinstance(current, PeftModel):
        without = current.disable_adapter()
    else:
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
    was_training = current.training
    current.eval()
    with torch.no_grad():
        ours = _log_probs(current, ids, attended, width)
        with without:
            theirs = _log_probs(reference, ids, attended, width)
    current.train(was_training)
    mask = trainable_mask(batch)
    return float((exact_kl(ours, theirs) * mask).sum() / mask.sum())


def _log_probs(model: Any, ids: Tensor, attended: Tensor, width: int) -> Tensor:
    """(B, T, V) log-probabilities of every token at the completion's places."""
    inputs = with_positions(model, {"input_ids": ids, "attention_mask": attended})
    logits = model(**inputs, use_cache=False).logits
    return logits[:, -width - 1 : -1].float().log_softmax(dim=-1)
