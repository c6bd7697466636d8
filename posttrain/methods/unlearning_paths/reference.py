"""The model before unlearning: where it is held, what is read of it, and that it is the right one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from posttrain.methods.unlearning_paths.names import one_name
from posttrain.seam.frozen import (
    HiddenTap,
    eval_mode_no_grad,
    linear_head,
    model_inputs,
    whole_base,
)
from posttrain.seam.reference_model import ReferenceModel

# Where hidden states are read.
LAYER, DECODER = "layer", "decoder"


def one_module(model: Any, pattern: str) -> str:
    """Name of the one module of the model without adapters whose whole name matches.

    Raises:
        ConfigError: none or several do; names candidates.
    """
    return one_name([name for name, _ in whole_base(model).named_modules() if ".lora_" not in name], pattern)


class Reference(ReferenceModel):
    """Reads the model before unlearning: log-probs, hidden states, a table that was measured once.

    Args and errors as in `ReferenceModel`.
    """

    def __init__(self, trainer: Any, frozen: nn.Module | None):
        self.args = trainer.args
        super().__init__(trainer, trainer.args.reference if trainer.args.needs_reference else None, frozen=frozen)
        own = trainer.accelerator.unwrap_model(trainer.model)
        self.table: Tensor | None = None  # (F, 2) sums for the row to forget and its other answer
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
            linear_head(model, where="method.retain_loss")
            return HiddenTap(base.get_decoder())
        return HiddenTap(base.get_submodule(one_module(model, self.args.module_regex)))

    def hidden(self, batch: dict[str, Any], rows: Tensor, place: str) -> Tensor:
        """(K, S, D) output of the layer, or of the decoder, for the chosen rows of a batch."""
        chosen = {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
        model, before = self.model()
        with eval_mode_no_grad(model), before, self.trainer.accelerator.autocast():
            decoder = whole_base(model).get_decoder()
            decoder(**model_inputs(decoder, chosen), use_cache=False)
        return (self._frozen_taps or self.taps)[place].take()

    def head(self) -> nn.Module:
        """The reference's own head."""
        return linear_head(self.model()[0], where="method.retain_loss")
