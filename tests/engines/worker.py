"""One process of `test_gradients`: every method under the engine of the launch; leaves what rank 0 gathered.

Usage: -m tests.engines.worker FOLDER, with FOLDER/spec.json:
{"model", "rows", "runs": [{"key", "case"}], "resume": {name: case}}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from posttrain.console import quiet_libraries
from posttrain.evaluation.generate import evaluate
from posttrain.evaluation.results import EvalSettings
from posttrain.registry import METHODS
from posttrain.seam.running_engine import shard_facts
from tests.batteries.runs import build, dataset, losses, marked_right, replay


class Catch(TrainerCallback):
    """Gathers the whole gradient that the first optimizer step uses, and what the engine holds."""

    def __init__(self, trainer: Any):
        self.trainer, self.found, self.facts = trainer, {}, {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.facts = shard_facts(self.trainer)
        if self.trainer.is_deepspeed_enabled:  # the update is made inside the backward pass
            step, engine = self.trainer.deepspeed.step, self.trainer.deepspeed

            def caught(*args: Any, **kwargs: Any) -> Any:
                self.gather()
                return step(*args, **kwargs)

            engine.step = caught

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if not self.trainer.is_deepspeed_enabled:
            self.gather()

    def gather(self) -> None:
        for name, parameter in self.trainer.model.named_parameters():
            value = self.whole(parameter)
            if value is not None:
                self.found[name] = value.detach().clone().contiguous()

    def whole(self, parameter: Any) -> Any:
        if self.trainer.is_deepspeed_enabled:
            from deepspeed.utils import safe_get_full_grad

            return safe_get_full_grad(parameter)
        return parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad


def with_adapters(case: dict[str, Any]) -> dict[str, Any]:
    """The case with `lora: true` replaced by what it stands for."""
    if not case.get("lora"):
        return dict(case)
    adapters = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    rest = {name: value for name, value in case.items() if name != "lora"}
    return {**rest, "trainer_kwargs": {**case.get("trainer_kwargs", {}), "peft_config": adapters}}


def make(run: dict[str, Any], spec: dict[str, Any], folder: Path, **layout: Any) -> Any:
    """The trainer of a case; policy methods replay rollouts."""
    data, case = dataset(), dict(run["case"])
    if "prompts" in case:
        data = data.select(case.pop("prompts"))
    if METHODS[run["key"]].generates:
        case |= {"reward": marked_right, "trainer_kwargs": {"rollout_func": replay}, "shuffle_dataset": False}
    case = with_adapters(case)
    rows = {"per_device_train_batch_size": spec["rows"], "gradient_accumulation_steps": 2}
    trainer = build(run["key"], Path(spec["model"]), folder, data=data, **{**rows, **layout, **case})
    if trainer.is_deepspeed_enabled and "stage3_param_persistence_threshold" not in run:
        # DeepSpeed keeps parameters below 100 000 elements whole: all of a tiny model.
        plugin = trainer.accelerator.state.deepspeed_plugin
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return trainer


def resume(name: str, case: dict[str, Any], spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Largest difference between the saved weights of a whole run and those of a stopped and continued one."""
    layout = {"per_device_train_batch_size": 4, "max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    case = with_adapters(case)
    key = case.pop("key", name)
    if METHODS[key].generates:
        layout["steps_per_generation"] = 4
    saved, logged = [], []
    for start in (None, str(folder / "checkpoint-3")):
        torch.manual_seed(9)
        trainer = build(key, Path(spec["model"]), folder, **layout, **case)
        trainer.train(resume_from_checkpoint=start)
        place = folder / ("whole" if start is None else "rest")
        trainer.save_model(str(place))
        trainer.accelerator.wait_for_everyone()
        saved.append(load_file(next(place.glob("*model.safetensors"))))
        logged.append(losses(trainer))
    difference = max(float((saved[0][name] - saved[1][name]).abs().max()) for name in saved[0])
    return {"weights": difference, "losses": logged[0][-2:] == logged[1][-2:]}


def evaluated(spec: dict[str, Any], folder: Path) -> list[str]:
    """Greedy completions of a trained model, one a round and rank, so that the ranks finish at different times."""
    trainer = make({"key": "sft", "case": {}}, spec, folder, max_steps=1, learning_rate=1e-5)
    trainer.train()
    settings = EvalSettings(num_prompts=11, max_new_tokens=24, batch_size=1)
    rows = dataset()
    found = evaluate(
        trainer.model,
        trainer.processing_class,
        rows,
        marked_right,
        settings=settings,
        accelerator=trainer.accelerator,
    )
    return [sample["completion"] for sample in found.samples]


def main(folder: Path) -> None:
    """Run every case of `folder/spec.json` and leave `facts.json` and `<case>.safetensors` there."""
    torch.set_num_threads(1)
    quiet_libraries()
    spec = json.loads((folder / "spec.json").read_text())
    runs, resumed = [], {}
    for number, run in enumerate(spec["runs"]):
        try:
            trainer = make(run, spec, folder / f"run{number}", max_steps=1, max_grad_norm=0.0)
            catch = Catch(trainer)
            trainer.add_callback(catch)
            trainer.train()
        except Exception as error:  # noqa: BLE001 - the other methods are tested all the same
            runs.append({"error": f"{type(error).__name__}: {error}"})
            continue
        runs.append({"engine": catch.facts, "loss": losses(trainer)[-1], "norm": trainer.last_grad_norm})
        if trainer.accelerator.is_main_process:
            save_file(catch.found, folder / f"{number}.safetensors")
    completions = evaluated(spec, folder / "evaluated")
    for name, case in spec["resume"].items():
        resumed[name] = resume(name, case, spec, folder / name)
    if trainer.accelerator.is_main_process:
        world = {"num_processes": trainer.accelerator.num_processes}
        world["distributed_type"] = trainer.accelerator.distributed_type.value
        left = {"world": world, "runs": runs, "completions": completions, "resumed": resumed}
        (folder / "facts.json").write_text(json.dumps(left))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    # torch 2.13: a gloo group that is taken down while a model still refers to it can wait for ever.
    sys.stdout.flush()
    os._exit(0)
