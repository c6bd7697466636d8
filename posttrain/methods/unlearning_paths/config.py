"""Settings of unlearning."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from posttrain.errors import ConfigError, PosttrainError, SupportError
from posttrain.methods.unlearning_paths.forget_retain import check_rows, other_answers
from posttrain.methods.unlearning_paths.names import chosen_weights, one_name
from posttrain.seam.arguments import option
from posttrain.seam.supervised.trainer import SupervisedConfig

_BETA = {"npo": 0.5, "dpo": 0.1, "idkdpo": 0.1}
_SIMNPO_BETA = {True: 4.5, False: 1.0}
_WITH_REFERENCE = ("npo", "dpo", "idkdpo")
# Setting -> losses on rows to forget that read it. Another value than the default elsewhere would do nothing.
_READ_BY = {
    "beta": ("npo", "simnpo", "dpo", "idkdpo"),
    "margin": ("simnpo",),
    "length_normalize": ("simnpo",),
    "alternate_column": ("dpo",),
    "idk_responses": ("idkdpo",),
    "steering_coeff": ("rmu",),
}


@dataclass
class SteeringConfig(SupervisedConfig):
    """What the losses on hidden states, and the divergence, read."""

    module_regex: str = option(
        r"model\.layers\.7", help="rmu, embed_diff: the one module whose output counts; the whole name must match."
    )
    trainable_params_regex: list[str] = option(
        [".*"], help="Parameters that are trained: those whose whole name matches one of these."
    )
    steering_coeff: float = option(2.0, help="rmu: length of the vector that hidden states are steered to.", gt=0.0)
    kl_mask: Literal["answer", "all"] = option(
        "answer", help="retain_loss kl: positions that count; all = the prompt's, too."
    )


@dataclass
class UnlearnConfig(SteeringConfig):
    """Fine-tuning that lowers the likelihood of the rows of `data.train`, and may keep that of `data.retain`.

    Paper: arXiv 2510.16629, whose local methods use the rows to forget alone; the forms with rows to retain, rmu and
    the preference losses are those of its baselines. Loss = forget_weight *
    forget loss + retain_weight * retain loss.

    Deviation: a row without an answer is refused, with its number, where the specification drops and counts it.
    `retain_weight` is 0 by default for every loss but graddiff, so that no loss reads rows that were not asked for.
    idkdpo's drawn answer stays with its row for the whole run. Random-label training is supervised training on such a
    column, not a loss.
    """

    unlearn_loss: Literal["ga", "graddiff", "npo", "simnpo", "dpo", "idkdpo", "rmu"] = option(
        "npo", help="Loss on the rows to forget; graddiff is ga with rows to retain."
    )
    beta: float | None = option(
        None, help="Sharpness. None = npo 0.5, simnpo 4.5 (1 without length_normalize), dpo and idkdpo 0.1.", gt=0.0
    )
    margin: float = option(0.0, help="simnpo: subtracted from the negative log-likelihood, in nats.", ge=0.0)
    length_normalize: bool = option(
        True, help="simnpo: the mean over an answer's tokens; false = their sum, as in the path study."
    )
    forget_weight: float = option(1.0, help="Weight of the forget loss.", ge=0.0)
    retain_weight: float | None = option(
        None, help="Weight of the retain loss; 0 never reads a row to retain. None = 1 for graddiff, else 0.", ge=0.0
    )
    retain_loss: Literal["nll", "kl", "embed_diff"] = option(
        "nll", help="nll: likelihood; kl: divergence from the model before; embed_diff: its hidden states."
    )
    anchor: Literal["forget", "retain"] = option(
        "forget", help="Rows that an epoch goes through once; each is paired with a drawn row of the other kind."
    )
    pairing_seed: int | None = option(
        None, help="Seed of pairs, of drawn answers and of the steering vector. None = trainer.seed.", ge=0
    )
    reference: Literal["adapter_off", "copy", "precomputed"] = option(
        "adapter_off",
        help="The model before unlearning: without its new adapter; a frozen copy; its log-probs of the answers, "
        "measured once before the first step.",
    )
    alternate_column: str = option("alternate", help="dpo: column with the answer that is to be given instead.")
    idk_responses: list[str] | None = option(None, help="idkdpo: answers to draw from. None = five of ours.")
    allow_overlap: bool = option(False, help="Let rows be in both sets.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_unread()
        if self.retain_weight is None:
            self.retain_weight = 1.0 if self.unlearn_loss == "graddiff" else 0.0
        if self.beta is None:
            self.beta = (
                _SIMNPO_BETA[self.length_normalize]
                if self.unlearn_loss == "simnpo"
                else _BETA.get(self.unlearn_loss, 1.0)
            )
        for name in ("packing", "padding_free"):
            if getattr(self, name):
                raise SupportError(
                    "a loss of a sequence needs the sequence's boundaries",
                    where=f"trainer.{name}",
                    got=True,
                    fix="Set it to false",
                )
        if self.unlearn_loss == "graddiff" and not self.retain_weight:
            raise ConfigError(
                "graddiff without rows to retain is ga",
                where="method.retain_weight",
                got=self.retain_weight,
                allowed="> 0",
                fix="Set method.unlearn_loss to ga, or raise it",
            )
        if self.anchor == "retain" and not self.retain_weight:
            raise ConfigError("no row to retain is read", where="method.anchor", got="retain", fix="Use forget")
        if self.shuffle_dataset:
            raise SupportError(
                "the order of the rows tells which belong together",
                where="trainer.shuffle_dataset",
                got=True,
                fix="Set it to false; rows are drawn in random order all the same",
            )
        self._check_reference()
        if self.taps_layer and self.gradient_checkpointing:
            raise SupportError(
                "hidden states are read in the forward pass, which activation checkpointing repeats",
                where="trainer.gradient_checkpointing",
                got=True,
                fix="Set it to false",
            )

    def _refuse_unread(self) -> None:
        """Settings that nothing reads, and patterns that are none."""
        defaults = {field.name: field.default for field in fields(UnlearnConfig)}
        for name, readers in _READ_BY.items():
            if getattr(self, name) != defaults[name] and self.unlearn_loss not in readers:
                raise ConfigError(
                    f"{self.unlearn_loss} does not read it",
                    where=f"method.{name}",
                    got=getattr(self, name),
                    fix=f"Remove it; it belongs to {', '.join(readers)}",
                )
        if self.forget_weight == 0 and not self.retain_weight and self.unlearn_loss != "graddiff":
            raise ConfigError("the loss would be 0", where="method.forget_weight", got=0.0, fix="Raise it")
        for name in ("module_regex", "trainable_params_regex"):
            value = getattr(self, name)
            for pattern in [value] if isinstance(value, str) else value:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as problem:
                    raise ConfigError(
                        f"not a regular expression: {problem}", where=f"method.{name}", got=pattern
                    ) from None

    def _check_reference(self) -> None:
        whole = self.retain_weight and self.retain_loss in ("kl", "embed_diff")
        if whole and self.reference == "precomputed":
            raise ConfigError(
                f"retain_loss {self.retain_loss} needs the model before unlearning itself",
                where="method.reference",
                got=self.reference,
                allowed="adapter_off, copy",
            )

    @property
    def taps_layer(self) -> bool:
        """Whether a layer's output enters the loss."""
        return self.unlearn_loss == "rmu" or bool(self.retain_weight and self.retain_loss == "embed_diff")

    @property
    def needs_reference(self) -> bool:
        """Whether the model before unlearning enters the loss."""
        kept = bool(self.retain_weight) and self.retain_loss in ("kl", "embed_diff")
        return self.unlearn_loss in _WITH_REFERENCE or kept

    @property
    def unlearn_seed(self) -> int:
        """Seed of every draw that belongs to unlearning."""
        return self.seed if self.pairing_seed is None else self.pairing_seed

    def tokenizer_findings(self, tokenizer: Any, *, has_adapter: bool) -> Iterator[PosttrainError]:
        if self.needs_reference and self.reference == "adapter_off" and not has_adapter:
            yield ConfigError(
                "the model has no adapter to switch off",
                where="method.reference",
                got="adapter_off",
                allowed="copy, precomputed",
                fix="Choose one of them, or write model.lora",
            )

    def model_findings(self, modules: Sequence[str], weights: Sequence[str]) -> Iterator[PosttrainError]:
        try:
            if self.taps_layer:
                one_name(modules, self.module_regex)
            if weights:
                chosen_weights(weights, self.trainable_params_regex)
        except PosttrainError as error:
            yield error

    def data_findings(
        self, rows: dict[str, Any], *, world_size: int, tokenizer: Any = None, settings_complete: bool = True
    ) -> Iterator[PosttrainError]:
        try:
            check_rows(self, rows["train"], rows.get("retain"))
            if tokenizer is not None:
                other_answers(self, tokenizer, rows["train"])
        except PosttrainError as error:
            yield error
