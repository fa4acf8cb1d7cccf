from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("indexer", "searchkit", "training", "cli")  # a folder may import those before it
FILES = sorted(file for folder in ORDER for file in (ROOT / folder).rglob("*.py"))
# Inside searchkit: files at its root stand with the folders that their imports allow.
LAYERS = (
    {
        "errors",
        "records",
        "validation",
        "tasks",
        "metrics",
        "significance",
        "chunking",
        "scripts",
        "facets",
        "new_folder",
    },
    {"readers", "models"},
    {
        "engine",
        "searcher",
        "open_index",
        "request",
        "reranking",
        "ranking",
        "folder_ranker",
        "place",
        "writer",
        "binding",
        "codebook",
        "ingest",
        "lexical_sync",
        "merging",
        "object_storage",
        "own_vectors",
        "ray_build",
        "check",
        "repair",
        "sync",
        "dump",
    },
    {"remote"},
    {"compression"},
    {"evaluation"},
    {"reports", "server", "integrations"},
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


@cache
def imports(file: Path) -> list[tuple[str, int]]:
    """Every (module, level) imported anywhere in a file, in functions and for type checkers too."""
    return list(_imports(parsed(file)))


def _imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, 0) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
            if (node.module or "").startswith("searchkit"):  # what is imported may be a module itself
                yield from ((f"{node.module}.{name.name}", node.level) for name in node.names)


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


def layer_of(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "searchkit").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT))
)
def test_inside_searchkit_imports_run_one_way(file: Path) -> None:
    first = file.relative_to(ROOT / "searchkit").parts[0].removesuffix(".py")
    if first == "__init__":  # it names the public API
        return
    used = {module.split(".")[1] for module, _ in imports(file) if folder_of(module) == "searchkit" and "." in module}
    assert not {part for part in used if layer_of(part) > layer_of(first)}


def test_faiss_is_behind_its_port() -> None:
    """Above indexer/vectors/ nobody knows which library stores vectors: `devices` and `clusters` choose it."""
    vectors = ROOT / "indexer" / "vectors"
    for file in set(FILES) - set(vectors.iterdir()):
        used = {module for module, _ in imports(file)}
        assert not {module for module in used if module.split(".")[0] == "faiss" or ".vectors.faiss_" in module}, file


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "searchkit" else ("searchkit", *parts)).removesuffix(".__init__")


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {module_of(file): file for file in FILES}
    graph = {
        name: sorted({one for one, _ in imports(file)} & modules.keys() - {name}) for name, file in modules.items()
    }
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for used in sorted(graph[name]):
                walk(used, [*path, name])
            done.add(name)

    for name in graph:
        walk(name, [])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_absolute_and_never_of_tests(file: Path) -> None:
    for module, level in imports(file):
        assert level == 0, f"{module} is imported relatively"
        assert module.partition(".")[0] not in {"tests", "conftest", "indexer", "training", "cli"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is(file: Path) -> None:
    if parsed(file).body:  # an empty __init__.py has nothing to say
        assert ast.get_docstring(parsed(file))


def test_every_folder_is_listed_as_a_package() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {module_of(file.parent) for file in FILES}
    assert {*folders, "searchkit.corpora"} == set(setuptools["packages"])
    assert setuptools["package-dir"] == {
        f"searchkit.{folder}": folder for folder in (*ORDER, "corpora") if folder != "searchkit"
    }


def test_tests_mirror_the_folders() -> None:
    tests = {str(file.parent.relative_to(ROOT / "tests")) for file in (ROOT / "tests").rglob("test_*.py")}
    code = {str(file.parent.relative_to(ROOT)) for file in FILES}
    assert tests - {"."} <= code


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
    assert modules == set(FILES)
    data = {ROOT / file for file in build.find_data_files("searchkit.corpora", "corpora")}
    assert data == {file for file in (ROOT / "corpora").rglob("*") if file.suffix in {".jsonl", ".tsv", ".md"}}
    data = {ROOT / file for file in build.find_data_files("searchkit.training.builtin", "training/builtin")}
    assert data == {ROOT / "training" / "builtin" / "instructions.json"}
    data = {ROOT / file for file in build.find_data_files("searchkit.training.synthesis", "training/synthesis")}
    assert data == set((ROOT / "training" / "synthesis" / "prompts").iterdir())
    data = {ROOT / file for file in build.find_data_files("searchkit.server", "searchkit/server")}
    assert data == set((ROOT / "searchkit" / "server" / "static").iterdir())
    builtin = {file for file in (ROOT / "searchkit" / "builtin").rglob("*") if file.is_file()}
    assert len(builtin) == 9
    data = {ROOT / file for file in build.find_data_files("searchkit", "searchkit")}
    assert data == {ROOT / "searchkit" / "py.typed", *builtin}


def test_the_command_is_the_one_that_is_installed() -> None:
    from importlib.metadata import entry_points

    assert PROJECT["project"]["scripts"] == {"searchkit": "searchkit.cli.main:main"}
    (command,) = entry_points(group="console_scripts", name="searchkit")
    assert command.load().name == "main"
