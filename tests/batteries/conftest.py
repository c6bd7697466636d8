"""A tiny model that has learnt to stop: policy batteries need rollouts that end, some right and some wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.batteries.runs import build


@pytest.fixture(scope="session")
def warm_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_dir` after a few dozen supervised steps on the battery's demonstrations."""
    folder = tmp_path_factory.mktemp("warm")
    trainer = build("sft", tiny_dir, folder / "run", max_steps=40, learning_rate=1e-2, lr_scheduler_type="constant")
    trainer.train()
    trainer.save_model(str(folder / "model"))
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(folder / "model")
    return folder / "model"
