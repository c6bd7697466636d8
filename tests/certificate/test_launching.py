"""What a launch is told, and what is refused before one: by the environment that accelerate's launcher really sets."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from ruamel.yaml import YAML

from posttrain.certificate import command, launching
from posttrain.certificate.launching import accelerate_config, lacking
from posttrain.certificate.own_config import group_of_file
from posttrain.certificate.plan import Group, groups
from posttrain.errors import ConfigError, SupportError
from posttrain.seam import sharding
from posttrain.seam.engine_file import refuse_overrides
from posttrain.seam.sharding import asked_engine, asked_offload, refuse_offload, refuse_replaced
from tests.batteries.runs import build

ROOT = Path(__file__).parents[2]
FILES = {
    "ddp": Group("ddp", "none", 2),
    "zero1": Group("zero1", "none", 2),
    "zero2": Group("zero2", "none", 2),
    "zero2_offload": Group("zero2", "optimizer", 2),
    "zero3": Group("zero3", "none", 2),
    "zero3_offload": Group("zero3", "both", 2),
    "fsdp2": Group("fsdp2", "none", 2),
}


def own_file(name: str) -> Path:
    return ROOT / "accelerate_configs" / f"{name}.yaml"


@pytest.mark.parametrize("name", FILES)
def test_the_battery_launches_what_the_files_say(name):
    assert YAML(typ="safe").load(own_file(name)) == accelerate_config(FILES[name])
    assert group_of_file(own_file(name)) == FILES[name]


def launcher_environment(config: dict, folder: Path) -> dict[str, str]:
    """What `accelerate launch` would add to the environment of its processes."""
    file = folder / "accelerate.yaml"
    file.write_text(json.dumps(config))
    args = launch_command_parser().parse_args(["--config_file", str(file), "--num_processes", "2", "script.py"])
    args, *_ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(config.get("deepspeed_config", {}))  # as launch_command
    return prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Puts this process into the environment of a launch of a group."""

    def enter(group: Group) -> None:
        for name, value in launcher_environment(accelerate_config(group), tmp_path).items():
            if name.startswith(("ACCELERATE_", "FSDP_")):
                monkeypatch.setenv(name, value)

    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    return enter


def arguments(**settings):
    return argparse.Namespace(**{"optim": "adamw_torch", **settings})


@pytest.mark.parametrize("group", groups(processes=[2])[0], ids=lambda group: group.name)
def test_what_trains_is_read_from_the_launcher_and_not_refused(group, launched):
    launched(group)
    assert asked_engine() == (None if group.engine == "ddp" else group.engine)
    assert sorted(asked_offload()) == sorted(launching.OFFLOADS[group.offload])
    refuse_offload(arguments())


@pytest.mark.parametrize(
    "group", [g for g in groups(processes=[2])[1] if g.engine.startswith("zero")], ids=lambda group: group.name
)
def test_an_offload_that_the_engine_lacks_is_refused(group, launched):
    launched(group)
    with pytest.raises(SupportError, match=f"{group.engine} has no offload of the parameters") as caught:
        refuse_offload(arguments())
    assert "\n" not in str(caught.value)


def test_an_offload_without_an_engine_is_refused(launched, monkeypatch):
    launched(Group("ddp", "none", 2))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    with pytest.raises(SupportError, match="data parallelism has no offload of the optimizer"):
        refuse_offload(arguments())


def test_an_offload_to_a_disk_is_refused(launched, monkeypatch):
    launched(Group("zero3", "both", 2))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme")
    with pytest.raises(SupportError, match=r"offload of the parameters goes to the CPU's memory alone.*got 'nvme'"):
        refuse_offload(arguments())


@pytest.mark.parametrize("name", ["sgd", "adafactor", "adamw_8bit", "lion_32bit"])
def test_an_optimizer_that_accelerate_would_replace_is_refused(name, launched):
    launched(Group("zero2", "optimizer", 2))
    with pytest.raises(SupportError, match=f"trainer.optim: would be replaced .*got '{name}'"):
        refuse_offload(arguments(optim=name))
    launched(Group("zero2", "none", 2))
    refuse_offload(arguments(optim=name))


def test_accelerate_really_replaces_it():
    """As accelerate 1.15 does; if this fails, the refusal can go."""
    import inspect

    from accelerate.utils.deepspeed import map_pytorch_optim_to_deepspeed

    source = inspect.getsource(map_pytorch_optim_to_deepspeed)
    assert "optimizer_class = DeepSpeedCPUAdam" in source and "SGD" not in source


def test_an_optimizer_passed_as_an_object_is_refused_alike(launched):
    weights = [torch.nn.Parameter(torch.zeros(2))]
    launched(Group("zero1", "optimizer", 2))
    refuse_replaced(torch.optim.AdamW(weights))
    with pytest.raises(SupportError, match="would be replaced by DeepSpeed's Adam .*got 'SGD'"):
        refuse_replaced(torch.optim.SGD(weights, lr=0.1))


@pytest.mark.parametrize("key", ["sft", "grpo"])
def test_a_trainer_asks_when_its_optimizer_is_made(key, launched, tiny_dir, tmp_path):
    trainer = build(key, tiny_dir, tmp_path)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    assert trainer.create_optimizer() is trainer.optimizer
    launched(Group("zero2", "optimizer", 2))
    with pytest.raises(SupportError, match="got 'SGD'"):
        trainer.create_optimizer()


def test_without_a_compiler_the_offloaded_optimizer_is_refused(launched, monkeypatch):
    launched(Group("zero3", "both", 2))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SupportError, match=r"needs a C\+\+ compiler \(no-such-compiler\), which is not here"):
        refuse_offload(arguments())
    assert "a C++ compiler (no-such-compiler)" in lacking(Group("zero3", "both", 2))


def test_what_the_machine_lacks_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(launching, "is_installed", lambda name: False)
    told = lacking(Group("zero1", "none", 2))
    assert "deepspeed" in told and told.endswith("is not installed. Install it: pip install 'posttrain[deepspeed]'")
    assert lacking(Group("ddp", "none", 2)) is None
    monkeypatch.delenv(sharding.ON_CPU, raising=False)
    monkeypatch.setattr(launching, "_accelerators", lambda: 0)
    assert "FSDP needs an accelerator" in lacking(Group("fsdp2", "none", 2))
    monkeypatch.setattr(launching, "_accelerators", lambda: 1)
    assert "2 processes need 2 accelerators, and there is 1" in lacking(Group("ddp", "none", 2))


def test_a_file_that_this_machine_cannot_start_ends_the_doctor_with_a_line(monkeypatch):
    monkeypatch.setattr(launching, "is_installed", lambda name: False)
    with pytest.raises(SupportError, match=r"zero3_offload.yaml: the package deepspeed.*posttrain\[deepspeed\]"):
        command.check_gradients(None, config_file=str(own_file("zero3_offload")), console=None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"distributed_type": "MULTI_GPU", "fsdp_config": {"fsdp_offload_params": True}}, "data parallelism has no"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 0}}, "no trainer supports this engine"),
        ({"distributed_type": "FSDP", "fsdp_config": {}}, "no trainer supports this engine .*fsdp1"),
        ({"distributed_type": "MEGATRON_LM"}, "no trainer supports this engine"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2, "offload_param_device": "cpu"}},
            "zero2 has no offload of the parameters",
        ),
        (["a list"], "a mapping is expected"),
    ],
    ids=str,
)
def test_a_file_of_the_users_that_nothing_trains_with_is_refused(config, told, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps(config))
    with pytest.raises((ConfigError, SupportError), match=told):
        group_of_file(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        group_of_file(tmp_path / "missing.yaml")


def test_a_deepspeed_file_of_the_users_own_counts(tmp_path):
    zero = {"stage": 3, "offload_param": {"device": "cpu"}}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero, **AUTO}))
    file = tmp_path / "own.yaml"
    block = {"deepspeed_config_file": str(tmp_path / "zero.json")}
    file.write_text(json.dumps({"distributed_type": "DEEPSPEED", "num_processes": 8, "deepspeed_config": block}))
    assert group_of_file(file) == Group("zero3", "parameters", 2)
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero, **AUTO, "gradient_clipping": 1.0}))
    with pytest.raises(ConfigError, match=r"gradient_clipping: this would override a recipe \(got 1.0\)"):
        group_of_file(file)


AUTO = {"gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
RECIPE = {"gradient_accumulation_steps": 4, "max_grad_norm": 0.5, "per_device_train_batch_size": 2}


@pytest.fixture
def own_deepspeed(launched, monkeypatch, tmp_path):
    """Function that begins a launch with a DeepSpeed file of these values."""

    def enter(values):
        launched(Group("zero2", "none", 2))
        monkeypatch.setenv("WORLD_SIZE", "2")
        (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, **values}))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))

    return enter


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({**AUTO, "optimizer": {"type": "Lamb", "params": {"lr": "auto"}}}, "optimizer: .* Remove optimizer"),
        ({**AUTO, "scheduler": {"type": "WarmupLR"}}, "scheduler: .* Remove scheduler"),
        ({**AUTO, "curriculum_learning": {"enabled": True}}, "curriculum_learning: .* Remove"),
        ({**AUTO, "communication_data_type": "fp16"}, "communication_data_type: .*got 'fp16'"),
        ({"gradient_clipping": "auto"}, r"steps: .* means 1'\). Write .* \(the recipe says 4\)"),
        ({"gradient_accumulation_steps": 4}, r"clipping: .* means 0.0'\). Write .* \(the recipe says 0.5\)"),
        ({**AUTO, "gradient_clipping": 1.0}, "gradient_clipping: .*got 1.0"),
        ({**AUTO, "train_batch_size": 8}, "train_batch_size: .*got 8.* says 16"),
        ({**AUTO, "bf16": {"enabled": True}}, "bf16.enabled: .*got True"),
        ({**AUTO, "zero_optimization": {"stage": 3, "zero_quantized_gradients": True}}, "quantized_gradients"),
    ],
)
def test_a_deepspeed_file_that_overrides_the_recipe_is_refused(values, told, own_deepspeed):
    own_deepspeed(values)
    with pytest.raises(SupportError, match=told) as caught:
        refuse_overrides(arguments(**RECIPE, fp16=False, bf16=False))
    assert "\n" not in str(caught.value)


def test_a_deepspeed_file_that_says_the_same_is_taken(own_deepspeed):
    same = {"gradient_accumulation_steps": 4, "gradient_clipping": 0.5, "train_batch_size": 16}
    rest = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": False}, "prescale_gradients": False}
    own_deepspeed({**same, **rest, "train_micro_batch_size_per_gpu": 2})
    assert refuse_overrides(arguments(**RECIPE, fp16=False, bf16=False)) is None


def test_a_precision_or_number_of_the_accelerate_config_is_no_second_recipe(launched, monkeypatch):
    settings = {**RECIPE, "fp16": False}
    launched(Group("ddp", "none", 2))
    refuse_overrides(arguments(**settings, bf16=True))  # mixed_precision: 'no', as in accelerate_configs/
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    refuse_overrides(arguments(**settings, bf16=True))
    with pytest.raises(SupportError, match="would train in bf16, the recipe in float32"):
        refuse_overrides(arguments(**settings, bf16=False))
    launched(Group("zero2", "none", 2))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    with pytest.raises(SupportError, match="deepspeed_config.gradient_accumulation_steps: .*says 4 .got '1'"):
        refuse_overrides(arguments(**settings, bf16=False))
