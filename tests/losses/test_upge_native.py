"""Every preset against the loss its own paper prints, differentiated through ratios, minima and clips as printed.

Nothing of the estimator is used for the native side: it starts from logits and rewards, loops over rows and tokens,
and reduces Python lists. The gradients with respect to the logits must agree to 1e-10.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from posttrain.losses.reductions import LossCounts, LossOutput, reduce_loss, token_weights
from posttrain.losses.upge import UPGE_PRESETS, group_advantages, surrogate_values, upge_loss

B, T, V, G, L_MAX = 4, 6, 11, 2, 9
GAMMA, LOW, HIGH, WIDE, DUAL = 0.1, 0.2, 0.2, 0.28, 3.0


@dataclass
class Case:
    logits: torch.Tensor  # (B, T, V)
    tokens: torch.Tensor  # (B, T)
    mask: torch.Tensor  # (B, T) bool
    old: torch.Tensor  # (B, T)
    rewards: torch.Tensor  # (B,)
    values: torch.Tensor  # (B, T) what a learned critic would give

    def logps(self):
        return self.logits.log_softmax(dim=-1).gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1)


def make_case(seed, spread):
    """Ragged masks (with holes, and an empty row for odd seeds); ratios exp(spread * normal)."""
    g = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(B, T, V, generator=g, dtype=torch.float64)).requires_grad_()
    tokens = torch.randint(V, (B, T), generator=g)
    lengths = torch.randint(1, T + 1, (B, 1), generator=g)
    mask = (torch.arange(T) < lengths) & (torch.rand(B, T, generator=g) < 0.85)
    mask[seed % B] = seed % 2 == 0
    rewards = torch.rand(B, generator=g, dtype=torch.float64)
    rewards = rewards if seed % 3 else (rewards > 0.5).double()
    case = Case(logits, tokens, mask, torch.empty(0), rewards, torch.randn(B, T, generator=g, dtype=torch.float64))
    noise = torch.randn(B, T, generator=g, dtype=torch.float64) * spread
    case.old = (case.logps().detach() - noise).masked_fill(~mask, float("nan"))  # nothing behind the mask is read
    return case


# ---- advantages and reductions, one row at a time ----


def group(case, i):
    return [case.rewards[j].item() for j in range(i - i % G, i - i % G + G)]


def standardised(case, i):
    rewards = group(case, i)
    spread = statistics.stdev(rewards)
    return (case.rewards[i].item() - statistics.fmean(rewards)) / (spread + 1e-6) if spread else 0.0


def centred(case, i):
    return case.rewards[i].item() - statistics.fmean(group(case, i))


def leave_one_out(case, i):
    others = [r for j, r in enumerate(group(case, i)) if j != i % G]
    return case.rewards[i].item() - statistics.fmean(others)


def trained(case, i):
    return [t for t in range(T) if case.mask[i, t]]


def by_row(case, token_loss):
    logps = case.logps()
    return [[token_loss(logps[i, t], i, t) for t in trained(case, i)] for i in range(B)]


def over_tokens(rows):
    return sum(sum(row) for row in rows) / sum(len(row) for row in rows)


def over_rows(rows):
    return sum(sum(row) / len(row) for row in rows if row) / B


# ---- the losses as their papers print them ----


def clipped(logp, old, advantage, low, high):
    ratio = torch.exp(logp - old)
    return -torch.min(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)


def native_sft(case):
    labels = case.tokens.masked_fill(~case.mask, -100)
    return F.cross_entropy(case.logits.reshape(-1, V), labels.reshape(-1), ignore_index=-100)


def native_reinforce(case):
    return over_rows(by_row(case, lambda logp, i, t: -(1.0 if case.rewards[i] > 0 else -1.0) * logp))


def native_ppo(case):
    return over_tokens(by_row(case, lambda logp, i, t: clipped(logp, case.old[i, t], case.values[i, t], LOW, HIGH)))


def native_grpo(case):
    return over_rows(by_row(case, lambda logp, i, t: clipped(logp, case.old[i, t], standardised(case, i), LOW, HIGH)))


def native_dapo(case):
    return over_tokens(
        by_row(case, lambda logp, i, t: clipped(logp, case.old[i, t], standardised(case, i), LOW, WIDE))
    )


def native_dr_grpo(case):
    rows = by_row(case, lambda logp, i, t: clipped(logp, case.old[i, t], centred(case, i), LOW, HIGH))
    return sum(sum(row) for row in rows) / (B * L_MAX)


def native_rloo(case):
    rows = by_row(case, lambda logp, i, t: -torch.exp(logp - case.old[i, t]) * leave_one_out(case, i))
    return sum(sum(row) for row in rows) / B


def native_cispo(case):
    def token_loss(logp, i, t):
        weight = torch.clamp(torch.exp(logp - case.old[i, t]), max=1 + WIDE).detach()
        return -weight * standardised(case, i) * logp

    return over_tokens(by_row(case, token_loss))


def native_gspo(case):
    logps, total = case.logps(), 0.0
    for i in range(B):
        steps = [logps[i, t] - case.old[i, t] for t in trained(case, i)]
        if steps:
            ratio = torch.exp(sum(steps) / len(steps))
            advantage = standardised(case, i)
            total = total - torch.min(ratio * advantage, torch.clamp(ratio, 1 - LOW, 1 + HIGH) * advantage)
    return total / B


def native_luffy(case):
    def token_loss(logp, i, t):
        prob = torch.exp(logp)
        return -standardised(case, i) * prob / (prob + GAMMA)

    return over_tokens(by_row(case, token_loss))


def native_srft(case):
    return over_tokens(by_row(case, lambda logp, i, t: -standardised(case, i) * torch.exp(logp)))


def native_dft(case):
    return over_tokens(by_row(case, lambda logp, i, t: -torch.exp(logp).detach() * logp))


def native_dual_clip(case):
    def token_loss(logp, i, t):
        advantage, ratio = standardised(case, i), torch.exp(logp - case.old[i, t])
        loss = clipped(logp, case.old[i, t], advantage, LOW, HIGH)
        return torch.min(loss, -DUAL * advantage * torch.ones_like(ratio)) if advantage < 0 else loss

    return over_rows(by_row(case, token_loss))


NATIVE = {
    "sft": native_sft,
    "reinforce": native_reinforce,
    "ppo": native_ppo,
    "grpo": native_grpo,
    "dapo": native_dapo,
    "dr_grpo": native_dr_grpo,
    "rloo": native_rloo,
    "cispo": native_cispo,
    "gspo": native_gspo,
    "luffy_offline": native_luffy,
    "srft_offline": native_srft,
    "dft": native_dft,
    "dual_clip": native_dual_clip,
}
CONFIGS = {
    **UPGE_PRESETS,
    "dual_clip": replace(UPGE_PRESETS["grpo"], stabilization_mask="dual_clip", epsilon_dual=DUAL),
}


def inputs(case, config):
    advantages = case.values
    if config.advantage_estimator != "external":
        advantages = group_advantages(case.rewards, G, config=config)
    old = case.old if config.uses_old_logps else None
    return case.logps(), old, advantages, case.mask


def unified(case, config):
    output = upge_loss(*inputs(case, config), config=config)
    counts = LossCounts(rows=B, tokens=case.mask.sum().item(), max_completion_length=L_MAX)
    weights = token_weights(case.mask.double(), reduction=output.reduction, counts=counts)
    return (output.values * weights).sum()


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def test_every_preset_has_a_native_loss():
    assert set(UPGE_PRESETS) <= set(NATIVE) and set(CONFIGS) == set(NATIVE)


@pytest.mark.parametrize("spread", [0.0, 0.2, 3.0], ids=["on_policy", "near", "far"])
@pytest.mark.parametrize("name", NATIVE)
def test_gradient_equals_the_native_loss(name, spread):
    for seed in range(6):
        case = make_case(seed, spread)
        (expected,) = torch.autograd.grad(NATIVE[name](case), case.logits)
        (found,) = torch.autograd.grad(unified(case, CONFIGS[name]), case.logits)
        assert found.dtype == torch.float64
        assert relative_error(found, expected) < 1e-10, (name, spread, seed)


@pytest.mark.parametrize("name", NATIVE)
def test_ratios_far_from_one_reach_both_sides_of_every_rule(name):
    """The comparison above means something: some tokens are clipped or clamped, and some are not."""
    config = CONFIGS[name]
    if config.stabilization_mask == "none" and config.is_truncation is None:
        return
    rates = []
    for seed in range(6):
        metrics = upge_loss(*inputs(make_case(seed, 3.0), config), config=config).metrics
        rates.append(float(metrics.get("policy/clipped_fraction", metrics.get("policy/clamped_fraction"))))
    assert 0.05 < statistics.fmean(rates) < 0.95


@pytest.mark.parametrize("name", sorted(set(NATIVE) - {"dft"}))
def test_surrogate_value_equals_the_native_loss(name):
    """The loss's own value is another number. Left out: dft, whose gradient is that of -p as well as of -[p] log p."""
    config = CONFIGS[name]
    for spread in (0.0, 0.2, 3.0):
        case = make_case(1, spread)
        output = LossOutput(surrogate_values(*inputs(case, config), config=config), config.loss_aggregation)
        counts = LossCounts(rows=B, tokens=case.mask.sum().item(), max_completion_length=L_MAX)
        value = reduce_loss(output, case.mask, counts=counts)
        assert value.item() == pytest.approx(NATIVE[name](case).item(), rel=1e-10, abs=1e-12)
        assert not value.requires_grad


@pytest.mark.parametrize("name", ["ppo", "grpo", "dapo", "dr_grpo", "rloo", "gspo", "luffy_offline", "srft_offline"])
def test_gradient_equals_finite_differences_of_the_surrogate(name):
    """No autograd on this side: the native value, moved one log-prob at a time. Ratios are off the clip's kinks."""
    config, case, step = CONFIGS[name], make_case(4, 0.05), 1e-6
    logps, old, advantages, mask = inputs(case, config)
    logps = logps.detach().requires_grad_()
    (found,) = torch.autograd.grad(upge_loss(logps, old, advantages, mask, config=config).values.sum(), logps)
    expected = torch.zeros_like(found)
    for i in range(B):
        for t in trained(case, i):
            moved = []
            for sign in (1, -1):
                shifted = logps.detach().clone()
                shifted[i, t] += sign * step
                moved.append(surrogate_values(shifted, old, advantages, mask, config=config).sum())
            expected[i, t] = (moved[0] - moved[1]) / (2 * step)
    # central differences: error about step^2, and 1e-16 / step from rounding
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_sft_gradient_equals_cross_entropy_over_ranks_and_micro_batches():
    """Two rows at a time with counts of the whole step, against one cross-entropy over all tokens."""
    case, config = make_case(2, 1.0), UPGE_PRESETS["sft"]
    counts = LossCounts(rows=B, tokens=case.mask.sum().item(), max_completion_length=L_MAX)
    shares = []
    for rows in ([3, 0], [1], [2]):
        logps, mask = case.logps()[rows], case.mask[rows]
        shares.append(
            reduce_loss(upge_loss(logps, None, torch.ones(len(rows)), mask, config=config), mask, counts=counts)
        )
    (found,) = torch.autograd.grad(torch.stack(shares).sum(), case.logits)
    (expected,) = torch.autograd.grad(native_sft(case), case.logits)
    assert relative_error(found, expected) < 1e-10
