"""Recipes with one mistake each that show without data or device, and the message that names it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import RecipeError, build_args, load
from posttrain.errors import PosttrainError, SupportError
from tests.config.recipes import BASES, REMOVE, changed, write

LORA = {"rank": 8}
# class of error: base recipe, changes, words of the message
BAD: dict[str, list[tuple[str, dict[str, Any], tuple[str, ...]]]] = {
    "keys": [
        ("grpo", {"trainer.learning_rat": 0.1}, ("trainer.learning_rat: unknown key", "trainer.learning_rate")),
        ("grpo", {"learning_rate": 0.1}, ("learning_rate: unknown key", "belongs to the block trainer")),
        ("grpo", {"trainr": {}}, ("trainr: unknown key", "Perhaps you mean trainer")),
        ("grpo", {"trainer.num_generations": 8}, ("belongs to the block rollout: rollout.num_generations",)),
        ("hpt", {"trainer.switch_gate": 0.5}, ("belongs to the block method: method.switch_gate",)),
        ("grpo", {"method.switch_gate": 0.5}, ("method.switch_gate: unknown key",)),
        ("hpt", {"method.swich_gate": 0.5}, ("method.swich_gate: unknown key", "method.switch_gate")),
        ("grpo", {"model.lora": {"r": 8}}, ("model.lora.r: unknown key", "allowed: rank, alpha, dropout")),
        ("grpo", {"model.tiny.hiden_size": 64}, ("Perhaps you mean model.tiny.hidden_size",)),
        ("grpo", {"data.train.sise": 64}, ("data.train.sise: unknown key", "data.train.size")),
        ("grpo", {"data.max_promt_length": 9}, ("Perhaps you mean data.max_prompt_length",)),
        ("grpo", {"eval.temprature": 1.0}, ("Perhaps you mean eval.temperature",)),
        ("grpo", {"hub": {"repo": "a/b"}}, ("hub.repo: unknown key", "hub.repo_id")),
        ("grpo", {"rollout.rewards": [{"nam": "exact"}]}, ("rollout.rewards.0",)),
        ("grpo", {"trainer.use_vllm": True}, ("decided by rollout.engine", "Set rollout.engine")),
        ("grpo", {"trainer.push_to_hub": True}, ("decided by hub.push",)),
        ("grpo", {"trainer.eval_strategy": "steps"}, ("decided by eval.every_steps",)),
        ("grpo", {"trainer.loss_type": "dapo"}, ("decided by method.preset",)),
        ("grpo", {"trainer.hub_token": "x"}, ("HF_TOKEN",)),
        ("grpo", {"trainer.top_entropy_quantile": 0.2}, ("not a setting of a recipe",)),
        ("sft", {"trainer.beta": 0.1}, ("trainer.beta: unknown key",)),
        ("grpo", {"method": REMOVE}, ("method: the block method is missing",)),
        ("grpo", {"method.name": REMOVE}, ("method.name: the key name is missing",)),
        ("grpo", {"data.train": REMOVE}, ("data.train: the key train is missing",)),
        ("grpo", {"rollout": REMOVE}, ("grpo needs the block rollout",)),
        ("grpo", {"rollout.rewards": REMOVE}, ("rollout.rewards: the key rewards is missing",)),
    ],
    "types": [
        ("grpo", {"rollout.num_generations": 8.5}, ("wrong type (got 8.5; allowed: int >= 2)",)),
        ("grpo", {"rollout.num_generations": 8.0}, ("got 8.0; allowed: int >= 2", "Write 8")),
        ("grpo", {"trainer.learning_rate": "1e-6"}, ("trainer.learning_rate: wrong type", "Remove the quotes")),
        ("grpo", {"trainer.bf16": "yes"}, ("trainer.bf16: wrong type", "Write true without quotes")),
        ("grpo", {"trainer.max_steps": True}, ("trainer.max_steps: wrong type (got True",)),
        ("grpo", {"trainer.beta": "abc"}, ("trainer.beta: wrong type (got 'abc'; allowed: float >= 0)",)),
        ("grpo", {"model.tiny.num_layers": "2"}, ("model.tiny.num_layers: wrong type", "Remove the quotes")),
        ("grpo", {"model.lora": 16}, ("model.lora: a mapping of keys is expected (got 16",)),
        ("grpo", {"data": None}, ("data: the block data is missing",)),
        ("grpo", {"data.train": "arithmetic"}, ("data.train: a mapping of keys is expected",)),
        ("grpo", {"rollout.rewards": "exact"}, ("rollout.rewards", "got 'exact'")),
        ("grpo", {"rollout.temperature": None}, ("rollout.temperature: null is not a value of this field",)),
        ("grpo", {"model.revision": 123}, ("model.revision: wrong type", "Put it in quotes")),
        ("hpt", {"method.soft_alpha": 0.5}, ("method.soft_alpha: wrong type", "list of float")),
        ("grpo", {"eval.at_start": 1}, ("eval.at_start: wrong type (got 1; allowed: true or false)",)),
        ("grpo", {"trainer.optim_args": ["a"]}, ("trainer.optim_args: wrong type",)),
    ],
    "ranges": [
        ("grpo", {"trainer.learning_rate": 0}, ("trainer.learning_rate: out of range (got 0; allowed: float > 0)",)),
        ("grpo", {"trainer.epsilon": -0.2}, ("trainer.epsilon: out of range (got -0.2",)),
        ("grpo", {"trainer.max_steps": 0}, ("trainer.max_steps: out of range (got 0", "not 0")),
        ("grpo", {"trainer.max_grad_norm": float("nan")}, ("trainer.max_grad_norm: not a finite number",)),
        ("grpo", {"rollout.top_p": 1.5}, ("rollout.top_p: out of range (got 1.5; allowed: float > 0 and <= 1)",)),
        ("grpo", {"rollout.num_generations": 1}, ("rollout.num_generations: out of range",)),
        ("grpo", {"trainer.lr_scheduler_type": "cosin"}, ("unknown name (got 'cosin'", "'cosine'")),
        ("grpo", {"method.preset": "dr-grpo"}, ("method.preset: unknown name", "'dr_grpo'")),
        ("hpt", {"method.switch_gate": 1.0}, ("method.switch_gate: out of range (got 1.0",)),
        ("hpt", {"method.offline_loss": "sftt"}, ("method.offline_loss: unknown name", "sft, off_policy, mix")),
        ("grpo", {"eval.temperature": -1.0}, ("eval.temperature: out of range",)),
        ("grpo", {"data.max_prompt_length": 0}, ("data.max_prompt_length: out of range",)),
        ("grpo", {"data.overlong_prompts": "ignore"}, ("data.overlong_prompts: unknown name", "error, drop")),
        ("grpo", {"model.dtype": "bf16"}, ("model.dtype: unknown name", "bfloat16")),
        ("grpo", {"method.name": "gpro"}, ("method.name: unknown method", "'grpo'")),
        ("grpo", {"trainer.report_to": "wandbb"}, ("trainer.report_to: unknown name", "'wandb'")),
        ("grpo", {"trainer.logging_steps": 0}, ("trainer.logging_steps: out of range",)),
    ],
    "cross-field": [
        ("grpo", {"trainer.num_train_epochs": 3.0}, ("trainer.num_train_epochs: not read, because max_steps",)),
        ("grpo", {"trainer.warmup_steps": 9}, ("trainer.warmup_steps: the warm-up is longer than the run",)),
        ("grpo", {"trainer.bf16": True, "trainer.fp16": True}, ("bf16 and fp16 exclude each other",)),
        ("grpo", {"rollout.mode": "server"}, ("rollout.mode: read only by vLLM", "set rollout.engine to vllm")),
        ("grpo", {"rollout.vllm_server_port": 8000}, ("rollout.vllm_server_port: read only by vLLM",)),
        ("grpo", {"rollout.verifier": "format"}, ("rollout.verifier: no reward of this name", "one of: exact")),
        ("grpo", {"rollout.rewards": [{"name": "exact", "weight": 0.0}]}, ("every reward has weight 0",)),
        ("grpo", {"rollout.rewards": ["exact", "exact"]}, ("reward 'exact' is listed twice",)),
        (
            "grpo",
            {"rollout.rewards": ["a.py:score", "b.py:score"]},
            ("rollout.rewards.1: two reward functions have this name",),
        ),
        ("grpo", {"rollout.one_step_off": True}, ("rollout.one_step_off: only a server generates",)),
        (
            "grpo",
            {
                "rollout.engine": "vllm",
                "rollout.mode": "server",
                "rollout.one_step_off": True,
                "rollout.vllm_importance_sampling_correction": False,
            },
            ("rollout.one_step_off: rollouts of older weights need the importance correction",),
        ),
        ("grpo", {"rollout.engine_devices": "1"}, ("rollout.engine_devices: read only by vLLM",)),
        (
            "grpo",
            {"rollout.engine": "vllm", "rollout.engine_devices": "1"},
            ("rollout.engine_devices: read only with a server", "set rollout.mode to server"),
        ),
        (
            "grpo",
            {"rollout.engine": "vllm", "rollout.mode": "server", "rollout.vllm_server_port": 8000},
            ("rollout.vllm_server_port: replaced by rollout.vllm_server_base_url",),
        ),
        (
            "grpo",
            {"rollout.engine": "vllm", "rollout.mode": "server", "rollout.vllm_server_base_url": "10.0.0.2"},
            ("rollout.vllm_server_base_url: not the address of a server", "http://HOST:PORT"),
        ),
        (
            "grpo",
            {"rollout.engine": "vllm", "rollout.vllm_max_model_length": 100},
            ("rollout.vllm_max_model_length", "at least 264"),
        ),
        ("grpo", {"eval.num_generations": 4}, ("greedy completions of one prompt are all the same",)),
        ("grpo", {"eval.top_p": 0.9}, ("eval.top_p: not read at temperature 0",)),
        ("grpo", {"data.eval": REMOVE}, ("eval: there are no rows to evaluate on",)),
        ("grpo", {"data.eval": BASES["grpo"]["data"]["train"]}, ("the very rows of training",)),
        ("sft", {"eval.verifier": REMOVE}, ("eval.verifier: sft has no rollout block",)),
        ("hpt", {"method.soft_alpha": [0.0, 1.0]}, ("method.soft_alpha", "feedback_mode")),
        ("hpt", {"method.switch_gate": -0.5}, ("method.switch_gate", "-1 = off")),
        ("grpo", {"method.epsilon_dual": 3.0}, ("method.epsilon_dual: the dual_clip mask needs this bound",)),
        ("grpo", {"method.shaping_gamma": 0.2}, ("method.shaping_gamma: nothing uses it without shaping",)),
        ("grpo", {"trainer.sync_ref_model": True}, ("trainer.sync_ref_model: there is no reference model",)),
        (
            "grpo",
            {"trainer.lr_scheduler_type": "reduce_lr_on_plateau"},
            ("trainer.lr_scheduler_type", "eval strategy"),
        ),
        ("grpo", {"trainer.save_steps": 2.5}, ("trainer.save_steps", "integer")),
        ("grpo", {"hub": {"push": True}}, ("hub.repo_id: pushing needs a repository",)),
        ("grpo", {"trainer.resume": "atuo"}, ("trainer.resume: no such checkpoint", "'auto'")),
    ],
    "model": [
        ("grpo", {"model": {}}, ("nothing says where the model comes from", "path, tiny, package")),
        ("grpo", {"model.path": "some/model"}, ("a model comes from one place",)),
        ("grpo", {"model": {"path": "./nowhere"}}, ("model.path: no such folder (got './nowhere')",)),
        ("grpo", {"model.revision": "main"}, ("a revision belongs to a Hub model",)),
        ("grpo", {"model.tiny.num_heads": 3}, ("model.tiny.hidden_size", "a multiple of 2 * num_heads = 6")),
        ("grpo", {"model.tiny.architecture": "lama"}, ("model.tiny.architecture: unknown name", "'llama'")),
        ("grpo", {"model.lora": {"targets": []}}, ("model.lora.targets: must not be empty",)),
        ("grpo", {"model.config_overrides": {"rope_theta": 1e4}}, ("Write the value under model.tiny",)),
        ("grpo", {"model": {"package": "smollm3"}}, ("model.package", "smollm2-135m-instruct")),
        (
            "grpo",
            {"model.dtype": "float32", "model.attn_implementation": "flash_attention_2"},
            ("flash attention has no float32 kernel",),
        ),
    ],
    "data": [
        ("grpo", {"data.train.task": "arithmetc"}, ("data.train.task: unknown task", "'arithmetic'")),
        ("grpo", {"data.train": {"size": 3}}, ("nothing says where the rows come from",)),
        ("grpo", {"data.train.path": "a/b"}, ("rows come from one place (got ['task', 'path']",)),
        ("grpo", {"data.train.size": REMOVE}, ("data.train.size: generated rows need a number",)),
        ("grpo", {"data.train.limit": 3}, ("data.train.limit: does not go with task",)),
        ("grpo", {"data.train": {"path": "./none.jsonl"}}, ("data.train.path: no such file or folder",)),
        ("grpo", {"data.train": {"path": "a/b", "columns": {"promt": "q"}}}, ("data.train.columns.promt",)),
        ("grpo", {"data.train": {"path": "a/b", "size": 3}}, ("data.train.size: does not go with path", "Use limit")),
    ],
    "reward": [
        ("grpo", {"rollout.rewards": ["exct"]}, ("rollout.rewards.0: unknown reward", "'exact'")),
        ("grpo", {"rollout.rewards": []}, ("rollout.rewards: must not be empty",)),
        ("grpo", {"rollout.rewards": [{"name": "exact", "weight": "1"}]}, ("rollout.rewards.0.weight: wrong type",)),
        ("grpo", {"rollout.rewards": ["score.py"]}, ("or file.py:function",)),
        ("sft", {"eval.verifier": "exat"}, ("eval.verifier: unknown reward", "'exact'")),
    ],
    "support": [
        ("grpo", {"job": {"nodes": 2}}, ("job: multi-node jobs are not in this version",)),
        ("sft", {"rollout": {"rewards": ["exact"]}}, ("sft learns from demonstrations and samples no rollouts",)),
        (
            "grpo",
            {"model": {"path": "a/b", "load_in_4bit": True}},
            ("weights in 4 bits cannot be trained themselves", "Add model.lora"),
        ),
        (
            "grpo",
            {"model": {"path": "a/b", "load_in_4bit": True, "lora": {"merge_on_save": True}}},
            ("an adapter cannot be merged into weights in 4 bits",),
        ),
        ("grpo", {"trainer.torch_compile": True}, ("trainer.torch_compile: not supported by the policy methods",)),
        ("grpo", {"trainer.save_strategy": "best"}, ("trainer.save_strategy: the best model is not known",)),
        ("sft", {"trainer.label_smoothing_factor": 0.1}, ("trainer.label_smoothing_factor: not supported",)),
    ],
}
CASES = [(group, *case) for group, cases in BAD.items() for case in cases]


@pytest.mark.parametrize(
    ("group", "base", "changes", "words"), CASES, ids=[f"{g}-{'+'.join(c)}" for g, _, c, _ in CASES]
)
def test_one_mistake_gives_its_message(
    group: str, base: str, changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
):
    path = write(tmp_path, changed(BASES[base], changes))
    with pytest.raises(PosttrainError) as caught:
        cfg = load(path)
        build_args(cfg, output_dir=tmp_path / "run")
    message = str(caught.value)
    for word in words:
        assert word in message
    assert not isinstance(caught.value, RecipeError), f"one mistake, but: {message}"
    assert message.startswith(str(path)), "the place comes first"
    assert (group == "support") == isinstance(caught.value, SupportError)


@pytest.mark.parametrize("base", BASES)
def test_the_recipes_that_are_broken_above_are_right(base: str, tmp_path: Path):
    cfg = load(write(tmp_path, BASES[base]))
    args = build_args(cfg, output_dir=tmp_path / "run")
    assert args.max_steps == 2 and args.learning_rate == 0.001


def test_there_are_enough_bad_recipes_of_every_class():
    counts = Counter(group for group, *_ in CASES)
    assert sum(counts.values()) >= 60 and min(counts.values()) >= 5
