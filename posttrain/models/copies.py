"""A small copy of an architecture, made from a configuration alone: every kind of layer once, random weights.

What a model does with padding, packing and positions is decided by its code and its configuration, not by its size or
its weights. So a copy of a few thousand weights tells it, before anything is downloaded or a GPU is booked.
Left out: quantised layers, and what a repository's own code does beyond the names below.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

# A model up to this size is copied as it is.
WHOLE_PARAMETERS = 2_000_000
# A copy may have this many weights where its widths cannot be changed.
MOST_PARAMETERS = 40_000_000
_HIDDEN, _HEADS, _HEAD = 32, 4, 8
# Distribution of the weights beside those the model class makes: at its own, a small model says nearly the same
# of every row.
_NOISE = 0.1
_LAYERS = "num_hidden_layers num_layers n_layer n_layers decoder_layers num_decoder_layers num_blocks".split()
# Keys that give kinds of layers by their number: a copy then keeps up to this many.
_PERIODS = "period interval offset every pattern sparse_step decoder_sparse_step idxs layer_ids block_types".split()
_PERIODIC_LAYERS = 8
_SIZES = (
    (
        _HIDDEN,
        "hidden_size d_model n_embd lru_width emb_dim embedding_dim embedding_size word_embed_proj_dim "
        "mamba_d_ssm_hidden axial_pos_embds_dim input_embedding_size output_embedding_size ple_embed_dim "
        "hidden_size_per_layer_input backbone_hidden_size",
    ),
    (
        2 * _HIDDEN,
        "intermediate_size ffn_dim ffn_hidden_size n_inner decoder_ffn_dim dff dim_ff feed_forward_size "
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size "
        "intermediate_size_mlp dense_intermediate_size moe_shared_expert_intermediate_size mamba_d_ssm d_inner "
        "encoder_ffn_dim",
    ),
    (
        _HEADS,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
        "num_decoder_attention_heads encoder_attention_heads swa_num_attention_heads index_n_heads num_experts "
        "num_local_experts n_routed_experts moe_num_experts linear_num_value_heads linear_num_heads zero_expert_num "
        "num_encoder_attention_heads",
    ),
    (
        2,
        "num_experts_per_tok num_experts_per_token moe_topk moe_k linear_num_key_heads mlp_expert_topk "
        "swa_num_key_value_heads hc_lowrank gated_norm_rank",
    ),
    (
        1,
        "n_group topk_group n_groups mamba_n_groups mamba_ngroups num_shared_experts n_shared_experts "
        "moe_num_shared_experts num_nextn_predict_layers o_groups num_expert_group pretraining_tp encoder_layers "
        "num_encoder_layers",
    ),
    (
        _HEAD,
        "head_dim qk_nope_head_dim v_head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim "
        "linear_head_dim mamba_d_head mamba_head_dim mamba_headdim kv_channels swa_head_dim index_head_dim "
        "global_head_dim d_head dim_head attention_head_size d_rel laurel_rank mamba_d_state ssm_state_size "
        "state_size rotary_dim",
    ),
    (2 * _HEADS, "mamba_n_heads mamba_num_heads mamba_dt_rank time_step_rank router_hidden_size"),
    (
        16,
        "q_lora_rank kv_lora_rank o_lora_rank adapter_rank chunk_size mamba_chunk_size index_topk "
        "query_pre_attn_scalar",
    ),
    # Shorter than the rows that are measured, so that windows and chunks take part.
    (4, "sliding_window attention_window_size attention_chunk_size window_size sliding_window_size local_attention"),
    (256, "vocab_size vocab_size_per_layer_input ngram_vocab_size_base"),
    (128, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions"),
)
_SMALL = {name: size for size, names in _SIZES for name in names.split()}
_KEY_VALUE_HEADS = "num_key_value_heads num_kv_heads n_head_kv".split()
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_HEAD_WIDTHS = {"head_dim", "qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim", "kv_channels", "rotary_dim"}


@dataclass(frozen=True)
class Copy:
    """A model with random weights; whether it has the sizes of the model that it stands for."""

    model: PreTrainedModel
    is_whole: bool


class NoCopy(Exception):
    """No small copy of the configuration could be made; the text says why."""


def small_copy(config: Any, *, make: Callable[..., Any] | None = None, attention: str | None = None) -> Copy:
    """A causal language model like the one that a configuration describes, in float32 and evaluation mode.

    Each kind of layer is there at least once. The global generator is left as found.

    Args:
        config: of the model; it is not changed. Of a model with several parts the text part counts.
        make: gives a model of (configuration, dtype=, attn_implementation=); None = transformers' class for it.
        attention: attention implementation; "eager" or "sdpa". None = transformers' choice.

    Raises:
        NoCopy: nothing that can be run was found.
    """
    chosen = {} if attention is None else {"attn_implementation": attention}
    built = functools.partial(make or AutoModelForCausalLM.from_config, dtype=torch.float32, **chosen)
    reasons = []
    for attempt in (_as_it_is, _narrow, _narrow_twice, _narrow_with_heads, _shallow):
        limit = WHOLE_PARAMETERS if attempt is _as_it_is else MOST_PARAMETERS
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(0)
                model = _built(attempt(config), limit, built)
                if model is not None:
                    _run(model)
                    return Copy(model, is_whole=attempt is _as_it_is)
        except Exception as problem:  # noqa: BLE001 - a model's own code may raise anything on sizes it was not made for
            reasons.append(f"{type(problem).__name__}: {' '.join(str(problem).split())[:120]}")
    raise NoCopy(" | ".join(reasons) or "the layers are too wide")


def _built(config: Any, limit: int, make: Callable[..., Any]) -> PreTrainedModel | None:
    """The model with random weights; None where it would have more than `limit`."""
    with torch.device("meta"):
        size = sum(weight.numel() for weight in make(copy.deepcopy(config)).parameters())
    if size > limit:
        return None
    model: PreTrainedModel = make(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.add_(_NOISE * torch.randn_like(weight))
    return model


def _run(model: PreTrainedModel) -> None:
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise ValueError("its logits are not finite")


# ---- configurations ----


def _as_it_is(config: Any) -> Any:
    return config


def _narrow(config: Any) -> Any:
    return _changed(config, lambda values: _shrink(_fewer_layers(values)))


def _narrow_twice(config: Any) -> Any:
    """Two layers of each kind: some share weights among those of a kind."""
    return _changed(config, lambda values: _shrink(_fewer_layers(values, times=2)))


def _narrow_with_heads(config: Any) -> Any:
    """Widths of heads stay: rotary sections and factors are given for them."""

    def change(values: dict[str, Any]) -> dict[str, Any]:
        head = values.get("head_dim") or _per_head(values)
        found = _shrink(_fewer_layers(values), keep=_HEAD_WIDTHS)
        if head and "hidden_size" in found:
            found["hidden_size"] = found.get("num_attention_heads", _HEADS) * head
        return found

    return _changed(config, change)


def _shallow(config: Any) -> Any:
    def change(values: dict[str, Any]) -> dict[str, Any]:
        kept = set(_SMALL) - set("vocab_size max_position_embeddings n_positions sliding_window".split())
        return _shrink(_fewer_layers(values), keep=kept)

    return _changed(config, change)


def _changed(config: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    text = config.get_text_config(decoder=True)
    values = {key: value for key, value in text.to_dict().items() if key not in _NOT_ARGUMENTS}
    return type(text)(**change(values))


_NOT_ARGUMENTS = {"model_type", "transformers_version", "architectures", "dtype", "_name_or_path", "auto_map"} | {
    "quantization_config",
    "torch_dtype",
}


def _per_head(values: dict[str, Any]) -> int | None:
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def _shrink(values: dict[str, Any], *, keep: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    found = dict(values)
    for name, size in _SMALL.items():
        value = found.get(name)
        if name not in keep and isinstance(value, int) and not isinstance(value, bool) and value > size:
            found[name] = size
    if "attention_hidden_size" in found and isinstance(values.get("hidden_size"), int):
        ratio = max(1, int(found["attention_hidden_size"] or 1) // values["hidden_size"])
        found["attention_hidden_size"] = ratio * found["hidden_size"]
        if "attention_head_dim" in found:
            found["attention_head_dim"] = found["attention_hidden_size"] // found["num_attention_heads"]
    if found.get("expand") and {"num_heads", "head_dim"} <= set(found):
        found["num_heads"] = found["expand"] * found["hidden_size"] // found["head_dim"]
    if found.get("qk_head_dim"):
        found["qk_head_dim"] = found["qk_nope_head_dim"] + found["qk_rope_head_dim"]
    if values.get("word_embed_proj_dim") not in (None, values.get("hidden_size")):
        found["word_embed_proj_dim"] = found["hidden_size"] // 2
    heads = next((values[name] for name in ("num_attention_heads", "n_head", "n_heads") if values.get(name)), None)
    for name in _KEY_VALUE_HEADS:
        own = found.get(name)
        if isinstance(own, int) and name not in keep and isinstance(heads, int):
            found[name] = _HEADS if own == heads else min(own, 2)
    fixed = isinstance(found.get("pad_token_id"), int) and found["pad_token_id"] == found.get("eos_token_id")
    found |= {name: token for name, token in _IDS.items() if found.get(name) is not None}
    if fixed:
        found["pad_token_id"] = found["eos_token_id"]
    return found


def _fewer_layers(values: dict[str, Any], *, times: int = 1) -> dict[str, Any]:
    """The first layers of each kind, at least two in all; up to `_PERIODIC_LAYERS` where a rule gives their kinds."""
    names = [name for name in _LAYERS if isinstance(values.get(name), int)]
    if not names:
        return dict(values)
    total = int(values[names[0]])
    per_layer = {key: value for key, value in values.items() if isinstance(value, list) and len(value) == total > 1}
    numbers = {key: value for key, value in values.items() if _are_places(value, total)}
    per_layer = {key: value for key, value in per_layer.items() if key not in numbers}
    first = max(int(values.get(name) or 0) for name in ("first_k_dense_replace", "num_dense_layers", "max_window"))
    if not per_layer and not numbers:
        by_rule = any(part in key and value not in (None, 0) for key, value in values.items() for part in _PERIODS)
        count = min(total, max(_PERIODIC_LAYERS if by_rule else 2, first + 1))
        return values | dict.fromkeys(names, count)
    chosen = sorted(_first_of_each(per_layer, numbers, total, edges=(first,), times=times))
    found = values | dict.fromkeys(names, len(chosen))
    found |= {key: [value[place] for place in chosen] for key, value in per_layer.items()}
    found |= {key: [chosen.index(i) for i in value if i in chosen] for key, value in numbers.items()}
    if isinstance(values.get("per_layer_config"), dict):
        own = {int(place): value for place, value in values["per_layer_config"].items()}
        found["per_layer_config"] = {chosen.index(place): value for place, value in own.items() if place in chosen}
    if first:
        for name in ("first_k_dense_replace", "num_dense_layers"):
            if values.get(name):
                found[name] = sum(place < values[name] for place in chosen)
    if values.get("num_kv_shared_layers"):
        found["num_kv_shared_layers"] = 0
    return found


def _first_of_each(
    per_layer: dict[str, list[Any]], numbers: dict[str, list[int]], total: int, *, edges: tuple[int, ...], times: int
) -> Iterator[int]:
    seen: dict[str, int] = {}
    found = []
    for place in range(total):
        kind = str([value[place] for value in per_layer.values() if isinstance(value[place], str | int | float)])
        kind += str([place in value for value in numbers.values()]) + str([place < edge for edge in edges])
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= times:
            found.append(place)
    yield from found
    yield from [place for place in range(total) if place not in found][: max(0, 2 - len(found))]


def _are_places(value: Any, total: int) -> bool:
    """Whether a list holds numbers of layers, rather than one entry for each."""
    is_numbers = isinstance(value, list) and value and all(type(item) is int for item in value)
    return bool(is_numbers and value == sorted(set(value)) and value[-1] < total and (len(value) > 2 or total > 2))
