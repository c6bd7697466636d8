"""The arguments of a method's trainer, put together from the blocks of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from posttrain import registry
from posttrain.config.run_config import REWARD_LIMITS, RunConfig
from posttrain.config.source import Key
from posttrain.config.verdict import template_variables
from posttrain.errors import ConfigError, PosttrainError, SupportError
from posttrain.rewards import REWARDS
from posttrain.rewards.limits import RewardLimits
from posttrain.rewards.provenance import reward_files
from posttrain.rewards.scorer import RewardScorer
from posttrain.seam.arguments import FieldSpec, check_value, field_specs


def build_args(cfg: RunConfig, *, output_dir: str | Path, changes: dict[str, Any] | None = None) -> Any:
    """Instance of the method's config class with every value of the recipe.

    Args:
        cfg: one run, without stages.
        output_dir: folder of the run.
        changes: fields to set beside or instead of the recipe's, e.g. for a dry run on another machine.

    Returns:
        The config instance, e.g. an `HPTConfig`.

    Raises:
        ConfigError, SupportError: the values do not go together; where they were written is named.
    """
    config_class = registry.get(cfg.method.name).load_config()
    specs = field_specs(config_class)
    keys = {**keywords(cfg, specs), "output_dir": str(output_dir), **(changes or {})}
    try:
        return config_class(**keys)
    except PosttrainError as error:
        raise _placed(error, cfg, specs) from None
    except (ValueError, TypeError, ImportError) as error:
        raise _translated(error, cfg, specs) from None


def keywords(cfg: RunConfig, specs: dict[str, FieldSpec]) -> dict[str, Any]:
    """Keyword arguments of the config class, by field name; `output_dir` is left out."""
    keys: dict[str, Any] = {}
    for name, block in (("method", cfg.method), ("trainer", cfg.trainer), ("rollout", cfg.rollout)):
        if block is not None:
            keys |= {
                key: check_value(specs[key], value, where=cfg.where(name, key)) for key, value in block.fields.items()
            }
    if variables := template_variables(cfg):
        keys["chat_template_kwargs"] = variables
    if cfg.rollout is not None:
        keys["use_vllm"] = cfg.rollout.engine == "vllm"
        keys["vllm_mode"] = cfg.rollout.mode or "colocate"
        if cfg.rollout.engine == "vllm" and "documents" not in registry.get(cfg.method.name).inputs:
            # Left open, vLLM sets memory aside for rows as long as the model can read. Prompts that a method writes
            # itself are longer than the rows.
            keys.setdefault("vllm_max_model_length", cfg.data.max_prompt_length + cfg.rollout.max_completion_length)
        if "rollout.prompt_shares" in cfg.slots:
            keys["changing_shares"] = True
        keys["reward_weights"] = [entry.weight for entry in cfg.rollout.rewards]
        if cfg.rollout.verifier is not None:
            keys["verifier"] = function_name(cfg.rollout.verifier)
    keys |= {"push_to_hub": cfg.hub.push, "hub_private_repo": cfg.hub.private, "hub_strategy": cfg.hub.strategy}
    keys |= {"hub_model_id": cfg.hub.repo_id, "hub_revision": cfg.hub.revision}
    return keys


def reward_scorer(cfg: RunConfig, name: str, *, evaluation: bool = False) -> Any:
    """A reward of a recipe, under its limits.

    Args:
        cfg: one run, without stages.
        name: packaged reward, or file.py:function beside the recipe.
        evaluation: whether it scores an evaluation, see `reward_limits`.

    Returns:
        A `posttrain.rewards.scorer.RewardScorer`.

    Raises:
        ConfigError: unknown name, or no such file.
    """
    accepted = {} if cfg.rollout is None else {"max_failed_fraction": cfg.rollout.max_failed_fraction}
    limits = reward_limits(cfg, evaluation=evaluation)
    entries = [] if cfg.rollout is None else [entry for entry in cfg.rollout.rewards if entry.name == name]
    chosen = entries[0].options() if entries else {}
    return RewardScorer(name, base_dir=Path(cfg.source.file).parent, limits=limits, **accepted, **chosen)


def own_reward_files(cfg: RunConfig) -> dict[str, dict[str, str]]:
    """Under "reward_files" the SHA-256 of files that the user's own rewards are seen to use; empty without any."""
    names = [entry.name for entry in cfg.rollout.rewards] if cfg.rollout is not None else []
    tasks = [source.verifier for source in (cfg.data.eval_tasks or {}).values()]
    further = [cfg.eval.verifier if cfg.eval is not None else None, *tasks]
    used = [*names, *(name for name in further if name is not None)]
    found = reward_files(used, Path(cfg.source.file).parent)
    return {"reward_files": found} if found else {}


def reward_limits(cfg: RunConfig, *, evaluation: bool = False) -> Any:
    """The `posttrain.rewards.limits.RewardLimits` of a recipe.

    Args:
        cfg: one run, without stages.
        evaluation: whether what the eval block says comes first; then that of the rollout block, then the defaults.
    """
    values = {} if cfg.rollout is None else {name: getattr(cfg.rollout, name) for name in REWARD_LIMITS}
    if evaluation and cfg.eval is not None:
        own = {name: getattr(cfg.eval, name) for name in REWARD_LIMITS}
        values |= {name: value for name, value in own.items() if value is not None}
    if "reward_memory_bytes" in values:
        values["reward_memory_bytes"] = values["reward_memory_bytes"] or None
    if "reward_environment" in values:
        values["reward_environment"] = tuple(values["reward_environment"])
    return RewardLimits(**{name.removeprefix("reward_"): value for name, value in values.items()})


def function_name(reward: str) -> str:
    """Name of the function behind a reward of a recipe; the trainers know rewards by it."""
    return REWARDS.get(reward, reward).rsplit(":", 1)[-1]


def written_key(name: str, cfg: RunConfig, specs: dict[str, FieldSpec]) -> Key | None:
    """Path under which a recipe writes a field of the config class; None for a name that is no field."""
    spec = specs.get(name)
    if spec is None:
        return None
    if spec.set_by is not None and "." in spec.set_by and " " not in spec.set_by.split(".")[0]:
        return tuple(spec.set_by.split(" ")[0].split("."))
    return (spec.block, name)


def _placed(error: PosttrainError, cfg: RunConfig, specs: dict[str, FieldSpec]) -> PosttrainError:
    """The same error with file and line in place of the class's own field path."""
    name = (error.where or "").split(".")[-1]
    key = written_key(name, cfg, specs) if re.fullmatch(r"[\w.]+", error.where or "") else None
    if key is None:
        return error
    facts = {"got": error.got} if "(got " in str(error) else {}
    return type(error)(error.what, where=cfg.where(*key), allowed=error.allowed, fix=error.fix, **facts)


def _translated(error: Exception, cfg: RunConfig, specs: dict[str, FieldSpec]) -> PosttrainError:
    """An upstream refusal, with the place of the first of our fields that its text names."""
    text = " ".join(str(error).split()).rstrip(".")
    written = {name for block in (cfg.method, cfg.trainer, cfg.rollout) if block for name in block.fields}
    named = [name for name in re.findall(r"[a-z0-9]+(?:_[a-z0-9]+)*", text) if name in specs]
    named.sort(key=lambda name: name not in written)
    key = written_key(named[0], cfg, specs) if named else None
    place = cfg.where(*key) if key else cfg.where("trainer")
    kind = SupportError if isinstance(error, ImportError) else ConfigError
    return kind(text, where=place)
