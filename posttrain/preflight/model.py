"""Checks of the model from its configuration alone: adapter targets, lengths, size. No weight is read."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import datasets
import huggingface_hub
from huggingface_hub import constants

from posttrain.config.model_facts import ModelFacts
from posttrain.config.rules import is_local
from posttrain.config.run_config import BLOCKS, DataSource, RunConfig
from posttrain.errors import ConfigError, PosttrainError, nearest

# AdamW moves a weight by about the learning rate; below this, most of a half-precision weight's updates round to 0.
_HALF_PRECISION_RATE = 1e-4
PROBE_SECONDS = 5.0
_UNREACHABLE = {
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ReadTimeout",
}


def findings(cfg: RunConfig, facts: ModelFacts) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about precision, adapter targets and lengths."""
    lora = cfg.model.lora
    yield from ((False, warning) for warning in _rounded_updates(cfg, facts.dtype))
    if lora is not None and isinstance(lora.targets, list):
        for index, name in enumerate(lora.targets):
            if name.rsplit(".", 1)[-1] not in facts.linear:
                yield (
                    True,
                    ConfigError(
                        "the model has no linear layer of this name",
                        where=cfg.where("model", "lora", "targets", index),
                        got=name,
                        allowed="one of: " + ", ".join(sorted(facts.linear)),
                        fix=nearest(name, facts.linear),
                    ),
                )
    if facts.max_positions is None:
        return
    rollout = cfg.rollout
    # SFT's default length is a ceiling that the rows need not reach; a written one is meant.
    longest = cfg.trainer.fields.get("max_length")
    if rollout is not None:
        longest = cfg.data.max_prompt_length + rollout.max_completion_length
    told = "data.max_prompt_length + rollout.max_completion_length" if rollout else "trainer.max_length"
    if longest is not None and longest > facts.max_positions:
        key = ("rollout", "max_completion_length") if rollout else ("trainer", "max_length")
        yield (
            True,
            ConfigError(
                f"{longest} tokens do not fit the model's {facts.max_positions} positions",
                where=cfg.where(*key),
                got=longest,
                allowed=f"at most {facts.max_positions} ({told})",
                fix="Lower the lengths" + (", or raise model.tiny.max_position_embeddings" if cfg.model.tiny else ""),
            ),
        )


def _rounded_updates(cfg: RunConfig, dtype: str) -> Iterator[PosttrainError]:
    """All weights trained in half precision at a rate that their spacing swallows."""
    rate = cfg.trainer.learning_rate
    if cfg.model.lora is None and dtype in ("bfloat16", "float16") and rate < _HALF_PRECISION_RATE:
        yield ConfigError(
            f"all weights are trained in {dtype} at learning rate {rate:g}: most updates are smaller than the spacing "
            "of the weights and are rounded away",
            where=cfg.where("model", "dtype"),
            got=dtype,
            fix="Set model.dtype to float32 (with trainer.bf16 the arithmetic stays in bfloat16), or use model.lora",
        )


@contextmanager
def offline_if_unreachable(cfgs: list[RunConfig]) -> Iterator[None]:
    """Where a recipe names something on the Hub and the Hub does not answer, read only what is cached.

    Otherwise the libraries would try again for minutes, file by file.
    """
    paths = [path for cfg in cfgs for path in (cfg.model.path, *_data_paths(cfg)) if path is not None]
    if all(is_local(path) for path in paths) or _hub_answers():
        yield
        return

    places: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _data_paths(cfg: RunConfig) -> list[str | None]:
    return [source.path for source in (cfg.data.train, cfg.data.eval) if source is not None]


def _hub_answers() -> bool:
    """Whether the Hub's port can be opened soon. Behind a proxy that cannot be told, and the libraries find out."""
    if constants.HF_HUB_OFFLINE or getproxies():
        return True
    address = urlsplit(constants.ENDPOINT)
    answer: queue.Queue[bool] = queue.Queue()

    def knock() -> None:
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((str(address.hostname), port), timeout=PROBE_SECONDS).close()
            answer.put(True)
        except OSError:
            answer.put(False)

    # In a thread of its own: looking up a name has no time limit.
    threading.Thread(target=knock, daemon=True).start()
    try:
        return answer.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return False


def is_unreachable(error: BaseException) -> bool:
    """Whether an error came about because the Hub is out of reach, rather than because something is not there."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if any(base.__name__ in _UNREACHABLE for base in type(current).__mro__):
            return True
        waiting += [current.__cause__, current.__context__]
    return False


def explained(cfg: RunConfig, error: PosttrainError, *key: str) -> PosttrainError:
    """The same error with its place; for an unreachable Hub, what could not be checked because of it."""
    if is_unreachable(error):
        skipped = "columns, lengths and rewards" if key else "its configuration, tokenizer, template and lengths"
        what = f"the Hub cannot be reached, so {skipped} were not checked"
        fix = "Check again where the Hub can be reached, or give a local folder"
        if key and isinstance(getattr(cfg.data, key[-1]), dict):  # several sources by name, which the error tells
            return ConfigError(what, where=error.where, fix=fix)
        name = cfg.model.path if not key else getattr(getattr(cfg.data, key[-1]), "path", None)
        return ConfigError(what, where=cfg.where(*(key or ("model",)), "path"), got=name, fix=fix)
    if error.where and ":" in error.where:
        return error
    facts = {"got": error.got} if "(got " in str(error) else {}
    place = cfg.where(*(key or ("model",)))
    named = (error.where or "").split(".")
    where = f"{place}, {error.where}" if error.where else place
    if named[0] in BLOCKS:
        where = cfg.where(*named)
    elif key and named[0] in DataSource.model_fields:
        where = cfg.where(*key, *named)
    return type(error)(error.what, where=where, allowed=error.allowed, fix=error.fix, **facts)
