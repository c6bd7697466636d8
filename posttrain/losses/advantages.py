"""Advantages from outcome rewards: every row of a prompt's group against the others.

Axes: B rows, N prompts, G rows per prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.losses.reductions import compute_dtype
from posttrain.losses.upge_config import GROUP_ESTIMATORS, UPGEConfig


def group_advantages(
    rewards: Tensor,
    num_generations: int,
    *,
    config: UPGEConfig,
    is_offline: Tensor | None = None,
    greedy_rewards: Tensor | None = None,
) -> Tensor:
    """Advantage of every row, for the group estimators relative to the rows of its prompt.

    Args:
        rewards: (B,), any finite number; rows of one prompt are adjacent. NaN = not scored. For `external` these are
            the advantages themselves.
        num_generations: G, rows per prompt, demonstrations included.
        config: its advantage_estimator, advantage_group and advantage_eps.
        is_offline: (B,) bool, True = demonstration; `advantage_group: on_policy` keeps those out of the baseline.
        greedy_rewards: (B,) for `remax` alone: reward of a greedy completion of the row's prompt; NaN = not scored.

    Returns:
        (B,) float32 (float64 if the rewards are), without gradient. Exactly 0 for NaN rewards (also of the greedy
        completion), for rollouts whose group's rewards are all equal (remax: equal to the greedy completion's), and
        where no row of the group counts; for a whole group without deviation in group_norm. The deviation is the
        sample one (n - 1).

    Raises:
        ValueError: shapes, a number of rows not divisible by G, G < 2 with a group estimator, infinite rewards, greedy
            rewards missing for remax or given for another estimator.

    Source: arXiv 2509.04419, table 1; arXiv 2402.14740 (rloo); arXiv 2310.10505, algorithm 2 (remax). Deviation:
    `sign` maps a reward of 0 to -1, so that verdicts in {0, 1} give the table's +-1.
    """
    smallest = 2 if config.advantage_estimator in GROUP_ESTIMATORS else 1
    if rewards.dim() != 1 or (is_offline is not None and is_offline.shape != rewards.shape):
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}; expected (B,), and the same for is_offline")
    if num_generations < smallest or rewards.numel() % num_generations:
        raise ValueError(
            f"num_generations is {num_generations} for {rewards.numel()} rewards; it must be at least {smallest} for "
            f"advantage_estimator {config.advantage_estimator} and divide their number"
        )
    if (config.advantage_estimator == "remax") != (greedy_rewards is not None):
        raise ValueError(f"greedy_rewards belong to remax; advantage_estimator is {config.advantage_estimator}")
    values = rewards.detach().to(compute_dtype(rewards))
    if greedy_rewards is not None:
        values = values - greedy_rewards.detach().to(values.dtype)
    if values.isinf().any():
        raise ValueError("rewards contain an infinite value; a row that could not be scored is NaN")
    is_scored = ~values.isnan()
    if config.advantage_estimator in GROUP_ESTIMATORS:
        is_counted = is_scored
        if config.advantage_group == "on_policy" and is_offline is not None:
            is_counted = is_scored & ~is_offline.bool()
        shape = (-1, num_generations)
        advantages = _relative_to_group(values.view(shape), is_counted.view(shape), config).view(-1)
    elif config.advantage_estimator in ("external", "remax"):
        advantages = values
    elif config.advantage_estimator == "sign":
        advantages = torch.where(values > 0, torch.ones_like(values), -torch.ones_like(values))
    else:
        advantages = torch.ones_like(values)
    return advantages.masked_fill(~is_scored, 0.0)


def _relative_to_group(rewards: Tensor, is_counted: Tensor, config: UPGEConfig) -> Tensor:
    """(N, G) rewards minus the baseline that the group's `is_counted` rows make, scaled as the estimator asks."""
    count = is_counted.sum(dim=1, keepdim=True)
    low = rewards.masked_fill(~is_counted, torch.inf).amin(dim=1, keepdim=True)
    high = rewards.masked_fill(~is_counted, -torch.inf).amax(dim=1, keepdim=True)
    mean = rewards.masked_fill(~is_counted, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    # The mean of equal numbers can differ from them in the last bit, which a tiny deviation would blow up.
    mean = torch.where(low == high, low, mean)
    centred = rewards - mean
    if config.advantage_estimator == "rloo":
        # The mean of the others: a row that is not counted is already compared with all counted ones.
        centred = torch.where(is_counted, centred * count / (count - 1).clamp(min=1), centred)
    if config.advantage_estimator == "group_norm":
        squares = centred.square().masked_fill(~is_counted, 0.0).sum(dim=1, keepdim=True)
        deviation = (squares / (count - 1).clamp(min=1)).sqrt()
        is_flat = deviation == 0
        centred = (centred / (deviation + config.advantage_eps).masked_fill(is_flat, 1.0)).masked_fill(is_flat, 0.0)
    return centred.masked_fill(count == 0, 0.0)
