"""The model before unlearning: where it is held, what is read of it, and that it is the right one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from trl.trainer.utils import create_model_from_path

from posttrain.errors import ConfigError, SupportError
from posttrain.methods.unlearning_paths.config import UnlearnConfig
from posttrain.methods.unlearning_paths.names import one_name
from posttrain.rollouts.digests import digest
from posttrain.seam.frozen import (
    HiddenTap,
    at_rest,
    model_inputs,
    next_token_logps,
    plain_head,
    whole_base,
    whole_copy,
)
from posttrain.seam.sharding import whole_models, whole_weights

# Where hidden states are read.
LAYER, DECODER = "layer", "decoder"


def frozen_copy(model: Any, args: UnlearnConfig) -> nn.Module | None:
    """A copy of the model for `reference: copy`, made before the trainer changes its forward; None if none is read."""
    if not (args.needs_reference and args.reference == "copy"):
        return None
    if isinstance(model, str):
        with whole_models():
            found = create_model_from_path(model, **(args.model_init_kwargs or {}))
        return found.eval().requires_grad_(False)
    if isinstance(model, PeftModel):
        raise ConfigError(
            "a model with adapters has its reference in itself",
            where="method.reference",
            got="copy",
            allowed="adapter_off, precomputed",
        )
    return whole_copy(model)


def start_digest(model: Any) -> str:
    """16 hexadecimal digits that tell the weights, an adapter only if it is not zero; equal however the model is
    wrapped. Before training, and collective where ZeRO-3 has spread it."""
    total, with_adapter = 0, bool(learnt_adapter(model))
    with whole_weights(model):
        for name, value in sorted(whole_base(model).state_dict().items()):
            if with_adapter or (".lora_" not in name and "lora_embedding" not in name):
                total = (total * 1_000_003 + digest(value)) % 2**64
    return f"{total:016x}"


def learnt_adapter(model: Any) -> list[str]:
    """Names of adapter weights by which a model differs from the one inside it."""
    with whole_weights(model):
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


def one_module(model: Any, pattern: str) -> str:
    """Name of the one module of the model without adapters whose whole name matches.

    Raises:
        ConfigError: none or several do; names candidates.
    """
    return one_name([name for name, _ in whole_base(model).named_modules() if ".lora_" not in name], pattern)


class Reference:
    """Reads the model before unlearning.

    Args:
        trainer: after its model was prepared by TRL, before the first step. frozen: of `frozen_copy`.

    Raises:
        ConfigError: adapter_off without adapters, or with one that is not zero at the start; a copy that is another
        model.
    """

    def __init__(self, trainer: Any, frozen: nn.Module | None):
        self.trainer, self.args = trainer, trainer.args
        own = trainer.accelerator.unwrap_model(trainer.model)
        self.sha = start_digest(own)
        if frozen is not None and start_digest(frozen) != self.sha:
            raise ConfigError(
                "the copy is not the model that unlearning starts from",
                where="method.reference",
                got=start_digest(frozen),
                allowed=self.sha,
                fix="Give the trainer a loaded model instead of a path",
            )
        self.frozen = None if frozen is None else frozen.to(trainer.accelerator.device)
        self.table: Tensor | None = None  # (F, 2) sums for the row to forget and its other answer
        if self.args.needs_reference and self.args.reference == "adapter_off":
            _refuse_no_adapter(own)
        wanted = {LAYER: self.args.taps_layer, DECODER: self.reads_divergence}
        places = [place for place, is_read in wanted.items() if is_read]
        self.taps = {place: self._tapped(own, place) for place in places}
        self._frozen_taps = {} if self.frozen is None else {p: self._tapped(self.frozen, p) for p in places}

    @property
    def reads_divergence(self) -> bool:
        """Whether the divergence from the whole distributions is read."""
        return bool(self.args.retain_weight) and self.args.retain_loss == "kl"

    def _tapped(self, model: Any, place: str) -> HiddenTap:
        base = whole_base(model)
        if place == DECODER:
            plain_head(model, where="method.retain_loss")
            return HiddenTap(base.get_decoder())
        return HiddenTap(base.get_submodule(one_module(model, self.args.module_regex)))

    def _model(self) -> tuple[Any, AbstractContextManager[Any]]:
        """(model, context) in which the model is that before unlearning."""
        if self.frozen is not None:
            return self.frozen, nullcontext()
        own = self.trainer.accelerator.unwrap_model(self.trainer.model)
        # What is measured once, before the first step, is the model as it is then.
        return own, nullcontext() if self.args.reference == "precomputed" else switched_off(own)

    def sums(self, batch: dict[str, Any], rows: Tensor) -> Tensor:
        """(K,) sums of log pi_ref over the labels of the chosen rows of a batch."""
        chosen = {key: batch[key][rows] for key in ("input_ids", "attention_mask", "labels")}
        model, before = self._model()
        with at_rest(model), before, self.trainer.accelerator.autocast():
            return next_token_logps(model, chosen).sum(dim=1)

    def hidden(self, batch: dict[str, Any], rows: Tensor, place: str) -> Tensor:
        """(K, S, D) output of the layer, or of the decoder, for the chosen rows of a batch."""
        chosen = {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
        model, before = self._model()
        with at_rest(model), before, self.trainer.accelerator.autocast():
            decoder = whole_base(model).get_decoder()
            decoder(**model_inputs(decoder, chosen), use_cache=False)
        return (self._frozen_taps or self.taps)[place].take()

    def head(self) -> nn.Module:
        """The reference's own head."""
        return plain_head(self._model()[0], where="method.retain_loss")


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
            "the adapter is not zero at the start, so without it the model is not that before unlearning",
            where="method.reference",
            got=f"{changed[0]} and {len(changed) - 1} more",
            fix="Merge the adapter first, as a stage's start_from does, or use precomputed",
        )
