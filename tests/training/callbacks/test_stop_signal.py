"""SIGTERM or Ctrl-C in training: a checkpoint after the step, a clear end, the same weights after continuing."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file

from posttrain.run import main, run
from posttrain.training.callbacks import stop_signal
from posttrain.training.callbacks.stop_signal import NAMES, StopSignal
from tests.config.recipes import HPT, changed, write
from tests.training.test_resuming import CHANGES

# The signal arrives while rewards are computed, if the file `now` is there: its text is the number.
VERDICT = """
import os
import signal
from pathlib import Path

NOW = Path(__file__).with_name("now")


def verdict(prompts, completions, **columns):
    if NOW.exists() and (NOW.parent / "run" / "checkpoint-2").exists():
        number = int(NOW.read_text())
        NOW.unlink()
        os.kill(os.getpid(), number)
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_continues_to_the_same_weights(number, tmp_path, capfd):
    whole, stopped = prepare(tmp_path / "whole"), prepare(tmp_path / "stopped")
    run(whole)
    (stopped.parent / "now").write_text(str(int(number)))
    before = signal.getsignal(number)
    assert main([str(stopped)]) == 128 + number
    assert signal.getsignal(number) == before
    folder = stopped.parent / "run"
    told = capfd.readouterr().err
    assert f"stopped by {NAMES[number]}, with a checkpoint after optimizer step 3. Run the same command" in told
    assert ("Ctrl-C again leaves at once" in told) == (number == signal.SIGINT)
    assert (folder / "checkpoint-3").is_dir() and not (folder / "finished.json").exists()
    assert not (folder / "model").exists()
    run(stopped)
    assert f"continuing from {folder / 'checkpoint-3'}" in capfd.readouterr().out
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


def test_a_second_ctrl_c_leaves_at_once_and_its_echo_does_not(monkeypatch, capfd):
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher passes it on
        os.kill(os.getpid(), signal.SIGTERM)  # and asks once more
        assert stop.received == signal.SIGINT
        monkeypatch.setattr(stop_signal, "ECHO_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("Ctrl-C again leaves at once") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_forked_process_leaves_the_decision_to_the_one_that_trains(capfd):
    with StopSignal() as stop:
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7 if not stop.received else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert capfd.readouterr().err == ""


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
    stop.stopped_at, stop.received = 4, signal.SIGTERM
    with pytest.raises(Exception, match="continues from there" if can_continue else "weights alone"):
        stop.raise_if_stopped(can_continue=can_continue)
