"""One number for a tensor: what changes it, and where an engine keeps what the trainer sends."""

from __future__ import annotations

import pytest
import torch

from posttrain.rollouts.digests import EngineTensors, comparable, digest, model_digest, unsent

# A Llama of width 4 as vLLM holds it: queries of 4 rows, keys and values of 2, one embedding under two names.
ENGINE = EngineTensors(
    tensors={
        "model.embed_tokens.weight": ("float32", (64, 4)),
        "lm_head.weight": ("float32", (64, 4)),
        "model.layers.0.self_attn.qkv_proj.weight": ("bfloat16", (8, 4)),
        "model.norm.weight": ("float32", (4,)),
    },
    packed={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
)
SENT = {
    "model.embed_tokens.weight": (50, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.self_attn.k_proj.weight": (2, 4),
    "model.layers.0.self_attn.v_proj.weight": (2, 4),
    "model.norm.weight": (4,),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_every_element_and_its_place_count(dtype):
    torch.manual_seed(0)
    value = (torch.randn(7, 5) * 40).to(dtype)
    seen = {digest(value)}
    for place in range(value.numel()):
        other = value.clone()
        other.view(-1)[place] += 1
        seen.add(digest(other))
    swapped = value.clone()
    swapped[[0, 1]] = value[[1, 0]]
    seen.add(digest(swapped))
    assert len(seen) == value.numel() + 2


def test_equal_bits_give_equal_digests_whatever_the_memory_layout():
    value = torch.randn(6, 4)
    assert digest(value) == digest(value.t().contiguous().t()) == digest(value.clone())
    assert digest(value[2:4]) == digest(value[2:4].clone())
    assert 0 <= digest(value) < 2**64
    assert digest(torch.empty(0)) == 0


def test_long_tensors_are_read_in_chunks_without_a_seam(monkeypatch):
    value = torch.randn(1000)
    whole = digest(value)
    monkeypatch.setattr("posttrain.rollouts.digests._CHUNK", 7)
    assert digest(value) == whole


def test_a_model_digest_knows_the_order_of_tensors():
    first, second = torch.randn(3), torch.randn(3)
    assert model_digest([first, second]) != model_digest([second, first])


def test_joined_projections_and_the_tied_head_are_found():
    slices, missing = comparable(ENGINE, SENT)
    assert missing == []
    found = {(part.source.removeprefix("model."), part.name): (part.first, part.rows) for part in slices}
    joined = "model.layers.0.self_attn.qkv_proj.weight"
    assert found == {
        ("embed_tokens.weight", "model.embed_tokens.weight"): (0, 50),  # the engine pads the vocabulary
        ("layers.0.self_attn.q_proj.weight", joined): (0, 4),
        ("layers.0.self_attn.k_proj.weight", joined): (4, 2),
        ("layers.0.self_attn.v_proj.weight", joined): (6, 2),
        ("norm.weight", "model.norm.weight"): (0, 4),
        ("embed_tokens.weight", "lm_head.weight"): (0, 50),
    }
    assert ENGINE.dtype("model.layers.0.self_attn.k_proj.weight") is torch.bfloat16


def test_a_head_of_its_own_is_compared_with_itself_alone():
    slices, _ = comparable(ENGINE, {**SENT, "lm_head.weight": (50, 4)})
    assert [part.source for part in slices if part.name == "lm_head.weight"] == ["lm_head.weight"]


def test_what_was_never_sent_is_named():
    assert unsent(ENGINE, SENT) == []
    for name, told in (
        ("model.norm.weight", "model.norm.weight"),
        ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.qkv_proj.weight"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
    ):
        assert told in unsent(ENGINE, {key: shape for key, shape in SENT.items() if key != name})


def test_what_cannot_be_compared_is_named():
    _, missing = comparable(ENGINE, {"model.rotary": (3,), "model.embed_tokens.weight": (50, 5)})
    assert missing == ["model.rotary", "model.embed_tokens.weight"]
    in_parts = EngineTensors(tensors=ENGINE.tensors, packed=ENGINE.packed, parts=2)
    slices, missing = comparable(in_parts, SENT)
    assert [part.source for part in slices] == ["model.norm.weight"] and len(missing) == 4
