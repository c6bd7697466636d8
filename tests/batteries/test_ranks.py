"""Every method: two gloo processes make the gradient that one process makes from the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.registry import METHODS, trained
from tests.batteries.runs import NUM_PROMPTS, relative_difference
from tests.methods.case import case_of

# One launch holds every method: minutes on a busy machine.
pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).parents[2]
# float32 sums in another order; measured differences are below 1e-6.
TOLERANCE = 1e-5
CASES = {
    "whole groups on each rank": {"num_generations": 4},
    "a group on both ranks": {"num_generations": 8, "prompts": [1]},
    "a failed group on both ranks": {"num_generations": 8, "prompts": [0]},
    "no demonstration on one rank": {"num_generations": 4, "prompts": [0, 1]},
    "no demonstration anywhere": {"num_generations": 4, "prompts": [1, 3]},
    "no rollout right anywhere": {"num_generations": 4, "prompts": [0, 2]},
}
# The last batch of an epoch is not full: the rows that fill it up on the second rank must not be trained.
SUPERVISED = {
    "an incomplete last batch": {"prompts": [0, 1, 2, 3, 4]},
    "rows of unequal length": {},
    "every row the same weight": {"loss_aggregation": "seq_mean_token_mean"},
}
RUNS = [
    {"key": key, "name": name, "case": dict(case)}
    for key, entry in trained().items()
    for name, case in {**(CASES if entry.generates else SUPERVISED), **case_of(key).ranks}.items()
    if len(case.get("prompts", range(NUM_PROMPTS))) >= case_of(key).least_prompts
    and not {*case_of(key).without} & {*case}
]


@pytest.fixture(scope="module")
def launched(warm_dir, tmp_path_factory) -> dict[int, Path]:
    """Folder of the run with one process and of the run with two; both have seen every case."""
    folders = {}
    for world, rows in ((1, 8), (2, 4)):
        folder = tmp_path_factory.mktemp(f"world{world}")
        (folder / "spec.json").write_text(json.dumps({"model": str(warm_dir), "rows": rows, "runs": RUNS}))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}"]
        command += [
            "--rdzv_backend=c10d",
            "--rdzv_endpoint=127.0.0.1:0",
            "-m",
            "tests.batteries.rank_worker",
            str(folder),
        ]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert json.loads((folder / "facts.json").read_text())["world_size"] == world
        folders[world] = folder
    return folders


@pytest.mark.parametrize("number", range(len(RUNS)), ids=[f"{run['key']}: {run['name']}" for run in RUNS])
def test_two_processes_make_the_gradients_of_one(number, launched):
    left, right = (load_file(launched[world] / f"{number}.safetensors") for world in (1, 2))
    logged = [json.loads((launched[world] / "facts.json").read_text())["losses"][number] for world in (1, 2)]
    assert relative_difference(right, left) < TOLERANCE
    assert logged[1] == pytest.approx(logged[0], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("key", list(trained()))
def test_a_run_of_several_processes_resumes_bit_equal(key, world, launched):
    """Stopped after step 3 of 5, for policy methods inside a rollout block; compared on rank 0."""
    facts = json.loads((launched[world] / "facts.json").read_text())
    assert facts["resumed"][key] == {"weights": 0.0, "losses": True}


def test_two_processes_count_the_sources_of_a_mixture_as_one_does(launched):
    one, two = (json.loads((launched[world] / "facts.json").read_text())["shares"] for world in (1, 2))
    mixed = [number for number, run in enumerate(RUNS) if run["case"].get("mixture")]
    assert all(one[number] == two[number] != {} for number in mixed)
    drawn = [sum(one[number][f"mixture/source{i}_rows"] for i in range(3)) for number in mixed]
    assert drawn == [2 if METHODS[RUNS[number]["key"]].generates else 8 for number in mixed]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("key", [key for key in trained() if case_of(key).on_ranks is not None])
def test_what_a_method_says_of_its_own_on_ranks(key, world, launched):
    facts = json.loads((launched[world] / "facts.json").read_text())
    expected = case_of(key).expected_on_ranks
    assert expected is not None and facts["own"][key] == expected(world)


def test_the_comparison_has_something_to_compare(launched):
    """Only a group-relative method whose rollouts all failed may have a zero gradient."""
    for number, run in enumerate(RUNS):
        size = sum(float((value**2).sum()) for value in load_file(launched[1] / f"{number}.safetensors").values())
        failed_only = run["case"].get("prompts") in ([0], [0, 2])
        assert (size == 0.0) == (case_of(run["key"]).learns_from_success_alone and failed_only), run
