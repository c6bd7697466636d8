"""Rewards that attack what is around their process. Where the kernel lacks a wall the test says so and is skipped."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.rewards import pool, walls
from posttrain.rewards.limits import worker_environment
from posttrain.rewards.scorer import RewardLimits, RewardScorer

ROOT = Path(__file__).parents[2]
ALL = (
    "memory of other processes",
    "signals to other processes",
    "limits of other processes",
    "settings of the kernel",
    "sockets",
    "new processes",
)
MEMORY, SIGNALS, OTHERS_LIMITS, SETTINGS, SOCKETS, PROCESSES = ALL

# Each returns 1.0 where it got through.
ATTACKS = """
import ctypes, os, resource, signal, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)

def got(attack):
    def reward(prompts, completions, **columns):
        try:
            return [float(attack(**columns) is not False)] * len(completions)
        except OSError:
            return [0.0] * len(completions)
    return reward

def open_file(path, mode):
    with open(path, mode):
        return True

def patch(name, address, **_):
    with open(f"/proc/{os.getppid()}/{name[0]}", "r+b", buffering=0) as memory:
        memory.seek(address[0])
        memory.write(b"owned")

overwriting = got(lambda address, **_: patch(["mem"], address))
overwriting_by_a_thread = got(lambda address, **_: patch([f"task/{os.getppid()}/mem"], address))
peeking = got(lambda **_: open_file(f"/proc/{os.getppid()}/environ", "rb"))
mapping = got(lambda **_: open_file(f"/proc/{os.getppid()}/maps", "rb"))
following = got(lambda **_: os.readlink(f"/proc/{os.getppid()}/fd/2"))
tracing = got(lambda **_: libc.ptrace(16, os.getppid(), None, None) == 0)
signalling = got(lambda **_: os.kill(os.getppid(), 0))
signalling_all = got(lambda **_: os.killpg(os.getpgid(os.getppid()), 0))
bounding = got(lambda **_: resource.prlimit(os.getppid(), resource.RLIMIT_CPU))
escaping = got(lambda **_: libc.unshare(0x10000000) == 0)
naming_a_core = got(lambda **_: open_file("/proc/sys/kernel/core_pattern", "r+b"))
forking = got(lambda **_: libc.fork() >= 0)
clone = 56 if os.uname().machine == "x86_64" else 220
cloning = got(lambda **_: libc.syscall(clone, 17, 0, 0, 0, 0) >= 0)
spawning = got(lambda **_: subprocess.run(["true"]))
shouting = got(lambda **_: os.system("true") == 0)

def threads(prompts, completions, **_):
    import threading
    found = []
    several = [threading.Thread(target=found.append, args=(1,)) for _ in range(4)]
    [one.start() for one in several]
    [one.join() for one in several]
    return [float(len(found))] * len(completions)

def children(prompts, completions, **_):
    several = []
    try:
        for _ in range(200):
            several.append(subprocess.Popen(["sleep", "30"]))
    except OSError:
        pass
    for one in several:
        one.kill()
        one.wait()
    return [float(len(several))] * len(completions)

def forked(prompts, completions, **_):
    os.fork()  # both go on; only one of them is the worker
    return [float(os.getpid() != os.getsid(0))] * len(completions)

def answering_child(prompts, completions, **_):
    if libc.fork() == 0:
        os.setsid()
        for number in range(3, 1024):
            try:
                os.write(number, b'{"request": "", "values": [7.0], "seconds": 0}\\\\n')
            except OSError:
                pass
        os._exit(0)
    time.sleep(1)
    return [1.0] * len(completions)

def speaking_ahead(prompts, completions, **_):
    from posttrain.rewards import worker
    said = b'{"values": [9.0], "seconds": 0, "request": "%s"}\\\\n' % worker._current["request"].encode()
    for number in range(3, 1024):
        try:
            os.write(number, said * 2)
        except OSError:
            pass
    return [1.0] * len(completions)

def honest(prompts, completions, **_):
    return [float(len(text)) for text in completions]

def patching(prompts, completions, **_):
    import json, re
    import posttrain.rewards.exact as exact, posttrain.rewards.math as algebra
    exact.exact = algebra.math = lambda prompts, completions, **_: [1.0] * len(completions)
    from posttrain.rewards import outcomes, worker
    worker._loaded.clear()
    worker.call = lambda *a, **k: None
    return [1.0] * len(completions)

def variables(prompts, completions, *, names, **_):
    return [float(name in os.environ) for name in names]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("walls")
    (path / "mine.py").write_text(ATTACKS)
    (path / "other.py").write_text("def plain(prompts, completions, **_):\n    return [0.25] * len(completions)\n")
    return path


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """What a worker says of this machine."""
    return pool.try_walls()


def score(folder: Path, name: str, *, rows: int = 1, limits: RewardLimits | None = None, **columns) -> list:
    limits = RewardLimits(workers=1, timeout_seconds=10.0) if limits is None else limits
    reward = RewardScorer(f"mine.py:{name}", base_dir=folder, limits=limits, max_failed_fraction=1.0)
    reward(["p"] * rows, ["abc"] * rows, **columns)
    return reward.outcomes


def need(found: dict[str, str], wall: str) -> None:
    if found.get(wall) != walls.CLOSED:
        pytest.skip(f"this kernel leaves open: {wall}")


@pytest.mark.parametrize(
    ("name", "wall"),
    [
        ("overwriting", MEMORY),
        ("overwriting_by_a_thread", MEMORY),
        ("peeking", MEMORY),
        ("mapping", MEMORY),
        ("following", MEMORY),
        ("tracing", MEMORY),
        ("signalling", SIGNALS),
        ("signalling_all", SIGNALS),
        ("bounding", OTHERS_LIMITS),
        ("escaping", OTHERS_LIMITS),
        ("naming_a_core", SETTINGS),
        ("forking", PROCESSES),
        ("cloning", PROCESSES),
        ("spawning", PROCESSES),
        ("shouting", PROCESSES),
    ],
)
def test_a_reward_does_not_get_through(folder: Path, found: dict[str, str], name: str, wall: str):
    import ctypes

    need(found, wall)
    target = ctypes.create_string_buffer(b"clean")
    (outcome,) = score(folder, name, address=[ctypes.addressof(target)])
    assert (outcome.value, outcome.reason) == (0.0, None)
    assert target.value == b"clean"


def test_a_reward_may_have_threads_and_is_told_why_it_has_no_programs(folder: Path):
    assert score(folder, "threads")[0].value == 4.0
    (outcome,) = score(folder, "forked")
    assert outcome.reason == (
        "PermissionError: [Errno 1] rewards start no processes; set rollout.reward_processes to allow some"
    )


COUNT = """
import os, resource, sys
from posttrain.rewards import walls

if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    walls._libc().prctl(4, 1, 0, 0, 0)
try:
    walls._enter_user_namespace()
except OSError:
    sys.exit("no user namespaces")
walls._limit_processes(3)
children = []
try:
    while len(children) < 100:
        child = os.fork()
        if child == 0:
            signal = __import__("signal")
            signal.pause()
        children.append(child)
except BlockingIOError:
    pass
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
print(len(children))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts in a namespace")
def test_a_reward_that_may_start_programs_starts_so_many_only(folder: Path):
    """As an ordinary user: the kernel does not count the processes of root, SECURITY.md says so."""
    run = subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, capture_output=True, text=True, check=False)
    if "no user namespaces" in run.stderr:
        pytest.skip("this kernel allows no user namespaces")
    assert 3 <= int(run.stdout) < 3 + walls._TASKS_BESIDES + 1, run.stderr
    assert score(folder, "children", limits=RewardLimits(workers=1, processes=3))[0].value > 0


# ---- the pipe ----

PROGRAMS = RewardLimits(workers=1, timeout_seconds=11.0, processes=8)


def test_a_fork_that_comes_back_does_not_answer(folder: Path):
    """The worker is the leader of its session, so that its own answer is 0."""
    for _ in range(3):
        (outcome,) = score(folder, "forked", limits=PROGRAMS)
        assert (outcome.value, outcome.reason) == (0.0, None)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who wrote")
def test_what_a_child_writes_is_no_answer(folder: Path):
    (outcome,) = score(folder, "answering_child", limits=PROGRAMS)
    assert outcome.value is None and outcome.reason == "worker died: a process that it started wrote in its name"
    assert score(folder, "honest", limits=PROGRAMS)[0].value == 3.0


def test_an_answer_given_ahead_is_not_that_of_the_next_request(folder: Path):
    first = score(folder, "speaking_ahead", limits=PROGRAMS)[0]
    assert first.value in (9.0, None)  # its own verdict is a reward's to give
    assert score(folder, "honest", limits=PROGRAMS)[0].value == 3.0


# ---- one reward, another reward ----


def test_a_reward_cannot_patch_those_of_other_files(folder: Path):
    limits = RewardLimits(workers=1, timeout_seconds=12.0)
    others = [
        (RewardScorer(name, base_dir=folder, limits=limits), value)
        for name, value in (("exact", 0.0), ("math", 0.0), ("other.py:plain", 0.25))
    ]
    score(folder, "patching", limits=limits)
    for other, value in others:
        assert other(["p"], ["Answer: 1"], answer=["2"]) == [value]
    mine = RewardScorer("mine.py:honest", base_dir=folder, limits=limits)
    pools = [scorer._pool() for scorer in (mine, *(other for other, _ in others))]
    assert len({id(one) for one in pools}) == 4
    again = RewardScorer("./mine.py:threads", base_dir=folder / ".." / folder.name, limits=limits)
    assert again._pool() is mine._pool(), "one file under two names"


# ---- the environment ----

SECRETS = {
    "HF_TOKEN": "x",
    "MYSQL_PWD": "x",
    "PGPASSFILE": "x",
    "SSH_AUTH_SOCK": "x",
    "GPG_KEYRING": "x",
    "NETRC": "x",
    "SLACK_WEBHOOK": "hooks/T0/B0/abc",
    "SENTRY_DSN": "x",
    "DATABASE_URL": "x",
    "AWS_PROFILE": "x",
    "KUBECONFIG": "x",
    "JWT": "x",
    "OPENAI_ORG": "x",
    "WANDB_LOGIN": "x",
    "CI_JOB_JWT_V2": "x",
    "DOCKER_CONFIG": "x",
    "LC_secret": "x",
    "HTTPS_PROXY": "http://me:word@proxy:1",
    "hf_home": "x",
}


def test_the_environment_of_a_worker_is_a_list_of_harmless_names(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", "https://token@127.0.0.1")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("NETWORK_OF_MINE", "x")
    named = RewardLimits(workers=1, timeout_seconds=13.0, environment=("NETWORK_OF_MINE",))
    names = [*SECRETS, "HF_ENDPOINT", "PATH", "LC_ALL", "NETWORK_OF_MINE"]
    values = [outcome.value for outcome in score(folder, "variables", rows=len(names), limits=named, names=names)]
    assert values == [0.0] * (len(SECRETS) + 1) + [1.0] * 3
    assert "NETWORK_OF_MINE" not in worker_environment(RewardLimits())


# ---- which walls stand ----


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user, which root alone can")
@pytest.mark.parametrize(
    ("user", "names", "is_open"),
    [
        (0, [], ALL),
        (0, ["capabilities"], {SIGNALS, OTHERS_LIMITS, SETTINGS, SOCKETS, PROCESSES}),
        (0, ["landlock"], {OTHERS_LIMITS, SOCKETS, PROCESSES}),
        (0, ["filter"], {MEMORY, SETTINGS}),
        (0, ["capabilities", "landlock", "filter"], set()),
        (65534, [], set(ALL) - {SETTINGS}),
        (65534, ["namespace"], {SIGNALS, OTHERS_LIMITS, SOCKETS, PROCESSES}),
        (65534, ["landlock"], {OTHERS_LIMITS, SOCKETS, PROCESSES}),
        (65534, ["filter"], {MEMORY}),
        (65534, ["namespace", "filter"], set()),
        (65534, ["landlock", "filter"], set()),
    ],
)
def test_each_wall_keeps_what_security_md_says(found: dict[str, str], user: int, names: list[str], is_open: set[str]):
    """Alone, and together with what a machine would have beside it."""
    if not walls.has_filter() or walls.OPEN in found.values():
        pytest.skip("this kernel lacks one of the walls")
    run = subprocess.run(
        [sys.executable, "-m", "tests.rewards.wall_probe", str(user), "0", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = set(json.loads(run.stdout))
    # Since Linux 6.16 whoever may watch performance (root, unless that is dropped) may read other processes.
    assert told - ({MEMORY} if names == ["landlock"] and user == 0 else set()) == set(is_open), run.stderr


def test_a_run_without_a_wall_says_so_once(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    pool.tell_gaps.cache_clear()
    monkeypatch.setattr(RewardLimits, "gaps", lambda self, walls: ["sockets", SIGNALS])
    limits = RewardLimits(workers=1, timeout_seconds=14.0)
    with caplog.at_level(logging.WARNING):
        RewardScorer("exact", limits=limits).load()
        assert not caplog.records, "nothing of others is run for it"
        score(folder, "honest", limits=limits)
        RewardScorer("math", limits=limits).load()
    (record,) = caplog.records
    assert "this machine leaves open to them: sockets, signals to other processes" in record.getMessage()


def test_rewards_inside_the_training_process_are_told_once(folder: Path, caplog):
    pool.tell_gaps.cache_clear()
    for name in ("honest", "threads"):
        score(folder, name, limits=RewardLimits(workers=0))
    (record,) = caplog.records
    assert "all of this process, in which they run (rollout.reward_workers: 0)" in record.getMessage()
    caplog.clear()
    RewardScorer("exact", limits=RewardLimits(workers=0))(["p"], ["1"], answer=["1"])
    assert not caplog.records
