"""Reductions: hand-computed weights, a literal reference with loops, and independence of how a step is split."""

from __future__ import annotations

import random

import pytest
import torch

from posttrain.losses.reductions import AGGREGATIONS, LossCounts, LossOutput, reduce_loss, token_weights


def counts_of(mask: torch.Tensor, max_completion_length: int = 8) -> LossCounts:
    return LossCounts(rows=mask.size(0), tokens=mask.sum().item(), max_completion_length=max_completion_length)


@pytest.mark.parametrize(
    ("reduction", "first", "second"),
    [
        ("token_mean", 1 / 5, 1 / 5),  # 5 tokens
        ("seq_mean_token_mean", 1 / (3 * 3), 1 / (2 * 3)),  # rows of 3 and 2 tokens, 3 rows with the empty one
        ("seq_mean_token_sum_norm", 1 / (3 * 8), 1 / (3 * 8)),  # 3 rows of at most 8 tokens
        ("seq_mean_token_sum", 1 / 3, 1 / 3),
    ],
)
def test_weights_of_a_batch_computed_by_hand(reduction, first, second):
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    weights = token_weights(mask, reduction=reduction, counts=counts_of(mask))
    expected = torch.tensor([[first, first, first, 0], [0, second, second, 0], [0, 0, 0, 0]])
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected)


def literal_loss(values, mask, reduction, max_completion_length):
    """The four reductions as sums over Python lists."""
    rows = [[v for v, m in zip(vs, ms, strict=True) if m] for vs, ms in zip(values, mask, strict=True)]
    if reduction == "token_mean":
        return sum(sum(row) for row in rows) / sum(len(row) for row in rows)
    if reduction == "seq_mean_token_mean":
        return sum(sum(row) / len(row) for row in rows if row) / len(rows)
    if reduction == "seq_mean_token_sum_norm":
        return sum(sum(row) for row in rows) / (len(rows) * max_completion_length)
    return sum(sum(row) for row in rows) / len(rows)


@pytest.mark.parametrize("reduction", AGGREGATIONS)
@pytest.mark.parametrize("case", range(5))
def test_any_split_into_micro_batches_and_ranks_gives_the_literal_loss(reduction, case):
    generator = torch.Generator().manual_seed(case)
    values = torch.randn(12, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(12, 7, generator=generator) < 0.6
    mask[case] = False
    whole = values.clone().requires_grad_()
    counts = counts_of(mask)
    loss = reduce_loss(LossOutput(whole, reduction), mask, counts=counts)
    loss.backward()
    assert loss.item() == pytest.approx(literal_loss(values.tolist(), mask.tolist(), reduction, 8), rel=1e-12)

    rows, order = list(range(12)), random.Random(case)
    order.shuffle(rows)
    cuts = sorted(order.sample(range(1, 12), k=1 + case))
    split = values.clone().requires_grad_()
    shares = []
    for start, stop in zip([0, *cuts], [*cuts, 12], strict=True):
        part = torch.tensor(rows[start:stop])
        # Another micro-batch is padded to another width.
        padded = torch.nn.functional.pad(split[part], (0, start), value=float("nan"))
        padded_mask = torch.nn.functional.pad(mask[part], (0, start), value=False)
        shares.append(reduce_loss(LossOutput(padded, reduction), padded_mask, counts=counts))
    torch.stack(shares).sum().backward()
    assert sum(share.item() for share in shares) == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", AGGREGATIONS)
def test_micro_batch_means_are_not_the_loss(reduction):
    """The mistake the counts prevent: averaging each micro-batch's own mean moves the loss when lengths differ."""
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    shares = sum(
        reduce_loss(LossOutput(values[i : i + 1], reduction), mask[i : i + 1], counts=counts_of(mask)) for i in (0, 1)
    )
    own = sum(
        reduce_loss(LossOutput(values[i : i + 1], reduction), mask[i : i + 1], counts=counts_of(mask[i : i + 1])) / 2
        for i in (0, 1)
    )
    if reduction == "token_mean":
        assert shares.item() == pytest.approx(9 / 5)  # (4 + 5) / 5 tokens
        assert own.item() == pytest.approx((4 / 4 + 5 / 1) / 2)
    else:
        assert shares.item() == pytest.approx(own.item())  # rows are never split


@pytest.mark.parametrize("reduction", AGGREGATIONS)
def test_an_empty_batch_gives_an_exact_zero_with_a_graph(reduction):
    mask = torch.zeros(2, 3)
    values = torch.full((2, 3), float("nan"), requires_grad=True)
    for counts in (LossCounts(0, 0, 0), LossCounts(4, 10, 8)):
        assert torch.equal(token_weights(mask, reduction=reduction, counts=counts), mask)
        loss = reduce_loss(LossOutput(values, reduction), mask, counts=counts)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, values)
        assert torch.equal(gradient, torch.zeros(2, 3))


@pytest.mark.parametrize("reduction", AGGREGATIONS)
def test_zero_counts_give_zero_weight_even_to_trained_tokens(reduction):
    mask = torch.ones(2, 3)
    assert torch.equal(token_weights(mask, reduction=reduction, counts=LossCounts(0, 0, 0)), torch.zeros(2, 3))


@pytest.mark.parametrize("reduction", AGGREGATIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_masked_values_reach_neither_the_loss_nor_its_gradient(reduction, bad):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    logits = torch.tensor([[1.0, 2.0, bad], [bad, bad, bad]], requires_grad=True)
    loss = reduce_loss(LossOutput(logits.exp(), reduction), mask, counts=counts_of(mask))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad[0, :2]).all() and (logits.grad[0, :2] != 0).all()


def test_low_precision_is_accumulated_in_float32_and_float64_stays():
    ones = torch.ones(1, 3001, dtype=torch.bfloat16)  # a bfloat16 sum would stop counting at 256
    loss = reduce_loss(LossOutput(ones, "seq_mean_token_sum"), ones, counts=LossCounts(1, 3001, 3001))
    assert loss.dtype == torch.float32 and loss.item() == 3001
    weights = token_weights(ones, reduction="seq_mean_token_mean", counts=LossCounts(1, 3001, 3001))
    assert weights.dtype == torch.float32 and weights[0, 0].item() == pytest.approx(1 / 3001, rel=1e-6)
    third = reduce_loss(
        LossOutput(torch.ones(1, 3, dtype=torch.float64), "token_mean"), torch.ones(1, 3), counts=LossCounts(1, 7, 3)
    )
    assert third.dtype == torch.float64 and third.item() == pytest.approx(3 / 7, rel=1e-15)


def test_integer_and_boolean_masks_weigh_the_same():
    mask = torch.rand(4, 5) < 0.5
    for reduction in AGGREGATIONS:
        kinds = [mask, mask.long(), mask.float(), mask.bfloat16()]
        first, *others = [token_weights(kind, reduction=reduction, counts=counts_of(mask)) for kind in kinds]
        assert all(torch.equal(first, other) for other in others)


def test_unknown_reductions_and_mismatched_shapes_are_refused():
    mask = torch.ones(2, 3)
    with pytest.raises(ValueError, match="reduction is 'mean'; allowed: token_mean, seq_mean_token_mean"):
        token_weights(mask, reduction="mean", counts=counts_of(mask))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\); expected \(B, T\)"):
        token_weights(mask[0], reduction="token_mean", counts=counts_of(mask))
    with pytest.raises(ValueError, match=r"values have shape \(2, 2\) but the mask has \(2, 3\)"):
        reduce_loss(LossOutput(torch.ones(2, 2), "token_mean"), mask, counts=counts_of(mask))


@pytest.mark.parametrize("field", ["rows", "tokens", "max_completion_length"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_impossible_counts_are_refused(field, value):
    sizes = {"rows": 1, "tokens": 1, "max_completion_length": 1, field: value}
    with pytest.raises(ValueError, match=rf"LossCounts.{field} is {value}; it must be a finite number >= 0"):
        LossCounts(**sizes)
