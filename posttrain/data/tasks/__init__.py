"""Verifiable tasks that ship with the package; each row has a question, an answer, a worked solution and a group.

`TASKS` maps a task's name to its generator `generate(size, *, seed, ...) -> list[dict]`. Row i depends only on the
seed, i and the options, so a longer data set begins with the shorter one.
"""

from __future__ import annotations

TASKS: dict[str, str] = {
    "arithmetic": "posttrain.data.tasks.arithmetic:generate",
    "copied_sum": "posttrain.data.tasks.copied_sum:generate",
    "digit_class": "posttrain.data.tasks.digit_class:generate",
    "fictitious_authors": "posttrain.data.tasks.fictitious_authors:generate",
    "markov_text": "posttrain.data.tasks.markov_text:generate",
    "modular_addition": "posttrain.data.tasks.modular_addition:generate",
    "number_puzzle": "posttrain.data.tasks.number_puzzle:generate",
    "permutation": "posttrain.data.tasks.permutation:generate",
    "preferred_sums": "posttrain.data.tasks.preferred_sums:generate",
    "string_rewriting": "posttrain.data.tasks.string_rewriting:generate",
    "woven_text": "posttrain.data.tasks.woven_text:generate",
}
