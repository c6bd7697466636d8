"""What the batteries need to know of masked_thought."""

from __future__ import annotations

# Its first step has no noise with the defaults.
RANKS = {
    "hidden inputs": {
        "mask_schedule": "constant",
        "mask_ratio": 0.5,
        "mask_token": "~",
        "loss_on_masked": "clean_only",
    },
    "no padding and an incomplete last batch": {"padding_free": True, "max_length": None, "prompts": [0, 1, 2, 3, 4]},
    "packed rows": {"packing": True, "max_length": 96},
}
TOLD = {"reproduce.yaml": ("training prompts too",)}  # where a sum is read from, not whether it is known
