"""State files of a checkpoint: what goes in comes out, and what cannot is refused by name."""

from __future__ import annotations

import json

import pytest
import torch

from posttrain.errors import ResumeError
from posttrain.seam.checkpoint import state

CPU = torch.device("cpu")


def test_nested_state_round_trips(tmp_path):
    content = {
        "step": 3,
        "rate": 0.1,
        "none": None,
        "flag": True,
        "text": "é",
        "rollouts": [{"ids": torch.arange(6).view(2, 3).t(), "names": ["a", "b"]}, {}],
        "pair": (torch.tensor(2.5, dtype=torch.bfloat16), False),
        "empty": torch.zeros(0, 4),
        "nan": float("nan"),
    }
    state.save_rank_state(tmp_path, 1, content)
    back = state.load_rank_state(tmp_path, 1, CPU)
    assert back.keys() == content.keys()
    assert torch.equal(back["rollouts"][0]["ids"], content["rollouts"][0]["ids"])
    assert back["rollouts"][0]["names"] == ["a", "b"] and back["rollouts"][1] == {}
    assert back["pair"][0].dtype == torch.bfloat16 and back["pair"] == [content["pair"][0], False]
    assert back["empty"].shape == (0, 4)
    assert back["nan"] != back["nan"]
    for name in ("step", "rate", "none", "flag", "text"):
        assert back[name] == content[name] and type(back[name]) is type(content[name])
    assert not list(tmp_path.glob("*.tmp"))


def test_a_state_of_tensors_that_share_memory_round_trips(tmp_path):
    base = torch.arange(4.0)
    state.save_rank_state(tmp_path, 0, {"whole": base, "part": base[1:3]})
    assert state.load_rank_state(tmp_path, 0, CPU)["part"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("value", [{1, 2}, object(), torch.float32, b"bytes"], ids=["set", "object", "dtype", "bytes"])
def test_what_is_neither_tensor_nor_json_is_refused_where_it_stands(value, tmp_path):
    with pytest.raises(TypeError, match=rf"state/buffer/1/odd is a {type(value).__name__}"):
        state.save_rank_state(tmp_path, 0, {"buffer": [0, {"odd": value}]})
    assert not list(tmp_path.iterdir())


def test_keys_that_are_not_text_are_refused():
    """JSON would turn them into text, and the resumed run would look for numbers."""
    with pytest.raises(TypeError, match="state at method has the key 3"):
        state.split_tensors({3: 1.0}, "method", {})


def test_damaged_and_missing_files_are_named(tmp_path):
    state.save_rank_state(tmp_path, 0, {"x": torch.ones(1)})
    (tmp_path / "posttrain_rank0.json").write_text('{"x": ')
    with pytest.raises(ResumeError, match=r"posttrain_rank0.json: the file is damaged .*Resume from an earlier"):
        state.load_rank_state(tmp_path, 0, CPU)
    with pytest.raises(ResumeError, match=r"posttrain_rank1.json: the checkpoint lacks this file"):
        state.load_rank_state(tmp_path, 1, CPU)
    state.save_rank_state(tmp_path, 0, {"x": torch.ones(1)})
    (tmp_path / "posttrain_rank0.safetensors").write_bytes(b"\x01" * 20)
    with pytest.raises(ResumeError, match=r"posttrain_rank0.safetensors: the file is damaged"):
        state.load_rank_state(tmp_path, 0, CPU)
    (tmp_path / "posttrain_rank0.safetensors").unlink()
    with pytest.raises(ResumeError, match=r"posttrain_rank0.safetensors"):
        state.load_rank_state(tmp_path, 0, CPU)


def test_state_files_run_no_code(tmp_path):
    state.save_rank_state(tmp_path, 0, {"x": torch.ones(1)})
    assert json.loads((tmp_path / "posttrain_rank0.json").read_text()) == {"x": {"__tensor__": "state/x"}}
    assert (tmp_path / "posttrain_rank0.safetensors").read_bytes()[8:9] == b"{"  # safetensors' JSON header


def test_complete_checkpoints_are_found_in_order(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best", "checkpoint-11", "elsewhere"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            state.write_json(tmp_path / name / state.COMPLETE_FILE, {"step": 0})
    assert [path.name for path in state.complete_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert state.complete_checkpoints(tmp_path / "none") == []
