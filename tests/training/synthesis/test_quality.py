from __future__ import annotations

import random

import pytest
from fake_llm import phrase

from searchkit.training.synthesis.duplicates import Seen
from searchkit.training.synthesis.languages import Languages
from searchkit.training.synthesis.quality import Candidate, Checks, copied, malformed

PASSAGE = (
    "The aileron was tested in a wind tunnel at speeds of up to Mach two, and the hinge moment rose with the angle."
)


@pytest.mark.parametrize(
    ("query", "run"),
    [
        ("aileron hinge moment", ""),
        ("tested in a wind tunnel at speeds", "tested in a wind tunnel"),
        ("The aileron was tested in a WIND-TUNNEL, why?", "the aileron was tested in a wind"),
        ("how does the load on a control surface change as it is turned against a fast stream of air", ""),
        ("was the aileron tested in a tank", ""),
        ("I wonder if the aileron was tested in a wind tunnel at speeds of up to three hundred miles an hour",
         "the aileron was tested in a wind tunnel at speeds of up"),
        ("I wonder if an aileron was ever tested in a wind tunnel at speeds of one to three hundred miles an hour", ""),
        ("wind tunnel at speeds", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_query_lifted_from_its_passage_is_known(query: str, run: str) -> None:
    found = copied(query, PASSAGE)
    assert bool(found) == bool(run)
    assert run in found


def test_a_query_lifted_from_the_prompts_example_is_rejected() -> None:
    checks = Checks(likeness=1, check_language=False, evaluation=())
    shown = 'For example: {"need": "My class watched a glass hive and saw a bee shaking and turning over and over."}'
    for query, reason in (
        ("My class watched a glass hive and saw a wing shaking and turning over and over again", None),
        (
            "A class of mine watched a glass hive and saw a bee shaking and turning over and over",
            "copied from the prompt",
        ),
    ):
        candidate = Candidate(query, PASSAGE, "Find", "grounded", "en", "queries@2", kind="need", shown=shown)
        assert (checks.fault(candidate) or (None,))[0] == reason
    checks.close()


def test_no_text_of_an_example_from_nothing_may_be_its_prompts() -> None:
    checks = Checks(likeness=1, check_language=False, evaluation=())
    shown = "S3 renders S1 badly. It shares words with S2 but loses or changes part of the meaning."
    texts = "The train is late", "Der Zug kommt nicht", "It shares words with S2 but loses part"
    sides = [
        (texts[0], texts[1], ()),
        (texts[0], texts[2], ()),
        (texts[0], texts[1], (texts[2],)),
        (texts[2], texts[1], ()),
    ]
    faults = [
        checks.fault(Candidate(query, positive, "", "bitext", "en", "bitext@1", negatives=negatives, shown=shown))
        for query, positive, negatives in sides
    ]
    assert faults == [None] + 3 * [("copied from the prompt", "it shares words with s2 but")]
    checks.close()


@pytest.mark.parametrize(
    ("query", "alone"),
    [
        ("What does the passage say about ailerons?", False),
        ("The author mentions hinge moments of flaps", False),
        ("why was this study done in a tunnel", False),
        ("who was the author of a paper on ailerons", True),
        ("the passage of time in a wind tunnel", True),
        ("the study of hinge moments", True),
        ("studies of ailerons in a passage between two walls", True),
    ],
)
def test_a_query_stands_alone(query: str, alone: bool) -> None:
    checks = Checks(likeness=1, check_language=False, evaluation=())
    fault = checks.fault(Candidate(query, PASSAGE, "Find", "grounded", "en", "queries@2"))
    checks.close()
    assert (fault or (None,))[0] == (None if alone else "speaks of the passage")


def test_a_copy_in_a_script_without_spaces_is_known() -> None:
    assert copied("副翼在风洞中测试", "副翼在风洞中测试,速度高达两马赫。")
    assert not copied("机翼的铰链力矩", "副翼在风洞中测试,速度高达两马赫。")


def jaccard(a: str, b: str) -> float:
    """Of the four-character shingles."""
    one, other = ({f" {text} "[n : n + 4] for n in range(len(text) - 1)} for text in (a, b))
    return len(one & other) / len(one | other)


def test_near_duplicates_are_those_that_share_their_shingles() -> None:
    rng = random.Random(3)
    seen = Seen()
    texts = [phrase(rng, 20) for _ in range(60)]
    for text in texts:
        seen.add(text)
    wrong = 0
    for text in texts:
        changed = " ".join(phrase(rng, 1) if rng.random() < rng.choice((0.02, 0.3)) else word for word in text.split())
        likeness = jaccard(text, changed)
        if abs(likeness - 0.8) > 0.1:  # MinHash estimates it to a few hundredths
            wrong += (seen.match(changed) != "") != (likeness > 0.8)
        assert seen.match(text.upper().replace(" ", "  ")) == "duplicate"
    assert wrong <= 1
    seen.close()


def test_exact_copies_alone_on_request() -> None:
    seen = Seen(1)
    seen.add("the same words in the same order and with the same end")
    assert seen.match("the same words in the same order and with the same ends") == ""
    assert seen.match("The same words in the same order and with the same  end") == "duplicate"


def test_plainly_wrong_languages_are_found_and_doubtful_ones_are_not() -> None:
    languages = Languages()
    german = "Der Zug nach Leipzig hatte heute wieder eine Stunde Verspätung, weil die Strecke gesperrt war."
    assert languages.of(german) == "de"
    assert languages.wrong(german, "en") == "de"
    assert languages.wrong(german, "de") == ""
    assert languages.wrong("Zug nach Leipzig", "en") == ""  # too short to tell
    assert languages.wrong(german, "sd") == ""  # a language the detector does not know
    assert languages.wrong("東京の天気は今日も晴れで、気温は三十度を超える見込みです。", "ko") == "ja"
    norwegian = "Toget til Bergen var forsinket en time i dag fordi sporet var stengt etter et ras i fjellet."
    assert languages.wrong(norwegian, "da") == ""  # too near to each other


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"positive": "What  is tea"}, "the query is its own positive"),
        ({"negatives": ("a LEAF",)}, "a negative is the positive itself"),
        ({"positive": "As an AI language model I have no opinion."}, "refused by the model"),
        ({"query": "I\u2019m sorry, but I can\u2019t help with that."}, "refused by the model"),
        ({"query": "Sorry, I cannot fulfill this request."}, "refused by the model"),
        ({"negatives": ("I am unable to assist with that request.",)}, "refused by the model"),
        ({"query": "I'm unable to log in to my account after the update"}, ""),
        ({"query": "someone says i can't help falling in love, what song"}, ""),
        ({"query": "I can't generate an invoice"}, ""),
        ({"query": "I'm sorry but I can't find the manual"}, ""),
        ({"query": "As an AI model trainer I need a GPU"}, ""),
        ({"positive": "When you see 'I'm not able to connect', restart the spooler."}, ""),
        # There the positive is the user's own, whatever it says.
        ({"positive": "As an AI language model I have no opinion.", "group": "grounded"}, ""),
        ({"query": "I can't assist with that.", "group": "grounded"}, "refused by the model"),
    ],
)
def test_examples_that_are_none_are_known(changes: dict[str, object], reason: str) -> None:
    values = {
        "query": "what is tea",
        "positive": "A leaf",
        "instruction": "",
        "group": "g",
        "language": "",
        "prompt": "p",
    }
    assert malformed(Candidate(**{**values, **changes})) == reason  # type: ignore[arg-type]
