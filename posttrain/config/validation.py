"""Checking the blocks of one run, key by key.

Nothing passes unchecked: an unknown key is named with its nearest match, or with the block it belongs to; every value
is held against type, range and choices; all findings are collected, each with file and line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import ValidationError

from posttrain import registry
from posttrain.config.rules import broken_rules
from posttrain.config.run_config import BLOCKS, Block, EvalBlock, OpenBlock, RunConfig
from posttrain.config.source import Key, SourceMap, dotted
from posttrain.config.steps import StageStep, steps_of
from posttrain.errors import ConfigError, PosttrainError, SupportError, nearest
from posttrain.seam.arguments import FieldSpec, check_value, field_specs, literal_choices

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

OPEN_BLOCKS = ("method", "rollout", "trainer")


class RecipeError(ConfigError):
    """Several mistakes in one recipe; `errors` holds them one by one."""

    def __init__(self, errors: list[PosttrainError]):
        super().__init__(f"{len(errors)} mistakes")
        self.errors = errors
        self.args = ("\n".join(str(error) for error in errors),)


def raise_all(errors: list[PosttrainError]) -> None:
    """Raise the one error, or all of them as a `RecipeError`; nothing for an empty list."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise RecipeError(errors)


def parse_run(values: dict[str, Any], source: SourceMap, errors: list[PosttrainError]) -> RunConfig | None:
    """Check the blocks of one run; findings are added to `errors`, and None is returned if there were any."""
    before = len(errors)
    if values.get("job") is not None:
        errors.append(
            SupportError(
                "multi-node jobs are not in this version", where=source.where(("job",)), fix="Remove the job block"
            )
        )
    values = {key: value for key, value in values.items() if key != "job" and (value is not None or key == "eval")}
    specs = _method_specs(values, source, errors)
    config = _validated(values, source, errors, specs)
    if specs is not None:
        for block in OPEN_BLOCKS:
            if isinstance(values.get(block), dict):
                errors += _field_errors(block, values[block], specs, source)
    if config is None or len(errors) > before:
        return None
    config = _completed(config, values, source, specs or {})
    config._slots = _read_slots(config, source, errors)
    errors += broken_rules(config)
    for step in steps_of(config).values() if len(errors) == before else ():
        errors += step.rule_findings(config)
    return config if len(errors) == before else None


def _completed(config: RunConfig, values: dict[str, Any], source: SourceMap, specs: dict[str, FieldSpec]) -> RunConfig:
    """Attach the source map and the class defaults; evaluation is on where there are rows for it."""
    if "eval" not in values and config.data.eval is not None:
        config = config.model_copy(update={"eval": EvalBlock()})
    if config.trainer.output_dir is None:
        folder = str(Path("runs") / Path(source.file).stem)
        config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"output_dir": folder})})
    config._source, config._values = source, values
    for block in (config.method, config.rollout, config.trainer):
        if isinstance(block, OpenBlock):
            mine = type(block).__name__.removesuffix("Block").lower()
            block._defaults = {spec.name: spec.default for spec in specs.values() if spec.block == mine}
    return config


# ---- what papers add ----


def _read_slots(config: RunConfig, source: SourceMap, errors: list[PosttrainError]) -> dict[str, StageStep]:
    found: dict[str, StageStep] = {}
    for slot in registry.SLOTS:
        block, name = slot.split(".")
        written = getattr(getattr(config, block), name, None)
        if written is None:
            continue
        known, key = registry.fillers(slot), written.get("name")
        if not isinstance(key, str) or key not in known:
            errors.append(
                ConfigError(
                    "the name of what fills it is missing" if key is None else "nothing of this name fills it",
                    where=source.where((block, name) if key is None else (block, name, "name")),
                    allowed="one of: " + ", ".join(known) if known else "nothing yet, so leave it out",
                    fix=nearest(key, known),
                    **({} if key is None else {"got": key}),
                )
            )
            continue
        own = {setting: value for setting, value in written.items() if setting != "name"}
        step = read_step(known[key].load(known[key].slots[slot]), own, source, (block, name), errors)
        found |= {} if step is None else {slot: step}
    return found


def read_step(
    step: type[StageStep], written: Any, source: SourceMap, key: Key, errors: list[PosttrainError]
) -> StageStep | None:
    """A step with its settings; findings are added to `errors`, and None is returned if there were any.

    Args:
        step: the class that a room declares.
        written: its mapping in the recipe.
        source: for file and line.
        key: path of the mapping.
    """
    if not isinstance(written, dict):
        known = None if step.block is None else "keys: " + ", ".join(step.block.model_fields)
        what = "a mapping of keys is expected"
        errors.append(ConfigError(what, where=source.where(key), got=written, allowed=known))
        return None
    try:
        if step.block is None:
            return step(step.read(written, where=dotted(key)))
        return step(step.block.model_validate(written))
    except ValidationError as problem:
        errors += explain_all(problem, source, below=key, root=step.block)
    except PosttrainError as error:
        errors.append(placed(error, source))
    return None


def placed(error: PosttrainError, source: SourceMap) -> PosttrainError:
    """The same error with file and line before its dotted path."""
    key = tuple(int(part) if part.isdigit() else part for part in (error.where or "").split("."))
    facts = {"got": error.got} if "(got " in str(error) else {}
    return type(error)(error.what, where=source.where(key), allowed=error.allowed, fix=error.fix, **facts)


# ---- blocks with fixed keys ----


def _validated(
    values: dict[str, Any], source: SourceMap, errors: list[PosttrainError], specs: dict[str, FieldSpec] | None
) -> RunConfig | None:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as problem:
        errors += explain_all(problem, source, specs)
    return None


def explain_all(
    problem: Any,
    source: SourceMap,
    specs: dict[str, FieldSpec] | None = None,
    *,
    below: Key = (),
    root: Any = RunConfig,
    further: Iterable[str] = (),
) -> list[PosttrainError]:
    """The findings of a pydantic `ValidationError` in our words, one for each key.

    Args:
        problem: the validation error.
        source: for file and line.
        specs: fields of the method's config class, for better suggestions.
        below: path of the validated mapping inside the recipe.
        root: the model it was validated against.
        further: keys that go with it and are validated apart.
    """
    found: dict[Key, PosttrainError] = {}
    for detail in problem.errors(include_url=False):
        key, error = _explain(detail, source, specs, below, root, list(further))
        found.setdefault(key, error)
    # A misspelt required key is one mistake, not an unknown key and a missing one.
    meant = {error.fix for error in found.values()}
    return [error for key, error in found.items() if _meaning(key) not in meant or error.fix == _meaning(key)]


def _meaning(key: Key) -> str:
    return f"Perhaps you mean {dotted(key)}"


def _explain(
    detail: Any,
    source: SourceMap,
    specs: dict[str, FieldSpec] | None,
    below: Key,
    root: type[Block],
    further: list[str],
) -> tuple[Key, PosttrainError]:
    """One pydantic finding in our words, and the key it is about."""
    key, owner, info = _walk(detail["loc"], root)
    key = (*below, *key)
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        key = (*key, detail["loc"][-1])
        blocks = [block for block in BLOCKS if block in root.model_fields]
        known = [*owner.model_fields, *(further if owner is root else ())]
        return key, unknown_key(key, known, source, specs, blocks=blocks)
    where = source.where(key)
    if kind == "missing":
        allowed = _spec(key, info).allowed if info and not _model_of(info.annotation) else None
        is_block = len(key) == 1 and info is not None and _model_of(info.annotation) is not None
        needed = f"the {'block' if is_block else 'key'} {key[-1]} is missing"
        fix = info.description if info else None
        return key, ConfigError(needed, where=where, allowed=allowed, fix=fix and f"It says: {fix}")
    model = _model_of(info.annotation) if info else None
    is_list = info is not None and _is_container(info.annotation, (0,)) and not isinstance(key[-1], int)
    if model is not None and not is_list and not isinstance(value, dict):
        what = "the block is empty" if value is None else "a mapping of keys is expected"
        shown = {} if value is None else {"got": value}
        return key, ConfigError(what, where=where, allowed="keys: " + ", ".join(model.model_fields), **shown)
    if kind == "dict_type":
        return key, ConfigError("a mapping of keys is expected", where=where, got=value)
    if value in ("", [], {}):
        return key, ConfigError("must not be empty", where=where, allowed=_spec(key, info).allowed if info else None)
    if info is not None and not _is_container(info.annotation, key):
        try:
            check_value(_spec(key, info), value, where=where)
        except ConfigError as error:
            return key, error
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return key, ConfigError("not accepted", where=where, got=value, allowed=message)


def _walk(loc: tuple[int | str, ...], root: type[Block]) -> tuple[Key, type[Block], FieldInfo | None]:
    """The written key of a pydantic location, the model that owns its last field, and that field."""
    key: list[int | str] = []
    owner: type[Block] = root
    model: type[Block] | None = root
    info: FieldInfo | None = None
    for part in loc:
        if model is not None and part in model.model_fields:
            owner, info = model, model.model_fields[str(part)]
            model = _model_of(info.annotation)
        elif info is None or part == "[key]" or not _is_container(info.annotation, (part,)):
            break
        key.append(part)
    return tuple(key), model or owner, info


def _model_of(annotation: Any) -> type[Block] | None:
    """The block class inside an annotation, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return annotation
    found = [_model_of(arg) for arg in get_args(annotation)]
    return next((model for model in found if model is not None), None)


def _is_container(annotation: Any, key: Key) -> bool:
    """Whether the last part of a key is an index into a list field or a key of a dict field."""
    wanted = list if key and isinstance(key[-1], int) else dict
    if get_origin(annotation) is wanted:
        return True
    return any(_is_container(arg, key) for arg in get_args(annotation) if get_args(arg))


def _spec(key: Key, info: FieldInfo) -> FieldSpec:
    """A pydantic field as a `FieldSpec`, so that all blocks speak alike."""
    limits: dict[str, Any] = {}

    def collect(metadata: Iterable[Any]) -> None:
        for item in metadata:
            collect(getattr(item, "metadata", ()))
            limits.update({name: getattr(item, name) for name in ("ge", "gt", "le", "lt") if hasattr(item, name)})

    collect(info.metadata)
    for member in (info.annotation, *get_args(info.annotation)):
        collect(getattr(member, "__metadata__", ()))
    return FieldSpec(
        str(key[-1]), info.annotation, None, "", "trainer", choices=literal_choices(info.annotation), **limits
    )


# ---- fields of the method's config class ----


def _method_specs(values: dict[str, Any], source: SourceMap, errors: list[PosttrainError]) -> Any:
    """Field specs of the method's config class; None if the method is not known."""
    method = values.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    if not isinstance(name, str) or not name:
        return None
    try:
        entry = registry.get(name, where=source.where(("method", "name")))
    except ConfigError as error:
        errors.append(error)
        return None
    if not entry.trains:
        fix = f"Write stages: {{preset: {name}}}, and method: {{name: sft}}" if entry.plans else "Name it there"
        errors.append(ConfigError(entry.without_trainer, where=source.where(("method", "name")), got=name, fix=fix))
        return None
    if entry.learns_rows and "rollout" in values:
        errors.append(
            SupportError(
                f"{name} learns from demonstrations and samples no rollouts",
                where=source.where(("rollout",)),
                fix="Remove the block, or choose a policy method: "
                + ", ".join(key for key, other in registry.METHODS.items() if other.generates),
            )
        )
    if entry.generates and "rollout" not in values:
        where = source.where(("rollout",))
        errors.append(
            ConfigError(f"{name} needs the block rollout", where=where, fix="Write rollout.rewards at least")
        )
    return field_specs(entry.load_config())


def _field_errors(
    block: str, written: dict[str, Any], specs: dict[str, FieldSpec], source: SourceMap
) -> list[PosttrainError]:
    fixed = _fixed_keys(block)
    mine = [*fixed, *(spec.name for spec in specs.values() if spec.block == block and spec.set_by is None)]
    errors: list[PosttrainError] = []
    for name, value in written.items():
        key: Key = (block, name)
        if name in fixed:
            continue
        spec = specs.get(name)
        if spec is None or (spec.block != block and spec.set_by is None):
            errors.append(unknown_key(key, mine, source, specs))
        elif spec.set_by is not None:
            errors.append(_decided_elsewhere(spec, key, source))
        else:
            try:
                check_value(spec, value, where=source.where(key))
            except ConfigError as error:
                errors.append(error)
    return errors


def _decided_elsewhere(spec: FieldSpec, key: Key, source: SourceMap) -> ConfigError:
    if str(spec.set_by).startswith("nothing"):
        what = str(spec.set_by).replace("nothing", "not a setting of a recipe")
        return ConfigError(what, where=source.where(key), fix="Remove the line")
    return ConfigError(f"decided by {spec.set_by}", where=source.where(key), fix=f"Set {spec.set_by}")


def _fixed_keys(block: str) -> list[str]:
    return list(_model_of(RunConfig.model_fields[block].annotation).model_fields)  # type: ignore[union-attr]


def unknown_key(
    key: Key,
    known: list[str],
    source: SourceMap,
    specs: dict[str, FieldSpec] | None = None,
    *,
    blocks: Iterable[str] = BLOCKS,
) -> ConfigError:
    """Error for a key that the block does not have: where it belongs, or the nearest key there is.

    Args:
        key: full path; the last part is the unknown name.
        known: names the block accepts.
        source: for the line.
        specs: fields of the method's config class, if known.
        blocks: where else the key may belong; none for a file that is not a recipe.
    """
    name = str(key[-1])
    homes = [block for block in blocks if name in _fixed_keys_of(block) and (block,) != key[:-1]]
    spec = (specs or {}).get(name)
    if spec is not None and spec.set_by is not None:
        return _decided_elsewhere(spec, key, source)
    if spec is not None and spec.block != key[0]:
        homes = [spec.block]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    elsewhere = difflib.get_close_matches(name, list(specs or {}), n=1, cutoff=0.75)
    allowed = None
    if homes and (spec is not None or not close):
        fix = f"It belongs to the block {homes[0]}: {homes[0]}.{name}"
    elif close:
        fix = _meaning((*key[:-1], close[0]))
    elif elsewhere and specs:
        fix = f"Perhaps you mean {specs[elsewhere[0]].block}.{elsewhere[0]}"
    else:
        fix, allowed = None, ", ".join(known) if len(known) <= 24 else None
    return ConfigError("unknown key", where=source.where(key), allowed=allowed, fix=fix)


def _fixed_keys_of(block: str) -> list[str]:
    model = _model_of(RunConfig.model_fields[block].annotation)
    return list(model.model_fields) if model else []
