"""Generating the next batch while this one is trained on ("one step off").

The engine works on batch k+1 with the weights that the update of batch k begins with, so its rollouts are one update
old when they are trained on. TRL's importance correction multiplies each token by pi_now / pi_engine, both known: the
engine sends its log-probabilities, and the trainer scores the tokens before the update. Nothing else changes.
"""

from __future__ import annotations

from typing import Any

from accelerate.utils import gather_object


class GenerationAhead:
    """Knows the prompts of the next generation batch and asks the server for it early.

    The prompts follow from the sampler, the number of batches drawn and the tokenizer. What was asked for is used only
    if the batch that comes has these very prompts and the optimizer has made the steps of one batch since, no more;
    otherwise it is thrown away, counted, and generated anew.

    Args:
        trainer: a policy trainer whose engine is a server.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._client = getattr(trainer.vllm_generation, "vllm_client", None)  # on rank 0
        self._asked_at: int | None = None  # optimizer steps done when the batch in flight was asked for
        self._told = 0

    def start(self) -> None:
        """Ask for the next batch; every rank, after the weights of this one were sent."""
        local = self.next_prompts()
        prompts = gather_object(local)
        if self._client is not None and prompts:
            self._client.start_ahead(prompts[:: self.trainer.num_generations])
            self._asked_at = self.trainer.state.global_step
            self.trainer.log_metric("rollout/ahead_discarded", float(self._client.discarded - self._told))
            self._told = self._client.discarded

    def drop_stale(self) -> None:
        """Throw away a batch that is more than one update old, as after supervised steps in between."""
        if self._client is None or self._asked_at is None:
            return
        args = self.trainer.args
        usual = args.steps_per_generation * self.trainer.num_iterations / args.gradient_accumulation_steps
        if self.trainer.state.global_step - self._asked_at > usual:
            self._client.drop_ahead()
        self._asked_at = None

    def next_prompts(self) -> list[list[int]]:
        """This rank's prompts of the next generation batch, as token ids, each G times; empty after the last step."""
        trainer, args = self.trainer, self.trainer.args
        per_batch = args.steps_per_generation * trainer.num_iterations
        drawn = trainer._step // per_batch + 1
        if drawn * per_batch >= trainer.state.max_steps * args.gradient_accumulation_steps:
            return []
        rows = self._rows(drawn)
        chunk = len(rows) // args.world_size
        mine = rows[args.process_index * chunk : (args.process_index + 1) * chunk]
        prompts = trainer.prepare_prompts([trainer.train_dataset[index] for index in mine])
        return trainer._tokenize_prompts([row["prompt"] for row in prompts])[0]

    def _rows(self, number: int) -> list[int]:
        """Dataset indices of a generation batch over all ranks, in order."""
        sampler = self.trainer._epoch_sampler
        now = sampler.epoch
        repeats = self.trainer.args.steps_per_generation * self.trainer.num_iterations
        per_epoch = max(1, len(sampler) // (sampler.prompts_per_batch * sampler.num_generations * repeats))
        sampler.epoch = number // per_epoch
        try:
            block = list(sampler.blocks())[number % per_epoch]
        finally:
            sampler.epoch = now
        return [index for index in block for _ in range(sampler.num_generations)]
