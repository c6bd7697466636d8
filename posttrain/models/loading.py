"""Tokenizers and models named by a recipe's `model` block: what is loaded, how it is held, and what is refused.

Weights come from safetensors only, and a repository's own code runs only if the recipe says `trust_remote_code: true`.
A `model` block is a mapping or an object with the keys path, tiny, package, revision, dtype, attn_implementation,
trust_remote_code, new_head, unused_weights, config_overrides, lora and load_in_4bit; a missing key reads as null.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.models.config_files import inspect_folder, load_config, read_adapter, read_mapping, reason
from posttrain.models.headers import stored_tensors
from posttrain.models.smollm2 import export_smollm2, smollm2_tokenizer
from posttrain.models.template_clock import hold_clock
from posttrain.models.tiny import build_tiny
from posttrain.models.weights import refuse_partial_adapter, refuse_unfit

_CONFIG_FILES = ("config.json", "tokenizer_config.json")
# Keys of a model's config that make transformers import code from the repository or the Hub, whatever their value ...
_CODE_KEYS = ("auto_map", "_attn_implementation_internal", "_experts_implementation_internal")
# ... and those that do if they name a repository of kernels (owner/name).
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_ADAPTER_FILE = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MADE_FROM = "made_from.json"


def default_dtype() -> str:
    """bfloat16 on a CUDA device that has it, float32 elsewhere (most CPUs are slower in bfloat16 than in float32)."""
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def resolve_model_path(model: Any, cache_dir: str | Path) -> str:
    """Where the model's files are: the block's `path`, or a folder below `cache_dir` made for `tiny` or `package`.

    Args:
        model: a `model` block; exactly one of `path`, `tiny` and `package` is set.
        cache_dir: folder for models that are made rather than fetched; one made from other settings is made again.

    Returns:
        Local folder or Hub id.

    Raises:
        ConfigError: for none or several of the three. SupportError: if the package is not installed.
    """
    given = [key for key in ("path", "tiny", "package") if _get(model, key) is not None]
    if len(given) != 1:
        allowed = "exactly one of: path, tiny, package"
        raise ConfigError("the model comes from one place", where="model", got=given, allowed=allowed)
    if given == ["path"]:
        folder = Path(_get(model, "path")).expanduser()
        return str(folder) if folder.is_dir() else str(_get(model, "path"))
    settings = _plain(_get(model, given[0]))
    folder = Path(cache_dir) / (given[0] if given == ["tiny"] else str(settings))
    record = folder / _MADE_FROM
    if record.is_file() and json.loads(record.read_text()) == settings:
        return str(folder)
    if given == ["tiny"]:
        build_tiny(folder, **settings)
    else:
        export_smollm2(folder)
    # Written last: an interrupted export is made again.
    record.write_text(json.dumps(settings))
    return str(folder)


def load_tokenizer(model: Any, *, path: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left as generation needs it; reads no weights.

    From now on its chat template reads the block's `template_date` for the clock, if it is a block of a recipe.

    Args:
        model: a `model` block.
        path: files to read instead of those the block names (a model that was made or trained here).

    Raises:
        ConfigError: if no tokenizer can be loaded.
        DataError: if it has no end token.
        SupportError: if its files name code to run, or a package is missing.
    """
    if hasattr(model, "template_date"):
        hold_clock(model.template_date)
    if path is None and _get(model, "path") is None:
        return _made_tokenizer(model)
    name = str(path) if path is not None else resolve_model_path(model, "")
    revision = None if path is not None else _get(model, "revision")
    trusted = bool(_get(model, "trust_remote_code"))
    if Path(name).is_dir():
        inspect_folder(name)
    if not trusted:
        refuse_code(name, revision=revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trusted, padding_side="left"
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:  # noqa: BLE001 - what a file of a tokenizer holds may be anything; Rust may panic
        raise ConfigError(
            f"no tokenizer could be loaded: {reason(problem)}", where="model.path", got=name
        ) from problem
    limit = tokenizer.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
        what, fix = "model_max_length of the tokenizer is no number of tokens", "Correct tokenizer_config.json"
        raise ConfigError(what, where="model.path", got=limit, allowed="a number above 0, or no such line", fix=fix)
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token, so no completion can end", where="model.path", got=name)
    return tokenizer


def _made_tokenizer(model: Any) -> PreTrainedTokenizerBase:
    """Tokenizer of a model that is made here, as it will read once the model is on disk."""
    if _get(model, "tiny") is None:
        tokenizer = smollm2_tokenizer()
        tokenizer.padding_side = "left"
        return tokenizer
    tiny = _plain(_get(model, "tiny"))
    small: dict[str, Any] = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8}
    kept = {key: tiny[key] for key in ("architecture", "max_position_embeddings") if key in tiny}
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(model, path=build_tiny(folder, **kept, **small))


def require_chat_template(tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Raise DataError if chat messages cannot be rendered.

    Args:
        tokenizer: of the model.
        name: of the model, for the message.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template, but the prompts are chat messages",
            where="model.path",
            got=name,
            fix="Use an instruct model, or set format: text on the data source",
        )


def refuse_code(name: str, *, revision: str | None = None) -> None:
    """Refuse a model or tokenizer whose configuration names code to import.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit of a Hub id.

    Raises:
        SupportError: names the file and the key.
    """
    for file in _CONFIG_FILES:
        try:
            found = cached_file(name, file, revision=revision)
        except OSError:
            continue  # not there, or out of reach: loading will say so
        if found is None:
            continue
        values = read_mapping(Path(str(found)))
        for key in _code_keys(values):
            raise SupportError(
                f"{file} names code to run, under the key {key!r}",
                where="model.path",
                got=name,
                fix="Read that code; if you trust it, set model.trust_remote_code: true",
            )


def _code_keys(config: Any) -> Iterator[str]:
    """Keys that name code, in a config and in the configs inside it."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if (key in _CODE_KEYS and value) or (key in _KERNEL_KEYS and "/" in json.dumps(value)):
            yield key
        else:
            yield from _code_keys(value)


def load_model(model: Any, *, path: str | Path) -> PreTrainedModel:
    """The causal language model in the block's dtype and with its overrides, on the CPU unless held in 4 bits.

    Args:
        model: a `model` block.
        path: from `resolve_model_path`, or a trained model. If it holds an adapter alone, the adapter is merged
            into the model that it was trained on.

    Raises:
        ConfigError: if there is nothing to load, or adapter targets or overrides do not fit the model.
        SupportError: for 4 bits without CUDA, or code the recipe does not trust.
    """
    folder = Path(path)
    if (folder / _ADAPTER_FILE).is_file() and not (folder / "config.json").is_file():
        loaded = _merged_adapter(model, folder)
    else:
        loaded = _load(model, str(path))
    _check_targets(model, loaded)
    return loaded


def _load(model: Any, path: str) -> PreTrainedModel:
    revision = _get(model, "revision") if path == _get(model, "path") else None
    trusted = bool(_get(model, "trust_remote_code"))
    if not trusted:
        refuse_code(path, revision=revision)
    dtype = _get(model, "dtype") or default_dtype()
    keywords: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype), "use_safetensors": True}
    attention = _get(model, "attn_implementation")
    if attention is not None:
        if "/" in attention and not trusted:
            fix = "Set model.trust_remote_code: true if you trust it"
            where = "model.attn_implementation"
            raise SupportError("a kernel from the Hub is code to run", where=where, got=attention, fix=fix)
        keywords["attn_implementation"] = attention
    if _get(model, "load_in_4bit"):
        keywords |= _four_bit()
    config = load_config(path, revision=revision, trusted=trusted)
    apply_overrides(config, _get(model, "config_overrides"))
    try:
        if Path(path).is_dir():
            stored_tensors(path)  # also refuses an index that leads out of the folder
        loaded, info = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            revision=revision,
            trust_remote_code=trusted,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **keywords,
        )
    except Exception as problem:  # noqa: BLE001 - what the files hold may be anything
        what = f"the model could not be loaded: {reason(problem)}"
        fix = "Weights are read from safetensors files only"
        raise ConfigError(what, where="model", got=path, fix=fix) from problem
    refuse_unfit(loaded, info, new_head=bool(_get(model, "new_head")), unused=bool(_get(model, "unused_weights")))
    return loaded  # type: ignore[no-any-return]


def _merged_adapter(model: Any, folder: Path) -> PreTrainedModel:
    if _get(model, "load_in_4bit"):
        raise SupportError(
            "an adapter cannot be merged into weights in 4 bits without loss",
            where="model.load_in_4bit",
            got=str(folder),
            fix="Set it to false, or set model.lora.merge_on_save in the run that trained the adapter",
        )
    base = read_adapter(folder / _ADAPTER_FILE)["base_model_name_or_path"]
    merged = PeftModel.from_pretrained(_load(model, str(base)), str(folder))
    refuse_partial_adapter(merged, folder / _ADAPTER_WEIGHTS)
    return merged.merge_and_unload()


def adapter_settings(path: str | Path, *, revision: str | None = None) -> dict[str, Any] | None:
    """`adapter_config.json` of a folder or Hub id that holds an adapter without a whole model beside it, else None."""
    found = _file(path, _ADAPTER_FILE, revision)
    if found is None or _file(path, "config.json", revision) is not None:
        return None
    return read_adapter(found)


def load_with_adapter(model: Any, *, adapter: str | Path, base: str, revision: str | None = None) -> Any:
    """A model with its adapter beside the weights, as it was trained; merging it in would round.

    Args:
        model: a `model` block; its `revision` counts if its `path` is `base`.
        adapter: folder or Hub id of the adapter.
        base: folder or Hub id of the model that the adapter was trained on.
        revision: of the adapter on the Hub.

    Returns:
        `peft.PeftModel`, the adapter in the type of its file.

    Raises:
        ConfigError: if there is no base or no safetensors file of the adapter.
    """
    file = _file(adapter, _ADAPTER_WEIGHTS, revision)
    if file is None:
        fix = "Weights are read from safetensors files only"
        raise ConfigError(f"the adapter has no {_ADAPTER_WEIGHTS}", where="model", got=str(adapter), fix=fix)
    with safe_open(str(file), framework="pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 - not a mapping
    loaded = _load(model, base)
    # peft 0.21 would hold every adapter in float32, also one that was trained in the type of its base.
    model = PeftModel.from_pretrained(loaded, str(adapter), revision=revision, autocast_adapter_dtype="F32" in kinds)
    refuse_partial_adapter(model, file)
    return model


def _file(path: str | Path, name: str, revision: str | None) -> Path | None:
    """A file of a folder or of a Hub id; None if it is not there or out of reach."""
    try:
        found = cached_file(str(path), name, revision=revision)
    except OSError:
        return None
    return Path(str(found)) if found is not None else None


def apply_overrides(config: Any, overrides: Any) -> None:
    """Write a `config_overrides` block into a model's configuration.

    Raises:
        ConfigError: a key that the configuration does not have.
    """
    for key, value in (_plain(overrides) or {}).items():
        if value is not None:
            _override(config, key, value)


def _override(config: Any, key: str, value: Any) -> None:
    if not hasattr(config, key) and key != "rope_theta":
        raise ConfigError("the model's configuration has no such key", where="model.config_overrides", got=key)
    # transformers 5 keeps the rotary base in `rope_parameters`, in some models once for each kind of layer.
    rope = getattr(config, "rope_parameters", None)
    if key != "rope_theta":
        setattr(config, key, value)
    elif isinstance(rope, dict) and "rope_theta" in rope:
        config.rope_parameters = {**rope, "rope_theta": value}
    else:
        what = "the model has no single rotary base that could be replaced"
        raise ConfigError(what, where="model.config_overrides.rope_theta", got=value, fix="Remove the line")


def _four_bit() -> dict[str, Any]:
    if not torch.cuda.is_available():
        fix = "Set it to false, or run on a machine with a GPU"
        raise SupportError("weights in 4 bits need a CUDA device", where="model.load_in_4bit", got=True, fix=fix)

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16,
    )
    return {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}


def peft_config(model: Any) -> Any:
    """The LoRA configuration of a `model` block, or None if it trains all weights.

    Returns:
        `peft.LoraConfig` for causal language modelling.
    """
    lora = _get(model, "lora")
    if lora is None:
        return None

    targets = _get(lora, "targets") or "all-linear"
    return LoraConfig(
        r=_get(lora, "rank") or 16,
        lora_alpha=_get(lora, "alpha") or 32,
        lora_dropout=_get(lora, "dropout") or 0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def _check_targets(model: Any, loaded: torch.nn.Module) -> None:
    """Refuse adapter targets that name no layer; peft takes the others and says nothing."""
    lora = _get(model, "lora")
    targets = _get(lora, "targets") if lora is not None else None
    if targets is None or isinstance(targets, str):
        return
    names = [name for name, module in loaded.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise ConfigError(
                "the model has no linear layer of this name",
                where="model.lora.targets",
                got=target,
                allowed=f"one of: {', '.join(kinds)}",
            )


def _get(block: Any, key: str) -> Any:
    return block.get(key) if isinstance(block, Mapping) else getattr(block, key, None)


def _plain(block: Any) -> Any:
    """A nested block as a dict; a string as it is."""
    if block is None or isinstance(block, str):
        return block
    return dict(block) if isinstance(block, Mapping) else block.model_dump()
