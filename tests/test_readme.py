"""The README's Python example is run as it stands; its tables are those of the registry and the results files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from posttrain.registry import METHODS, methods_table
from posttrain.reproduce.claims import studies_in
from posttrain.reproduce.ledger import BEGIN, END, ledger_table
from posttrain.reproduce.problems import problems
from posttrain.reproduce.results import read_results

README = Path(__file__).resolve().parents[1] / "README.md"
# (method, study) that has a claims file and no results -> why
NOT_MEASURED: dict[tuple[str, str], str] = {}
BLOCK = re.compile(r"<!-- example:(\w+) -->\n```\w+\n(.*?)```\n<!-- /example:\1 -->", re.DOTALL)


def test_python_example_trains_and_saves(tmp_path: Path):
    code = dict(BLOCK.findall(README.read_text(encoding="utf-8")))["python"]
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "runs" / "example" / "final" / "model.safetensors").is_file()


def test_method_table_is_the_registry():
    written = README.read_text(encoding="utf-8").split("<!-- methods -->\n")[1].split("\n<!-- /methods -->")[0]
    assert written == methods_table()


def test_ledger_is_made_from_the_results_files():
    written = README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert written == ledger_table(README.parent), "run `posttrain reproduce --ledger`"


def test_results_files_follow_from_their_own_numbers_and_are_up_to_date():
    """Schema, means, differences, intervals, verdicts and sentences; and the claims and recipe they were run with."""
    found = [line for path in (README.parent / "recipes").glob("*/RESULTS.json") for line in problems(path)]
    assert not found, "\n".join(found)


def test_every_study_is_measured():
    """A claims file without its results is a claim nobody has tested."""
    missing = []
    for key in METHODS:
        folder = README.parent / "recipes" / key
        results = read_results(folder / "RESULTS.json")
        measured = results.studies if results else {}
        missing += [(key, study) for study in studies_in(folder) if study not in measured]
    assert set(missing) == set(NOT_MEASURED), "run `posttrain reproduce`, or say in NOT_MEASURED why not"
    assert ("hpt", "main") not in missing


def _environment() -> dict[str, str]:
    # From a folder of its own, so that nothing but the installed (or this) package is found.
    return os.environ | {"PYTHONPATH": str(README.parent), "OMP_NUM_THREADS": "1"}
