"""From a claims file to the runs of a study, checked before anything runs.

Found out here: stages that do not exist, variants that are trained or evaluated unequally, metrics no evaluation has,
    and
finished runs of other settings in the output folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain import registry
from posttrain.config.build import build_args, reward_limits
from posttrain.config.loader import load
from posttrain.config.run_config import RunConfig
from posttrain.config.source import read_recipe
from posttrain.config.stages import resolve_stages
from posttrain.config.validation import raise_all
from posttrain.config.verdict import evaluation_settings, verifier_name
from posttrain.errors import ConfigError, PosttrainError, nearest
from posttrain.models.loading import load_tokenizer
from posttrain.preflight.mixture import load_split
from posttrain.preflight.run import run_length
from posttrain.reproduce.claims import Study, load_claims, studies_in, study_file
from posttrain.reproduce.group_losses import is_of_losses, loss_settings, unknown_losses
from posttrain.reproduce.metrics import unknown_metrics
from posttrain.reproduce.results import StageRecord
from posttrain.training.resuming import is_finished
from posttrain.training.stage import MODEL_FOLDER

Stages = list[tuple[str, str | None, RunConfig]]
# Overrides that each seed of the study would replace.
_SEED = re.compile(r"(stages\.[^.]+\.)?(trainer|model\.tiny)\.seed")


@dataclass(frozen=True)
class SeedRun:
    """One run of the whole recipe. `overrides` are complete: the user's, the seed, the folder."""

    seed: int
    folder: Path
    overrides: tuple[str, ...]
    stages: Stages

    def finished(self) -> list[str]:
        """Names of the stages that are done.

        Raises:
            ResumeError: a run with other settings was finished in this folder.
        """
        done: list[str] = []
        for name, parent, config in self.stages:
            start = self.stage_folder(parent) / MODEL_FOLDER if parent else None
            # A stage whose parent is missing is trained again after it.
            ready = parent is None or parent in done
            named = config.stage.reference_from if config.stage is not None else None
            folders = {stage: self.stage_folder(stage) / MODEL_FOLDER for stage, _, _ in self.stages}
            reference = folders.get(named, named) if named else None
            if ready and is_finished(self.stage_folder(name), config, parent=start, reference=reference):
                done.append(name)
        return done

    def stage_folder(self, name: str) -> Path:
        """Folder of one stage's run."""
        return self.folder / name


@dataclass(frozen=True)
class VariantPlan:
    """One variant: its own stages in order, without what all variants share."""

    stage: str
    label: str
    own: tuple[StageRecord, ...]

    @property
    def steps(self) -> int:
        """Optimizer steps of its own stages."""
        return sum(record.steps for record in self.own)

    @property
    def amount(self) -> tuple[int, float, tuple[float, ...]]:
        """What must be equal: steps, prompts, and prompts of a step."""
        prompts = sum(record.steps * record.prompts_per_step for record in self.own)
        return self.steps, prompts, tuple(sorted({record.prompts_per_step for record in self.own}))

    def amount_text(self) -> str:
        """ "200 steps of 16 prompts", stage by stage."""
        parts = [f"{record.steps} steps of {record.prompts_per_step:g} prompts" for record in self.own]
        return " + ".join(parts) or "no steps of its own"


@dataclass(frozen=True)
class Plan:
    """The runs of a study."""

    key: str
    study: Study
    output: Path
    runs: tuple[SeedRun, ...]
    variants: tuple[VariantPlan, ...]
    preparation: tuple[StageRecord, ...]
    overrides: tuple[str, ...]

    @cached_property
    def steps(self) -> dict[str, int]:
        """Optimizer steps of every stage."""
        return {record.name: record.steps for record in _records(self.runs[0].stages)}

    def seeds_reach(self) -> str:
        """What a seed decides, for the reader of the results."""
        tiny = [config.model.tiny is not None for _, parent, config in self.runs[0].stages if parent is None]
        weights = "and the weights the model starts with" if all(tiny) else "but not the weights the model starts with"
        return f"A seed decides the order of the prompts, every sampled token and dropout, {weights}."


def find_study(key: str, study: str | None, root: Path) -> Path:
    """The claims file of a study.

    Raises:
        ConfigError: an unknown method, one without a study, or an unknown study.
    """
    registry.get(key, where="reproduce")
    folder = root / "recipes" / key
    names = studies_in(folder)
    if not names:
        where = _relative(folder)
        raise ConfigError("nothing to reproduce: there is no claims.yaml", where=where, fix="Choose another method")
    name = study or names[0]
    if name not in names:
        fix = nearest(name, names)
        raise ConfigError("no such study", where=f"reproduce {key}", got=name, allowed=", ".join(names), fix=fix)
    return Path(_relative(folder / study_file(name)))


def make_plan(
    key: str, claims: Path, *, seeds: Sequence[int] | None = None, output: Path, overrides: Sequence[str] = ()
) -> Plan:
    """Read claims and recipe for every seed and check that the comparison is a fair one.

    Args:
        key: the method.
        claims: the claims file.
        seeds: default: those of the claims file.
        output: folder of the study; seed `s` runs in `seed-<s>` below it.
        overrides: dotted overrides of the recipe, the same for every seed.

    Raises:
        ConfigError: one mistake; RecipeError: several.
    """
    study = load_claims(claims)
    for text in overrides:
        _refuse_what_the_study_decides(study, text)
    chosen = list(study.block.seeds if seeds is None else seeds)
    runs = tuple(_seed_run(study, seed, output / f"seed-{seed}", list(overrides)) for seed in chosen)
    stages = runs[0].stages
    _check_variants_exist(study, stages)
    variants, preparation = _split(study, stages)
    plan = Plan(key, study, output, runs, variants, preparation, tuple(overrides))
    raise_all([*_unequal_training(plan), *_unequal_evaluation(plan), *_unknown_metrics(plan)])
    return plan


def _refuse_what_the_study_decides(study: Study, override: str) -> None:
    """Seeds and folder: by their own names, or inside a block that replaces the recipe's."""
    name = override.partition("=")[0].strip()
    values, _ = read_recipe(study.recipe, [override])
    value: Any = values
    for part in name.split("."):
        value = value[int(part) if isinstance(value, list) else part]
    for leaf in _leaves(value, name):
        if leaf == "trainer.output_dir" or _SEED.fullmatch(leaf):
            fix = "Use --output FOLDER" if leaf == "trainer.output_dir" else "Use --seeds, e.g. --seeds 0,1,2"
            fix = fix if leaf == name else f"Take {leaf} out of the block. {fix}"
            raise ConfigError("decided by the study", where=f"override {override}", fix=fix)


def _leaves(value: Any, name: str) -> list[str]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, item in items for leaf in _leaves(item, f"{name}.{key}")]
    return [name]


def _seed_run(study: Study, seed: int, folder: Path, overrides: list[str]) -> SeedRun:
    """The recipe with a seed in every stage's trainer and in every model made from its configuration."""
    values, source = read_recipe(study.recipe, overrides)
    stages = values.get("stages")
    if isinstance(stages, dict):  # a preset, whose stages all have the recipe's trainer
        stages = []
    elif not isinstance(stages, list):
        raise ConfigError(
            "a reproduction needs a recipe with stages", where=source.file, fix="Write one stage for each variant"
        )
    own = [(f"stages.{index}.", stage) for index, stage in enumerate(stages) if isinstance(stage, dict)]
    trained = [prefix for prefix, stage in own if "trainer" in stage]
    prefixes = ["", *trained] if len(trained) < len(stages) or not stages else trained
    seeds = [f"{prefix}trainer.seed={seed}" for prefix in prefixes]
    for prefix, block in [("", values), *own]:
        model = block.get("model")
        if isinstance(model, dict) and isinstance(model.get("tiny"), dict):
            seeds.append(f"{prefix}model.tiny.seed={seed}")
    complete = (*overrides, *seeds, f"trainer.output_dir={folder.as_posix()}")
    config = load(study.recipe, complete)
    return SeedRun(seed, folder, complete, resolve_stages(config))


# ---- variants ----


def _check_variants_exist(study: Study, stages: Stages) -> None:
    names = [name for name, _, _ in stages]
    errors: list[PosttrainError] = []
    for index, variant in enumerate(study.block.variants):
        if variant.stage not in names:
            fix = nearest(variant.stage, names) or f"Add the stage to {study.recipe.name}"
            where = study.source.where(("variants", index))
            what = f"not a stage of {study.recipe.name}"
            errors.append(ConfigError(what, where=where, got=variant.stage, allowed=", ".join(names), fix=fix))
    raise_all(errors)


def _split(study: Study, stages: Stages) -> tuple[tuple[VariantPlan, ...], tuple[StageRecord, ...]]:
    """Each variant's own stages, and those that all variants begin with."""
    parents = {name: parent for name, parent, _ in stages}
    chains: dict[str, list[str]] = {}
    for variant in study.variants:
        chain: list[str] = []
        name: str | None = variant
        while name is not None:
            chain.insert(0, name)
            name = parents[name]
        chains[variant] = chain
    shared = set.intersection(*(set(chain) for chain in chains.values())) if len(chains) > 1 else set()
    needed = set().union(*chains.values())
    records = {record.name: record for record in _records([item for item in stages if item[0] in needed])}
    variants = tuple(
        VariantPlan(variant, label, tuple(records[name] for name in chains[variant] if name not in shared))
        for variant, label in study.variants.items()
    )
    return variants, tuple(record for name, record in records.items() if name in shared)


def _records(stages: Stages) -> list[StageRecord]:
    return [_record(name, config) for name, _, config in stages]


def _record(name: str, config: RunConfig) -> StageRecord:
    """Steps and prompts of one stage, from the arguments its trainer will get. One process."""
    args = build_args(config, output_dir=str(config.trainer.output_dir))
    if args.max_steps < 1 and "num_train_epochs" not in config.trainer.fields:
        where = config.where("trainer", "max_steps")
        fix = "Write trainer.max_steps or num_train_epochs, so that variants can be compared before they run"
        raise ConfigError(f"the steps of {name} are not known beforehand", where=where, fix=fix)
    steps = args.max_steps if args.max_steps > 0 else _steps_of_epochs(config)
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if registry.get(config.method.name).generates:
        # Rows are rollouts, and a batch of them is used num_iterations times.
        rows = rows / args.num_generations / args.num_iterations
    return StageRecord(name=name, trainer=config.method.name, steps=steps, prompts_per_step=float(rows))


def _steps_of_epochs(config: RunConfig) -> int:
    """Optimizer steps that follow from the number of epochs and the rows of training. One process."""
    tokenizer = load_tokenizer(config.model) if config.data.train.mixture is not None else None
    rows = len(load_split(config, "train", tokenizer).dataset)
    return run_length(config, registry.get(config.method.name), num_rows=rows, world_size=1)[0]


# ---- fairness ----


def _unequal_training(plan: Plan) -> list[PosttrainError]:
    study = plan.study
    if len(plan.variants) < 2:
        return []
    usual = Counter(
        variant.amount for variant in plan.variants if variant.stage not in study.block.unequal
    ).most_common(1)
    reference = usual[0][0] if usual else plan.variants[0].amount
    like = next(variant for variant in plan.variants if variant.amount == reference)
    errors: list[PosttrainError] = []
    for variant in plan.variants:
        stated = variant.stage in study.block.unequal
        if variant.amount != reference and not stated:
            errors.append(
                ConfigError(
                    f"the variant {variant.stage} is not trained like {like.stage}: {variant.amount_text()}, not "
                    f"{like.amount_text()}",
                    where=study.source.where(("variants", list(study.variants).index(variant.stage))),
                    fix=f"Make them equal in {study.recipe.name}, or say why: unequal: {{{variant.stage}: reason}}",
                )
            )
        if variant.amount == reference and stated and usual:
            where = study.source.where(("unequal", variant.stage))
            what = f"this variant is trained like the others: {variant.amount_text()}"
            errors.append(ConfigError(what, where=where, fix="Remove the line"))
    return errors


def _unequal_evaluation(plan: Plan) -> list[PosttrainError]:
    configs = {name: config for name, _, config in plan.runs[0].stages}
    study = plan.study
    errors: list[PosttrainError] = []
    settings: dict[str, dict[str, Any]] = {}
    for index, variant in enumerate(study.variants):
        found = loss_settings(configs[variant]) if is_of_losses(study) else _evaluation(configs[variant])
        if found is None:
            where = study.source.where(("variants", index))
            needed = "data.validation" if is_of_losses(study) else "data.eval and an eval block"
            fix = f"Write {needed} in {study.recipe.name}"
            errors.append(ConfigError("this variant is not evaluated", where=where, got=variant, fix=fix))
            continue
        settings[variant] = found
        first, others = next(iter(settings.items()))
        differ = sorted(key for key in found if found[key] != others[key])
        if differ:
            what = f"the variant {variant} is not evaluated like {first}: {', '.join(differ)} differ"
            where = study.source.where(("variants", index))
            errors.append(ConfigError(what, where=where, fix=f"Make them equal in {study.recipe.name}"))
    return errors


def _evaluation(config: RunConfig) -> dict[str, Any] | None:
    """Everything the final evaluation depends on, with what the rollout block fills in; None without one."""
    verifier = verifier_name(config)
    if config.eval is None or config.data.eval is None or verifier is None:
        return None
    settings = evaluation_settings(config)
    free = ("at_start", "every_steps", "batch_size")
    return {
        **{key: value for key, value in settings.items() if key not in free},
        "verifier": verifier,
        **{f"reward_{name}": value for name, value in asdict(reward_limits(config, evaluation=True)).items()},
        "success_threshold": getattr(config.method, "success_threshold", 1.0),
        "data.eval": config.data.eval.model_dump(),
        "data.system_prompt": config.data.system_prompt,
    }


def _unknown_metrics(plan: Plan) -> list[PosttrainError]:
    """Metrics that the evaluation of the variants will not have; nothing where that is a mistake itself."""
    if is_of_losses(plan.study):
        return unknown_losses(plan.study)
    evaluated = [_evaluation(config) for name, _, config in plan.runs[0].stages if name in plan.study.variants]
    found = next((settings for settings in evaluated if settings is not None), None)
    return [] if found is None else unknown_metrics(plan.study, found["num_generations"])


def _relative(path: Path) -> str:
    """The path as seen from here, if it lies below: results and messages then name no machine."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
