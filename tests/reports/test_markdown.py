"""Whatever a model writes, the rendered page shows that text and keeps its structure."""

import html
import random
import re

import pytest
from markdown_it import MarkdownIt

from posttrain.reports.markdown import cell, duration, escape, number, percent, points, table

HOSTILE = [
    "a | b || c |",
    "</td></table><script>alert(1)</script>",
    "```python\nprint('x')\n```\n# Heading\n\n- list\n1. one\n> quote\n---",
    "| x | y |\n|---|---|\n| 1 | 2 |",
    "![img](http://evil.example/x.png) [link](javascript:alert(1)) <https://evil.example>",
    "https://evil.example www.evil.example mailto:a@b.example @someone #123",
    "**bold** _it_ ~~gone~~ `code` ``x`` $E=mc^2$ $$x$$ \\| \\* &lt; &#124; &amp;",
    "<!-- comment --> <details><summary>x",
    "x\x00\x1b[31mred\x1b[0m\r\nnext\rline\x07",
    "\u202eabc\u200b\u2066def\ufeff",
    "  indented\n    more   spaces\n\n\nblank lines",
    "\ud83d lone surrogate",
    "[^1]: note\n[ref]: http://x.example\n*[abbr]: long",
    "= - + 3) 4.",
    "12 + 7 = 19\nAnswer: 19",
]


# Bare addresses need an optional package of the parser; `test_bare_addresses_are_no_links` stands in for it.
PARSER = MarkdownIt("gfm-like", {"linkify": False})


def rendered_cells(markdown):
    """Text of every table cell as a reader sees it, and the set of HTML elements of the page."""
    page = PARSER.render(markdown)
    cells = re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", page, re.DOTALL)
    elements = set(re.findall(r"<(\w+)", page))
    shown = [html.unescape(re.sub(r"<br\s*/?>", "\n", text)).replace("\xa0", " ") for text in cells]
    return shown, elements


def visible(text):
    """What `escape` promises to show: the text with control characters as codes, line ends as such."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    hidden = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
    text = re.sub(hidden, lambda match: f"\\u{ord(match[0]):04x}", text)
    return "\n".join(line.rstrip(" ") for line in text.split("\n"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_breaks_nothing(text):
    page = "# Title\n\n" + table(["head", "other"], [[escape(text), "safe"], ["last", "row"]]) + "\n\nend\n"
    shown, elements = rendered_cells(page)
    assert shown[:2] + shown[3:] == ["head", "other", "safe", "last", "row"]
    assert shown[2].strip() == visible(text).strip()
    assert elements <= {"h1", "table", "thead", "tbody", "tr", "th", "td", "br", "p"}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_safe_in_a_heading_and_a_paragraph(text):
    page = PARSER.render(f"# {escape(text)}\n\n{escape(text)}\n")
    assert set(re.findall(r"<(\w+)", page)) <= {"h1", "p", "br"}


@pytest.mark.parametrize(
    "text", ["http://a.b", "HTTPS://a.b/c", "ftp://a", "www.a.b", "WWW.a.b", "mailto:x", "a@b.co"]
)
def test_bare_addresses_are_no_links(text):
    assert not re.search(r"(?i)[a-z]+:(//|\w)|www\.|@", escape(f"see {text} there"))


def test_random_text_of_active_signs_survives():
    signs = "|*_`<>#[]()!~$&@\\-+=.:/ \n1aw\"'{}^%;,"
    for seed in range(300):
        text = "x" + "".join(random.Random(seed).choices(signs, k=30)) + "x"
        shown, elements = rendered_cells(table(["a"], [[escape(text)]]))
        assert shown[1] == visible(text), text
        assert elements <= {"table", "thead", "tbody", "tr", "th", "td", "br"}, text


def test_arithmetic_stays_readable_in_the_source():
    assert escape("12 + 7 = 19. Answer: 19 (sum), 50% of 38") == "12 + 7 = 19. Answer: 19 (sum), 50% of 38"


def test_long_and_empty_text_is_marked():
    assert cell("a" * 12, limit=10) == "aaaaaaaaaa *… (2 more characters)*"
    assert cell(" \n ") == "*(empty)*"
    assert cell("abc", limit=3) == "abc"


def test_numbers_as_a_reader_expects_them():
    assert percent(0.125, 0.029) == "12.5 ± 2.9 %"
    assert (percent(0.5), percent(None)) == ("50.0 %", "–")
    assert (points(0.3, 0.041), points(-0.05), points(None)) == ("+30.0 ± 4.1", "-5.0", "–")
    assert (number(1234567), number(3.14159), number(None)) == ("1,234,567", "3.14", "–")
    assert [duration(s) for s in (4.25, 42, 200, 7500, None)] == ["4.2 s", "42 s", "3 min 20 s", "2 h 05 min", "–"]
