"""Arguments of every policy method: TRL's GRPO arguments, the unified estimator's parts, and defaults that fit the
device.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from trl import GRPOConfig

from posttrain.errors import ConfigError, SupportError
from posttrain.losses.upge import UPGE_PRESETS, UPGEConfig
from posttrain.models.generation_settings import check_generation_kwargs, narrowed
from posttrain.seam.arguments import WithoutSecrets, check_options, option
from posttrain.seam.device import device_defaults

# GRPO fields whose job the estimator or the seam has taken over. Set to anything but TRL's default they are refused,
# because accepting and ignoring them would be worse.
_REPLACED = {
    "loss_type": "method.preset",
    "importance_sampling_level": "method.reference_policy and method.stabilization_mask",
    "scale_rewards": "method.advantage_estimator",
    "multi_objective_aggregation": "reward weights; rewards are summed, then normalised per group",
    "delta": "method.epsilon_dual with method.stabilization_mask: dual_clip",
    "sapo_temperature_neg": None,
    "sapo_temperature_pos": None,
    "vespo_k_pos": None,
    "vespo_lambda_pos": None,
    "vespo_k_neg": None,
    "vespo_lambda_neg": None,
    "top_entropy_quantile": None,
    "off_policy_mask_threshold": None,
    "use_adaptive_entropy": None,
    "auto_find_batch_size": None,
    "use_liger_kernel": None,
    "label_smoothing_factor": None,
    "neftune_noise_alpha": None,
    "torch_compile": None,
}


def verifier_index(names: list[str], wanted: str | None) -> int:
    """Place of the reward function that gives the verdict: the one named `wanted`, else the first."""
    if wanted is None:
        return 0
    if wanted not in names:
        raise ConfigError("no reward function has this name", where="method.verifier", got=wanted, allowed=str(names))
    return names.index(wanted)


@dataclass
class PolicyConfig(WithoutSecrets, GRPOConfig):
    """GRPO with any combination of the four parts of the unified policy gradient estimator.

    `preset` names a row of `posttrain.losses.upge.UPGE_PRESETS`; a field below that is not None replaces that part of
    it. The token-level clip range comes from `epsilon` and `epsilon_high` (None = the preset's).
    Paper: arXiv 2509.04419, section 3.
    """

    takes_greedy_baseline: ClassVar[bool] = True
    """Whether `advantage_estimator: remax` is allowed. A subclass says so itself: many compare in their own way."""

    prompt_shares: ClassVar[Literal["changing", "fixed", "none"]] = "changing"
    """Whether prompts may be drawn by shares of their groups, and whether these may change in the run."""

    preset: str = option(
        "dr_grpo", help="Row of the estimator's preset table that the loss starts from.", choices=tuple(UPGE_PRESETS)
    )
    reference_policy: Literal["current", "rollout", "one", "sequence_geometric"] | None = option(
        None, help="Denominator of the likelihood ratio. None = the preset's."
    )
    advantage_estimator: Literal["one", "sign", "group_norm", "group_mean", "rloo", "remax", "external"] | None = (
        option(None, help="How rewards of one prompt's group become advantages. None = the preset's.")
    )
    advantage_group: Literal["on_policy", "all"] | None = option(
        None, help="Rows that enter the group mean and deviation. None = the preset's."
    )
    stabilization_mask: Literal["none", "ppo_clip", "sequence_clip", "dual_clip"] | None = option(
        None, help="Rule that stops the gradient of tokens too far from the reference. None = the preset's."
    )
    is_truncation: list[float] | None = option(
        None, help="[low, high] clamp of the likelihood ratio instead of a mask (CISPO). None = the preset's."
    )
    epsilon_dual: float | None = option(
        None,
        help="Upper ratio bound for negative advantages, used by the dual_clip mask. None = the preset's.",
        gt=1.0,
    )
    shaping: Literal["p_over_p_plus_gamma"] | None = option(
        None, help="Shape of the likelihood weight (LUFFY). None = the preset's."
    )
    shaping_gamma: float | None = option(None, help="Gamma of the shaping function. None = the preset's.", gt=0.0)
    loss_aggregation: (
        Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm", "seq_mean_token_sum"] | None
    ) = option(None, help="How token losses become one number. None = the preset's.")
    success_threshold: float = option(
        1.0, help="A rollout counts as solved if its verifier's reward is at least this.", gt=0.0, le=1.0
    )
    verifier: str | None = option(
        None, help="Name of the reward function whose value is the verdict, in [0, 1]. None = the first one."
    )
    max_failed_fraction: float = option(
        0.1,
        help="Most rows of a generation batch on which a reward may raise, hang or die; above it the run stops.",
        ge=0.0,
        le=1.0,
        block="rollout",
    )
    engine_timeout_seconds: float = option(
        1800.0,
        help="Most time that one request to an inference server may take; then the run stops with a checkpoint.",
        gt=0.0,
        block="rollout",
    )
    one_step_off: bool = option(
        False,
        help="Generate the next batch while this one is trained on, with weights one update old (a server only).",
        block="rollout",
    )
    engine_devices: str | None = option(
        None,
        help="CUDA_VISIBLE_DEVICES of an inference server that the run starts; they are not those that train.",
        block="rollout",
    )
    prompt_proportions: dict[str, float] | None = option(
        None, help="Group -> share of the prompts, in place of one pass over all rows an epoch. null = no shares."
    )
    prompt_proportions_from: str | None = option(
        None, help="The same from a JSON file, as `posttrain mix` and runs that change proportions write it."
    )
    prompt_group_column: str = option(
        "group", help="Column that tells a prompt's group. Of a mixture the groups are its sources."
    )
    changing_shares: bool = option(
        False, help="Something that is attached to the trainer changes the shares of the prompts in the run."
    )
    drop_zero_advantage_rows: bool = option(
        True, help="Leave rows with an exactly zero gradient out of the update; the normaliser keeps counting them."
    )
    logits_budget_bytes: int = option(
        256 * 2**20,
        help="Bytes of one float32 logits block off CUDA; rows that need more are scored in chunks.",
        ge=1024,
        block="trainer",
    )
    # trl 1.16: "dapo" and "group". None, so that whoever writes one of them is told what has replaced it.
    loss_type: str | None = option(None, help="Replaced by method.preset.", block="trainer")
    scale_rewards: str | None = option(None, help="Replaced by method.advantage_estimator.", block="trainer")
    # trl 1.16: 0.2. None lets the preset's own clip range through.
    epsilon: float | None = option(
        None, help="Lower (and default upper) clip range. None = the preset's.", ge=0.0, block="trainer"
    )
    # trl 1.16: True. None is resolved by device, see `device_defaults`.
    gradient_checkpointing: bool | None = option(
        None, help="Recompute activations in the backward pass. None = on with CUDA, off elsewhere.", block="trainer"
    )
    # transformers 5.17: True, which replaces a NaN loss by the running mean in the log.
    logging_nan_inf_filter: bool = option(
        False, help="Hide non-finite losses from the log. Off here: a non-finite loss stops the run.", block="trainer"
    )
    logging_steps: float = option(1, help="Log every this many optimizer steps.", gt=0, block="trainer")

    @property
    def prompt_groups(self) -> str | None:
        """Column of the groups that prompts are drawn by; None where none has a share."""
        shares = (self.prompt_proportions, self.prompt_proportions_from)
        has_shares = self.changing_shares or any(given is not None for given in shares)
        return self.prompt_group_column if has_shares else None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.takes_greedy_baseline = cls.__dict__.get("takes_greedy_baseline", False)

    def __post_init__(self) -> None:
        check_options(self)
        self._refuse_replaced()
        self._refuse_unused_parts()
        self._check_shares()
        self.upge = self._resolve_estimator()
        self._check_greedy_baseline()
        self.epsilon, self.epsilon_high = self.upge.epsilon_low, self.upge.epsilon_high
        self.scale_rewards, self.loss_type = "none", "dr_grpo"
        self.device_defaults = device_defaults(self)
        super().__post_init__()
        self._check_batches()
        self._check_ahead()
        check_generation_kwargs(self.generation_kwargs, is_vllm=self.use_vllm)
        if (told := narrowed(self)) is not None:
            warnings.warn(
                f"rollouts are drawn from another distribution than the one that is trained: {told}", stacklevel=2
            )

    def _check_shares(self) -> None:
        names = ("prompt_proportions", "prompt_proportions_from", "changing_shares")
        given = [name for name in names if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ConfigError(
                "the shares of the prompts are given once",
                where=f"method.{given[-1]}",
                got=getattr(self, given[-1]),
                fix=f"Remove it, or remove method.{given[0]}",
            )
        if given and self.prompt_shares == "none":
            what = "the method has an order of prompts of its own"
            raise SupportError(what, where=f"method.{given[0]}", got=getattr(self, given[0]), fix="Remove it")
        if self.changing_shares and self.prompt_shares == "fixed":
            raise SupportError(
                "the method draws its prompts an epoch ahead, so that their shares cannot change in the run",
                where="method.changing_shares",
                got=True,
                fix="Use method.prompt_proportions",
            )

    def _refuse_replaced(self) -> None:
        defaults = {f.name: f.default for f in fields(GRPOConfig)} | {"loss_type": None, "scale_rewards": None}
        settled = {"loss_type": "dr_grpo", "scale_rewards": "none"}  # what this class itself sets; survives a copy
        for name, instead in _REPLACED.items():
            value = getattr(self, name)
            if value not in (defaults[name], settled.get(name, defaults[name]), None, False, 0.0):
                if instead is None:
                    raise SupportError(
                        "not supported by the policy methods",
                        where=f"trainer.{name}",
                        got=value,
                        fix="Remove the line",
                    )
                raise ConfigError(
                    "replaced by the unified estimator", where=f"trainer.{name}", got=value, fix=f"Use {instead}"
                )

    def _resolve_estimator(self) -> UPGEConfig:
        """The preset with every part the user set replaced by theirs."""
        if self.preset not in UPGE_PRESETS:
            allowed = "one of: " + ", ".join(UPGE_PRESETS)
            raise ConfigError("unknown preset", where="method.preset", got=self.preset, allowed=allowed)
        preset = UPGE_PRESETS[self.preset]
        changes: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "reference_policy advantage_estimator advantage_group stabilization_mask epsilon_dual shaping "
                "shaping_gamma loss_aggregation"
            ).split()
            if getattr(self, name) is not None
        }
        if self.is_truncation is not None:
            if len(self.is_truncation) != 2:
                raise ConfigError(
                    "needs exactly two numbers",
                    where="method.is_truncation",
                    got=self.is_truncation,
                    allowed="[low, high]",
                )
            changes["is_truncation"] = tuple(self.is_truncation)
        if self.epsilon is not None:
            changes["epsilon_low"] = changes["epsilon_high"] = self.epsilon
        if self.epsilon_high is not None:
            changes["epsilon_high"] = self.epsilon_high
        return UPGEConfig(**{**{f.name: getattr(preset, f.name) for f in fields(preset)}, **changes})

    def _refuse_unused_parts(self) -> None:
        if self.advantage_group == "all":
            raise SupportError(
                "no demonstration belongs to a prompt's group here, so it would change nothing",
                where="method.advantage_group",
                got="all",
                allowed="on_policy",
            )

    def _check_greedy_baseline(self) -> None:
        if self.upge.advantage_estimator != "remax":
            return
        where, got = "method.advantage_estimator", "remax"
        if not self.takes_greedy_baseline:
            what = "this method compares the rows of a group in a way of its own, without a greedy completion"
            raise SupportError(what, where=where, got=got, fix="Choose another estimator, or the method grpo")
        if self.use_vllm:
            what = "the greedy completion of each prompt is made by transformers alone"
            raise SupportError(what, where=where, got=got, fix="Set rollout.engine to hf, or choose rloo")

    def _check_ahead(self) -> None:
        if not self.one_step_off:
            return
        where = "rollout.one_step_off"
        if not self.use_vllm or self.vllm_mode != "server":
            what = "only a server generates while the trainer trains"
            raise ConfigError(what, where=where, got=True, fix="Set rollout.engine: vllm and rollout.mode: server")
        if not self.vllm_importance_sampling_correction:
            raise ConfigError(
                "rollouts of older weights need the importance correction",
                where=where,
                got=True,
                fix="Remove rollout.vllm_importance_sampling_correction: false",
            )

    def _check_batches(self) -> None:
        steps, accumulation = self.steps_per_generation, self.gradient_accumulation_steps
        if steps % accumulation:
            raise ConfigError(
                "an optimizer step must lie inside one generation batch",
                where="trainer.steps_per_generation",
                got=steps,
                allowed=f"a multiple of trainer.gradient_accumulation_steps ({accumulation})",
            )
        if self.sync_ref_model and self.beta == 0.0:
            raise ConfigError(
                "there is no reference model to synchronise while trainer.beta is 0",
                where="trainer.sync_ref_model",
                got=True,
                fix="Set trainer.beta above 0 or remove trainer.sync_ref_model",
            )
