"""Model folders spoilt by rule: each ends with a line for the user when it is checked."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.config.recipes import checked
from tests.fuzz.harness import survive, told
from tests.fuzz.test_recipes import value

FILES = ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json", "model.safetensors"]
STATEMENTS = [
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ 1 / (messages|length - messages|length) }}",
    "{% for i in range(10 ** 18) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro a(n) %}{{ a(n + 1) }}{% endmacro %}{{ a(0) }}",
    "{% macro b(n) %}{% if n %}{{ b(n - 1) }}{{ b(n - 1) }}{% endif %}{% endmacro %}{{ b(50) }}",
    "{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}",
    "{{ 'x' * 10 ** 9 }}",
    "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{{ missing.field.field }}",
    "{{ messages[99].content }}",
    "{% include 'other' %}",
    "{{ messages.__class__ }}",
    "{% if %}",
    "{{ 'x'|center(10 ** 8) }}",
    "\x00",
]


def spoil(folder: Path, chance: random.Random) -> None:
    """Change one file of a model folder."""
    kind = chance.random()
    if kind < 0.2:
        parts = [chance.choice(STATEMENTS) for _ in range(chance.randint(1, 2))]
        (folder / "chat_template.jinja").write_text("".join(parts))
        return
    file = folder / chance.choice(FILES)
    if kind < 0.65 and file.suffix == ".json":
        values: Any = json.loads(file.read_text())
        place = values
        while True:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
                place = place[key]
                continue
            break
        if chance.random() < 0.15:
            del place[key]
        else:
            place[key] = value(chance)
        file.write_text(json.dumps(values))
        return
    raw = file.read_bytes()
    at = chance.randrange(len(raw))
    junk = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 30)))
    ways = [raw[:at], b"", raw[:at] + junk + raw[at + len(junk) :], b"\xef\xbb\xbf" + raw, junk, b"\0" * len(raw)]
    ways += [b"null", b"[]", b"[" * 100000, raw[:8] + raw[at:], raw + junk]
    if chance.random() < 0.1:
        file.unlink()
        return
    file.write_bytes(chance.choice(ways))


@pytest.mark.slow
def test_spoilt_model_folders(tiny_dir: Path, tmp_path: Path):
    def attempt(name: str) -> Any:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_dir, folder)
        spoil(folder, random.Random(f"models {name}"))
        return checked(tmp_path, "sft", {"model": {"path": str(folder)}}).errors

    outcomes = survive([str(number) for number in range(220)], attempt)
    print(told(outcomes))
    assert not any(one.is_fault for one in outcomes), told(outcomes)
    assert sum(one.kind == "refused" for one in outcomes) > 80
