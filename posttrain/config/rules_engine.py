"""Rules of `rollout.engine: vllm`, whatever the machine."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from posttrain.config.run_config import RunConfig
from posttrain.errors import ConfigError, PosttrainError

_SERVER_FIELDS = ("vllm_server_base_url", "vllm_server_timeout", "vllm_group_port", "engine_devices")


def uses_vllm(cfg: RunConfig) -> bool:
    """Whether completions come from vLLM."""
    return cfg.rollout is not None and cfg.rollout.engine == "vllm"


def rules(cfg: RunConfig) -> Iterator[PosttrainError]:
    """Values that do not go together, whatever the machine."""
    rollout = cfg.rollout
    if rollout is None:
        return
    written = [key for key in rollout.fields if key.startswith(("vllm_", "engine_"))]
    if rollout.engine == "hf":
        for key in ["mode"] * (rollout.mode is not None) + written:
            yield ConfigError(
                "read only by vLLM, but rollout.engine is hf",
                where=cfg.where("rollout", key),
                fix="Remove the line, or set rollout.engine to vllm",
            )
        return
    lengths = rollout.fields.get("vllm_max_model_length")
    needed = cfg.data.max_prompt_length + rollout.max_completion_length
    if lengths is not None and lengths < needed:
        yield ConfigError(
            "shorter than a prompt and a completion together",
            where=cfg.where("rollout", "vllm_max_model_length"),
            got=lengths,
            allowed=f"at least {needed} (data.max_prompt_length + rollout.max_completion_length)",
        )
    for key in written:
        if key in _SERVER_FIELDS and rollout.mode != "server":
            yield ConfigError(
                "read only with a server",
                where=cfg.where("rollout", key),
                fix="Remove the line, or set rollout.mode to server",
            )
        if key in ("vllm_server_host", "vllm_server_port"):
            yield ConfigError(
                "replaced by rollout.vllm_server_base_url",
                where=cfg.where("rollout", key),
                fix="Write the whole address there, or leave it out: the run then starts a server of its own",
            )
    address = rollout.fields.get("vllm_server_base_url")
    if address is not None and (urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).port):
        yield ConfigError(
            "not the address of a server",
            where=cfg.where("rollout", "vllm_server_base_url"),
            got=address,
            allowed="http://HOST:PORT",
        )
