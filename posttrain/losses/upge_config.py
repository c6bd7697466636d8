"""The four parts of the unified policy gradient estimator as a checked configuration, and published losses as presets.

Paper: arXiv 2509.04419, section 3 and table 1. The estimator itself is in `posttrain.losses.upge`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from posttrain.errors import ConfigError
from posttrain.losses.reductions import AGGREGATIONS, Aggregation

ReferencePolicy = Literal["current", "rollout", "one", "sequence_geometric"]
AdvantageEstimator = Literal["one", "sign", "group_norm", "group_mean", "rloo", "remax", "external"]
AdvantageGroup = Literal["on_policy", "all"]
StabilizationMask = Literal["none", "ppo_clip", "sequence_clip", "dual_clip"]
Shaping = Literal["p_over_p_plus_gamma"]

GROUP_ESTIMATORS = ("group_norm", "group_mean", "rloo")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "reference_policy": get_args(ReferencePolicy),
    "advantage_estimator": get_args(AdvantageEstimator),
    "advantage_group": get_args(AdvantageGroup),
    "stabilization_mask": get_args(StabilizationMask),
    "shaping": (None, *get_args(Shaping)),
    "loss_aggregation": AGGREGATIONS,
}


@dataclass(frozen=True)
class UPGEConfig:
    """One policy gradient loss: weight of a token = kept * advantage * pi / reference * shape, times grad log pi.

    Paper: arXiv 2509.04419, section 3. The defaults are GRPO's. Combinations that mean nothing raise `ConfigError`;
    those that compute something, but hardly what was wanted, give a `UserWarning`.
    """

    reference_policy: ReferencePolicy = "rollout"
    """Denominator: the current policy itself (ratio 1), the policy that made the rollouts (token ratio r), one (pi
    itself, for rows of unknown origin), or pi * (pi_old / pi)^(1/len) (r's geometric mean s over the row)."""
    advantage_estimator: AdvantageEstimator = "group_norm"
    """one; sign (+1 for a reward above 0, else -1); reward minus the group's mean, divided by its deviation
    (group_norm) or not (group_mean), or minus the mean of the others (rloo); reward minus that of a greedy completion
    of the prompt (remax, arXiv 2310.10505); external (the caller's numbers)."""
    advantage_group: AdvantageGroup = "on_policy"
    """Rows that enter the group's mean and deviation: rollouts only, or rollouts and demonstrations."""
    stabilization_mask: StabilizationMask = "ppo_clip"
    """Tokens whose gradient is dropped: r (sequence_clip: s) above 1 + epsilon_high at a positive advantage, or below
    1 - epsilon_low at a negative one; dual_clip also r above epsilon_dual at a negative one. Equality keeps."""
    is_truncation: tuple[float, float] | None = None
    """(low, high): clamp of pi / reference, without gradient (CISPO)."""
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    epsilon_dual: float | None = None
    """Ratio above which dual_clip drops tokens with a negative advantage; > 1."""
    shaping: Shaping | None = None
    """f(p) = p / (p + gamma) of the token's probability: the weight is multiplied by f'(p) (LUFFY)."""
    shaping_gamma: float = 0.1
    loss_aggregation: Aggregation = "seq_mean_token_mean"
    advantage_eps: float = 1e-6
    """Added to the standard deviation in group_norm."""

    def __post_init__(self) -> None:
        self._check_values()
        self._refuse_meaningless()
        self._warn_of_odd()

    @property
    def uses_old_logps(self) -> bool:
        """Whether the rollout policy's log-probs enter the weights."""
        return self.reference_policy in ("rollout", "sequence_geometric") or self.stabilization_mask != "none"

    def _check_values(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError("unknown choice", where=name, got=value, allowed=f"one of: {_listed(choices)}")
        for name in ("epsilon_low", "epsilon_high", "advantage_eps", "shaping_gamma"):
            value, lowest_excluded = getattr(self, name), name == "shaping_gamma"
            if not _is_number(value) or value < 0 or (lowest_excluded and value == 0) or math.isinf(value):
                allowed = f"a finite number {'>' if lowest_excluded else '>='} 0"
                raise ConfigError("out of range", where=name, got=value, allowed=allowed)
        if self.epsilon_dual is not None and not (_is_number(self.epsilon_dual) and self.epsilon_dual > 1):
            raise ConfigError("out of range", where="epsilon_dual", got=self.epsilon_dual, allowed="a number > 1")
        if self.is_truncation is None:
            return
        bounds = self.is_truncation
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2 or not all(_is_number(b) for b in bounds):
            raise ConfigError("needs two numbers", where="is_truncation", got=bounds, allowed="(low, high)")
        if not 0 <= bounds[0] < bounds[1]:
            raise ConfigError("is an empty range", where="is_truncation", got=bounds, allowed="0 <= low < high")
        object.__setattr__(self, "is_truncation", (float(bounds[0]), float(bounds[1])))

    def _refuse_meaningless(self) -> None:
        if (self.stabilization_mask == "dual_clip") != (self.epsilon_dual is not None):
            raise ConfigError(
                "the dual_clip mask needs this bound, and nothing else uses it",
                where="epsilon_dual",
                got=f"{self.epsilon_dual} with stabilization_mask {self.stabilization_mask}",
                fix="Set both (3.0 is usual) or neither",
            )
        if self.is_truncation is not None:
            low, high = self.is_truncation
            if self.reference_policy == "current":
                raise ConfigError(
                    "the reference is the current policy, so the ratio is always 1 and there is nothing to clamp",
                    where="is_truncation",
                    got=self.is_truncation,
                    fix="Remove it or choose another reference_policy",
                )
            if low == 0 and (math.isinf(high) or (self.reference_policy == "one" and high >= 1)):
                raise ConfigError("clamps nothing", where="is_truncation", got=self.is_truncation, fix="Remove it")
            if self.reference_policy == "one" and low >= 1:
                raise ConfigError(
                    "with reference one a probability is clamped, and none exceeds 1: every weight would be the same",
                    where="is_truncation",
                    got=self.is_truncation,
                    allowed="low < 1",
                )
        if self.advantage_group == "all" and self.advantage_estimator not in GROUP_ESTIMATORS:
            raise ConfigError(
                f"advantage_estimator {self.advantage_estimator} has no group mean that demonstrations could enter",
                where="advantage_group",
                got="all",
                allowed=f"on_policy, or an advantage_estimator out of: {_listed(GROUP_ESTIMATORS)}",
            )
        if self.shaping is None and self.shaping_gamma != _default("shaping_gamma"):
            raise ConfigError(
                "nothing uses it without shaping",
                where="shaping_gamma",
                got=self.shaping_gamma,
                fix="Set shaping or remove it",
            )

    def _warn_of_odd(self) -> None:
        reference, mask = self.reference_policy, self.stabilization_mask
        if reference == "sequence_geometric" and self.loss_aggregation != "seq_mean_token_mean":
            _warn(
                f"loss_aggregation {self.loss_aggregation} with reference_policy sequence_geometric: the weights are "
                "not normalised per sequence; the gradient of the sequence ratio needs seq_mean_token_mean"
            )
        if reference == "one" and mask != "none":
            _warn(
                f"stabilization_mask {mask} with reference_policy one: tokens are dropped by their ratio to the "
                "rollout policy, but weighted by their probability, as if their origin were unknown"
            )
        if self.shaping is not None and reference != "one":
            _warn(
                f"shaping with reference_policy {reference}: f' is taken at the token's probability, so it is the "
                "gradient of f only with reference_policy one"
            )
        if self.is_truncation is not None and reference != "one":
            low, high = self.is_truncation
            if not low <= 1 <= high:
                _warn(f"is_truncation {self.is_truncation} excludes 1: on-policy tokens are rescaled by a constant")
        if mask == "none" and any(getattr(self, n) != _default(n) for n in ("epsilon_low", "epsilon_high")):
            _warn("epsilon_low and epsilon_high are not used: stabilization_mask is none")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _listed(choices: tuple[Any, ...]) -> str:
    return ", ".join(str(choice) for choice in choices)


def _default(name: str) -> Any:
    return next(f.default for f in fields(UPGEConfig) if f.name == name)


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=5)  # the line that constructs the config


# Table 1 of arXiv 2509.04419 has sft, reinforce, ppo, grpo, gspo, luffy_offline and srft_offline; the others follow
# from their own papers' gradients. Each is tested against its native loss.
UPGE_PRESETS: dict[str, UPGEConfig] = {
    "sft": UPGEConfig("current", "one", stabilization_mask="none", loss_aggregation="token_mean"),
    "reinforce": UPGEConfig("current", "sign", stabilization_mask="none"),
    "ppo": UPGEConfig("rollout", "external", loss_aggregation="token_mean"),  # arXiv 1707.06347
    "grpo": UPGEConfig("rollout", "group_norm"),  # arXiv 2402.03300
    "dapo": UPGEConfig("rollout", "group_norm", epsilon_high=0.28, loss_aggregation="token_mean"),  # arXiv 2503.14476
    "dr_grpo": UPGEConfig("rollout", "group_mean", loss_aggregation="seq_mean_token_sum_norm"),  # arXiv 2503.20783
    "rloo": UPGEConfig(  # arXiv 2402.14740, which argues that no clip is needed
        "rollout", "rloo", stabilization_mask="none", loss_aggregation="seq_mean_token_sum"
    ),
    "cispo": UPGEConfig(  # arXiv 2506.13585. Deviation: the survey's table lists a mask; the method clamps.
        "rollout",
        "group_norm",
        stabilization_mask="none",
        is_truncation=(0.0, 1.28),
        loss_aggregation="token_mean",
    ),
    # arXiv 2507.18071. Deviation: its own range is 3e-4 and 4e-4, since s varies far less than r; table 1 gives none,
    # and this is the estimator's default. Recipes set epsilon.
    "gspo": UPGEConfig("sequence_geometric", "group_norm", stabilization_mask="sequence_clip"),
    "luffy_offline": UPGEConfig(  # arXiv 2504.14945
        "one",
        "group_norm",
        "all",
        stabilization_mask="none",
        shaping="p_over_p_plus_gamma",
        loss_aggregation="token_mean",
    ),
    "srft_offline": UPGEConfig(  # arXiv 2506.19767
        "one", "group_norm", "all", stabilization_mask="none", loss_aggregation="token_mean"
    ),
    "dft": UPGEConfig("one", "one", stabilization_mask="none", loss_aggregation="token_mean"),  # arXiv 2508.05629
}
