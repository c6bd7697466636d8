"""Every reward function is called once on real rows before the first step.

Looked at: type, number and range of what it returns, and whether it can tell a right answer from a wrong one.
"""

from __future__ import annotations

import inspect
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from posttrain.config.checks_data import Rows
from posttrain.errors import PosttrainError, RewardError

ROWS = 32
DEADLINE_SECONDS = 60.0
_WRONG = "I do not know."
Finding = tuple[bool, PosttrainError]


def reward_findings(
    rows: Rows, *, name: str, where: str, reward: Callable[..., Any], is_verifier: bool, threshold: float
) -> Iterator[Finding]:
    """(whether it stops the run, finding) of one reward function on real rows.

    Args:
        rows: training rows.
        name: of the reward in the recipe.
        where: its place in the recipe.
        reward: the function.
        is_verifier: whether its value is the verdict, which must lie in [0, 1].
        threshold: a value from here on counts as solved.
    """
    good = _completions(rows)
    indices = sorted(good)[:ROWS] or list(range(min(ROWS, len(rows))))
    batches = {"a wrong answer": [_WRONG] * len(indices)}
    if good:
        batches = {"the demonstration or answer": [good[index] for index in indices], **batches}
    values: dict[str, list[float | None]] = {}
    for told, texts in batches.items():
        try:
            result = _call(reward, rows, indices, texts)
        except RewardError as problem:
            yield True, RewardError(problem.what, where=where, got=problem.got, fix=problem.fix)
            return
        fault = _fault(result, len(indices), is_verifier=is_verifier)
        if fault is not None:
            what, got, allowed = fault
            yield True, RewardError(f"reward {name!r} on {told}: {what}", where=where, got=got, allowed=allowed)
            return
        values[told] = [None if value is None else float(value) for value in result]
    yield from _sense(name, where, values, is_verifier=is_verifier, threshold=threshold, has_good=bool(good))


def _completions(rows: Rows) -> dict[int, str]:
    """A text that should be right, by row: the demonstration, else the answer."""
    found: dict[int, str] = {}
    for index, (solution, answer) in enumerate(zip(rows.solutions, rows.answers, strict=True)):
        for text in (solution, answer):
            if isinstance(text, str) and text.strip():
                found[index] = text
                break
        if len(found) >= ROWS:
            break
    return found


def _call(reward: Callable[..., Any], rows: Rows, indices: list[int], texts: list[str]) -> Any:
    """One call with the arguments the trainers give; an exception or a call without end becomes a `RewardError`."""
    prompts = [rows.prompts[index] for index in indices]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    columns = {name: [rows.dataset[index][name] for index in indices] for name in rows.columns if name != "prompt"}
    answers: queue.Queue[tuple[str, Any]] = queue.Queue()

    def work() -> None:
        try:
            result = reward(prompts=prompts, completions=completions, **columns)
            if inspect.iscoroutine(result):
                import asyncio

                result = asyncio.run(result)
            answers.put(("value", result))
        except (Exception, SystemExit) as problem:  # noqa: BLE001 - a user's function may raise anything; reported below
            answers.put(("error", problem))

    started = time.monotonic()
    threading.Thread(target=work, daemon=True).start()
    try:
        kind, result = answers.get(timeout=DEADLINE_SECONDS)
    except queue.Empty:
        seconds = time.monotonic() - started
        raise RewardError(
            f"the reward function did not return within {seconds:.0f} s for {len(indices)} rows",
            fix="Give it a time limit of its own",
        ) from None
    if kind == "error":
        raise RewardError(
            f"the reward function raised {type(result).__name__}: {' '.join(str(result).split())[:200]}",
            got=texts[0],
            fix="Return None for a row it cannot judge; it takes (prompts, completions, **columns)",
        )
    return result


def _fault(result: Any, count: int, *, is_verifier: bool) -> tuple[str, Any, str] | None:
    """(what, got, allowed) of the first thing wrong with a returned list."""
    try:
        values = None if isinstance(result, (str, bytes, dict)) else list(result)
    except TypeError:
        values = None
    wanted = f"a list of {count} numbers or None"
    if values is None:
        return "it did not return a list", type(result).__name__, wanted
    if len(values) != count:
        return f"it returned {len(values)} values for {count} completions", len(values), wanted
    for index, value in enumerate(values):
        if value is None:
            continue
        number = _number(value)
        if number is None:
            return f"value {index} is not a number", value, wanted
        if math.isnan(number) or math.isinf(number):
            return f"value {index} is not finite", number, "a finite number, or None for a row it cannot judge"
        if is_verifier and not 0 <= number <= 1:
            return f"value {index} is outside the range of a verdict", number, "0 to 1"
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


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
