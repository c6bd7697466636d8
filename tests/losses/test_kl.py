"""KL estimators: exact expectations over a small vocabulary instead of samples, for values and for gradients."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.kl import exact_kl, k1_kl, k2_kl, k3_kl

ESTIMATORS = {"k1": k1_kl, "k2": k2_kl, "k3": k3_kl}
V = 7


@pytest.fixture(params=range(3))
def policies(request):
    """Logits of pi, and log-probs of ref and old, over the same seven tokens."""
    generator = torch.Generator().manual_seed(request.param)
    logits, ref, old = torch.randn(3, V, generator=generator, dtype=torch.float64) * 1.5
    return logits.requires_grad_(), ref.log_softmax(0), old.log_softmax(0)


def expectation(estimator, logps, ref, sampler, old=None):
    """Mean over every token the sampler could draw; gradient flows through the estimator only."""
    rows = [tensor.unsqueeze(0) for tensor in (logps, ref)]
    values = estimator(*rows, old_logps=None if old is None else old.unsqueeze(0))
    return (sampler.detach().exp() * values[0]).sum()


def divergence(p, q):
    return (p.exp() * (p - q)).sum()


def gradient(value, logits):
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_values_of_two_tokens_computed_by_hand():
    logps, ref = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.5, 0.2], [0.25, 0.8]))
    # d = ln 2 and -ln 4; exp(-d) = 1/2 and 4
    assert k1_kl(logps, ref)[0].tolist() == pytest.approx([math.log(2), -math.log(4)])
    assert k2_kl(logps, ref)[0].tolist() == pytest.approx([math.log(2) ** 2 / 2, math.log(4) ** 2 / 2])
    assert k3_kl(logps, ref)[0].tolist() == pytest.approx([0.5 - 1 + math.log(2), 4 - 1 - math.log(4)])
    old = torch.tensor([[0.25, 0.8]], dtype=torch.float64).log()  # ratios 2 and 1/4
    assert k1_kl(logps, ref, old_logps=old)[0].tolist() == pytest.approx([2 * math.log(2), -math.log(4) / 4])
    assert k3_kl(logps, ref, old_logps=old)[0].tolist() == pytest.approx([2 * math.log(2) - 1, (3 - math.log(4)) / 4])


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_on_policy_mean_is_the_divergence(policies, name):
    logits, ref, _ = policies
    logps = logits.log_softmax(0)
    close(expectation(ESTIMATORS[name], logps, ref, logps), divergence(logps, ref))


def test_on_policy_gradients_without_correction(policies):
    """Each is the gradient of something else: k1 of nothing, k2 of KL(pi || ref), k3 of KL(ref || pi)."""
    logits, ref, _ = policies
    logps = logits.log_softmax(0)
    found = {name: gradient(expectation(e, logps, ref, logps), logits) for name, e in ESTIMATORS.items()}
    close(found["k1"], torch.zeros(V, dtype=torch.float64))
    close(found["k2"], gradient(divergence(logps, ref), logits))
    close(found["k3"], gradient(divergence(ref, logps), logits))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_corrected_mean_and_gradient_are_the_divergences_for_any_sampler(policies, name):
    logits, ref, old = policies
    logps = logits.log_softmax(0)
    for sampler in (old, logps.detach()):
        corrected = expectation(ESTIMATORS[name], logps, ref, sampler, old=sampler)
        close(corrected, divergence(logps, ref))
        close(gradient(corrected, logits), gradient(divergence(logps, ref), logits))


def test_corrected_k2_is_half_the_mean_square(policies):
    logits, ref, old = policies
    logps = logits.log_softmax(0)
    half_square = (logps.exp() * (logps - ref).square()).sum() / 2
    corrected = expectation(k2_kl, logps, ref, old, old=old)
    close(corrected, half_square)
    close(gradient(corrected, logits), gradient(half_square, logits))


def test_correction_matters_off_policy(policies):
    logits, ref, old = policies
    logps = logits.log_softmax(0)
    for estimator in (k1_kl, k3_kl):
        assert abs(expectation(estimator, logps, ref, old) - divergence(logps, ref)) > 1e-2


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("is_corrected", [False, True])
def test_gradcheck_and_constant_references(estimator, is_corrected):
    logps, ref, old = (-2 * torch.rand(2, 3, dtype=torch.float64) for _ in range(3))
    logps.requires_grad_()
    old_logps = old.requires_grad_() if is_corrected else None
    ref.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: estimator(x, ref.detach(), old_logps=old_logps), (logps,))
    estimator(logps, ref, old_logps=old_logps).sum().backward()
    assert logps.grad is not None and ref.grad is None and old.grad is None


def test_k2_and_k3_are_never_negative_and_vanish_only_where_policies_agree():
    logps = -20 * torch.rand(50, 20)
    ref = -20 * torch.rand(50, 20)
    for estimator in (k2_kl, k3_kl):
        assert (estimator(logps, ref) >= 0).all()
        assert torch.equal(estimator(logps, logps), torch.zeros(50, 20))


def test_k3_keeps_its_digits_where_policies_nearly_agree():
    logps = torch.tensor([[-1.0]])
    x = 3 * 2.0**-13  # exact in float32, like -1 + x
    ref = torch.tensor([[-1.0 + x]])
    assert k3_kl(logps, ref).item() == pytest.approx(x * x / 2 * (1 + x / 3), rel=1e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_extreme_gaps_stay_finite_in_float32(estimator, gap):
    logps, ref = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-1.0 + gap]])
    for old in (None, torch.tensor([[-1.0 - abs(gap)]])):
        value = estimator(logps, ref, old_logps=old)
        (slope,) = torch.autograd.grad(value.sum(), logps)
        assert torch.isfinite(value).all() and torch.isfinite(slope).all()


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_low_precision_is_computed_in_float32_and_float64_stays(estimator):
    low, high = torch.zeros(1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.float64)
    assert estimator(low, low, old_logps=low).dtype == torch.float32
    assert estimator(low, high).dtype == estimator(high, low).dtype == torch.float64


def test_exact_divergence_by_hand():
    """(1/2, 1/2) from (1/4, 3/4): ln 2 / 2 + ln(2/3) / 2."""
    ours, theirs = torch.tensor([[[0.5, 0.5, 0.0]]]).log(), torch.tensor([[[0.25, 0.75, 0.0]]]).log()
    assert exact_kl(ours, theirs).item() == pytest.approx((math.log(2) + math.log(2 / 3)) / 2, rel=1e-6)
    assert exact_kl(ours, torch.tensor([[[1.0, 0.0, 0.0]]]).log()).item() == math.inf


def test_exact_divergence_and_its_gradient_are_the_definition(policies):
    logits, ref, _ = policies
    logps = logits.log_softmax(0)
    found, expected = exact_kl(logps, ref), divergence(logps, ref)
    close(found, expected)
    close(gradient(found, logits), gradient(expected, logits))
