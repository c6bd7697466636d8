"""DPO (arXiv 2305.18290) and its relatives: a supervised run on pairs of answers, against the model it starts from.

Axes: B pairs of a micro-batch, which has 2 B rows: the better answer, the other one below it. S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.losses import preferences
from posttrain.losses.reductions import LossCounts, reduce_loss, sequence_loss, sequence_sums
from posttrain.seam.arguments import option
from posttrain.seam.reference_model import ReferenceModel, frozen_copy
from posttrain.seam.supervised.trainer import SupervisedConfig, SupervisedTrainer

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
_LOSSES: dict[str, Any] = {
    "sigmoid": preferences.sigmoid_preference_loss,
    "robust": preferences.robust_preference_loss,
    "hinge": preferences.hinge_preference_loss,
    "ipo": preferences.ipo_loss,
}


@dataclass
class DPOConfig(SupervisedConfig):
    """Learn from rows of `prompt`, `chosen` and `rejected` which answer is better.

    Log-probs of an answer are sums over its tokens with the end token; the loss is a mean over pairs. TRL's DPOTrainer
    has the same numbers for sigmoid, hinge and robust; for ipo it takes means over tokens, the paper sums.

    Paper: arXiv 2305.18290. Deviation: none in sigmoid. IPO is arXiv 2310.12036, robust 2403.00409, hinge the margin
    form of 2309.06657 with the reference's log-ratio, SimPO 2405.14734.
    """

    answer_columns: ClassVar[tuple[str, ...]] = ("rejected",)

    demonstration_column: str = option("chosen", help="Column with the better answer; `rejected` has the other.")
    preference_loss: Literal["sigmoid", "ipo", "robust", "hinge", "simpo"] = option(
        "sigmoid", help="sigmoid: DPO; robust: DPO for labels that may be wrong; simpo: no reference."
    )
    beta: float = option(0.1, help="Strength of the tie to the reference; simpo: scale of the reward.", gt=0.0)
    label_smoothing: float | None = option(
        None, help="robust: share of pairs whose labels are taken to be wrong, in (0, 0.5).", gt=0.0, lt=0.5
    )
    target_margin: float | None = option(None, help="simpo: gamma, how far rewards should lie apart.", ge=0.0)
    reference: Literal["adapter_off", "copy", "precomputed"] | None = option(
        None,
        help="Where the model before training is: inside its adapter, a second model, or columns ref_chosen_logps and "
        "ref_rejected_logps. None = adapter_off with an adapter, else copy.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, reader in (("label_smoothing", "robust"), ("target_margin", "simpo")):
            given = getattr(self, name)
            if (given is None) == (self.preference_loss == reader):
                what = f"read by the loss {reader} alone, which needs it"
                raise ConfigError(
                    what, where=f"method.{name}", got=given, fix=f"preference_loss is {self.preference_loss}"
                )
        if self.preference_loss == "simpo" and self.reference is not None:
            raise ConfigError(
                "simpo reads no reference", where="method.reference", got=self.reference, fix="Remove it"
            )
        for name, default in (("loss_aggregation", "token_mean"), ("loss_type", "nll")):
            if getattr(self, name) != default:
                what = "read by supervised losses of tokens; here a mean over pairs is taken of preference_loss"
                raise ConfigError(what, where=f"method.{name}", got=getattr(self, name), fix="Remove it")

    @property
    def number_columns(self) -> tuple[str, ...]:
        """The reference's sums of log-probs, with `reference: precomputed`."""
        return REFERENCE_COLUMNS if self.reference == "precomputed" else ()


class DPOTrainer(SupervisedTrainer):
    """`batch_loss` (once per micro-batch, every rank) compares the rows of each pair; the reference is read there.

    Logged as TRL does: `rewards/chosen` and `rewards/rejected` (beta times the log-ratio; of SimPO the scaled mean),
    `rewards/margins`, `rewards/accuracies`. A checkpoint holds the digest of the reference, which a resumed run's must
    equal.

    Args:
        train_dataset: rows with `prompt`, `chosen`, `rejected`. Rest as in `SupervisedTrainer`.
    """

    config_class = DPOConfig
    args: DPOConfig
    name = "DPO"

    def __init__(self, model: Any, args: DPOConfig | None = None, train_dataset: Any = None, *others: Any, **kw: Any):
        args = args or DPOConfig(output_dir="DPO")
        kind = None if args.preference_loss == "simpo" else args.reference
        if kind is None and args.preference_loss != "simpo":
            kind = "adapter_off" if kw.get("peft_config") else "copy"
        frozen = frozen_copy(model, args) if kind == "copy" else None
        super().__init__(model, args, train_dataset, *others, **kw)
        self.reference = ReferenceModel(self, kind, frozen=frozen)

    def batch_loss(
        self, log_probs: Tensor, label_mask: Tensor, batch: dict[str, Any], counts: LossCounts
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        args, sums = self.args, sequence_sums(log_probs, label_mask)
        if args.preference_loss == "simpo":
            ratios = sums / label_mask.sum(dim=1).clamp(min=1)
            options = {"beta": args.beta, "target_margin": float(args.target_margin or 0.0)}
            values = preferences.simpo_loss(ratios[0::2], ratios[1::2], **options)
        else:
            before = self._reference_sums(batch).to(sums)
            ratios = sums - before
            margin = preferences.log_ratio_margin(sums[0::2], sums[1::2], before[0::2], before[1::2])
            smoothing = {} if args.label_smoothing is None else {"flip_prob": args.label_smoothing}
            values = _LOSSES[args.preference_loss](margin, beta=args.beta, **smoothing)
        chosen, rejected = args.beta * ratios[0::2].detach(), args.beta * ratios[1::2].detach()
        rewards = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
        mask = label_mask[0::2]
        output = sequence_loss(values, mask, {**rewards, "rewards/accuracies": (chosen > rejected).float()})
        pairs = LossCounts(counts.rows / 2, counts.tokens, counts.max_completion_length)
        return reduce_loss(output, mask.float(), counts=pairs), output.metrics

    def _reference_sums(self, batch: dict[str, Any]) -> Tensor:
        """(2 B,) sums of the reference's log-probs over the answers."""
        if self.args.number_columns:
            return torch.stack([batch[name] for name in REFERENCE_COLUMNS], dim=1).flatten()
        return self.reference.sums(batch, torch.arange(len(batch["labels"])))

    def method_state(self) -> dict[str, Any]:
        return {"reference": self.reference.sha}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.reference.refuse_other(state["reference"])
