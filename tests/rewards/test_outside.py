"""What a reward takes from outside the record of a run, as its source shows it."""

from __future__ import annotations

import pytest

from posttrain.rewards.outside import outside_inputs


def seen(folder, source: str, **files: str) -> list[str]:
    (folder / "grade.py").write_text(source)
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    return outside_inputs("grade.py:score", folder)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import time\ndef score(): return time.time()", "line 2, reads the clock (time.time)"),
        ("from datetime import datetime as d\nx = d.now()", "line 2, reads the clock (datetime.datetime.now)"),
        ("import datetime\nx = datetime.date.today().year", "line 2, reads the clock (datetime.date.today)"),
        ("from random import choice\ndef f(): choice([1])", "line 2, draws at random (random.choice)"),
        ("import numpy as np\nx = np.random.rand()", "line 2, draws at random (numpy.random.rand)"),
        ("import os\nx = os.environ['KEY']", "line 2, reads the environment (os.environ)"),
        ("from os import getenv\nx = getenv('KEY')", "line 2, reads the environment (os.getenv)"),
        ("import urllib.request\nurllib.request.urlopen('x')", "line 2, asks the network (urllib.request.urlopen)"),
        ("import requests as r\ndef f():\n    return r.post('x')", "line 3, asks the network (requests.post)"),
        ("def score(path):\n    return open(path).read()", "line 2, opens a file under a name that it makes"),
        ("import os\ndef f(n):\n    with open(f'{n}.txt'): ...", "line 3, opens a file under a name that it makes"),
    ],
)
def test_what_comes_from_outside_is_told_with_its_line(tmp_path, source, what):
    assert seen(tmp_path, source) == [f"grade.py, {what}"]


@pytest.mark.parametrize(
    "source",
    [
        "import time\ndef score():\n    start = time.perf_counter(); time.sleep(0)",
        "import random\nrng = random.Random(0)\ndef score(): return rng.random()",
        "import numpy as np\nrng = np.random.default_rng(7)",
        "from pathlib import Path\nWORDS = Path(__file__).parent / 'words.txt'\nTEXT = open(WORDS).read()",
        "def score(): return open('words.txt').read()",
        "def score(time, random): return time.time() + random.random()",  # names of its own
        "def broken(:",
    ],
)
def test_what_the_record_holds_or_nothing_comes_of_is_not_told(tmp_path, source):
    assert seen(tmp_path, source) == []


def test_files_that_it_imports_are_read_too_and_packaged_rewards_are_not(tmp_path):
    assert seen(tmp_path, "import helper", helper="import time\nNOW = time.time()") == [
        "helper.py, line 2, reads the clock (time.time)"
    ]
    assert outside_inputs("math") == [] and outside_inputs("exact", tmp_path) == []
