"""In an environment with the core dependencies only: import every module, and ask for what is not there.

    .venv-bare/bin/python scripts/bare.py FOLDER

`scripts/bare.sh` makes the environment and runs this; FOLDER is for what the commands write.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import posttrain
from posttrain import errors

ROOT = Path(__file__).resolve().parents[1]
# Arguments of `posttrain` -> the extra that its one line names.
ASKS_FOR = {
    ("eval", "{folder}/model", "--suite", "arc_easy"): "eval",
    ("serve", "recipes/grpo/smoke.yaml"): "vllm",
    ("check", "recipes/grpo/smoke_vllm.yaml"): "vllm",
    ("train", "recipes/grpo/smoke_vllm.yaml", "trainer.output_dir={folder}/run"): "vllm",
    ("train", "recipes/grpo/smoke_vllm.yaml", "rollout.mode=server", "trainer.output_dir={folder}/run"): "vllm",
    ("check", "recipes/sft/smoke.yaml", "data.train.task=null", "data.train.reasoning_gym=leg_counting"): "tasks",
    ("check", "recipes/sft/smoke.yaml", "model.tiny=null", "model.package=smollm2-135m-instruct"): "smollm2",
    ("check", "recipes/sft/smoke.yaml", "trainer.optim=adamw_bnb_8bit"): "qlora",
}


def unexpected_packages() -> list[str]:
    """Packages of extras that are here although nobody asked for them: they would hide what this is looking for."""
    return [name for name in errors.EXTRAS if errors.is_installed(name)]


def failed_imports() -> list[str]:
    """Modules that cannot be imported although they need no extra."""
    failed = []
    for module in pkgutil.walk_packages(posttrain.__path__, "posttrain."):
        if module.name.removeprefix("posttrain.") in errors.NEED_EXTRAS or module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed.append(f"{module.name}: {error}")
    return failed


def silent_commands(folder: Path) -> list[str]:
    """Commands whose answer is not one line that names the extra."""
    wrong = []
    for command, extra in ASKS_FOR.items():
        arguments = [part.format(folder=folder) for part in command]
        done = subprocess.run(
            [sys.executable, "-m", "posttrain", *arguments],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        # `check` warns of what the machine lacks, since the run may start elsewhere; everything else stops.
        if f"of the extra {extra!r}" not in " ".join(said.split()) or "Traceback" in said:
            wrong.append(f"posttrain {' '.join(arguments)}: exit {done.returncode}, {said[-600:]}")
        elif command[0] != "check" and done.returncode != 2:
            wrong.append(f"posttrain {' '.join(arguments)}: exit {done.returncode} instead of 2")
    return wrong


def main() -> int:
    """0 if nothing was found."""
    folder = Path(sys.argv[1])
    found = [f"{name} is here, so this environment is not bare" for name in unexpected_packages()]
    found += failed_imports()
    found += silent_commands(folder)
    print("\n".join(found) or "bare: every module is imported, and what is missing is named")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
