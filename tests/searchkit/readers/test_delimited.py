"""CSV and TSV: quotes that are text, quotes that were forgotten, types of columns, rows without ids."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from searchkit.errors import CorpusError, InputError, RejectedRowError
from searchkit.readers.corpus import Fields, ReadReport, Rejects, TableOptions, read_corpus
from searchkit.records import Document


def write(path: Path, content: str) -> Path:
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lenient(path: Path, **options: Any) -> tuple[list[Document], list[dict[str, str]], ReadReport]:
    """Documents, rejects and report; in and out must add up."""
    report, rows = ReadReport(), path.parent / "rows.jsonl"
    rows.unlink(missing_ok=True)
    with Rejects(rows) as rejects:
        documents = list(read_corpus(path, rejects=rejects, report=report, **options))
    entries = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    assert report.rows == len(documents) + len(entries)
    return documents, entries, report


def typed(tmp_path: Path, cells: list[str], **options: Any) -> tuple[list[Any], str]:
    """The values of a column of such cells, and its type."""
    rows = "".join(f'{n},t,"{cell}"\n' for n, cell in enumerate(cells))
    documents, entries, report = lenient(write(tmp_path / "a.csv", "id,text,v\n" + rows), **options)
    assert not entries
    return [document.metadata["v"] for document in documents], report.columns["v"]


# --- quotes


def test_a_quote_in_tsv_is_text(tmp_path):
    rows = ["d1\tHow to bake", 'd3\t"The mill stopped', "d4\tTea", 'd5\t"all" of it', 'd6\tIt will rain"', 'd7\t"']
    documents, entries, _ = lenient(write(tmp_path / "a.tsv", "id\ttext\n" + "\n".join(rows) + "\n"))
    assert [f"{each.id}\t{each.text}" for each in documents] == rows
    assert entries == []


def test_a_tsv_whose_header_is_quoted_has_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", '"id"\t"text"\n"1"\t"say ""x""\tand\ny"\n')
    assert list(read_corpus(path)) == [Document("1", 'say "x"\tand\ny')]


@pytest.mark.parametrize("ids", ["d{}", "{}", "doc-{}", "00ff00aa00ff00{:02x}", "word"])
def test_an_open_quote_costs_its_own_row_only(tmp_path, ids):
    name = (lambda n: f"w{'abcdefghij'[n % 10]}{'abcdefghij'[n // 10]}") if ids == "word" else ids.format
    rows = [f"{name(n)},plain text number {n}\n" for n in range(50)]
    rows[3] = f'{name(3)},"Unclosed quote\n'
    documents, entries, _ = lenient(write(tmp_path / "a.csv", "id,text\n" + "".join(rows)))
    assert [each.id for each in documents] == [name(n) for n in range(50) if n != 3]
    assert [entry["row"] for entry in entries] == [rows[3].strip()]
    assert "a quote that opens here is not closed" in entries[0]["reason"]


def test_an_open_quote_that_a_later_one_closes_is_no_long_cell(tmp_path):
    rows = 'd1,How to bake\nd3,"The mill stopped\nd4,Tea\nd5,Oil\nd6,it will rain"\nd7,Apples\n'
    path = write(tmp_path / "a.csv", "id,text\n" + rows)
    documents, entries, _ = lenient(path)
    assert [each.id for each in documents] == ["d1", "d4", "d5", "d6", "d7"]
    assert "closes 3 lines on, at line 6, and line 4 looks like a row of its own" in entries[0]["reason"]
    with pytest.raises(RejectedRowError, match=r"a.csv:3: broken quotes"):
        list(read_corpus(path))


@pytest.mark.parametrize(
    "cell",
    [
        "two\nlines",
        "1, milk\n2, eggs\n3, tea",  # a list, as people write it
        "Dear Ann,\n\nthank you, and\n\ngoodbye",
        "\n".join(f"line {n} of a poem" for n in range(60)),
        "a,b\nc,d,e\nf,g",
        '{\n "a": 1,\n "b": 2\n}',
    ],
)
def test_a_cell_may_span_lines(tmp_path, cell):
    quoted = cell.replace('"', '""')
    path = write(tmp_path / "a.csv", f'id,text\n7,"{quoted}"\n8,tea\n')
    assert list(read_corpus(path)) == [Document("7", cell), Document("8", "tea")]


def test_a_cell_of_very_many_lines_is_reported(tmp_path):
    cell = "\n".join(f"line {n}" for n in range(200))
    report = ReadReport()
    list(read_corpus(write(tmp_path / "a.csv", f'id,text\n1,"{cell}"\n2,tea\n'), report=report))
    assert any("a.csv:2: a quoted cell spans 200 lines" in note for note in report.notes())


def test_a_broken_record_of_several_lines_is_one_reject_and_kept_whole(tmp_path):
    broken = '1,"two\nlines with "inner" quotes",x\n'
    documents, entries, _ = lenient(write(tmp_path / "a.csv", f"id,text,c\n{broken}2,ok,y\n"))
    assert ([each.id for each in documents], [entry["row"] for entry in entries]) == (["2"], [broken.strip()])


def test_long_rejects_are_kept_whole(tmp_path):
    row = "1," + "x" * 5000 + ",too,many"
    _, entries, _ = lenient(write(tmp_path / "a.csv", f"id,text\n{row}\n"))
    assert entries[0]["row"] == row


# --- types


@pytest.mark.parametrize(
    ("cells", "values", "kind"),
    [
        (["2019", "2003", ""], [2019, 2003, None], "integer"),
        (["-1", "0", " 7 "], [-1, 0, 7], "integer"),
        (["9223372036854775807"], [2**63 - 1], "integer"),
        (["9223372036854775808"], ["9223372036854775808"], "text"),
        (["1.5", "2"], [1.5, 2.0], "decimal"),
        ([".5", "-0.25"], [0.5, -0.25], "decimal"),
        (["1e5", "2.5E-3"], [100000.0, 0.0025], "decimal"),
        (["true", "FALSE", "True"], [True, False, True], "boolean"),
        (["2024-05-01", "2024-05-01T12:30:05Z"], ["2024-05-01", "2024-05-01T12:30:05Z"], "date"),
        (["2024-02-30"], ["2024-02-30"], "text"),
        (["05/01/2024"], ["05/01/2024"], "text"),
        (["007", "12"], ["007", "12"], "text"),
        (["+49 30 1234", "030-1"], ["+49 30 1234", "030-1"], "text"),
        (["+4930"], ["+4930"], "text"),
        (["1,234"], ["1,234"], "text"),
        (["1_000"], ["1_000"], "text"),
        (["1", "nan"], ["1", "nan"], "text"),
        (["1.5", "inf"], ["1.5", "inf"], "text"),
        (["1e999"], ["1e999"], "text"),
        (["3.14159265358979323846"], ["3.14159265358979323846"], "text"),
        (["2019", "n.d."], ["2019", "n.d."], "text"),
        (["true", "1"], ["true", "1"], "text"),
        (["yes", "no"], ["yes", "no"], "text"),
        (["", ""], ["", ""], "text"),
        (["٣"], ["٣"], "text"),
        (["0x1F", "1."], ["0x1F", "1."], "text"),
    ],
)
def test_a_column_has_a_type_only_if_every_cell_has_it(tmp_path, cells, values, kind):
    found = typed(tmp_path, cells)
    assert found == (values, kind)
    assert [type(each) for each in found[0]] == [type(each) for each in values]


@pytest.mark.parametrize("name", ["phone", "zip_code", "ISBN", "postCode", "version"])
def test_digits_that_are_no_quantity_stay_text(tmp_path, name):
    documents, _, _ = lenient(write(tmp_path / "a.csv", f"id,text,{name}\n1,t,4930123\n"))
    assert documents[0].metadata == {name: "4930123"}


def test_ids_titles_and_texts_stay_text(tmp_path):
    path = write(tmp_path / "a.tsv", "id\ttitle\ttext\tn\n01\t2\t3\t4\n")
    assert list(read_corpus(path)) == [Document("01", "3", "2", {"n": 4})]


def test_a_misfit_far_down_makes_the_whole_column_text(tmp_path):
    values, kind = typed(tmp_path, [str(n) for n in range(3000)] + ["n.d."])
    assert (values[0], values[-1], kind) == ("0", "n.d.", "text")


def test_a_column_that_nearly_has_a_type_is_reported(tmp_path):
    path = write(tmp_path / "a.csv", "id,text,year\n" + "".join(f"{n},t,{2000 + n}\n" for n in range(20)) + "x,t,?\n")
    documents, _, report = lenient(path)
    assert documents[0].metadata == {"year": "2000"}
    assert any('"year" stays text: 1 of 21 cells, such as "?" at' in note for note in report.notes())
    documents, entries, _ = lenient(path, table=TableOptions(types={"year": "integer"}))
    assert documents[0].metadata == {"year": 2000}
    assert [entry["reason"] for entry in entries] == ['column "year" holds "?", which is not an integer such as 1234']


def test_a_type_that_is_named_decides(tmp_path):
    options = TableOptions(types={"v": "text"})
    assert typed(tmp_path, ["1", "2"], table=options) == (["1", "2"], "text")
    options = TableOptions(types={"v": "decimal"})
    assert typed(tmp_path, ["1", "NaN", "N/A", ""], table=options) == ([1.0, None, None, None], "decimal")


@pytest.mark.parametrize(
    ("types", "message"),
    [({"v": "float"}, "types are integer, decimal"), ({"w": "integer"}, 'no column "w" to give a type')],
)
def test_a_type_or_column_that_does_not_exist_is_refused(tmp_path, types, message):
    with pytest.raises(InputError, match=message):
        list(read_corpus(write(tmp_path / "a.csv", "id,text,v\n1,t,2\n"), table=TableOptions(types=types)))


def test_column_types_are_for_tables_alone(tmp_path):
    with pytest.raises(InputError, match=r"are for CSV and TSV, but this is jsonl"):
        read_corpus(write(tmp_path / "a.jsonl", ""), table=TableOptions(types={"v": "integer"}))


def test_standard_input_is_typed_too(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"id,text,n\n1,tea,5\n2,milk,\n")))
    assert [each.metadata for each in read_corpus("-", kind="csv")] == [{"n": 5}, {"n": None}]


def test_gzipped_files_are_typed_too(tmp_path):
    assert next(read_corpus(write(tmp_path / "a.csv.gz", "id,text,n\n1,tea,5\n"))).metadata == {"n": 5}


# --- ids, delimiters, headers


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "title,text\n,tea\n,milk\n"),
        ("a.tsv", "text\ntea\nmilk\n"),
        ("a.jsonl", '{"text": "tea"}\n\n{"text": "milk"}\n'),
    ],
)
def test_rows_without_ids_are_numbered_and_that_is_said_once(tmp_path, name, content):
    documents, _, report = lenient(write(tmp_path / name, content))
    assert [each.id for each in documents] == [f"{name}#1", f"{name}#2"]
    assert sum("numbered" in note for note in report.notes()) == 1


def test_a_rejected_row_does_not_change_the_numbers_of_the_others(tmp_path):
    documents, entries, _ = lenient(
        write(tmp_path / "a.jsonl", '{"text": "a"}\n7\n{"text": "b"}\n{"id": 1, "text": "c"}\n')
    )
    assert [each.id for each in documents] == ["a.jsonl#1", "a.jsonl#3"]
    assert entries[1]["reason"].startswith('has an "id", but the first row has none')


def test_rows_of_parquet_are_numbered_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    assert [each.id for each in read_corpus(tmp_path / "a.parquet")] == ["a.parquet#1", "a.parquet#2"]


@pytest.mark.parametrize(("delimiter", "between"), [(";", ";"), ("tab", "\t"), ("\\t", "\t"), ("|", "|")])
def test_a_delimiter_can_be_named(tmp_path, delimiter, between):
    path = write(
        tmp_path / "a.csv", between.join(("id", "text", "n")) + "\n" + between.join(("1", '"a,b"', "5")) + "\n"
    )
    assert list(read_corpus(path, table=TableOptions(delimiter))) == [Document("1", "a,b", "", {"n": 5})]


@pytest.mark.parametrize(
    ("name", "content", "option"), [("a.csv", "id;text\n1;t\n", ";"), ("a.csv", "id\ttext\n", "tab")]
)
def test_another_delimiter_is_guessed_in_the_error(tmp_path, name, content, option):
    with pytest.raises(CorpusError, match=f'separated by another character: --delimiter "{option}"') as error:
        lenient(write(tmp_path / name, content))
    assert not isinstance(error.value, RejectedRowError)  # skipping rows would not help


def test_a_quoted_header_with_another_delimiter_names_it(tmp_path):
    path = write(tmp_path / "a.csv", '"id";"text"\n"1";"tea; green"\n')
    with pytest.raises(
        CorpusError, match=r'no column "text"; the cells seem to be separated by another character: --delimiter ";"'
    ):
        list(read_corpus(path))
    path = write(tmp_path / "b.csv", "nr;inhalt\n1;tee\n")
    with pytest.raises(
        CorpusError, match=r'columns are "nr;inhalt"; the cells seem to be separated by another character'
    ):
        list(read_corpus(path))
    table = TableOptions(delimiter=";")
    assert [each.text for each in read_corpus(tmp_path / "a.csv", table=table)] == ["tea; green"]


def test_a_long_name_of_a_column_is_cut_in_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r'its columns are "id", "t{59}…"; name the text column'):
        list(read_corpus(write(tmp_path / "a.csv", f"id,{'t' * 5000}\n1,tea\n")))


def test_the_first_line_of_excel_names_the_delimiter(tmp_path):
    (document,) = read_corpus(write(tmp_path / "a.csv", "\ufeffsep=;\r\nid;text;year\r\n1;tea, green;2001\r\n"))
    assert (document.text, document.metadata) == ("tea, green", {"year": 2001})
    assert document.place.endswith("a.csv:3")


def test_columns_in_capitals_are_suggested(tmp_path):
    path = write(tmp_path / "a.csv", "ID,Title,Text\n1,Tea,green\n")
    with pytest.raises(CorpusError, match=r"\(here: --id-field ID --title-field Title --text-field Text\)"):
        list(read_corpus(path))


def test_old_line_ends_are_explained(tmp_path):
    for name, between in (("a.csv", ","), ("a.tsv", "\t")):
        path = write(tmp_path / name, f"id{between}text\r1{between}tea\r")
        with pytest.raises(CorpusError, match=r"lines end in carriage returns alone; convert it: tr"):
            list(read_corpus(path))


def test_rows_of_separators_alone_are_counted_and_stop_nothing(tmp_path):
    path = write(tmp_path / "a.csv", "id,text,year\n1,tea,2001\n,,\n\n2,milk,2002\n   \n, ,\n")
    documents, entries, _ = lenient(path)
    assert [each.metadata for each in documents] == [{"year": 2001}, {"year": 2002}]
    assert [(entry["place"][-1], entry["reason"]) for entry in entries] == [
        (line, "every cell is empty") for line in "367"
    ]
    rejects = Rejects()
    assert len(list(read_corpus(path, rejects=rejects))) == 2
    assert rejects.count == 3


def test_a_header_that_comes_again_is_no_document_and_spoils_no_type(tmp_path):
    documents, entries, report = lenient(
        write(tmp_path / "a.csv", "id,text,year\n1,tea,2001\nid,text,year\n2,milk,2002\n")
    )
    assert [each.metadata for each in documents] == [{"year": 2001}, {"year": 2002}]
    assert report.columns == {"year": "integer"}
    assert entries[0]["reason"].startswith("the header again")


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n"])
def test_what_is_no_delimiter_is_refused(tmp_path, delimiter):
    with pytest.raises(InputError, match="expected one character"):
        list(read_corpus(write(tmp_path / "a.csv", "id,text\n"), table=TableOptions(delimiter)))


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        ("tea\nmilk\n", Fields(), [Document("a.tsv#1", "tea"), Document("a.tsv#2", "milk")]),
        ("7\ttea\n", Fields(), [Document("7", "tea")]),
        ("7\tTea\thot\n", Fields(), [Document("7", "hot", "Tea")]),
        ("5\thot\t7\tTea\n", Fields("3", "4", "2"), [Document("7", "hot", "Tea", {"1": 5})]),
    ],
)
def test_a_header_may_be_missing(tmp_path, content, fields, expected):
    path = write(tmp_path / "a.tsv", content)
    assert list(read_corpus(path, fields=fields, table=TableOptions(header=False))) == expected


def test_four_columns_without_a_header_must_be_named(tmp_path):
    with pytest.raises(CorpusError, match=r"4 columns and no header; .* --id-field 1"):
        list(read_corpus(write(tmp_path / "a.csv", "1,2,3,4\n"), table=TableOptions(header=False)))
