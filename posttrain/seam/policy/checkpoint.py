"""What a policy run saves beyond its weights: rollouts in flight, their place in the block, the moving reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.seam.checkpoint.resumable import ResumableTrainer
from posttrain.seam.checkpoint.state import REFERENCE_FILE, read_tensors, save_file
from posttrain.seam.groups.sampler import PromptMixing
from posttrain.seam.policy.plain_rollouts import PlainRollouts
from posttrain.seam.row_use import RowUse, prompt_use


class PolicyCheckpoint(PlainRollouts, ResumableTrainer):
    """The checkpoint side of `PolicyTrainer`, and how it generates; it owns no loss."""

    args: Any
    accelerator: Any
    ref_model: Any
    num_iterations: int
    prompt_mixing: PromptMixing | None = None  # set by what attaches itself to change the shares of the prompts
    _buffered_inputs: Any
    _metrics: Any
    _step: int

    @property
    def moves_reference(self) -> bool:
        """Whether the reference model changes during training, so that checkpoints must hold it."""
        return bool(self.args.sync_ref_model)

    def _layout(self) -> dict[str, Any]:
        names = ("num_generations", "steps_per_generation", "num_iterations", "max_completion_length", "preset")
        return {**super()._layout(), **{name: getattr(self.args, name) for name in names}}

    def row_use(self) -> list[RowUse]:
        args = self.args
        if args.prompt_groups is not None or not hasattr(self.train_dataset, "__len__"):
            return []
        prompts = args.generation_batch_size // args.num_generations
        rows, is_shuffled = len(self.train_dataset), args.shuffle_dataset
        return [prompt_use(rows, prompts=prompts, num_generations=args.num_generations, is_shuffled=is_shuffled)]

    def rank_state(self) -> dict[str, Any]:
        block = self.args.steps_per_generation * self.num_iterations
        in_flight = self._buffered_inputs if self._step % block else None
        return {"step": self._step, "rollouts": in_flight, "metrics": dict(self._metrics["train"])}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        self._step, self._buffered_inputs = state["step"], state["rollouts"]
        self._metrics["train"].update(state["metrics"])

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.moves_reference and self.args.should_save:
            weights = self.accelerator.unwrap_model(self.ref_model).state_dict()
            save_file(
                {name: value.detach().cpu().clone() for name, value in weights.items()},
                Path(output_dir) / REFERENCE_FILE,
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.moves_reference:
            # trl 1.16 does not save a reference that has moved, and resumes against the initial one.
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(
                read_tensors(Path(checkpoint) / REFERENCE_FILE)
            )
