"""One run at a time in a folder: a second one is refused with who is there, a killed one is told of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.errors import ResumeError
from posttrain.run import run
from posttrain.training import folder_lock
from posttrain.training.folder_lock import OWNER_FILE, only_run
from tests.config.recipes import SFT, changed, write

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys, time; from pathlib import Path; from posttrain.training.folder_lock import only_run\n"
    "with only_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    """A process that writes to `tmp_path / out`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_told_who_writes_there_and_touches_nothing(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(folder_lock, "_SECONDS", 0.2)
    recipe = write(tmp_path, changed(SFT, {"trainer.output_dir": str(tmp_path / "out")}))
    with pytest.raises(ResumeError) as refused:
        run(recipe)
    told, owner = str(refused.value), f"process {holder.pid} on {os.uname().nodename} since "
    assert f"{tmp_path / 'out'}: another run writes to this folder (got '{owner}" in told
    assert "choose another trainer.output_dir" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".run.lock", OWNER_FILE}


def test_after_a_kill_the_next_run_goes_on_and_says_whose_folder_it_was(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    told: list[str] = []
    with only_run(tmp_path / "out", say=told.append):
        owner = json.loads((tmp_path / "out" / OWNER_FILE).read_text())
    assert owner["process"] == os.getpid()
    (line,) = told
    assert f"process {holder.pid} on" in line and "ended here without cleaning up" in line
    assert not (tmp_path / "out" / OWNER_FILE).exists()
    with only_run(tmp_path / "out", say=told.append):
        pass
    assert len(told) == 1  # a run that ended in order is not told of


@pytest.mark.parametrize("content", ["", "[]", "{}", "\x00"])
def test_a_damaged_note_of_the_owner_stops_nobody(tmp_path, content):
    (tmp_path / OWNER_FILE).write_text(content)
    told: list[str] = []
    with only_run(tmp_path, say=told.append):
        pass
    assert "a run that did not say which ended here" in told[0]
