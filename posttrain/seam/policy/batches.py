"""What passes between the seam and a method: rollouts once per generation batch, log-probs once per micro-batch.

Axes: B rows of a micro-batch or of a rank's generation batch, P prompt tokens, T completion tokens, G completions per
prompt, W ranks, F reward functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Keys of trl 1.16's batch that `_get_per_token_logps_and_entropies` takes beside the token ids.
VISION_KEYS = (
    "pixel_values image_grid_thw num_images pixel_attention_mask spatial_shapes num_tiles image_sizes token_type_ids "
    "mm_token_type_ids image_position_ids"
).split()


@dataclass
class RolloutBatch:
    """One rank's share of a scored generation batch, before its rows are shuffled and split.

    Attributes:
        tensors: TRL's batch dictionary: `prompt_ids (B, P)` left-padded, `completion_ids (B, T)` right-padded, their
            masks, `advantages (B,)`, and optional `old_per_token_logps (B, T)` and so on. A method may overwrite rows,
            widen T and add row-aligned keys; `trainable_mask (B, T)` (1 = the token enters the loss) is always there.
        rows: the raw dataset rows, one per rollout (a prompt's row appears G times).
        rewards: (W*B, F) float32, gathered over ranks in dataset order; NaN where a function returned None, and in the
            whole row where any function failed.
        is_truncated: (W*B,) bool, gathered: the completion hit the length limit without an end token.
        row_offset: index of this rank's first row among the W*B rows.
        num_generations: G. Rows k*G ... k*G+G-1 of `rewards` belong to one prompt.
        verdict_values: (W*B,) what the verifier returned; NaN for None, or if the verifier itself failed.
    """

    tensors: dict[str, Any]
    rows: list[dict[str, Any]]
    rewards: Tensor
    is_truncated: Tensor
    row_offset: int
    num_generations: int
    verdict_values: Tensor

    @property
    def num_rows(self) -> int:
        """B, rollouts of this rank."""
        return len(self.rows)

    def local(self, values: Tensor) -> Tensor:
        """This rank's rows of a gathered (W*B, ...) tensor."""
        return values[self.row_offset : self.row_offset + self.num_rows]

    def group_of(self, local_row: int) -> int:
        """Index of the prompt group, counted over all ranks, that a local row belongs to."""
        return (self.row_offset + local_row) // self.num_generations


@dataclass
class PolicyBatch:
    """Inputs of a policy loss for one micro-batch; every tensor is (B, T) unless said otherwise.

    Attributes:
        logps: log-probabilities of the completion tokens under the current policy, with gradient.
        old_logps: the same under the policy that made the rollouts, detached; equals `logps.detach()` when the
            rollouts are exactly on-policy.
        mask: 1 where the token is trained.
        advantages: (B,) or (B, T).
        entropies: per-token entropy in nats; carries a gradient only if an entropy bonus is on. None if not computed.
        ref_logps: reference-policy log-probs, or None without a KL term.
        is_ratio: vLLM importance-sampling correction, (B, T) or (B, 1), or None.
        extras: every further key of the batch, among them what the method added in `prepare_rollouts`.
    """

    logps: Tensor
    old_logps: Tensor
    mask: Tensor
    advantages: Tensor
    entropies: Tensor | None = None
    ref_logps: Tensor | None = None
    is_ratio: Tensor | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


def trainable_mask(tensors: Mapping[str, Any]) -> Tensor:
    """(B, T) float mask of the tokens that may enter the loss: real completion tokens that are neither tool output nor
    switched off by the method."""
    mask = tensors["completion_mask"].float()
    for key in ("tool_mask", "trainable_mask"):
        if tensors.get(key) is not None:
            mask = mask * tensors[key].float()
    return mask


def is_left_out(tensors: Mapping[str, Any]) -> Tensor:
    """(B,) bool: a reward failed on the row, so it enters no count; False again once a method has written a
    demonstration over it.
    """
    return tensors["is_failed"] & (trainable_mask(tensors).sum(dim=1) == 0)


def select_rows(tensors: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """A batch dictionary with only the given rows, in that order.

    Args:
        tensors: row-aligned tensors and lists; 0-d tensors and None pass through.
        rows: (K,) int64 indices.
    """
    picked: dict[str, Any] = {}
    for key, value in tensors.items():
        if value is None or (isinstance(value, Tensor) and value.ndim == 0):
            picked[key] = value
        elif isinstance(value, Tensor):
            picked[key] = value[rows.to(value.device)]
        else:
            picked[key] = [value[i] for i in rows.tolist()]
    return picked


def trim_padding(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Cut prompt columns that are padding in every row (left) and completion columns that are (right).

    At least one completion column stays, so that a batch of fully masked rows still has a forward with a graph.
    Vision inputs are aligned with the untrimmed prompt, so a batch that has them is returned as it is.
    """
    trimmed = dict(tensors)
    if any(key in trimmed for key in ("pixel_values", "token_type_ids", "mm_token_type_ids")):
        return trimmed
    prompt, completion = trimmed["prompt_mask"], trimmed["completion_mask"]
    used = prompt.any(dim=0).nonzero()
    start = int(used[0]) if len(used) else prompt.size(1)
    used = completion.any(dim=0).nonzero()
    end = int(used[-1]) + 1 if len(used) else 1
    width = completion.size(1)
    for key, value in trimmed.items():
        if not isinstance(value, Tensor) or value.ndim != 2:
            continue
        if key.startswith("prompt_"):
            trimmed[key] = value[:, start:]
        elif value.size(1) == width and width > 1:
            trimmed[key] = value[:, :end]
    return trimmed


def widen(values: Tensor, width: int, fill: float | int) -> Tensor:
    """Pad a (B, T) tensor on the right to `width` columns with `fill`; returned as it is if already that wide."""
    missing = width - values.size(1)
    if missing <= 0:
        return values
    return torch.cat([values, values.new_full((values.size(0), missing), fill)], dim=1)
