"""A template reads the date that was set, whatever day it is; without one it is refused when it asks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers.utils import chat_template_utils

from posttrain.errors import ConfigError
from posttrain.models import template_clock
from posttrain.models.tiny import CHAT_TEMPLATE, character_tokenizer

DATED = "{{- strftime_now('%d %b %Y %H:%M') }}" + CHAT_TEMPLATE
CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def tokenizer(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", chat_template_utils.datetime)
    found = character_tokenizer()
    found.chat_template = DATED
    return found


def text(tokenizer, **variables) -> str:
    return tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True, **variables)


@pytest.mark.parametrize(
    ("date", "shown"), [("2026-01-31", "31 Jan 2026 00:00"), ("2026-01-31T12:30:00", "31 Jan 2026 12:30")]
)
def test_the_clock_shows_the_date_of_the_recipe(date, shown, tokenizer):
    template_clock.hold_clock(date)
    assert text(tokenizer).startswith(shown)
    template_clock.guard_clock()
    assert text(tokenizer).startswith(shown), "a trainer leaves it as it is"


def test_without_a_date_reading_it_is_refused(tokenizer):
    template_clock.hold_clock(None)
    with pytest.raises(ConfigError, match="model.template_date: the chat template writes the date or time"):
        text(tokenizer)
    with template_clock.noted_clock() as noted:
        text(tokenizer)
    assert noted == [True]
    tokenizer.chat_template = "{% if day is not defined %}{% set day = strftime_now('%d') %}{% endif %}{{ day }}"
    assert text(tokenizer, day="5") == "5", "a template that does not ask is not refused"
    assert template_clock.date_variable(tokenizer) == "day"


def test_what_a_template_may_read():
    def of(template: object) -> tuple[bool, bool]:
        tokenizer = SimpleNamespace(chat_template=template)
        return template_clock.reads_clock(tokenizer), template_clock.uses_chance(tokenizer)

    assert of(DATED) == (True, False)
    assert of({"default": "{{ x }}", "dated": DATED}) == (True, False)
    assert of("{{ ['a', 'b'] | random }}") == (False, True)
    assert of("{{ lipsum() }}") == (False, True)
    assert of(CHAT_TEMPLATE) == of(None) == (False, False)
