"""What became of each row a reward was asked about: scored, not applicable, or failed; and the call that finds out.

A failed row is not a wrong answer: the fault lies with the grader, its limits or its network, and the row says which.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.errors import PosttrainError, RewardError
from posttrain.rewards import check_scores

Status = Literal["scored", "not_applicable", "failed"]
NOT_TRIED = "not tried: too many rows before it had failed"
_MAX_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class RewardOutcome:
    """One row's result. `value` is a finite number if and only if scored, `reason` a text if and only if failed."""

    value: float | None
    status: Status
    reason: str | None
    seconds: float  # of the row's own call; where one call scored a batch, that call's time divided by its rows
    is_late: bool = False  # called wrong because it exceeded its time

    @property
    def is_failed(self) -> bool:
        """Whether the reward could not do its work on this row."""
        return self.status == "failed"


def scored(value: float | None, seconds: float) -> RewardOutcome:
    """Outcome of a call that returned; None means that the reward does not apply to the row."""
    return RewardOutcome(value, "not_applicable" if value is None else "scored", None, seconds)


def wrong_if_late(seconds: float) -> RewardOutcome:
    """Outcome of a completion that exceeded its time where the recipe calls that wrong."""
    return RewardOutcome(0.0, "scored", None, seconds, is_late=True)


def failed(reason: str, seconds: float) -> RewardOutcome:
    """Outcome of a row on which the reward raised, hung or died."""
    return RewardOutcome(None, "failed", reason, seconds)


def reason_of(problem: BaseException) -> str:
    """One printable line that names an exception; its text may quote the completion, control characters and all."""
    text = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text[:2000].split()))
    return line if len(line) <= _MAX_REASON_CHARACTERS else line[: _MAX_REASON_CHARACTERS - 1] + "…"


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How often each kind of reason occurs, most frequent first; the kind is what stands before the first colon."""
    return dict(Counter(reason.split(":", 1)[0] for reason in reasons).most_common())


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling the function gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at
    )


def finish(work: Coroutine[Any, Any, Any], *, waits: bool) -> Any:
    """Result of a coroutine. Unless it really waits for something it runs without an event loop, so that an ordinary
    function below it may start a loop of its own.
    """
    if waits:
        return asyncio.run(work)
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise RewardError("a reward returned something to wait for", fix="Declare the function with async def")


async def call(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    name: str,
    on_retry: Callable[[], None] = lambda: None,
) -> list[float | None]:
    """One checked call. What looks like trouble of the infrastructure (any OSError: connections, timeouts, files) is
    tried a second time.

    Args:
        function: the reward, plain or async.
        arguments: prompts, completions and columns.
        name: of the reward, for messages.
        on_retry: called before the second attempt.

    Raises:
        RewardError: a wrong number of values, or values that are not numbers. Whatever else the function raises.
    """
    try:
        values = await _awaited(function(**arguments))
    except OSError:
        on_retry()
        values = await _awaited(function(**arguments))
    return check_scores(values, name=name, count=len(arguments["completions"]))


async def _awaited(result: Any) -> Any:
    return await result if isinstance(result, Awaitable) else result


async def score(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    name: str,
    max_failed_fraction: float,
    patience_seconds: float = 30.0,
) -> list[RewardOutcome]:
    """Outcomes of a reward inside this process: one call with all rows; if it raises, one call for each.

    The function has no time or memory limit here.

    Args:
        function: the reward, plain or async.
        arguments: prompts, completions and columns; lists as long as these are taken apart row by row.
        name: of the reward, for messages.
        max_failed_fraction: once more rows than this have failed and `patience_seconds` have gone, the rest is not
            tried and counts as failed.

    Raises:
        PosttrainError: a mistake in the function or the recipe, which no other row could undo.
    """
    count = len(arguments["completions"])
    started = time.monotonic()
    try:
        values = await call(function, arguments, name=name)
    except PosttrainError:
        raise
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a user's function may raise anything; kept as a reason
        if count == 1:
            return [failed(reason_of(problem), time.monotonic() - started)]
    else:
        return spread(values, time.monotonic() - started)
    outcomes: list[RewardOutcome] = []
    started = time.monotonic()
    for row in range(count):
        if is_hopeless(outcomes, count, max_failed_fraction) and time.monotonic() - started > patience_seconds:
            outcomes.append(failed(NOT_TRIED, 0.0))
            continue
        one = {key: pick(value, row, count) for key, value in arguments.items()}
        outcomes += await score(function, one, name=name, max_failed_fraction=1.0)
    return outcomes


def spread(values: Sequence[float | None], seconds: float) -> list[RewardOutcome]:
    """Outcomes of one call that scored all these rows."""
    return [scored(value, seconds / len(values)) for value in values]


def is_hopeless(outcomes: Iterable[RewardOutcome], count: int, max_failed_fraction: float) -> bool:
    """Whether more of `count` rows have failed than a run accepts."""
    return sum(outcome.is_failed for outcome in outcomes) > max_failed_fraction * count


def pick(value: Any, row: int, count: int) -> Any:
    """One row of a row-aligned list, as a list; callbacks that record per batch are silenced, the rest passes."""
    if isinstance(value, list) and len(value) == count:
        return [value[row]]
    return _ignore if inspect.ismethod(value) or inspect.isfunction(value) else value


def _ignore(*_: Any, **__: Any) -> None:
    return None
