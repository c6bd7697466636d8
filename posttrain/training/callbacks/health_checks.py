"""What makes a training run unhealthy, read from its logs: one class a condition, with the advice that goes with it.

A log line covers the optimizer steps since the one before it, so "for 20 steps" means the same whatever the logging
interval. Every threshold is our choice, made so that runs which learn stay silent; none is from a paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class HealthLimits:
    """When a condition counts. Fractions lie in [0, 1]."""

    sustained_steps: int = 20  # optimizer steps in a row on which a lasting condition must hold
    dead_fraction: float = 0.9  # prompt groups without contrast
    truncated_fraction: float = 0.2  # completions cut off
    entropy_fraction: float = 0.1  # of its first value
    length_shrink: float = 0.25  # of the first mean length
    length_growth: float = 4.0  # times the first mean length
    logp_difference: float = 0.1  # nats per token, mean, between the engine and the trainer
    zero_gradient_logs: int = 3  # log lines in a row with a gradient of exactly zero
    gradient_spike: float = 20.0  # times the median of the last 20 log lines
    slow_factor: float = 3.0  # times the seconds per step at the beginning
    spare_checkpoints: float = 3.0  # disk space, in checkpoints, below which to warn


@dataclass(frozen=True)
class Log:
    """One log line of the trainer and the steps it covers."""

    step: int
    first_step: int
    seconds_per_step: float  # NaN where no step was timed
    values: Mapping[str, Any]

    def get(self, *names: str) -> float:
        """The first of these metrics that is a number, NaN if there is none."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return math.nan


@dataclass(frozen=True)
class Finding:
    """Something is wrong: since which step, and in words what it is and what to change."""

    since: int
    text: str


class Check:
    """A condition."""

    name: str = ""
    needs: tuple[str, ...] = ()  # metrics; without any of them the check cannot see anything

    def __init__(self, limits: HealthLimits):
        self.limits = limits

    def applies(self, log: Log) -> bool:
        """Whether the line holds what the check needs."""
        return not self.needs or any(metric in log.values for metric in self.needs)

    def look(self, log: Log) -> Finding | None:
        """Called with every log line until it gives a finding: as soon as the condition has held long enough."""
        raise NotImplementedError


class Lasting(Check):
    """A condition that must hold for a number of steps in a row."""

    def __init__(self, limits: HealthLimits):
        super().__init__(limits)
        self._since: int | None = None

    def holds(self, log: Log) -> bool:
        """Whether this line shows the condition."""
        raise NotImplementedError

    def text(self, log: Log) -> str:
        """What is seen, and what to change."""
        raise NotImplementedError

    def look(self, log: Log) -> Finding | None:
        """A finding once the condition has held for `sustained_steps`."""
        if not self.holds(log):
            self._since = None
            return None
        self._since = log.first_step if self._since is None else self._since
        if log.step - self._since + 1 < self.limits.sustained_steps:
            return None
        return Finding(self._since, self.text(log))


class DeadGroups(Lasting):
    """Prompt groups in which every completion got the same verdict and no demonstration is trained on."""

    name = "dead_groups"
    needs = ("groups/all_wrong", "groups/all_correct")

    def holds(self, log: Log) -> bool:
        """Whether almost no group has contrast."""
        demonstrated = log.get("gate/sft_fraction")
        dead = log.get("groups/all_wrong") + log.get("groups/all_correct")
        return dead - (0.0 if math.isnan(demonstrated) else demonstrated) > self.limits.dead_fraction

    def text(self, log: Log) -> str:
        """Distinguishes what is too hard from what is too easy."""
        wrong, correct = log.get("groups/all_wrong"), log.get("groups/all_correct")
        advice = (
            "The prompts are too hard: use easier ones, a larger rollout.num_generations, or a method that learns "
            "from demonstrations, too"
            if wrong >= correct
            else "The prompts are too easy: use harder ones"
        )
        return (
            f"{wrong + correct:.0%} of the prompt groups have no contrast (all attempts wrong in {wrong:.0%}, all "
            f"correct in {correct:.0%}), so almost nothing is learned from them. {advice}."
        )


class Truncation(Lasting):
    """Completions that reach the length limit."""

    name = "truncation"
    needs = ("rollout/truncated_fraction", "completions/clipped_ratio")

    def holds(self, log: Log) -> bool:
        """Whether many are cut off."""
        return log.get(*self.needs) > self.limits.truncated_fraction

    def text(self, log: Log) -> str:
        """Names the limit."""
        return (
            f"{log.get(*self.needs):.0%} of the completions are cut off at the length limit and count as wrong. Raise "
            "rollout.max_completion_length; if completions never end by themselves, check that the model's "
            "end-of-sequence token is the one its chat template uses."
        )


class EntropyCollapse(Lasting):
    """The policy hardly varies any more. Only of runs with rollouts: supervised training lowers entropy by design."""

    name = "entropy_collapse"
    needs = ("entropy", "reward")

    def __init__(self, limits: HealthLimits):
        super().__init__(limits)
        self._first = math.nan

    def applies(self, log: Log) -> bool:
        """Whether the run generates and its entropy is logged."""
        return all(metric in log.values for metric in self.needs)

    def holds(self, log: Log) -> bool:
        """Whether the entropy is far below its first value."""
        entropy = log.get("entropy")
        if math.isnan(log.get("reward")) or math.isnan(entropy):
            return False
        self._first = entropy if math.isnan(self._first) else self._first
        return entropy < self.limits.entropy_fraction * self._first

    def text(self, log: Log) -> str:
        """Names what keeps entropy up."""
        return (
            f"the entropy fell from {self._first:.3g} to {log.get('entropy'):.3g} nats per token: attempts at a "
            "prompt are nearly the same, and exploration ends. Lower trainer.learning_rate, or raise "
            "trainer.entropy_coef, trainer.beta or rollout.temperature."
        )


class LengthDrift(Lasting):
    """Completions that become much shorter or much longer than they were at the start."""

    name = "length_drift"
    needs = ("completions/mean_length",)

    def __init__(self, limits: HealthLimits):
        super().__init__(limits)
        self._first = math.nan

    def holds(self, log: Log) -> bool:
        """Whether the mean length left its range."""
        length = log.get(*self.needs)
        self._first = length if math.isnan(self._first) else self._first
        shrunk = length < self.limits.length_shrink * self._first
        return shrunk or length > self.limits.length_growth * self._first

    def text(self, log: Log) -> str:
        """Says which way."""
        length = log.get(*self.needs)
        seen = f"the mean length of completions went from {self._first:.0f} to {length:.0f} tokens"
        if length < self._first:
            return (
                f"{seen}: it collapses. Check whether rollout.rewards favour short text; lower trainer.learning_rate."
            )
        return (
            f"{seen}: it explodes. Check whether rollout.rewards favour long text, and whether completions repeat "
            "themselves; lower trainer.learning_rate."
        )


class LogProbMismatch(Lasting):
    """The generation engine and the trainer disagree on the probability of the sampled tokens."""

    name = "log_prob_mismatch"
    needs = ("sampling/sampling_logp_difference/mean",)

    def holds(self, log: Log) -> bool:
        """Whether the mean absolute difference is large."""
        return log.get(*self.needs) > self.limits.logp_difference

    def text(self, log: Log) -> str:
        """Names the usual causes."""
        return (
            f"the engine's and the trainer's log-probabilities differ by {log.get(*self.needs):.3g} nats per token on "
            "average, so rollouts come from another policy than the one that is trained. Use one model.dtype for "
            "both, check that the engine gets the new weights, and keep rollout.vllm_importance_sampling_mode on."
        )


class NoRewardSpread(Lasting):
    """Every completion of a batch gets the same reward."""

    name = "no_reward_spread"
    needs = ("reward_std",)

    def holds(self, log: Log) -> bool:
        """Whether the deviation is exactly zero."""
        return log.get(*self.needs) == 0

    def text(self, log: Log) -> str:
        """Suspects the reward before the model."""
        return (
            f"every completion gets the same reward ({log.get('reward'):.3g}). Look at completions/ and at "
            "rollout.rewards: a wrong answer column or answer format gives every completion the same."
        )


class ZeroGradient(Check):
    """Updates that change nothing, several log lines in a row."""

    name = "zero_gradient"
    needs = ("grad_norm",)

    def __init__(self, limits: HealthLimits):
        super().__init__(limits)
        self._lines: list[int] = []

    def look(self, log: Log) -> Finding | None:
        """A finding after `zero_gradient_logs` lines in a row."""
        norm = log.get(*self.needs)
        if math.isnan(norm):
            return None
        self._lines = [*self._lines, log.step] if norm == 0 else []
        if len(self._lines) < self.limits.zero_gradient_logs:
            return None
        return Finding(
            self._lines[0],
            f"the gradient was exactly zero in {len(self._lines)} log lines in a row: nothing is learned. See "
            "groups/* for groups without contrast; check that parameters are trainable (model.lora) and that "
            "trainer.learning_rate or a mask does not switch everything off.",
        )


class FailedRewards(Check):
    """Completions that a reward function could not score."""

    name = "failed_rewards"
    needs = ("reward/<name>/failed_fraction",)

    def applies(self, log: Log) -> bool:
        """Whether any reward counts its failures."""
        return any(is_failed_fraction(metric) for metric in log.values)

    def look(self, log: Log) -> Finding | None:
        """A finding at the first failure."""
        failed = {key: log.get(key) for key in log.values if is_failed_fraction(key) and log.get(key) > 0}
        if not failed:
            return None
        shown = ", ".join(f"{key.split('/')[1]} {value:.1%}" for key, value in failed.items())
        return Finding(
            log.first_step,
            f"a reward function failed on some completions ({shown}); they are left out of training. Correct the "
            "function named in rollout.rewards; rollout.max_failed_fraction says when this stops the run.",
        )


class GradientSpike(Check):
    """A gradient norm far above the usual, or not finite."""

    name = "gradient_spike"
    needs = ("grad_norm",)

    def __init__(self, limits: HealthLimits):
        super().__init__(limits)
        self._norms: list[float] = []

    def look(self, log: Log) -> Finding | None:
        """A finding at the first spike after ten finite norms, or at the first norm that is not finite."""
        if log.values.get("grad_norm") is None:
            return None
        norm = log.get("grad_norm")
        advice = "Lower trainer.learning_rate or trainer.max_grad_norm, or raise trainer.warmup_steps."
        if not math.isfinite(norm):
            return Finding(log.first_step, f"the gradient norm is {norm}. {advice}")
        usual = median(self._norms) if len(self._norms) >= 10 else math.inf
        self._norms = [*self._norms[-19:], norm]
        if norm <= self.limits.gradient_spike * usual or usual == 0:
            return None
        return Finding(
            log.first_step,
            f"the gradient norm jumped to {norm:.3g}, {norm / usual:.0f} times the usual {usual:.3g}. {advice}",
        )


class SlowSteps(Check):
    """Steps that take much longer than at the beginning."""

    name = "slow_steps"
    lines = 5  # log lines at the beginning, after the first, and now

    def __init__(self, limits: HealthLimits):
        super().__init__(limits)
        self._seconds: list[tuple[int, float]] = []

    def look(self, log: Log) -> Finding | None:
        """A finding when the median of the last five lines is far above that of the first five."""
        if not math.isfinite(log.seconds_per_step):
            return None
        self._seconds.append((log.first_step, log.seconds_per_step))
        # The first line holds what happens once: compilation, warm caches.
        if len(self._seconds) < 1 + 2 * self.lines:
            return None
        first = median(seconds for _, seconds in self._seconds[1 : 1 + self.lines])
        now = median(seconds for _, seconds in self._seconds[-self.lines :])
        if now <= self.limits.slow_factor * first:
            return None
        return Finding(
            self._seconds[-self.lines][0],
            f"a step takes {now:.3g} s, {now / first:.1f} times as long as at the beginning ({first:.3g} s). See "
            "whether completions became longer (rollout.max_completion_length), another process uses the machine, "
            "memory is swapped, or a reward function waits.",
        )


def is_failed_fraction(metric: str) -> bool:
    """Whether a metric is the share of completions that a reward function failed on."""
    return metric.startswith("reward/") and metric.endswith("/failed_fraction")


def all_checks(limits: HealthLimits) -> list[Check]:
    """Every check, fresh."""
    kinds: tuple[type[Check], ...] = (
        *(DeadGroups, Truncation, EntropyCollapse, LengthDrift, LogProbMismatch, NoRewardSpread),
        *(ZeroGradient, FailedRewards, GradientSpike, SlowSteps),
    )
    return [kind(limits) for kind in kinds]
