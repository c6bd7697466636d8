"""Two gloo processes give the numbers of one, and act together on what only one of them meets."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("rank_worker.py")


@pytest.fixture(scope="module")
def ranks(tiny_dir, tmp_path_factory):
    """What each of the two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(WORKER), str(tiny_dir), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tiny_dir, tiny_tokenizer):
    """The same scenarios in this process, without an accelerator."""
    spec = importlib.util.spec_from_file_location("rank_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    found = worker.run(AutoModelForCausalLM.from_pretrained(tiny_dir), tiny_tokenizer, None)
    return json.loads(json.dumps(found))


def test_there_really_were_two_processes(ranks):
    for rank in ranks:
        assert rank["num_processes"] == 2
        assert rank["distributed_type"].startswith("MULTI_")
        assert rank["wrapped"] == "DistributedDataParallel"


@pytest.mark.parametrize("name", ["greedy", "sampled", "uneven"])
def test_two_processes_give_the_numbers_of_one_on_every_rank(ranks, alone, name):
    assert alone[name]["num_samples"] > 0
    assert ranks[0][name] == alone[name]
    assert ranks[1][name] == alone[name]


def test_progress_is_reported_on_the_main_process_only(ranks):
    assert ranks[0]["greedy progress"] == [[4, 11], [8, 11], [11, 11]]
    assert ranks[0]["uneven progress"] == [[4, 9], [8, 9], [9, 9]]
    assert ranks[1]["greedy progress"] == []


def test_a_verifier_that_fails_on_one_rank_stops_both_with_its_message(ranks):
    for rank in ranks:
        assert "got NoneType" in rank["error"]


def test_a_rank_out_of_time_stops_both_after_the_same_prompts(ranks):
    for rank in ranks:
        assert (rank["partial"], rank["num_prompts"]) == (True, 2)
