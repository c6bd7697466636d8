"""What the user's own accelerate and DeepSpeed files say of training itself, against what the recipe says.

The recipe decides what is trained, those files how it is spread. transformers 5.17 ends late where some values differ
from the recipe's; others win without a word: a block `optimizer` or `scheduler`, a precision, and no clipping at all
where a DeepSpeed file has no `gradient_clipping`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, SupportError

# Keys of a DeepSpeed file that change neither loss nor update but for rounding, or are compared below.
_KNOWN = frozenset(
    "zero_optimization gradient_accumulation_steps gradient_clipping train_batch_size train_micro_batch_size_per_gpu "
    "steps_per_print wall_clock_breakdown dump_state memory_breakdown flops_profiler tensorboard wandb comet "
    "csv_monitor monitor_config comms_logger aio nebula checkpoint activation_checkpointing disable_allgather "
    "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer fp32_allreduce "
    "dataloader_drop_last use_data_before_expert_parallelism timeout".split()
)
_LOSSY = ("zero_quantized_weights", "zero_quantized_gradients", "zeropp_loco_param")
# Values with which a key says nothing.
_OFF: tuple[Any, ...] = (None, False, {}, [], "none", "auto")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "communication_data_type": ("fp32",),
    "gradient_predivide_factor": (1, 1.0),
    "data_types": ({"grad_accum_dtype": "fp32"}, {"grad_accum_dtype": None}),
}


def read_engine_file(file: str | Path) -> dict[str, Any]:
    """A DeepSpeed file.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        values = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        what = "the DeepSpeed file cannot be read"
        raise ConfigError(what, where=str(file), got=" ".join(str(problem).split()), fix="Give a JSON file") from None
    if not isinstance(values, dict):
        raise ConfigError("a DeepSpeed file holds a JSON object", where=str(file), got=type(values).__name__)
    return values


def overriding(values: Mapping[str, Any], expected: Mapping[str, Any] | None) -> Iterator[tuple[str, Any, str]]:
    """(key, value, what to do) of what a DeepSpeed file decides in the recipe's place.

    Args:
        values: of the file.
        expected: what the recipe says, by key; None = nothing but "auto" is as the recipe says.
    """
    for key, value in values.items():
        is_off = value in _OFF or (isinstance(value, dict) and value.get("enabled") in (False, "false"))
        if key in _KNOWN or key in ("fp16", "bf16") or is_off or value in _NEUTRAL.get(key, ()):
            continue
        yield key, value, f"Remove {key} from the file: the recipe's trainer block decides this"
    zero = values.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    for key in _LOSSY:
        if zero.get(key) not in _OFF:
            yield f"zero_optimization.{key}", zero[key], "Remove it: gradients or weights would be rounded to few bits"
    compared = {
        "gradient_accumulation_steps": values.get("gradient_accumulation_steps", 1),
        "gradient_clipping": values.get("gradient_clipping", 0.0),
        **{key: values[key] for key in ("train_batch_size", "train_micro_batch_size_per_gpu") if key in values},
        **{f"{key}.enabled": _enabled(values[key]) for key in ("fp16", "bf16") if key in values},
    }
    for key, value in compared.items():
        if value == "auto" or (expected is not None and value == expected[key]):
            continue
        if expected is None and value is False:
            continue
        own = "" if expected is None else f" (the recipe says {expected[key]})"
        written = value if key.partition(".")[0] in values else f"nothing, which means {value}"
        yield key, written, f'Write "{key}": "auto" into it{own}'


def _enabled(block: Any) -> Any:
    value = block.get("enabled", False) if isinstance(block, dict) else block
    return {"true": True, "false": False}.get(str(value).lower(), value)


def refuse_overrides(config: Any) -> None:
    """Stop at the start where a file of `accelerate launch` would train something else than the recipe says.

    Args:
        config: training arguments, with their precision settled.

    Raises:
        SupportError: names the setting, both values, and what to write.
        ConfigError: the DeepSpeed file cannot be read.
    """
    precision = "fp16" if config.fp16 else "bf16" if config.bf16 else "no"
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", precision):
        own = "float32" if precision == "no" else precision
        raise SupportError(
            f"the accelerate config would train in {asked}, the recipe in {own}",
            where="accelerate config, mixed_precision",
            got=asked,
            fix=f"Write mixed_precision: 'no' into it; trainer.{asked if asked != 'fp8' else 'bf16'} decides",
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    expected = {
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.max_grad_norm or 0.0,
        "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
        "train_batch_size": config.per_device_train_batch_size * config.gradient_accumulation_steps * world,
        "fp16.enabled": precision == "fp16",
        "bf16.enabled": precision == "bf16",
    }
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file not in ("", "none"):
        for key, value, fix in overriding(read_engine_file(file), expected):
            what = f"the DeepSpeed file {file} would override the recipe"
            raise SupportError(what, where=f"accelerate config, {key}", got=value, fix=fix)
        return
    for key in ("gradient_accumulation_steps", "gradient_clipping"):
        name = "ACCELERATE_" + key.upper()
        written = os.environ.get(name, "auto")
        if written not in ("auto", "none") and float(written) != float(expected[key]):
            raise SupportError(
                f"the accelerate config would override the recipe, which says {expected[key]}",
                where=f"accelerate config, deepspeed_config.{key}",
                got=written,
                fix="Remove the line",
            )
