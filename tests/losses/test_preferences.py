"""Losses on pairs: by hand, against loops over the equations, their limits and gradients, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.preferences import (
    hinge_preference_loss,
    ipo_loss,
    log_ratio_margin,
    robust_preference_loss,
    sigmoid_preference_loss,
    simpo_loss,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_margin_by_hand():
    # (-2 + 3) - (-5 + 4) = 1 + 1 = 2; and where the policy is the reference, 0.
    margin = log_ratio_margin(
        *(torch.tensor([a, b]) for a, b in ((-2.0, -7.0), (-5.0, -1.0), (-3.0, -7.0), (-4.0, -1.0)))
    )
    assert margin.tolist() == [2.0, 0.0] and margin.dtype == torch.float32


def test_losses_by_hand():
    h = torch.tensor([0.0, 2.0])
    # beta 0.5: sigmoid(0) = 1/2; beta h = 1.
    assert sigmoid_preference_loss(h, beta=0.5).tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1))])
    # 1 / (2 * 0.5) = 1: (0 - 1)^2 = 1 and (2 - 1)^2 = 1; beta 0.25: 1 / 0.5 = 2: 4 and 0.
    assert ipo_loss(h, beta=0.5).tolist() == [1.0, 1.0] and ipo_loss(h, beta=0.25).tolist() == [4.0, 0.0]
    # 1 - 0.25 * 2 = 0.5.
    assert hinge_preference_loss(h, beta=0.25).tolist() == [1.0, 0.5]
    assert hinge_preference_loss(h, beta=1.0).tolist() == [1.0, 0.0]
    # e = 0.25, beta h = 1: (-0.75 log s(1) + 0.25 log s(-1)) / 0.5 = (0.75 * 0.3133 - 0.25 * 1.3133) / 0.5 = -0.1867.
    assert robust_preference_loss(h, beta=0.5, flip_prob=0.25)[1].item() == pytest.approx(-0.18674, abs=1e-5)
    # 2 * (-0.5 + 1.5) - 1 = 1.
    found = simpo_loss(torch.tensor([-0.5]), torch.tensor([-1.5]), beta=2.0, target_margin=1.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_losses_are_the_equations_in_a_loop():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(50, generator=generator, dtype=torch.float64) * 5 for _ in range(4)]
    margin, beta, e = log_ratio_margin(*parts), 0.3, 0.1
    for row in range(50):
        c, r, rc, rr = (float(part[row]) for part in parts)
        h = (c - rc) - (r - rr)
        assert float(margin[row]) == pytest.approx(h)
        right, flipped = math.log(sigmoid(beta * h)), math.log(sigmoid(-beta * h))
        assert float(sigmoid_preference_loss(margin, beta=beta)[row]) == pytest.approx(-right)
        robust = robust_preference_loss(margin, beta=beta, flip_prob=e)
        assert float(robust[row]) == pytest.approx((-(1 - e) * right + e * flipped) / (1 - 2 * e))
        assert float(ipo_loss(margin, beta=beta)[row]) == pytest.approx((h - 1 / (2 * beta)) ** 2)
        assert float(hinge_preference_loss(margin, beta=beta)[row]) == pytest.approx(max(0.0, 1 - beta * h))
        wanted = -math.log(sigmoid(beta * (c - r) - 0.7))
        assert float(simpo_loss(parts[0], parts[1], beta=beta, target_margin=0.7)[row]) == pytest.approx(wanted)


def test_limits():
    h = torch.linspace(-30, 30, 13, dtype=torch.float64)
    plain = sigmoid_preference_loss(h, beta=0.7)
    assert torch.equal(robust_preference_loss(h, beta=0.7, flip_prob=0.0), plain)
    # The mean over flipped labels is the loss on the true ones.
    e = 0.2
    mean = (1 - e) * robust_preference_loss(h, beta=0.7, flip_prob=e)
    mean = mean + e * robust_preference_loss(-h, beta=0.7, flip_prob=e)
    assert torch.allclose(mean, plain)
    assert torch.allclose(simpo_loss(h, torch.zeros_like(h), beta=0.7, target_margin=0.0), plain)
    assert torch.isfinite(sigmoid_preference_loss(torch.tensor([-1e4, 1e4]), beta=1.0)).all()


def test_gradients():
    chosen = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    rejected = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    sigmoid_preference_loss(log_ratio_margin(chosen, rejected, zeros, zeros), beta=0.4).sum().backward()
    assert (chosen.grad.item(), rejected.grad.item(), zeros.grad) == (pytest.approx(-0.2), pytest.approx(0.2), None)
    inputs = tuple(torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ref = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    for loss in (
        lambda h: sigmoid_preference_loss(h, beta=0.5),
        lambda h: robust_preference_loss(h, beta=0.5, flip_prob=0.3),
        lambda h: ipo_loss(h, beta=0.5),
    ):
        assert torch.autograd.gradcheck(lambda c, r, loss=loss: loss(log_ratio_margin(c, r, *ref)), inputs)
    assert torch.autograd.gradcheck(lambda c, r: simpo_loss(c, r, beta=2.0, target_margin=0.5), inputs)


def test_what_is_refused():
    h = torch.zeros(2)
    for loss in (sigmoid_preference_loss, ipo_loss, hinge_preference_loss):
        with pytest.raises(ValueError, match="beta is 0; it must be above 0"):
            loss(h, beta=0)
    with pytest.raises(ValueError, match=r"flip_prob is 0.5; it must be in \[0, 0.5\)"):
        robust_preference_loss(h, beta=1.0, flip_prob=0.5)
    with pytest.raises(ValueError, match="target_margin is -1; it must be 0 or more"):
        simpo_loss(h, h, beta=1.0, target_margin=-1)
    with pytest.raises(ValueError, match=r"log-probs have shapes \[\(2,\), \(3,\)\]"):
        log_ratio_margin(h, h, h, torch.zeros(3))
