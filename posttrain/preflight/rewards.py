"""Every reward function is called once on real rows before the first step, under the limits of the run.

Looked at: whether it fails, the range of what it returns, and whether it can tell a right answer from a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.errors import PosttrainError, RewardError
from posttrain.preflight.data import Rows
from posttrain.rewards.answers import boxed_answer, marked_answer
from posttrain.rewards.outside import outside_inputs

ROWS = 32
_SHOWN = 3
_WRONG = "I do not know."
Finding = tuple[bool, PosttrainError]


def reward_findings(
    rows: Rows, *, name: str, where: str, limits_of: str, reward: Any, is_verifier: bool, threshold: float
) -> Iterator[Finding]:
    """(whether it stops the run, finding) of one reward function on real rows.

    Args:
        rows: training rows.
        name: of the reward in the recipe.
        where: its place in the recipe.
        limits_of: block that its limits are set in.
        reward: a `RewardScorer`.
        is_verifier: whether its value is the verdict, which must lie in [0, 1].
        threshold: a value from here on counts as solved.
    """
    if taken := outside_inputs(name, reward.base_dir):
        more = f", and {len(taken) - _SHOWN} more" if len(taken) > _SHOWN else ""
        what = f"the reward depends on what no record of the run holds: {'; '.join(taken[:_SHOWN])}{more}"
        fix = "Put it into a file beside the reward or into the rows, if the run is to be repeated or continued alike"
        yield False, RewardError(what, where=where, fix=fix)
    good = _completions(rows, name)
    indices = sorted(good)[:ROWS] or list(range(min(ROWS, len(rows))))
    batches = {"a wrong answer": [_WRONG] * len(indices)}
    if good:
        batches = {"the demonstration or answer": [good[index] for index in indices], **batches}
    values: dict[str, list[float | None]] = {}
    for told, texts in batches.items():
        try:
            values[told] = _call(reward, rows, indices, texts)
        except PosttrainError as problem:
            yield True, placed(problem, where)
            return
        failures = [outcome.reason for outcome in reward.outcomes if outcome.is_failed]
        if failures:
            stops = len(failures) > reward.max_failed_fraction * len(indices)
            yield stops, _failed(name, where, told, texts[0], failures, len(indices), limits_of)
            if stops:
                return
        for index, value in enumerate(values[told]):
            if is_verifier and value is not None and not 0 <= value <= 1:
                what = f"reward {name!r} on {told}: value {index} is outside the range of a verdict"
                yield True, RewardError(what, where=where, got=value, allowed="0 to 1")
                return
    yield from _sense(name, where, values, is_verifier=is_verifier, threshold=threshold, has_good=bool(good))


def placed(error: PosttrainError, where: str) -> PosttrainError:
    """The same error with the place in the recipe."""
    facts = {"got": error.got} if "(got " in str(error) else {}
    what = f"{error.where}: {error.what}" if isinstance(error, RewardError) and error.where else error.what
    return type(error)(what, where=where, allowed=error.allowed, fix=error.fix, **facts)


def _failed(
    name: str, where: str, told: str, text: str, reasons: list[str], count: int, limits_of: str
) -> RewardError:
    if reasons[0].startswith("timed out"):
        fix = f"Make it faster, or raise {limits_of}.reward_timeout_seconds"
    elif "reward_memory_bytes" in reasons[0] or "lack of memory" in reasons[0]:
        fix = f"Raise {limits_of}.reward_memory_bytes"
    else:
        fix = "Return None for a row it cannot judge; it takes (prompts, completions, **columns)"
    what = f"reward {name!r} on {told}: it failed on {len(reasons)} of {count} rows, first: {reasons[0]}"
    return RewardError(what, where=where, got=text, fix=fix)


def _completions(rows: Rows, name: str) -> dict[int, str]:
    """A text that should be right, by row: the demonstration, else the answer, in a box where `math` wants a mark."""
    found: dict[int, str] = {}
    for index, (solution, answer) in enumerate(zip(rows.solutions, rows.answers, strict=True)):
        is_bare = name == "math" and isinstance(answer, str) and not _is_marked(answer) and answer.strip()
        for text in (solution, f"\\boxed{{{answer}}}" if is_bare else answer):
            if isinstance(text, str) and text.strip():
                found[index] = text
                break
        if len(found) >= ROWS:
            break
    return found


def _is_marked(answer: str) -> bool:
    return boxed_answer(answer) is not None or marked_answer(answer) is not None


def _call(reward: Any, rows: Rows, indices: list[int], texts: list[str]) -> list[float | None]:
    """One call with the arguments the trainers give."""
    prompts = [rows.prompts[index] for index in indices]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    own = ("prompt", "prompts", "completions")
    columns = {name: [rows.dataset[index][name] for index in indices] for name in rows.columns if name not in own}
    return reward(prompts, completions, **columns)


def _sense(
    name: str,
    where: str,
    values: dict[str, list[float | None]],
    *,
    is_verifier: bool,
    threshold: float,
    has_good: bool,
) -> Iterator[Finding]:
    """Whether the function judges anything, accepts what should be right and refuses what is wrong."""
    everything = [value for batch in values.values() for value in batch]
    if all(value is None for value in everything):
        told = f"reward {name!r} returned None for every row, so nothing is scored"
        yield True, RewardError(told, where=where, fix="Check the columns it reads (answer, entry)")
        return
    if not is_verifier:
        return
    wrong = [value for value in values["a wrong answer"] if value is not None]
    accepted = sum(value >= threshold for value in wrong)
    if accepted:
        yield (
            accepted == len(wrong),
            RewardError(
                f"the verifier {name!r} accepts {_WRONG!r} in {accepted} of {len(wrong)} rows",
                where=where,
                fix="A verdict must be below method.success_threshold for a wrong answer",
            ),
        )
    if not has_good:
        return
    right = values["the demonstration or answer"]
    failed = [value for value in right if value is None or value < threshold]
    if failed:
        yield (
            False,
            RewardError(
                f"the verifier {name!r} refuses the demonstration or answer itself in {len(failed)} of {len(right)} "
                f"rows ({len(failed) / len(right):.0%})",
                where=where,
                fix="Compare the form of the demonstrations with what the verifier reads",
            ),
        )
