"""Which loss a prompt is trained with, decided from how many of its rollouts were solved."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def switch_to_demonstration(solved: Tensor, num_generations: int, switch_gate: float) -> Tensor:
    """Which prompts are trained on their demonstration.

    Args:
        solved: (N,) int, rollouts of each prompt whose verdict is 1.
        num_generations: n.
        switch_gate: gamma in [0, 1), or -1 for never.

    Returns:
        (N,) bool: solved / n <= gamma, compared as integers: solved <= floor(gamma * n + 1e-9).

    Source: arXiv 2509.04419, gate of the hybrid trainer.
    """
    if switch_gate < 0:
        return torch.zeros_like(solved, dtype=torch.bool)
    return solved <= math.floor(switch_gate * num_generations + 1e-9)
