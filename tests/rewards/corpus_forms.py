r"""How models write down an answer, and answers that would keep computer algebra busy; made by rule."""

from __future__ import annotations

from collections.abc import Iterator

Form = tuple[str, str, str, float]  # kind, reference, completion, verdict
Laborious = tuple[str, str, str]  # kind, reference, answer; the verdict may be anything but slow or wrongly right


def forms() -> Iterator[Form]:
    """Completions around a right and a wrong answer; where the answer stands must not change the verdict."""
    answers = (
        ("42", "42", "43"),
        (r"\frac{3}{4}", "0.75", "0.74"),
        ("x+1", "1+x", "x-1"),
        ("(1,2)", "(1, 2)", "(2,1)"),
    )
    for reference, right, wrong in answers:
        for kind, form in _shapes():
            yield kind, reference, form.replace("@", right), 1.0
            yield kind, reference, form.replace("@", wrong), 0.0
        for kind, form in (
            ("display", "Answer:\n$$\n@\n$$"),
            ("display", "Answer:\n\\[\n@\n\\]\nDone."),
            ("control token", "Answer: @<|im_end|>"),
            ("control token", "#### @</s>"),
        ):
            yield kind, reference, form.replace("@", right), 1.0
            yield kind, reference, form.replace("@", wrong), 0.0
        for kind, form in _empty_shapes():
            yield kind, reference, form.replace("@", right), 0.0
        yield "last counts", reference, f"Answer: {wrong}\n\\boxed{{{right}}}", 1.0
        yield "last counts", reference, f"\\boxed{{{right}}}\nAnswer: {wrong}", 0.0
        yield "last counts", reference, f"Answer: {right}\nAnswer: {wrong}", 0.0
        yield "last counts", reference, f"\\boxed{{{wrong}}} no, \\boxed{{{right}}}", 1.0


def _shapes() -> Iterator[tuple[str, str]]:
    marks = ("Answer:", "answer:", "Answer :", "**Answer:**", "**Answer**:", "__Answer:__")
    marks += (
        "### Answer:",
        "## Final Answer:",
        "Final answer:",
        "**Final Answer:**",
        "The answer is:",
        "####",
        "> Answer:",
    )
    marks += ("#### Answer:", "The final answer is:", "*Answer:*", "FINAL ANSWER:")
    for mark in marks:
        yield "mark", f"Let us see.\n{mark} @"
        yield "mark", f"{mark} $@$."
        yield "mark on its own line", f"So.\n{mark}\n@"
        yield "mark on its own line", f"So.\n{mark}\n\n$$@$$\n"
    for mark in ("### Answer", "**Answer**", "## Final answer", "**Final Answer**"):
        yield "heading", f"Work.\n\n{mark}\n@"
    yield "bold line", "So\n**Answer: @**"
    yield "bold line", "Answer: **@**"
    yield "minerva", "Final Answer: The final answer is $@$. I hope it is correct."
    for box in (r"\boxed{@}", r"\boxed {@}", r"$\boxed{@}$", r"$$\boxed{ @ }$$", r"**\boxed{@}**"):
        yield "box", f"So it is {box}."
        yield "box", f"<think>\\boxed{{0}}?</think> {box}"
        yield "box", f"Answer: {box}"
        yield "box", f"### Answer\n{box}"
        for heading in ("### Check", "#### Verification", "## Step 2: more", "**Note**", "#### Why this holds"):
            yield "heading behind the box", f"So {box}\n\n{heading}\nIt fits, as $1+1=2$."
    yield "box", r"\[ \boxed{@} \]"
    yield "box", r"\boxed{\boxed{@}}"
    yield "box", r"\boxed{\displaystyle @}"
    yield "windows", "So.\r\nAnswer: @\r\n"


def _empty_shapes() -> Iterator[tuple[str, str]]:
    for text in ("@", "It is @", "The answer @", "Answers: @", r"\boxed{@", "boxed{@}", ""):
        yield "no mark", text
    yield "several", "Answer: @ or 17"
    yield "several", r"\boxed{@, 17}"
    yield "several", "Answer: @\nAnswer: 17"
    yield "several", r"\boxed{@} or \boxed{17}"
    yield "several", "Answer: it may be @"


def laborious() -> Iterator[Laborious]:
    """Answers of few characters that take minutes to expand, and long or deep ones, against three references."""
    for answer in _laborious():
        for reference in ("42", "(x+1)^2", r"\frac{x^{100}-1}{x-1}"):
            yield "laborious answer", reference, answer
        yield "laborious reference", answer, "42"
        yield "laborious both", answer, f"1+{answer}"


def _laborious() -> Iterator[str]:
    for power in (12, 60, 999, 99_999):
        yield rf"(a+b+c+d+e+f)^{{{power}}}"
        yield rf"\frac{{x^{{{power * 9}}}-1}}{{x-1}}"
        yield rf"((x+1)^{{{power}}}+y)^{{{power}}}"
        yield rf"\sin^{{{power}}}(x)+\cos^{{{power}}}(x)+\sqrt{{x}}^{{{power}}}"
        yield f"{power}^{{{power}^{{{power}}}}}"
        yield f"({power}!)!"
        yield f"{power * 100}!"
        yield f"{power}^{{{power}!}}"
        yield rf"\binom{{{power}00000}}{{{power}0000}}"
        yield rf"\left(1+\sqrt{{2}}\right)^{{{power}}}"
        yield rf"x^{{{power}^{{{power}}}}}+y^{{{power}}}"
        yield rf"\tan({power}^{{{power}}})"
        yield rf"\lfloor \pi\cdot 10^{{{power}}}\rfloor"
        yield rf"\log_{{{power}}}({power}^{{{power}^{power}}})"
        yield rf"e^{{e^{{e^{{{power}}}}}}}"
        yield rf"\sum_{{i=1}}^{{{power}}} i"
        yield rf"\prod_{{k=1}}^{{{power}}} \frac{{k+1}}{{k}}"
        yield rf"\int_0^{{{power}}} e^{{-x^2}}dx"
        yield f"{power}!!!!!"
        yield rf"\sqrt[{power}]{{{power}}}" + rf"+\sqrt[{power}]{{x}}" * 20
        yield "+".join(rf"\sqrt{{{power + n}}}" for n in range(90))
        yield ",".join(rf"\sqrt{{{power + n}+x}}" for n in range(60))
        yield rf"\gcd({power}^{{{power}}}, {power + 1}^{{{power}}})"
        yield f"1e{power}"
    for count in (40, 300, 3000):
        yield "(" * count + "1" + ")" * count
        yield r"\frac{" * count + "1" + "}{2}" * count
        yield "1" + "+1" * count
        yield "9" * count
        yield "9**" * count + "9"
        yield "x^" * count + "2"
        yield r"\sqrt{" * count + "x" + "}" * count
        yield "-" * count + "1"
        yield "1" + "!" * count
        yield "x" + "'" * count
        yield r"\pm 1" + r"\pm x" * count
        yield "|" * count
        yield "{" * count
        yield "^" * count
        yield "1 " * count
        yield "1," * count + "2"
        yield "\\" * count
        yield "$" * count
        yield "²" * count
        yield "½" * count
        yield " " * count + "1" + "." * count
        yield "\\text{" * count
        yield r"\{1,2\}\cup" * count + r"\{3\}"
        yield "x<" * count + "1"
        yield "1=" * count + "1"
        yield "a:" * count + "b"
        yield "()" * count
        yield "a " * count
        yield "1000 " * count
        yield "1,000" * count
        yield "0." + "12" * count + "..."
    yield "__import__('os').getcwd()"
    yield "().__class__.__bases__[0].__subclasses__()"
    yield "\x00\ud7ff \\"
    yield "\u0669" * 100
