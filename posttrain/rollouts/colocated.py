"""The end of a vLLM engine that lives in the training process."""

from __future__ import annotations

from typing import Any


def close_engine(llm: Any, *, keep_group: bool) -> None:
    """Free an in-process engine, so that the next stage can build its own.

    vLLM 0.31 takes the process's default group down with its own, and with it the training of all ranks.

    Args:
        llm: a `vllm.LLM`.
        keep_group: True where the default group is the trainer's, False where vLLM made it.
    """
    from vllm.distributed import parallel_state as state

    def leave_group() -> None:
        if state._WORLD is not None:
            state._WORLD.destroy()
        state._WORLD = state._NODE_COUNT = None

    original = state.destroy_distributed_environment
    if keep_group:
        state.destroy_distributed_environment = leave_group
    try:
        llm.llm_engine.engine_core.shutdown()
    finally:
        state.destroy_distributed_environment = original
