"""A disk that is full and one that became read-only, on a file system of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from posttrain.seam.checkpoint.manifest import damage
from tests.faults.launched import Launched, finished, needs_linux, write_recipe

pytestmark = [pytest.mark.faults, needs_linux]


@pytest.fixture
def disk(tmp_path: Path):
    """A folder that is a file system of 8 MB, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all that is free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
    return ballast


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def whole_checkpoints(output: Path) -> list[int]:
    found = [path for path in output.glob("checkpoint-*") if damage(path) is None]
    return sorted(int(path.name.split("-")[1]) for path in found)


def test_a_disk_that_fills_up_costs_no_checkpoint(disk, tmp_path):
    output = disk / "run"
    recipe = write_recipe(tmp_path, output=output, steps=100_000)
    with Launched(recipe) as run:
        run.wait_for_step(output, 9)
        before = whole_checkpoints(output)
        ballast = fill(disk)
        status, seconds = run.end()
    last = run.text().strip().splitlines()[-1]
    assert status == 2 and "Traceback" not in run.text()
    assert "No space left on device" in last and "Make room or give write permission" in last
    after = whole_checkpoints(output)
    assert after and set(before[-1:]) <= set(after)
    print(f"disk full: told after {seconds:.1f} s, whole checkpoints before {before}, after {after}")
    ballast.unlink()
    assert f"continuing from {output}/checkpoint-{after[-1]}" in finished(recipe, f"trainer.max_steps={after[-1] + 2}")


def test_a_disk_that_becomes_read_only_costs_no_checkpoint(disk, tmp_path):
    output = disk / "run"
    recipe = write_recipe(tmp_path, output=output, steps=100_000)
    with Launched(recipe) as run:
        run.wait_for_step(output, 9)
        # As the kernel does after an input/output error; "remount,ro" is refused while a file is being written.
        for _ in range(200):
            done = subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True)
            if done.returncode == 0:
                break
        status, seconds = run.end()
    assert status == 2 and "Traceback" not in run.text()
    assert "Read-only file system" in run.text().strip().splitlines()[-1]
    after = whole_checkpoints(output)
    print(f"read-only: told after {seconds:.1f} s, whole checkpoints {after}")
    remount(disk, "rw")
    assert f"continuing from {output}/checkpoint-{after[-1]}" in finished(recipe, f"trainer.max_steps={after[-1] + 2}")


def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(disk, tmp_path):
    recipe = write_recipe(tmp_path, output=disk / "run", steps=4)
    remount(disk, "ro")
    with Launched(recipe) as run:
        status, _ = run.end()
    assert status == 2 and "trainer.output_dir: the folder cannot be written" in run.text()
    assert not os.path.exists(disk / "run")
