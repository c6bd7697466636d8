"""From a recipe file to a checked `RunConfig`, and from there to the arguments of the method's trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from posttrain.config.build import build_args
from posttrain.config.presets import expand
from posttrain.config.run_config import RunConfig
from posttrain.config.sound_values import unsound
from posttrain.config.source import SourceMap, read_recipe
from posttrain.config.stages import parse_stages, resolve_stages
from posttrain.config.validation import RecipeError, parse_run, placed, raise_all
from posttrain.errors import ConfigError, PosttrainError, nearest

__all__ = ["RecipeError", "build_args", "load", "load_stage", "parse", "resolve_stages"]


def load(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read and check a recipe.

    Args:
        path: YAML file.
        overrides: dotted overrides, "trainer.learning_rate=1e-6".

    Returns:
        The recipe; data, tokenizer and device are not looked at (see `posttrain.preflight.check`).

    Raises:
        ConfigError: one mistake; RecipeError: several.
    """
    values, source = read_recipe(path, list(overrides))
    return parse(values, source)


def parse(values: dict[str, Any], source: SourceMap | None = None) -> RunConfig:
    """Check a recipe given as nested dicts. Raises as `load` does."""
    source = source or SourceMap("recipe")
    raise_all(unsound(values, source))
    if isinstance(values.get("stages"), dict):
        values = _expanded(values, source)
    errors: list[PosttrainError] = []
    read = parse_run if values.get("stages") is None else parse_stages
    config = read(values, source, errors)
    raise_all(errors)
    if config is None:
        raise ConfigError("the recipe could not be read", where=source.file)
    return config


def _expanded(values: dict[str, Any], source: SourceMap) -> dict[str, Any]:
    """A recipe whose stages are a preset, as one with a list; a block that every stage has itself is no longer shared.

    Raises:
        ConfigError: of the preset, with the place of the key it is about.
    """
    try:
        stages = expand(values)
    except PosttrainError as error:
        raise placed(error.at("stages"), source) from None
    shared = {block: value for block, value in values.items() if not all(block in stage for stage in stages)}
    trainer = values.get("trainer")
    if "trainer" not in shared and isinstance(trainer, dict):  # two keys of it belong to the whole recipe
        shared["trainer"] = {key: trainer[key] for key in ("output_dir", "resume") if key in trainer}
    return {**shared, "stages": stages}


def load_stage(recipe: str | Path, overrides: Sequence[str], stage: str | None) -> list[tuple[str, Any]]:
    """The run to evaluate with, after the stages that its model comes from: (name, configuration), oldest first.

    Args:
        recipe: path of the YAML file.
        overrides: "block.key=value"; where the stage has a block of its own, they change that one. The stages of a
            preset have none.
        stage: None = the last; a recipe without stages has one run, named "run".
    """
    written = read_recipe(recipe)[0].get("stages")
    is_preset = isinstance(written, dict)
    written = [item for item in written if isinstance(item, dict)] if isinstance(written, list) else []
    names = [str(item.get("name")) for item in written]
    if is_preset:
        names = [name for name, _, _ in resolve_stages(load(recipe, overrides))]
    if stage is not None and stage not in names:
        what = "no such stage" if names else "the recipe has no stages"
        fix = nearest(stage, names) if names else "Leave it out"
        allowed = f"one of: {', '.join(names)}" if names else None
        raise ConfigError(what, where="--stage", got=stage, allowed=allowed, fix=fix)
    if written:
        index = names.index(stage) if stage is not None else len(names) - 1
        own = written[index].keys() - {"name", "start_from"}
        overrides = [f"stages.{index}.{text}" if text.split(".")[0] in own else text for text in overrides]
    runs = {name: (parent, config) for name, parent, config in resolve_stages(load(recipe, overrides))}
    name: str | None = stage if stage is not None else list(runs)[-1]
    chain: list[tuple[str, Any]] = []
    while name is not None:
        chain.insert(0, (name, runs[name][1]))
        name = runs[name][0]
    return chain
