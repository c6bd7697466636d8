"""Columns whose names mean something to the libraries below are refused by name."""

from __future__ import annotations

import pytest
from datasets import Dataset

from posttrain.data.names import MEANINGS, name_findings, refuse_taken_names
from posttrain.errors import DataError


def test_names_that_are_taken_and_names_that_are_free():
    taken = [error.got for error in name_findings([*MEANINGS, "mixture_source"], "data.train")]
    assert taken == [*MEANINGS, "mixture_source"]
    # trl 1.16 reads none of these for a policy; the supervised methods keep no further column at all.
    free = ["text", "messages", "chosen", "labels", "input_ids", "attention_mask", "tools", "self", "seq_lengths", "x"]
    assert not list(name_findings(free, "data.train"))
    assert not list(name_findings(["mixture_source"], "data.train", is_mixed=True))


def test_a_trainer_refuses_images_unless_its_processor_sees_them():
    rows = Dataset.from_dict({"prompt": ["q"], "image": [None]})
    with pytest.raises(DataError, match=r"train_dataset: the name of the column is taken: trl takes.*got 'image'"):
        refuse_taken_names(rows, object())
    refuse_taken_names(rows, type("Processor", (), {"image_processor": None})())
    with pytest.raises(DataError, match="got 'completions'"):
        refuse_taken_names(Dataset.from_dict({"prompt": ["q"], "completions": ["x"]}))
