"""Front matter that means what it says, and titles without marks."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from searchkit.readers import markdown
from searchkit.readers.corpus import ReadReport, read_corpus
from searchkit.readers.markdown import front_matter, markdown_title, without_title


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("01234", "01234"),
        ("10:30", "10:30"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("1_000", "1_000"),
        ("+5", "+5"),
        (".", "."),
        ("-.e5", "-.e5"),
        (".5", 0.5),
        ("true", True),
        ("-7", -7),
        ("4.5", 4.5),
        ("1e3", "1e3"),
        ("1.5e+3", 1500.0),
        ("~", None),
        ("2024-05-01", "2024-05-01"),
        ("2024-05-01 10:00:00", "2024-05-01T10:00:00"),
        ("2024-06-31", "2024-06-31"),
        ("[a, 5, 2024-05-01]", ["a", 5, "2024-05-01"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_values_are_those_of_yaml_1_2(written, value):
    values, text, fault = front_matter(f"---\nkey: {written}\n---\nbody")
    assert (values, text, fault) == ({"key": value}, "body", "")
    assert type(values["key"]) is type(value)


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ("title: Foo: bar\ntags: a\n---\n", 'line 2: mapping values are not allowed here; put a value'),
        ("title: One\ntitle: Two\n---\n", "line 2: a key comes twice"),
        ("a: &x [1]\nb: *x\n---\n", "aliases may expand without end"),
        ("title: !!python/object/apply:os.getcwd []\n---\n", "line 2: could not determine a constructor"),
        ("title: never closed\n\nbody\n", "it is not closed"),
    ],
)  # fmt: skip
def test_front_matter_that_cannot_be_read_stays_text_and_says_why(block, fault):
    values, text, said = front_matter(f"---\n{block}")
    assert (values, text) == ({}, f"---\n{block}")
    assert said.startswith(fault)


def test_front_matter_that_cannot_be_read_is_reported_once_for_all_files(tmp_path: Path):
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("---\ntitle: Foo: bar\n---\nbody\n")
    (tmp_path / "c.md").write_text("---\ntitle: [a, b]\n---\n# Real\n")
    report = ReadReport()
    documents = list(read_corpus(tmp_path, report=report))
    assert len(report.notes()) == 1
    assert report.notes()[0].startswith(
        f"front matter of 2 files cannot be read and stays text: {tmp_path / 'a.md'}: line 2"
    )
    assert (documents[2].title, documents[2].metadata["title"]) == ("Real", ["a", "b"])  # a list is no title


def test_toml_has_dates_too():
    values, text, _ = front_matter("+++\ndate = 2024-05-01\nn = 1\n+++\nbody")
    assert (values, text) == ({"date": datetime.date(2024, 5, 1).isoformat(), "n": 1}, "body")


@pytest.mark.parametrize(
    ("heading", "title"),
    [
        ("Fish &amp; chips &#39;", "Fish & chips '"),
        ("Title {#anchor}", "Title"),
        ("Title[^1] more", "Title more"),
        ("[[Page]] and [[folder/Page|shown]]", "Page and shown"),
        ("C# {braces} stay", "C# {braces} stay"),
    ],
)
def test_a_title_is_without_marks(heading, title):
    assert markdown_title(f"# {heading}\n\nbody") == title


@pytest.mark.parametrize(
    ("text", "title", "rest"),
    [
        ("# Green tea\n\nSteep it.\n", "Green tea", "Steep it.\n"),
        ("\n# **Green** `tea` #\n    code\n", "Green tea", "    code\n"),
        ("Green tea\n=========\nSteep it.", "Green tea", "Steep it."),
        ("=========\nGreen tea\n=========\n\nSteep it.", "Green tea", "Steep it."),
        ("= Green tea\nAda\n\nSteep it.", "Green tea", "Ada\n\nSteep it."),
        ("#+TITLE: Green tea\n#+author: Ada\nSteep it.", "Green tea", "#+author: Ada\nSteep it."),
        ("GREEN\nTEA\nSteep it.", "Green tea", "Steep it."),
        ("# C#\nSteep it.", "C#", "Steep it."),
        ("# \uff27reen tea\nSteep it.", "Green tea", "Steep it."),
        ("# Green tea\n~~~\nx\n~~~\n", "Green tea", "~~~\nx\n~~~\n"),
        ("# Green tea\n\n---\nSteep it.", "Green tea", "---\nSteep it."),
    ],
)
def test_a_title_at_the_beginning_is_taken_from_the_text(text, title, rest):
    assert without_title(text, title) == rest


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Green tea\n", "Green tea"),  # nothing would be left
        ("# Green tea leaves\nx", "Green tea"),
        ("# Green\n\nTeas\nx", "Green tea"),
        ("Intro.\n# Green tea\nx", "Green tea"),
        ("# [Green tea](https://example.org)\nx", "Green tea"),  # the link would be lost
        ("```\nGreen tea\n```\nx", "Green tea"),
        ("Steep it.", ""),
        ("---\nSteep it.", "!!"),
        ("", "Green tea"),
    ],
)
def test_all_else_stays_in_the_text(text, title):
    assert without_title(text, title) == text


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\u2028\u2029"), max_size=12)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.dates().map(str)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


class Writer(yaml.SafeDumper):
    """Quotes what YAML 1.2 would read as something else than a string, and not what 1.1 would."""

    yaml_implicit_resolvers = markdown._Loader.yaml_implicit_resolvers


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@example({"-.0": None, "1.50": "-.0", "~": "1e3"}, "")
@given(st.dictionaries(WORDS, VALUES, min_size=1, max_size=5), WORDS)
def test_what_is_written_as_front_matter_comes_back(values, body):
    written = yaml.dump(values, Dumper=Writer, allow_unicode=True, default_flow_style=False, width=10_000)
    assert front_matter(f"---\n{written}---\n# {body}") == (values, f"# {body}", "")
