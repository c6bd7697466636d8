"""The two published bugs, done to a trainer; as a module, one process of a group whose trainers have them.

Usage as a module: -m tests.certificate.seeded FOLDER, as `posttrain.certificate.worker`. A step of four micro-batches
loses one, a step of two averages each by itself.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from posttrain.certificate.worker import launched


def lose_a_micro_batch(trainer: Any) -> None:
    """The second micro-batch of every step has no gradient; with offload in ZeRO-1 and ZeRO-2 what DeepSpeed once did:
    the gradients that lie in the CPU's memory are written over instead of added to.
    """
    compute, calls = trainer.compute_loss, []

    def without(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        is_lost = len(calls) % trainer.args.gradient_accumulation_steps == 2 and not _overwrites(trainer)
        return compute(*args, **kwargs) * (0.0 if is_lost else 1.0)

    trainer.compute_loss = without
    trainer.add_callback(_Overwrite(trainer))


def _overwrites(trainer: Any) -> bool:
    return getattr(getattr(trainer.model_wrapped, "optimizer", None), "cpu_offload", False)


class _Overwrite(TrainerCallback):
    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if not _overwrites(self.trainer):
            return
        inner = self.trainer.model_wrapped.optimizer
        accumulate = inner.async_accumulate_grad_in_cpu_via_gpu

        def forgetful(parameter: Any) -> None:
            step, inner.micro_step_id = inner.micro_step_id, 0
            accumulate(parameter)
            inner.micro_step_id = step

        inner.async_accumulate_grad_in_cpu_via_gpu = forgetful


def average_each_micro_batch(trainer: Any) -> None:
    """Every micro-batch is averaged over its own tokens, and the step over micro-batches."""
    steps = trainer.args.gradient_accumulation_steps
    if hasattr(trainer, "loss_weights"):
        weigh = trainer.loss_weights
        trainer.loss_weights = lambda window: [weigh([tensors])[0] / len(window) for tensors in window]
        return
    compute = trainer.compute_loss

    def alone(*args: Any, **kwargs: Any) -> Any:
        trainer._counts = None  # counted anew, of this micro-batch
        return compute(*args, **kwargs) / steps

    trainer.compute_loss = alone


def by_layout(trainer: Any) -> None:
    """One bug or the other, by the number of micro-batches; none with one."""
    steps = trainer.args.gradient_accumulation_steps
    if steps > 1:
        (lose_a_micro_batch if steps == 4 else average_each_micro_batch)(trainer)


if __name__ == "__main__":
    launched(by_layout)
