"""One process of `test_reward_outcomes`: rewards that go wrong on the second rank only, and what each rank sees."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch

from posttrain.errors import RewardError
from tests.batteries.runs import build, dataset, replay

RANK = int(os.environ.get("RANK", "0"))


def short(prompts: list, completions: list, **_: Any) -> list[float]:
    """Too few values on the second rank."""
    return [1.0] if RANK else [1.0] * len(completions)


def half(prompts: list, completions: list, **_: Any) -> list[float]:
    """Raises on every second row of the second rank, called row by row."""
    if len(completions) > 1 and RANK:
        raise OSError("the whole batch")
    if RANK and completions[0][0]["content"].startswith("R"):
        raise RuntimeError("right answers")
    return [0.0] * len(completions)


def outcome(model: Path, folder: Path, **settings: Any) -> Any:
    """The logged failed fraction, or the text of the error."""
    trainer = build(
        "grpo",
        model,
        folder,
        data=dataset().select([0, 1]),
        trainer_kwargs={"rollout_func": replay},
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        max_steps=1,
        shuffle_dataset=False,
        **settings,
    )
    try:
        trainer.train()
    except RewardError as error:
        return str(error)
    return trainer.state.log_history[0]["reward/half/failed_fraction"]


def main(model: Path, folder: Path) -> None:
    """Run the cases and write what this rank saw."""
    torch.set_num_threads(1)
    seen = {
        "contract": outcome(model, folder / "a", reward=short),
        "accepted": outcome(model, folder / "b", reward=half, max_failed_fraction=0.25),
        "refused": outcome(model, folder / "c", reward=half, max_failed_fraction=0.2),
    }
    (folder / f"{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    torch.distributed.barrier()
    # torch 2.13: a gloo group that is taken down while a DDP model still refers to it can wait for ever.
    sys.stdout.flush()
    os._exit(0)
