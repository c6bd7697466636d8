"""A miniature study as files, and a made-up result of one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from posttrain.reproduce.claims import load_claims
from posttrain.reproduce.results import ClaimResult, SeedResult, StudyResult, decision_of, recipe_hash, spread_of
from tests.config.recipes import write

_TRAINER = {
    "per_device_train_batch_size": 8,
    "max_steps": 2,
    "learning_rate": 0.01,
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
}
_DATA = {
    "train": {"task": "arithmetic", "size": 32, "seed": 1, "options": {"digits": 1}},
    "eval": {"task": "arithmetic", "size": 8, "seed": 2, "options": {"digits": 1, "split": "eval"}},
    "max_prompt_length": 64,
}
_EVAL = {"num_prompts": 8, "max_new_tokens": 8, "at_start": False, "every_steps": 1, "verifier": "exact"}
RECIPE: dict[str, Any] = {
    "model": {"tiny": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64}},
    "data": _DATA,
    "rollout": {"num_generations": 4, "max_completion_length": 24, "rewards": ["exact"]},
    "eval": _EVAL,
    "trainer": _TRAINER,
    "stages": [
        {"name": "warm_up", "method": {"name": "sft"}, "eval": None, "trainer": {**_TRAINER, "max_steps": 1}},
        {"name": "grpo", "start_from": "warm_up", "method": {"name": "grpo"}},
        {"name": "hpt", "start_from": "warm_up", "method": {"name": "hpt", "switch_gate": 0.0}},
    ],
}
CLAIMS: dict[str, Any] = {
    "paper_claim": "HPT reaches 52.7 where GRPO reaches 43.1.",
    "setting": "A model of no size on sums of one digit.",
    "seeds": [0, 1, 2],
    "variants": ["grpo", {"stage": "hpt", "label": "HPT, gate 0"}],
    "claims": [
        {"name": "beats_grpo", "statement": "HPT solves more.", "treatment": "hpt", "baselines": ["grpo"]},
        {
            "kind": "change",
            "name": "fewer",
            "statement": "It needs fewer demonstrations.",
            "variant": "hpt",
            "metric": "gate/sft_fraction",
            "direction": "falls",
        },
    ],
    "notes": "Nothing can be concluded.",
}


def study_folder(root: Path, *, claims: dict[str, Any] = CLAIMS, recipe: dict[str, Any] = RECIPE) -> Path:
    """Write `recipes/hpt/{claims,reproduce}.yaml` below `root`; returns the claims file."""
    folder = root / "recipes" / "hpt"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reproduce.yaml").unlink(missing_ok=True)
    values = copy.deepcopy(recipe)
    values["trainer"]["output_dir"] = "runs/elsewhere"
    write(folder, values, "reproduce.yaml")
    return write(folder, claims, "claims.yaml")


def made_up_result(claims_file: Path, values: dict[str, list[float]], ends: list[tuple[float, float]]) -> StudyResult:
    """A result with these accuracies of each variant, and these ends of the curve of the last variant."""
    study = load_claims(claims_file)
    variants = []
    for stage, label in study.variants.items():
        seeds = [
            SeedResult(
                seed=seed,
                values={"accuracy": value},
                accuracy_stderr=0.02,
                num_prompts=100,
                unscored=0,
                failed=0,
                per_group={"easy": {"accuracy": value, "accuracy_stderr": 0.02, "num_prompts": 100}},
                changes={"fewer": {"first": pair[0], "last": pair[1], "num_values": 8}} if stage == "hpt" else {},
                trained_prompts=4.0,
                generated_tokens=1000.0,
                demonstrations=0.0 if stage == "grpo" else 3.0,
                demonstration_tokens=None,
                seconds=12.5,
                run_sha256="0" * 64,
            )
            for seed, value, pair in zip(study.block.seeds, values[stage], ends, strict=True)
        ]
        variants.append(
            {
                "stage": stage,
                "label": label,
                "trainer": stage,
                "stages": [{"name": stage, "trainer": stage, "steps": 2, "prompts_per_step": 2.0}],
                "steps": 2,
                "prompts": 4.0,
                "unequal": None,
                "seeds": seeds,
                "spread": spread_of(seeds, "accuracy"),
            }
        )
    result = StudyResult(
        study="main",
        paper={"title": "A title", "arxiv": "2509.04419", "year": 2025},
        **{name: getattr(study.block, name) for name in ("paper_claim", "setting", "notes", "metric", "seeds")},
        seeds_reach="A seed decides everything.",
        command="posttrain reproduce hpt",
        changed=[],
        date="2026-01-31",
        environments=[{"versions": {"torch": "2.13.0"}, "git": None, "world": {}, "num_runs": 6}],
        hardware={"cpu": "a processor", "cores": 2, "device": "cpu"},
        minutes={"wall": 11.6, "summed": 22.0, "limit": 20, "jobs": 2},
        recipe="reproduce.yaml",
        recipe_sha256=recipe_hash(study.recipe),
        preparation=[{"name": "warm_up", "trainer": "sft", "steps": 1, "prompts_per_step": 8.0}],
        variants=variants,
        claims=[],
    )
    by_stage = {variant.stage: variant for variant in result.variants}
    decided = [
        ClaimResult(definition=claim.model_dump(), decision=decision_of(claim, by_stage, "accuracy"))
        for claim in study.claims
    ]
    return result.model_copy(update={"claims": decided})
