"""Lines as they are decoded, and rows as they are set aside."""

from __future__ import annotations

import gzip
import json
import os

import pytest
from files import write

from searchkit.errors import CorpusError
from searchkit.readers.corpus import read_corpus
from searchkit.readers.rejects import Rejects

GOOD = '{"id": "good", "text": "tea"}\n'


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: data[:40] + b"\xff" * 40 + data[80:], lambda data: b"x" + data]
)
def test_damaged_gzip_is_a_corpus_error(tmp_path, damage):
    lines = "".join(f'{{"id": {n}, "text": "{os.urandom(20).hex()}"}}\n' for n in range(200))
    path = write(tmp_path / "a.jsonl.gz", lines)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorpusError, match=r"a.jsonl.gz:\d+: (the gzip file is damaged|the row|not utf-8)"):
        list(read_corpus(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("marked", [True, False])
def test_lines_may_be_utf16_by_their_mark_or_by_name(tmp_path, encoding, marked):
    text = '{"id": "a", "text": "Čaj \\u2028 \u2028 \u0a0a x"}\r\n{"id": "b", "text": "😀"}\n'
    if marked and encoding.endswith("e"):
        text = "\ufeff" + text
    path = write(tmp_path / "a.jsonl", text.encode(encoding))
    documents = list(read_corpus(path, encoding="utf-8" if marked else encoding))
    assert [each.text for each in documents] == ["Čaj \u2028 \u2028 \u0a0a x", "😀"]
    assert documents[1].place == f"{path}:2"


def test_broken_utf16_names_the_line(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD.encode("utf-16") + b"x")
    with pytest.raises(CorpusError, match=r"a.jsonl:2: not utf-16.* from here on: truncated data"):
        list(read_corpus(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"id,text", mtime=0), "it is gzipped; name it .gz"),
        (b"PK\x03\x04rest", "an Office document"),
        (b"PAR1rest", "it is a Parquet file; name it .parquet"),
        (b"%PDF-1.7\n", "it is a PDF"),
        ("id,text\n1,tea".encode("utf-16-le"), "UTF-16 without a byte order mark.* iconv"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_file_of_another_kind_says_which(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message), Rejects(tmp_path / "rows.jsonl") as rejects:
        list(read_corpus(tmp_path / name, rejects=rejects))


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("searchkit.readers.lines.LONGEST_LINE", 1000)
    with pytest.raises(CorpusError, match=r"a.jsonl:2: a line longer than"):
        list(read_corpus(write(tmp_path / "a.jsonl", GOOD + " " * 5000)))


def test_one_run_over_two_corpora_keeps_the_rejects_of_both(tmp_path):
    paths = [write(tmp_path / name, GOOD + "1\n") for name in ("a.jsonl", "b.jsonl")]
    rejects = Rejects(tmp_path / "rows.jsonl")
    for path in paths:
        with rejects:
            list(read_corpus(path, rejects=rejects))
    assert rejects.count == len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


def test_refused_rows_are_shown_whatever_bytes_they_hold(tmp_path):
    with Rejects(tmp_path / "rows.jsonl") as rejects:
        rejects.refuse("a\udce9", "bytes", b"th\xe9" + b"x" * 5000)
    entry = json.loads((tmp_path / "rows.jsonl").read_text())
    assert entry["place"] == "a\udce9"
    assert entry["row"] == "th\\xe9" + "x" * 5000
