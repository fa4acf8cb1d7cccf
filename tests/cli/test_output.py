"""What reaches the terminal: safe text, tables that fit, and one message for every kind of failure."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import call, write_lines
from rich.cells import cell_len

from searchkit import SearchkitError
from searchkit.cli import main as cli
from searchkit.cli.main import main
from searchkit.cli.output import clean, count, shorten
from searchkit.cli.types import ListOf, _evaluation_modes
from searchkit.errors import MissingExtraError

EVIL = "log \x1b[2J\x1b]0;owned\x07 \x9b31m \u202egnp.exe \x7f"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One document whose id, title, text and metadata try to control the terminal."""
    folder = tmp_path_factory.mktemp("output")
    row = {"id": f"id {EVIL}", "title": EVIL * 20, "text": f"tea {EVIL} {'漢字' * 500}", "key": EVIL}
    write_lines(folder / "evil.jsonl", [row, {"id": "plain", "text": "coffee"}])
    call("index", folder / "evil.jsonl", "--index", folder / "evil.index")
    return folder / "evil.index"


def test_a_line_end_of_windows_is_a_line_end_and_a_lone_carriage_return_is_shown() -> None:
    assert clean("one\r\ntwo\rthree") == "one\ntwo\\x0dthree"


def controls(text: str) -> set[str]:
    """The characters of a text that control a terminal, by Unicode's categories."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {
        character
        for character in text
        if (unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in bidi)
        and character not in "\n\t"
    }


def test_clean_leaves_nothing_that_controls_a_terminal() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert controls(clean(everything)) == set()
    harmless = "naïve 漢字 👩\u200d🚀 عربي\n\ttab"
    assert clean(harmless) == harmless
    assert clean("\x1b[2J caf\udce9 \u202e") == "\\x1b[2J caf\\xe9 \\u202e"


@pytest.mark.parametrize(
    "arguments",
    [("search", "{}", "tea"), ("search", "{}", EVIL), ("search", "{}", "tea", "--explain"), ("info", "{}"),
     ("get", "{}", f"id {EVIL}"), ("similar", "{}", f"id {EVIL}"), ("delete", "{}", EVIL), ("check", "{}"),
     ("search", "{}", "tea", "--where", json.dumps({"key": EVIL}))],
)  # fmt: skip
def test_no_output_controls_the_terminal(index: Path, arguments: tuple[str, ...]) -> None:
    result = call(*(str(index) if argument == "{}" else argument for argument in arguments))
    assert controls(result.stdout + result.stderr) == set()


@pytest.mark.parametrize(
    "arguments", [("get", "{}", EVIL), ("search", "{}", "tea", "--task", EVIL), ("search", f"no{EVIL}", "tea"), (EVIL,),
                  ("search", "{}", "tea", f"--{EVIL}"), ("index", EVIL, "--index", "x"),
                  ("search", "{}", "tea", "--model", EVIL),
                  ("evaluate", "{}", "--modes", EVIL), ("search", "{}", "tea", "--where", EVIL)],
)  # fmt: skip
def test_no_error_controls_the_terminal(index: Path, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [str(index) if argument == "{}" else argument for argument in arguments])
    assert result.exit_code in (1, 2)
    assert controls(result.output) == set()
    assert "\\x1b" in result.output


def test_json_keeps_every_character(index: Path) -> None:
    line = call("search", index, "tea", "--mode", "lexical", "--format", "json").stdout
    assert controls(line) == set()
    assert json.loads(line)["hits"][0]["id"] == f"id {EVIL}"


def test_long_titles_and_unspaced_text_fit_the_terminal(index: Path) -> None:
    shown = CliRunner().invoke(main, ["search", str(index), "tea", "--mode", "lexical"], env={"COLUMNS": "60"}).stdout
    assert max(map(cell_len, shown.splitlines())) <= 60
    assert len(shown.splitlines()) < 20


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("a  b\nc", 10, "a b c"),
        ("several words in a row", 14, "several …"),
        ("x" * 30, 10, "x" * 8 + " …"),
        ("漢字" * 9, 10, "漢字漢字 …"),
        ("", 10, ""),
    ],
)
def test_text_is_cut_to_columns(text: str, width: int, expected: str) -> None:
    assert shorten(text, width) == expected
    assert cell_len(expected) <= width


def test_counts_agree_with_their_nouns() -> None:
    assert [count(n, "query") for n in (0, 1, 1200)] == ["0 queries", "1 query", "1,200 queries"]


def test_info_is_for_people(index: Path) -> None:
    shown = call("info", index).stdout
    assert "None" not in shown
    assert not re.search(r"[0-9a-f]{16}", shown)
    weights = json.loads(call("info", index, "--format", "json").stdout)["model weights"]
    assert len(weights) == 64
    assert weights[:12] in shown


@pytest.mark.parametrize("arguments", [["search", "tea", "--mode", "lexical"], ["get", "plain"]])
def test_a_terminal_that_lacks_characters_gets_escapes(tmp_path: Path, arguments: list[str]) -> None:
    write_lines(tmp_path / "tea.jsonl", [{"id": "plain", "title": "茶", "text": "Tee für alle: tea…"}])
    folder = tmp_path / "tea.index"
    call("index", tmp_path / "tea.jsonl", "--index", folder)
    command, *others = arguments
    done = CliRunner(charset="latin-1").invoke(main, [command, str(folder), *others])
    assert done.exit_code == 0, done.output
    assert b"\\u8336" in done.stdout_bytes
    assert "für".encode("latin-1") in done.stdout_bytes


# Failures


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SearchkitError("what to do"), 1, "Error: what to do"),
        (MissingExtraError("pip install it"), 1, "Error: pip install it"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "lost"), 1, "lost: No such file or directory"),
        (OSError(errno.ENOSPC, "No space left on device", b"full"), 1, "full: No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (sqlite3.OperationalError("database or disk is full"), 1, "database or disk is full); check the space"),
        (ValueError("operands could not be broadcast"), 70, "bug in searchkit: ValueError: operands could not be"),
        (KeyError("x"), 70, "bug in searchkit: KeyError: 'x' (test_output.py, line"),
        (OSError("no file in it"), 70, "SEARCHKIT_DEBUG=1"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 70, "bug in searchkit"),
    ],
)
def test_only_the_user_s_errors_are_the_user_s(
    index: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr("searchkit.cli.info._index", fail)
    assert said in call("info", index, code=code).stderr


def test_the_exit_codes_are_documented() -> None:
    shown = " ".join(call("--help").stdout.split())
    assert all(words in shown for words in ("0 success", "1 failure", "2 wrong usage", f"{cli._Bug.exit_code} a bug"))


def test_warnings_of_the_library_are_notes(index: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(index, tmp_path / "copy.index")
    shutil.rmtree(copy / "lexical")
    assert "warning: " in call("search", copy, "tea", "--mode", "lexical").stderr


# Finding options


def test_choices_in_a_list_are_those_of_the_library() -> None:
    assert ListOf(str, "dense", _evaluation_modes).convert("dense, lexical,dense", None, None) == ("dense", "lexical")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_calls_searchkit(shell: str) -> None:
    script = call("completion", shell).stdout
    assert f"_SEARCHKIT_COMPLETE={shell}_complete" in script


def test_commands_and_options_are_completed() -> None:
    words = {"_SEARCHKIT_COMPLETE": "bash_complete", "COMP_WORDS": "searchkit pass", "COMP_CWORD": "1"}
    assert CliRunner().invoke(main, [], prog_name="searchkit", env=words).output.split() == ["plain,passkey"]
    words = {"_SEARCHKIT_COMPLETE": "bash_complete", "COMP_WORDS": "searchkit search --expl", "COMP_CWORD": "2"}
    assert CliRunner().invoke(main, [], prog_name="searchkit", env=words).output.split() == ["plain,--explain"]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_accepts_its_script() -> None:
    script = call("completion", "bash").stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_query_that_begins_with_a_dash_is_possible_and_explained(index: Path) -> None:
    hint = call("search", index, "-5 degrees", code=2).stderr
    assert 'Put text that begins with a dash after "--"' in hint
    assert "no hits for: -5 degrees" in call("search", index, "--mode", "lexical", "--", "-5 degrees").stdout


def test_closed_standard_input_is_explained(index: Path) -> None:
    command = [sys.executable, "-m", "searchkit.cli.main", "search", str(index)]
    result = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, text=True)
    assert (result.returncode, "standard input is closed" in result.stderr) == (1, True)
