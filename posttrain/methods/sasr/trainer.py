"""SASR (arXiv 2505.13026): after a supervised warm-up each optimizer step is supervised or GRPO, at random; the chance
of a supervised one follows the gradient norm of the last supervised step relative to the warm-up's.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from peft import PeftModel

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.losses.upge import UPGE_PRESETS
from posttrain.methods.sasr.controllers import (
    PostClipWatch,
    RatioController,
    scheduled_probability,
    uniform_draw,
)
from posttrain.seam.arguments import option
from posttrain.seam.policy.alternation import AlternatingTrainer, AlternationConfig, StepKind
from posttrain.seam.policy.reference import copy_to_reference, reference_kl

RATIOS = ("grad_norm", "kl")


@dataclass
class SASRConfig(AlternationConfig):
    """SFT and GRPO steps interleaved in one run; by default the share of SFT falls as its gradient norm does.

    Paper: arXiv 2505.13026. Deviation: only its abstract was at hand; the switching formula p = G_last / (G_last +
    gamma * G_warm), the length of the warm-up and every default are our choice.

    Deviation: the specification gives the warm-up a learning rate of its own that falls linearly to that of the later
    steps. Here `sft_learning_rate` is the rate of every supervised step, in the warm-up and after it.
    """

    preset: str = option(
        "grpo", help="Row of the estimator's preset table that policy steps start from.", choices=tuple(UPGE_PRESETS)
    )
    # trl 1.16: 0.0.
    beta: float = option(0.04, help="Weight of the KL term of policy steps.", ge=0.0, block="trainer")
    warmup_sft_steps: int | None = option(
        None, help="Supervised steps at the start. None = warmup_sft_epochs decides.", ge=0
    )
    warmup_sft_epochs: float | None = option(
        None, help="The same in passes over the demonstrations. None = 1.0 unless warmup_sft_steps is set.", ge=0.0
    )
    switch_controller: Literal["grad_norm", "fixed", "cosine", "sequential", "kl"] = option(
        "grad_norm",
        help="What decides the share p of supervised steps after the warm-up. grad_norm: the last supervised gradient "
        "norm; kl: divergence from the reference on a probe batch, both relative to the warm-up's; fixed; cosine: "
        "sft_prob_max down to sft_prob_min; sequential: policy steps only.",
    )
    gradnorm_gamma: float = option(
        1.0, help="Weight of the warm-up's value in p; larger = fewer supervised steps.", gt=0.0
    )
    warmup_norm_stat: Literal["last", "mean_last_k", "mean"] = option(
        "mean_last_k", help="Which norms of the warm-up make its value: last, mean of the last k, mean of all."
    )
    warmup_norm_window: int = option(10, help="k of warmup_norm_stat.", ge=1)
    norm_ema: float = option(0.0, help="Weight of the past in the last norm; 0 = the newest alone.", ge=0.0, lt=1.0)
    sft_prob_min: float = option(
        0.0, help="Least p. Above 0 it keeps p from staying at 0, where no norm is measured.", ge=0.0, le=1.0
    )
    sft_prob_max: float = option(1.0, help="Largest p.", ge=0.0, le=1.0)
    fixed_sft_prob: float = option(0.5, help="p of the fixed controller.", ge=0.0, le=1.0)
    kl_reference: Literal["initial", "warmup"] = option(
        "initial", help="Model that the KL term compares with: before or after the warm-up."
    )
    switch_seed: int = option(42, help="Seed of the draws between the two kinds of step.", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sft_prob_min > self.sft_prob_max:
            raise ConfigError(
                "the least probability is above the largest",
                where="method.sft_prob_min",
                got=self.sft_prob_min,
                allowed=f"at most method.sft_prob_max ({self.sft_prob_max})",
            )
        if self.warmup_sft_steps is not None and self.warmup_sft_epochs is not None:
            raise ConfigError(
                "two lengths of one warm-up",
                where="method.warmup_sft_steps",
                got=f"{self.warmup_sft_steps} steps and {self.warmup_sft_epochs} epochs",
                fix="Write warmup_sft_steps or warmup_sft_epochs",
            )
        if self.switch_controller in RATIOS and 0 in (self.warmup_sft_steps, self.warmup_sft_epochs):
            raise ConfigError(
                f"without a warm-up the controller {self.switch_controller} has nothing to compare with",
                where="method.warmup_sft_steps",
                got="a warm-up of 0 steps",
                fix="Set method.warmup_sft_steps or method.warmup_sft_epochs above 0, or another "
                "method.switch_controller",
            )
        self._check_reference()

    def _check_reference(self) -> None:
        needing = [
            name
            for name, value in (("switch_controller", "kl"), ("kl_reference", "warmup"))
            if getattr(self, name) == value
        ]
        if needing and self.beta == 0.0:
            raise ConfigError(
                f"method.{needing[0]} needs the reference model, which there is only with a KL term",
                where="trainer.beta",
                got=0.0,
                allowed="above 0",
            )
        if self.switch_controller == "kl" and self.kl_reference == "warmup":
            raise ConfigError(
                "the divergence from the model after the warm-up begins at 0, so there is no ratio to it",
                where="method.kl_reference",
                got="warmup",
                allowed="initial while method.switch_controller is kl",
            )
        if self.kl_reference == "warmup" and self.sync_ref_model:
            raise ConfigError(
                "two rules would move the reference model",
                where="method.kl_reference",
                got="warmup with trainer.sync_ref_model",
                fix="Remove one of them",
            )


class SASRTrainer(AlternatingTrainer):
    """Alternating trainer whose kind of step is drawn with a probability that a controller sets.

    `choose_step` (rank 0's answer counts): warm-up, then a draw that follows from (switch_seed, step).
    `on_grad_norm` (every rank, once per optimizer step): the norm before clipping of supervised steps goes to the
    controller; with LoRA it is that of the adapter's parameters.

    A checkpoint holds the controller's numbers, and the reference model if it has moved.
    """

    config_class = SASRConfig
    args: SASRConfig
    name = "SASR"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.kl_reference == "warmup" and self.ref_model is None:
            raise SupportError(
                "the reference is the model without its adapter, which the warm-up does not change",
                where="method.kl_reference",
                got="warmup",
                allowed="initial with LoRA",
            )
        self._reset()

    def _reset(self) -> None:
        args = self.args
        self.controller = RatioController(
            gamma=args.gradnorm_gamma, stat=args.warmup_norm_stat, window=args.warmup_norm_window, ema=args.norm_ema
        )
        self._watch = PostClipWatch()
        self._num_supervised = 0

    @property
    def warmup_steps(self) -> int:
        """Supervised optimizer steps at the start."""
        if self.args.warmup_sft_steps is not None:
            return self.args.warmup_sft_steps
        epochs = 1.0 if self.args.warmup_sft_epochs is None else self.args.warmup_sft_epochs
        return math.ceil(epochs * self.num_demonstrations / self.demonstrations_per_step)

    @property
    def moves_reference(self) -> bool:
        return super().moves_reference or self.args.kl_reference == "warmup"

    # ---- which kind of step ----

    def choose_step(self, global_step: int) -> StepKind:
        probability = self.supervised_probability(global_step)
        self.log_metric("sasr/supervised_prob", probability, training=True)
        return "supervised" if uniform_draw(self.args.switch_seed, global_step) < probability else "policy"

    def supervised_probability(self, global_step: int) -> float:
        """Chance that the step after `global_step` finished ones is supervised; 1 in the warm-up.

        The kl controller measures here, on every rank: one forward of the model and of its reference.
        """
        args, warmup = self.args, self.warmup_steps
        if global_step < warmup:
            return 1.0
        progress = (global_step - warmup) / max(1, self.state.max_steps - warmup)
        if args.switch_controller in RATIOS:
            if args.switch_controller == "kl":
                self._measure_divergence()
            wanted = self.controller.probability(progress)
        else:
            wanted = scheduled_probability(
                args.switch_controller,
                progress,
                fixed=args.fixed_sft_prob,
                low=args.sft_prob_min,
                high=args.sft_prob_max,
            )
        return min(max(wanted, args.sft_prob_min), args.sft_prob_max)

    def _measure_divergence(self) -> None:
        divergence = reference_kl(self, self.probe_batch())
        self.log_metric("sasr/probe_kl", divergence, training=True)
        if self.controller.warmup is None:
            if not (math.isfinite(divergence) and divergence > 0.0):
                raise DataError(
                    "the warm-up has not moved the model away from its reference, so there is no ratio of divergences",
                    where="method.switch_controller",
                    got=f"kl, and a divergence of {divergence} after {self.warmup_steps} warm-up steps",
                    allowed="a finite divergence above 0",
                    fix="Lengthen method.warmup_sft_steps, raise trainer.learning_rate, or choose another controller",
                )
            self.controller.observe_warmup(divergence)
            self.controller.freeze()
        else:
            self.controller.observe(divergence)

    def on_step_chosen(self, kind: StepKind) -> None:
        step = self.state.global_step
        if self.args.kl_reference == "warmup" and step == self.warmup_steps:
            copy_to_reference(self)
        if step == 0 and self.warmup_steps >= self.state.max_steps:
            warnings.warn(
                f"the warm-up takes all {self.state.max_steps} steps, so no policy step follows", stacklevel=2
            )
        if step == 0 and self.args.switch_controller == "grad_norm" and isinstance(self.model, PeftModel):
            warnings.warn(
                "the gradient norm that sasr follows is that of the adapter alone, so it cannot be compared with that "
                "of a run that trains all weights",
                stacklevel=2,
            )
        if step >= self.warmup_steps:
            self._num_supervised += kind == "supervised"
            self.log_metric("sasr/sft_fraction", self._num_supervised / (step - self.warmup_steps + 1), training=True)
        self.log_metric("sasr/mode", float(kind == "supervised"), training=True)

    # ---- what the step taught ----

    def on_grad_norm(self, norm: float) -> None:
        super().on_grad_norm(norm)
        if self.step_kind == "supervised":
            self._learn_from(norm)

    def _learn_from(self, norm: float) -> None:
        """The norm of a supervised step, before the optimizer's."""
        step, warmup = self.state.global_step, self.warmup_steps
        self.log_metric("sasr/g_sft", norm)
        if self._watch.sees(norm):
            warnings.warn(
                f"{self._watch.count} supervised steps in a row have the gradient norm {norm:.6g} "
                f"(trainer.max_grad_norm is {self.args.max_grad_norm:g}): it seems to be taken after clipping, and "
                "the controller cannot tell anything from it",
                stacklevel=2,
            )
        if self.args.switch_controller != "grad_norm":
            return
        if step >= warmup:
            self.controller.observe(norm)
        else:
            self.controller.observe_warmup(norm)
            if step + 1 == warmup:
                self.controller.freeze()
        if self.controller.warmup is not None:
            self.log_metric("sasr/g_warm", self.controller.warmup)

    # ---- checkpoint ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._reset()
        return super().train(*args, **kwargs)

    def method_state(self) -> dict[str, Any]:
        return {
            "controller": self.controller.state(),
            "num_supervised": self._num_supervised,
            "equal_norms": [self._watch.value, self._watch.count],
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.controller.load(state["controller"])
        self._num_supervised = state["num_supervised"]
        self._watch.value, self._watch.count = state["equal_norms"]
