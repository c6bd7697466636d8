"""Row-aligned dictionaries: selecting, trimming, widening."""

from __future__ import annotations

import torch

from posttrain.seam.policy.batches import RolloutBatch, select_rows, trainable_mask, trim_padding, widen


def batch(**more):
    return {
        "prompt_ids": torch.tensor([[0, 0, 7, 8], [0, 5, 6, 9]]),
        "prompt_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 0, 0, 0], [3, 0, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]),
        "advantages": torch.tensor([0.5, -0.5]),
        **more,
    }


def test_padding_of_every_row_is_cut_and_nothing_else():
    loss_weights = torch.arange(10.0).view(2, 5)
    trimmed = trim_padding(batch(loss_weights=loss_weights, importance_sampling_ratio=torch.ones(2, 1)))
    assert trimmed["prompt_ids"].tolist() == [[0, 7, 8], [5, 6, 9]]
    assert trimmed["prompt_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert trimmed["completion_ids"].tolist() == [[1, 2], [3, 0]]
    assert torch.equal(trimmed["loss_weights"], loss_weights[:, :2])
    assert trimmed["importance_sampling_ratio"].shape == (2, 1)  # one number a row: sequence-level
    assert trimmed["advantages"].shape == (2,)


def test_one_completion_column_stays():
    empty = trim_padding(batch(completion_mask=torch.zeros(2, 5, dtype=torch.long)))
    assert empty["completion_ids"].shape == (2, 1)


def test_prompts_as_long_as_completions_are_not_mixed_up():
    """P = T: a prompt tensor is cut on the left only, whatever its width."""
    wide = batch()
    wide["completion_ids"], wide["completion_mask"] = wide["completion_ids"][:, :4], wide["completion_mask"][:, :4]
    trimmed = trim_padding(wide)
    assert trimmed["prompt_ids"].shape == (2, 3) and trimmed["completion_ids"].shape == (2, 2)


def test_vision_batches_keep_their_padding():
    tensors = batch(pixel_values=torch.zeros(3, 2))
    assert trim_padding(tensors)["prompt_ids"].shape == (2, 4)


def test_rows_are_selected_in_tensors_and_lists():
    tensors = batch(names=["a", "b"], num_items=torch.tensor(3.0), missing=None)
    picked = select_rows(tensors, torch.tensor([1, 1, 0]))
    assert picked["prompt_ids"].tolist() == [[0, 5, 6, 9], [0, 5, 6, 9], [0, 0, 7, 8]]
    assert picked["names"] == ["b", "b", "a"]
    assert picked["num_items"] == 3.0 and picked["missing"] is None
    assert tensors["names"] == ["a", "b"]


def test_widening_fills_on_the_right_and_never_cuts():
    values = torch.tensor([[1, 2], [3, 4]])
    assert widen(values, 4, -1).tolist() == [[1, 2, -1, -1], [3, 4, -1, -1]]
    assert widen(values, 2, 0) is values and widen(values, 1, 0) is values
    assert widen(values, 3, 0).dtype == values.dtype


def test_trainable_tokens_are_in_every_mask():
    masks = batch(tool_mask=torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]), trainable_mask=None)
    assert trainable_mask(masks).tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    masks["trainable_mask"] = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert trainable_mask(masks).tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert trainable_mask(masks).dtype == torch.float32


def test_a_rank_knows_its_share_of_the_gathered_rows():
    rollouts = RolloutBatch({}, [{}] * 4, torch.zeros(8, 1), torch.zeros(8, dtype=torch.bool), 4, 8, torch.zeros(8))
    assert rollouts.num_rows == 4
    assert rollouts.local(torch.arange(8)).tolist() == [4, 5, 6, 7]
    assert [rollouts.group_of(row) for row in range(4)] == [0, 0, 0, 0]  # a group on two ranks
    assert [
        RolloutBatch({}, [{}] * 4, torch.zeros(8, 1), torch.zeros(8), 4, 2, torch.zeros(8)).group_of(i)
        for i in range(4)
    ] == [
        2,
        2,
        3,
        3,
    ]
