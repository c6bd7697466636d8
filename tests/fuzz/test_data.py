"""Data files spoilt by rule: each ends with rows, or with a line that names the file."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.config.recipes import checked, numbered
from tests.fuzz.harness import survive, told
from tests.fuzz.test_recipes import value

COLUMNS = ["prompt", "answer", "solution", "self", "index", "", "²", "group", "a" * 300, "tools", "messages"]


def rows(chance: random.Random) -> list[Any]:
    """Good rows, of which some cells or whole rows are of another kind."""
    found: list[Any] = numbered(12)
    for _ in range(chance.randrange(4)):
        index = chance.randrange(12)
        if chance.random() < 0.2:
            found[index] = value(chance)
        elif isinstance(found[index], dict):
            found[index] = {**found[index], chance.choice(COLUMNS): value(chance)}
    return found


def spoilt(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw) + 1)
    junk = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
    other = raw.decode(errors="replace")
    ways = [raw] * 6 + [raw[:at], raw[:at] + junk + raw[at:], b"null", b"null\n" + raw, b"", b"\0" * 50, junk]
    ways += [other.encode("utf-16"), other.encode("utf-32"), b"\xef\xbb\xbf" + raw, raw.replace(b"\n", b"\r")]
    ways += [raw[:at] + b'"' + raw[at:], raw[:at] + rb"\ud800" + raw[at:], raw[:at] + b"9" * 5000 + raw[at:]]
    ways += [raw[:at] + b"[" * 20000 + raw[at:], gzip.compress(raw)[: at + 10], raw.replace(b":", b"::", 1)]
    ways += [raw[:at] + b"w" * 3_000_000 + raw[at:], raw.replace(b'"answer"', b'"prompt"', 1)]
    return chance.choice(ways)


def made(folder: Path, chance: random.Random) -> Path:
    """A data file of some format."""
    kind, table = chance.choice(["jsonl", "json", "csv", "tsv", "parquet", "txt"]), rows(chance)
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        whole = [row for row in table if isinstance(row, dict)][: chance.choice([0, 5, 12])]
        try:
            pq.write_table(pa.Table.from_pylist(whole), file)
        except (pa.ArrowException, OverflowError, UnicodeError):
            pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), file)
        if chance.random() < 0.5:
            file.write_bytes(spoilt(file.read_bytes(), chance))
        return file
    if kind in ("csv", "tsv"):
        text = "prompt,answer,solution\n" + "".join(
            ",".join(str(cell) for cell in row.values()) + "\n" if isinstance(row, dict) else f"{row}\n"
            for row in table
        )
        text = text.replace(",", "\t") if kind == "tsv" else text
    else:
        text = "".join(json.dumps(row) + "\n" for row in table) if kind != "json" else json.dumps(table)
    file.write_bytes(spoilt(text.encode(errors="replace"), chance))
    return file


@pytest.mark.slow
def test_spoilt_data_files(tmp_path: Path):
    def attempt(name: str) -> Any:
        file = made(tmp_path, random.Random(f"data {name}"))
        base = random.Random(name).choice(["sft", "grpo"])
        return checked(tmp_path, base, {"data.train": {"path": str(file)}}).errors

    outcomes = survive([str(number) for number in range(180)], attempt)
    print(told(outcomes))
    assert not any(one.is_fault for one in outcomes), told(outcomes)
    assert sum(one.kind == "refused" for one in outcomes) > 60
