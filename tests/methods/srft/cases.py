"""What the batteries need to know of srft."""

from __future__ import annotations

WITHOUT = ("preset",)  # its loss has no preset to choose
