"""Headers of weight files: shapes and types, without reading a tensor."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from posttrain.models.headers import stored_dtype, stored_tensors


def test_shapes_and_types(tmp_path):
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    stored = stored_tensors(tmp_path)
    assert stored["a"].shape == (2, 3) and stored["b"].dtype == "bfloat16" and stored_dtype(stored) == "float32"


def test_a_file_that_was_cut_off_is_named(tmp_path):
    save_file({"a": torch.zeros(200)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(ValueError, match="model.safetensors"):
        stored_tensors(tmp_path)


def test_a_folder_without_such_files_has_no_tensors(tmp_path):
    assert stored_tensors(tmp_path) == {}
