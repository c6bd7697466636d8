"""How trl builds its engine, and the seeds it gets; tests/rollouts has the engine itself."""

from __future__ import annotations

import inspect
import subprocess
import sys

from trl.generation import vllm_client, vllm_generation

from posttrain.seam.engine.link import engine_seed


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


def test_a_wait_that_cannot_be_called_off_ends_the_process_with_what_it_waited_for():
    code = "import time; from posttrain.seam.engine.client import ends_by\nwith ends_by(0.3, 'X'): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "rank 0 waited 0.3 s for X" in done.stderr
    in_time = "from posttrain.seam.engine.client import ends_by\nwith ends_by(60, 'X'): print('done')"
    done = subprocess.run([sys.executable, "-c", in_time], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "done\n"
