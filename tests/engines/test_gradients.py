"""Every method under every engine it claims: two gloo processes make the gradient that one process makes.

One launch an engine, all methods inside: its whole gradient is gathered right before the update that uses it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.registry import METHODS, trained
from posttrain.seam.sharding import ON_CPU
from tests.batteries.runs import NUM_PROMPTS, relative_difference
from tests.methods.case import case_of

ROOT = Path(__file__).parents[2]
ENGINES = ("zero1", "zero2", "zero3", "fsdp2")
# float32 sums in another order; measured differences are below 1e-6.
TOLERANCE = 1e-5
POLICY = {
    "no demonstration on one rank": {"num_generations": 4},
    "a group on both ranks": {"num_generations": 8, "prompts": [1]},
}
SUPERVISED = {"rows of unequal length": {}, "an incomplete last batch": {"prompts": [0, 1, 2, 3, 4]}}
RUNS = [
    {"key": key, "name": name, "case": dict(case)}
    for key, entry in trained().items()
    for name, case in {**(POLICY if entry.generates else SUPERVISED), **case_of(key).engines}.items()
    if len(case.get("prompts", range(NUM_PROMPTS))) >= case_of(key).least_prompts
    and not {*case_of(key).without} & {*case}
]
RESUMED = {name: {"key": key, **case} for key in trained() for name, case in case_of(key).engine_resumes.items()}
pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def launched(warm_dir, tmp_path_factory):
    """engine, or "single" -> folder with the gradients and facts of every run; each is made when first asked for."""
    folders: dict[str, Path] = {}

    def folder_of(engine: str) -> Path:
        if engine not in folders:
            folders[engine] = _launch(engine, warm_dir, tmp_path_factory.mktemp(engine))
        return folders[engine]

    return folder_of


def _launch(engine: str, model: Path, folder: Path) -> Path:
    alone = engine == "single"
    spec = {"model": str(model), "rows": 4 if alone else 2, "runs": RUNS, "resume": {} if alone else RESUMED}
    (folder / "spec.json").write_text(json.dumps(spec))
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {ON_CPU: "1"} if engine == "fsdp2" else {}
    start = [sys.executable]
    if not alone:
        start += ["-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file"]
        start += [str(ROOT / "accelerate_configs" / f"{engine}.yaml")]
    command = [*start, "-m", "tests.engines.worker", str(folder)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def facts(folder: Path) -> dict:
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.parametrize("number", range(len(RUNS)), ids=[f"{run['key']}: {run['name']}" for run in RUNS])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_make_the_gradient_of_one(engine, number, launched):
    if engine not in METHODS[RUNS[number]["key"]].supports:
        pytest.skip("the registry does not claim it")
    one, two = (facts(launched(name))["runs"][number] for name in ("single", engine))
    assert "error" not in one and "error" not in two, (one, two)
    assert two["engine"]["engine"] == engine and two["engine"]["optimizer_held"] < 0.6
    assert (two["engine"]["parameters_held"] < 0.6) == (engine in ("zero3", "fsdp2"))
    left, right = (load_file(launched(name) / f"{number}.safetensors") for name in ("single", engine))
    assert relative_difference(right, left) < TOLERANCE
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-7)
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("key", RESUMED)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_stopped_run_continues_to_the_same_weights(engine, key, launched):
    """Stopped after step 3 of 5, for policy methods inside a rollout block; bit for bit."""
    assert facts(launched(engine))["resumed"][key] == {"weights": 0.0, "losses": True}


@pytest.mark.parametrize("engine", ENGINES)
def test_ranks_that_finish_their_completions_early_wait_in_step(engine, launched):
    one, two = (facts(launched(name))["completions"] for name in ("single", engine))
    assert len({len(text) for text in one}) > 1
    assert two == one
