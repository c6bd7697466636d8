"""The methods posttrain knows: one key each, and what the room of each declares about itself.

A method that is not listed in `KEYS` does not exist. Declarations hold strings only; nothing slow is imported until it
is asked for. Everything below the papers reaches them through this file alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Any, Literal

from posttrain.errors import ConfigError, nearest

# The one line that a paper adds outside its room: posttrain/methods/<key>/__init__.py declares METHOD.
KEYS = (
    *("sft", "grpo", "hpt", "luffy", "srft", "sasr", "chord", "rft_cpt", "masked_thought", "rmt", "aioli"),
    *("unlearning_paths", "dmt", "dpo"),
)
Kind = Literal["policy", "supervised", "plan", "setting"]
FEATURES = ("ddp", "zero1", "zero2", "zero3", "fsdp2", "peft", "packing", "vllm", "resume", "multi_node")
ENGINES = frozenset({"ddp", "zero1", "zero2", "zero3", "fsdp2"})
# What a method may read beside prompts and demonstrations: documents that it makes its own prompts from, rows to keep
# beside those to forget, rows that are drawn group by group as streams allow.
INPUTS = ("documents", "retain", "streams")
# Places of a recipe that a paper can fill for runs of any method, as `{name: KEY, own settings}`.
SLOTS = ("data.order", "rollout.prompt_shares", "trainer.averaging", "trainer.optimizer", "trainer.schedule")


@dataclass(frozen=True)
class Paper:
    """Title, arXiv id, year and first author's family name of the paper a method comes from."""

    title: str
    arxiv: str
    year: int
    author: str | None = None

    def card(self, key: str) -> dict[str, str]:
        """Title, id and BibTeX entry for a model card."""
        name = f"{(self.author or '').lower()}{self.year}{key}"
        fields = {"title": self.title, "year": str(self.year), "eprint": self.arxiv, "archivePrefix": "arXiv"}
        fields = {**({} if self.author is None else {"author": f"{self.author} and others"}), **fields}
        written = ", ".join(f"{field}={{{value}}}" for field, value in fields.items())
        return {"title": self.title, "id": self.arxiv, "citation": f"@article{{{name}, {written}}}"}


@dataclass(frozen=True)
class Curve:
    """A metric of a method's own: what the console calls it, and the title and unit of its plot.

    Attributes:
        limits: of the vertical axis; those of a fraction by default.
        shown: whether the console shows it, too.
    """

    metric: str
    label: str
    title: str
    unit: str
    limits: tuple[float | None, float | None] = (-0.03, 1.03)
    shown: bool = True

    @property
    def name(self) -> str:
        """Of its plot and the plot's file."""
        return self.metric.replace("/", "_")


@dataclass(frozen=True)
class Method:
    """What a room declares about its method.

    Attributes:
        kind: "policy" draws completions and scores them, "supervised" learns rows; without a trainer of its own,
            "plan" writes ordinary stages and "setting" fills slots.
        config, trainer: "module:Name", the module below the room or, with "posttrain.", anywhere.
        supports: subset of `FEATURES`.
        inputs: subset of `INPUTS`.
        step: `StageStep` that works in every run of the method.
        steps: key of a stage -> `StageStep` that works in stages with this key, whatever their method.
        slots: member of `SLOTS` -> `StageStep` that works in runs whose recipe names the paper there.
        plans: preset of `stages` -> function from the recipe to its stages.
        outcome: function (run, folder, lineage) -> numbers beside the last evaluation of a stage that one of `plans`
            wrote, as {name: values}.
        measures: mapping or tuple of the names of these numbers, with their prefix; a claim on another is refused.
        verbs: "verb" or "group verb" of the command line -> function, or `Typer` of several.
        suites: name under `eval --suite` -> function.
        key: set by `get`.
    """

    kind: Kind
    summary: str
    paper: Paper
    config: str | None = None
    trainer: str | None = None
    supports: frozenset[str] = field(default_factory=frozenset)
    inputs: frozenset[str] = field(default_factory=frozenset)
    curves: tuple[Curve, ...] = ()
    step: str | None = None
    steps: Mapping[str, str] = field(default_factory=dict)
    slots: Mapping[str, str] = field(default_factory=dict)
    plans: Mapping[str, str] = field(default_factory=dict)
    outcome: str | None = None
    measures: str | None = None
    verbs: Mapping[str, str] = field(default_factory=dict)
    suites: Mapping[str, str] = field(default_factory=dict)
    key: str = ""

    @property
    def generates(self) -> bool:
        """Whether it draws completions, so that a recipe has a rollout block."""
        return self.kind == "policy"

    @property
    def learns_rows(self) -> bool:
        """Whether every row is learnt as it stands, without completions."""
        return self.kind == "supervised"

    @property
    def trains(self) -> bool:
        """Whether a recipe can name it as its `method`; a plan is named under `stages.preset`."""
        return self.trainer is not None

    @property
    def without_trainer(self) -> str:
        """What a method that does not train is named under instead."""
        places = [*self.slots, *(["stages.preset"] if self.plans else [])]
        return f"{self.key} {'fills' if self.slots else 'is a plan of stages, named under'} {', '.join(places)}"

    def place(self, path: str | None) -> str:
        """ "module:Name" in full.

        Raises:
            ConfigError: the method has none.
        """
        if path is None:
            raise ConfigError(self.without_trainer, got=self.key)
        return path if path.startswith("posttrain.") else f"posttrain.methods.{self.key}.{path}"

    def load_config(self) -> Any:
        """The config class; imports trl and torch."""
        return _load(self.place(self.config))

    def load_trainer(self) -> Any:
        """The trainer class; imports trl and torch."""
        return _load(self.place(self.trainer))

    def load(self, path: str) -> Any:
        """What the room has at "module:Name"."""
        return _load(self.place(path))


class _Methods(Mapping[str, Method]):
    """Key -> method, each declaration read when it is first asked for."""

    def __getitem__(self, key: str) -> Method:
        if key not in KEYS:
            raise KeyError(key)
        return _declared(key)

    def __iter__(self) -> Iterator[str]:
        return iter(KEYS)

    def __len__(self) -> int:
        return len(KEYS)


METHODS: Mapping[str, Method] = _Methods()


@cache
def _declared(key: str) -> Method:
    method: Method = import_module(f"posttrain.methods.{key}").METHOD
    return replace(method, key=key)


def trained() -> dict[str, Method]:
    """The methods that a recipe can name as its `method`; plans of stages are named under `stages.preset`."""
    return {key: method for key, method in METHODS.items() if method.trains}


def declared(kind: Literal["steps", "plans", "verbs", "suites"]) -> dict[str, tuple[Method, str]]:
    """Name -> method that declares it, and where its room has it; in the order of the methods."""
    return {name: (m, path) for m in METHODS.values() for name, path in getattr(m, kind).items()}


def fillers(slot: str) -> dict[str, Method]:
    """Key -> method that fills a slot."""
    return {key: method for key, method in METHODS.items() if slot in method.slots}


def curves() -> list[Curve]:
    """The metrics that methods declare of their own, in the order of the methods."""
    return [curve for method in METHODS.values() for curve in method.curves]


def method_of(trainer: type[Any]) -> Method | None:
    """The method whose trainer a class is, or is made from; None for a class of no method."""
    known = {method.place(method.trainer): method for method in METHODS.values() if method.trains}
    places = (f"{base.__module__}:{base.__qualname__}" for base in trainer.__mro__)
    return next((known[place] for place in places if place in known), None)


def get(key: str, *, where: str | None = None) -> Method:
    """What a method declares.

    Args:
        key: the method's key, as in `method.name`.
        where: prefix of the error message.

    Raises:
        ConfigError: for an unknown key, with the nearest known one.
    """
    if key in KEYS:
        return METHODS[key]
    raise ConfigError(
        "unknown method",
        where=where,
        got=key,
        allowed="one of: " + ", ".join(KEYS),
        fix=nearest(key, KEYS) or "`posttrain methods` lists them",
    )


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)
