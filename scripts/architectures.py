"""Measure every causal architecture of transformers: is a row in a batch scored as the row alone?

    .venv/bin/python scripts/architectures.py            # all of them, about two minutes on one core
    .venv/bin/python scripts/architectures.py llama mamba
    .venv/bin/python scripts/architectures.py --table > tests/architectures.md

Each is a small copy of its default configuration with random weights, in float32. Columns: left = padded as rollouts
are, right = padded as supervised rows are, packed = without padding, generated = completed from padded prompts. "ok"
is within 1e-5 nats and a gradient within 1e-4; figures are the largest difference of a log-probability, and of the
gradient. "first" is what is measured before: a row by the trainers' head, and whether a token depends on later ones.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from posttrain.models.copies import NoCopy, small_copy
from posttrain.seam.isolation import Difference, Form, measure

FORMS: tuple[Form, ...] = ("alone", "causal", "left", "right", "packed", "generated")
# What the default configuration leaves open or has in one kind alone, as published models set it.
GIVEN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2},
    "bert-generation": {"is_decoder": True},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp_text": {"num_experts": 4, "num_experts_per_tok": 2},
    "reformer": {"is_decoder": True},
    "xlm": {"causal": True},
}


def measured(kind: str) -> dict[Form, Difference] | str:
    """Differences of one architecture, or why there are none."""
    try:
        config = CONFIG_MAPPING[kind](**GIVEN.get(kind, {}))
        return measure(small_copy(config).model, FORMS)
    except NoCopy as problem:
        return f"no small copy: {str(problem).split(' | ')[0]}"
    except Exception as problem:  # noqa: BLE001 - a configuration class may raise anything without its arguments
        return f"no default configuration: {type(problem).__name__}"


def cell(found: Difference) -> str:
    """One measurement in a few characters."""
    if found.reason is not None:
        return f"fails ({found.reason.split(':')[0]})"
    return "ok" if found.is_fine else f"{found.logp:.0e}, {found.gradient:.0%}"


def rows(kinds: list[str]) -> Iterator[list[str]]:
    """Cells of each architecture."""
    for kind in kinds:
        found = measured(kind)
        if isinstance(found, str):
            yield [kind, found, "", "", "", ""]
            continue
        first = [f"{form} {cell(found[form])}" for form in ("alone", "causal") if not found[form].is_fine]
        yield [kind, "; ".join(first) or "ok", *(cell(found[form]) for form in FORMS[2:])]


def main() -> None:
    """Print one line for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="model types; none = all of transformers' causal ones")
    parser.add_argument("--table", action="store_true", help="as a Markdown table")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    kinds = options.kinds or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if options.table:
        sys.stdout.write("| architecture | first | left | right | packed | generated |\n|---|---|---|---|---|---|\n")
    for cells in rows(kinds):
        line = f"| {' | '.join(cells)} |" if options.table else "  ".join(f"{text:<22}" for text in cells)
        sys.stdout.write(line.rstrip() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
