"""The colocated inference engine, as far as trl 1.16 leaves something out when it builds one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.generation import vllm_generation


@contextmanager
def seeded_engine(seed: int) -> Iterator[None]:
    """While the block runs, a colocated vLLM engine gets a seed that depends on the run's seed.

    trl 1.16 seeds it with the number of the process alone, so that every run samples alike whatever its seed.

    Args:
        seed: the run's seed. Engines of different processes keep different seeds.
    """
    # The name is bound only where vLLM is installed.
    original = vars(vllm_generation).get("LLM")
    if original is None:
        yield
        return

    def build(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "seed": (1_000_003 * seed + (kwargs.get("seed") or 0)) % 2**32})

    vllm_generation.LLM = build
    try:
        yield
    finally:
        vllm_generation.LLM = original
