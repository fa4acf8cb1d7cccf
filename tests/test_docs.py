"""The documentation does what it says: commands and Python blocks run, and the output it shows is real."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.models.onnx_runtime import OnnxRuntime
from searchkit.readers.corpus import read_corpus

ROOT = Path(__file__).resolve().parent.parent
RUN = [ROOT / "README.md", ROOT / "docs" / "getting-started.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
PAGES = sorted({*RUN, *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "corpora" / "README.md"})
BLOCK = re.compile(r"(?:<!-- (?P<marker>[^>]*) -->\n+)?^```(?P<info>\w.*)\n(?P<text>(?:.*\n)*?)```$", re.MULTILINE)
NOT_RUN = re.compile(r"not run: \w.{8,}|set-up")
# Cheap settings, put behind a command as it is written; of an option given twice the last one counts.
CHEAP = {
    "train": ["--max-steps", "2", "--batch-size", "4"],
    "latency": ["--seconds", "0.01"],
}
TINY = {"training.md", "adapting.md"}  # pages whose model is a small random one instead of the built-in one


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is shown as, and why it is not run."""

    language: str
    title: str
    text: str
    not_run: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        marker = match["marker"] or ""
        assert not marker or NOT_RUN.fullmatch(marker), f"{page.name}: {marker!r} gives no reason"
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(language, title[1] if title else "", match["text"], marker, line))
    return found


def commands(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def masked(line: str) -> str:
    """A line of output without what differs between runs: numbers, the padding of tables, marks of the fastest."""
    numbered = re.sub(r"[\d,]*\.?\d+(?: [KM]iB| B| s\b)?", "#", line.removeprefix("*").removeprefix(">"))
    return re.sub(r"[\s─━═╇┃│]+", " ", numbered).strip()


@pytest.fixture(scope="module", autouse=True)
def computed_once() -> Iterator[None]:
    """Pages embed the same texts again and again: the built-in model's graph computes each of them once."""
    built_in, compute = Embedder().instruction_shift, OnnxRuntime.pooled
    kept: dict[tuple[int, ...], np.ndarray] = {}

    def pooled(self: OnnxRuntime, batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        if self.shift is None or self.shift.digest != built_in:
            return compute(self, batch, conventions)
        new = [tokens for tokens in batch if tuple(tokens) not in kept]
        if new:
            kept.update(zip(map(tuple, new), compute(self, new, conventions), strict=True))
        return np.stack([kept[tuple(tokens)] for tokens in batch])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntime, "pooled", pooled)
        yield


@pytest.fixture(scope="module")
def intents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index that most pages begin with: their own command then finds it finished."""
    folder = tmp_path_factory.mktemp("indexes") / "intents.index"
    with SearchEngine.create(folder, chunk_tokens=0) as engine:  # as `searchkit index` does for a BEIR folder
        engine.add(read_corpus(ROOT / "corpora" / "intents"))
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intents: Path) -> Path:
    (tmp_path / "corpora").symlink_to(ROOT / "corpora")
    shutil.copytree(intents, tmp_path / "intents.index")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return tmp_path


def run(command: str, base: str) -> str:
    """Run a command as written, but cheaply; return what it prints."""
    command = command.replace("--base builtin", f"--base {base}")
    words = shlex.split(command, comments=True)
    if words[0] == "searchkit" and not {"|", ">", "<", "&&"} & set(words):
        result = CliRunner().invoke(main, [*words[1:], *CHEAP.get(words[1], [])])
        assert result.exit_code == 0, f"{command}\n{result.output}"
        return result.stdout
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.mark.filterwarnings("ignore")  # of libraries that a command uses; other tests watch for those
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, workspace: Path, request: pytest.FixtureRequest) -> None:
    base = "builtin"
    names: dict[str, object] = {}
    output: list[str] = []
    for block in blocks(page):
        if block.not_run:
            continue
        if block.title:
            (workspace / block.title).parent.mkdir(parents=True, exist_ok=True)
            (workspace / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            output = [masked(line) for command in commands(block.text) for line in run(command, base).splitlines()]
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), names)
            if page.name in TINY and (workspace / "answers.jsonl").exists() and base == "builtin":
                base = str(request.getfixturevalue("mistral"))
                with SearchEngine.create("answers.index", model=Embedder(base, device="cpu")) as engine:
                    engine.add(read_corpus("answers.jsonl"))
        elif block.language == "text":
            shown = [masked(line) for line in block.text.splitlines()]
            assert {line for line in shown if line and line not in output} == set(), f"{page.name}:{block.line}"


def check_options(words: list[str]) -> None:
    """Parse a command without running it: the command and its options exist, and plain values convert."""
    context = click.Context(main, info_name="searchkit")
    command = main.get_command(context, words[0])
    assert command is not None, f"no command {words[0]}"
    context = click.Context(command, info_name=words[0], parent=context)
    options, _, order = command.make_parser(context).parse_args(list(words[1:]))
    for parameter in {parameter.name: parameter for parameter in order}.values():
        if isinstance(parameter.type, click.Choice | click.IntRange | click.FloatRange):
            value = options[parameter.name or ""]
            for item in value if isinstance(value, list) else [value]:
                parameter.type.convert(item, parameter, context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    """Also those that are not run, and those of indented blocks."""
    text = page.read_text("utf-8")
    shown = [line for block in blocks(page) if block.language == "bash" for line in commands(block.text)]
    shown += [line.strip() for line in text.splitlines() if re.match(r" {4}(searchkit|python|pytest) ", line)]
    for command in shown:
        for part in re.split(r"\s(?:\||&&)\s", command):
            words = [word for word in shlex.split(part, comments=True) if "=" not in word or word.startswith("-")]
            if words[:1] == ["searchkit"] and not words[1].startswith("-"):
                check_options(words[1:])
            for script in re.findall(r"\btests/[\w/]+\.py", part):
                assert (ROOT / script).is_file(), f"{page.name} names {script}"


def test_paths_in_the_text_exist() -> None:
    for page in PAGES:
        folders = "indexer|searchkit|training|cli|tests|corpora|docs"
        named = re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text("utf-8"))
        assert [path for path in named if not (ROOT / path).exists()] == [], page.name


def test_relative_links_of_pages_outside_the_site_exist() -> None:  # `mkdocs build --strict` checks the site's
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "corpora" / "README.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_readme_is_short_and_sets_up_in_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    (set_up,) = (block for block in blocks(ROOT / "README.md") if block.not_run == "set-up")
    assert len(set_up.text.splitlines()) == 2  # .ci/run reads them


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("nav:")[2]
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", navigation)) == pages
