"""Which settings may change when a run is continued, and how those that may are put in force.

A checkpoint brings back optimizer and scheduler with the numbers they had, so that a recipe that was changed since
would train on with the old ones. Every setting stands in one of three tables: `APPLIED` is in force from the first
step on, `FREE` shapes no step, `REFUSED` would need another past. What stands in none is refused: a method's own
settings, since its state was made under them, and whatever a later release adds.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from posttrain.errors import ResumeError
from posttrain.hidden import without_secrets
from posttrain.seam.arguments import field_specs

APPLIED = frozenset(
    "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type "
    "lr_scheduler_kwargs warmup_steps max_steps num_train_epochs".split()
)
_OF_SCHEDULE = frozenset("learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps".split())
_OF_OPTIMIZER = frozenset("learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon".split())
# Schedules with a memory of their own, which cannot be moved to another rate.
_WITH_MEMORY = ("reduce_lr_on_plateau", "greedy")

FREE = frozenset(
    # What is logged, saved, evaluated and uploaded.
    "output_dir logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level "
    "include_num_input_tokens_seen log_level_replica disable_tqdm report_to run_name project trackio_space_id "
    "trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size "
    "prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
    "include_for_metrics batch_eval_metrics eval_packing bf16_full_eval fp16_full_eval save_only_model save_strategy "
    "save_steps save_on_each_node save_total_limit enable_jit_checkpoint load_best_model_at_end metric_for_best_model "
    "greater_is_better restore_callback_states_from_checkpoint push_to_hub hub_token hub_private_repo hub_model_id "
    "hub_strategy hub_always_push hub_revision debug skip_memory_metrics do_train do_eval do_predict local_rank "
    "resume_from_checkpoint log_completions log_multimodal num_completions_to_print log_unique_prompts "
    "log_completions_hub_repo num_generations_eval "
    # Memory, speed and place of the work; results differ by rounding at most.
    "torch_empty_cache_steps gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing "
    "activation_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel "
    "liger_kernel_config use_cache activation_offloading logits_budget_bytes "
    "full_determinism use_cpu dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context dataset_num_proc ddp_find_unused_parameters "
    "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout drop_zero_advantage_rows "
    "ds3_gather_for_generation cache_implementation vllm_mode vllm_model_impl vllm_enable_sleep_mode "
    "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port "
    "vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size "
    "transformers_continuous_batching_config max_failed_fraction engine_timeout_seconds engine_devices "
    # The engine is compared by its name; the columns and the model's files by the recipe.
    "fsdp fsdp_config deepspeed remove_unused_columns label_names model_init_kwargs trust_remote_code".split()
)

REFUSED = frozenset(
    # The optimizer's state belongs to one optimizer, the order of the data to one layout.
    "optim optim_args optim_target_modules per_device_train_batch_size gradient_accumulation_steps seed data_seed "
    "average_tokens_across_devices auto_find_batch_size accelerator_config parallelism_config dataloader_drop_last "
    "dataloader_in_order train_sampling_strategy length_column_name shuffle_dataset ignore_data_skip "
    "generation_batch_size steps_per_generation num_iterations num_generations "
    # What is computed.
    "label_smoothing_factor neftune_noise_alpha bf16 fp16 tf32 disable_dropout cast_lm_head_to_fp32 loss_type "
    "router_aux_loss_coef beta epsilon delta epsilon_high importance_sampling_level multi_objective_aggregation "
    "scale_rewards sync_ref_model ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile entropy_coef "
    "use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target "
    "off_policy_mask_threshold use_bias_correction_kl sapo_temperature_neg sapo_temperature_pos vespo_k_pos "
    "vespo_lambda_pos vespo_k_neg vespo_lambda_neg reward_weights verifier mask_truncated_completions "
    # What is read and what is drawn.
    "chat_template_path dataset_text_field dataset_kwargs eos_token pad_token max_length truncation_mode packing "
    "packing_strategy padding_free pad_to_multiple_of completion_only_loss assistant_only_loss max_completion_length "
    "temperature top_p top_k min_p repetition_penalty generation_kwargs chat_template_kwargs use_vllm "
    "vllm_structured_outputs_regex max_tool_calling_iterations vllm_importance_sampling_correction "
    "vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min "
    "vllm_importance_sampling_cap use_transformers_continuous_batching use_transformers_paged one_step_off".split()
)
_SEEN = 64  # values of a frozen weight
# Hyperparameters that a checkpoint without a record of its settings is asked for.
_KNOWN = ("lr", "weight_decay", "betas", "eps")


def recorded_settings(args: Any) -> dict[str, Any]:
    """What a checkpoint keeps of its run's arguments, as JSON: every field that is not free, without secrets."""
    found = {name: plain(getattr(args, name)) for name in field_specs(type(args)) if name not in FREE}
    return {name: without_secrets(value, name=name) for name, value in found.items()}


def plain(value: Any) -> Any:
    """A setting as JSON; an object without such a form by the name of its class."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    return type(value).__name__


def weights_recorded(model: torch.nn.Module) -> dict[str, Any]:
    """Number of parameters, of those that are trained, a hash of all names and shapes, and one of the first values of
    each that is not trained: a checkpoint does not bring those back. Values that ZeRO-3 has spread are left out.
    """
    sizes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in model.named_parameters()}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    listed = "\n".join(f"{name} {shape} {name in trained}" for name, shape in sorted(sizes.items()))
    counts = {name: int(torch.Size(shape).numel()) for name, shape in sizes.items()}
    return {
        "parameters": sum(counts.values()),
        "trained": sum(count for name, count in counts.items() if name in trained),
        "sha256": hashlib.sha256(listed.encode()).hexdigest(),
        "frozen_sha256": _frozen(model),
    }


def _frozen(model: torch.nn.Module) -> str | None:
    found = hashlib.sha256()
    kept = [
        (name, value)
        for name, value in sorted(model.named_parameters())
        if not (value.requires_grad or hasattr(value, "ds_id") or value.is_meta)
    ]
    for name, value in kept:
        first = value.detach().flatten()[:_SEEN].to("cpu")
        found.update(name.encode() + first.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest() if kept else None


def changes(before: Mapping[str, Any], args: Any) -> tuple[list[str], list[str]]:
    """(lines of settings that changed and will be applied, lines of those that may not change).

    Args:
        before: `recorded_settings` of the run that wrote the checkpoint; fields it does not have are passed over.
        args: of the run that continues.
    """
    specs, now = field_specs(type(args)), recorded_settings(args)
    names = [name for name in now if name in before and before[name] != now[name]]
    stays = {before.get("lr_scheduler_type"), now.get("lr_scheduler_type")} & set(_WITH_MEMORY)
    applied: list[str] = []
    refused: list[str] = []
    for name in names:
        line = f"{_written(specs[name])}: {before[name]} -> {now[name]}"
        may = name in APPLIED and not (stays and name in _OF_SCHEDULE)
        (applied if may else refused).append(line)
    return applied, refused


def _written(spec: Any) -> str:
    """Path under which a recipe writes a field."""
    place = (spec.set_by or "").split(" ")[0]
    return place if "." in place else f"{spec.block}.{spec.name}"


def of_optimizer(lines: list[str]) -> list[str]:
    """Those lines of `changes` whose setting an optimizer holds."""
    return [line for line in lines if line.partition(":")[0].rpartition(".")[2] in _OF_OPTIMIZER]


def changed_beside(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The same lines of what a recipe settles beside the arguments; none of it may change."""
    names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in sorted(names)]


def refuse(lines: list[str], folder: Any) -> None:
    """Raise ResumeError that names settings which cannot change inside a run; nothing for no lines."""
    if lines:
        raise ResumeError(
            "settings were changed that a run cannot change on its way: " + "; ".join(lines),
            where=str(folder),
            fix="Restore them, or start anew with trainer.resume: never",
        )


# ---- optimizer and scheduler ----


def fresh_groups(optimizer: Any) -> list[dict[str, Any]]:
    """Hyperparameters of every parameter group as the settings give them, before a scheduler or a checkpoint acts; and
    whether it holds weights, since DeepSpeed takes groups without any out of the optimizer.
    """
    found = []
    for group in getattr(optimizer, "param_groups", ()):
        values = {name: plain(value) for name, value in group.items() if name not in ("params", "param_names")}
        rate = values.pop("initial_lr", values.get("lr"))
        found.append({**values, "lr": rate, "holds_weights": bool(group["params"])})
    return found


def refuse_other_optimizer(settings: Mapping[str, Any], now: Mapping[str, Any], folder: Any) -> None:
    """Raise ResumeError where the state was made by another optimizer, or with other parameter groups."""
    if settings.get("optimizer") is None:
        return
    was, is_now = (f"{known['class']} with {len(known['groups'])} groups" for known in (settings["optimizer"], now))
    refuse([f"the optimizer: {was} -> {is_now}"] if was != is_now else [], folder)


def put_in_force(
    optimizer: Any, scheduler: Any, *, before: list[dict[str, Any]] | None, now: list[dict[str, Any]]
) -> None:
    """Give a restored optimizer and scheduler the numbers of the settings in force; where none changed, nothing moves.

    Only hyperparameters that the settings give otherwise than before are written, so that what an optimizer keeps in
    its groups (a step count, an estimated distance) stays. The rate of the coming step is the schedule's at that step.

    Args:
        optimizer: its state is loaded.
        scheduler: the same. Rates are computed anew for schedules that are functions of the step (`LambdaLR`).
        before: `fresh_groups` of the run that wrote the checkpoint; None = not known.
        now: those of this run.
    """
    if len(optimizer.param_groups) != len(now):
        kept = [place for place, fresh in enumerate(now) if fresh["holds_weights"]]
        now = [now[place] for place in kept]
        before = before and [before[place] for place in kept]
    for place, (group, fresh) in enumerate(zip(optimizer.param_groups, now, strict=True)):
        old = before[place] if before is not None else None
        for name, value in fresh.items():
            is_changed = name in _KNOWN and plain(group.get(name)) != value if old is None else old.get(name) != value
            if is_changed and name in group and name != "lr":
                group[name] = tuple(value) if isinstance(group[name], tuple) else value
    if not isinstance(scheduler, LambdaLR):
        return
    scheduler.base_lrs = [fresh["lr"] for fresh in now]
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, base, rate in zip(optimizer.param_groups, scheduler.base_lrs, rates, strict=True):
        group["initial_lr"] = base
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler._last_lr = rates
