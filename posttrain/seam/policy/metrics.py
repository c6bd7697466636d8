"""Numbers of a generation batch and of an update that say early whether a policy run is healthy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.seam.policy.batches import RolloutBatch, trainable_mask


def group_counts(verdicts: Tensor, num_generations: int) -> tuple[Tensor, Tensor]:
    """Solved and verified rollouts of each prompt group.

    Args:
        verdicts: (N*G,) 1, 0 or NaN (not verified); rows of one prompt are adjacent.
        num_generations: G.

    Returns:
        (solved, verified), each (N,) int64.
    """
    grouped = verdicts.view(-1, num_generations)
    return (grouped == 1).sum(dim=1), (~grouped.isnan()).sum(dim=1)


def log_rollouts(metrics: dict[str, list[float]], rollouts: RolloutBatch, verdicts: Tensor) -> None:
    """Append `groups/*` and `rollout/*` fractions of a gathered generation batch to TRL's metric lists.

    A group is `all_correct` or `all_wrong` if every verified rollout agrees, `mixed` otherwise, `unverified` if the
    verifier scored none of it; the four fractions add up to 1. Runs on every rank with the same gathered values.
    """
    solved, verified = group_counts(verdicts, rollouts.num_generations)
    wrong = (solved == 0) & (verified > 0)
    correct = (solved == verified) & (verified > 0)
    unverified = verified == 0
    for name, flags in {
        "all_wrong": wrong,
        "all_correct": correct,
        "mixed": ~(wrong | correct | unverified),
        "unverified": unverified,
    }.items():
        metrics[f"groups/{name}"].append(flags.float().mean().item())
    known = verdicts[~verdicts.isnan()]
    metrics["rollout/accuracy"].append(known.mean().item() if len(known) else float("nan"))
    metrics["rollout/truncated_fraction"].append(rollouts.is_truncated.float().mean().item())


def log_update(metrics: dict[str, list[float]], contributing: list[Tensor], accelerator: Any) -> None:
    """Append `update/gradient_rows`, the fraction of the optimizer step's rows whose gradient is not exactly zero."""
    local = torch.stack(
        [torch.stack([rows.sum(), rows.new_tensor(len(rows), dtype=torch.long)]) for rows in contributing]
    )
    nonzero, total = accelerator.reduce(local.sum(dim=0).float(), reduction="sum").tolist()
    metrics["update/gradient_rows"].append(nonzero / total)


def log_lengths(metrics: dict[str, list[float]], tensors: dict[str, Any], accelerator: Any) -> None:
    """Append mean and 95th percentile of the trained tokens per row over all ranks."""
    lengths = accelerator.gather(trainable_mask(tensors).sum(dim=1))
    metrics["rollout/length_mean"].append(lengths.mean().item())
    metrics["rollout/length_p95"].append(torch.quantile(lengths, 0.95).item())
