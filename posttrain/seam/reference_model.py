"""The model that a supervised run starts from, as a reference: where it is held, and that it is the right one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from trl.trainer.utils import create_model_from_path

from posttrain.errors import ConfigError, ResumeError, SupportError
from posttrain.rollouts.digests import digest
from posttrain.seam.frozen import eval_mode_no_grad, gathered_copy, next_token_logps, whole_base
from posttrain.seam.sharding import gathered_weights, zero3_disabled


def frozen_copy(model: Any, args: Any) -> nn.Module:
    """A copy of a model, or of what is loaded from a path, made before the trainer changes its forward.

    Raises:
        ConfigError: a model with adapters.
    """
    if isinstance(model, str):
        with zero3_disabled():
            found = create_model_from_path(model, **(args.model_init_kwargs or {}))
        return found.eval().requires_grad_(False)
    if isinstance(model, PeftModel):
        raise ConfigError(
            "a model with adapters has its reference in itself",
            where="method.reference",
            got="copy",
            allowed="adapter_off, precomputed",
        )
    return gathered_copy(model)


def start_digest(model: Any) -> str:
    """16 hexadecimal digits that tell the weights, an adapter only if it is not zero; equal however the model is
    wrapped. Before training, and collective where ZeRO-3 has spread it."""
    total, with_adapter = 0, bool(learnt_adapter(model))
    with gathered_weights(model):
        for name, value in sorted(whole_base(model).state_dict().items()):
            if with_adapter or (".lora_" not in name and "lora_embedding" not in name):
                total = (total * 1_000_003 + digest(value)) % 2**64
    return f"{total:016x}"


def learnt_adapter(model: Any) -> list[str]:
    """Names of adapter weights by which a model differs from the one inside it."""
    with gathered_weights(model):
        return [name for name, value in model.named_parameters() if ".lora_B." in name and bool(value.count_nonzero())]


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """The model without its adapters. peft 0.21 lets every adapter weight be trained again when it ends; not here."""
    if not isinstance(model, PeftModel):
        yield
        return
    known = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, is_trained in known:
            parameter.requires_grad_(is_trained)


class ReferenceModel:
    """The model that training starts from, as a copy beside it or inside its adapters; reads log-probs of batches.

    Args:
        trainer: after its model was prepared by TRL, before the first step.
        kind: "adapter_off", "copy", or "precomputed": what is measured once before the first step is the model itself.
            None = none is read.
        frozen: of `frozen_copy`, for "copy".

    Raises:
        ConfigError: adapter_off without adapters, or with one that is not zero at the start; a copy that is another
        model.
    """

    def __init__(self, trainer: Any, kind: str | None, *, frozen: nn.Module | None = None):
        self.trainer, self.kind = trainer, kind
        own = trainer.accelerator.unwrap_model(trainer.model)
        self.sha = start_digest(own)
        if frozen is not None and start_digest(frozen) != self.sha:
            raise ConfigError(
                "the copy is not the model that training starts from",
                where="method.reference",
                got=start_digest(frozen),
                allowed=self.sha,
                fix="Give the trainer a loaded model instead of a path",
            )
        self.frozen = None if frozen is None else frozen.to(trainer.accelerator.device)
        if kind == "adapter_off":
            _refuse_no_adapter(own)

    def model(self) -> tuple[Any, AbstractContextManager[Any]]:
        """(model, context) in which the model is the reference."""
        if self.frozen is not None:
            return self.frozen, nullcontext()
        own = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return own, nullcontext() if self.kind == "precomputed" else switched_off(own)

    def sums(self, batch: dict[str, Any], rows: Tensor) -> Tensor:
        """(K,) sums of log pi_ref over the labels of the chosen rows of a batch; no gradient, no dropout."""
        chosen = {key: batch[key][rows] for key in ("input_ids", "attention_mask", "labels")}
        model, before = self.model()
        with eval_mode_no_grad(model), before, self.trainer.accelerator.autocast():
            return next_token_logps(model, chosen).sum(dim=1)

    def refuse_other(self, sha: str) -> None:
        """Raise ResumeError where a checkpoint was begun from other weights, by their `sha`."""
        if sha != self.sha:
            raise ResumeError(
                "the weights that this run starts from are not those it was begun with, so the reference would change",
                where="the model that training starts from",
                got=self.sha,
                allowed=sha,
                fix="Restore the model, or start anew with trainer.resume: never",
            )


def _refuse_no_adapter(model: Any) -> None:
    if not isinstance(model, PeftModel):
        raise ConfigError(
            "the model has no adapter to switch off",
            where="method.reference",
            got="adapter_off",
            allowed="copy, precomputed",
            fix="Choose one of them, or write model.lora",
        )
    changed = learnt_adapter(model)
    if not any(".lora_B." in name for name, _ in model.named_parameters()):
        raise SupportError("only LoRA adapters are known to be zero at the start", where="model.lora")
    if changed:
        raise ConfigError(
            "the adapter is not zero at the start, so without it the model is not the one that training starts from",
            where="method.reference",
            got=f"{changed[0]} and {len(changed) - 1} more",
            fix="Merge the adapter first, as a stage's start_from does, or use precomputed",
        )
