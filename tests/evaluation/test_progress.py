"""What a waiting user sees: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import io

import pytest

from posttrain.evaluation.progress import EvaluationProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_lines_come_no_faster_than_asked():
    stream = io.StringIO()
    with EvaluationProgress(stream=stream, line_every_seconds=0.0) as progress:
        for done in (2, 4, 6):
            progress(done, 6)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["evaluated 2 of 6 prompts", "evaluated 4 of 6 prompts"]
    assert all("left 0:00" in line for line in lines)
    quiet = io.StringIO()
    with EvaluationProgress(stream=quiet) as progress:
        progress(2, 6)
    assert quiet.getvalue() == ""


def test_on_a_terminal_a_bar_shows_how_much_is_left_and_goes_away_on_an_error():
    stream = Terminal()
    with pytest.raises(KeyError), EvaluationProgress(stream=stream) as progress:
        progress(2, 6)
        raise KeyError
    shown = stream.getvalue()
    assert "2/6" in shown and "left 0:00" in shown
    assert shown.rstrip("\r\n").endswith(("\x1b[?25h", "\x1b[2K"))  # the cursor is back, the line empty
