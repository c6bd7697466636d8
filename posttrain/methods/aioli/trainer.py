"""`AioliTrainer`: supervised training whose rows are drawn group by group in proportions that a controller decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from posttrain.methods.aioli.building import NEEDS_VALIDATION, build_controller, grouped_rows
from posttrain.methods.aioli.config import AioliConfig
from posttrain.methods.aioli.controllers import MixingController
from posttrain.methods.aioli.signals import ExcessLoss, GradientAlignment
from posttrain.seam.group_sampler import FixedMixture, GroupMixtureSampler, realised_shares
from posttrain.seam.group_validation import GroupValidation
from posttrain.seam.state import write_json
from posttrain.seam.supervised import SupervisedTrainer

# In the folder of the run: proportions, and what they followed from.
RECORD = "mixing.json"


class AioliTrainer(SupervisedTrainer):
    """Supervised training with proportions of groups that change while it goes on.

    A round of `mixing_rounds_every` optimizer steps begins, for the controller aioli, with the measurement of the
    matrix: each group's mixture is trained for `learn_steps` steps, `learn_sweeps` times, in random order, and the
    drops of the validation losses are kept. These are ordinary steps of the model and the schedule. The proportions
    that follow hold for the rest of the round, from `proportions_lag` steps after the decision on; in between those of
    the round before still hold. Deviation: the specification of arXiv 2411.05735 knows no lag.

    Validation losses are measured at the start, at the end of every round, and where the controller needs them; they
    are logged as `validation/<group>_loss` with their mean, and stand in `mixing.json` in the folder of the run, with
    proportions, matrices and what measuring has cost. Logged beside the shares of `mixture_log`:
    `mixture/<group>_proportion`, in force at the step, and `mixture/<group>_intended_fraction`, the mean of all steps
    so far, to compare with `mixture/<group>_rows_fraction`.

    A checkpoint holds the controller, the proportions with the steps they began at, and the last losses.

    Args:
        train_dataset: rows with the column of groups. eval_dataset: held-out rows of every group. Rest as in
        `SupervisedTrainer`.

    Raises:
        DataError: no groups, or a single one; no validation rows where the controller needs them, or none of a group.
        ConfigError: settings that do not fit the number of groups.
    """

    config_class = AioliConfig
    numbers_rows = True
    args: AioliConfig
    name = "Aioli"
    paper = {
        "title": "Aioli: A Unified Optimization Framework for Language Model Data Mixing",
        "id": "2411.05735",
        "citation": "@inproceedings{chen2025aioli, title={Aioli: A Unified Optimization Framework for Language Model "
        "Data Mixing}, year={2025}, eprint={2411.05735}, archivePrefix={arXiv}}",
    }

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        settings = self.args
        rows = grouped_rows(settings, self.group_log)
        self.groups: list[str] = rows.names
        sizes = np.bincount(rows.numbers, minlength=len(self.groups))
        self.rows_per_step = (
            settings.per_device_train_batch_size * settings.gradient_accumulation_steps * settings.world_size
        )
        self.controller: MixingController = build_controller(
            settings, groups=self.groups, sizes=sizes.tolist(), rows_per_step=self.rows_per_step
        )
        self.validation = self._validation()
        self.excess: ExcessLoss | None = None
        self.alignment: GradientAlignment | None = None
        self.sampler: GroupMixtureSampler | None = None
        self._history: list[Any] = []
        self._losses: list[float] = []
        self._intended = np.zeros(len(self.groups))
        self._records: list[dict[str, Any]] = []
        self.add_callback(_BetweenSteps(self))

    def _validation(self) -> GroupValidation | None:
        settings = self.args
        if self.eval_dataset is None and settings.controller not in NEEDS_VALIDATION:
            return None
        return GroupValidation(
            self,
            names=self.groups,
            column=str(self.group_column),
            per_group=settings.mixing_eval_examples,
            seed=settings.sampling_seed,
        )

    # ---- rows ----

    def train_order(self) -> GroupMixtureSampler:
        settings, prior = self.args, self.args.prior_steps
        assert self.group_log is not None
        self.sampler = GroupMixtureSampler(
            self.group_log.numbers,
            proportions=self.controller.proportions,
            rows_per_step=self.rows_per_step,
            num_steps=settings.max_steps,
            seed=settings.sampling_seed,
            lag=settings.proportions_lag,
            plan=self.planned,
        )
        if self._history:
            self.sampler.load_history(self._history)
        elif prior:
            self.sampler.load_history([(0, self.controller.prior), (prior, self.controller.proportions.tolist())])
        return self.sampler

    def planned(self, step: int) -> FixedMixture | None:
        """The mixture of a step of a measurement; None for other steps."""
        number, place = divmod(step - self.args.prior_steps, self.args.mixing_rounds_every)
        if number < 0:
            return None
        schedule = self.controller.learn_schedule(number)
        block, within = divmod(place, self.args.learn_steps)
        if block >= len(schedule):
            return None
        return FixedMixture(self.controller.mixtures[schedule[block]], first=within == 0)

    # ---- between optimizer steps ----

    def begin(self) -> None:
        """Before the first step of a run that was not resumed."""
        if not self._losses and self.state.global_step == 0:
            self._measure("start")

    def after_step(self) -> None:
        """Measure, and decide, what is due after the optimizer steps done so far; the same on every rank."""
        settings, done = self.args, self.state.global_step
        number, place = divmod(done - settings.prior_steps, settings.mixing_rounds_every)
        is_last = done >= settings.max_steps
        if self.controller.decides_at_every_step and not is_last and self.sampler is not None:
            self.sampler.set_proportions(self.controller.proportions, after=done - 1)
        if number < 0:
            return
        schedule = self.controller.learn_schedule(number)
        block, within = divmod(place, settings.learn_steps)
        if place == 0 or is_last:
            self._measure("round end" if number or place else "prior end")
            if number and not is_last and self.controller.decides_at_round_end:
                self.controller.on_round(self._losses)
                self._decided(done)
        elif within == 0 and 0 < block <= len(schedule):
            before = self._losses
            self._measure("probe")
            group = schedule[block - 1]
            shares = realised_shares(self.controller.mixtures[group], self.rows_per_step, settings.learn_steps)
            self.controller.on_probe(group, shares, before, self._losses)
            if block == len(schedule):
                self.controller.on_round(self._losses)
                self._decided(done)

    def _decided(self, done: int) -> None:
        assert self.sampler is not None
        proportions = self.controller.proportions
        first = self.sampler.set_proportions(proportions, after=done - 1)
        record: dict[str, Any] = {"step": done, "event": "update", "first_step": first}
        record["proportions"] = [float(value) for value in proportions]
        if self.controller.matrix is not None:
            record["matrix"] = self.controller.matrix.tolist()
        self._records.append(record)
        self._write()

    def _measure(self, event: str) -> None:
        """Validation losses as they are now, logged and recorded."""
        if self.validation is None:
            return
        losses = self.validation.losses()
        self._losses = losses.tolist()
        for name, loss in zip(self.groups, self._losses, strict=True):
            self.show(f"validation/{name}_loss", loss)
        self.show("validation/mean_loss", float(losses.mean()))
        self._records.append({"step": self.state.global_step, "event": event, "losses": self._losses})
        self._write()

    def _write(self) -> None:
        """`mixing.json` as it stands; rank 0 alone."""
        if not self.args.should_save:
            return
        settings, validation = self.args, self.validation
        write_json(
            Path(settings.output_dir) / RECORD,
            {
                "controller": settings.controller,
                "groups": self.groups,
                "proportions": self.controller.result.tolist(),
                "history": [] if self.sampler is None else self.sampler.history,
                "records": self._records,
                "cost": {
                    "probe_steps": self.controller.probe_steps,
                    "validation_measurements": 0 if validation is None else validation.measurements,
                    "validation_rows": 0 if validation is None else validation.measurements * len(validation.chosen),
                    "validation_seconds": 0.0 if validation is None else round(validation.seconds, 3),
                },
            },
        )

    def prepare_batches(self, batches: list[dict[str, Any]]) -> None:
        assert self.sampler is not None
        step = self.state.global_step
        proportions = self.sampler.proportions_at(step)
        self._intended += proportions
        for place, name in enumerate(self.groups):
            self.show(f"mixture/{name}_proportion", float(proportions[place]))
            self.show(f"mixture/{name}_intended_fraction", float(self._intended[place] / (step + 1)))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._read_signals(batches)
        return batches, num_items

    def _read_signals(self, batches: list[dict[str, Any]]) -> None:
        """The controllers that decide at every step read the rows of the step, before the model learns them."""
        settings, step = self.args, self.state.global_step
        if settings.controller == "doremi" and step >= settings.prior_steps:
            self.excess = self.excess or ExcessLoss(self, str(settings.reference_model))
            self.controller.on_step(*self.excess.losses(batches, len(self.groups)))
        elif settings.controller == "doge" and step >= settings.prior_steps:
            self.alignment = self.alignment or GradientAlignment(
                self,
                self.eval_dataset,
                column=str(self.group_column),
                names=self.groups,
                batch_size=settings.per_device_eval_batch_size * settings.world_size,
                seed=settings.sampling_seed,
            )
            rate = float(self.lr_scheduler.get_last_lr()[0])
            self.controller.on_step(*self.alignment.measure(batches, step), learning_rate=rate)

    # ---- checkpoints ----

    def method_state(self) -> dict[str, Any]:
        validation = self.validation
        return {
            "controller": self.controller.state(),
            "history": [] if self.sampler is None else [list(entry) for entry in self.sampler.history],
            "losses": self._losses,
            "intended": self._intended.tolist(),
            "records": self._records,
            "validation": None if validation is None else [validation.measurements, validation.seconds],
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.controller.load(state["controller"])
        self._history, self._losses, self._records = state["history"], state["losses"], state["records"]
        self._intended = np.array(state["intended"])
        if self.sampler is not None:
            self.sampler.load_history(self._history)
        if self.validation is not None and state["validation"] is not None:
            self.validation.measurements, self.validation.seconds = state["validation"]

    def _layout(self) -> dict[str, Any]:
        return {**super()._layout(), "groups": self.groups, "max_steps": self.args.max_steps}


class _BetweenSteps(TrainerCallback):
    """Calls the trainer before a checkpoint of the step is written."""

    def __init__(self, trainer: AioliTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_step()
