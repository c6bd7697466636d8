"""Positions of padded rows: counted from the row's first token, whatever the batch has put before it."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.models.positions import row_positions, takes_positions, with_positions


def test_positions_start_at_a_rows_first_token_and_end_at_its_last():
    mask = torch.tensor(
        [
            [1, 1, 1, 1, 1],
            [0, 0, 1, 1, 1],  # padded on the left
            [1, 1, 0, 0, 0],  # on the right: no id beyond the row
            [0, 1, 1, 1, 0],
            [1, 0, 0, 1, 0],  # tokens that are hidden from attention keep their places
            [0, 0, 0, 0, 0],
        ]
    )
    expected = [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [0, 1, 1, 1, 1], [0, 0, 1, 2, 2], [0, 1, 2, 3, 3], [0, 1, 2, 3, 4]]
    assert row_positions(mask).tolist() == expected


def test_only_models_that_read_positions_get_them():
    with torch.device("meta"):
        llama = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", num_hidden_layers=1))
        mamba = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", num_hidden_layers=1))
    assert takes_positions(llama) and not takes_positions(mamba)
    inputs = {"input_ids": torch.zeros(1, 2), "attention_mask": torch.tensor([[0, 1]])}
    assert with_positions(llama, inputs)["position_ids"].tolist() == [[0, 0]]
    assert with_positions(mamba, inputs) == inputs
    given = inputs | {"position_ids": torch.tensor([[3, 4]])}
    assert with_positions(llama, given)["position_ids"].tolist() == [[3, 4]]
