"""What the batteries need to know of hpt."""

from __future__ import annotations

from tests.config.bases import GRPO

RECIPE = {**GRPO, "method": {"name": "hpt", "switch_gate": 0.0}}
TOLD = {"reproduce.yaml": ("refuses the demonstration or answer itself",)}  # a part of them is wrong
