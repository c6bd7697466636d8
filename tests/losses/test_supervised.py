"""Supervised per-token losses against cross-entropy, each other's definitions and the estimator's presets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from posttrain.losses.reductions import LossCounts, reduce_loss
from posttrain.losses.supervised import dft_loss, nll_loss, uncertainty_weighted_loss
from posttrain.losses.upge import UPGE_PRESETS, upge_loss

LOSSES = {"sft": nll_loss, "dft": dft_loss}


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 6, 11, generator=generator, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(11, (4, 6), generator=generator)
    mask = torch.rand(4, 6, generator=generator) < 0.6
    return logits, tokens, mask


def target_logps(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def test_values_of_a_row_computed_by_hand():
    logps, mask = torch.tensor([[0.5, 0.25, 0.1]], dtype=torch.float64).log(), torch.tensor([[1, 1, 0]])
    nll, dft = nll_loss(logps, mask), dft_loss(logps, mask)
    assert nll.values.tolist() == [pytest.approx([math.log(2), math.log(4), 0.0])]
    assert dft.values.tolist() == [pytest.approx([0.5 * math.log(2), 0.25 * math.log(4), 0.0])]
    assert nll.reduction == dft.reduction == "token_mean"


@pytest.mark.parametrize("seed", range(4))
def test_nll_equals_cross_entropy_in_value_and_gradient(seed):
    logits, tokens, mask = batch(seed)
    counts = LossCounts(rows=4, tokens=mask.sum().item(), max_completion_length=6)
    loss = reduce_loss(nll_loss(target_logps(logits, tokens), mask), mask, counts=counts)
    labels = tokens.masked_fill(~mask, -100).view(-1)
    expected = F.cross_entropy(logits.view(-1, 11), labels, ignore_index=-100)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    found, wanted = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("preset", LOSSES)
def test_gradient_equals_the_estimators_preset(preset):
    logits, tokens, mask = batch()
    logps = target_logps(logits, tokens)
    one = LOSSES[preset](logps, mask)
    other = upge_loss(logps, None, torch.ones(4), mask, config=UPGE_PRESETS[preset])
    assert one.reduction == other.reduction
    found, wanted = (torch.autograd.grad(x.values.sum(), logits, retain_graph=True)[0] for x in (one, other))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-16)


def test_dft_gradient_is_that_of_the_probability():
    """The factor is constant, so the gradient is - p * grad log p = - grad p."""
    logits, tokens, mask = batch(1)
    logps = target_logps(logits, tokens)
    (found,) = torch.autograd.grad(dft_loss(logps, mask).values.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-logps.exp()[mask].sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-16)


def test_gradcheck_of_nll():
    logits, tokens, mask = batch(2)
    assert torch.autograd.gradcheck(lambda x: nll_loss(target_logps(x, tokens), mask).values, (logits,))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_masked_positions_may_hold_anything(loss, bad):
    logps = torch.tensor([[-1.0, bad], [bad, bad]], requires_grad=True)
    mask = torch.tensor([[1, 0], [0, 0]])
    output = loss(logps, mask)
    output.values.sum().backward()
    assert output.values[0, 0] > 0 and output.values[mask == 0].tolist() == [0, 0, 0]
    assert logps.grad[0, 0] < 0 and logps.grad[mask == 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_everything_masked_gives_an_exact_zero_with_a_graph(loss):
    logps, mask = torch.full((2, 3), -1.0, requires_grad=True), torch.zeros(2, 3)
    total = reduce_loss(loss(logps, mask), mask, counts=LossCounts(2, 0, 3))
    total.backward()
    assert total.item() == 0.0 and torch.equal(logps.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_precision_and_shapes(loss):
    assert loss(torch.zeros(1, 2, dtype=torch.bfloat16), torch.ones(1, 2)).values.dtype == torch.float32
    assert loss(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2)).values.dtype == torch.float64
    for logps, mask in ((torch.zeros(2, 3), torch.ones(2, 2)), (torch.zeros(3), torch.ones(3))):
        with pytest.raises(ValueError, match=r"must have the same shape \(B, T\)"):
            loss(logps, mask)


def test_uncertainty_weight_by_hand_in_value_and_gradient():
    """p (1 - p) = .25, .1875 and .09; the factor is held constant."""
    logps = torch.tensor([[0.5, 0.25, 0.9, 0.3]], dtype=torch.float64).log().requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0]])
    output = uncertainty_weighted_loss(logps, mask)
    expected = [0.25 * math.log(2), 0.1875 * math.log(4), -0.09 * math.log(0.9), 0.0]
    assert output.values.tolist() == [pytest.approx(expected)] and output.reduction == "token_mean"
    (found,) = torch.autograd.grad(output.values.sum(), logps)
    assert found.tolist() == [pytest.approx([-0.25, -0.1875, -0.09, 0.0])]
