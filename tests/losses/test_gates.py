"""The gate compares counts, so that no rounding moves it."""

from __future__ import annotations

import pytest
import torch

from posttrain.losses.gates import switch_to_demonstration


@pytest.mark.parametrize(
    ("gate", "n", "switched"),
    [
        (0.0, 8, [0]),
        (1 / 8, 8, [0, 1]),
        (2 / 8, 8, [0, 1, 2]),
        (0.3, 10, [0, 1, 2, 3]),  # 0.3 * 10 is 2.999...96 in floating point; the paper's comparison means 3
        (0.99, 4, [0, 1, 2, 3]),
        (-1.0, 8, []),
    ],
)
def test_gate_compares_counts(gate, n, switched):
    solved = torch.arange(n + 1)
    verified = torch.full_like(solved, n)
    assert switch_to_demonstration(solved, verified, gate).nonzero().flatten().tolist() == switched


def test_unverified_rollouts_do_not_count_as_failures():
    # Gate 2/8: two of two right, none of three right, one of four right, nothing known.
    solved, verified = torch.tensor([2, 0, 1, 0]), torch.tensor([2, 3, 4, 0])
    assert switch_to_demonstration(solved, verified, 0.25).tolist() == [False, True, True, False]
