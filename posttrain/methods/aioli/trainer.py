"""`AioliTrainer`: supervised training whose rows are drawn group by group in proportions that a controller decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from posttrain.methods.aioli.building import NEEDS_VALIDATION, build_controller, grouped_rows
from posttrain.methods.aioli.config import AioliConfig
from posttrain.methods.aioli.controllers import MixingController
from posttrain.methods.aioli.rounds import RECORD, Rounds
from posttrain.methods.aioli.signals import ExcessLoss, GradientAlignment
from posttrain.seam.checkpoint.state import write_json
from posttrain.seam.groups.sampler import GroupMixtureSampler
from posttrain.seam.groups.validation import GroupValidation
from posttrain.seam.supervised.stream_rows import EncodedStreams
from posttrain.seam.supervised.trainer import SupervisedTrainer


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
        train_dataset: rows with the column of groups, or `RowStreams`, one for each group.
        eval_dataset: held-out rows of every group. Rest as in `SupervisedTrainer`.

    Raises:
        DataError: no groups, or a single one; no validation rows where the controller needs them, or none of a group.
        ConfigError: settings that do not fit the number of groups.
    """

    config_class = AioliConfig
    needs_row_index = True
    draws_groups = True
    args: AioliConfig
    name = "Aioli"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        settings = self.args
        rows = grouped_rows(self.group_stats, column=settings.group_column)
        self.groups: list[str] = rows.names
        rows_per_step = (
            settings.per_device_train_batch_size * settings.gradient_accumulation_steps * settings.world_size
        )
        self.controller: MixingController = build_controller(
            settings, groups=self.groups, sizes=rows.sizes, rows_per_step=rows_per_step
        )
        self.validation = self._validation()
        self.rounds = Rounds(
            self.controller,
            every=settings.mixing_rounds_every,
            learn_steps=settings.learn_steps,
            prior_steps=settings.prior_steps,
            rows_per_step=rows_per_step,
            measure=None if self.validation is None else self._measure,
            last=settings.max_steps,
        )
        self.excess: ExcessLoss | None = None
        self.alignment: GradientAlignment | None = None
        self.sampler: GroupMixtureSampler | None = None
        self._intended = np.zeros(len(self.groups))
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
            held_back=settings.mixing_test_examples,
        )

    # ---- rows ----

    def train_order(self) -> GroupMixtureSampler:
        settings = self.args
        assert self.group_stats is not None
        self.sampler = self.rounds.draw(
            GroupMixtureSampler(
                self.group_stats.numbers,
                proportions=self.controller.proportions,
                rows_per_step=self.rounds.rows_per_step,
                num_steps=settings.max_steps,
                seed=settings.sampling_seed,
                lag=settings.proportions_lag,
                plan=self.rounds.planned,
            )
        )
        return self.sampler

    # ---- between optimizer steps ----

    def _measure(self) -> list[float]:
        """Validation losses as they are now, logged."""
        assert self.validation is not None
        losses = self.validation.losses()
        for name, loss in zip(self.groups, losses.tolist(), strict=True):
            self.set_metric(f"validation/{name}_loss", loss)
        self.set_metric("validation/mean_loss", float(losses.mean()))
        return losses.tolist()

    def test(self) -> None:
        """Score, after the last step, the validation rows that no decision has seen."""
        if self.validation is not None and self.validation.held_back:
            losses = self.validation.test_losses().tolist()
            for name, loss in zip(self.groups, losses, strict=True):
                self.set_metric(f"test/{name}_loss", loss)
            record = {"step": self.state.global_step, "event": "test", "test_losses": losses}
            self.rounds.records.append(record)

    def write_record(self) -> None:
        """`mixing.json` as it stands; rank 0 alone."""
        if not self.args.should_save:
            return
        validation = self.validation
        measured = 0 if validation is None else validation.measurements
        account = self.rounds.account(
            validation_measurements=measured,
            validation_rows=0 if validation is None else measured * len(validation.chosen),
            validation_seconds=0.0 if validation is None else round(validation.seconds, 3),
        )
        write_json(Path(self.args.output_dir) / RECORD, {"controller": self.args.controller, **account})

    def prepare_batches(self, batches: list[dict[str, Any]]) -> None:
        assert self.sampler is not None
        step = self.state.global_step
        proportions = self.sampler.proportions_at(step)
        self._intended += proportions
        for place, name in enumerate(self.groups):
            self.set_metric(f"mixture/{name}_proportion", float(proportions[place]))
            self.set_metric(f"mixture/{name}_intended_fraction", float(self._intended[place] / (step + 1)))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._read_signals(batches)
        return batches, num_items

    def prepare_signals(self) -> None:
        """Make what the controllers that decide at every step read; before the first step, so that what it lacks is
        told then."""
        settings = self.args
        if settings.controller == "doremi":
            self.excess = ExcessLoss(self, str(settings.reference_model))
        elif settings.controller == "doge":
            self.alignment = GradientAlignment(
                self,
                self.eval_dataset,
                column=str(self.group_column),
                names=self.groups,
                batch_size=max(self.rounds.rows_per_step, len(self.groups)),
                seed=settings.sampling_seed,
            )

    def _read_signals(self, batches: list[dict[str, Any]]) -> None:
        """The controllers that decide at every step read the rows of the step, before the model learns them."""
        step = self.state.global_step
        if step < self.args.prior_steps:
            return
        if self.excess is not None:
            self.controller.on_step(*self.excess.losses(batches, len(self.groups)))
        elif self.alignment is not None:
            rate = float(self.lr_scheduler.get_last_lr()[0])
            self.controller.on_step(*self.alignment.measure(batches, step), learning_rate=rate)

    # ---- checkpoints ----

    def method_state(self) -> dict[str, Any]:
        validation = self.validation
        return {
            "rounds": self.rounds.state(),
            "intended": self._intended.tolist(),
            "validation": None if validation is None else [validation.measurements, validation.seconds],
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.rounds.load(state["rounds"])
        self._intended = np.array(state["intended"])
        if self.validation is not None and state["validation"] is not None:
            self.validation.measurements, self.validation.seconds = state["validation"]

    def _layout(self) -> dict[str, Any]:
        found = {**super()._layout(), "groups": self.groups, "max_steps": self.args.max_steps}
        if isinstance(self.train_dataset, EncodedStreams):
            found["streams"] = self.train_dataset.rows.fingerprint()["sha256"]
        return found


class _BetweenSteps(TrainerCallback):
    """Calls the trainer before a checkpoint of the step is written."""

    def __init__(self, trainer: AioliTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.prepare_signals()
        self.trainer.rounds.begin(state.global_step)
        self.trainer.write_record()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        is_last = state.global_step >= state.max_steps
        found = self.trainer.rounds.after(state.global_step)
        if is_last:
            self.trainer.test()
        if found or is_last:
            self.trainer.write_record()
