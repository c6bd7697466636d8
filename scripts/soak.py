"""Kills training runs at random moments and compares what they end with: see scripts/soak.sh.

A run of six optimizer steps with a checkpoint after each, of a supervised and of a policy recipe on a tiny model, is
killed with SIGKILL in a chosen phase (generation, update, save, between), started again with `resume: auto`, and must
end with the weights of the run that nobody disturbed, bit for bit. After every kill each complete checkpoint is held
against its manifest. The phase is what the killed process itself wrote last, into one byte of shared memory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("between", "generation", "update", "save")
RECIPES = {"supervised": ROOT / "recipes/sft/smoke.yaml", "policy": ROOT / "recipes/hpt/smoke.yaml"}
OVERRIDES = ["trainer.max_steps=6", "trainer.save_steps=1", "trainer.save_total_limit=3", "trainer.logging_steps=1"]
OVERRIDES += ["eval=null", "data.eval=null", "trainer.gradient_accumulation_steps=1"]
# Policy runs hold rollouts in flight between two of these checkpoints.
POLICY = ["trainer.steps_per_generation=2", "trainer.per_device_train_batch_size=8"]
LOADED = [
    "posttrain.run",
    "posttrain.training.stage",
    "posttrain.seam.policy.trainer",
    "posttrain.seam.supervised.trainer",
]


def train(recipe: str, overrides: list[str], phases: str) -> None:
    """One attempt, in a process of its own that tells in which phase it is; what it prints goes to a file."""
    import torch

    from posttrain.run import run
    from posttrain.seam.policy.trainer import PolicyTrainer
    from posttrain.seam.supervised.trainer import SupervisedTrainer

    torch.set_num_threads(1)
    with open(f"{phases}.log", "ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    with open(phases, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)

    def mark(trainer: Any, method: str, phase: int) -> None:
        original = getattr(trainer, method)

        @wraps(original)
        def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
            before, shared[0] = shared[0], phase
            shared[phase] = (shared[phase] + 1) % 256  # how often it was entered
            try:
                return original(self, *args, **kwargs)
            finally:
                shared[0] = before

        setattr(trainer, method, marked)

    for trainer in (PolicyTrainer, SupervisedTrainer):
        mark(trainer, "training_step", PHASES.index("update"))
        mark(trainer, "_save_checkpoint", PHASES.index("save"))
    mark(PolicyTrainer, "_generate_single_turn", PHASES.index("generation"))
    run(recipe, overrides)


class Soak:
    """Runs of one recipe."""

    def __init__(self, kind: str, folder: Path, generator: random.Random):
        self.kind, self.folder, self.random = kind, folder / kind, generator
        self.folder.mkdir()
        self.phases = [phase for phase in PHASES if kind == "policy" or phase != "generation"]
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(LOADED)

    def start(self, name: str) -> tuple[Any, mmap.mmap]:
        output, phases = self.folder / name, self.folder / f"{name}.phase"
        phases.write_bytes(bytes(8))
        overrides = [f"trainer.output_dir={output}", *OVERRIDES, *(POLICY if self.kind == "policy" else [])]
        with phases.open("r+b") as file:
            shared = mmap.mmap(file.fileno(), 8)
        process = self.context.Process(target=train, args=(str(RECIPES[self.kind]), overrides, str(phases)))
        process.start()
        return process, shared

    def whole(self) -> dict[str, Any]:
        """Weights of the run that nobody disturbs."""
        process, _ = self.start("whole")
        process.join()
        if process.exitcode:
            sys.exit(f"soak: the undisturbed {self.kind} run ended with {process.exitcode}")
        return self.weights("whole")

    def weights(self, name: str) -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.folder / name / "model" / "model.safetensors")

    def kill(self, name: str, wanted: str) -> str | None:
        """Kill an attempt in a phase; the phase it was in, or None if it ended before."""
        process, shared = self.start(name)
        index, times = PHASES.index(wanted), self.random.randint(1, 5)
        wait = self.random.random() * {"between": 0.004, "generation": 0.05, "update": 0.008, "save": 0.04}[wanted]
        steps = PHASES.index("update")
        while process.is_alive():
            entered = shared[steps] if wanted == "between" else shared[index]
            if shared[0] == index and entered >= times:
                time.sleep(wait)
                break
            time.sleep(0.0002)
        phase = PHASES[shared[0]]
        process.kill()
        process.join()
        return phase if process.exitcode == -9 else None

    def round(self, name: str, wanted: str, whole: dict[str, Any]) -> tuple[str | None, list[str]]:
        """One kill and what follows; the phase, and what was wrong."""
        from posttrain.seam.checkpoint.manifest import damage
        from posttrain.seam.checkpoint.state import complete_checkpoints

        phase = self.kill(name, wanted)
        folder = self.folder / name
        wrong = [f"{path}: {damage(path)}" for path in complete_checkpoints(folder) if damage(path)]
        process, _ = self.start(name)
        process.join()
        if process.exitcode:
            log = self.folder.joinpath(f"{name}.phase.log").read_text(errors="replace")[-2000:]
            return phase, [*wrong, f"{folder}: the second attempt ended with {process.exitcode}: {log}"]
        ended = self.weights(name)
        if any(not bool((ended[key] == whole[key]).all()) for key in whole):
            wrong.append(f"{folder}: other weights than those of the undisturbed run")
        return phase, wrong


def main() -> int:
    """Print the figures as JSON; status 1 if a run did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills of each of the two runs, at least")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, found, wrong, missed = time.time(), {}, [], 0
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        for kind in RECIPES:
            soak = Soak(kind, Path(folder), random.Random(f"{options.seed}/{kind}"))
            whole, counts, number = soak.whole(), Counter(), 0
            least = -(-options.kills // len(soak.phases))
            while min(counts[phase] for phase in soak.phases) < least and number < 4 * options.kills:
                phase, problems = soak.round(f"run-{number}", min(soak.phases, key=lambda name: counts[name]), whole)
                wrong += problems
                missed += phase is None
                counts.update([phase] if phase else [])
                number += 1
                print(f"{kind} {number}: killed in {phase}; {'; '.join(problems) or 'bit-equal'}", file=sys.stderr)
            short = [phase for phase in soak.phases if counts[phase] < least]
            wrong += [f"{kind}: fewer than {least} kills in {phase}" for phase in short]
            found[kind] = dict(counts)
    figures = {"kills": found, "ended_before_the_kill": missed, "wrong": wrong}
    print(json.dumps({**figures, "seconds": round(time.time() - started)}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
