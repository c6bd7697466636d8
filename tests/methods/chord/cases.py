"""What the batteries need to know of chord."""

from __future__ import annotations

TOLD = {"reproduce.yaml": ("refuses the demonstration or answer itself",)}  # a part of them is wrong
