"""Every shipped reward, in its worker process, on completions made to break graders: no escape, no hang, no crash, and
none of them called right.

What a finding led to is said in the rewards themselves (search them for "upstream" and "full marks").
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from posttrain.rewards import REWARDS
from posttrain.rewards.answers import marked_answer, normalise
from posttrain.rewards.reasoning_gym import EVALUATING_TASKS, final_answer
from posttrain.rewards.scorer import RewardLimits, RewardScorer
from tests.rewards.hostile import MEGABYTE, REFERENCES, hostile

# Far above what any row needs (the slowest took half a second), so that a busy machine does not fail the test.
LIMITS = RewardLimits(timeout_seconds=20.0)
# Different kinds of scorers: numbers, text, JSON, grids, sets, expressions.
TASKS = (
    "boxnet chain_sum coin_flip complex_arithmetic countdown game_of_life game_of_life_halting graph_color "
    "gsm_symbolic knights_knaves prime_factorization propositional_logic puzzle24 rubiks_cube sudoku word_sorting"
).split()


class Trap:
    """A file that must not appear and a port that nobody may call."""

    def __init__(self, folder: Path):
        self.file = folder / "canary"
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.completions = list(hostile(str(self.file), self.server.getsockname()[1]))
        self.texts = [text for _, text in self.completions]

    def is_untouched(self) -> bool:
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return not self.file.exists()
        return False


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    trap = Trap(tmp_path_factory.mktemp("trap"))
    yield trap
    trap.server.close()


def settled(trap: Trap, reward: str, texts: list[str], **columns: list) -> list[float]:
    """Values of the completions, after looking that each was scored and nothing got out."""
    scorer = RewardScorer(reward, limits=LIMITS)
    scorer([""] * len(texts), texts, **columns)
    trouble = [
        (repr(text[:60]), outcome.reason)
        for text, outcome in zip(texts, scorer.outcomes, strict=True)
        if outcome.status != "scored"
    ]
    assert not trouble
    assert trap.is_untouched()
    return [outcome.value for outcome in scorer.outcomes]


def test_the_corpus_is_large_varied_and_without_right_answers(trap: Trap):
    kinds = Counter(kind for kind, _ in trap.completions)
    assert len(set(trap.texts)) == len(trap.texts) >= 200
    assert len(kinds) == 14 and min(kinds.values()) >= 10
    assert sum(len(text) > MEGABYTE // 2 for text in trap.texts) >= 15
    assert not [text for text in trap.texts if text.strip() in REFERENCES or final_answer(text) in REFERENCES]


def test_the_trap_works(trap: Trap, tmp_path: Path):
    """A reward that evaluates completions does leave the file; even then there is no way to the network."""
    (tmp_path / "mine.py").write_text(
        "def evaluating(prompts, completions, **_):\n    return [float(bool(eval(text))) for text in completions]\n"
    )
    bait = Trap(tmp_path)
    writing, connecting = bait.texts[0], next(text for text in bait.texts if "create_connection" in text)
    scorer = RewardScorer("mine.py:evaluating", base_dir=tmp_path, limits=LIMITS)
    assert scorer(["", ""], [writing, connecting]) == [1.0, None]
    assert "rewards have no network" in str(scorer.outcomes[1].reason)
    assert bait.file.exists()
    bait.file.unlink()
    assert bait.is_untouched()
    bait.server.close()


@pytest.mark.parametrize("reward", ["exact", "math"])
def test_no_hostile_completion_is_right(reward: str, trap: Trap):
    references = [REFERENCES[place % len(REFERENCES)] for place in range(len(trap.texts))]
    assert set(settled(trap, reward, trap.texts, answer=references)) == {0.0}
    # The workers are as good as before.
    assert settled(trap, reward, [f"Answer: {answer}" for answer in REFERENCES], answer=list(REFERENCES)) == [1.0] * 5


def test_no_hostile_completion_is_one_of_several_right_answers(trap: Trap):
    entries = [json.dumps({"accepted": list(REFERENCES)})] * len(trap.texts)
    assert set(settled(trap, "one_of", trap.texts, entry=entries)) == {0.0}
    # Single digits are answers that texts meet by chance; only those may be right.
    digits = ["1", "3", "5", "7", "9"]
    values = settled(trap, "one_of", trap.texts, entry=[json.dumps({"accepted": digits})] * len(trap.texts))
    right = {text for text, value in zip(trap.texts, values, strict=True) if value == 1.0}
    assert right == {text for text in trap.texts if normalise(marked_answer(text) or text) in digits}
    assert settled(trap, "one_of", [f"Answer: {answer}" for answer in REFERENCES], entry=entries[:5]) == [1.0] * 5


def test_the_format_reward_judges_form_alone(trap: Trap):
    values = settled(trap, "format", trap.texts)
    assert set(values) == {0.0, 1.0}
    for text, value in zip(trap.texts, values, strict=True):
        marked = sum(line.lstrip().startswith(("Answer:", "####")) for line in text.strip().split("\n"))
        if marked > 1 or (marked == 0 and text.count("\\boxed{") != 1):
            assert value == 0.0, repr(text[:80])


def entry(task: str, seed: int) -> tuple[str, str | None]:
    """Stored entry of one generated row, and its answer."""
    import reasoning_gym

    row = dict(reasoning_gym.create_dataset(task, size=1, seed=seed)[0])
    return json.dumps({"dataset": task, "options": {}, "entry": row}), row.get("answer")


def is_same(given: str, answer: str) -> bool:
    """Whether two answers are the same text or number."""
    with suppress(ValueError):
        return len(given) < 20 and float(given) == float(answer)
    return given.strip().lower() == answer.strip().lower()


def wrongly_right(trap: Trap, texts: list[str], *, task: str, seed: int) -> list[str]:
    """What a task's scorer takes for right and is not."""
    stored, answer = entry(task, seed)
    # A task with a small number or a word for an answer meets it among so many texts; those are right.
    texts = [text for text in texts if not is_same(final_answer(text[-MEGABYTE:]), str(answer))]
    values = settled(trap, "reasoning_gym", texts, entry=[stored] * len(texts))
    right = [text for text, value in zip(texts, values, strict=True) if value == 1.0]
    return [f"{task} with the answer {str(answer)[:60]!r} accepts {text[:60]!r}" for text in right]


@pytest.mark.parametrize("task", TASKS)
def test_no_hostile_completion_solves_a_reasoning_task(task: str, trap: Trap):
    pytest.importorskip("reasoning_gym")
    # The size of a text is looked at before the task is: once is enough.
    short = [text for text in trap.texts if len(text) < MEGABYTE // 2]
    assert not wrongly_right(trap, trap.texts if task == "chain_sum" else short, task=task, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [4, 5])
def test_no_hostile_completion_solves_any_reasoning_task(seed: int, trap: Trap):
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    tasks = sorted(set(DATASETS) - EVALUATING_TASKS)
    found = [finding for task in tasks for finding in wrongly_right(trap, trap.texts, task=task, seed=seed)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", ["prefix", "first_token", "exact_token"])
def test_no_hostile_completion_predicts_a_token(rule: str, trap: Trap):
    stored = {"continuation": " zqx vjk", "token_ends": [4, 8], "round_trips": True, "rule": rule, "target_id": 7}
    for extraction in ("boxed_after_think", "boxed", "raw"):
        entries = [json.dumps({**stored, "extraction": extraction})] * len(trap.texts)
        assert set(settled(trap, "next_token", trap.texts, entry=entries)) == {0.0}


def test_every_shipped_reward_is_held_to_the_corpus():
    known = {"exact", "math", "format", "one_of", "next_token", "reasoning_gym"}
    assert set(REWARDS) == known, "add the new reward to this file"
