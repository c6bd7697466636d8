"""What the batteries need to know of sasr."""

from __future__ import annotations

from pathlib import Path

import torch

from posttrain.methods.sasr.trainer import SASRTrainer

# Its first step is supervised with the defaults.
RANKS = {"a policy step": {"switch_controller": "sequential", "warmup_sft_steps": 0}}
ENGINE_RUNS = RANKS
ENGINE_RESUMES = {"sasr": {"sft_per_device_batch_size": 2}}
# A supervised step of four micro-batches fits the data.
RESUME = {"sft_per_device_batch_size": 2, "warmup_sft_steps": 1, "switch_controller": "fixed"}
LEAST_PROMPTS = 8
# There may be no policy step before or after a stop; tests/seam/policy/test_alternation.py has both.
MAY_NOT_GENERATE = True
TOLD = {"reproduce_noisy.yaml": ("refuses the demonstration or answer itself",)}


class Disagreeing(SASRTrainer):
    """Every rank would choose by itself what another does not."""

    kinds: list[int]

    def choose_step(self, global_step: int) -> str:
        return "supervised" if (global_step + self.args.process_index) % 2 else "policy"

    def on_step_chosen(self, kind: str) -> None:
        self.kinds.append(int(kind == "supervised"))


def on_ranks(model: Path, folder: Path) -> list[list[int]]:
    """Per rank, 1 for each supervised step of four: all take the kind of step that the first one chose."""
    from tests.batteries.runs import build

    Disagreeing.kinds = []
    trainer = build("sasr", model, folder, trainer_class=Disagreeing, max_steps=4, sft_per_device_batch_size=2)
    trainer.train()
    return trainer.accelerator.gather(torch.tensor([Disagreeing.kinds])).tolist()


def expected_on_ranks(world: int) -> list[list[int]]:
    return [[0, 1, 0, 1]] * world
