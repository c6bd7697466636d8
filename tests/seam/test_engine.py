"""The engine's seed follows the run's; the engine itself is only stood in for, its tests need vLLM."""

from __future__ import annotations

import inspect

from trl.generation import vllm_generation

from posttrain.seam.engine import seeded_engine


def _seeds(monkeypatch, run_seed, process_seeds):
    monkeypatch.setattr(vllm_generation, "LLM", lambda **kwargs: kwargs["seed"], raising=False)
    with seeded_engine(run_seed):
        return [vllm_generation.LLM(model="m", seed=seed) for seed in process_seeds]


def test_plain_trl_seeds_the_engine_by_the_process_alone():
    source = inspect.getsource(vllm_generation.VLLMGeneration)
    assert "seed=accelerator.process_index // self.tensor_parallel_size" in source.replace(
        "self.accelerator", "accelerator"
    )


def test_runs_and_processes_have_seeds_of_their_own(monkeypatch):
    seeds = _seeds(monkeypatch, 1, [0, 1]) + _seeds(monkeypatch, 2, [0, 1])
    assert len(set(seeds)) == 4
    assert seeds[:2] == _seeds(monkeypatch, 1, [0, 1])


def test_the_name_is_put_back(monkeypatch):
    engine = object()
    monkeypatch.setattr(vllm_generation, "LLM", engine, raising=False)
    with seeded_engine(3):
        assert vllm_generation.LLM is not engine
    assert vllm_generation.LLM is engine
