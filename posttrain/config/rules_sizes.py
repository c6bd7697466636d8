"""Sizes that a recipe names and this machine could not make, and rates at which nothing is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.config.run_config import DataSource, RunConfig
from posttrain.config.source import Key
from posttrain.errors import ConfigError, PosttrainError

_MOST_ROWS = 1_000_000  # generated
_MOST_WEIGHTS, _MOST_LAYERS = 10**9, 256  # of a tiny model
_MOST_POSITIONS = 2**24
_HIGHEST_RATE = 10.0


def tiny_size(cfg: RunConfig, tiny: Any) -> Iterator[PosttrainError]:
    """A model that is made here has a size that can be made here."""
    weights = tiny.num_layers * tiny.hidden_size * (4 * tiny.hidden_size + 3 * tiny.intermediate_size)
    what, fix = "this is no tiny model", "Give a model folder, or lower the sizes"
    for key, most in (("num_layers", _MOST_LAYERS), ("max_position_embeddings", _MOST_POSITIONS)):
        if (value := getattr(tiny, key)) > most:
            yield ConfigError(
                what, where=cfg.where("model", "tiny", key), got=value, allowed=f"at most {most}", fix=fix
            )
    if weights > _MOST_WEIGHTS and tiny.num_layers <= _MOST_LAYERS:
        got, allowed = f"about {weights:.2g} weights", f"at most {_MOST_WEIGHTS:.0g}"
        yield ConfigError(what, where=cfg.where("model", "tiny"), got=got, allowed=allowed, fix=fix)


def generated_rows(cfg: RunConfig, place: Key, rows: DataSource) -> Iterator[PosttrainError]:
    """Generated rows are held in memory."""
    if rows.path is None and rows.size is not None and rows.size > _MOST_ROWS:
        what, fix = "more rows than are made in memory", "Write them into a file once, and give its path"
        where = cfg.where(*place, "size")
        yield ConfigError(what, where=where, got=rows.size, allowed=f"at most {_MOST_ROWS}", fix=fix)


def learning_rate(cfg: RunConfig) -> Iterator[PosttrainError]:
    """A rate of the wrong order of magnitude."""
    rate = cfg.trainer.learning_rate
    if rate is not None and rate > _HIGHEST_RATE:
        yield ConfigError(
            "no model learns at this rate",
            where=cfg.where("trainer", "learning_rate"),
            got=rate,
            allowed=f"at most {_HIGHEST_RATE:g}",
            fix="Rates of post-training are about 1e-6 to 1e-3",
        )
