from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("indexer", "searchkit", "training", "cli")  # a folder may import those before it
FILES = sorted(file for folder in ORDER for file in (ROOT / folder).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def package_of(folder: str) -> str:
    return folder if folder == "searchkit" else f"searchkit.{folder}"


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every (module, level) imported anywhere in a file, in functions and for type checkers too."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, 0) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
            yield from ((f"{node.module}.{name.name}", node.level) for name in node.names if node.module == "searchkit")


def folder_of(module: str) -> str | None:
    """The folder that a module of this project lies in, None for others'."""
    first, _, rest = module.partition(".")
    inner = rest.partition(".")[0]
    return (inner if inner in ORDER else "searchkit") if first == "searchkit" else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_folder_imports_only_those_before_it(file: Path) -> None:
    own = ORDER.index(file.relative_to(ROOT).parts[0])
    later = {module for module, _ in imports(file) if (folder := folder_of(module)) and ORDER.index(folder) > own}
    assert not later


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_absolute_and_never_of_tests(file: Path) -> None:
    for module, level in imports(file):
        assert level == 0, f"{module} is imported relatively"
        assert module.partition(".")[0] not in {"tests", "conftest", "indexer", "training", "cli"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is(file: Path) -> None:
    source = file.read_text("utf-8")
    if source.strip():  # an empty __init__.py has nothing to say
        assert ast.get_docstring(ast.parse(source))


def test_folders_are_flat_and_listed_as_packages() -> None:
    assert {file.parent for file in FILES} == {ROOT / folder for folder in ORDER}
    setuptools = PROJECT["tool"]["setuptools"]
    assert {*map(package_of, ORDER), "searchkit.corpora"} == set(setuptools["packages"])
    assert setuptools["package-dir"] == {
        package: package.removeprefix("searchkit.") for package in setuptools["packages"] if package != "searchkit"
    }


@pytest.mark.filterwarnings("ignore")  # setuptools warns of what is not written yet
def test_a_wheel_holds_every_module_and_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("setuptools", reason="the file list is setuptools' own")
    from setuptools import Distribution
    from setuptools.config.pyprojecttoml import apply_configuration

    monkeypatch.chdir(ROOT)
    build = apply_configuration(Distribution({"script_name": "setup.py"}), "pyproject.toml").get_command_obj("build_py")
    build.ensure_finalized()
    build.manifest_files = {}  # what MANIFEST.in names, of which there is none
    modules = {Path(file).resolve() for _, _, file in build.find_all_modules()}
    assert modules == {file for folder in ORDER for file in (ROOT / folder).glob("*.py")}
    data = {ROOT / file for file in build.find_data_files("searchkit.corpora", "corpora")}
    assert data == {file for file in (ROOT / "corpora").rglob("*") if file.suffix in {".jsonl", ".tsv", ".md"}}
    data = {ROOT / file for file in build.find_data_files("searchkit.training", "training")}
    assert data == {ROOT / "training" / "instructions.json", *(ROOT / "training" / "prompts").iterdir()}
    builtin = {file for file in (ROOT / "searchkit" / "builtin").rglob("*") if file.is_file()}
    assert len(builtin) == 8
    data = {ROOT / file for file in build.find_data_files("searchkit", "searchkit")}
    assert data == {ROOT / "searchkit" / "py.typed", *builtin}


def test_the_command_is_the_one_that_is_installed() -> None:
    from importlib.metadata import entry_points

    assert PROJECT["project"]["scripts"] == {"searchkit": "searchkit.cli.main:main"}
    (command,) = entry_points(group="console_scripts", name="searchkit")
    assert command.load().name == "main"
