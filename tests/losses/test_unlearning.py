"""Unlearning losses against the specification's numbers, a literal reference, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.kl import exact_forward_kl, exact_kl
from posttrain.losses.reductions import LossCounts, LossOutput, reduce_loss
from posttrain.losses.unlearning import (
    dpo_loss,
    embed_diff_loss,
    ga_loss,
    kl_loss,
    npo_loss,
    rmu_loss,
    sequence_sums,
    simnpo_loss,
    steering_vector,
)

# Sums of log pi of -3 and -8 over 3 and 2 tokens; beyond the mask anything may stand.
LOGPS = torch.tensor([[-1.0, -0.5, -1.5], [-6.0, -2.0, float("nan")]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
REF = torch.tensor([-2.0, -10.0], dtype=torch.float64)


def reduced(output: LossOutput, mask=MASK, rows: float = 2, tokens: float = 5) -> torch.Tensor:
    return reduce_loss(output, mask, counts=LossCounts(rows=rows, tokens=tokens, max_completion_length=9))


def gradient(function) -> torch.Tensor:
    logps = LOGPS.clone().requires_grad_()
    reduced(function(logps)).backward()
    return logps.grad


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 14.4253553), (0.5, 3.5746773)])
def test_npo_numbers(beta, expected):
    assert reduced(npo_loss(LOGPS, MASK, REF, beta=beta)).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 13.8629436), (0.5, 2.7725887)])
def test_npo_starts_at_two_over_beta_times_ln_two(beta, expected):
    output = npo_loss(LOGPS, MASK, sequence_sums(LOGPS, MASK), beta=beta)
    assert reduced(output).item() == pytest.approx(expected, abs=1e-7) == pytest.approx(2 / beta * math.log(2))


def test_npo_weighs_the_gradient_of_each_sequence():
    found = gradient(lambda logps: npo_loss(logps, MASK, REF, beta=0.5))
    assert found[0].tolist() == pytest.approx([0.75508134 / 2] * 3, abs=1e-8)
    assert found[1].tolist() == pytest.approx([1.46211716 / 2] * 2 + [0.0], abs=1e-8)


def test_npo_begins_as_gradient_ascent_of_sequences():
    found = gradient(lambda logps: npo_loss(logps, MASK, sequence_sums(LOGPS, MASK), beta=0.5))
    ascent = gradient(lambda logps: LossOutput(ga_loss(logps, MASK).values, "seq_mean_token_sum"))
    assert torch.allclose(found, ascent, atol=1e-12)


def test_npo_tends_to_gradient_ascent_as_beta_falls():
    found = gradient(lambda logps: npo_loss(logps, MASK, REF, beta=1e-8))
    ascent = gradient(lambda logps: LossOutput(ga_loss(logps, MASK).values, "seq_mean_token_sum"))
    assert torch.allclose(found, ascent, atol=1e-7)


def test_ascent_is_the_negative_of_the_likelihood_loss():
    output = ga_loss(LOGPS, MASK)
    assert reduced(output).item() == pytest.approx(-11 / 5)
    assert output.reduction == "token_mean"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"beta": 4.5}, 0.07349225),
        ({"beta": 4.5, "margin": 0.1}, 0.10980700),
        ({"beta": 1.0, "length_normalize": False}, 0.46808189),
    ],
)
def test_simnpo_numbers_of_both_forms(options, expected):
    logps = torch.tensor([[-0.5] * 4, [-0.3] * 3 + [float("inf")]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    output = simnpo_loss(logps, mask, **options)
    assert reduced(output, mask, tokens=7).item() == pytest.approx(expected, abs=1e-8)


def test_dpo_number():
    rejected, mask = torch.tensor([[-4.0, -5.0]], dtype=torch.float64), torch.ones(1, 2)
    one = [torch.tensor([value], dtype=torch.float64) for value in (-5.0, -6.0, -4.0)]
    output = dpo_loss(one[0], rejected, mask, one[1], one[2], beta=0.1)
    assert reduced(output, mask, rows=1, tokens=2).item() == pytest.approx(8.74975901, abs=1e-8)


def test_dpo_gradient_against_finite_differences():
    chosen = torch.tensor([-1.3, -0.2], dtype=torch.float64, requires_grad=True)
    rejected = LOGPS.nan_to_num().clone().requires_grad_()
    ref = REF / 3

    def value(chosen, rejected):
        return reduced(dpo_loss(chosen, rejected, MASK, ref, REF, beta=0.7))

    assert torch.autograd.gradcheck(value, (chosen, rejected))


@pytest.mark.parametrize("form", ["npo", "simnpo", "simnpo_sum"])
def test_gradients_against_finite_differences(form):
    logps = LOGPS.nan_to_num().clone().requires_grad_()
    losses = {
        "npo": lambda x: npo_loss(x, MASK, REF, beta=0.3),
        "simnpo": lambda x: simnpo_loss(x, MASK, beta=2.5, margin=0.2),
        "simnpo_sum": lambda x: simnpo_loss(x, MASK, beta=1.0, length_normalize=False),
    }
    assert torch.autograd.gradcheck(lambda x: reduced(losses[form](x)), (logps,))


def test_losses_against_a_literal_reference():
    torch.manual_seed(0)
    logps, mask = -torch.rand(5, 7, dtype=torch.float64) * 3, torch.rand(5, 7) < 0.6
    mask[:, 0], mask[2] = True, False  # a row without a token
    ref = -torch.rand(5, dtype=torch.float64) * 9
    rows = 4
    npo = simnpo = 0.0
    for b in (0, 1, 3, 4):
        total = sum(logps[b, t].item() for t in range(7) if mask[b, t])
        length = int(mask[b].sum())
        npo += -(2 / 0.4) * math.log(1 / (1 + math.exp(0.4 * (total - ref[b].item())))) / rows
        simnpo += -(2 / 3.0) * math.log(1 / (1 + math.exp(-3.0 * (-total / length - 0.5)))) / rows
    tokens = float(mask.sum())
    found = reduced(npo_loss(logps, mask, ref, beta=0.4), mask, rows=rows, tokens=tokens)
    assert found.item() == pytest.approx(npo)
    found = reduced(simnpo_loss(logps, mask, beta=3.0, margin=0.5), mask, rows=rows, tokens=tokens)
    assert found.item() == pytest.approx(simnpo)


def test_rmu_number():
    hidden = torch.tensor([[[1.0, 2.0], [0.0, -1.0], [3.0, 3.0]]])
    mask = torch.tensor([[1, 1, 0]])
    output = rmu_loss(hidden, mask, torch.tensor([1.2, 1.6]))
    assert reduced(output, mask, rows=1, tokens=2).item() == pytest.approx(2.1)


def test_embed_diff_is_zero_at_the_start_and_has_the_gradient_of_a_mean_square():
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert reduced(embed_diff_loss(hidden, MASK, hidden.detach())).item() == 0.0
    reference = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h: reduced(embed_diff_loss(h, MASK, reference)), (hidden,))


def test_divergence_from_the_reference():
    ref = torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]]).log()
    model = torch.tensor([[[0.6, 0.3, 0.1], [0.25, 0.5, 0.25]]]).log()
    output = kl_loss(exact_forward_kl(model, ref), torch.ones(1, 2))
    assert reduced(output, torch.ones(1, 2), rows=1, tokens=2).item() == pytest.approx(0.10004962, abs=1e-7)
    assert torch.allclose(exact_forward_kl(model, ref), exact_kl(ref, model))


def test_forward_divergence_has_its_gradient_and_bears_excluded_tokens():
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(2, 5, dtype=torch.float64).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda x: exact_forward_kl(x.log_softmax(-1), ref), (logits,))
    excluded = torch.tensor([[0.5, 0.5, 0.0]]).log()
    model = torch.tensor([[0.25, 0.5, 0.25]]).log().requires_grad_()
    exact_forward_kl(model, excluded).sum().backward()
    assert model.grad.tolist()[0] == pytest.approx([-0.5, -0.5, 0.0])


def test_the_steering_vector_is_long_enough_positive_and_seeded():
    vector = steering_vector(64, coefficient=2.0, seed=1)
    assert float(vector.norm()) == pytest.approx(2.0) and bool((vector >= 0).all())
    assert torch.equal(vector, steering_vector(64, coefficient=2.0, seed=1))
    assert not torch.equal(vector, steering_vector(64, coefficient=2.0, seed=2))


def test_a_batch_without_answer_tokens_gives_zero_with_a_graph():
    logps = LOGPS.nan_to_num().clone().requires_grad_()
    output = npo_loss(logps, torch.zeros_like(MASK), REF, beta=0.1)
    reduced(output, torch.zeros_like(MASK), rows=0, tokens=0).backward()
    assert not logps.grad.any()
    assert math.isnan(output.metrics["unlearning/log_ratio"])


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(ValueError, match="beta is .*above 0"):
        npo_loss(LOGPS, MASK, REF, beta=beta)
