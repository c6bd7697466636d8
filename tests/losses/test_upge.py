"""The estimator: the paper's worked row, a literal reference for any mix of parts, detachment, refusals."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.losses.reductions import LossCounts, LossOutput, reduce_loss
from posttrain.losses.upge import (
    UPGE_PRESETS,
    UPGEConfig,
    group_advantages,
    surrogate_values,
    upge_loss,
    upge_weights,
)

PROBS, OLD = (0.5, 0.15, 0.8), (0.4, 0.25, 0.5)  # ratios .5/.4 = 1.25, .15/.25 = .6, .8/.5 = 1.6
LOG = [math.log(p) for p in PROBS]
S = (1.25 * 0.6 * 1.6) ** (1 / 3)  # 1.2^(1/3) = 1.0626586


def row(*values, dtype=torch.float64):
    return torch.tensor([values], dtype=dtype)


def weights_of(config, advantage, probs=PROBS, old=OLD):
    mask = torch.ones(1, len(probs))
    advantages = torch.tensor([advantage], dtype=torch.float64)
    return upge_weights(row(*probs).log(), row(*old).log(), advantages, mask, config=config)[0].tolist()


@pytest.mark.parametrize(
    ("preset", "rising", "falling"),
    [
        ("sft", (1, 1, 1), (-1, -1, -1)),
        ("reinforce", (1, 1, 1), (-1, -1, -1)),
        # A rises: r > 1.2 leaves. A falls: r < .8 leaves.
        ("ppo", (0, 0.6, 0), (-1.25, 0, -1.6)),
        ("grpo", (0, 0.6, 0), (-1.25, 0, -1.6)),
        ("dr_grpo", (0, 0.6, 0), (-1.25, 0, -1.6)),
        ("dapo", (1.25, 0.6, 0), (-1.25, 0, -1.6)),  # the upper bound is 1.28
        ("rloo", (1.25, 0.6, 1.6), (-1.25, -0.6, -1.6)),
        ("cispo", (1.25, 0.6, 1.28), (-1.25, -0.6, -1.28)),  # min(r, 1.28), nothing leaves
        ("gspo", (S, S, S), (-S, -S, -S)),  # .8 < s < 1.2
        # .1 p / (p + .1)^2: .05/.36, .015/.0625, .08/.81
        ("luffy_offline", (0.05 / 0.36, 0.24, 0.08 / 0.81), (-0.05 / 0.36, -0.24, -0.08 / 0.81)),
        ("srft_offline", PROBS, tuple(-p for p in PROBS)),
        ("dft", PROBS, tuple(-p for p in PROBS)),
    ],
)
def test_weights_of_the_worked_row(preset, rising, falling):
    assert weights_of(UPGE_PRESETS[preset], 1.0) == pytest.approx(rising, rel=1e-12)
    assert weights_of(UPGE_PRESETS[preset], -1.0) == pytest.approx(falling, rel=1e-12)
    assert weights_of(UPGE_PRESETS[preset], 0.0) == [0.0, 0.0, 0.0]


def test_the_worked_row_has_the_printed_decimals():
    assert abs(S - 1.0626586) < 5e-8
    luffy = weights_of(UPGE_PRESETS["luffy_offline"], 1.0)
    assert luffy == pytest.approx((0.1388889, 0.24, 0.0987654), abs=5e-8)


def test_dual_clip_drops_only_large_ratios_at_negative_advantages():
    dual = replace(UPGE_PRESETS["grpo"], stabilization_mask="dual_clip", epsilon_dual=1.5)
    assert weights_of(dual, -1.0) == pytest.approx((-1.25, 0, 0))  # 1.6 > 1.5
    assert weights_of(dual, 1.0) == pytest.approx((0, 0.6, 0))


def test_sequence_clip_drops_whole_rows_by_the_geometric_mean():
    config = replace(UPGE_PRESETS["gspo"], epsilon_low=0.05, epsilon_high=0.05)
    assert weights_of(config, 1.0) == [0, 0, 0]  # s = 1.0627 > 1.05
    assert weights_of(config, -1.0) == pytest.approx((-S, -S, -S))
    token_ratio = replace(config, reference_policy="rollout")  # the mask by rows, the weight by tokens
    assert weights_of(token_ratio, -1.0) == pytest.approx((-1.25, -0.6, -1.6))


@pytest.mark.parametrize("preset", ["ppo", "grpo", "cispo", "gspo"])
def test_on_policy_every_ratio_method_weighs_by_the_advantage(preset):
    for advantage in (1.0, -0.25, 0.75):
        assert weights_of(UPGE_PRESETS[preset], advantage, PROBS, PROBS) == [advantage] * 3


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.1])
def test_scaling_the_old_probabilities_divides_every_ratio(scale):
    scaled = tuple(p * scale for p in OLD)
    open_ppo = replace(UPGE_PRESETS["ppo"], stabilization_mask="none")
    open_gspo = replace(UPGE_PRESETS["gspo"], stabilization_mask="none")
    for config in (open_ppo, open_gspo):
        expected = [w / scale for w in weights_of(config, 1.0)]
        assert weights_of(config, 1.0, old=scaled) == pytest.approx(expected, rel=1e-12)
    clipped = [r if r <= 1.2 else 0.0 for r in (1.25 / scale, 0.6 / scale, 1.6 / scale)]
    assert weights_of(UPGE_PRESETS["ppo"], 1.0, old=scaled) == pytest.approx(clipped, rel=1e-12)


def test_exact_equality_with_a_bound_keeps_the_token():
    ratio = torch.tensor(0.1, dtype=torch.float64).exp().item()
    # (r - 1) and 1 + (r - 1) are exact in floats for r between 1/2 and 2
    at_bound = replace(UPGE_PRESETS["grpo"], epsilon_high=ratio - 1)
    below = replace(UPGE_PRESETS["grpo"], epsilon_high=math.nextafter(ratio, 0) - 1)
    one, mask = torch.ones(1), torch.ones(1, 1)
    assert upge_weights(row(0.1), row(0.0), one, mask, config=at_bound).item() == ratio
    assert upge_weights(row(0.1), row(0.0), one, mask, config=below).item() == 0.0
    tight = replace(UPGE_PRESETS["grpo"], epsilon_low=0.0, epsilon_high=0.0)
    for advantage in (1.0, -1.0):
        assert weights_of(tight, advantage, PROBS, PROBS) == [advantage] * 3


def literal_weights(logps, old, advantages, mask, config):
    """The estimator with floats and loops."""
    result = []
    for lps, olds, advs, ms in zip(logps, old, advantages, mask, strict=True):
        steps = [lp - o for lp, o, m in zip(lps, olds, ms, strict=True) if m]
        s = math.exp(math.fsum(steps) / len(steps)) if steps else 1.0
        weights = []
        for lp, o, a, m in zip(lps, olds, advs, ms, strict=True):
            if not m:
                weights.append(0.0)
                continue
            r, p = math.exp(lp - o), math.exp(lp)
            w = {"current": 1.0, "rollout": r, "one": p, "sequence_geometric": s}[config.reference_policy]
            if config.is_truncation:
                w = min(max(w, config.is_truncation[0]), config.is_truncation[1])
            if config.shaping:
                w *= config.shaping_gamma / (p + config.shaping_gamma) ** 2
            seen = s if config.stabilization_mask == "sequence_clip" else r
            if config.stabilization_mask != "none":
                leaves = (a > 0 and seen > 1 + config.epsilon_high) or (a < 0 and seen < 1 - config.epsilon_low)
                if config.stabilization_mask == "dual_clip":
                    leaves = leaves or (a < 0 and seen > config.epsilon_dual)
                w = 0.0 if leaves else w
            weights.append(a * w)
        result.append(weights)
    return torch.tensor(result, dtype=torch.float64)


def every_mix():
    """All combinations of the four parts that are not refused, with one aggregation."""
    parts = itertools.product(
        ("current", "rollout", "one", "sequence_geometric"),
        ("none", "ppo_clip", "sequence_clip", "dual_clip"),
        (None, (0.0, 1.28), (0.3, 0.7)),
        (None, "p_over_p_plus_gamma"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for reference, mask, truncation, shaping in parts:
            bound = 2.0 if mask == "dual_clip" else None
            try:
                yield UPGEConfig(
                    reference, stabilization_mask=mask, is_truncation=truncation, shaping=shaping, epsilon_dual=bound
                )
            except ConfigError:
                continue


def test_any_mix_of_parts_equals_the_literal_reference():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 7, generator=generator) < 0.7
    mask[2] = False
    logps = -3 * torch.rand(5, 7, generator=generator, dtype=torch.float64)
    old = logps - torch.randn(5, 7, generator=generator, dtype=torch.float64)
    per_token = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    per_token[0] = 0.0
    count = 0
    for config in every_mix():
        for advantages in (per_token, per_token[:, 0]):
            spread = advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(5, 7)
            found = upge_weights(logps, old, advantages, mask, config=config)
            expected = literal_weights(logps.tolist(), old.tolist(), spread.tolist(), mask.tolist(), config)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, msg=lambda m, c=config: f"{c}\n{m}")
            count += 1
    assert count > 100


def test_values_are_minus_weight_times_logp_and_name_their_reduction():
    for config in UPGE_PRESETS.values():
        logps, mask = row(*LOG), torch.tensor([[1, 1, 0]])
        output = upge_loss(logps, row(*OLD).log(), torch.tensor([0.7]), mask, config=config)
        weights = upge_weights(logps, row(*OLD).log(), torch.tensor([0.7]), mask, config=config)
        torch.testing.assert_close(output.values, -weights * logps, rtol=1e-15, atol=0)
        assert output.values[0, 2] == 0 and output.reduction == config.loss_aggregation


@pytest.mark.filterwarnings("ignore:stabilization_mask|shaping")
@pytest.mark.parametrize(
    ("preset", "changes", "advantage", "expected"),
    [
        ("dft", {"stabilization_mask": "ppo_clip"}, 1.0, (0, -0.15, 0)),  # a dropped probability counts nothing
        ("rloo", {"shaping": "p_over_p_plus_gamma"}, -1.0, (1.25 / 3.6, 0.6 * 1.6, 1.6 * 0.1 / 0.81)),  # r f'(p)
        ("grpo", {"stabilization_mask": "dual_clip", "epsilon_dual": 1.5}, -1.0, (1.25, 0.8, 1.5)),
        ("gspo", {"epsilon_high": 0.05}, 1.0, (-1.05, -1.05, -1.05)),
        ("cispo", {}, 1.0, tuple(-w * p for w, p in zip((1.25, 0.6, 1.28), LOG, strict=True))),
        ("luffy_offline", {}, 1.0, (-0.5 / 0.6, -0.15 / 0.25, -0.8 / 0.9)),  # f(p)
    ],
)
def test_surrogate_values_of_the_worked_row(preset, changes, advantage, expected):
    config = replace(UPGE_PRESETS[preset], **changes)
    values = surrogate_values(row(*LOG), row(*OLD).log(), torch.tensor([advantage]), torch.ones(1, 3), config=config)
    assert values[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("preset", UPGE_PRESETS)
def test_gradient_is_minus_the_weight_and_reaches_logps_only(preset):
    config = UPGE_PRESETS[preset]
    logps, old = row(*LOG).requires_grad_(), row(*OLD).log().requires_grad_()
    advantages = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 3)
    weights = upge_weights(logps, old, advantages, mask, config=config)
    assert not weights.requires_grad
    assert not surrogate_values(logps, old, advantages, mask, config=config).requires_grad
    output = upge_loss(logps, old, advantages, mask, config=config)
    assert all(not metric.requires_grad for metric in output.metrics.values())
    output.values.sum().backward()
    assert torch.equal(logps.grad, -weights)
    assert old.grad is None and advantages.grad is None


@pytest.mark.parametrize("preset", UPGE_PRESETS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e4, -1e4])
def test_masked_positions_may_hold_anything(preset, bad):
    """The first row is trained on two tokens, the second on none; neither value, gradient nor metric sees the rest."""
    config, mask = UPGE_PRESETS[preset], torch.tensor([[1, 1, 0], [0, 0, 0]])

    def run(filler):
        logps = torch.tensor([[-0.5, -1.0, filler], [filler] * 3], requires_grad=True)
        old = torch.tensor([[-0.6, -0.9, -filler], [0.0, filler, -filler]])
        advantages = torch.tensor([[0.5, -0.5, filler], [filler] * 3])
        output = upge_loss(logps, old, advantages, mask, config=config)
        loss = reduce_loss(output, mask, counts=LossCounts(2, 2, 3))
        loss.backward()
        return output.values.detach(), loss.detach(), logps.grad, torch.tensor([*output.metrics.values()])

    for found, expected in zip(run(bad), run(-0.3), strict=True):
        assert torch.equal(found, expected) and torch.isfinite(found).all()


@pytest.mark.parametrize("preset", UPGE_PRESETS)
def test_everything_masked_gives_an_exact_zero_with_a_graph(preset):
    logps = torch.full((2, 3), -1.0, requires_grad=True)
    mask = torch.zeros(2, 3)
    output = upge_loss(logps, logps.detach(), torch.ones(2), mask, config=UPGE_PRESETS[preset])
    loss = reduce_loss(output, mask, counts=LossCounts(2, 0, 3))
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(logps.grad, torch.zeros(2, 3))
    assert all(math.isnan(value) for value in output.metrics.values())  # nothing was measured


@pytest.mark.parametrize("gap", [-1e3, -100.0, 100.0, 1e3])
def test_log_ratios_beyond_float32_stay_finite_on_trained_tokens(gap):
    logps, old = torch.tensor([[-1.0, -1.0]], requires_grad=True), torch.tensor([[-1.0 - gap, -1.0]])
    for config in every_mix():
        for advantage in (1.0, -1.0, 0.0):
            output = upge_loss(logps, old, torch.tensor([advantage]), torch.ones(1, 2), config=config)
            (gradient,) = torch.autograd.grad(output.values.sum(), logps)
            assert torch.isfinite(output.values).all() and torch.isfinite(gradient).all(), config
            assert all(math.isfinite(metric) for metric in output.metrics.values()), config


def test_a_nan_on_a_trained_token_is_not_hidden():
    nan, old, mask = torch.tensor([[float("nan"), -1.0]]), torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2)
    for preset in ("grpo", "gspo", "cispo", "srft_offline"):
        for advantage in (1.0, -1.0):
            weights = upge_weights(nan, old, torch.tensor([advantage]), mask, config=UPGE_PRESETS[preset])
            assert weights[0, 0].isnan()


def test_low_precision_is_computed_in_float32_and_float64_stays():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        logps = torch.full((1, 2), -1.0, dtype=dtype, requires_grad=True)
        output = upge_loss(logps, logps.detach(), torch.ones(1), torch.ones(1, 2), config=UPGE_PRESETS["grpo"])
        assert output.values.dtype == expected
        output.values.sum().backward()
        assert logps.grad.dtype == dtype


def test_metrics_count_trained_tokens_with_a_direction():
    logps, old = row(*LOG), row(*OLD).log()
    mask, one = torch.ones(1, 3), torch.ones(1)
    clip = upge_loss(logps, old, one, mask, config=UPGE_PRESETS["ppo"]).metrics
    assert float(clip["policy/clipped_fraction"]) == pytest.approx(2 / 3)
    assert float(clip["policy/ratio_mean"]) == pytest.approx((1.25 + 0.6 + 1.6) / 3)
    assert float(clip["policy/surrogate_loss"]) == pytest.approx(-(1.2 + 0.6 + 1.2) / 3)  # two stuck at the bound
    clamp = upge_loss(logps, old, one, mask, config=UPGE_PRESETS["cispo"]).metrics
    assert float(clamp["policy/clamped_fraction"]) == pytest.approx(1 / 3)
    dead = upge_loss(logps, old, 0 * one, mask, config=UPGE_PRESETS["ppo"]).metrics
    assert float(dead["policy/clipped_fraction"]) == 0 and float(dead["policy/surrogate_loss"]) == 0
    assert set(upge_loss(logps, None, one, mask, config=UPGE_PRESETS["sft"]).metrics) == {"policy/surrogate_loss"}


@pytest.mark.parametrize("split", [[[0, 1, 2]], [[0], [1], [2]], [[2, 0], [1]]])
def test_the_papers_hybrid_step_of_two_prompts(split):
    """Prompt 1: rewards (1, 0), lengths 2 and 3, on-policy: -(1/(2*4)) * (2 * .5 - 3 * .5) = +.0625.
    Prompt 2 failed: demonstration probabilities (.5, .25, .1): -ln(.0125) / 3 = 1.4606755. Mean: .7615878."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]])
    is_demo = torch.tensor([[False], [False], [True]])
    logps = torch.tensor([[0.3, 0.6, 1, 1], [0.2, 0.9, 0.4, 1], [0.5, 0.25, 0.1, 1]], dtype=torch.float64).log()
    rl, sft = UPGE_PRESETS["dr_grpo"], UPGE_PRESETS["sft"]
    advantages = group_advantages(torch.tensor([1.0, 0.0]), 2, config=rl)
    assert advantages.tolist() == [0.5, -0.5]
    advantages = torch.cat([advantages, torch.ones(1)])
    rl_counts = LossCounts(rows=2 * 2, tokens=5, max_completion_length=4)  # Q prompts of n rollouts
    sft_counts = LossCounts(rows=2, tokens=3, max_completion_length=4)  # Q prompts
    total = {"rl": 0.0, "sft": 0.0}
    for rows in split:
        batch = (logps[rows], logps[rows], advantages[rows])
        for name, config, kept, reduction, counts in (
            ("rl", rl, mask[rows] * ~is_demo[rows], "seq_mean_token_sum_norm", rl_counts),
            ("sft", sft, mask[rows] * is_demo[rows], "seq_mean_token_mean", sft_counts),
        ):
            values = surrogate_values(*batch, kept, config=config)
            total[name] += reduce_loss(LossOutput(values, reduction), kept, counts=counts).item()
    assert total["rl"] == pytest.approx(0.0625 / 2, rel=1e-12)
    assert total["sft"] == pytest.approx(-math.log(0.5 * 0.25 * 0.1) / 3 / 2, rel=1e-12)
    assert total["rl"] + total["sft"] == pytest.approx(0.7615878, abs=5e-8)


@pytest.mark.parametrize(
    ("logps", "old", "advantages", "mask", "message"),
    [
        ((2, 3), None, (2,), (2, 3), "reference_policy rollout with stabilization_mask ppo_clip needs .* got None"),
        ((2, 3), (2, 2), (2,), (2, 3), r"shaped like logps \(2, 3\); got \(2, 2\)"),
        ((2, 3), (2, 3), (3,), (2, 3), r"advantages have shape \(3,\); expected \(B,\) or \(B, T\)"),
        ((2, 3), (2, 3), (2, 1), (2, 3), r"advantages have shape \(2, 1\)"),
        ((2, 3), (2, 3), (2,), (2, 2), r"logps \(2, 3\) and mask \(2, 2\) must have the same shape"),
        ((3,), (3,), (3,), (3,), r"must have the same shape \(B, T\)"),
    ],
)
def test_shapes_that_do_not_fit_and_missing_old_logps_are_refused(logps, old, advantages, mask, message):
    old_logps = None if old is None else torch.zeros(old)
    for function in (upge_weights, upge_loss, surrogate_values):
        with pytest.raises(ValueError, match=message):
            function(
                torch.zeros(logps), old_logps, torch.zeros(advantages), torch.ones(mask), config=UPGE_PRESETS["grpo"]
            )


def test_old_logps_are_not_needed_where_no_ratio_is_taken():
    without = {name for name, config in UPGE_PRESETS.items() if not config.uses_old_logps}
    assert without == {"sft", "reinforce", "luffy_offline", "srft_offline", "dft"}
    for name in without:
        output = upge_loss(row(*LOG), None, torch.ones(1), torch.ones(1, 3), config=UPGE_PRESETS[name])
        assert torch.isfinite(output.values).all()
