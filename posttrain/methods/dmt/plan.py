"""Strategies of supervised fine-tuning for several abilities, as ordinary stages over the sources of a mixture.

    stages: {preset: dmt, specialized_replay_fraction: 0.00390625}
    stages: {preset: multitask}          # all sources together
    stages: {preset: sequential, order: [code, math, general]}
    stages: {preset: mixed_sequential}   # the specialised sources, then the general ones
    stages: {preset: custom, plan: [{name: one, sources: [math]}, {name: two, sources: [code], start_from: one}]}
    stages: {preset: composition, strategies: [multitask, dmt], specialized_replay_fractions: [0, 0.25]}

The sources are those of the recipe's `data.train.mixture`, with the role "specialized" or "general". Every stage is a
run of the recipe's other blocks: its steps follow from its rows where `trainer.num_train_epochs` is written, and its
optimizer, warm-up and decay are its own. `composition` puts several strategies into one plan, in which they share
their stages: `specialized` is trained once for mixed_sequential and for dmt with every fraction.

Source: arXiv 2310.05492, section 3.3 and figure 1 (strategies).
Deviation: the paper does not say whether the optimizer goes on between stages; here it begins anew. Its order for
sequential is code, math, general; ours is that of the recipe, the specialised sources first. The paper trains whole
models; with adapters each stage has a new one, on the model that the stage before it merged.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.errors import ConfigError, nearest

REPLAY_FRACTION = 1 / 256
STRATEGIES = ("single", "multitask", "sequential", "mixed_sequential", "dmt")
_OPTIONS = {
    "single": (),
    "multitask": (),
    "sequential": ("order",),
    "mixed_sequential": (),
    "dmt": ("specialized_replay_fraction", "replay_measure"),
    "custom": ("plan",),
    "composition": ("strategies", "specialized_replay_fractions", "replay_measures", "order"),
}
_MEASURES = ("rows", "tokens")
Stages = list[dict[str, Any]]


def composition_stages(values: Mapping[str, Any]) -> Stages:
    """The stages of a recipe whose `stages` block names one of these presets.

    Args:
        values: the recipe as plain dicts; `stages.preset` is one of `_OPTIONS`, `data.train.mixture` lists the
            sources.

    Returns:
        Stages with `name`, `start_from` and `data`; two of one name never differ.

    Raises:
        ConfigError: unknown options, no sources of a role that the strategy needs, fractions outside [0, 1], an order
            that does not list the sources.
    """
    block = dict(values["stages"])
    preset = str(block.pop("preset"))
    _check_options(preset, block)
    recipe = Sources(values)
    if preset == "custom":
        return list(_custom(recipe, block.get("plan")))
    if preset != "composition":
        fraction = block.get("specialized_replay_fraction", REPLAY_FRACTION)
        measures = [block.get("replay_measure", "rows")]
        return _plan(recipe, [preset], fractions=[fraction], measures=measures, order=block.get("order"))
    return _plan(
        recipe,
        _listed(block.get("strategies", list(STRATEGIES)), "strategies", STRATEGIES),
        fractions=_listed(
            block.get("specialized_replay_fractions", [REPLAY_FRACTION]), "specialized_replay_fractions"
        ),
        measures=_listed(block.get("replay_measures", ["rows"]), "replay_measures", _MEASURES),
        order=block.get("order"),
    )


def replay_stage_name(fraction: float, measure: str) -> str:
    """Name of the stage that repeats a fraction: "dmt-0.00390625", "dmt-0.25-tokens"; for 0 it is mixed_sequential."""
    if fraction == 0:
        return "mixed_sequential"
    return f"dmt-{fraction:g}" + ("" if measure == "rows" else f"-{measure}")


class Sources:
    """The sources of a recipe, and stages that take some of them."""

    def __init__(self, values: Mapping[str, Any]):
        data = values.get("data")
        train = data.get("train") if isinstance(data, dict) else None
        mixture = train.get("mixture") if isinstance(train, dict) else None
        if not isinstance(data, dict) or not isinstance(train, dict) or not isinstance(mixture, list) or not mixture:
            raise ConfigError(
                "the stages take their sources from a mixture",
                where="stages.preset",
                got=values["stages"]["preset"],
                fix="Write data.train.mixture with the name and role of every source",
            )
        self.data, self.train = data, train
        self.entries = [entry for entry in mixture if isinstance(entry, dict)]
        self.names = [str(entry.get("name")) for entry in self.entries]
        for name in self.names:
            if self.names.count(name) > 1:
                where = "data.train.mixture"
                raise ConfigError("two sources have this name", where=where, got=name, fix="Rename one")

    def of(self, role: str, strategy: str) -> list[str]:
        """Names of the sources with a role; a strategy of two roles needs both."""
        found = [name for name, entry in zip(self.names, self.entries, strict=True) if entry.get("role") == role]
        if not found:
            raise ConfigError(
                f"no source has the role {role!r}",
                where="data.train.mixture",
                allowed=f"{strategy} needs one source or more of each role, specialized and general",
                fix="Write role: specialized or role: general in every source",
            )
        without = [n for n, entry in zip(self.names, self.entries, strict=True) if entry.get("role") is None]
        if without:
            where = "data.train.mixture"
            raise ConfigError("the source has no role", where=where, got=without[0], allowed="specialized or general")
        return found

    def refuse_own_amounts(self, special: Sequence[str]) -> None:
        """ConfigError where something else than k would decide how much of stage 1 is repeated in stage 2."""
        if self.train.get("mixing") == "interleave_weighted":
            raise ConfigError(
                "weights would decide how often the repeated rows come, whatever part of them is repeated",
                where="data.train.mixing",
                got="interleave_weighted",
                allowed="concat_shuffle with the presets dmt and mixed_sequential",
            )
        for name in special:
            if "replay_fraction" in self.entries[self.names.index(name)]:
                fix = "Write stages.specialized_replay_fraction, or fraction for fewer rows in both stages"
                raise ConfigError(
                    "stage 2 repeats rows of stage 1",
                    where=f"data.train.mixture, source {name!r}, replay_fraction",
                    fix=fix,
                )

    def stage(
        self, name: str, sources: Sequence[str], *, start_from: str | None = None, changes: Mapping[str, Any] = {}
    ) -> dict[str, Any]:
        """A stage on some sources in the recipe's order; `changes` are keys of a source by its name."""
        chosen = [
            {**entry, **changes.get(source, {})}
            for source, entry in zip(self.names, self.entries, strict=True)
            if source in sources
        ]
        data = {**self.data, "train": {**self.train, "mixture": chosen}}
        return {"name": name, **({"start_from": start_from} if start_from else {}), "data": data}


def _plan(
    recipe: Sources, strategies: Sequence[str], *, fractions: Sequence[Any], measures: Sequence[str], order: Any
) -> Stages:
    stages: dict[str, dict[str, Any]] = {}
    for strategy in strategies:
        if strategy == "dmt":
            made = _dmt(recipe, fractions, measures)
        elif strategy == "mixed_sequential":
            made = _dmt(recipe, [0], ["rows"])
        elif strategy == "sequential":
            made = _sequential(recipe, order)
        elif strategy == "single":
            made = (recipe.stage(f"only_{name}", [name]) for name in recipe.names)
        else:
            made = iter([recipe.stage("multitask", recipe.names)])
        stages |= {stage["name"]: stage for stage in made}
    return list(stages.values())


def _dmt(recipe: Sources, fractions: Sequence[Any], measures: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The specialised sources, then the general ones with a part of the specialised rows, for every fraction.

    At 0 the specialised sources are left out of the second stage, which makes it mixed_sequential's.
    """
    special, general = recipe.of("specialized", "dmt"), recipe.of("general", "dmt")
    recipe.refuse_own_amounts(special)
    yield recipe.stage("specialized", special)
    for measure in measures:
        if measure not in _MEASURES:
            allowed = f"one of: {', '.join(_MEASURES)}"
            raise ConfigError("unknown measure", where="stages.replay_measure", got=measure, allowed=allowed)
        for fraction in fractions:
            _check_fraction(fraction)
            name = replay_stage_name(fraction, measure)
            if fraction == 0:
                yield recipe.stage(name, general, start_from="specialized")
                continue
            replay = {"replay_fraction": float(fraction), **({} if measure == "rows" else {"replay_measure": measure})}
            changes = dict.fromkeys(special, replay)
            yield recipe.stage(name, [*special, *general], start_from="specialized", changes=changes)


def _sequential(recipe: Sources, order: Any) -> Iterator[dict[str, Any]]:
    """One source after another."""
    roles = [entry.get("role") for entry in recipe.entries]
    usual = [n for n, role in zip(recipe.names, roles, strict=True) if role != "general"]
    usual += [n for n, role in zip(recipe.names, roles, strict=True) if role == "general"]
    wanted = usual if order is None else order
    if not isinstance(wanted, list) or sorted(map(str, wanted)) != sorted(recipe.names):
        unknown = [str(name) for name in wanted if str(name) not in recipe.names] if isinstance(wanted, list) else []
        close = difflib.get_close_matches(unknown[0], recipe.names, n=1, cutoff=0.4) if unknown else []
        raise ConfigError(
            f"no source has the name {unknown[0]!r}" if unknown else "an order names every source once",
            where="stages.order",
            got=order,
            allowed=f"an order of: {', '.join(recipe.names)}",
            fix=f"Perhaps you mean {close[0]!r}" if close else None,
        )
    before: str | None = None
    for number, name in enumerate(wanted, start=1):
        stage = "sequential" if number == len(wanted) else f"sequential-{number}-{name}"
        yield recipe.stage(stage, [name], start_from=before)
        before = stage


def _custom(recipe: Sources, plan: Any) -> Iterator[dict[str, Any]]:
    """Stages as they are written: each with a name, its sources (with keys to change, if given), and what it starts
    from."""
    if not isinstance(plan, list) or not plan:
        allowed = "a list of {name, sources, start_from, and blocks to replace}"
        raise ConfigError("a custom plan lists its stages", where="stages.plan", got=plan, allowed=allowed)
    for index, item in enumerate(plan):
        where = f"stages.plan.{index}"
        sources = item.get("sources") if isinstance(item, dict) else None
        changes = sources if isinstance(sources, dict) else {}
        unread = not all(isinstance(keys, dict | None) for keys in changes.values())
        if not isinstance(sources, list | dict) or not sources or unread or not isinstance(item.get("name"), str):
            allowed = "name: text, sources: names, or names with keys to change"
            raise ConfigError("a stage names itself and its sources", where=where, got=item, allowed=allowed)
        for name in sources:
            if name not in recipe.names:
                allowed = f"one of: {', '.join(recipe.names)}"
                raise ConfigError("no source has this name", where=f"{where}.sources", got=name, allowed=allowed)
        changes = {name: keys or {} for name, keys in changes.items()}
        if "model" in item or "data" in item:
            what = "tokenizer and data stay those of the recipe between stages"
            fix = "Write a list of stages instead of a preset, or remove the block"
            raise ConfigError(what, where=where, got="model" if "model" in item else "data", fix=fix)
        blocks = {key: value for key, value in item.items() if key not in ("name", "sources", "start_from")}
        start = item.get("start_from")
        yield {**recipe.stage(item["name"], list(sources), start_from=start, changes=changes), **blocks}


def _check_options(preset: str, block: Mapping[str, Any]) -> None:
    known = _OPTIONS[preset]
    for key in block:
        if key not in known:
            raise ConfigError(
                f"preset {preset} has no such option",
                where="stages",
                got=key,
                allowed=f"one of: {', '.join(known)}" if known else "no options",
                fix=nearest(key, known),
            )


def _check_fraction(fraction: Any) -> None:
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        where = "stages.specialized_replay_fraction"
        raise ConfigError("the replayed part of the specialised rows", where=where, got=fraction, allowed="0 to 1")


def _listed(value: Any, key: str, known: Sequence[str] | None = None) -> list[Any]:
    """A list without repetitions, of known words."""
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        what = "a list of one or more different values is expected"
        raise ConfigError(what, where=f"stages.{key}", got=value)
    for item in value if known is not None else ():
        if item not in (known or ()):
            allowed = f"one of: {', '.join(known or ())}"
            raise ConfigError("unknown value", where=f"stages.{key}", got=item, allowed=allowed)
    return value
