"""Rollouts without the model's own generation settings."""

from __future__ import annotations

from typing import Any

from posttrain.models.generation_settings import plain_generation, tell_once


class PlainRollouts:
    """The side of `PolicyTrainer` that has every generation follow its arguments alone."""

    model: Any

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        # transformers 5.17 fills what trl 1.16 leaves open from the model; vLLM is started without the model's file.
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        tell_once(getattr(base, "generation_config", None))
        with plain_generation(self.model):
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
