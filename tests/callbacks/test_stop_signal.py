"""SIGTERM during training: a checkpoint after the step, a clear end, and the same weights after continuing."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.callbacks.stop_signal import StopSignal
from posttrain.run import main, run
from tests.config.recipes import HPT, changed, write
from tests.test_resuming import CHANGES

# The scheduler's signal arrives while rewards are computed, if the file `now` is there.
VERDICT = """
import os
import signal
from pathlib import Path

NOW = Path(__file__).with_name("now")


def verdict(prompts, completions, **columns):
    if NOW.exists() and (NOW.parent / "run" / "checkpoint-2").exists():
        NOW.unlink()
        os.kill(os.getpid(), signal.SIGTERM)
    return [float(sum(map(ord, c[0]["content"])) % 2) for c in completions]
"""
RECIPE = changed(
    HPT,
    {
        **CHANGES,
        "eval": None,
        "data.eval": None,
        "rollout.rewards": ["verdict.py:verdict"],
        "rollout.reward_workers": 0,
    },
)


def prepare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "verdict.py").write_text(VERDICT)
    return write(folder, RECIPE)


def test_a_run_that_is_asked_to_stop_saves_and_continues_to_the_same_weights(tmp_path, capsys):
    whole, stopped = prepare(tmp_path / "whole"), prepare(tmp_path / "stopped")
    run(whole)
    (stopped.parent / "now").touch()
    before = signal.getsignal(signal.SIGTERM)
    assert main([str(stopped)]) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    folder = stopped.parent / "run"
    assert (
        "stopped by SIGTERM, with a checkpoint after optimizer step 3. Run the same command" in capsys.readouterr().err
    )
    assert (folder / "checkpoint-3").is_dir() and not (folder / "finished.json").exists()
    assert not (folder / "model").exists()
    run(stopped)
    assert f"continuing from {folder / 'checkpoint-3'}" in capsys.readouterr().out
    ended, expected = (load_file(path.parent / "run" / "model" / "model.safetensors") for path in (stopped, whole))
    assert all((ended[name] == expected[name]).all() for name in expected)


def test_a_second_signal_has_its_usual_effect():
    caught = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received and not caught
            os.kill(os.getpid(), signal.SIGTERM)
            assert caught == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_set():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.received))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


@pytest.mark.parametrize("can_continue", [True, False])
def test_the_end_says_whether_it_can_be_continued(can_continue):
    stop = StopSignal()
    stop.raise_if_stopped(can_continue=can_continue)  # nothing came
    stop.stopped_at = 4
    with pytest.raises(Exception, match="continues from there" if can_continue else "weights alone"):
        stop.raise_if_stopped(can_continue=can_continue)
