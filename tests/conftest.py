"""Shared fixtures: offline environment, one thread, fixed seeds, one tiny model and tokenizer for the whole run."""

from __future__ import annotations

import gc
import os
import sys

# Before any Hugging Face import: these libraries read the environment once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from pathlib import Path

import numpy
import pytest
import torch

from posttrain.models.tiny import build_tiny

torch.set_num_threads(1)


_modules_frozen = 0


@pytest.fixture(autouse=True)
def small_heap() -> None:
    """Take what was imported out of garbage collection: each trainer collects, and would walk a million objects."""
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + 100:
        gc.collect()
        gc.freeze()
        _modules_frozen = len(sys.modules)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed Python, numpy and torch before every test, so that its outcome does not depend on the order of tests."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer, 32-wide Llama with the character tokenizer; read only."""
    return build_tiny(
        tmp_path_factory.mktemp("tiny"), hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, seed=0
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_dir: Path):
    """Tokenizer of `tiny_dir`; tests that change it must load their own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_dir)
