"""The stages of an unlearning path study: one forget set learnt at different places, then unlearned alike.

    stages:
      preset: unlearning_paths
      base: {train: {...}}        # a stage before all others, for a model that begins from nothing
      learn: [{name: inst, train: {...}}, {name: tofu, train: {...}}, {name: math, train: {...}}]
      forget: {train: {...}}
      paths: positions            # the forget set at every place among the others, or all: every order
      positions: [1, 4]           # only these places; default all
      joint: true                 # and one model that learnt everything at once, which has no path
      unlearn:
        algorithms: [{name: npo, method: {name: unlearning_paths, ...}}]
        learning_rates: [1.0e-5]
        probe_every_steps: 5
        trainer: {...}
      relearn: {train: {...}, fraction: 0.9, trainer: {...}}

Every entry of `learn`, `forget` and `base` may change `method` and `trainer` of the recipe; a stage begins with a new
optimizer and schedule. `data.probes` names the sets that are measured, among them `forget`. Paths share the stages
that they begin with. The path without the forget set is the retrained model. Unlearning starts from a path's last
model with the same rows, seed and schedule for every path; `relearn` trains what was unlearned, and the retrained
model, on a few rows of the forget set.

Source: arXiv 2510.16629, path study. What is measured: `posttrain.methods.unlearning_paths.findings`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, nearest

BASE, JOINT, FORGET = "base", "joint", "forget"
FRACTION = 0.9
_OPTIONS = ("preset", "base", "learn", "forget", "paths", "positions", "joint", "unlearn", "relearn")
_STAGE = ("name", "train", "method", "trainer")
_FORGET = ("train", "method", "trainer")
_UNLEARN = ("algorithms", "learning_rates", "probe_every_steps", "trainer")
_ALGORITHM = ("name", "method", "trainer", "data", "learning_rates")
_RELEARN = ("train", "fraction", "method", "trainer", "probe_every_steps")
_WORD = re.compile(r"[A-Za-z0-9_]+")
_ONLY_AT_THE_ENDS = 10**9  # steps between two measurements of a stage that is measured before and after
SFT = {"name": "sft", "loss_aggregation": "token_mean"}


@dataclass(frozen=True)
class Path:
    """One order of learning: its name in tables, the stages, the place of the forget set (0 = together with all)."""

    name: str
    order: tuple[str, ...]
    position: int

    @property
    def learned(self) -> str:
        """Stage whose model has gone the path."""
        return learn_name(self.order) if self.position else learn_name([JOINT])

    @property
    def without(self) -> tuple[str, ...]:
        """The order without the forget set."""
        return tuple(name for name in self.order if name != FORGET)

    @property
    def retrained(self) -> str:
        """Stage whose model has gone it without the forget set."""
        return learn_name(self.without if self.position else [JOINT, *self.without])


def learn_name(order: Sequence[str]) -> str:
    """ "learn-inst-tofu": name of the stage that ends this sequence."""
    return f"learn-{'-'.join(order)}"


def unlearn_name(algorithm: str, learning_rate: float, path: str) -> str:
    """ "unlearn-npo-1e-05-p4"."""
    return f"unlearn-{algorithm}-{learning_rate:g}-{path}"


def relearn_name(unlearned: str) -> str:
    """ "relearn-npo-1e-05-p4": stage that trains an unlearned model again."""
    return f"relearn-{unlearned.removeprefix('unlearn-')}"


def path_stages(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a recipe with this preset.

    Args:
        values: the whole recipe.

    Returns:
        Stages with `lineage`: role (learn, unlearn, relearn), path, order and position, algorithm, learning rate.

    Raises:
        ConfigError: unknown keys, fewer than one other stage, places that do not exist, no algorithm, a forget
            set that is not measured.
    """
    return PathPlan(values).stages()


class PathPlan:
    """A checked `stages` block, and the stages and paths that follow from it."""

    def __init__(self, values: Mapping[str, Any]):
        self.values, self.block = values, dict(values["stages"])
        _known(self.block, _OPTIONS, "stages")
        self.sources = _sources(self.block)
        base = self.block.get("base")
        self.base = None if base is None else _with_rows(base, _FORGET, "stages.base")
        self.others = [name for name in self.sources if name != FORGET]
        self.unlearn = _mapping(self.block, "unlearn", "stages", _UNLEARN)
        self.algorithms = _algorithms(self.unlearn)
        self.relearn = _mapping(self.block, "relearn", "stages", _RELEARN) if self.block.get("relearn") else None
        probes = (values.get("data") or {}).get("probes") or {}
        if FORGET not in probes:
            fix = "Write data.probes: {forget: {...}} with the rows of the forget set"
            raise ConfigError("the forget set is not measured", where="data.probes", got=list(probes), fix=fix)
        if not isinstance(self.block.get("joint", False), bool):
            raise ConfigError("yes or no", where="stages.joint", got=self.block["joint"], allowed="true or false")
        self.paths = self._paths()
        if self.relearn is not None:
            _check_relearn(self.relearn)

    def stages(self) -> list[dict[str, Any]]:
        """Every stage once, each after the one it starts from."""
        found: dict[str, dict[str, Any]] = {}
        if self.base is not None:
            found[BASE] = self._stage(BASE, self.base, self.base["train"], role="base")
        for path in self.paths:
            if not path.position:
                found |= {path.learned: self._together(path.order), path.retrained: self._together(path.without)}
                continue
            for order in (path.order, path.without):
                for stage in self._learning(order):
                    found.setdefault(stage["name"], stage)
        for stage in itertools.chain(self._unlearning(), self._relearning()):
            found.setdefault(stage["name"], stage)
        return list(found.values())

    def runs(self) -> Iterator[tuple[str, float, Path]]:
        """(algorithm, learning rate, path) of every unlearning."""
        for algorithm in self.algorithms:
            rates = algorithm.get("learning_rates", self.unlearn.get("learning_rates"))
            for rate in _rates(rates):
                for path in self.paths:
                    yield str(algorithm["name"]), rate, path

    def _paths(self) -> list[Path]:
        kind, places = self.block.get("paths", "positions"), list(range(1, len(self.others) + 2))
        if kind not in ("positions", "all"):
            raise ConfigError("unknown paths", where="stages.paths", got=kind, allowed="positions or all")
        chosen = self.block.get("positions", places)
        allowed = f"places 1 to {places[-1]}, each once"
        if (
            not isinstance(chosen, list)
            or not chosen
            or len(set(chosen)) < len(chosen)
            or not set(chosen) <= set(places)
        ):
            raise ConfigError("no such places", where="stages.positions", got=chosen, allowed=allowed)
        if kind == "positions":
            orders = [(*self.others[: place - 1], FORGET, *self.others[place - 1 :]) for place in places]
            found = [Path(f"p{order.index(FORGET) + 1}", order, order.index(FORGET) + 1) for order in orders]
        else:
            orders = list(itertools.permutations([*self.others, FORGET]))
            found = [Path("-".join(order), order, order.index(FORGET) + 1) for order in orders]
        found = [path for path in found if path.position in chosen]
        if self.block.get("joint"):
            found.append(Path(JOINT, (*self.others, FORGET), 0))
        return found

    # ---- stages ----

    def _learning(self, order: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The stages of one order, each from the one before."""
        for count in range(1, len(order) + 1):
            source = self.sources[order[count - 1]]
            stage = self._stage(learn_name(order[:count]), source, source["train"], role="learn")
            stage["lineage"] |= {"path_order": list(order[:count]), "task": order[count - 1]}
            yield stage | ({"start_from": learn_name(order[: count - 1])} if count > 1 else self._from_base())

    def _from_base(self) -> dict[str, str]:
        return {} if self.base is None else {"start_from": BASE}

    def _together(self, order: Sequence[str]) -> dict[str, Any]:
        """One stage on the rows of all, as long as the others together."""
        sources = {name: self.sources[name] for name in self.sources if name in order}
        trainers = [{**_trainer(self.values), **(source.get("trainer") or {})} for source in sources.values()]
        steps = [trainer.get("max_steps") for trainer in trainers]
        epochs = [trainer.get("num_train_epochs") for trainer in trainers]
        if all(isinstance(count, int) and count > 0 for count in steps):
            length: dict[str, Any] = {"max_steps": sum(count or 0 for count in steps)}
        elif len(set(map(str, epochs))) == 1 and epochs[0] is not None:
            length = {"num_train_epochs": epochs[0]}
        else:
            what, fix = (
                "the stages have different numbers of epochs, so one has none",
                "Write max_steps for every stage",
            )
            raise ConfigError(what, where="stages.joint", fix=f"{fix}, or leave joint out")
        mixture = [_entry(name, source["train"]) for name, source in sources.items()]
        name = learn_name([JOINT] if FORGET in order else [JOINT, *order])
        stage = self._stage(name, {"trainer": length}, {"mixture": mixture}, role="learn")
        stage["lineage"]["path_order"] = list(sources)
        return stage | self._from_base()

    def _unlearning(self) -> Iterator[dict[str, Any]]:
        algorithms = {str(item["name"]): item for item in self.algorithms}
        every = self.unlearn.get("probe_every_steps", 1)
        for name, rate, path in self.runs():
            item = algorithms[name]
            trainer = {**(self.unlearn.get("trainer") or {}), **(item.get("trainer") or {}), "learning_rate": rate}
            changes = {"method": item["method"], "trainer": trainer, "data": item.get("data")}
            train = self.sources[FORGET]["train"]
            stage = self._stage(unlearn_name(name, rate, path.name), changes, train, role="unlearn", every=every)
            stage["lineage"] |= {"algorithm": name, "learning_rate": rate, "path": path.name, "forget": FORGET}
            stage["lineage"]["retrained"] = path.retrained
            stage["lineage"] |= {"position": path.position, "path_order": list(path.order)}
            yield stage | {"start_from": path.learned}

    def _relearning(self) -> Iterator[dict[str, Any]]:
        """From every unlearned model, and from every retrained one."""
        if self.relearn is None:
            return
        starts = {path.retrained: self.relearn_retrained(path) for path in self.paths}
        starts |= {name: relearn_name(name) for name in (unlearn_name(a, rate, p.name) for a, rate, p in self.runs())}
        every = self.relearn.get("probe_every_steps", 1)
        for start, name in starts.items():
            stage = self._stage(name, self.relearn, self.relearn["train"], role="relearn", every=every)
            stage["lineage"] |= {"of": start, "forget": FORGET, "unlearned": start.startswith("unlearn-")}
            stage["lineage"]["fraction"] = float(self.relearn.get("fraction", FRACTION))
            yield stage | {"start_from": start}

    def relearn_retrained(self, path: Path) -> str:
        """Stage that trains the retrained model of a path on what the others relearn from."""
        return f"relearn-retrained-{path.retrained.removeprefix('learn-')}"

    def _stage(
        self, name: str, changes: Mapping[str, Any], train: Any, *, role: str, every: int = _ONLY_AT_THE_ENDS
    ) -> dict[str, Any]:
        """Complete blocks of a stage: the recipe's, changed."""
        evaluation = dict(self.values.get("eval") or {}) | {"at_start": False, "probe_every_steps": every}
        return {
            "name": name,
            "method": dict(changes.get("method") or self.values.get("method") or SFT),
            "data": {**(self.values.get("data") or {}), **(changes.get("data") or {}), "train": train},
            "trainer": {**_trainer(self.values), **(changes.get("trainer") or {})},
            "eval": evaluation,
            "lineage": {"role": role},
        }


def _trainer(values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's trainer block without what belongs to the recipe as a whole."""
    return {key: value for key, value in (values.get("trainer") or {}).items() if key not in ("output_dir", "resume")}


def _entry(name: str, train: Mapping[str, Any]) -> dict[str, Any]:
    """A source of a mixture, where `name` is the source's own."""
    source = dict(train)
    if "name" in source:
        source["configuration"] = source.pop("name")
    return {**source, "name": name}


# ---- checks ----


def _sources(block: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every set that is learnt, by name; the forget set last."""
    learn, forget = block.get("learn"), block.get("forget")
    if not isinstance(learn, list) or not learn:
        raise ConfigError(
            "the other stages of a path", where="stages.learn", got=learn, allowed="one or more of {name, train}"
        )
    found: dict[str, Mapping[str, Any]] = {}
    for place, item in enumerate(learn):
        where = f"stages.learn.{place}"
        name = _with_rows(item, _STAGE, where).get("name")
        if not isinstance(name, str) or not _WORD.fullmatch(name) or name in (JOINT, FORGET):
            allowed = f"letters, digits and _, neither {JOINT} nor {FORGET}"
            raise ConfigError("not a name", where=where, got=name, allowed=allowed)
        if name in found:
            raise ConfigError("two stages have this name", where=where, got=name, fix="Rename one")
        found[name] = item
    return {**found, FORGET: _with_rows(forget, _FORGET, "stages.forget")}


def _with_rows(item: Any, known: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("train"), dict) or not item["train"]:
        what = "a stage needs rows"
        raise ConfigError(what, where=where, got=item, allowed=f"a block with train: {{...}}; keys {', '.join(known)}")
    _known(item, known, where)
    return item


def _algorithms(unlearn: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = unlearn.get("algorithms")
    where = "stages.unlearn.algorithms"
    if not isinstance(found, list) or not found:
        raise ConfigError("how to unlearn", where=where, got=found, allowed="one or more of {name, method}")
    names: list[str] = []
    for place, item in enumerate(found):
        if not isinstance(item, dict) or not isinstance(item.get("method"), dict):
            raise ConfigError("an algorithm has a name and a method block", where=f"{where}.{place}", got=item)
        _known(item, _ALGORITHM, f"{where}.{place}")
        name = item.get("name")
        if not isinstance(name, str) or not _WORD.fullmatch(name) or name in (*names, "retrained"):
            allowed = "letters, digits and _, each name once, not retrained"
            raise ConfigError("not a name", where=f"{where}.{place}", got=name, allowed=allowed)
        names.append(name)
        _rates(item.get("learning_rates", unlearn.get("learning_rates")))
    return found


def _rates(written: Any) -> list[float]:
    rates = written if isinstance(written, list) else []
    if not rates or not all(
        isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0 for rate in rates
    ):
        where = "stages.unlearn.learning_rates"
        raise ConfigError(
            "the learning rates of unlearning", where=where, got=written, allowed="a list of numbers > 0"
        )
    names = [f"{rate:g}" for rate in rates]
    if len(set(names)) < len(names):
        raise ConfigError(
            "two learning rates have the same name, that of their first six digits",
            where="stages.unlearn.learning_rates",
            got=written,
            fix="Write each once",
        )
    return [float(rate) for rate in rates]


def _check_relearn(relearn: Mapping[str, Any]) -> None:
    if not relearn.get("train"):
        raise ConfigError("rows to relearn from are missing", where="stages.relearn", fix="Write train: {...}")
    fraction = relearn.get("fraction", FRACTION)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        what = "the part of the lost log-probability that counts as back"
        raise ConfigError(what, where="stages.relearn.fraction", got=fraction, allowed="float in (0, 1]")


def _mapping(block: Mapping[str, Any], key: str, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    value = block.get(key)
    if not isinstance(value, dict):
        raise ConfigError("a block of keys is expected", where=f"{where}.{key}", got=value, allowed=", ".join(known))
    _known(value, known, f"{where}.{key}")
    return value


def _known(block: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in block:
        if key not in known:
            fix = nearest(key, known)
            raise ConfigError("unknown key", where=f"{where}.{key}", allowed=", ".join(known), fix=fix)
