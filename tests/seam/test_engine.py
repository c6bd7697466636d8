"""How trl builds its engine, and the seeds it gets; tests/rollouts has the engine itself."""

from __future__ import annotations

import inspect

from trl.generation import vllm_client, vllm_generation

from posttrain.seam.engine import engine_seed


def test_plain_trl_seeds_the_engine_by_the_process_alone():
    source = inspect.getsource(vllm_generation.VLLMGeneration)
    assert "seed=accelerator.process_index // self.tensor_parallel_size" in source.replace(
        "self.accelerator", "accelerator"
    )


def test_plain_trl_has_no_weight_transfer_on_a_cpu_and_repeats_what_failed():
    source = inspect.getsource(vllm_client.VLLMClient)
    assert "raise NotImplementedError" in source and 'device.type != "cuda"' in source
    assert "total=5" in source and 'allowed_methods=["POST", "GET"]' in source


def test_runs_and_processes_have_seeds_of_their_own():
    seeds = [engine_seed(run, process) for run in (1, 2) for process in (0, 1)]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**32 for seed in seeds)
