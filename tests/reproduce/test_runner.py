"""A miniature study end to end: interrupted, continued, decided, written; and one that fails."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.errors import DataError, ResumeError
from posttrain.reproduce.command import reproduce
from posttrain.reproduce.problems import problems
from posttrain.reproduce.results import read_results
from posttrain.reproduce.runner import Interrupts
from tests.config.recipes import changed
from tests.reproduce.studies import CLAIMS, study_folder

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
STAGES = ("warm_up", "grpo", "hpt")
# 85 to 175 s on two cores shared with other work, most of it the imports of five processes.
pytestmark = pytest.mark.timeout(900)


def call(*overrides: str, **options) -> tuple[bool, str]:
    """`reproduce` in this process: whether it went well, and what it printed."""
    shown = io.StringIO()
    done = reproduce("hpt", overrides, console=Console(file=shown, width=200), **options)
    return done, shown.getvalue()


def run_ids(folder: Path) -> dict[str, str]:
    """Stage -> name of its finished run, new each time it is trained."""
    files = sorted(folder.glob("seed-*/*/finished.json"))
    return {str(file.parent.relative_to(folder)): json.loads(file.read_text())["run"] for file in files}


def children_of(folder: Path) -> list[int]:
    """Processes that train below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended meanwhile
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """A study whose parent was ended by a signal after the first seed, and that was then continued."""
    root = tmp_path_factory.mktemp("study")
    study_folder(root)
    before = Path.cwd()
    os.chdir(root)
    folder = root / "runs" / "reproduce" / "hpt" / "main"
    command = [sys.executable, "-m", "posttrain", "reproduce", "hpt", "--jobs", "1"]
    parent = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 400
        # Seed 1 has begun, so there is a child to be ended in order.
        while not (folder / "seed-1" / "log.txt").exists():
            assert parent.poll() is None and time.monotonic() < deadline, parent.communicate()[0]
            time.sleep(0.001)  # the log exists a moment before the child does
        parent.send_signal(signal.SIGTERM)
        shown = parent.communicate(timeout=60)[0]
        facts = {"root": root, "folder": folder, "first": shown, "code": parent.returncode}
        facts |= {"left": children_of(root), "ids": run_ids(folder)}
        facts["done"], facts["second"] = call(jobs=2)
        yield facts
    finally:
        parent.kill()
        os.chdir(before)


def test_an_interrupt_ends_the_children_and_says_how_to_go_on(study):
    assert study["code"] != 0 and "stopped; the same command continues" in study["first"]
    assert "Traceback" not in study["first"]
    assert study["left"] == []
    assert set(study["ids"]) >= {f"seed-0/{stage}" for stage in STAGES}
    assert f"seed 0: hpt done (3 of 3 stages); {500 // 15} % of the steps" in study["first"]


def test_what_was_finished_is_not_repeated(study):
    assert study["done"] is True
    now = run_ids(study["folder"])
    assert set(now) == {f"seed-{seed}/{stage}" for seed in (0, 1, 2) for stage in STAGES}
    assert {name: now[name] for name in study["ids"]} == study["ids"]
    assert f"{len(study['ids'])} of 9 stages were finished by an earlier call" in study["second"]
    # Both calls count.
    times = json.loads((study["folder"] / "times.json").read_text())
    assert set(times["seed_seconds"]) == {"0", "1", "2"} and times["wall_seconds"] > times["seed_seconds"]["0"] > 1


def test_each_seed_has_its_own_start_and_order(study):
    starts = [study["folder"] / f"seed-{seed}/warm_up/initial/tiny/model.safetensors" for seed in (0, 1, 2)]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in starts}) == 3
    runs = [json.loads((study["folder"] / f"seed-{seed}/hpt/run.json").read_text()) for seed in (0, 1, 2)]
    assert [run["seeds"]["trainer"] for run in runs] == [0, 1, 2]
    assert [run["world"]["cpu_threads"] for run in runs] == [1, 1, 1]


def test_the_results_are_those_of_the_runs(study):
    path = study["root"] / "recipes" / "hpt" / "RESULTS.json"
    assert problems(path) == []
    result = read_results(path).studies["main"]
    assert (result.command, result.changed, result.seeds) == ("posttrain reproduce hpt", [], [0, 1, 2])
    for variant in result.variants:
        for seed in variant.seeds:
            folder = study["folder"] / f"seed-{seed.seed}" / variant.stage
            after = json.loads((folder / "eval.json").read_text())["after"]
            assert seed.values == {"accuracy": after["accuracy"]} and seed.num_prompts == 8
            assert seed.run_sha256 == hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()
            logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            last = [event["cost/generated_tokens"] for event in logged if "cost/generated_tokens" in event][-1]
            assert seed.generated_tokens == last and seed.trained_prompts == 4.0
            if variant.stage == "hpt":
                curve = [event["gate/sft_fraction"] for event in logged if "gate/sft_fraction" in event]
                assert (seed.changes["fewer"].first, seed.changes["fewer"].last) == (curve[0], curve[-1])
    assert result.variants[0].seeds[0].demonstrations == 0.0
    assert sum(item.num_runs for item in result.environments) == 9  # three seeds of the warm-up and two variants


def test_the_results_name_no_machine(study):
    for path in (study["root"] / "recipes" / "hpt" / "RESULTS.json", study["folder"] / "REPORT.md"):
        text = path.read_text()
        assert str(study["root"]) not in text and os.uname().nodename not in text
        assert not re.search(r"/(?:home|root|tmp|work)/", text)


def test_the_report_shows_every_variant_and_claim(study):
    text = (study["folder"] / "REPORT.md").read_text()
    for part in ("HPT solves more.", "HPT, gate 0", "It needs fewer demonstrations.", "Nothing can be concluded."):
        assert part in text
    for image in re.findall(r"\((plots/\w+\.png)\)", text):
        assert (study["folder"] / image).read_bytes().startswith(b"\x89PNG")
    assert {path.stem for path in (study["folder"] / "plots").iterdir()} == {
        "differences",
        "evaluation",
        "rollouts",
        "gate_sft_fraction",
    }


def test_a_finished_study_is_only_written_again(study):
    before, times = run_ids(study["folder"]), (study["folder"] / "times.json").read_bytes()
    report = study["folder"] / "REPORT.md"
    report.unlink()
    done, shown = call()
    assert done and run_ids(study["folder"]) == before and report.exists()
    assert (study["folder"] / "times.json").read_bytes() == times
    assert "it took " in shown and " minutes on " in shown  # known from the results


def test_other_seeds_do_not_reach_the_repository(study):
    path = study["root"] / "recipes" / "hpt" / "RESULTS.json"
    before = path.read_bytes()
    done, shown = call(seeds=[0, 1])
    assert done and path.read_bytes() == before
    assert "run with changes (seeds [0, 1])" in shown
    own = read_results(study["folder"] / "RESULTS.json").studies["main"]
    assert own.seeds == [0, 1] and own.command == "posttrain reproduce hpt --seeds 0,1"


def test_other_settings_do_not_overwrite_the_runs(study):
    with pytest.raises(ResumeError, match="other settings"):
        call("trainer.learning_rate=0.5")
    with pytest.raises(ResumeError, match="the eval block was changed after this run was finished"):
        call("eval.num_prompts=4")


def test_a_metric_that_was_not_logged_is_named_with_the_nearest(study):
    claims = study["root"] / "recipes" / "hpt" / "claims.yaml"
    written = claims.read_text()
    try:
        study_folder(study["root"], claims=changed(CLAIMS, {"claims.1.metric": "gate/sft_fractoin"}))
        with pytest.raises(DataError) as refused:
            call()
        assert "needs two logged values of gate/sft_fractoin, there are 0" in str(refused.value)
        assert "Perhaps you mean 'gate/sft_fraction'." in str(refused.value)
        study_folder(study["root"], claims=changed(CLAIMS, {"metric": "per_group.2 digits.accuracy"}))
        with pytest.raises(DataError, match="has no per_group.2 digits.accuracy .*Perhaps you mean '1 digit'"):
            call()
    finally:
        claims.write_text(written)


def test_two_calls_do_not_write_in_one_folder(study):
    import fcntl

    with (study["folder"] / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ResumeError, match="another reproduction, or what it started, still writes here"):
            call()


def test_a_dry_run_runs_nothing(tmp_path, monkeypatch):
    study_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    done, shown = call(dry_run=True)
    assert done and not (tmp_path / "runs").exists()
    for part in (
        "shared preparation: warm_up (sft, 1 steps)",
        "variant HPT, gate 0: hpt, 2 steps of 2 prompts",
        "3 runs (seeds 0, 1, 2) of 3 stages, 15 optimizer steps",
        "its time is not measured yet; it should be at most 20 minutes",
    ):
        assert part in shown


def test_a_failing_run_shows_its_error_and_starts_no_further_seed(tmp_path, monkeypatch):
    """A mistake that only the checks of the run find: the task has no such option."""
    study_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    done, shown = call("data.train.options.digits=99", jobs=1)
    assert done is False
    assert "seed 0 failed (exit code 2); the end of its log:" in shown
    assert "arithmetic.digits" in shown and "failed: seed 0." in shown
    assert not (tmp_path / "runs/reproduce/hpt/main/seed-1").exists()
    assert not (tmp_path / "recipes/hpt/RESULTS.json").exists()


@pytest.mark.parametrize("sign", Interrupts.SIGNALS)
def test_a_signal_is_kept_until_a_child_that_is_being_started_is_known(sign):
    before, started = signal.getsignal(sign), []
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            os.kill(os.getpid(), sign)
            started.append("the child")
        with interrupts.held(raises=False):
            os.kill(os.getpid(), sign)
        assert (started, interrupts.noted) == (["the child"], True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), sign)
            time.sleep(1.0)
    assert signal.getsignal(sign) == before
