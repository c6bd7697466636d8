"""The user's own accelerate config file, as a group of the battery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from posttrain.certificate.plan import ENGINES, OFFLOADS, Group
from posttrain.errors import ConfigError, SupportError
from posttrain.seam.engine_file import overriding, read_engine_file
from posttrain.seam.sharding import offload_finding

_WITHOUT_ENGINE = ("NO", "MULTI_GPU", "MULTI_CPU")


def group_of_file(file: Path) -> Group:
    """Engine and offload that a file names, with two processes where it names several.

    Raises:
        ConfigError: the file cannot be read, or names something else than an engine of the battery.
        SupportError: an offload that the engine does not have.
    """
    values = _read(file)
    kind = str(values.get("distributed_type", "NO")).upper()
    zero = _zero_block(values, file)
    fsdp = values.get("fsdp_config") or {}
    asked = {part: device for part, device in zero["offload"].items() if device != "none"}
    if str(fsdp.get("fsdp_offload_params", False)).lower() == "true":
        asked["parameters"] = "cpu"
    if kind == "DEEPSPEED":
        engine = f"zero{zero['stage']}"
    elif kind == "FSDP":
        engine = f"fsdp{fsdp.get('fsdp_version', 1)}"
    else:
        engine = "ddp" if kind in _WITHOUT_ENGINE else kind.lower()
    if engine not in ENGINES:
        raise ConfigError("no trainer supports this engine", where=str(file), got=engine, allowed=", ".join(ENGINES))
    found = offload_finding(None if engine == "ddp" else engine, asked)
    if found is not None:
        raise SupportError(found.what, where=str(file), got=found.got, allowed=found.allowed, fix=found.fix)
    offload = next(name for name, parts in OFFLOADS.items() if set(parts) == set(asked))
    return Group(engine, offload, min(2, int(values.get("num_processes", 1))))


def _read(file: Path) -> dict[str, Any]:
    try:
        values = YAML(typ="safe").load(file)
    except (OSError, YAMLError) as problem:
        raise ConfigError("the accelerate config cannot be read", where=str(file), got=str(problem)) from None
    if not isinstance(values, dict):
        raise ConfigError("a mapping is expected", where=str(file), got=values)
    return values


def _zero_block(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Stage and offload of a config's DeepSpeed part, or of the DeepSpeed file that it names.

    Raises:
        ConfigError: the file cannot be read, or fixes what the battery takes from its own runs, as a recipe would.
    """
    block = values.get("deepspeed_config") or {}
    stage: Any = block.get("zero_stage", 2)
    devices = {"optimizer": block.get("offload_optimizer_device"), "parameters": block.get("offload_param_device")}
    if named := block.get("deepspeed_config_file"):
        whole = read_engine_file(named)
        for key, value, fix in overriding(whole, None):
            raise ConfigError("this would override a recipe", where=f"{named}, {key}", got=value, fix=fix)
        own = whole.get("zero_optimization")
        if not isinstance(own, dict):
            raise ConfigError("the DeepSpeed file has no zero_optimization", where=str(named), got=own)
        stage = own.get("stage", 0)
        devices = {
            "optimizer": (own.get("offload_optimizer") or {}).get("device"),
            "parameters": (own.get("offload_param") or {}).get("device"),
        }
    for key in ("gradient_accumulation_steps", "gradient_clipping"):
        if block.get(key, "auto") != "auto":
            where = f"{file}, deepspeed_config.{key}"
            raise ConfigError("this would override a recipe", where=where, got=block[key], fix="Remove the line")
    return {"stage": stage, "offload": {part: str(device or "none").lower() for part, device in devices.items()}}
