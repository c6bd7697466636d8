"""`recipes/<key>/claims.yaml`: which runs a study compares, on which seeds, and what would count as the claim held.

A study is two files. `reproduce.yaml` is an ordinary recipe with stages: preparation that the variants share (a
warm-up), then one stage for each variant. `claims.yaml` says what is compared. A second study of the same method is
`claims_<name>.yaml`, run by `posttrain reproduce KEY --study <name>`; `claims.yaml` itself is the study "main".

    recipe: reproduce.yaml            # beside this file; the default
    paper_claim: HPT reaches 52.7 on average where GRPO reaches 43.1 (Qwen2.5-Math-7B, six benchmarks).
    setting: A language model of 0.1 million parameters on modular addition, 200 steps of 16 prompts.
    seeds: [0, 1, 2]                  # 3 or more; each is one run of the whole recipe
    metric: accuracy                  # a number of the evaluation "after" (eval.json); the default.
                                      # One group: "per_group.<group>.accuracy"
    variants:                             # stages to compare, in the order of the tables
      - grpo
      - {stage: hpt, label: "HPT, gate 0"}
    unequal: {}                       # variant: why its steps or prompts differ from the others' (then it may)
    claims:                           # the first one is the paper's claim
      - name: beats_grpo
        statement: HPT solves more than RL alone.
        treatment: hpt
        baselines: [grpo]
        direction: greater            # or less; the default is greater
        margin: 0.0                   # what counts: the difference must be beyond it. -0.02 = "not worse by 2 points"
        metric: accuracy              # default: the study's
      - kind: change                  # a training curve of one variant instead of a difference between variants
        name: fewer_demonstrations
        statement: The share of prompts that need a demonstration falls.
        variant: hpt
        metric: gate/sft_fraction     # a name in metrics.jsonl
        direction: falls              # or rises
        margin: 0.0
        after_step: 0                 # values logged up to this step are left out, such as those of a warm-up
        first_fraction: 0.25          # mean over the last quarter of the logged values minus that over the first
        last_fraction: 0.25
    notes: What the study cannot show.
    minutes_limit: 20                 # wall time on 2 CPU cores; a longer study says so in its results

A claim about a difference is tested on the paired differences treatment minus baseline, one for each seed, with a
Student t interval of 95 %. It is held if the interval against every baseline lies beyond the margin, not held if the
interval against some baseline lies wholly on the other side of the margin, and undecided otherwise. For a change the
same rule is applied to last minus first of each seed. See `posttrain.reproduce.decision`.

Which steps and prompts a variant has is read from the recipe: those of its own stages, without what all variants
    share. An
variant of two stages (SFT, then GRPO) names the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError

from posttrain.config.run_config import Block, Count, Name, Seed
from posttrain.config.source import Key, SourceMap, read_recipe
from posttrain.config.validation import explain_all, raise_all
from posttrain.errors import ConfigError, PosttrainError, nearest

MAIN = "main"
MIN_SEEDS = 3
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Fraction = Annotated[float, Field(gt=0, le=0.5)]
Margin = Annotated[float, Field(allow_inf_nan=False)]


def _sentence(text: str) -> str:
    """A sentence on one line, as tables need it."""
    return " ".join(text.split())


Sentence = Annotated[str, StringConstraints(min_length=1), AfterValidator(_sentence)]


def _staged(value: Any) -> Any:
    return {"stage": value} if isinstance(value, str) else value


class VariantBlock(Block):
    """One stage of the recipe that is compared with the others."""

    stage: Name = Field(description="name of the stage; of the last one, for a variant of several")
    label: Name | None = Field(default=None, description="name in tables and plots; null = the stage's")


class DifferenceClaim(Block):
    """One variant is better than others."""

    kind: Literal["difference"] = Field(default="difference", description="difference between variants, or change")
    name: Word = Field(description="short name: letters, digits, _ . -")
    statement: Sentence = Field(description="the claim as a sentence")
    treatment: Name = Field(description="the variant the claim is about")
    baselines: Annotated[list[Name], Field(min_length=1)] = Field(description="variants it is compared with")
    direction: Literal["greater", "less"] = Field(default="greater", description="the side on which treatment lies")
    margin: Margin = Field(default=0.0, description="difference that counts, in the unit of the metric")
    metric: Name | None = Field(default=None, description="number of the evaluation; null = the study's metric")


class ChangeClaim(Block):
    """A training metric of one variant falls or rises."""

    kind: Literal["change"] = Field(description="difference between variants, or change")
    name: Word = Field(description="short name: letters, digits, _ . -")
    statement: Sentence = Field(description="the claim as a sentence")
    variant: Name = Field(description="the variant whose curve it is")
    metric: Name = Field(description="name in metrics.jsonl, e.g. gate/sft_fraction")
    direction: Literal["falls", "rises"] = Field(description="which way the metric goes")
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(default=0.0, description="change that counts")
    after_step: Annotated[int, Field(ge=0)] = Field(
        default=0, description="values logged up to this step are left out, such as those of a warm-up"
    )
    first_fraction: Fraction = Field(default=0.25, description="part of the logged values that is the beginning")
    last_fraction: Fraction = Field(default=0.25, description="part of the logged values that is the end")


Claim = DifferenceClaim | ChangeClaim
_KINDS: dict[str, type[Claim]] = {"difference": DifferenceClaim, "change": ChangeClaim}


class Claims(Block):
    """One study: what is compared, and what was claimed."""

    recipe: Name = Field(default="reproduce.yaml", description="recipe with stages, beside this file")
    paper_claim: Sentence = Field(description="what the paper says, in one sentence, with its own figure")
    setting: Sentence = Field(description="model, task and length of our runs, in one sentence")
    title: Sentence | None = Field(default=None, description="the setting in six words, for the table of results")
    seeds: list[Seed] = Field(description="seeds; each is one run of the whole recipe")
    metric: Name = Field(default="accuracy", description="number of the evaluation `after` in eval.json")
    variants: list[Annotated[VariantBlock, BeforeValidator(_staged)]] = Field(description="stages to compare")
    unequal: dict[str, Sentence] = Field(
        default_factory=dict, description="variant -> why its steps or prompts differ from the others'"
    )
    claims: list[Any] = Field(description="what was claimed; the first one is the paper's claim")
    notes: Sentence | None = Field(default=None, description="what the study cannot show")
    minutes_limit: Count = Field(default=20, description="wall time in minutes on 2 CPU cores")


@dataclass(frozen=True)
class Study:
    """A checked claims file. `variants` maps stage to label, in order; `recipe` is the path of the recipe."""

    path: Path
    name: str
    recipe: Path
    block: Claims
    claims: tuple[Claim, ...]
    variants: dict[str, str]
    source: SourceMap

    def metric_of(self, claim: DifferenceClaim) -> str:
        """The evaluation metric a claim is decided on."""
        return claim.metric or self.block.metric

    def metrics(self) -> list[str]:
        """Every evaluation metric that is needed, the study's own first."""
        own = [self.metric_of(claim) for claim in self.claims if isinstance(claim, DifferenceClaim)]
        return list(dict.fromkeys([self.block.metric, *own]))


def study_file(study: str) -> str:
    """Name of the claims file of a study."""
    return "claims.yaml" if study == MAIN else f"claims_{study}.yaml"


def studies_in(folder: Path) -> list[str]:
    """Names of the studies of a method's recipe folder, "main" first."""
    names = [path.stem.removeprefix("claims").removeprefix("_") for path in folder.glob("claims*.yaml")]
    return sorted((name or MAIN for name in names), key=lambda name: (name != MAIN, name))


def load_claims(path: str | Path) -> Study:
    """Read and check a claims file.

    Raises:
        ConfigError: one mistake, with its line; RecipeError: several. The recipe itself is not read here.
    """
    path = Path(path)
    values, source = read_recipe(path)
    errors: list[PosttrainError] = []
    block = None
    try:
        block = Claims.model_validate(values)
    except ValidationError as problem:
        errors += explain_all(problem, source, root=Claims)
    written = values.get("claims")
    claims = _claims(written if isinstance(written, list) else [], source, errors)
    if block is None or errors:
        raise_all(errors)
        raise ConfigError("the claims could not be read", where=source.file)
    name = path.stem.removeprefix("claims").removeprefix("_") or MAIN
    variants = {variant.stage: variant.label or variant.stage for variant in block.variants}
    study = Study(path, name, path.parent / block.recipe, block, tuple(claims), variants, source)
    raise_all([*_seed_errors(study), *_variant_errors(study), *_claim_errors(study)])
    return study


def _claims(written: Sequence[Any], source: SourceMap, errors: list[PosttrainError]) -> list[Claim]:
    found: list[Claim] = []
    for index, item in enumerate(written):
        kind = item.get("kind", "difference") if isinstance(item, dict) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            where = source.where(("claims", index, "kind") if isinstance(item, dict) else ("claims", index))
            what = "unknown kind of claim" if isinstance(item, dict) else "a mapping of keys is expected"
            errors.append(ConfigError(what, where=where, got=kind or item, allowed="kind: difference or change"))
            continue
        try:
            found.append(_KINDS[kind].model_validate(item))
        except ValidationError as problem:
            errors += explain_all(problem, source, below=("claims", index), root=_KINDS[kind])
    return found


def _seed_errors(study: Study) -> list[PosttrainError]:
    seeds, where = study.block.seeds, study.source.where(("seeds",))
    if len(set(seeds)) < len(seeds):
        return [ConfigError("a seed is listed twice", where=where, got=seeds, fix="Keep one of them")]
    if len(seeds) < MIN_SEEDS:
        what = "too few seeds to tell a difference from chance"
        return [ConfigError(what, where=where, got=seeds, allowed=f"{MIN_SEEDS} or more")]
    return []


def _variant_errors(study: Study) -> list[PosttrainError]:
    errors: list[PosttrainError] = []
    stages = [variant.stage for variant in study.block.variants]
    labels = [variant.label or variant.stage for variant in study.block.variants]
    for what, names in (("a variant is listed twice", stages), ("two variants have one label", labels)):
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            errors.append(
                ConfigError(what, where=study.source.where(("variants",)), got=repeated[0], fix="Change one")
            )
    if not stages:
        errors.append(ConfigError("must not be empty", where=study.source.where(("variants",)), allowed="stage names"))
    for variant in study.block.unequal:
        errors += not_an_variant(study, variant, ("unequal", variant))
    return errors


def _claim_errors(study: Study) -> list[PosttrainError]:
    errors: list[PosttrainError] = []
    if not study.claims:
        where = study.source.where(("claims",))
        errors.append(ConfigError("must not be empty", where=where, fix="Write the paper's claim first"))
    names: list[str] = []
    for index, claim in enumerate(study.claims):
        if claim.name in names:
            where = study.source.where(("claims", index, "name"))
            errors.append(ConfigError("two claims have this name", where=where, got=claim.name, fix="Rename one"))
        names.append(claim.name)
        if isinstance(claim, ChangeClaim):
            errors += not_an_variant(study, claim.variant, ("claims", index, "variant"))
            continue
        errors += not_an_variant(study, claim.treatment, ("claims", index, "treatment"))
        for place, baseline in enumerate(claim.baselines):
            key: Key = ("claims", index, "baselines", place)
            errors += not_an_variant(study, baseline, key)
            if baseline == claim.treatment or baseline in claim.baselines[:place]:
                what = "the treatment cannot be its own baseline" if baseline == claim.treatment else "listed twice"
                errors.append(ConfigError(what, where=study.source.where(key), got=baseline, fix="Remove it"))
    return errors


def not_an_variant(study: Study, name: str, key: Key) -> list[PosttrainError]:
    """An error if `name` is no variant of the study, with the nearest one."""
    if name in study.variants:
        return []
    fix = nearest(name, study.variants) or "Add it to variants, or name one of them"
    where = study.source.where(key)
    return [ConfigError("not one of the variants", where=where, got=name, allowed=", ".join(study.variants), fix=fix)]
