"""Mathematical equality: forms of one value agree, parts of an answer do not count, and no answer takes long."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time

import pytest

from posttrain.rewards.math import math, score_one

EQUAL = [
    ("1/2", "0.5"),
    ("1/2", r"\frac{1}{2}"),
    ("0.5", r"50\%"),
    ("1000", "1,000"),
    ("42", "$42$"),
    ("42", "42."),
    ("18", r"\$18"),
    ("x+1", "1+x"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\sqrt{2}/2", r"1/\sqrt{2}"),
    (r"\{1,2\}", "{2,1}"),
    ("(1,2)", "(1, 2)"),
    (r"3\pi", "9.42477796"),
    ("120", "5!"),
    ("252", r"\binom{10}{5}"),
    ("1024", "2^{10}"),
    (r"$\frac{3}{4}$", "0.75"),
    (r"\boxed{7}", "7"),
    ("work\n#### 7", "7"),
]
DIFFERENT = [
    ("42", "43"),
    ("42", "42 or 43"),
    ("42", "41, 42"),
    ("42", "4 2"),
    ("42", "-42"),
    ("(1,2)", "(2,1)"),
    ("x+1", "x-1"),
    ("42", "42; import os"),
    ("42", ""),
]
# Each of these took minutes, gigabytes or a crash in computer algebra, or would be a call in Python.
LABORIOUS = [
    "9^{9^{9^9}}",
    "9**9**9**9",
    "10^{10^{10}}",
    "2^{99999999}",
    "9^{99*99*99*99}",
    "(10^8)!",
    "10^8!",
    "9^{9!}",
    "5!!!!!!",
    r"\binom{100000000}{50000000}",
    r"\sum_{i=1}^{100000000} i",
    r"\int_0^1 x^x dx",
    r"\lim_{x\to 0} \frac{\sin x}{x}",
    r"\Gamma(10^{12})",
    r"\frac{d^{100}}{dx^{100}} e^{\sin(\cos(\tan x))}",
    "(x+y+z+w)^{60}",
    "((x+1)^{12}+y)^{12}",
    "9" * 5000,
    "(" * 300 + "1" + ")" * 300,
    "1" + "+1" * 3000,
    r"\frac{" * 60 + "1" + "}{2}" * 60,
    "__import__('os').getcwd()",
    "{" * 150,
    "\u0669" * 100,
    "\x00\ud7ff \\",
]


@pytest.mark.parametrize(("reference", "given"), EQUAL)
def test_forms_of_one_value_are_equal(reference, given):
    assert score_one(f"So it is.\nAnswer: {given}", reference) == 1.0
    assert score_one(rf"So it is \boxed{{{given}}}.", reference) == 1.0


@pytest.mark.parametrize(("reference", "given"), DIFFERENT)
def test_other_values_are_not(reference, given):
    assert score_one(f"Answer: {given}", reference) == 0.0
    assert score_one(rf"\boxed{{{given}}}", reference) == 0.0


def test_the_mark_that_stands_later_counts_and_a_bare_number_does_not():
    assert score_one("\\boxed{1}\nAnswer: 2", "2") == 1.0
    assert score_one("Answer: 2\nno, \\boxed{1}", "2") == 0.0
    assert score_one(r"Answer: $\boxed{2}$", "2") == 1.0
    assert score_one("it is 2", "2") == 0.0


def test_rows_whose_reference_cannot_be_read_have_no_verdict_unless_the_text_is_equal():
    reference = r"\sum_{i=1}^{n} i"
    assert score_one("Answer: 3", reference) is None
    assert score_one(f"Answer: {reference}", reference) == 1.0
    assert math([""] * 3, ["Answer: 1"] * 3, answer=["1", "", None]) == [1.0, None, None]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("given", LABORIOUS, ids=range(len(LABORIOUS)))
@pytest.mark.parametrize("reference", ["42", "(x+1)^2"])
def test_no_answer_takes_long(given, reference):
    score_one("Answer: 1", "1")
    started = time.perf_counter()
    assert score_one(f"Answer: {given}", reference) == 0.0
    # Generous for a busy machine; what this test guards against takes minutes.
    assert time.perf_counter() - started < 10


def _in_worker(queue):
    queue.put(math(["", ""], ["Answer: 0.5", "Answer: 2"], answer=["1/2", "1/2"]))


def test_it_works_off_the_main_thread_and_in_a_worker_process_and_leaves_the_alarm_alone():
    before = signal.getsignal(signal.SIGALRM)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(math(["", ""], ["Answer: 0.5", "Answer: 2"], answer=["1/2", "1/2"]))
    )
    thread.start()
    thread.join()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_worker, args=(queue,))
    process.start()
    results.append(queue.get(timeout=120))
    process.join()
    assert results == [[1.0, 0.0], [1.0, 0.0]]
    assert signal.getsignal(signal.SIGALRM) is before
