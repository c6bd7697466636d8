"""What a paper adds to a run: one protocol that the spine walks through, and who adds something to a given run.

A room declares its steps in `METHOD`: for runs of its own method, for stages with a key of its own, or for recipes
that name it in a slot. The spine never imports them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from posttrain import registry
from posttrain.config.block import Block
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from posttrain.config.run_config import RunConfig, StageBlock


class StageStep:
    """Base of every step; a step overrides the hooks that it needs, the others do nothing.

    `run` is the configuration of one run, `folder` that of its results. Hooks are called on every rank in this order:
    `plan_findings`, `method_settings` and `rule_findings` when the recipe is read; `findings` and `questions` by the
    pre-flight; `prepare`, `rows`, `make_model`, `optimizer`, `schedule`, `order`, `attach` when the run is built.

    Args:
        settings: instance of `block`, or what `read` made of the written values.
    """

    block: ClassVar[type[Block] | None] = None
    """Settings as a strict mapping; None for a step without settings, or one that overrides `read`."""
    is_identity: ClassVar[bool] = True
    """Whether a run with other settings is another run, so that a finished one is not taken for it."""
    decides_later: ClassVar[bool] = False
    """Whether settings of the method are not known before earlier stages have run."""

    def __init__(self, settings: Any = None):
        self.settings = settings

    @classmethod
    def read(cls, written: Mapping[str, Any], *, where: str) -> Any:
        """Settings from the written mapping, where `block` is None. Raises PosttrainError."""
        raise NotImplementedError

    # ---- when the recipe is read ----

    def plan_findings(self, stage: StageBlock, earlier: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """(key below the step's own, PosttrainError) of what does not fit the plan; `earlier` are names of stages."""
        yield from ()

    def method_settings(self, root: Path, stage: str) -> Mapping[str, Any]:
        """Settings of the stage's method that this step decides; `root` is the folder of all stages."""
        return {}

    def rule_findings(self, run: RunConfig) -> Iterator[PosttrainError]:
        """What does not go together in the blocks of the run."""
        yield from ()

    # ---- pre-flight ----

    def findings(self, run: RunConfig, args: Any, rows: Mapping[str, Any]) -> Iterator[PosttrainError]:
        """Mistakes that rows and arguments show before the run.

        Args:
            args: instance of the method's config class. rows: "train" and, if there are, "validation", "retain".
        """
        yield from ()

    def questions(self, run: RunConfig, rows: Any, tokenizer: Any) -> Any:
        """Rows as the rewards will see them, in place of those of the data.

        Args:
            rows: `posttrain.preflight.data.Rows`.

        Raises:
            PosttrainError, or RecipeError with several: nothing can be asked.
        """
        return rows

    # ---- in the run ----

    def prepare(self, run: RunConfig, folder: Path) -> None:
        """Write files that the method reads; called before its arguments are built."""

    def rows(self, run: RunConfig, rows: Any, *, model: str, folder: Path) -> tuple[Any, Mapping[str, Any]]:
        """Rows to train on, and a record for the lineage in `run.json`; `model` is where the run starts from."""
        return rows, {}

    def make_model(self, run: RunConfig, *, model: str, folder: Path) -> str:
        """Folder of the model that the run starts from, in place of `model`."""
        return model

    def optimizer(self, run: RunConfig, args: Any) -> tuple[Any, dict[str, Any]] | None:
        """(class or factory, keyword arguments) as transformers' `optimizer_cls_and_kwargs`; None = the trainer's."""
        return None

    def schedule(self, run: RunConfig) -> Callable[[Any, int], Any] | None:
        """(optimizer, optimizer steps of the run) -> `torch.optim.lr_scheduler.LRScheduler`; None = the trainer's."""
        return None

    def order(self, run: RunConfig, rows: Any) -> Callable[[int], Sequence[int]] | None:
        """epoch -> numbers of its rows in order, as many as there are rows; None = shuffled anew every epoch."""
        return None

    def attach(self, run: RunConfig, trainer: Any, data: Mapping[str, Any]) -> None:
        """Add callbacks and parts with a state to the trainer, before `train()`."""


def steps_of(run: RunConfig) -> dict[str, StageStep]:
    """Key of the stage, slot, or key of the method -> step, of all that work in a run."""
    method = registry.get(run.method.name)
    own = {} if method.step is None else {method.key: method.load(method.step)()}
    return {**({} if run.stage is None else run.stage.added), **run.slots, **own}


def stage_settings(run: RunConfig) -> dict[str, Any]:
    """Key of the stage -> settings as plain values, of the steps that make a run another one."""
    added = {} if run.stage is None else run.stage.added
    return {key: step.settings.model_dump() for key, step in added.items() if step.is_identity}
