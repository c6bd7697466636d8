"""Off CUDA: log-probabilities of the labelled positions only, without TRL's tile-and-recompute path.

trl 1.16 patches `model.forward` with a fused LM head. On CUDA its Triton kernel scores the labelled positions; on
every other device it scores all positions and recomputes them in the backward pass, which is 3 to 13 times slower
than needed on a CPU. Here the same patched forward (with all that it knows about model families) is called with two
of its parts exchanged for the duration of the call: the position selection and the per-token kernel.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from trl.trainer import utils as trl_utils

from posttrain.models.positions import with_positions

_Columns = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _score_block(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    temperature: float,
    softcap: float | None,
    scale: float,
    outputs: tuple[str, ...],
    entropy_gradient: bool,
) -> _Columns:
    """Statistics of (N, V) logits built from (N, D) hidden states: log-prob of the label and what `outputs` names."""
    logits = F.linear(hidden.to(weight.dtype), weight, bias).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature if temperature != 1.0 else logits
    log_probs = torch.log_softmax(logits, dim=-1)
    picked = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    entropy = squares = mean = top1 = None
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        if "entropy" in outputs:
            entropy = -(log_probs.exp() * log_probs).sum(-1)
    if "log_sum_sq_probs" in outputs:
        squares = torch.logsumexp(2.0 * log_probs, dim=-1)
    if "mean_logits" in outputs:
        mean = logits.mean(-1)
    if "is_top1" in outputs:
        top1 = logits.argmax(-1) == labels
    return picked, entropy, squares, mean, top1


def score_positions(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    outputs: tuple[str, ...] = ("log_probs",),
    entropy_gradient: bool = False,
    logits_budget_bytes: int,
) -> _Columns:
    """Log-probabilities of N positions whose float32 logits never exceed a byte budget.

    While N*V*4 bytes fit the budget the logits are built once and kept for the backward pass; beyond it the positions
    go through in blocks that are recomputed in the backward pass.

    Args:
        hidden: (N, D) hidden states of the positions before the label.
        weight, bias: (V, D), (V,) or None: the LM head.
        labels: (N,) int64 token ids in [0, V).
        temperature, softcap, scale: logits = cap(scale * head(hidden)) / temperature.
        outputs: what to compute beside the log-probability ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1").
        entropy_gradient: whether the entropy is differentiated (an entropy bonus needs it, a metric does not).
        logits_budget_bytes: size limit of one (rows, V) float32 block.

    Returns:
        (log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1), each (N,) or None if not asked for.

    Gradient: to hidden, weight and bias through log_probs (and entropy if asked for).
    Edge cases: N = 0 gives empty tensors that stay attached to the graph.
    """
    block = max(1, logits_budget_bytes // (4 * weight.size(0)))
    fixed = (temperature, softcap, scale, outputs, entropy_gradient)
    if hidden.size(0) <= block:
        return _score_block(hidden, weight, bias, labels, *fixed)
    parts = [
        checkpoint(
            _score_block, hidden[i : i + block], weight, bias, labels[i : i + block], *fixed, use_reentrant=False
        )
        for i in range(0, hidden.size(0), block)
    ]
    columns = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    return columns[0], columns[1], columns[2], columns[3], columns[4]


@contextmanager
def _exchanged(kernel: object) -> Iterator[None]:
    """trl 1.16: `_fused_forward` looks both names up in `trl.trainer.utils` at each call."""
    saved = trl_utils._use_triton, trl_utils._ChunkedLogProbFunction
    trl_utils._use_triton, trl_utils._ChunkedLogProbFunction = (lambda device: True), kernel
    try:
        yield
    finally:
        trl_utils._use_triton, trl_utils._ChunkedLogProbFunction = saved


@dataclass
class Scoring:
    """Live settings of one model's head off CUDA. `outputs` replaces the per-token fields TRL asks for; None keeps
    them.
    """

    logits_budget_bytes: int
    entropy_gradient: bool
    outputs: tuple[str, ...] | None = None


def add_selective_scoring(model: PreTrainedModel, *, logits_budget_bytes: int, entropy_gradient: bool) -> Scoring:
    """Make a model that TRL gave a fused head score only labelled positions off CUDA.

    Args:
        model: the base model (unwrap PEFT first); its `forward` already takes `fused_lm_head=True`.
        logits_budget_bytes: see `score_positions`.
        entropy_gradient: see `score_positions`.

    Returns:
        The settings, read at every call; a trainer may change them between calls.

    Rows with a mask are scored at positions of their own, on every device: trl 1.16 counts a batch's columns, padding
    too. On CUDA nothing else changes. Parameters partitioned by ZeRO-3 are freed between forward and backward, so with
    them TRL's own kernel, which gathers again, scores the selected positions.
    """
    fused = model.forward
    scoring = Scoring(logits_budget_bytes=logits_budget_bytes, entropy_gradient=entropy_gradient)

    class _Kernel:
        original = trl_utils._ChunkedLogProbFunction

        @classmethod
        def apply(cls, hidden, weight, bias, labels, temperature, chunk, softcap, scale, wanted):  # type: ignore[no-untyped-def]
            if hasattr(weight, "ds_id"):
                return cls.original.apply(hidden, weight, bias, labels, temperature, chunk, softcap, scale, wanted)
            return score_positions(
                hidden,
                weight,
                bias,
                labels,
                temperature=temperature,
                softcap=softcap,
                scale=scale,
                outputs=wanted if scoring.outputs is None else scoring.outputs,
                entropy_gradient=scoring.entropy_gradient,
                logits_budget_bytes=scoring.logits_budget_bytes,
            )

    @functools.wraps(type(model).forward)
    def forward(self, *args, fused_lm_head=False, **kwargs):  # type: ignore[no-untyped-def]
        if not fused_lm_head:
            return fused(*args, **kwargs)
        kwargs = with_positions(self, kwargs)
        if self.device.type == "cuda":
            return fused(*args, fused_lm_head=True, **kwargs)
        with _exchanged(_Kernel):
            return fused(*args, fused_lm_head=True, **kwargs)

    model.forward = types.MethodType(forward, model)
    return scoring
