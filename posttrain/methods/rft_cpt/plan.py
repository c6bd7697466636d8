"""The preset `continual`: tasks trained one after another, by one paradigm or several side by side, as plain stages.

    stages:
      preset: continual
      paradigms: [sft, {name: rif, paradigm: grpo, rif: {num_rollouts: 8}}]   # variants; each goes through all tasks
      tasks:                                      # in the order of training
        - {name: copy, train: {...}, eval: {...}, verifier: exact}
        - {name: sort, train: {...}, eval: {...}, verifier: exact, trainer: {max_steps: 200}}
      general: {language: {...}}                  # evaluated with the tasks and trained by no stage
      before: [{name: base, method: ...}]         # stages that the variants share
      reference_model: initial                    # or previous_task, none
      kl_coefficient: 0.01
      replay_fraction: 0.1                        # replay_sft: part of every earlier task's rows
      lora: {rank: 8}                             # lora_sft
      supervised: {trainer: {...}}                # keys that supervised (policy) stages change in the recipe's blocks
      policy: {trainer: {...}}

After every stage all tasks are evaluated, those to come too. The variant `multitask_sft` is one stage on all rows, and
`single_sft` trains every task from where the variants start; they are what the other variants are compared with.
Blocks are merged key by key: the recipe's, those under supervised or policy, the variant's, the task's; of a stage
under before the
trainer block alone. A stage has its own optimizer and schedule.

Source: arXiv 2507.05386, protocol. Deviation: with lora_sft an adapter is merged after each task and the next one is
new, as the stage runner does with every adapter; the paper's own runs train all weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.errors import ConfigError, nearest

SUPERVISED = ("sft", "single_sft", "multitask_sft", "replay_sft", "lora_sft")
_APART = ("single_sft", "multitask_sft")  # no sequence: what the others are compared with
POLICY = ("grpo", "rloo", "remax", "rejection_sft")
REFERENCES = ("initial", "previous_task", "none")
_METHODS: dict[str, dict[str, Any]] = {
    **{name: {"name": "sft", "loss_aggregation": "token_mean"} for name in SUPERVISED},
    "grpo": {"name": "rft_cpt", "advantage_estimator": "group_norm"},
    "rloo": {"name": "rft_cpt", "advantage_estimator": "rloo"},
    "remax": {"name": "rft_cpt", "advantage_estimator": "remax"},
    "rejection_sft": {"name": "rft_cpt", "update": "rejection"},
}
_BLOCKS = ("method", "rollout", "trainer", "eval")
_VARIANT = ("name", "paradigm", "reference_model", "kl_coefficient", "replay_fraction", "lora", "rif", *_BLOCKS)
_TASK = ("name", "train", "eval", "verifier", "paradigm", "rif", "method", "rollout", "trainer")
_OPTIONS = ("preset", "paradigms", "tasks", "general", "before", "supervised", "policy", *_VARIANT[2:-4])


def continual_stages(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a recipe with `stages: {preset: continual, ...}`.

    Args:
        values: the recipe as plain dicts.

    Returns:
        The stages of `before`, then for every variant one stage a task, named "<variant>-<number>-<task>"; one stage
        for multitask_sft. Each says in `lineage` which variant, task, place and order it belongs to.

    Raises:
        ConfigError: unknown keys or words, fewer than two tasks, two of one name, a task without rows to evaluate on,
            an RL paradigm without verifier, a fraction outside [0, 1], reference "initial" with adapters.
    """
    block = values["stages"]
    _known(block, _OPTIONS, "stages")
    _mappings(values, ("data", "model", "rollout", "trainer", "eval"), "")
    _mappings(block, ("general", "supervised", "policy", "lora", "rif"), "stages")
    for kind in ("supervised", "policy"):
        _mappings(block.get(kind) or {}, _BLOCKS, f"stages.{kind}")
    for name, source in (block.get("general") or {}).items():
        _mappings({name: source}, (name,), "stages.general")
    if "method" in values:
        fix = "Write what you want to change in a variant of stages.paradigms"
        raise ConfigError("the method comes from the paradigm", where="method", fix=fix)
    for key in ("train", "eval", "eval_tasks"):
        if key in (values.get("data") or {}):
            raise ConfigError("the rows come from the tasks", where=f"data.{key}", fix="Remove it")
    tasks = _tasks(values)
    before = block.get("before") or []
    if not isinstance(before, list) or not all(isinstance(stage, dict) for stage in before):
        raise ConfigError("a list of stages is expected", where="stages.before", got=before)
    start = str(before[-1].get("name")) if before else None
    # The recipe's rollout block is that of the tasks.
    stages = [
        {"rollout": None, **stage, "trainer": _trainer(values) | (stage.get("trainer") or {})} for stage in before
    ]
    for place, variant in enumerate(_variants(block)):
        stages += _Variant(values, tasks, variant, start=start, where=f"stages.paradigms.{place}").stages()
    return stages


class _Variant:
    """One paradigm going through the tasks."""

    def __init__(
        self,
        values: Mapping[str, Any],
        tasks: list[dict[str, Any]],
        variant: Mapping[str, Any],
        *,
        start: str | None,
        where: str,
    ):
        self.values, self.tasks, self.variant, self.start, self.where = values, tasks, variant, start, where
        self.block = values["stages"]
        self.name = str(variant["name"])
        self.order = [task["name"] for task in tasks]
        self.reference = self.option("reference_model", "initial")
        if self.reference not in REFERENCES:
            allowed = f"one of: {', '.join(REFERENCES)}"
            raise ConfigError("unknown reference", where="stages.reference_model", got=self.reference, allowed=allowed)

    def option(self, key: str, default: Any = None) -> Any:
        """The variant's value, else that of the plan."""
        return self.variant.get(key, self.block.get(key, default))

    def stages(self) -> Iterator[dict[str, Any]]:
        """One stage a task, or one of all tasks."""
        if self.variant["paradigm"] == "multitask_sft":
            yield self.together()
            return
        parent = self.start
        for position, task in enumerate(self.tasks, start=1):
            stage = self.stage(task, position, parent)
            parent = self.start if self.variant["paradigm"] == "single_sft" else stage["name"]
            yield stage

    def stage(self, task: Mapping[str, Any], position: int, parent: str | None) -> dict[str, Any]:
        """The stage that trains one task."""
        paradigm = str(task.get("paradigm", self.variant["paradigm"]))
        train = task["train"]
        if paradigm == "replay_sft" and position > 1:
            train = self.with_replay(position)
        stage = self.blocks(task, paradigm, train, at_start=position == 1)
        stage |= {"name": f"{self.name}-{position}-{task['name']}", "lineage": self.lineage(paradigm, task, position)}
        if parent is not None:
            stage["start_from"] = parent
        rif = task.get("rif", self.option("rif"))
        if rif is not None and paradigm in POLICY:
            stage["rif"] = rif
        if paradigm in POLICY and stage["trainer"]["beta"] > 0 and self.reference == "initial" and position > 1:
            stage["reference_from"] = self.start or "model"
        return stage

    def together(self) -> dict[str, Any]:
        """One stage on the rows of all tasks, as long as their stages together."""
        last = self.tasks[-1]
        trainers = [self.merged("trainer", "multitask_sft", task) for task in self.tasks]
        steps, epochs = ([trainer.get(key) for trainer in trainers] for key in ("max_steps", "num_train_epochs"))
        is_stepped = all(isinstance(count, int) and count > 0 for count in steps)
        if not is_stepped and len(set(map(str, epochs))) > 1:
            raise ConfigError(
                "the tasks' stages have different numbers of epochs, so one stage has none",
                where=self.where,
                got=", ".join(f"{task['name']} {count}" for task, count in zip(self.tasks, epochs, strict=True)),
                fix="Write max_steps for every task, or train multitask_sft from a recipe of its own",
            )
        mixture = [_entry(task) for task in self.tasks]
        # What a task changes is for its own rows; only the number of steps is taken over.
        shared = {key: value for key, value in last.items() if key not in ("method", "rollout", "trainer")}
        stage = self.blocks(shared, "multitask_sft", {"mixture": mixture}, at_start=True)
        length: dict[str, Any] = {"max_steps": sum(count or 0 for count in steps)} if is_stepped else {}
        length |= {"num_train_epochs": epochs[0]} if not is_stepped and epochs[0] is not None else {}
        stage["trainer"] = {**stage["trainer"], **length}
        stage |= {"name": self.name, "lineage": {**self.lineage("multitask_sft", last, 1), "task": None}}
        return stage | ({"start_from": self.start} if self.start is not None else {})

    def blocks(self, task: Mapping[str, Any], paradigm: str, train: Any, *, at_start: bool) -> dict[str, Any]:
        """Complete blocks of a stage."""
        data = {**(self.values.get("data") or {}), "train": train, "eval": task["eval"]}
        data["eval_tasks"] = {item["name"]: {**item["eval"], **_verdict(item)} for item in self.tasks}
        data["eval_tasks"] |= dict(self.block.get("general") or {})
        trainer = self.merged("trainer", paradigm, task)
        evaluation = {**self.merged("eval", paradigm, task), **_verdict(task)}
        # The row "before" of the score matrix is that of the first stage, and no other is read.
        evaluation["at_start"] = at_start
        stage = {"method": {**_METHODS[paradigm], **self.merged("method", paradigm, task)}, "data": data}
        stage |= {"trainer": trainer, "eval": evaluation}
        if paradigm in POLICY:
            rollout = self.merged("rollout", paradigm, task)
            if "verifier" not in task and "rewards" not in rollout:
                what = "a paradigm that learns from rollouts needs a verifier"
                where = f"stages.tasks.{self.order.index(task['name'])}"
                raise ConfigError(what, where=where, got=paradigm, fix="Write verifier, e.g. verifier: exact")
            stage["rollout"] = {"rewards": [task["verifier"]], **rollout} if "verifier" in task else rollout
            uses_kl = self.reference != "none" and paradigm != "rejection_sft"
            trainer["beta"] = self.coefficient() if uses_kl else 0.0
        adapter = self.option("lora") if paradigm == "lora_sft" else (self.values.get("model") or {}).get("lora")
        if paradigm in POLICY and adapter and self.reference == "initial":
            raise ConfigError(
                "an adapter is merged after each task, so the initial model is no longer the model without it",
                where="stages.reference_model",
                got="initial",
                fix="Set it to previous_task or none, or train all weights",
            )
        if paradigm == "lora_sft":
            stage["model"] = {**(self.values.get("model") or {}), "lora": dict(adapter or {})}
        return stage

    def coefficient(self) -> float:
        """Weight of the divergence from the reference."""
        value = self.option("kl_coefficient", 0.01)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            what = "the weight of the divergence from the reference"
            raise ConfigError(what, where="stages.kl_coefficient", got=value, allowed="number >= 0")
        return float(value)

    def merged(self, key: str, paradigm: str, task: Mapping[str, Any]) -> dict[str, Any]:
        """A block: the recipe's, changed by its kind of paradigm, the variant and the task."""
        kind = "supervised" if paradigm in SUPERVISED else "policy"
        shared = _trainer(self.values) if key == "trainer" else dict(self.values.get(key) or {})
        own = None if key == "eval" else task.get(key)  # a task's `eval` are its rows
        for changes in ((self.block.get(kind) or {}).get(key), self.variant.get(key), own):
            shared |= dict(changes or {})
        return shared

    def with_replay(self, position: int) -> dict[str, Any]:
        """The task's rows and a part of those of every task before it."""
        fraction = self.option("replay_fraction", 0.1)
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            what = "the replayed part of earlier rows"
            raise ConfigError(what, where="stages.replay_fraction", got=fraction, allowed="0 to 1")
        if not fraction:
            return dict(self.tasks[position - 1]["train"])  # plain sft, down to the order of the rows
        earlier = [{**_entry(task), "replay_fraction": float(fraction)} for task in self.tasks[: position - 1]]
        return {"mixture": [_entry(self.tasks[position - 1]), *earlier]}

    def lineage(self, paradigm: str, task: Mapping[str, Any], position: int) -> dict[str, Any]:
        """What the record of the run says about its place."""
        found = {"variant": self.name, "paradigm": paradigm, "task": task["name"], "position": position}
        found |= {"order": list(self.order), "general": list(self.block.get("general") or {})}
        if self.variant["paradigm"] in _APART:
            found["apart"] = self.variant["paradigm"]
        if paradigm in POLICY:
            found["reference_model"] = self.reference
        if paradigm == "replay_sft":
            found["replay_fraction"] = self.option("replay_fraction", 0.1)
        return found


def _trainer(values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's trainer block without what belongs to the recipe as a whole."""
    return {key: value for key, value in (values.get("trainer") or {}).items() if key not in ("output_dir", "resume")}


def _entry(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's rows as a source of a mixture, where `name` is the source's own."""
    source = dict(task["train"])
    if "name" in source:
        source["configuration"] = source.pop("name")
    return {**source, "name": task["name"]}


def _verdict(task: Mapping[str, Any]) -> dict[str, Any]:
    return {"verifier": task["verifier"]} if "verifier" in task else {}


def _tasks(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    tasks = values["stages"].get("tasks")
    if not isinstance(tasks, list) or len(tasks) < 2 or not all(isinstance(task, dict) for task in tasks):
        allowed = "two or more of {name, train, eval, verifier}"
        raise ConfigError("continual training needs tasks", where="stages.tasks", got=tasks, allowed=allowed)
    names: list[str] = []
    for index, task in enumerate(tasks):
        where = f"stages.tasks.{index}"
        _known(task, _TASK, where)
        _mappings(task, ("train", "eval", "method", "rollout", "trainer", "rif"), where)
        for key in ("name", "train", "eval"):
            if task.get(key) in (None, "", {}):
                what = "a task is evaluated on rows of its own" if key == "eval" else f"the key {key} is missing"
                raise ConfigError(what, where=where, fix=f"Write {key}")
        if task["name"] in names or task["name"] in (values["stages"].get("general") or {}):
            raise ConfigError("two tasks have this name", where=where, got=task["name"], fix="Rename one")
        if task.get("paradigm") not in (None, *_METHODS) or task.get("paradigm") in _APART:
            allowed = f"one of: {', '.join(name for name in _METHODS if name not in _APART)}"
            raise ConfigError("unknown paradigm", where=f"{where}.paradigm", got=task["paradigm"], allowed=allowed)
        names.append(task["name"])
    return tasks


def _variants(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    written = block.get("paradigms", ["grpo"])
    if not isinstance(written, list) or not written:
        allowed = "a list of names, or of {name, paradigm, ...}"
        raise ConfigError("the paradigms to train by", where="stages.paradigms", got=written, allowed=allowed)
    variants: list[dict[str, Any]] = []
    for index, item in enumerate(written):
        where = f"stages.paradigms.{index}"
        variant = dict(item) if isinstance(item, dict) else {"name": item, "paradigm": item}
        variant.setdefault("name", variant.get("paradigm"))
        variant.setdefault("paradigm", variant["name"])
        _known(variant, _VARIANT, where)
        _mappings(variant, (*_BLOCKS, "lora", "rif"), where)
        if not isinstance(variant["paradigm"], str) or variant["paradigm"] not in _METHODS:
            fix = nearest(variant["paradigm"], _METHODS)
            allowed = f"one of: {', '.join(_METHODS)}"
            raise ConfigError("unknown paradigm", where=where, got=variant["paradigm"], allowed=allowed, fix=fix)
        if variant["name"] in [other["name"] for other in variants]:
            raise ConfigError(
                "two variants have this name", where=where, got=variant["name"], fix="Write another name"
            )
        variants.append(variant)
    return variants


def _mappings(block: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """ConfigError where one of these keys holds something else than a block."""
    for key in keys:
        if block.get(key) is not None and not isinstance(block[key], dict):
            place = f"{where}.{key}" if where else key
            raise ConfigError("a block of keys is expected", where=place, got=block[key])


def _known(block: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in block:
        if key not in known:
            fix = nearest(key, known)
            raise ConfigError("unknown key", where=f"{where}.{key}", allowed=", ".join(known), fix=fix)
