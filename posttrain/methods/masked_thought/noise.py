"""Noise on the input tokens of a row whose labels stay as they are: how much, where, and what stands there instead.

Paper: arXiv 2403.02178. Every draw comes from a generator that belongs to (seed, epoch, row) alone. Changing the
labels, attention or positions is left to the caller.

Axes: S tokens of a row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ("linear", "constant", "linear_plus_one")


def noise_rate(step: int, total_steps: int, *, ratio: float, warmup_ratio: float, schedule: str) -> float:
    """Chance that a token is replaced in an optimizer step: ratio * min(1, step / (warmup_ratio * total_steps)).

    Args:
        step: optimizer steps made so far, from 0.
        total_steps: of the whole run.
        ratio: the largest chance, in [0, 1).
        warmup_ratio: part of the run over which the chance rises from 0, in [0, 1]; 0 = at once.
        schedule: "linear"; "constant", always `ratio`; "linear_plus_one", whose ramp is one step longer.

    Raises:
        ValueError: unknown schedule.

    Source: arXiv 2403.02178, section 3; "linear_plus_one" is the form of the official trainer.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; allowed: {', '.join(SCHEDULES)}")
    ramp = warmup_ratio * total_steps + (schedule == "linear_plus_one")
    if schedule == "constant" or step >= ramp:
        return ratio
    return min(ratio, ratio * step / ramp)


def row_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Generator of one row in one pass over the data, whatever else was drawn before."""
    digest = hashlib.sha256(f"token noise/{seed}/{epoch}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


@dataclass(frozen=True)
class Replacement:
    """What a noised token becomes.

    Attributes:
        mask_id: id of the mask token; None only if `random_prob` is 1.
        random_ids: (K,) ids to draw from, each as likely; may be empty if `random_prob` is 0.
        random_prob: chance that a noised token becomes a random one instead of the mask.
    """

    mask_id: int | None
    random_ids: Tensor
    random_prob: float


def corrupt_target_inputs(
    input_ids: Tensor, target_mask: Tensor, *, rate: float, replacement: Replacement, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Input ids of one row with every token of `target_mask` replaced with chance `rate`, independently.

    Args:
        input_ids: (S,) int64; not changed.
        target_mask: (S,) bool; True = the token may be replaced.
        rate: in [0, 1].
        replacement: what a replaced token becomes. A random token may equal the true one.
        generator: of this row. Which tokens are replaced depends on it, the rate and the number of True alone, so it
            is the same for every kind of replacement.

    Returns:
        (S,) int64 ids and (S,) bool, True = replaced. Equal to the input if the rate is 0.

    Source: arXiv 2403.02178, section 3.
    """
    count = int(target_mask.sum())
    is_replaced = torch.rand(count, generator=generator) < rate
    choice = torch.rand(count, generator=generator)
    becomes = torch.full((count,), -1 if replacement.mask_id is None else replacement.mask_id)
    if replacement.random_prob > 0:
        drawn = torch.randint(len(replacement.random_ids), (count,), generator=generator)
        becomes = torch.where(choice < replacement.random_prob, replacement.random_ids[drawn], becomes)
    ids, noised = input_ids.clone(), torch.zeros_like(target_mask)
    noised[target_mask] = is_replaced
    ids[noised] = becomes[is_replaced]
    return ids, noised
