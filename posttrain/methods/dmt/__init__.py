"""DMT (arXiv 2310.05492): two supervised stages, the second repeating part of the first one's rows."""

from __future__ import annotations

from posttrain.registry import ENGINES, Method, Paper

METHOD = Method(
    kind="plan",
    summary="supervised fine-tuning in two stages, the second repeating part of the first one's rows",
    paper=Paper(
        "How Abilities in Large Language Models are Affected by Supervised Fine-tuning Data Composition",
        "2310.05492",
        2023,
        author="Dong",
    ),
    supports=ENGINES | {"peft", "resume"},
    plans=dict.fromkeys(
        ("single", "multitask", "sequential", "mixed_sequential", "dmt", "custom", "composition"),
        "plan:composition_stages",
    ),
    verbs={"study composition": "commands:composition"},
)
