"""What `data.train.streaming` goes with: rows that come in an order that can be found again."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain import registry
from posttrain.config.run_config import MixtureEntry, RunConfig
from posttrain.data.streams import NOT_WITH_STREAMS
from posttrain.errors import ConfigError, PosttrainError, SupportError

# Parts of a source that its number of rows decides, with the values that ask for nothing.
_PARTS = {
    "fraction": 1.0,
    "max_rows": None,
    "replay_fraction": None,
    "repeat": None,
    "weight": None,
}


def stream_rules(cfg: RunConfig) -> Iterator[PosttrainError]:
    """Settings under which rows of a stream would not be drawn, or not be drawn again alike."""
    for split in ("validation", "retain"):
        if getattr(getattr(cfg.data, split), "streaming", False):
            yield SupportError(
                "these rows are read again and again",
                where=cfg.where("data", split, "streaming"),
                allowed="data.train alone",
                fix="Remove the line",
            )
    train = cfg.data.train
    if not train.streaming:
        return
    where = cfg.where("data", "train", "streaming")
    if "streams" not in registry.get(cfg.method.name).inputs:
        readers = ", ".join(key for key, entry in registry.METHODS.items() if "streams" in entry.inputs)
        yield SupportError(
            "rows of a stream are drawn group by group, and this method puts its rows into a random order",
            where=where,
            got=cfg.method.name,
            allowed=readers,
            fix="Remove the line, or change the method",
        )
    if train.mixture is None:
        yield SupportError(
            "a row's group is not known before it is read, so every group needs a stream of its own",
            where=where,
            fix="Write data.train.mixture with a source for each group",
        )
    if train.mixing is not None:
        yield ConfigError(
            "the method decides which stream a row is from",
            where=cfg.where("data", "train", "mixing"),
            fix="Remove it",
        )
    for index, entry in enumerate(train.mixture or ()):
        yield from _source(cfg, index, entry)
    yield from _settings(cfg)


def _source(cfg: RunConfig, index: int, entry: MixtureEntry) -> Iterator[PosttrainError]:
    if entry.path is None:
        yield SupportError(
            "generated rows are not read as a stream",
            where=cfg.where("data", "train", "mixture", index),
            got=entry.name,
            allowed="sources with path",
            fix="Remove streaming, or write the rows to a file",
        )
    for key, default in _PARTS.items():
        if getattr(entry, key) != default:
            yield SupportError(
                "a stream has no known number of rows, so a part of it is not defined",
                where=cfg.where("data", "train", "mixture", index, key),
                got=getattr(entry, key),
                fix="Use limit, which takes the first rows",
            )


def _settings(cfg: RunConfig) -> Iterator[PosttrainError]:
    """The same that the trainer refuses, and what is done to rows before it has them."""
    written = cfg.trainer.fields
    for key, told in NOT_WITH_STREAMS.items():
        if written.get(key):
            yield SupportError(told, where=cfg.where("trainer", key), got=written[key], fix="Remove the line")
    if cfg.data.overlong_prompts == "drop":
        yield SupportError(
            "which row of a stream comes next would depend on the lengths of all before it",
            where=cfg.where("data", "overlong_prompts"),
            got="drop",
            allowed="error",
            fix="Filter the files",
        )
