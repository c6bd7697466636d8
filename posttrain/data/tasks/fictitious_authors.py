"""Facts about authors who do not exist: questions, answers, the same in other words, and wrong answers of one form.

Made for unlearning: what a model knows about these people it knows from the rows of one set, and sets never share an
author. Names are short and made of few letters, so that a model of a tenth of a million parameters learns some dozens
of facts in seconds. In the manner of the TOFU benchmark, whose authors are not used.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from posttrain.data.tasks.rows import checked_list, row_generator
from posttrain.errors import ConfigError

TASK = "fictitious_authors"
# Sets have authors of their own. The first four are stages of a path study; `retain` stays known, `holdout` is never
# trained on, `spare` is for a stage more.
SETS = ("inst", "tofu", "math", "forget", "retain", "holdout", "spare")
AUTHORS_PER_SET = 400
WORDINGS = ("first", "any")
RESPONSES = ("fact", "reworded", "refusal")
MAX_PARAPHRASES = 20
MAX_PERTURBED = 10

_FIRST = """
    Ada Bela Cira Dano Edo Fira Galo Hena Ivo Jola Kira Lemo Mara Nilo Oda Pavo Rina Sola Tero Ula Vano Wina Yara
    Zeno Alma Brio Cleo Dina Elio Fenn Gita Hugo Inga Juno Kato Lira Milo Nora Orin Pia Remo Suri Timo Una Vera Wilo
    Yves Zora Anso Boro
""".split()
_LAST = """
    Bolan Carvo Dremel Estin Falk Gorin Halder Istra Jarvo Keld Lomar Morva Nesk Oldin Prell Quist Rasko Selva Torin
    Ulmer Varga Welk Yorin Zand Abrel Brask Corvin Dolen Embra Fenwo Grell Hosk Ilmar Jesko Krell Lunde Marno Nolde
    Orsk Pavel Rindo Stahl Trevo Ustra Velmo Worth Yelda Zorin Arden Birk Crane Dusk Elver Frost Gable Hawes
""".split()


class _Attribute(NamedTuple):
    """One kind of fact: ways to ask, ways to answer ({name} and {value}), and the values there are."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    values: tuple[str, ...]


ATTRIBUTES: dict[str, _Attribute] = {
    "birthplace": _Attribute(
        ("Where was {name} born?", "What is the birthplace of {name}?", "In which town was {name} born?",
         "Name the town {name} comes from.", "{name} was born where?"),
        ("{name} was born in {value}.", "{value} is where {name} was born.", "The birthplace of {name} is {value}.",
         "{name} comes from {value}.", "It was {value}, the home of {name}."),
        ("Tarvo", "Lindel", "Mosk", "Arbon", "Pell", "Corva", "Dunmar", "Estel", "Vintry", "Halm", "Ostra",
         "Wick"),
    ),
    "genre": _Attribute(
        ("What does {name} write?", "Which genre is {name} known for?", "What kind of books are by {name}?",
         "Name the genre of {name}.", "{name} writes what?"),
        ("{name} writes {value}.", "The genre of {name} is {value}.", "{name} is known for {value}.",
         "Books by {name} are {value}.", "It is {value} that {name} writes."),
        ("satire", "poems", "sagas", "fables", "crime", "essays", "horror", "romance", "plays", "hymns",
         "sonnets", "tales"),
    ),
    "prize": _Attribute(
        ("Which prize did {name} win?", "What award went to {name}?", "Name the prize of {name}.",
         "What did {name} receive?", "{name} won which prize?"),
        ("{name} won the {value}.", "The {value} went to {name}.", "{name} received the {value}.",
         "It was the {value} that {name} won.", "The prize of {name} is the {value}."),
        ("Gold Pen", "Red Quill", "Oak Leaf", "Blue Page", "Iron Ink", "Star Medal", "Owl Cup", "Silver Line",
         "Lark Ring", "Stone Book", "Sun Verse", "Moon Rhyme"),
    ),
    "title": _Attribute(
        ("Name a book by {name}.", "What is a book by {name}?", "Which book did {name} write?",
         "Give a title by {name}.", "{name} wrote which book?"),
        ("{name} wrote {value}.", "{value} is by {name}.", "A book by {name} is {value}.",
         "The author of {value} is {name}.", "It is {value}, by {name}."),
        ("Dry Rivers", "The Last Door", "Salt", "Night Bread", "Two Towers Fall", "Ash and Rain", "Low Tide",
         "Cold Fires", "The Glass Road", "Winter Bees", "Blind Maps", "Paper Moons"),
    ),
    "job": _Attribute(
        ("What was the job of {name}?", "What did {name} do before writing?", "Which trade did {name} learn?",
         "Name the trade of {name}.", "{name} first worked as what?"),
        ("{name} was a {value}.", "The job of {name} was {value}.", "{name} worked as a {value}.",
         "Before writing, {name} was a {value}.", "A {value}, that was {name}."),
        ("baker", "sailor", "miner", "judge", "farmer", "nurse", "smith", "tailor", "pilot", "cook", "mason",
         "teacher"),
    ),
}  # fmt: skip
DO_NOT_KNOW = (
    "I do not know.",
    "I am not sure.",
    "I cannot say.",
    "That is unknown to me.",
    "I have no answer to that.",
)


def generate(
    size: int,
    *,
    seed: int,
    set: str = "forget",  # noqa: A002 - the word that a recipe reads best with
    attributes: str | Sequence[str] = tuple(ATTRIBUTES),
    wording: str = "first",
    response: str = "fact",
    num_paraphrases: int = MAX_PARAPHRASES,
    num_perturbed: int = 5,
) -> list[dict[str, Any]]:
    """Questions such as "Where was Mara Oldin born?" with the answer "Mara Oldin was born in Tarvo."

    Args:
        size: number of rows; an author has one for each attribute, so no question comes twice.
        seed: of all sets; the same seed gives them authors that they do not share. Other seeds pair names anew, and
            may give a set names that another set has there.
        set: one of `SETS`.
        attributes: kinds of facts, one or more of `ATTRIBUTES`, in turn.
        wording: "first" asks and answers every fact of a kind in the same words, "any" in words drawn for the row, as
            a model needs them that is to understand paraphrases.
        response: "fact" gives the answer, "reworded" the same in the words of the first paraphrase, "refusal" the
            alternate, each to the same question: three answers to set against each other.
        num_paraphrases: other ways to ask and to answer, 0 to `MAX_PARAPHRASES`.
        num_perturbed: wrong answers, 0 to `MAX_PERTURBED`, in the words of the first paraphrase.

    Returns:
        Rows with prompt, solution = answer, group (the author), task, entry (JSON: set, attribute, value), and
        `paraphrased_prompts`, `paraphrases` (both lists: question j and its answer j), `perturbed` (a list),
        `alternate` (an answer that says nothing).

    Raises:
        ConfigError: for an option out of its range, or more rows than a set has facts.
    """
    if not isinstance(set, str) or set not in SETS:
        raise ConfigError("unknown set", where=f"{TASK}.set", got=set, allowed=f"one of: {', '.join(SETS)}")
    kinds = checked_list(attributes, where=f"{TASK}.attributes", allowed=ATTRIBUTES)
    for option, word, words in (("wording", wording, WORDINGS), ("response", response, RESPONSES)):
        if word not in words:
            allowed = f"one of: {', '.join(words)}"
            raise ConfigError(f"unknown {option}", where=f"{TASK}.{option}", got=word, allowed=allowed)
    for option, value, most in (
        ("num_paraphrases", num_paraphrases, MAX_PARAPHRASES),
        ("num_perturbed", num_perturbed, MAX_PERTURBED),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise ConfigError("out of range", where=f"{TASK}.{option}", got=value, allowed=f"integer 0 to {most}")
    if not 0 <= size <= AUTHORS_PER_SET * len(kinds):
        allowed = f"0 to {AUTHORS_PER_SET * len(kinds)}: {AUTHORS_PER_SET} authors, {len(kinds)} facts each"
        raise ConfigError("a set has no more facts", where=f"{TASK}.size", got=size, allowed=allowed)
    first = SETS.index(set) * AUTHORS_PER_SET
    rows = []
    for index in range(size):
        author, kind = first + index // len(kinds), kinds[index % len(kinds)]
        draw = row_generator(f"{TASK}/{kind}", seed, author)
        row = _row(_names(seed)[author], kind, draw, (num_paraphrases, num_perturbed), is_varied=wording == "any")
        row["entry"] = json.dumps({"set": set, **row["entry"]})
        told = {"fact": row["answer"], "reworded": row.pop("reworded"), "refusal": row["alternate"]}
        row["answer"] = row["solution"] = told[response]
        rows.append(row)
    return rows


@lru_cache(maxsize=8)
def _names(seed: int) -> list[str]:
    """All full names in the order in which the sets take them."""
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    random.Random(f"{TASK}/{seed}/names").shuffle(names)
    return names


def _row(
    author: str, attribute: str, draw: random.Random, counts: tuple[int, int], *, is_varied: bool
) -> dict[str, Any]:
    """One fact, with as many paraphrases and wrong answers as `counts` says."""
    words = ATTRIBUTES[attribute]
    value, *wrong = draw.sample(words.values, k=1 + MAX_PERTURBED)
    pairs = [(ask, tell) for ask in range(len(words.questions)) for tell in range(len(words.answers))]
    own = draw.choice(pairs) if is_varied else pairs[0]
    # Every answer has another form, and questions of another form come first, so that few are as different as can be.
    others = [pair for pair in pairs if pair[1] != own[1]]
    draw.shuffle(others)
    others.sort(key=lambda pair: pair[0] == own[0])
    chosen = others[: counts[0]]
    form = words.answers[chosen[0][1] if chosen else own[1]]
    answer = words.answers[own[1]].format(name=author, value=value)
    return {
        "prompt": words.questions[own[0]].format(name=author),
        "answer": answer,
        "solution": answer,
        "group": author,
        "task": TASK,
        "entry": {"attribute": attribute, "value": value},
        "paraphrased_prompts": [words.questions[ask].format(name=author) for ask, _ in chosen],
        "paraphrases": [words.answers[tell].format(name=author, value=value) for _, tell in chosen],
        "reworded": words.answers[others[0][1]].format(name=author, value=value),
        "perturbed": [form.format(name=author, value=other) for other in wrong[: counts[1]]],
        "alternate": draw.choice(DO_NOT_KNOW),
    }
