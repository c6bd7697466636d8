"""Rewards in worker processes: each way a reward can go wrong has its outcome, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, RewardError, SupportError
from posttrain.rewards.limits import worker_environment
from posttrain.rewards.outcomes import NOT_TRIED
from posttrain.rewards.pool import describe, pool_of
from posttrain.rewards.scorer import RewardLimits, RewardScorer
from posttrain.rewards.walls import has_filter

LIMITS = RewardLimits(timeout_seconds=5.0, memory_bytes=2**30)

# One function a name; the row "bad" is the one it fails on.
REWARDS = """
import asyncio, ctypes, os, signal, socket, subprocess, sys, time
from pathlib import Path

def on(act, completions):
    if "bad" in completions:
        act()
    return [float(len(text)) for text in completions]

def raising(prompts, completions, **_): return on(lambda: [][1], completions)
def leaving(prompts, completions, **_): return on(lambda: sys.exit(3), completions)
def exiting(prompts, completions, **_): return on(lambda: os._exit(7), completions)
def aborting(prompts, completions, **_): return on(os.abort, completions)
def crashing(prompts, completions, **_): return on(lambda: ctypes.string_at(0), completions)
def killed(prompts, completions, **_): return on(lambda: os.kill(os.getpid(), signal.SIGKILL), completions)
def hanging(prompts, completions, **_): return on(lambda: time.sleep(600), completions)
def stuck(prompts, completions, **_): return on(lambda: pow(7, 10**9), completions)
def eating(prompts, completions, **_): return on(lambda: bytearray(2**31), completions)
def recursing(prompts, completions, **_): return on(lambda: recursing(prompts, completions), completions)
def closing(prompts, completions, **_): return on(lambda: os.closerange(3, 1024), completions)
def calling(prompts, completions, **_): return on(lambda: socket.create_connection(("127.0.0.1", 9)), completions)
def looking_up(prompts, completions, **_): return on(lambda: socket.getaddrinfo("example.org", 80), completions)
def controlling(prompts, completions, **_): return on(lambda: int("\\x1b[2J\\u202eboo"), completions)

def raw_socket(prompts, completions, **_):
    libc = ctypes.CDLL(None)
    return [float(libc.socket(family, 1, 0)) for family in (2, 10, 1)]

def printing(prompts, completions, **_):
    print('{"values": [9.0, 9.0, 9.0], "seconds": 0}')
    sys.stdout.write("no newline")
    os.write(1, b'{"raised": "x", "seconds": 0}\\n')
    os.system("echo from a shell")
    return [1.0] * len(completions)

def forging(prompts, completions, **_):
    def write():
        for descriptor in range(3, 1024):
            try: os.write(descriptor, b"garbage\\n")
            except OSError: pass
    return on(write, completions)

async def waiting(prompts, completions, **_):
    await asyncio.sleep(0.01)
    return on(lambda: 1 / 0, completions)

def starting_a_loop(prompts, completions, **_):
    return asyncio.run(waiting(prompts, completions))

def short(prompts, completions, **_): return [1.0]
def words(prompts, completions, **_): return ["good"] * len(completions)
def nan(prompts, completions, **_): return [float("nan")] * len(completions)
def infinite(prompts, completions, **_): return [float("inf")] * len(completions)
def number(prompts, completions, **_): return 1.0
def sometimes(prompts, completions, **_): return [None, True, 3]
def array(prompts, completions, **_):
    import numpy
    return numpy.array([0.25, 0.5, 1.0], dtype="float32")

def echo(prompts, completions, *, answer, level=None, completion_ids=None, **columns):
    assert not {"trainer_state", "log_extra", "log_metric", "environments"} & set(columns), columns
    assert completions == ["\\ud800\\x00\\n", "b", "c"] and prompts == [[{"role": "user", "content": "q"}]] * 3
    assert (answer, level, completion_ids) == (["1", None, "3"], [1, 2.5, True], [[1], [2, 3], []])
    return [1.0, 2.0, 3.0]

def flaky(prompts, completions, *, counter, **_):
    path = Path(counter[0])
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    if len(path.read_text()) == 1:
        raise ConnectionError("reset by peer")
    return [1.0] * len(completions)

def slow(prompts, completions, *, calls, **_):
    with open(calls[0], "a") as file:
        file.write(f"{len(completions)}\\n")
    time.sleep(0.1 * len(completions))
    return [float(len(text)) for text in completions]

def secret(prompts, completions, **_):
    return [float(name in os.environ) for name in ("HF_TOKEN", "MY_API_KEY", "PLAIN_NAME")]

def outliving(prompts, completions, *, marker, **_):
    subprocess.Popen(["sleep", marker[0]])
    Path(marker[1]).write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards")
    (path / "mine.py").write_text(REWARDS)
    return path


def scorer(folder: Path, name: str, *, limits: RewardLimits = LIMITS, **kwargs) -> RewardScorer:
    return RewardScorer(f"mine.py:{name}", base_dir=folder, limits=limits, **{"max_failed_fraction": 0.5, **kwargs})


def score(folder: Path, name: str, **kwargs) -> tuple[list, str | None]:
    """Values of three rows, and the reason of the second, bad one."""
    reward = scorer(folder, name, **kwargs)
    values = reward(["p"] * 3, ["a", "bad", "abc"])
    assert [outcome.value for outcome in reward.outcomes] == values
    return values, reward.outcomes[1].reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raising", "IndexError: list index out of range"),
        ("leaving", "SystemExit: 3"),
        ("exiting", "worker died: the reward ended its process with exit code 7"),
        ("aborting", "worker died: ended by SIGABRT"),
        ("crashing", "worker died: ended by SIGSEGV"),
        ("killed", "worker died: ended by SIGKILL, perhaps for lack of memory"),
        ("eating", "MemoryError: more than reward_memory_bytes allows"),
        ("recursing", "RecursionError: maximum recursion depth exceeded"),
        ("closing", "worker died: "),
        ("forging", "worker died: it sent something that is no answer"),
        ("calling", "PermissionError: [Errno 1] rewards have no network"),
        ("looking_up", "PermissionError: [Errno 1] rewards have no network"),
        ("waiting", "ZeroDivisionError: division by zero"),
        ("starting_a_loop", "ZeroDivisionError: division by zero"),
        ("controlling", "ValueError: invalid literal for int() with base 10: '\\x1b[2J\\u202eboo'"),
    ],
)
def test_a_row_the_reward_fails_on_costs_only_itself(folder: Path, name: str, reason: str):
    values, told = score(folder, name)
    assert values == [1.0, None, 3.0]
    assert str(told).startswith(reason)


@pytest.mark.parametrize("name", ["hanging", "stuck"])
def test_a_reward_that_hangs_is_stopped_also_inside_a_c_function(folder: Path, name: str):
    started = time.monotonic()
    values, told = score(folder, name, limits=RewardLimits(timeout_seconds=1.0))
    assert values == [1.0, None, 3.0]
    assert told == "timed out: no answer within 1 s (reward_timeout_seconds)"
    assert time.monotonic() - started < 30  # one second for the batch, one for the row; the rest is a slow machine


def test_a_grader_that_always_hangs_costs_a_bounded_time(folder: Path):
    reward = scorer(folder, "hanging", limits=RewardLimits(timeout_seconds=0.5), max_failed_fraction=0.1)
    started = time.monotonic()
    assert reward(["p"] * 64, ["bad"] * 64) == [None] * 64
    assert time.monotonic() - started < 30  # 64 rows one by one on two workers would be 16 s of waiting and 64 starts
    reasons = [outcome.reason for outcome in reward.outcomes]
    assert reasons.count(NOT_TRIED) >= 48 and all(outcome.is_failed for outcome in reward.outcomes)


def test_one_deadline_goes_by_before_cheap_failures_are_given_up(folder: Path):
    reward = scorer(folder, "raising", max_failed_fraction=0.0)
    reward(["p"] * 40, ["bad", "a"] * 20)
    assert [outcome.is_failed for outcome in reward.outcomes] == [True, False] * 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "returned the wrong number of values (got 1; allowed: 3)"),
        ("words", "value 0 is not a finite number (got 'good')"),
        ("nan", "value 0 is not a finite number (got nan). Return None for a row without a score"),
        ("infinite", "value 0 is not a finite number (got inf)"),
        ("number", "must return a list (got 1.0; allowed: one float or None per completion)"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_contract_stops_at_once(folder: Path, name: str, message: str, workers: int):
    with pytest.raises(RewardError) as error:
        score(folder, name, limits=RewardLimits(workers=workers))
    assert message in str(error.value) and name in str(error.value)


def test_what_a_reward_prints_is_not_taken_for_an_answer(folder: Path, capfd: pytest.CaptureFixture):
    # Limits of its own, so that the worker starts with the captured standard error.
    assert score(folder, "printing", limits=RewardLimits(timeout_seconds=35.0, processes=4)) == ([1.0, 1.0, 1.0], None)
    assert "from a shell" in capfd.readouterr().err


def test_numbers_of_any_kind_and_none(folder: Path):
    assert score(folder, "sometimes")[0] == [None, 1.0, 3.0]
    assert score(folder, "array")[0] == [0.25, 0.5, 1.0]
    reward = scorer(folder, "sometimes")
    reward(["p"] * 3, ["a"] * 3)
    assert [outcome.status for outcome in reward.outcomes] == ["not_applicable", "scored", "scored"]


def test_columns_arrive_as_they_are_and_live_objects_stay_behind(folder: Path):
    reward = scorer(folder, "echo")
    columns = {"answer": ["1", None, "3"], "level": [1, 2.5, True], "completion_ids": [[1], [2, 3], []]}
    live = {"trainer_state": object(), "log_extra": print, "log_metric": print, "environments": [object()] * 3}
    prompts = [[{"role": "user", "content": "q"}]] * 3
    assert reward(prompts, ["\ud800\x00\n", "b", "c"], **columns, **live) == [1.0, 2.0, 3.0], reward.outcomes


def test_a_column_that_cannot_be_sent_is_named(folder: Path):
    with pytest.raises(RewardError) as error:
        scorer(folder, "short")(["p"], ["a"], answer=["1"], picture=[object()])
    assert "column 'picture' holds values that cannot be sent to a worker process (got 'object'" in str(error.value)
    assert "set rollout.reward_workers: 0" in str(error.value)
    assert RewardScorer("exact", limits=LIMITS)(["p"], ["1"], answer=["1"], picture=[object()]) == [1.0]


def test_infrastructure_errors_are_retried_once(folder: Path, tmp_path: Path):
    counter = tmp_path / "calls"
    assert scorer(folder, "flaky")(["p"], ["a"], counter=[str(counter)]) == [1.0]
    assert counter.read_text() == "xx"


@pytest.mark.skipif(not has_filter(), reason="the kernel of this machine cannot refuse sockets")
def test_the_kernel_refuses_sockets_that_python_does_not_see(folder: Path):
    assert score(folder, "raw_socket")[0] == [-1.0, -1.0, -1.0]
    assert scorer(folder, "raw_socket")._pool().walls["sockets"] == "closed"
    opened = score(folder, "raw_socket", limits=RewardLimits(network=True))[0]
    assert min(opened) >= 3.0


def test_what_is_not_known_to_be_harmless_stays_behind_unless_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_TOKEN", "MY_API_KEY", "PLAIN_NAME"):
        monkeypatch.setenv(name, "value")
    monkeypatch.setenv("DATABASE", "postgres://user:word@host/base")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    # Other limits than the other tests have, so that workers start with this environment.
    assert score(folder, "secret", limits=RewardLimits(timeout_seconds=31.0))[0] == [0.0, 0.0, 0.0]
    named = RewardLimits(timeout_seconds=31.0, environment=("MY_API_KEY", "PLAIN_NAME"))
    assert score(folder, "secret", limits=named)[0] == [0.0, 1.0, 1.0]
    assert "DATABASE" not in worker_environment(LIMITS)
    assert worker_environment(LIMITS)["TOKENIZERS_PARALLELISM"] == "false"


def test_inside_the_training_process_there_is_the_same_outcome_without_limits(folder: Path):
    inside = RewardLimits(workers=0)
    assert score(folder, "raising", limits=inside) == ([1.0, None, 3.0], "IndexError: list index out of range")
    assert score(folder, "waiting", limits=inside) == ([1.0, None, 3.0], "ZeroDivisionError: division by zero")
    assert inside.describe() == "inside the training process, without limits"


def test_scorers_share_workers_and_keep_them(folder: Path):
    limits = RewardLimits(timeout_seconds=32.0)
    RewardScorer("exact", limits=limits)(["p"] * 8, ["1"] * 8, answer=["1"] * 8)
    first = {worker.process.pid for worker in pool_of(limits)._idle}
    RewardScorer("format", limits=limits)(["p"] * 8, ["Answer: 1"] * 8)
    assert {worker.process.pid for worker in pool_of(limits)._idle} == first and len(first) == 2
    os.kill(min(first), signal.SIGKILL)  # between two calls: no row is lost
    assert RewardScorer("exact", limits=limits)(["p"] * 8, ["1"] * 8, answer=["1"] * 8) == [1.0] * 8


def test_names_are_checked_without_running_anything(folder: Path):
    with pytest.raises(ConfigError, match="Perhaps you mean 'exact'"):
        RewardScorer("exakt")
    with pytest.raises(ConfigError, match="no such file"):
        RewardScorer("none.py:f", base_dir=folder)
    missing = scorer(folder, "missing")
    with pytest.raises(ConfigError, match=r"no such function \(got 'missing'; allowed: one of: .*aborting"):
        missing.load()
    assert missing.__name__ == "missing" and missing([], []) == []


def test_errors_of_packaged_rewards_keep_their_kind_and_words():
    with pytest.raises(RewardError, match="not an entry of a reasoning-gym task"):
        RewardScorer("reasoning_gym", limits=LIMITS)(["p"], ["Answer: 1"], entry=['{"level": 1}'])
    stored = '{"dataset": "spiral_matrix", "options": {}, "entry": {"question": "", "answer": "1", "metadata": {}}}'
    with pytest.raises(SupportError, match="could run anything. Choose another task."):
        RewardScorer("reasoning_gym", limits=LIMITS)(["p"], ["Answer: 1"], entry=[stored])


def test_a_file_that_ends_the_process_on_import_is_an_error(tmp_path: Path):
    (tmp_path / "mine.py").write_text("import os\nos._exit(4)\n")
    with pytest.raises(RewardError, match=r"cannot be loaded: worker died: .* exit code 4"):
        RewardScorer("mine.py:f", base_dir=tmp_path, limits=LIMITS).load()


def test_workers_load_no_training_library(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import sys\ndef heavy(prompts, completions, **_):\n"
        "    return [float(name in sys.modules) for name in ('torch', 'transformers', 'trl')]\n"
    )
    reward = RewardScorer("mine.py:heavy", base_dir=tmp_path, limits=RewardLimits(timeout_seconds=33.0))
    assert reward(["p"] * 3, ["a"] * 3) == [0.0, 0.0, 0.0]


# ---- the end ----

PARENT = """
import signal, sys
from posttrain.rewards.scorer import RewardLimits, RewardScorer
if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored, and they pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reward = RewardScorer("mine.py:outliving", base_dir=sys.argv[1], limits=RewardLimits(workers=1, processes=2))
    reward(["p"] * 2, ["a"] * 2, marker=[sys.argv[2], sys.argv[3]])
"""


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def sleepers(seconds: str) -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in found if line == f"sleep {seconds}"]


def test_a_slow_reward_is_told_once_and_asked_about_fewer_rows(folder: Path, tmp_path: Path, caplog):
    calls = tmp_path / "calls"
    reward = scorer(folder, "slow", limits=RewardLimits(timeout_seconds=1.0))
    texts = ["a" * length for length in range(16)]
    for _ in range(3):
        assert reward(["p"] * 16, texts, calls=[str(calls)] * 16) == [float(length) for length in range(16)]
    sizes = [int(line) for line in calls.read_text().split()]
    # Once everything, which is too much, then row by row; from then on what half the time is enough for.
    assert sizes[:17] == [16] + [1] * 16
    assert all(1 < size <= 5 for size in sizes[17:-1]) and sum(sizes[17:]) == 32
    (warning,) = [record.getMessage() for record in caplog.records if "slow" in record.getMessage()]
    assert "a call with 16 rows took longer than the recipe's reward_timeout_seconds (1)" in warning
    assert "raise rollout.reward_timeout_seconds" in warning


def test_a_row_that_hangs_is_no_reason_to_cut_batches(folder: Path, caplog):
    reward = scorer(folder, "hanging", limits=RewardLimits(timeout_seconds=1.0))
    assert reward(["p"] * 3, ["a", "bad", "abc"]) == [1.0, None, 3.0]
    assert reward._rows_per_call is None and not caplog.records


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_the_training_process(folder: Path, tmp_path: Path, end: signal.Signals):
    marker, seconds = tmp_path / "pid", f"9{int(end)}{os.getpid()}"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), seconds, str(marker)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (marker.exists() and marker.read_text() and sleepers(seconds)) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int(marker.read_text())
    assert is_running(worker)
    parent.send_signal(end)
    parent.wait(timeout=30)
    deadline = time.monotonic() + 20
    while (is_running(worker) or sleepers(seconds)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker) and not sleepers(seconds)


def test_an_interrupted_call_does_not_answer_into_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch):
    limits = RewardLimits(timeout_seconds=34.0, workers=1)
    reward = scorer(folder, "hanging", limits=limits)
    reward(["p"], ["warm"])

    def interrupt(workers: list) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("posttrain.rewards.pool._wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reward(["p"], ["bad"])
    assert reward(["p"], ["four"]) == [4.0]


def test_the_record_of_a_run_says_what_the_limits_are():
    limits = RewardLimits(timeout_seconds=36.0)
    RewardScorer("exact", limits=limits).load()
    walls = pool_of(limits).walls
    assert describe(limits) == limits.describe(walls)
    start = "2 worker processes for each reward file, 36 s a call, 4 GiB, no programs, network "
    assert limits.describe(dict.fromkeys(walls, "closed")) == f"{start}closed by the kernel, open: nothing else"
    assert limits.describe({**walls, "sockets": "open", "new processes": "closed"}).startswith(
        f"{start}closed in Python only, open: "
    )
    allowed = RewardLimits(network=True, memory_bytes=None, processes=8)
    told = allowed.describe({"sockets": "open", "new processes": "open", "settings of the kernel": "open"})
    assert told.endswith("no memory limit, 8 processes, network open, open: settings of the kernel")
