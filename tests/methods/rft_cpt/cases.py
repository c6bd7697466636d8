"""What the batteries need to know of rft_cpt."""

from __future__ import annotations

LEARNS_FROM_SUCCESS_ALONE = True
_AGAIN = ("training prompts too",)  # what is asked is what a model still answers, not whether it generalises
TOLD = {
    "qwen2.5-vl-7b_vqa.yaml": ("rollouts are drawn from another distribution",),  # top_p 0.99, as the paper has it
    **dict.fromkeys(("reproduce.yaml", "reproduce_harder.yaml", "suite.yaml"), _AGAIN),
}
