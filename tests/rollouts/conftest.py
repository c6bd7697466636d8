"""A model that vLLM's attention takes on a CPU, and one server for all tests that need a server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from posttrain.models.tiny import build_tiny

ENGINE = {"use_vllm": True, "vllm_max_model_length": 128, "vllm_gpu_memory_utilization": 0.1}


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer Llama with heads of 32; read only."""
    return build_tiny(
        tmp_path_factory.mktemp("engine"), hidden_size=64, num_layers=2, num_heads=2, intermediate_size=64, seed=0
    )


@pytest.fixture(scope="session")
def tied_dir(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the embedding as its head."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(engine_dir)
    config.tie_word_embeddings = True
    folder = tmp_path_factory.mktemp("tied")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(engine_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """A running server of `engine_dir` with a token of its own."""
    import requests

    from posttrain.rollouts.server import EngineServer, ServerSettings

    settings = ServerSettings(model=str(engine_dir), dtype="float32", max_model_length=128, seed=0)
    log = tmp_path_factory.mktemp("server") / "engine.log"
    with EngineServer(settings, log=log, is_cpu=True) as running:

        def answers() -> bool:
            headers = {"Authorization": f"Bearer {running.token}"}
            try:
                return requests.get(f"{running.url}/health", headers=headers, timeout=5).status_code == 200
            except requests.ConnectionError:
                return False

        running.wait(answers, seconds=240)
        yield running


def wait_until(condition, seconds: float) -> float:
    """Seconds until the condition held; fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - began
