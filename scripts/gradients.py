"""The battery of `posttrain doctor --gradients`, whole: every trainer, engine, offload, number of processes and split.

    .venv/bin/python scripts/gradients.py             the whole table, most of an hour on two quiet cores
    .venv/bin/python scripts/gradients.py --covering  what the tests run: every pair of factors at least once

A stopped call goes on where it was (--folder, default runs/gradients). The page is accelerate_configs/GRADIENTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from posttrain.certificate import plan as plans
from posttrain.certificate.battery import Result, counted, run_plan
from posttrain.certificate.command import every_recipe
from posttrain.certificate.compare import TOLERANCE
from posttrain.registry import trained
from posttrain.seam.sharding import ON_CPU

ROOT = Path(__file__).resolve().parents[1]
_SELECTION = (
    "This is the selection that the tests run: every pair of engine, offload, processes, trainer and split is met at",
    "least once; what is empty was not run. Without `--covering` the same command fills the whole table.",
    "",
)
PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "peft")


def main() -> int:
    """Run what is missing, write the page; 1 where an update differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--covering", action="store_true")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gradients")
    parser.add_argument("--page", type=Path, default=ROOT / "accelerate_configs" / "GRADIENTS.md")
    asked = parser.parse_args()
    os.environ.setdefault(ON_CPU, "1")
    able, refused = plans.groups()
    trainers = list(trained())
    plan = plans.covering(trainers, able) if asked.covering else plans.whole_table(trainers, able)
    asked.folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []

    def say(text: str) -> None:
        print(text, flush=True)

    for group, cells in plan.items():
        kept = asked.folder / f"{group.name}{'.covering' if asked.covering else ''}.json"
        if not kept.exists():
            made = run_plan({group: cells}, every_recipe(ROOT / "recipes"), asked.folder, trainers=trainers, say=say)
            kept.write_text(json.dumps([result.record() for result in made]))
            shutil.rmtree(asked.folder / group.name, ignore_errors=True)
        results += [Result.of(entry) for entry in json.loads(kept.read_text())]
    asked.page.write_text(page(results, refused, is_covering=asked.covering))
    print(f"{asked.page}: {counted(results)}")
    return int(any(result.outcome in ("DIFFERS", "FAILED") for result in results))


def page(results: list[Result], refused: list[plans.Group], *, is_covering: bool) -> str:
    """The Markdown page: a line for each launch, the largest difference of each trainer in it, and the refusals."""
    keys = list(trained())
    lines = [
        "# Gradients under every engine",
        "",
        "Every trainer's smoke recipe on replayed rollouts, float32, three AdamW steps of eight rows (2x4, 4x2, 8x1:",
        "rows of a micro-batch over all processes x micro-batches). The figure is the difference of the updates from",
        "those of one process with one micro-batch, relative, of the tensor where it is largest, and the largest over",
        f"the splits that were run (their number in brackets). Equal means at most {TOLERANCE:.0e}.",
        "",
        f"Command: `scripts/gradients.py{' --covering' if is_covering else ''}`, "
        f"{datetime.datetime.now(datetime.UTC).date()}, {platform.machine()}, two gloo processes at most, no GPU:",
        "what is offloaded goes through the engine's own code to the memory it came from. "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        + ".",
        "",
        *(_SELECTION if is_covering else ()),
        f"{counted(results)}.",
        "",
        "| engine | offload | processes | " + " | ".join(f"`{key}`" for key in keys) + " |",
        "| --- | --- | --- |" + " --- |" * len(keys),
    ]
    for group in dict.fromkeys(result.group for result in results):
        shown = [entry_of([r for r in results if r.group == group and r.cell.trainer == key]) for key in keys]
        lines.append(f"| {group.engine} | {group.offload} | {group.processes} | " + " | ".join(shown) + " |")
    failed = [result for result in results if result.outcome in ("DIFFERS", "FAILED")]
    lines += ["", *(f"- {r.group.name}, {r.cell.trainer} {r.cell.shown}: {r.error or r.tensor}" for r in failed)]
    lines += ["", "Refused at the start, with any number of processes:", ""]
    told = {f"- {group.engine}, offload {group.offload}: {plans.refusal(group)}": None for group in refused}
    return "\n".join([*lines, *told]).replace("\n\n\n", "\n\n") + "\n"


def entry_of(results: list[Result]) -> str:
    """ "4e-07 (3)"; the outcome where one of them is not equal; empty where nothing was run."""
    if not results:
        return ""
    odd = [result for result in results if not result.is_equal]
    if odd:
        return odd[0].outcome if odd[0].figure is None else f"{odd[0].outcome} {odd[0].figure:.1e}"
    return f"{max(result.figure or 0.0 for result in results):.0e} ({len(results)})"


if __name__ == "__main__":
    sys.exit(main())
