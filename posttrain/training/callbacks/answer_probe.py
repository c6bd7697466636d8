"""What a model in training thinks of given answers: their mean log-probability, logged every so many steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.evaluation.answer_scores import encode_rows, mean_logps


class AnswerProbe(TrainerCallback):
    """Logs `answers/<set>_logp`; where the rows have paraphrases also `_paraphrases_logp` and, of both, `_forms_logp`.

    Measured before the first step, after every `every_steps` optimizer steps, and after the last, on every rank alike;
    a resumed run does not measure again where it goes on from. Training is not affected: see `answer_scores.score`.

    Args:
        trainer: whose model is measured and whose log takes the numbers.
        probes: rows by the name of the set, see `answer_scores.encode_rows`.
        every_steps: optimizer steps between two measurements.
        batch_size: answers of a forward.
        chat_template_kwargs: variables of the template, as given to the trainer.
    """

    def __init__(
        self,
        trainer: Any,
        probes: Mapping[str, Any],
        *,
        every_steps: int,
        batch_size: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        self.trainer, self.every_steps, self.batch_size = trainer, every_steps, batch_size
        tokenizer = trainer.processing_class
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        variables = dict(chat_template_kwargs or {})
        self.rows = {
            name: encode_rows(tokenizer, dataset, name=f"probe {name}", with_perturbed=False, **variables)
            for name, dataset in probes.items()
        }
        self._ahead: dict[str, float] | None = None

    def measure_before_zero3(self) -> None:
        """Measure before `train()` what is logged at its begin; with ZeRO-3 inside `seam.sharding.gathered_weights`.

        deepspeed 0.19: a forward between the preparation of the engine and the first step spoils the backward pass.
        """
        self._ahead = self._values()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called once for each `train()`, on every rank."""
        if state.global_step == 0:
            self._log(self._values() if self._ahead is None else self._ahead)
            self._ahead = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after each optimizer step on every rank."""
        if state.global_step % self.every_steps == 0 or state.global_step >= state.max_steps:
            self._log(self._values())

    def _values(self) -> dict[str, float]:
        found: dict[str, float] = {}
        with self.trainer.accelerator.autocast():
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            for name, rows in self.rows.items():
                logps = mean_logps(model, rows, pad=self.pad, batch_size=self.batch_size)
                found[f"answers/{name}_logp"] = logps.pop("label")
                found |= {f"answers/{name}_{kind}_logp": value for kind, value in logps.items()}
        return found

    def _log(self, found: dict[str, float]) -> None:
        # Not the trainer's own `log`: trl 1.16 puts the training metrics gathered so far into whatever it logs.
        # transformers 5.17: logging takes back the order to log that the step may have, so it is given again.
        waiting = self.trainer.control.should_log
        Trainer.log(self.trainer, found)
        self.trainer.control.should_log = waiting
