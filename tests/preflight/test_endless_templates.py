"""Chat templates that fail, loop, or write without end are one line of `check`, which goes on living."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.models import trial
from posttrain.models.tiny import build_tiny
from tests.config.recipes import checked, told


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 1 / (messages|length - messages|length) }}", "the chat template refuses the prompt: division by zero"),
        ("{% for i in range(10 ** 18) %}x{% endfor %}", "refuses the prompt: Range too big"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "refuses the prompt: maximum recursion depth"),
        (
            "{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}",
            "refuses the prompt: maximum recursion depth",
        ),
        ("{{ messages[99].content }}", "the chat template refuses the prompt: "),
        (
            "{{ 'x' * 10 ** 11 }}",
            "the chat template needs more than 1 GB of memory",
        ),
        ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "the chat template writes more than 10,"),
        (
            "{% macro b(n) %}{% if n %}{{ b(n - 1) }}{{ b(n - 1) }}{% endif %}{% endmacro %}{{ b(60) }}",
            "the chat template does not come to an end within 1 s",
        ),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "the chat template does not come to an end within 1 s",
        ),
    ],
    ids=lambda value: value[:30],
)
def test_a_template_that_does_not_end_soundly(
    template: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trial, "SECONDS", 1)
    path = build_tiny(tmp_path / "model", hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8)
    (path / "chat_template.jinja").write_text(template)
    changes = {"model": {"path": str(path)}, "data.train.size": 4, "trainer.per_device_train_batch_size": 2}
    assert text in told(checked(tmp_path, "sft", changes), Exception)


def test_what_a_call_does_to_its_process_is_told():
    assert trial.trouble(lambda: 3, most=3) is None
    assert trial.trouble(lambda: 1 // 0, most=3) is None  # an exception is told where the call is made in earnest
    assert trial.trouble(lambda: 4, most=3) == "writes more than 3 characters"
    assert trial.trouble(lambda: len(bytearray(4 << 30)), most=1) == "needs more than 1 GB of memory"
    assert trial.trouble(lambda: __import__("os").abort(), most=1) == "ends the process"
