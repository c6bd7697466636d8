"""Which loss a prompt is trained with, decided from how many of its rollouts were solved."""

from __future__ import annotations

import torch
from torch import Tensor


def switch_to_demonstration(solved: Tensor, verified: Tensor, switch_gate: float) -> Tensor:
    """Which prompts are trained on their demonstration.

    Args:
        solved: (N,) int, rollouts of each prompt whose verdict is 1.
        verified: (N,) int, rollouts that have a verdict; n where none was left unverified.
        switch_gate: gamma in [0, 1), or -1 for never.

    Returns:
        (N,) bool: solved / verified <= gamma, compared as integers: solved <= floor(gamma * verified + 1e-9). False
        where nothing was verified: such a prompt is not known to be hard.

    Source: arXiv 2509.04419, gate of the hybrid trainer.
    Deviation: the success rate is over verified rollouts; the paper's verifier has a verdict on each.
    """
    if switch_gate < 0:
        return torch.zeros_like(solved, dtype=torch.bool)
    most = (switch_gate * verified.double() + 1e-9).floor()
    return (solved <= most) & (verified > 0)
