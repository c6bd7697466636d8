"""What the batteries need to know of sft."""

from __future__ import annotations

RANKS = {
    "a mixture": {"mixture": True},
    "no padding and an incomplete last batch": {"padding_free": True, "max_length": None, "prompts": [0, 1, 2, 3, 4]},
    # 5 packed rows on the two ranks' 8 places.
    "packed rows": {"packing": True, "max_length": 96},
}
ENGINE_RUNS = {"adapters": {"lora": True}}
ENGINE_RESUMES = {"sft": {}, "adapters": {"lora": True}}
