"""The record of a reward of one's own names what it is made of."""

from __future__ import annotations

import hashlib

from posttrain.rewards.provenance import reward_files


def test_the_file_what_it_imports_and_what_it_names(tmp_path):
    contents = {
        "rewards/grade.py": "import json, helper\nfrom package import part\nWORDS = 'words.txt'\ndef score(): ...\n",
        "rewards/helper.py": "TABLE = 'table.csv'\n",
        "rewards/package/__init__.py": "",
        "rewards/package/part.py": "",
        "rewards/words.txt": "a",
        "rewards/table.csv": "b",
        "rewards/other.txt": "c",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = reward_files(["exact", "rewards/grade.py:score"], tmp_path)
    used = {name: content for name, content in contents.items() if "other" not in name}
    assert found == {name: hashlib.sha256(content.encode()).hexdigest() for name, content in used.items()}
    assert reward_files(["exact", "math"], tmp_path) == {}
