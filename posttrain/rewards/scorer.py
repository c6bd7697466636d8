"""`RewardScorer`: a reward function, by name, that runs in worker processes with limits and says what became of each
row.

Packaged rewards are called once a row, so a row can only cost itself. A user's function is called with the whole
batch, as TRL calls it; if that fails it is called again row by row, to find out which rows are to blame. If it failed
for want of time and no row is to blame, the function is only slow: this is told once, and its later batches are cut
into calls that keep within the time limit.
"""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import RewardError
from posttrain.rewards import REWARDS, Reward, load_reward, locate_reward
from posttrain.rewards.limits import RewardLimits
from posttrain.rewards.outcomes import RewardOutcome, finish, is_async, is_hopeless, score, wrong_if_late
from posttrain.rewards.pool import Job, Task, WorkerPool, pool_of, tell_gaps
from posttrain.rewards.worker import LIVE_ARGUMENTS

__all__ = ["RewardLimits", "RewardScorer"]

_logger = logging.getLogger(__name__)

# Packaged rewards that compare texts with the standard library alone.
_PLAIN = ("exact", "format", "next_token", "one_of")

# Requests for each worker that a batch of rows is cut into, so that a slow row holds up little.
_REQUESTS_PER_WORKER = 4
# Part of the time limit that a call of a slow function is meant to take; rows differ.
_TIME_USED = 0.5
_WRONG_IF_LATE = frozenset({"math"})


class RewardScorer:
    """A reward function that never takes the run down with it.

    Calling it is calling the reward, with columns as keywords; rows that failed or do not apply are None, and
    `outcomes` holds the details of the last call. `trainer_state`, `log_extra`, `log_metric` and `environments`, which
    TRL passes too, stay behind: they live in the training process. With `limits.workers` 0 the function runs in this
    process, gets them, and has no limits.

    Args:
        reward: a packaged reward, or "file.py:function".
        base_dir: folder that a relative file path starts from.
        limits: of the workers; scorers of one file with equal limits share them, those of different files never do.
        max_failed_fraction: where more rows of a call than this have failed, and one time limit has gone by, the rest
            is not tried and counts as failed. So a grader that hangs costs a bounded time.
        on_timeout: what a completion is whose own call exceeds the time limit: "wrong" = scored 0.0 and counted in
            `timed_out`, the other rows go on; "fail" = a failed row; None = "wrong" for the reward math, whose
            verdict is about equality alone, "fail" for others. Without workers nothing is ever over its time.
        options: further keywords of the reward, the same for all rows.

    Raises:
        ConfigError: for an unknown name or a missing file.
    """

    def __init__(
        self,
        reward: str,
        *,
        base_dir: str | Path = ".",
        limits: RewardLimits | None = None,
        max_failed_fraction: float = 0.1,
        on_timeout: Literal["wrong", "fail"] | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self.reward, self.base_dir = reward, str(Path(base_dir).resolve())
        place, self.__name__ = locate_reward(reward, base_dir)
        # Rewards of one file share workers; so do packaged ones without a large library behind them.
        is_plain = reward in _PLAIN
        self._group, self._is_trusted = (
            "" if is_plain else str(Path(place).resolve() if isinstance(place, Path) else place),
            is_plain,
        )
        self.limits = RewardLimits() if limits is None else limits
        self.max_failed_fraction = max_failed_fraction
        self.on_timeout = on_timeout or ("wrong" if reward in _WRONG_IF_LATE else "fail")
        self.options = dict(options or {})
        self.timed_out = 0  # completions of all calls that were called wrong because they exceeded their time
        self.outcomes: list[RewardOutcome] = []
        self._function: Reward | None = None
        self._rows_per_call: int | None = None  # of a user's function that was too slow for a whole batch
        # Packaged rewards get the columns they name; a user's function gets all, as from TRL.
        self._columns = inspect.signature(load_reward(reward)).parameters if reward in REWARDS else None

    def __call__(self, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score a batch; see the class.

        Raises:
            RewardError: the function breaks its contract (number or type of values), or cannot be loaded; or a column
                cannot be sent to a worker. ConfigError, SupportError: as from `load_reward` and packaged rewards.
        """
        arguments = {"prompts": list(prompts), "completions": list(completions), **columns, **self.options}
        if not completions:
            self.outcomes = []
        elif self.limits.workers == 0:
            self.outcomes = self._score_here(arguments)
        else:
            self.outcomes = self._score_in_workers(arguments)
        return [outcome.value for outcome in self.outcomes]

    def load(self) -> None:
        """Load the function where it will run, and find out now what is wrong with it.

        Raises:
            ConfigError, RewardError, SupportError: it cannot be used.
        """
        if self.limits.workers == 0:
            self._here()
        else:
            self._pool().run(self._job({"prompts": [], "completions": []}, 0), [Task([], True)])

    def _pool(self) -> WorkerPool:
        return pool_of(self.limits, self._group, is_trusted=self._is_trusted)

    def _here(self) -> Reward:
        if self._function is None:
            if not self._is_trusted:
                tell_gaps(("all of this process, in which they run (rollout.reward_workers: 0)",))
            self._function = load_reward(self.reward, self.base_dir)
        return self._function

    def _score_here(self, arguments: dict[str, Any]) -> list[RewardOutcome]:
        function = self._here()
        work = score(
            function,
            arguments,
            name=self.__name__,
            max_failed_fraction=self.max_failed_fraction,
            patience_seconds=self.limits.timeout_seconds,
        )
        return finish(work, waits=is_async(function))

    def _score_in_workers(self, arguments: dict[str, Any]) -> list[RewardOutcome]:
        known = self._columns
        sent = {
            name: values
            for name, values in arguments.items()
            if name not in LIVE_ARGUMENTS and (known is None or name in known)
        }
        count = len(arguments["completions"])
        rows, pool = list(range(count)), self._pool()
        if known is not None:
            size = -(-count // (self.limits.workers * _REQUESTS_PER_WORKER))
            tasks = [Task(rows[start : start + size], True) for start in range(0, count, size)]
            outcomes = pool.run(self._job(sent, count), tasks)
        else:
            size = self._rows_per_call or count
            calls = [rows[start : start + size] for start in range(0, count, size)]
            outcomes = pool.run(self._job(sent, count), [Task(list(call), False) for call in calls])
            lost = [call for call in calls if len(call) > 1 and outcomes[call[0]].is_failed]
            late = [call for call in lost if str(outcomes[call[0]].reason).startswith("timed out")]
            if lost:
                outcomes |= pool.run(self._job(sent, count), [Task([row], False) for call in lost for row in call])
            for call in late:
                self._look_at_pace([outcomes[row] for row in call])
        return self._without_late([outcomes[row] for row in rows])

    def _is_late(self, outcome: RewardOutcome) -> bool:
        return self.on_timeout == "wrong" and str(outcome.reason).startswith("timed out")

    def _without_late(self, outcomes: list[RewardOutcome]) -> list[RewardOutcome]:
        """The outcomes with completions over their time called wrong, where the recipe says so; they are counted."""
        late = sum(map(self._is_late, outcomes))
        if late and not self.timed_out:
            _logger.warning(
                "reward %s: %d of %d completions took longer than rollout.reward_timeout_seconds (%g) and count as "
                "wrong (on_timeout: wrong); later ones are counted under reward/%s/timed_out_fraction",
                *(self.__name__, late, len(outcomes), self.limits.timeout_seconds, self.__name__),
            )
        self.timed_out += late
        return [wrong_if_late(outcome.seconds) if self._is_late(outcome) else outcome for outcome in outcomes]

    def _look_at_pace(self, outcomes: list[RewardOutcome]) -> None:
        """Find out from the rows of a call that ran out of time whether one of them hangs, or all are slow."""
        limit = self.limits.timeout_seconds
        seconds = [outcome.seconds for outcome in outcomes if not outcome.is_failed]
        if not seconds or (len(seconds) < len(outcomes) and sum(seconds) <= limit):
            return
        each = sum(seconds) / len(seconds)
        fitting = int(_TIME_USED * limit / each) if each > 0 else len(outcomes)
        # By half at least: a call for many rows may take longer than as many calls.
        size = max(1, min(fitting, len(outcomes) // 2))
        if self._rows_per_call is None:
            _logger.warning(
                "reward %s: a call with %d rows took longer than the recipe's reward_timeout_seconds (%g), but its "
                "rows one by one did not (%.2g s each). They are scored, at the price of a second try; from now its "
                "batches are cut into calls for %d rows. Make it faster, or raise rollout.reward_timeout_seconds",
                self.__name__,
                len(outcomes),
                limit,
                each,
                size,
            )
        self._rows_per_call = size if self._rows_per_call is None else min(size, self._rows_per_call)

    def _job(self, arguments: dict[str, Any], count: int) -> Job:
        started = time.monotonic()

        def encode(task: Task) -> bytes:
            columns = {
                name: [values[row] for row in task.rows]
                if isinstance(values, list) and len(values) == count
                else values
                for name, values in arguments.items()
            }
            prompts, completions = columns.pop("prompts"), columns.pop("completions")
            request = {
                "reward": self.reward,
                "base_dir": self.base_dir,
                "row_wise": task.row_wise,
                "prompts": prompts,
                "completions": completions,
                "columns": columns,
            }
            try:
                return json.dumps(request).encode("ascii") + b"\n"
            except (TypeError, ValueError):
                raise self._unsendable(arguments) from None

        def gives_up(outcomes: dict[int, RewardOutcome]) -> bool:
            spent = time.monotonic() - started > self.limits.timeout_seconds
            lost = [outcome for outcome in outcomes.values() if not self._is_late(outcome)]
            return spent and is_hopeless(lost, count, self.max_failed_fraction)

        return Job(self.reward, encode, gives_up)

    def _unsendable(self, arguments: dict[str, Any]) -> RewardError:
        for name, values in arguments.items():
            for value in values if isinstance(values, list) else [values]:
                try:
                    json.dumps(value)
                except (TypeError, ValueError):
                    return RewardError(
                        f"column {name!r} holds values that cannot be sent to a worker process",
                        where=f"reward {self.__name__!r}",
                        got=type(value).__name__,
                        allowed="text, numbers, true, false, null, and lists and mappings of these",
                        fix="Write the column as text, leave it out, or set rollout.reward_workers: 0",
                    )
        return RewardError("the arguments cannot be sent to a worker process", where=f"reward {self.__name__!r}")
