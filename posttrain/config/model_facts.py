"""What is known of a model from its configuration, and from the headers of its files. No weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.config.rules import is_local
from posttrain.config.run_config import RunConfig
from posttrain.errors import ConfigError
from posttrain.models.config_files import load_config
from posttrain.models.headers import stored_dtype, stored_tensors
from posttrain.models.loading import apply_overrides, default_dtype, refuse_code
from posttrain.models.positions import position_limit
from posttrain.models.tiny import CHARACTERS, SPECIAL_TOKENS
from posttrain.seam.known_tokens import token_rows
from posttrain.seam.sharding import zero3_disabled

if TYPE_CHECKING:
    from posttrain.models.headers import Stored

# Bytes a checkpoint holds for each trained weight: the weight and two moments of AdamW, in float32.
_BYTES_PER_TRAINED = 12
# Published configurations of the packaged models, so that a check need not unpack weights.
_PACKAGED: dict[str, dict[str, Any]] = {
    "smollm2-135m-instruct": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
}


@dataclass(frozen=True)
class ModelFacts:
    """What the configuration tells, with the recipe's overrides. `linear` are the names of the linear layers; empty
    if not known.
    """

    parameters: int
    max_positions: int | None
    linear: frozenset[str]
    checkpoint_bytes: int
    head_size: int | None = None  # width of an attention head
    modules: tuple[str, ...] = ()  # names of all, and of the weights
    weights: tuple[str, ...] = ()
    config: Any = None
    attention: str | None = None  # implementation that transformers chose
    token_rows: int = 0  # of the embeddings, or of the head where that has fewer
    is_learned: bool = False  # positions are rows of a table: there are no others
    dtype: str = "float32"  # of the weights, once loaded
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the weights, tied ones once
    stored: Mapping[str, Stored] = field(default_factory=dict)  # tensors of a local folder's files

    @property
    def stored_dtype(self) -> str | None:
        """Type of the weights on disk."""
        return stored_dtype(self.stored)

    @property
    def lines(self) -> list[str]:
        """For the report."""
        unit, name = (1e9, "billion") if self.parameters >= 1e9 else (1e6, "million")
        size = f"{self.parameters / unit:.3g} {name} parameters"
        return [f"{size}; a checkpoint takes about {self.checkpoint_bytes / 1e6:,.1f} MB"]


def describe(cfg: RunConfig) -> ModelFacts:
    """Facts of the configured model.

    Raises:
        ConfigError: the configuration cannot be read; `is_unreachable` tells whether only the Hub was out of reach.
    """
    if cfg.model.package is not None:
        config = AutoConfig.for_model(**_PACKAGED[cfg.model.package])
    else:
        config = _tiny_config(cfg) if cfg.model.tiny is not None else _config_of_path(cfg)
    apply_overrides(config, cfg.model.config_overrides)
    try:
        with zero3_disabled(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=cfg.model.trust_remote_code)
    except Exception as problem:  # noqa: BLE001 - a model's own code may raise anything on sizes that do not fit
        raise ConfigError(
            "transformers makes no causal language model of this configuration: "
            f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}",
            where=cfg.where("model"),
            got=getattr(config, "model_type", None),
            fix="Correct config.json of the model, or choose another model",
        ) from problem
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    linear = frozenset(name.rsplit(".", 1)[-1] for name, _ in layers)
    parameters = sum(weight.numel() for weight in model.parameters())
    trained = parameters if cfg.model.lora is None else _adapter_size(cfg.model.lora, layers)
    stored = _stored(cfg)
    return ModelFacts(
        parameters,
        position_limit(model.config),
        linear,
        trained * _BYTES_PER_TRAINED,
        head_size=_head_size(config),
        modules=tuple(name for name, _ in model.named_modules()),
        weights=tuple(name for name, _ in model.named_parameters()),
        config=config,
        attention=cfg.model.attn_implementation or getattr(model.config, "_attn_implementation", None),
        token_rows=token_rows(model),
        is_learned=_has_position_table(model),
        dtype=_loaded_dtype(cfg, config, stored),
        shapes={name: tuple(weight.shape) for name, weight in model.named_parameters()},
        stored=stored,
    )


def _adapter_size(lora: Any, layers: list[tuple[str, Any]]) -> int:
    """Weights of adapters on the chosen linear layers."""
    last = [(name.rsplit(".", 1)[-1], layer) for name, layer in layers]
    chosen = {name for name, _ in last} - {"lm_head"} if lora.targets == "all-linear" else set(lora.targets)
    return int(sum(lora.rank * (layer.in_features + layer.out_features) for name, layer in last if name in chosen))


def _stored(cfg: RunConfig) -> dict[str, Stored]:
    if cfg.model.path is None or not is_local(str(cfg.model.path)):
        return {}
    try:
        return stored_tensors(Path(str(cfg.model.path)).expanduser())
    except (OSError, ValueError, KeyError) as problem:
        what = f"the weight files cannot be read: {' '.join(str(problem).split())[:160]}"
        raise ConfigError(
            what, where=cfg.where("model", "path"), got=cfg.model.path, fix="Copy them again"
        ) from problem


def _loaded_dtype(cfg: RunConfig, config: Any, stored: dict[str, Stored]) -> str:
    """Type of the weights as they will be held: `auto` follows the configuration, then the files."""
    written = cfg.model.dtype or default_dtype()
    if written != "auto":
        return written
    own = str(getattr(config, "dtype", None) or stored_dtype(stored) or "float32")
    return own.removeprefix("torch.")


def _has_position_table(model: Any) -> bool:
    """Whether positions are looked up in a table made once, of weights or of sines, rather than computed."""
    limit = position_limit(model.config)
    if limit is None:
        return False
    words = ("position", "wpe", "pos_emb")
    tables = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        if any(word in name.lower() for word in words)
    ]
    tables += [value for name, value in model.named_buffers() if "embed_positions" in name]
    return any(limit <= table.shape[0] <= limit + 8 for table in tables if table.ndim >= 2)


def _head_size(config: Any) -> int | None:
    if getattr(config, "head_dim", None):
        return int(config.head_dim)
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    return width // heads if width and heads else None


def _tiny_config(cfg: RunConfig) -> Any:
    sizes = cfg.model.tiny.model_dump() if cfg.model.tiny is not None else {}
    return AutoConfig.for_model(
        sizes["architecture"],
        vocab_size=len(CHARACTERS) + len(SPECIAL_TOKENS),
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_heads"],
        head_dim=sizes["hidden_size"] // sizes["num_heads"],
        intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_position_embeddings"],
    )


def _config_of_path(cfg: RunConfig) -> Any:
    path = str(cfg.model.path)
    where = cfg.where("model", "path")
    folder = Path(path).expanduser()
    if is_local(path):
        if not (folder / "config.json").is_file():
            fix = "Give a folder saved by save_pretrained"
            raise ConfigError("the folder holds no config.json", where=where, got=path, fix=fix)
        if not any(folder.glob("*.safetensors")):
            raise ConfigError("the folder holds no weights", where=where, got=path, allowed="*.safetensors")
        path = str(folder)
    if not cfg.model.trust_remote_code:
        refuse_code(path, revision=cfg.model.revision)
    return load_config(path, revision=cfg.model.revision, trusted=cfg.model.trust_remote_code)
