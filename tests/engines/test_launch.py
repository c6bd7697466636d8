"""Every file of accelerate_configs: a supervised and a policy stage, with two gloo processes, started as users do.

Several settings end in plain data parallelism, or in two runs that know nothing of each other, with exit status 0. So
each launch is judged by what one process holds, and by the weights that data-parallel training reaches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.seam.sharding import ON_CPU

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("recipe.yaml")
ALONE = ("cpu", "single")
# Engine -> (distributed_type, most of the parameters and most of the optimizer's that one of two processes may hold).
# Parts are rounded up to equal sizes.
TOGETHER = {
    "ddp": ("MULTI_CPU", 1.0, 1.0),
    "zero1": ("DEEPSPEED", 1.0, 0.55),
    "zero2": ("DEEPSPEED", 1.0, 0.55),
    "zero3": ("DEEPSPEED", 0.55, 0.55),
    "fsdp2": ("FSDP", 0.55, 0.55),
}
ENGINES = [name for name in TOGETHER if name != "ddp"]
pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]


def launch(
    engine: str, folder: Path, *changes: str, environment: dict[str, str] | None = None, recipe: Path = RECIPE
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of a recipe with the repository's file for `engine`."""
    processes = "1" if engine in ALONE else "2"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    command += ["--config_file", str(ROOT / "accelerate_configs" / f"{engine}.yaml")]
    command += ["-m", "posttrain.run", str(recipe)]
    inherited = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment = inherited | (environment or {})
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    environment |= {ON_CPU: "1"} if engine == "fsdp2" else {}
    return subprocess.run(
        [*command, f"trainer.output_dir={folder}", *changes],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """engine -> folder of its run; each is made once, when it is first asked for."""
    folders: dict[str, Path] = {}

    def folder_of(engine: str) -> Path:
        if engine not in folders:
            folder = tmp_path_factory.mktemp(engine)
            done = launch(engine, folder)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
            folders[engine] = folder
        return folders[engine]

    return folder_of


def completions(folder: Path, name: str) -> list[str]:
    entry = json.loads((folder / "eval.json").read_text())[name]
    return [json.loads(line)["completion"] for line in (folder / entry["completions"]).read_text().splitlines()]


def world(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["world"]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("engine", TOGETHER)
def test_the_engine_asked_for_trains_and_spreads_the_model(engine, stage, runs):
    found = world(runs(engine) / stage)
    distributed_type, parameters, optimizer = TOGETHER[engine]
    assert (found["distributed_type"], found["num_processes"], found["engine"]) == (distributed_type, 2, engine)
    assert 0.4 < found["parameters_held"] <= parameters
    assert 0.4 < found["optimizer_held"] <= optimizer


@pytest.mark.parametrize("name", ALONE)
def test_one_process_trains_alone(name, runs):
    for stage in ("sft", "grpo"):
        found = world(runs(name) / stage)
        assert (found["distributed_type"], found["num_processes"], found["engine"]) == ("NO", 1, "single")
        assert found["parameters_held"] == found["optimizer_held"] == 1.0
        assert (runs(name) / stage / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_supervised_training_reaches_the_weights_of_data_parallel_training(engine, runs):
    expected = load_file(runs("ddp") / "sft" / "model" / "model.safetensors")
    found = load_file(runs(engine) / "sft" / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_the_saved_models_load_and_are_finite(engine, runs):
    folder = runs(engine)
    models = [AutoModelForCausalLM.from_pretrained(folder / stage / "model") for stage in ("sft", "grpo")]
    before, after = (dict(model.named_parameters()) for model in models)
    assert all(value.isfinite().all() for value in (*before.values(), *after.values()))
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_sees_the_whole_model(engine, runs):
    """Greedy completions of an odd number of prompts are those of data-parallel training."""
    for stage in ("sft", "grpo"):
        for name in ("before", "after") if stage == "sft" else ("before",):  # rollouts are sampled
            left, right = (completions(runs(which) / stage, name) for which in (engine, "ddp"))
            assert len(left) == 7 and left == right


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_measured_between_steps_leaves_training_alone(engine, runs):
    """Answers are measured at the start and after every step, here of the first stage."""
    left, right = (
        [json.loads(line) for line in (runs(which) / "sft" / "metrics.jsonl").read_text().splitlines()]
        for which in (engine, "ddp")
    )
    found, expected = (
        [(entry["step"], entry["answers/known_logp"]) for entry in entries if "answers/known_logp" in entry]
        for entries in (left, right)
    )
    assert [step for step, _ in found] == [0, 1, 2, 3, 4]
    assert found == [(step, pytest.approx(value, abs=1e-4)) for step, value in expected]


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() + done.stderr.splitlines() if line.startswith("error: ")]


def test_use_cpu_with_an_engine_is_refused(tmp_path):
    done = launch("zero2", tmp_path, "stages.0.trainer.use_cpu=true")
    assert done.returncode != 0
    assert len(told(done)) == 1 and "use_cpu would switch zero2 off" in told(done)[0]
    assert not (tmp_path / "sft").exists()


def test_an_engine_that_is_not_at_work_stops_the_run(tmp_path):
    """accelerate 1.15 leaves DeepSpeed out, without a word, in processes that this variable keeps to the CPU."""
    done = launch("zero2", tmp_path, environment={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode != 0
    assert len(told(done)) == 1
    assert (
        "zero2 was asked for, and the model is not trained by it (got 'processes set up for MULTI_CPU" in told(done)[0]
    )
    assert not (tmp_path / "sft" / "model").exists()
