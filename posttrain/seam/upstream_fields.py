"""What the fields inherited from transformers 5.17 and TRL 1.16 may hold, and which recipe key decides them.

Upstream validates them hardly at all (`GRPOConfig(loss_type="x", epsilon=-1, beta="abc")` is accepted), so the ranges
stand here. Enum fields and fields whose metadata names choices need no entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Block = Literal["method", "rollout", "trainer", "hub"]


@dataclass(frozen=True)
class Range:
    """Limits of one field: numbers by ge/gt/le/lt, names by choices; `never` lists values without a meaning."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] | None = None
    never: tuple[Any, ...] = ()


_COUNT = Range(ge=1)
_POSITIVE = Range(gt=0)
_NOT_NEGATIVE = Range(ge=0)
_UNIT = Range(ge=0, le=1)
_SEED = Range(ge=0, lt=2**32)
_PORT = Range(ge=1, le=65535)
_REPORTERS = (
    "none all azure_ml clearml codecarbon comet_ml dagshub dvclive flyte kubeflow mlflow neptune swanlab tensorboard "
    "trackio wandb"
)


def _names(text: str) -> Range:
    return Range(choices=tuple(text.split()))


# Key: field name, or "Class.field" where two upstream configs give one name different meanings.
UPSTREAM_RANGES: dict[str, Range] = {
    # transformers.TrainingArguments
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "num_train_epochs": _POSITIVE,
    "max_steps": Range(ge=-1, never=(0,)),  # transformers reads 0 as "use num_train_epochs"
    "learning_rate": _POSITIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": Range(ge=0, lt=1),
    "adam_beta2": Range(ge=0, lt=1),
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "label_smoothing_factor": Range(ge=0, lt=1),
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "eval_delay": _NOT_NEGATIVE,
    "eval_accumulation_steps": _COUNT,
    "save_steps": _POSITIVE,
    "save_total_limit": _COUNT,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _COUNT,
    "dataloader_multiprocessing_context": _names("fork spawn forkserver"),
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
    "log_level": _names("detail debug info warning error critical passive"),
    "log_level_replica": _names("detail debug info warning error critical passive"),
    "report_to": _names(_REPORTERS),
    "torch_compile_mode": _names("default reduce-overhead max-autotune max-autotune-no-cudagraphs"),
    "include_num_input_tokens_seen": Range(choices=("all", "non_padding", "no", True, False)),
    "debug": Range(choices=("", "underflow_overflow", "tpu_metrics_debug")),
    # shared by GRPOConfig and SFTConfig
    "router_aux_loss_coef": _NOT_NEGATIVE,
    "pad_to_multiple_of": Range(ge=1, choices=("auto",)),
    "SFTConfig.loss_type": _names("nll dft"),
    "GRPOConfig.loss_type": _names("grpo dr_grpo dapo bnpo cispo sapo luspo vespo"),
    "SupervisedConfig.train_sampling_strategy": _names("random sequential"),
    # SFTConfig
    "max_length": _COUNT,
    "dataset_num_proc": _COUNT,
    "truncation_mode": _names("keep_start"),
    "packing_strategy": _names("bfd bfd_split wrapped"),
    # GRPOConfig: rollout
    "num_generations": Range(ge=2, never=(None,)),
    "num_generations_eval": _COUNT,
    "max_completion_length": Range(ge=1, never=(None,)),
    "generation_batch_size": _COUNT,
    "steps_per_generation": _COUNT,
    "temperature": _POSITIVE,
    "top_p": Range(gt=0, le=1),
    "top_k": _NOT_NEGATIVE,
    "min_p": _UNIT,
    "repetition_penalty": _POSITIVE,
    "cache_implementation": _names(
        "static offloaded_static sliding_window hybrid hybrid_chunked offloaded_hybrid offloaded_hybrid_chunked "
        "dynamic offloaded quantized paged"
    ),
    "max_tool_calling_iterations": _COUNT,
    "num_completions_to_print": _COUNT,
    "vllm_mode": _names("colocate server"),
    "vllm_model_impl": _names("auto vllm transformers"),
    "vllm_server_port": _PORT,
    "vllm_group_port": _PORT,
    "vllm_server_timeout": _POSITIVE,
    "vllm_gpu_memory_utilization": Range(gt=0, le=1),
    "vllm_max_model_length": _COUNT,
    "vllm_tensor_parallel_size": _COUNT,
    "vllm_importance_sampling_mode": _names("token_truncate token_mask sequence_truncate sequence_mask"),
    "vllm_importance_sampling_clip_max": _POSITIVE,
    "vllm_importance_sampling_clip_min": _NOT_NEGATIVE,
    "vllm_importance_sampling_cap": _POSITIVE,
    "off_policy_mask_threshold": _NOT_NEGATIVE,
    # GRPOConfig: objective
    "beta": _NOT_NEGATIVE,
    "num_iterations": _COUNT,
    "epsilon": _NOT_NEGATIVE,
    "epsilon_high": _NOT_NEGATIVE,
    "delta": Range(gt=1),
    "sapo_temperature_neg": _POSITIVE,
    "sapo_temperature_pos": _POSITIVE,
    "vespo_k_pos": _NOT_NEGATIVE,
    "vespo_lambda_pos": _NOT_NEGATIVE,
    "vespo_k_neg": _NOT_NEGATIVE,
    "vespo_lambda_neg": _NOT_NEGATIVE,
    "importance_sampling_level": _names("token sequence"),
    "multi_objective_aggregation": _names("sum_then_normalize normalize_then_sum"),
    "scale_rewards": _names("group batch none"),
    "ref_model_mixup_alpha": Range(gt=0, le=1),
    "ref_model_sync_steps": _COUNT,
    "top_entropy_quantile": Range(gt=0, le=1),
    "entropy_coef": _NOT_NEGATIVE,
    "entropy_coef_min": _NOT_NEGATIVE,
    "entropy_coef_max": _NOT_NEGATIVE,
    "entropy_coef_delta": _NOT_NEGATIVE,
    "entropy_target": _NOT_NEGATIVE,
}

ROLLOUT_FIELDS = frozenset(
    {
        "num_generations",
        "num_generations_eval",
        "max_completion_length",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "generation_kwargs",
        "chat_template_kwargs",
        "cache_implementation",
        "ds3_gather_for_generation",
        "max_tool_calling_iterations",
        "mask_truncated_completions",
        "use_transformers_continuous_batching",
        "transformers_continuous_batching_config",
        "verifier",
        "use_vllm",
        "vllm_mode",
        "reward_weights",
    }
)

_NO_EVAL = "nothing: evaluation is by generation, set in the eval block"
_ALL_TRAINED = "nothing: the demonstration is trained, the prompt is not"
_NO_PART = "nothing: the unified estimator has no such part"

# Fields that a recipe writes somewhere else, or not at all; "Class.field" holds for that class and its children.
SET_BY: dict[str, str] = {
    "use_vllm": "rollout.engine",
    "vllm_mode": "rollout.mode",
    "reward_weights": "rollout.rewards (weight of each entry)",
    "PolicyConfig.changing_shares": "rollout.prompt_shares",
    "push_to_hub": "hub.push",
    "hub_model_id": "hub.repo_id",
    "hub_private_repo": "hub.private",
    "hub_strategy": "hub.strategy",
    "hub_revision": "hub.revision",
    "hub_always_push": "nothing: a push waits for the one before it",
    "hub_token": "the environment variable HF_TOKEN (a token never belongs into a recipe)",
    "model_init_kwargs": "the model block",
    "trust_remote_code": "model.trust_remote_code",
    "resume_from_checkpoint": "trainer.resume",
    "chat_template_path": "the tokenizer of model.path",
    "eos_token": "the tokenizer of model.path",
    "pad_token": "the tokenizer of model.path",
    "dataset_text_field": "data.train.columns",
    "label_names": "nothing: the trainers fix it",
    "remove_unused_columns": "nothing: the trainers need their columns",
    "dataset_kwargs": "the data block",
    "fsdp": "the accelerate config file (accelerate launch --config_file)",
    "fsdp_config": "the accelerate config file (accelerate launch --config_file)",
    "deepspeed": "the accelerate config file (accelerate launch --config_file)",
    "parallelism_config": "the accelerate config file (accelerate launch --config_file)",
    "local_rank": "the launcher (accelerate launch)",
    "do_train": "nothing: `posttrain train` always trains",
    "do_eval": "the eval block",
    "do_predict": "nothing: there is no prediction pass",
    "auto_find_batch_size": "trainer.per_device_train_batch_size",
    "PolicyConfig.loss_type": "method.preset",
    "PolicyConfig.importance_sampling_level": "method.reference_policy and method.stabilization_mask",
    "PolicyConfig.scale_rewards": "method.advantage_estimator",
    "PolicyConfig.multi_objective_aggregation": "rollout.rewards (summed, then compared within the group)",
    "PolicyConfig.delta": "method.epsilon_dual",
    "PolicyConfig.sapo_temperature_neg": _NO_PART,
    "PolicyConfig.sapo_temperature_pos": _NO_PART,
    "PolicyConfig.vespo_k_pos": _NO_PART,
    "PolicyConfig.vespo_lambda_pos": _NO_PART,
    "PolicyConfig.vespo_k_neg": _NO_PART,
    "PolicyConfig.vespo_lambda_neg": _NO_PART,
    "PolicyConfig.top_entropy_quantile": _NO_PART,
    "PolicyConfig.off_policy_mask_threshold": _NO_PART,
    "PolicyConfig.use_adaptive_entropy": _NO_PART,
    "PolicyConfig.entropy_coef_min": _NO_PART,
    "PolicyConfig.entropy_coef_max": _NO_PART,
    "PolicyConfig.entropy_coef_delta": _NO_PART,
    "PolicyConfig.entropy_target": _NO_PART,
    "use_transformers_paged": "rollout.use_transformers_continuous_batching",
    "vllm_importance_sampling_cap": "rollout.vllm_importance_sampling_clip_max",
    "eval_strategy": "eval.every_steps",
    "eval_steps": "eval.every_steps",
    "eval_delay": "eval.every_steps",
    "eval_on_start": "eval.at_start",
    "per_device_eval_batch_size": "eval.batch_size",
    "num_generations_eval": "eval.num_generations",
    "bf16_full_eval": _NO_EVAL,
    "fp16_full_eval": _NO_EVAL,
    "eval_accumulation_steps": _NO_EVAL,
    "eval_do_concat_batches": _NO_EVAL,
    "eval_use_gather_object": _NO_EVAL,
    "eval_packing": _NO_EVAL,
    "include_for_metrics": _NO_EVAL,
    "batch_eval_metrics": _NO_EVAL,
    "prediction_loss_only": _NO_EVAL,
    "load_best_model_at_end": _NO_EVAL,
    "metric_for_best_model": _NO_EVAL,
    "greater_is_better": _NO_EVAL,
    "SupervisedConfig.completion_only_loss": _ALL_TRAINED,
    "SupervisedConfig.assistant_only_loss": _ALL_TRAINED,
    "SupervisedConfig.truncation_mode": "nothing: a demonstration is never cut, rows over max_length are refused",
    "PolicyConfig.train_sampling_strategy": "trainer.shuffle_dataset",
    "PolicyConfig.length_column_name": "nothing: prompts are not grouped by length",
    "SupervisedConfig.length_column_name": "nothing: rows are not grouped by length",
}


def upstream_block(name: str) -> Block:
    """Recipe block of a field inherited from transformers or TRL: rollout, hub or trainer."""
    if name in ROLLOUT_FIELDS or name.startswith("vllm_"):
        return "rollout"
    return "hub" if name == "push_to_hub" or name.startswith("hub_") else "trainer"
