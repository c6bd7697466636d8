"""Headers of weight files: shapes and names against the model's, without reading a tensor."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from posttrain.models.headers import absent, other_shapes, stored_dtype, stored_tensors


def test_shapes_types_and_missing_names(tmp_path):
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    stored = stored_tensors(tmp_path)
    assert stored["a"].shape == (2, 3) and stored["b"].dtype == "bfloat16" and stored_dtype(stored) == "float32"
    assert other_shapes(stored, {"a": (2, 3), "b": (5,)}) == {"b": ((4,), (5,))}
    assert absent(stored, {"a": (2, 3), "b": (4,), "c": (1,)}, {}) == ["c"]
    assert absent(stored, {"a": (2, 3), "c": (1,)}, {"b": "c"}) == []  # b is c under another name
    assert absent(stored, {"a": (2, 3), "c": (1,)}, {}) == []  # b may become c while it loads


def test_a_file_that_was_cut_off_is_named(tmp_path):
    save_file({"a": torch.zeros(200)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(ValueError, match="model.safetensors"):
        stored_tensors(tmp_path)


def test_a_folder_without_such_files_has_no_tensors(tmp_path):
    assert stored_tensors(tmp_path) == {}
