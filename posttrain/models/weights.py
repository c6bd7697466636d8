"""Whether the weight files of a folder are those of its model: names, shapes, and numbers that are numbers.

transformers gives random values to weights that the files lack, and leaves aside what they hold beyond the model, with
a note in the log alone. Here both are errors; so is a model of which a weight is NaN or infinite.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from posttrain.errors import ConfigError
from posttrain.models.config_files import reason

_SHOWN = 3


def tried(path: str, config: Any, *, trusted: bool = False) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model without numbers, and what loading found of the files' names and shapes. No tensor is read.

    Args:
        path: local folder.
        config: of the model; it is copied.
        trusted: whether the model's own code may run.

    Raises:
        ConfigError: the files cannot be loaded.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(  # type: ignore[no-any-return]
            path,
            config=copy.deepcopy(config),
            generation_config=GenerationConfig(),  # a file that cannot be read is no fault of the weights
            device_map="meta",
            use_safetensors=True,
            trust_remote_code=trusted,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as problem:  # noqa: BLE001 - what the files hold may be anything
        what = f"the weight files cannot be loaded: {reason(problem)}"
        raise ConfigError(what, where="model.path", got=path, fix="Copy them again") from problem


def load_faults(
    model: PreTrainedModel, info: Mapping[str, Any], *, new_head: bool = False, unused: bool = False
) -> Iterator[ConfigError]:
    """What does not fit between the files and the model.

    Args:
        model: as loaded.
        info: `output_loading_info` of transformers; weights that are one with another count as there.
        new_head: whether the weights of the output layer may be missing.
        unused: whether the files may hold what the model does not have.
    """
    changed = sorted(info["mismatched_keys"])
    if changed:
        name, stored, made = changed[0]
        yield ConfigError(
            f"{len(changed)} tensors of the weight files have other shapes than config.json gives ({_named(changed)})",
            where="model.path",
            got=list(stored),
            allowed=str(list(made)),
            fix="Use the config.json that belongs to the weights, without model.config_overrides that change it",
        )
    missing = sorted(set(info["missing_keys"]) - (_head(model) if new_head else set()))
    if missing:
        what = (
            f"the weight files lack {len(missing)} of the model's {len(dict(model.named_parameters()))} weights "
            f"({_named(missing)})"
        )
        fix = "They would be random: restore the files, or use the config.json that belongs to them"
        if set(missing) <= _head(model):
            fix += "; if a new output layer is meant, set model.new_head: true"
        yield ConfigError(what, where="model.path", fix=fix)
    left = sorted(info["unexpected_keys"])
    if left and not unused:
        yield ConfigError(
            f"the weight files hold {len(left)} tensors that the model does not have ({_named(left)})",
            where="model.path",
            fix="Use the config.json that belongs to them; if they are meant to lie idle, as those of another "
            "modality, set model.unused_weights: true",
        )
    told = [" ".join(str(text).split()) for text in info.get("error_msgs") or ()]
    if told:
        yield ConfigError(f"the weight files do not fit: {told[0][:200]}", where="model.path", fix="Copy them again")


def refuse_unfit(model: PreTrainedModel, info: Mapping[str, Any], **allowed: bool) -> None:
    """Raise the first of `load_faults`, or that of numbers.

    Raises:
        ConfigError: names and number of the tensors.
    """
    for fault in load_faults(model, info, **allowed):
        raise fault
    refuse_unfinite(model)


def refuse_unfinite(model: torch.nn.Module) -> None:
    """Refuse a model of which a weight is NaN or infinite.

    Raises:
        ConfigError: names and number of such tensors.
    """
    found = [name for name, weight in model.named_parameters() if _is_unfinite(weight.detach())]
    if found:
        what = f"{len(found)} weights of the model hold NaN or infinite numbers ({_named(found)})"
        raise ConfigError(what, where="model.path", fix="Restore the files, or use an earlier checkpoint")


def refuse_partial_adapter(model: Any, file: str | Path) -> None:
    """Refuse an adapter whose file lacks weights of it, or has others, which peft passes over.

    Args:
        model: `peft.PeftModel` with the adapter. file: its safetensors file.

    Raises:
        ConfigError: names and number of the tensors.
    """
    if not Path(file).is_file():
        fix = "Weights are read from safetensors files only"
        raise ConfigError(f"the adapter has no {Path(file).name}", where="model", got=str(file), fix=fix)
    with safe_open(str(file), framework="pt") as weights:
        stored = set(weights.keys())
    made = set(get_peft_model_state_dict(model))
    for what, names in (("lacks", made - stored), ("holds beyond the adapter", stored - made)):
        if names:
            told = f"the adapter's file {what} {len(names)} of its {len(made)} weights ({_named(sorted(names))})"
            fix = "Restore the file, or use the adapter_config.json that belongs to it"
            raise ConfigError(told, where="model", got=str(file), fix=fix)
    refuse_unfinite(model)


def _head(model: PreTrainedModel) -> set[str]:
    """Names of the output layer's weights."""
    head = model.get_output_embeddings()
    own = [] if head is None else list(head.parameters())
    return {name for name, weight in model.named_parameters() if any(weight is one for one in own)}


def _is_unfinite(weight: torch.Tensor) -> bool:
    if weight.device.type == "meta" or not weight.numel() or not weight.is_floating_point():
        return False
    if weight.dtype.itemsize < 2:  # float8 has no order
        weight = weight.float()
    low, high = torch.aminmax(weight)  # NaN wherever there is one
    return not bool(torch.isfinite(low) & torch.isfinite(high))


def _named(items: list[Any]) -> str:
    names = [str(item[0]) if isinstance(item, tuple) else str(item) for item in items]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
