"""Settings of reinforcement mid-training (RMT) and of its simpler ancestor, reinforcement pre-training (RPT).

`NextTokenConfig` has what both share: which tokens are asked for, how, and what counts as right. `RMTConfig` adds the
thinking budget and the curriculum.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

from posttrain.errors import ConfigError, SupportError
from posttrain.methods.rmt.questions import BUDGET_PROMPT, PROMPT
from posttrain.methods.rmt.token_curriculum import NUM_TIERS, tier_probabilities
from posttrain.seam.arguments import option
from posttrain.seam.policy.config import PolicyConfig

_RULES = {"rmt": "exact_token", "rpt": "prefix"}


@dataclass
class NextTokenConfig(PolicyConfig):
    """RL on raw text: the model thinks, then predicts the next token and is rewarded if it is right.

    Training rows are documents (`data.train.format: text`). Paper: arXiv 2506.08007.
    """

    prompt_shares: ClassVar[Literal["changing", "fixed", "none"]] = "none"

    preset: str = option("grpo", help="Row of the estimator's preset table that the loss starts from.")
    variant: Literal["rmt", "rpt"] = option(
        "rmt",
        help="What fields left at null stand for. rpt: prefix match, no budget, no curriculum, no next-token loss.",
    )
    match_reward: Literal["prefix", "first_token", "exact_token"] | None = option(
        None,
        help="When a prediction is right. null = exact_token (rmt; prefix where over 20 % of the targets are not one "
        "token again when re-tokenised), prefix (rpt).",
    )
    answer_extraction: Literal["boxed_after_think", "boxed"] = option(
        "boxed_after_think", help="The prediction is the last box behind the thought, or the last box anywhere."
    )
    prompt_template: str = option(PROMPT, help="The question; {context} stands for the text before the token.")
    entropy_thresholds: list[float] = option(
        [0.5, 1.0, 1.5], help="Edges in nats: up to the first never asked for, then easy, medium, hard.", ge=0.0
    )
    max_entropy: float | None = option(
        None, help="Tokens above this entropy in nats are not asked for: noise is uncertain too.", gt=0.0
    )
    entropy_top_k: int = option(16, help="Likeliest tokens that the entropy is taken over.", ge=2)
    entropy_model: str | None = option(
        None, help="Folder or Hub id of the model that scores the corpus. null = the policy at the start."
    )
    token_index: str | None = option(
        None, help="Folder of the scored corpus, made if it is not there. null = token_index in the folder of the run."
    )
    dynamic_sampling_start_step: int | None = option(
        None, help="From this step on, groups whose rewards are all equal leave the loss and its mean.", ge=0
    )
    max_rollouts_without_answer: int | None = option(
        50, help="Stop if this many rollouts from the start on had no readable prediction; null = never.", ge=1
    )
    use_ntp: bool | None = option(
        None, help="Learn all other tokens of the step's documents by likelihood. null = the variant's."
    )
    ntp_loss_coef: float = option(0.1, help="Lambda: weight of the next-token loss.", ge=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.upge.advantage_estimator == "remax":
            raise SupportError(
                "a greedy completion has no reward here: match and length are put together after generation",
                where="method.advantage_estimator",
                got="remax",
                fix="Choose another estimator",
            )
        thresholds = self.entropy_thresholds
        if len(thresholds) != NUM_TIERS or sorted(set(thresholds)) != thresholds:
            raise ConfigError(
                "not three rising numbers",
                where="method.entropy_thresholds",
                got=thresholds,
                allowed="[lowest of easy, of medium, of hard]",
            )
        if self.max_entropy is not None and self.max_entropy <= thresholds[0]:
            raise ConfigError(
                "no token lies between the first threshold and this",
                where="method.max_entropy",
                got=self.max_entropy,
                allowed=f"float > {thresholds[0]}",
            )
        if "{context}" not in self.prompt_template:
            raise ConfigError(
                "the question does not show the text", where="method.prompt_template", fix="Put {context} into it"
            )
        if self.temperature != 1.0 and self.learns_text:
            raise SupportError(
                "the text would be learnt at the sampling temperature, which is another loss than next-token "
                "prediction",
                where="rollout.temperature",
                got=self.temperature,
                allowed="1.0 while method.use_ntp is on",
            )

    @property
    def learns_text(self) -> bool:
        """Whether the documents are learnt by likelihood beside the RL."""
        return self._on(self.use_ntp) and self.ntp_loss_coef > 0.0

    @property
    def rule(self) -> str:
        """The match rule asked for."""
        return self.match_reward or _RULES[self.variant]

    def _on(self, wanted: bool | None) -> bool:
        return self.variant == "rmt" if wanted is None else wanted


@dataclass
class RMTConfig(NextTokenConfig):
    """Reinforcement mid-training: next-token reasoning with a shrinking thinking budget, easy tokens first, and the
    ordinary next-token loss on all tokens that RL does not use.

    Paper: arXiv 2509.24375. UNVERIFIED there and our choice: length_reward_weight, length_reward_max, the curriculum's
    chances, the thresholds (RPT's), and the mean in the next-token loss.
    """

    use_token_budget: bool | None = option(None, help="Shrinking thinking budget. null = the variant's.")
    token_budget_initial: int = option(800, help="B_0: tokens of thought asked for in the first step.", ge=1)
    token_budget_min: int = option(1, help="B_min: least budget.", ge=1)
    token_budget_decay: float = option(
        0.2, help="Gamma: the budget is B_0 * gamma^(t / T), so gamma * B_0 at the end.", gt=0.0, lt=1.0
    )
    budget_prompt: str = option(BUDGET_PROMPT, help="First line of the question; {budget} stands for B_t.")
    length_reward_weight: float = option(
        0.2, help="w: reward = (1 - w) * match + w * length reward; 0 without budget.", ge=0.0, le=1.0
    )
    length_reward_max: float = option(1.0, help="Length reward of a thought of exactly B_t tokens.", gt=0.0)
    allow_large_length_weight: bool = option(
        False,
        help="Accept w * length_reward_max >= 1 - w: a wrong answer of the right length can then beat a right one.",
    )
    completion_limit: Literal["budget", "fixed"] = option(
        "budget",
        help="budget: at most 2 * B_t + completion_margin tokens are generated; fixed: max_completion_length.",
    )
    completion_margin: int = option(32, help="Tokens for tags and answer beside twice the budget.", ge=1)
    use_curriculum: bool | None = option(None, help="Tiers by a schedule instead of uniform draws. null = variant's.")
    curriculum_start: float = option(0.3, help="t_1 / T: until here the first chances.", ge=0.0, lt=1.0)
    curriculum_end: float = option(0.7, help="t_2 / T: from here on the last chances.", gt=0.0, le=1.0)
    curriculum_probs_start: list[float] = option([0.6, 0.3, 0.1], help="Chances of easy, medium, hard at first.", ge=0)
    curriculum_probs_end: list[float] = option([0.1, 0.3, 0.6], help="Chances of easy, medium, hard at last.", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_budget_initial < self.token_budget_min:
            raise ConfigError(
                "the budget begins below its least value",
                where="method.token_budget_initial",
                got=self.token_budget_initial,
                allowed=f"int >= method.token_budget_min ({self.token_budget_min})",
            )
        if "{budget}" not in self.budget_prompt:
            raise ConfigError(
                "the question does not name the budget", where="method.budget_prompt", fix="Put {budget} into it"
            )
        height = max(1.0, self.length_reward_max)
        # w * height >= 1 - w
        if self.length_weight >= 1.0 / (1.0 + height) and not self.allow_large_length_weight:
            raise ConfigError(
                "a wrong answer of the right length would beat a right one without a thought",
                where="method.length_reward_weight",
                got=self.length_reward_weight,
                allowed=f"0 <= w < {1.0 / (1.0 + height):.3g}, with method.length_reward_max {self.length_reward_max}",
                fix="Lower it, or set method.allow_large_length_weight: true",
            )
        self._check_curriculum()
        if self.has_budget and self.max_completion_length < 2 * self.token_budget_initial:
            warnings.warn(
                f"rollout.max_completion_length is {self.max_completion_length}, below twice the first budget "
                f"({2 * self.token_budget_initial}): long thoughts are cut off and earn nothing",
                UserWarning,
                stacklevel=2,
            )

    def _check_curriculum(self) -> None:
        for name in ("curriculum_probs_start", "curriculum_probs_end"):
            chances = getattr(self, name)
            if len(chances) != NUM_TIERS or abs(sum(chances) - 1.0) > 1e-6:
                raise ConfigError(
                    "not three chances that add up to 1",
                    where=f"method.{name}",
                    got=chances,
                    allowed="[easy, medium, hard], sum 1",
                )
        if self.curriculum_start >= self.curriculum_end:
            raise ConfigError(
                "the curriculum ends before it begins",
                where="method.curriculum_start",
                got=self.curriculum_start,
                allowed=f"float < method.curriculum_end ({self.curriculum_end})",
            )

    @property
    def has_budget(self) -> bool:
        """Whether thoughts have a budget."""
        return self._on(self.use_token_budget)

    @property
    def has_curriculum(self) -> bool:
        """Whether tiers follow a schedule."""
        return self._on(self.use_curriculum)

    @property
    def length_weight(self) -> float:
        """w, 0 without a budget."""
        return self.length_reward_weight if self.has_budget else 0.0

    def budget_at(self, step: int, *, total_steps: int) -> int:
        """B_t = max(B_min, floor(B_0 * gamma^(t / T))); from T on that of T."""
        share = min(step / max(total_steps, 1), 1.0)
        # 1e-9: a budget that is a whole number must not be floored to the one below by rounding.
        return max(
            self.token_budget_min, math.floor(self.token_budget_initial * self.token_budget_decay**share + 1e-9)
        )

    def chances_at(self, step: int, *, total_steps: int) -> list[float]:
        """Chances of the three tiers in an optimizer step."""
        return tier_probabilities(
            step,
            total_steps=total_steps,
            start=self.curriculum_start,
            end=self.curriculum_end,
            first=self.curriculum_probs_start,
            last=self.curriculum_probs_end,
        )
