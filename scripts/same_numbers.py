"""Runs every smoke recipe and keeps or compares the numbers that it makes: see scripts/same_numbers.sh."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import re
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Keys whose values are times, speeds or amounts of memory.
TIMES = re.compile(r"seconds|time\b|_time$|runtime|per_second|memory|bytes")
SHOWN = 12  # differences of one recipe


def main() -> int:
    """Exit status: 0 kept or all equal, 1 something differs, 2 a recipe failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="JSON file to keep the numbers in, or to compare with if it is there.")
    parser.add_argument("--only", nargs="*", default=[], help="Folders below recipes/; default all with a smoke.yaml.")
    options = parser.parse_args()
    recipes = sorted((ROOT / "recipes").glob("*/smoke.yaml"))
    recipes = [path for path in recipes if not options.only or path.parent.name in options.only]
    began = time.monotonic()
    made: dict[str, Any] = {}
    # Two at a time, each in a process of its own: what one run leaves in a process must not reach the next.
    with get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        for name, found in pool.imap_unordered(numbers_of, recipes, chunksize=1):
            if isinstance(found, str):
                sys.stderr.write(f"{name}: {found}\n")
                return 2
            made[name] = found
            print(f"{name}: {len(found)} files", flush=True)
    print(f"{len(made)} recipes in {time.monotonic() - began:.0f} s")
    if not options.file.exists():
        options.file.write_text(json.dumps(made, indent=0, sort_keys=True))
        print(f"kept in {options.file}")
        return 0
    kept = json.loads(options.file.read_text())
    different = [name for name in sorted(made) if not told_equal(name, kept.get(name), made[name])]
    lacking = [] if options.only else sorted(kept.keys() - made.keys())
    print("".join(f"{name}: no longer a recipe\n" for name in lacking), end="")
    print(f"{len(made) - len(different)} of {len(made)} recipes made the same numbers")
    return 1 if different or lacking else 0


def numbers_of(recipe: Path) -> tuple[str, dict[str, Any] | str]:
    """(name, file -> what it holds but for times) of one run, or (name, why it failed)."""
    from posttrain.errors import PosttrainError
    from posttrain.run import run

    name = recipe.parent.name
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            run(recipe, [f"trainer.output_dir={folder}"])
        except PosttrainError as error:
            return name, str(error)
        place = Path(folder)
        return name, {str(file.relative_to(place)): held(file) for file in sorted(place.rglob("*")) if is_kept(file)}


def is_kept(file: Path) -> bool:
    """Whether a file of a run holds numbers or texts that it made."""
    final = file.suffix == ".safetensors" and file.parent.name == "model"
    return final or file.name in ("metrics.jsonl", "eval.json") or file.parent.name == "completions"


def held(file: Path) -> Any:
    """What is compared of a file."""
    if file.suffix == ".safetensors":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    if file.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in file.read_text().splitlines()]
    return timeless(json.loads(file.read_text()))


def timeless(value: Any) -> Any:
    """The value without times; numbers as they are written, so that NaN equals NaN."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not TIMES.search(key)}
    if isinstance(value, list):
        return [timeless(item) for item in value]
    return repr(value) if isinstance(value, float) else value


def told_equal(name: str, before: Any, after: Any) -> bool:
    """Whether both are equal; where they are not, the places are printed."""
    found = list(differences(before, after, name))
    for line in found[:SHOWN]:
        print(line)
    if len(found) > SHOWN:
        print(f"{name}: and {len(found) - SHOWN} more")
    return not found


def differences(before: Any, after: Any, place: str) -> Any:
    """A line for each place where two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(before.get(key), after.get(key), f"{place} {key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{place}[{index}]")
    elif before != after:
        yield f"{place}: {str(before)[:60]} -> {str(after)[:60]}"


if __name__ == "__main__":
    sys.exit(main())
