"""Reward functions inside a trainer: what becomes of every row, the same decision on all ranks, and what is logged.

A row for which any reward failed is treated as if it had never been generated: it leaves its group's baseline, the
loss with its KL and entropy terms, and the row and token counts that the loss is divided by. Its verdict, if the
verifier itself did its work, still counts for gates and accuracy. None is no failure: the other rewards' sum is used.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from posttrain.errors import PosttrainError, RewardError
from posttrain.rewards.outcomes import RewardOutcome, count_reasons, failed, finish, is_async, score
from posttrain.rewards.scorer import RewardScorer

_logger = logging.getLogger(__name__)


@dataclass
class _Scoring:
    """What one reward function did in the current generation batch on this rank."""

    name: str
    outcomes: list[RewardOutcome] = field(default_factory=list)
    seconds: float = 0.0


class RewardRecorder:
    """Stands between TRL and the reward functions of one trainer, and remembers what became of each row.

    Args:
        functions: one reward or a list, as a trainer takes them. Reward models and their names pass through: they
            have no outcomes, and an error inside one stops the run as it would without us.
        max_failed_fraction: of the rows of a generation batch over all ranks; more than this many failed rows stop the
            run.
    """

    def __init__(self, functions: Any, *, max_failed_fraction: float):
        self.max_failed_fraction = max_failed_fraction
        self._scorings: list[_Scoring] = []
        self._mistakes: list[tuple[type[PosttrainError], str]] = []  # broken contracts of the batch in hand
        self._told: set[tuple[str, str]] = set()
        self._reasons: dict[str, Counter[str]] = {}
        # The same shape as given; wrapped functions keep their name and stay asynchronous if they were.
        self.functions = (
            [self._recorded(function) for function in functions]
            if isinstance(functions, list)
            else self._recorded(functions)
        )

    def _recorded(self, function: Any) -> Any:
        if not callable(function) or hasattr(function, "forward"):
            return function
        scoring = _Scoring(getattr(function, "__name__", type(function).__name__))
        self._scorings.append(scoring)

        async def recorded_async(**arguments: Any) -> list[float | None]:
            started = time.monotonic()
            count = len(arguments["completions"])
            try:
                scoring.outcomes = await self._outcomes(function, arguments, scoring.name)
            except PosttrainError as error:
                # Raised by `settle`, on every rank: the others would wait for this one for ever.
                self._mistakes.append((type(error), str(error).removesuffix(".")))
                scoring.outcomes = [failed(error.what, 0.0)] * count
            scoring.seconds = time.monotonic() - started
            return [outcome.value for outcome in scoring.outcomes]

        def recorded(**arguments: Any) -> list[float | None]:
            return finish(recorded_async(**arguments), waits=False)

        wrapper: Callable[..., Any] = recorded_async if is_async(function) else recorded
        wrapper.__name__, wrapper.__doc__ = scoring.name, function.__doc__
        return wrapper

    async def _outcomes(self, function: Any, arguments: dict[str, Any], name: str) -> list[RewardOutcome]:
        if isinstance(function, RewardScorer):
            function(**arguments)
            return function.outcomes
        return await score(function, arguments, name=name, max_failed_fraction=self.max_failed_fraction)

    @contextmanager
    def own_words(self) -> Iterator[None]:
        """Around TRL's scoring. trl 1.16 takes a failed row for one that no reward applies to, and prints the row with
        the advice to return a number; `settle` says what happened instead.
        """
        upstream = logging.getLogger("trl.trainer.grpo_trainer")

        def is_kept(record: logging.LogRecord) -> bool:
            any_failed = any(outcome.is_failed for scoring in self._scorings for outcome in scoring.outcomes)
            return not (any_failed and "All reward functions returned None" in str(record.msg))

        upstream.addFilter(is_kept)
        try:
            yield
        finally:
            upstream.removeFilter(is_kept)

    def settle(self, metrics: dict[str, list[float]], *, num_rows: int, device: Any) -> Tensor:
        """Decide on the generation batch just scored; every rank, once, right after TRL's scoring. One collective.

        Args:
            metrics: TRL's metric lists; `reward/<name>/…` are appended.
            num_rows: rows of this rank.
            device: of the result.

        Returns:
            (W*B,) bool: a reward failed on this row.

        Raises:
            RewardError: on every rank, if too many rows failed, or one rank's function broke its contract.
        """
        flags = [any(scoring.outcomes[row].is_failed for scoring in self._scorings) for row in range(num_rows)]
        mistakes, self._mistakes = self._mistakes, []
        ranks = gather_object([(self._scorings, flags, mistakes)])
        for rank, (_, _, theirs) in enumerate(ranks):
            for kind, text in theirs:
                raise _shared(kind(text, where=f"rank {rank}" if len(ranks) > 1 else None))
        for index, own in enumerate(self._scorings):
            everywhere = [scorings[index] for scorings, _, _ in ranks]
            self._log(metrics, own.name, everywhere)
        is_failed = torch.tensor([flag for _, flags, _ in ranks for flag in flags], dtype=torch.bool, device=device)
        self._refuse_too_many(is_failed, [scorings for scorings, _, _ in ranks])
        return is_failed

    def _log(self, metrics: dict[str, list[float]], name: str, ranks: list[_Scoring]) -> None:
        """`seconds` is the slowest rank's wall clock; `seconds_p95` is over rows, each with its own call's time, or
        with its share of the one call that scored its batch.
        """
        outcomes = [outcome for scoring in ranks for outcome in scoring.outcomes]
        times = torch.tensor([outcome.seconds for outcome in outcomes], dtype=torch.float64)
        for quantity, value in {
            "failed_fraction": sum(outcome.is_failed for outcome in outcomes) / len(outcomes),
            "timed_out_fraction": sum(outcome.is_late for outcome in outcomes) / len(outcomes),
            "not_applicable_fraction": sum(o.status == "not_applicable" for o in outcomes) / len(outcomes),
            "seconds": max(scoring.seconds for scoring in ranks),
            "seconds_p95": torch.quantile(times, 0.95).item(),
        }.items():
            metrics[f"reward/{name}/{quantity}"].append(value)
        reasons = [outcome.reason for outcome in outcomes if outcome.reason is not None]
        kinds = count_reasons(reasons)
        self._reasons.setdefault(name, Counter()).update(kinds)
        fresh = [kind for kind in kinds if (name, kind) not in self._told]
        self._told |= {(name, kind) for kind in fresh}
        if fresh and torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return
        for kind in fresh:
            first = next(reason for reason in reasons if reason.split(":", 1)[0] == kind)
            _logger.warning(
                "reward %r failed on %d of %d rows of this generation batch; they leave the loss. First reason: %s. "
                "So far: %s",
                name,
                len(reasons),
                len(outcomes),
                first,
                _counted(self._reasons[name]),
            )

    def _refuse_too_many(self, is_failed: Tensor, ranks: list[list[_Scoring]]) -> None:
        count, total = int(is_failed.sum()), len(is_failed)
        if count <= self.max_failed_fraction * total:
            return
        told = []
        for index, own in enumerate(self._scorings):
            reasons = [o.reason for scorings in ranks for o in scorings[index].outcomes if o.reason is not None]
            if reasons:
                told.append(
                    f"{own.name!r} failed on {len(reasons)} ({_counted(count_reasons(reasons))}), first: {reasons[0]}"
                )
        problem = RewardError(
            f"rewards failed on {count} of {total} rows of a generation batch: " + "; ".join(told),
            where="rollout.rewards",
            allowed=f"at most {self.max_failed_fraction:.0%} of the rows (rollout.max_failed_fraction)",
            fix="Repair the reward, let it return None for rows it cannot judge, or raise the limits named here",
        )
        raise _shared(problem)


def refuse_out_of_range(rewards: Tensor, *, names: list[str], verifier: int) -> None:
    """Raise RewardError, on every rank alike, for an infinite value or a verdict outside [0, 1].

    Args:
        rewards: (W*B, F) gathered values, NaN where there is none.
        names: of the F functions.
        verifier: index of the function that gives the verdict.
    """
    verdicts = rewards[:, verifier]
    outside = torch.isinf(rewards).any(dim=1) | (verdicts < 0) | (verdicts > 1)
    if outside.any():
        row = int(outside.nonzero()[0])
        problem = RewardError(
            f"reward {names[verifier]!r} is the verifier and must return values in [0, 1] or None; others must be "
            "finite",
            where=f"rollout {row} of the generation batch",
            got=rewards[row].tolist(),
            fix="Name another function as rollout.verifier, or scale this one",
        )
        raise _shared(problem)


def _shared(error: PosttrainError) -> PosttrainError:
    error.is_shared = True
    return error


def leave_out(tensors: dict[str, Any], is_failed: Tensor) -> None:
    """Take failed rows out of a batch: `trainable_mask` 0, and the row-aligned key `is_failed`.

    Args:
        is_failed: (B,) bool, this rank's rows.
    """
    tensors["is_failed"] = is_failed
    tensors["trainable_mask"] = tensors["trainable_mask"] * ~is_failed.unsqueeze(1)


def _counted(kinds: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}x" for kind, count in kinds.items())
