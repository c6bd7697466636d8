"""Plans of several stages: each stage is a run of its own whose blocks replace the recipe's as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain import registry
from posttrain.config.run_config import BLOCKS, REWARD_LIMITS, RunConfig, StageBlock
from posttrain.config.source import SourceMap, dotted
from posttrain.config.validation import explain_all, parse_run, placed, read_step, unknown_key
from posttrain.errors import ConfigError, PosttrainError, nearest


def parse_stages(values: dict[str, Any], source: SourceMap, errors: list[PosttrainError]) -> RunConfig | None:
    """Check a recipe with stages; findings are added to `errors`, and None is returned if there were any."""
    before = len(errors)
    stages = _stage_blocks(values["stages"], source, errors)
    _check_unknown(values, source, errors)
    if len(errors) > before:
        return None
    _check_plan(values, stages, source, errors)
    trainer = values.get("trainer")
    folder = trainer.get("output_dir") if isinstance(trainer, dict) else None
    if folder is not None and not isinstance(folder, str):
        where = source.where(("trainer", "output_dir"))
        errors.append(ConfigError("wrong type", where=where, got=folder, allowed="text, or null"))
        return None
    runs = [_parse_stage(values, index, stage, source, errors) for index, stage in enumerate(stages)]
    if len(errors) > before or not runs or runs[-1] is None:
        return None
    trainer = runs[-1].trainer.model_copy(update={"output_dir": _root(values, source)})
    config = runs[-1].model_copy(update={"stages": stages, "trainer": trainer})
    config._source, config._values = source, values
    config._runs = [(stage.name, stage.start_from, run) for stage, run in zip(stages, runs, strict=True) if run]
    return config


def resolve_stages(cfg: RunConfig) -> list[tuple[str, str | None, RunConfig]]:
    """The runs of a recipe in order.

    Returns:
        (name, name of the stage whose model it starts from or None, the run); a recipe without stages is one run
        named "run". A stage's `trainer.output_dir` is a folder of its name below the recipe's. The blocks of a recipe
        with stages are themselves those of its last stage.
    """
    return list(cfg._runs) if cfg.stages is not None else [("run", None, cfg)]


def _root(values: dict[str, Any], source: SourceMap) -> str:
    trainer = values.get("trainer")
    written = trainer.get("output_dir") if isinstance(trainer, dict) else None
    return written if isinstance(written, str) else str(Path("runs") / Path(source.file).stem)


def _stage_blocks(written: Any, source: SourceMap, errors: list[PosttrainError]) -> list[StageBlock]:
    if not isinstance(written, list) or not written:
        where = source.where(("stages",))
        errors.append(
            ConfigError("a list of stages is expected", where=where, got=written, allowed="at least one stage")
        )
        return []
    stages: list[StageBlock] = []
    keys = registry.declared("steps")
    for index, item in enumerate(written):
        own = {key: value for key, value in item.items() if key not in keys} if isinstance(item, dict) else item
        try:
            stage = StageBlock.model_validate(own)
        except ValidationError as problem:
            errors += explain_all(problem, source, below=("stages", index), root=StageBlock, further=keys)
            continue
        for key, (method, path) in keys.items():
            if item.get(key) is not None:
                step = read_step(method.load(path), item[key], source, ("stages", index, key), errors)
                stage.added.update({} if step is None else {key: step})
        stages.append(stage)
    return stages


def _check_unknown(values: dict[str, Any], source: SourceMap, errors: list[PosttrainError]) -> None:
    known = [*BLOCKS, "stages"]
    errors += [unknown_key((key,), known, source) for key in values if key not in known]


def _check_plan(
    values: dict[str, Any], stages: list[StageBlock], source: SourceMap, errors: list[PosttrainError]
) -> None:
    """Names, starting points, and blocks of the recipe that no stage would read."""
    earlier: list[str] = []
    for index, stage in enumerate(stages):
        if stage.name in earlier:
            where = source.where(("stages", index, "name"))
            errors.append(ConfigError("two stages have this name", where=where, got=stage.name, fix="Rename one"))
        if stage.name == "model":
            where = source.where(("stages", index, "name"))
            what = "reference_from means the recipe's model by this word"
            errors.append(ConfigError(what, where=where, got=stage.name, fix="Rename the stage"))
        if stage.start_from is not None and stage.start_from not in earlier:
            errors.append(
                ConfigError(
                    "not the name of an earlier stage",
                    where=source.where(("stages", index, "start_from")),
                    got=stage.start_from,
                    allowed=f"null{''.join(', ' + name for name in earlier)}",
                    fix=nearest(stage.start_from, earlier),
                )
            )
        if stage.reference_from not in (None, "model", *earlier):
            where, allowed = source.where(("stages", index, "reference_from")), ", ".join(["model", *earlier])
            what = "not the name of an earlier stage"
            errors.append(ConfigError(what, where=where, got=stage.reference_from, allowed=allowed))
        for key, step in stage.added.items():
            for below, finding in step.plan_findings(stage, earlier):
                errors.append(placed(finding.at(dotted(("stages", index, key, *below))), source))
        earlier.append(stage.name)
    errors += _foreign_checkpoint(values, earlier, source)
    for block in BLOCKS:
        if values.get(block) is None or not all(_ignores(stage, block, values) for stage in stages):
            continue
        written = values[block]
        if block == "trainer" and isinstance(written, dict) and set(written) <= {"output_dir", "resume"}:
            continue  # these two belong to the whole recipe
        fix = "Remove it; `trainer.output_dir` and `trainer.resume` may stay" if block == "trainer" else "Remove it"
        errors.append(ConfigError("no stage reads this block", where=source.where((block,)), fix=fix))
    hub = values.get("hub")
    if isinstance(hub, dict) and hub.get("push") is True and sum("hub" not in s.model_fields_set for s in stages) > 1:
        where = source.where(("hub", "push"))
        fix = "Write the hub block in the stage to be published"
        errors.append(ConfigError("the stages would push over each other", where=where, fix=fix))


def _checkpoint(resume: Any) -> Path | None:
    """The checkpoint that `trainer.resume` names; None for its words."""
    return Path(resume).expanduser().resolve() if isinstance(resume, str) and resume not in ("auto", "never") else None


def _foreign_checkpoint(values: dict[str, Any], names: list[str], source: SourceMap) -> list[PosttrainError]:
    """A checkpoint under `trainer.resume` that belongs to no stage: none could be continued from it."""
    shared, root = values.get("trainer"), Path(_root(values, source))
    written = shared.get("resume") if isinstance(shared, dict) else None
    named = _checkpoint(written)
    if named is None or named.parent in [(root / name).resolve() for name in names]:
        return []
    where, allowed = source.where(("trainer", "resume")), f"auto, never, {root}/<stage>/checkpoint-<n>"
    return [ConfigError("not a checkpoint of a stage of this recipe", where=where, got=str(written), allowed=allowed)]


def _ignores(stage: StageBlock, block: str, values: dict[str, Any]) -> bool:
    if block in stage.model_fields_set:
        return True
    # A supervised stage takes from a shared rollout block only what its evaluation needs.
    data = stage.data if "data" in stage.model_fields_set else values.get("data")
    evaluated = isinstance(data, dict) and data.get("eval") is not None
    return block == "rollout" and _is_supervised(stage, values) and not evaluated


def _is_supervised(stage: StageBlock, values: dict[str, Any]) -> bool:
    method = stage.method if "method" in stage.model_fields_set else values.get("method")
    entry = registry.METHODS.get(str(method.get("name"))) if isinstance(method, dict) else None
    return entry is not None and entry.learns_rows


def _parse_stage(
    values: dict[str, Any], index: int, stage: StageBlock, source: SourceMap, errors: list[PosttrainError]
) -> RunConfig | None:
    own = stage.model_fields_set & set(BLOCKS)
    raw = {block: values[block] for block in BLOCKS if block in values}
    raw |= {block: getattr(stage, block) for block in own}
    if _is_supervised(stage, values) and "rollout" in raw and "rollout" not in own:
        raw = _without_rollout(raw)
    if isinstance(raw.get("method"), dict):
        for step in stage.added.values():
            raw["method"] = {**raw["method"], **step.method_settings(Path(_root(values, source)), stage.name)}
    trainer = raw.get("trainer")
    if trainer is None or isinstance(trainer, dict):
        trainer = trainer or {}
        if "trainer" in own and "output_dir" in trainer:
            errors.append(
                ConfigError(
                    "a stage writes to a folder of its name below the recipe's output_dir",
                    where=source.where(("stages", index, "trainer", "output_dir")),
                    fix="Remove it here and set trainer.output_dir of the recipe",
                )
            )
        shared = values.get("trainer")
        folder = Path(_root(values, source)) / stage.name
        resume = {"resume": shared["resume"]} if isinstance(shared, dict) and "resume" in shared else {}
        if (place := _checkpoint(resume.get("resume"))) is not None and place.parent != folder.resolve():
            resume = {"resume": "auto"}  # the checkpoint is another stage's
            trainer = {key: value for key, value in trainer.items() if key != "resume" or "trainer" in own}
        raw["trainer"] = {**resume, **trainer, "output_dir": str(folder)}
    found: list[PosttrainError] = []
    config = parse_run(raw, source.stage(index, own | set(stage.added)), found)
    if config is not None:
        config._stage = stage
        found += stage_findings(config, source, index)
    known = {str(error) for error in errors}
    errors += [error for error in found if str(error) not in known]
    return config


def stage_findings(config: RunConfig, source: SourceMap, index: int) -> Iterator[PosttrainError]:
    """What does not go together in `reference_from` and in what papers add to the stage."""
    stage = config.stage
    if stage is None:
        return
    if stage.reference_from is not None:
        where = source.where(("stages", index, "reference_from"))
        if config.rollout is None or not getattr(config.trainer, "beta", 0.0):
            what = "there is no divergence to measure"
            fix = "Set trainer.beta above 0 in a policy method, or remove it"
            yield ConfigError(what, where=where, got=stage.reference_from, fix=fix)
        elif config.model.lora is not None:
            what = "with an adapter the reference is the model without it"
            yield ConfigError(what, where=where, got=stage.reference_from, fix="Remove the line, or model.lora")
    for step in stage.added.values():
        yield from step.rule_findings(config)


def _without_rollout(raw: dict[str, Any]) -> dict[str, Any]:
    """A supervised stage below a shared rollout block: its evaluation takes verdict, limits and length from there."""
    rollout = raw["rollout"]
    raw = {block: value for block, value in raw.items() if block != "rollout"}
    data = raw.get("data")
    evaluated = isinstance(data, dict) and data.get("eval") is not None and raw.get("eval", {}) is not None
    if not evaluated or not isinstance(rollout, dict) or not isinstance(raw.get("eval", {}), dict):
        return raw
    rewards = rollout.get("rewards")
    first = rewards[0] if isinstance(rewards, list) and rewards else None
    first = first.get("name") if isinstance(first, dict) else first
    defaults = {"verifier": rollout.get("verifier") or first, "max_new_tokens": rollout.get("max_completion_length")}
    defaults |= {key: rollout.get(key) for key in REWARD_LIMITS}
    if "reward_memory_bytes" in rollout and rollout["reward_memory_bytes"] is None:
        defaults["reward_memory_bytes"] = 0
    given = {key: value for key, value in defaults.items() if value is not None}
    return {**raw, "eval": {**given, **{k: v for k, v in raw.get("eval", {}).items() if v is not None}}}
