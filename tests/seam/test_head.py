"""Scoring off CUDA: the same numbers as TRL's head, nothing larger than the budget, only labelled positions."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from posttrain.seam.head import add_selective_scoring, score_positions

VOCABULARY, WIDTH, POSITIONS = 37, 8, 23


class _LargestBlock(TorchDispatchMode):
    """Largest tensor, in elements, whose last axis is the vocabulary; views of the head's (V, D) weight do not
    count.
    """

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.vocabulary, self.width, self.largest = vocabulary, width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor) and value.ndim and value.shape[-1] == self.vocabulary:
                if value.shape == (self.width, self.vocabulary):
                    continue
                self.largest = max(self.largest, value.numel())
        return out


def _inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    return hidden, weight, labels


@pytest.mark.parametrize(("softcap", "scale", "temperature"), [(None, 1.0, 1.0), (None, 1.0, 0.7), (5.0, 0.25, 1.3)])
@pytest.mark.parametrize("budget", [10**9, 4 * VOCABULARY * 5])
def test_scores_and_gradients_equal_a_literal_softmax(softcap, scale, temperature, budget):
    hidden, weight, labels = _inputs()
    picked, entropy, squares, mean, top1 = score_positions(
        hidden,
        weight,
        None,
        labels,
        temperature=temperature,
        softcap=softcap,
        scale=scale,
        outputs=("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"),
        entropy_gradient=True,
        logits_budget_bytes=budget,
    )
    (picked.sum() + 0.3 * entropy.sum()).backward()
    ours = hidden.grad.clone(), weight.grad.clone()

    hidden.grad = weight.grad = None
    logits = hidden @ weight.T * scale
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    probs = torch.softmax(logits / temperature, dim=-1)
    literal = torch.stack([probs[i, labels[i]].log() for i in range(POSITIONS)])
    literal_entropy = -(probs * probs.log()).sum(-1)
    (literal.sum() + 0.3 * literal_entropy.sum()).backward()
    torch.testing.assert_close(picked, literal, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, literal_entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares, (probs**2).sum(-1).log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, (logits / temperature).mean(-1), rtol=1e-5, atol=1e-5)
    assert torch.equal(top1, logits.argmax(-1) == labels)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 5])
def test_no_block_of_logits_exceeds_the_budget(rows):
    hidden, weight, labels = _inputs()
    with _LargestBlock(VOCABULARY, WIDTH) as seen:
        picked = score_positions(hidden, weight, None, labels, logits_budget_bytes=4 * VOCABULARY * rows)[0]
        picked.sum().backward()
    assert seen.largest == rows * VOCABULARY


def test_under_the_budget_nothing_is_recomputed():
    hidden, weight, labels = _inputs()
    picked = score_positions(hidden, weight, None, labels, logits_budget_bytes=4 * VOCABULARY * POSITIONS)[0]
    assert "Checkpoint" not in type(picked.grad_fn).__name__
    assert picked.grad_fn.next_functions[0][0].name() == "GatherBackward0"


def test_no_position_gives_an_attached_empty_result():
    hidden, weight, labels = _inputs()
    picked = score_positions(hidden[:0], weight, None, labels[:0], logits_budget_bytes=1024)[0]
    picked.sum().backward()
    assert picked.shape == (0,)
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def _model(tiny_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    return model


def _scored(model, ids, labels):
    model.zero_grad()
    out = model(input_ids=ids, labels=labels, fused_lm_head=True)
    out.log_probs.sum().backward()
    return out.log_probs.detach(), out.entropy.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("budget", [10**9, 4096])
def test_a_model_gives_what_trl_gives(tiny_dir, budget):
    plain, ours = _model(tiny_dir), _model(tiny_dir)
    add_selective_scoring(ours, logits_budget_bytes=budget, entropy_gradient=False)
    ids = torch.randint(4, 90, (3, 17))
    labels = ids.clone()
    labels[0, :10] = labels[1, 3:9] = -100
    labels[2] = -100
    expected, found = _scored(plain, ids, labels), _scored(ours, ids, labels)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    for name, gradient in expected[2].items():
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_only_labelled_positions_reach_the_head(tiny_dir):
    model = _model(tiny_dir)
    add_selective_scoring(model, logits_budget_bytes=10**9, entropy_gradient=False)
    ids = torch.randint(4, 90, (2, 12))
    labels = ids.masked_fill(torch.arange(12) < 9, -100)
    with _LargestBlock(model.config.vocab_size, model.config.hidden_size) as seen, torch.no_grad():
        model(input_ids=ids, labels=labels, fused_lm_head=True)
    assert seen.largest == 2 * 3 * model.config.vocab_size


def test_generation_and_plain_forward_are_untouched(tiny_dir):
    before, after = AutoModelForCausalLM.from_pretrained(tiny_dir), _model(tiny_dir)
    add_selective_scoring(after, logits_budget_bytes=1024, entropy_gradient=False)
    ids = torch.randint(4, 90, (2, 6))
    assert torch.equal(before(input_ids=ids).logits, after(input_ids=ids).logits)
    assert torch.equal(
        before.generate(ids, do_sample=False, max_new_tokens=5), after.generate(ids, do_sample=False, max_new_tokens=5)
    )
