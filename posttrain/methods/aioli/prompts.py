"""Proportions of a policy run's prompts that a controller changes while the run goes on."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from posttrain.errors import ConfigError, SupportError
from posttrain.methods.aioli.building import build_controller, grouped_rows
from posttrain.methods.aioli.controllers import MixingController
from posttrain.methods.aioli.readers import READ_BY, explain_unread_setting
from posttrain.methods.aioli.rounds import RECORD, Rounds
from posttrain.seam.arguments import check_value, field_specs, option
from posttrain.seam.checkpoint.state import write_json
from posttrain.seam.groups.log import GroupStats
from posttrain.seam.groups.sampler import FixedMixture, MixedRepeatSampler
from posttrain.seam.policy.trainer import PolicyTrainer

WHERE = "rollout.prompt_shares"


@dataclass(frozen=True)
class PromptSettings:
    """Settings of `PromptController`: those of `AioliConfig` under the same names, counted in generation batches.

    DoReMi and DoGE are not here: one compares losses of rows with a reference, the other gradients.
    """

    controller: Literal["aioli", "skillit", "stratified", "natural"] = option("aioli", help="What decides.")
    mixing_rounds_every: int = option(40, help="Generation batches of a round: measure, update, train.", ge=1)
    learn_sweeps: int = option(1, help="aioli: times each group's mixture is trained in a measurement.", ge=1)
    learn_steps: int = option(4, help="aioli: generation batches of a mixture each time.", ge=1)
    one_hot_factor: float = option(0.625, help="aioli: share of the measured group in its mixture.", gt=0.0, le=1.0)
    eta: float = option(0.2, help="aioli, skillit: step size of exponentiated gradient descent.", ge=0.0)
    ema: float | None = option(None, help="aioli: weight of the past matrices; None = weights add up.", ge=0.0, lt=1.0)
    normalize_matrix: bool = option(True, help="aioli: shift the matrix to be >= 0 and scale its sum to 1.")
    diagonal: bool = option(False, help="aioli: leave out what groups do for each other.")
    static_matrix: bool = option(False, help="aioli: keep the first round's matrix.")
    prior: list[float] | None = option(None, help="Proportions of the first prior_steps, one a group.", ge=0.0)
    prior_steps: int = option(0, help="Generation batches with the prior before the first round.", ge=0)
    skill_graph: str | None = option(None, help="skillit: JSON file with groups and skill_graph.")
    proportions_lag: int = option(1, help="Generation batches between a decision and the first it reaches.", ge=1)
    sampling_seed: int = option(0, help="Seed of the measurements' order.", ge=0)

    @classmethod
    def read(cls, given: Mapping[str, Any], *, where: str = WHERE) -> PromptSettings:
        """Settings as a recipe gives them.

        Raises:
            ConfigError: a name that is none, a value out of its range, or values that do not go together.
        """
        specs, known = field_specs(cls), [field.name for field in fields(cls)]
        for name, value in given.items():
            if name not in specs:
                near = difflib.get_close_matches(str(name), known, n=1)
                fix = f"Did you mean {near[0]}?" if near else None
                raise ConfigError("not a setting", where=where, got=name, allowed=", ".join(known), fix=fix)
            check_value(specs[name], value, where=f"{where}.{name}")
        found = cls(**given)
        for name in given:
            if name in READ_BY and found.controller not in READ_BY[name]:
                fix = f"Remove it, or change the controller ({found.controller})"
                raise ConfigError(explain_unread_setting(name), where=f"{where}.{name}", got=given[name], fix=fix)
        if (found.skill_graph is None) == (found.controller == "skillit"):
            raise ConfigError(
                "a skill graph and the controller skillit go together",
                where=f"{where}.skill_graph",
                got=found.skill_graph,
            )
        if (found.prior is None) != (found.prior_steps == 0):
            raise ConfigError(
                "a prior and the batches it holds for go together",
                where=f"{where}.prior_steps",
                got=found.prior_steps,
                allowed="> 0 with a prior, else 0",
            )
        return found

    def build(self, log: GroupStats | None, *, prompts_per_batch: int) -> MixingController:
        """The controller for the groups of the prompts.

        Raises:
            DataError: no groups, or a single one. ConfigError: settings that do not fit their number.
        """
        rows = grouped_rows(log, column="group", where="method.prompt_group_column")
        try:
            return build_controller(self, groups=rows.names, sizes=rows.sizes, rows_per_step=prompts_per_batch)
        except ConfigError as error:
            name = (error.where or "").removeprefix("method.")
            raise ConfigError(
                error.what, where=f"{WHERE}.{name}", got=error.got, allowed=error.allowed, fix=error.fix
            ) from None


class PromptController(TrainerCallback):
    """Changes the shares of the groups of a policy run's prompts as `AioliTrainer` changes those of rows.

    What a supervised run calls the loss of a group is here the share of its held-out prompts that the model fails,
    in [0, 1], and a step is a generation batch. Deviation: arXiv 2411.05735 mixes for likelihood alone; that its
    controllers also serve rewards is not claimed there, and a share of n prompts is known to within
    sqrt(p (1 - p) / n) only.

    Logged: `validation/<group>_accuracy` with their mean, when measured, and `mixture/<group>_proportion`, intended
    for the batch that was trained. Proportions, matrices and the cost of measuring stand in `mixing.json` in the
    folder of the run. A checkpoint holds controller and proportions; a resumed run goes on as the uninterrupted one.

    Args:
        trainer: of a policy method, before `train()`.
        settings: what decides, and when.
        accuracies: called on every rank with the model; the share of solved prompts of each group, in the order of
            `trainer.group_stats.names`, equal on all ranks. None for controllers that read nothing.

    Raises:
        DataError, ConfigError: as `PromptSettings.build`.
        SupportError: an optimizer step of the run takes rollouts of two generation batches.
    """

    def __init__(
        self,
        trainer: PolicyTrainer,
        settings: PromptSettings,
        *,
        accuracies: Callable[[Any], Sequence[float]] | None,
    ):
        args = trainer.args
        uses, steps = trainer.num_iterations * args.steps_per_generation, args.gradient_accumulation_steps
        if uses % steps:
            raise SupportError(
                "a generation batch ends within an optimizer step",
                where="trainer.gradient_accumulation_steps",
                got=steps,
                allowed=f"a divisor of {uses} (rollout.steps_per_generation * rollout.num_iterations)",
            )
        self.trainer, self.settings, self.accuracies = trainer, settings, accuracies
        self.lag, self.steps_per_batch = settings.proportions_lag, uses // steps
        prompts = args.generation_batch_size // trainer.num_generations
        self.controller = settings.build(trainer.group_stats, prompts_per_batch=prompts)
        self.rounds = Rounds(
            self.controller,
            every=settings.mixing_rounds_every,
            learn_steps=settings.learn_steps,
            prior_steps=settings.prior_steps,
            rows_per_step=prompts,
            measure=None if accuracies is None else self._failures,
        )
        self.measurements, self.seconds = 0, 0.0
        trainer.prompt_mixing = self
        trainer.attach("prompt_shares", self)
        trainer.add_callback(self)

    # ---- what draws prompts asks ----

    def start(self, log: GroupStats) -> Sequence[float]:
        """Proportions of the start."""
        return self.controller.proportions.tolist()

    def planned(self, step: int) -> FixedMixture | None:
        """Mixture of a generation batch of a measurement; None for others."""
        return self.rounds.planned(step)

    def draw(self, order: MixedRepeatSampler) -> MixedRepeatSampler:
        """Take the order of a `train()`."""
        return self.rounds.draw(order)

    # ---- between optimizer steps ----

    def _failures(self) -> list[float]:
        assert self.accuracies is not None
        begun = time.perf_counter()
        found = [float(value) for value in self.accuracies(self.trainer.model)]
        self.measurements, self.seconds = self.measurements + 1, self.seconds + time.perf_counter() - begun
        for name, value in zip(self.controller.groups, found, strict=True):
            self.trainer.set_metric(f"validation/{name}_accuracy", value)
        self.trainer.set_metric("validation/mean_accuracy", sum(found) / len(found))
        return [1.0 - value for value in found]

    def measure_before_zero3(self) -> None:
        """As `AnswerProbe.measure_before_zero3`."""
        self.rounds.begin(0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called once for each `train()`, on every rank."""
        self.rounds.begin(state.global_step)
        self._write()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after each optimizer step on every rank."""
        done, within = divmod(state.global_step, self.steps_per_batch)
        if self.rounds.order is not None:
            proportions = self.rounds.order.proportions_at((state.global_step - 1) // self.steps_per_batch)
            for name, value in zip(self.controller.groups, proportions.tolist(), strict=True):
                self.trainer.set_metric(f"mixture/{name}_proportion", value)
        if not within and self.rounds.after(done):
            self._write()

    def _write(self) -> None:
        if self.trainer.args.should_save:
            account = self.rounds.account(
                validation_measurements=self.measurements, validation_seconds=round(self.seconds, 3)
            )
            content = {"controller": self.settings.controller, "steps_per_batch": self.steps_per_batch, **account}
            write_json(Path(self.trainer.args.output_dir) / RECORD, content)

    # ---- checkpoints ----

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"rounds": self.rounds.state(), "cost": [self.measurements, self.seconds]}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.rounds.load(state["rounds"])
        self.measurements, self.seconds = state["cost"]
