"""Corpora and indexes in object storage: a local server that speaks S3, and fsspec's storage in memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clouds import one_thread
from commands import printed
from forked import folder_in_memory

from searchkit import object_storage
from searchkit.cli.storage import fetched
from searchkit.engine import SearchEngine
from searchkit.errors import InputError, MissingExtraError, StoreError
from searchkit.object_storage import LIST, expand, fetch_index, holds_index, is_url, local_corpus, put_index
from searchkit.records import Document

fsspec = pytest.importorskip("fsspec", reason="object storage needs fsspec: pip install 'searchkit[remote-files]'")

__all__ = ["one_thread"]  # a fixture

OWN = ("--vector-field", "v")


@pytest.fixture
def tmp_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with folder_in_memory() as folder:
        monkeypatch.chdir(folder)
        yield folder


@pytest.fixture
def bucket() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server on this machine that speaks S3."""
    moto = pytest.importorskip("moto.server", reason="a local server needs moto, flask and flask-cors")
    pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install 'searchkit[remote-files]'")
    made = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket, reached as users reach theirs: by the environment."""
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": server,
        "AWS_DEFAULT_REGION": "us-east-1", "FSSPEC_S3_ENDPOINT_URL": server,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"b{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [{"id": f"d{n:02}", "text": f"note {n}", "v": [1.0, n, n % 3]} for n in range(count)]


def put_text(url: str, text: str) -> None:
    with fsspec.open(url, "w") as file:
        file.write(text)


def put_corpus(url: str, made: list[dict[str, Any]]) -> None:
    put_text(url, "".join(json.dumps(row) + "\n" for row in made))


def build(folder: Path, numbers: range = range(10)) -> Path:
    with SearchEngine.create(folder, dim=2, exist_ok=True) as engine:
        engine.add([Document(f"d{n}", f"text {n}") for n in numbers], vectors=[[1, n] for n in numbers])
    return folder


def check_parts_go_through(bucket: str, tmp_path: Path) -> None:
    """A corpus is read from storage, parts are put there and merged from there, and a merged index is put there."""
    put_corpus(f"{bucket}/corpus/notes.jsonl", rows())
    corpus = f"{bucket}/corpus/notes.jsonl"
    for number in (1, 2):
        output = printed("index", corpus, "--index", f"{bucket}/part-{number}.index", "--part", f"{number}/2", *OWN)
        assert f"part-{number}.index: " in output
        assert "uploaded" in output
    assert not list(tmp_path.iterdir())
    printed("index", corpus, "--index", tmp_path / "whole.index", *OWN)
    printed("merge", f"{bucket}/part-*.index", "--index", tmp_path / "merged.index")
    printed("merge", f"{bucket}/part-1.index", f"{bucket}/part-2.index", "--index", f"{bucket}/merged.index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged.index", "whole.index"]
    fetch_index(f"{bucket}/merged.index", tmp_path / "fetched.index")
    engines = [SearchEngine.open(tmp_path / f"{name}.index") for name in ("whole", "merged", "fetched")]
    assert len({engine.store.documents.checksum() for engine in engines}) == 1
    found = [[hit.id for hit in engine.search("note 7", vector=[1, 7, 1], k=9)] for engine in engines]
    assert found[0] == found[1] == found[2]
    for engine in engines:
        engine.close()
    assert "exists; name another place" in printed(
        "merge", f"{bucket}/part-1.index", "--index", f"{bucket}/merged.index", code=1
    )
    # An index that is there is gone on with.
    put_corpus(f"{bucket}/more.jsonl", rows(50))
    output = printed("index", f"{bucket}/more.jsonl", "--index", f"{bucket}/merged.index", *OWN)
    assert "50 documents (10 new" in output


def test_parts_go_through_storage_that_speaks_s3(s3: str, tmp_path: Path) -> None:
    check_parts_go_through(s3, tmp_path)


def test_parts_go_through_storage_in_memory(bucket: str, tmp_path: Path) -> None:
    check_parts_go_through(bucket, tmp_path)


def test_codebooks_may_lie_in_storage(bucket: str, tmp_path: Path) -> None:
    put_corpus(f"{bucket}/notes.jsonl", rows(300))
    printed("train-recipe", f"{bucket}/notes.jsonl", "--recipe", "pq:3", "--out", f"{bucket}/notes.recipe", *OWN)
    for number in (1, 2):
        part = ("--part", f"{number}/2", "--recipe-from", f"{bucket}/notes.recipe")
        printed("index", f"{bucket}/notes.jsonl", "--index", f"{bucket}/{number}.index", *part, *OWN)
    printed("merge", f"{bucket}/?.index", "--index", tmp_path / "merged.index")
    with SearchEngine.open(tmp_path / "merged.index") as engine:
        assert (len(engine), engine.storage.plan.spelling) == (300, "pq:3")


def test_folders_and_patterns_are_read_as_they_are_on_a_disk(bucket: str, tmp_path: Path) -> None:
    for name in ("a.md", "b/c.md", "b/d.txt"):
        put_text(f"{bucket}/notes/{name}", f"What {name} says.")
        file = tmp_path / "notes" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"What {name} says.")
    for source, local in (
        (f"{bucket}/notes", "notes"),
        (f"{bucket}/notes/", "notes"),
        (f"{bucket}/notes/b/*.md", "notes/b/*.md"),
        (f"{bucket}/notes/b/d.txt", "notes/b/d.txt"),
    ):
        from searchkit.readers.corpus import read_corpus

        found = {document.id: document.text for document in read_corpus(local_corpus(source))}
        assert found == {document.id: document.text for document in read_corpus(local)}


def test_only_what_changed_is_put_again(bucket: str, tmp_path: Path) -> None:
    folder, url = build(tmp_path / "i.index"), f"{bucket}/i.index"
    assert put_index(folder, url) > 0
    assert put_index(folder, url) == 0
    with SearchEngine.open(folder, writable=True) as engine:
        engine.store_as("fp16")
    assert put_index(folder, url) > 0
    fetch_index(url, tmp_path / "again.index")
    names = [
        sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
        for root in (folder, tmp_path / "again.index")
    ]
    assert set(names[0]) - set(names[1]) <= {"write.lock"}
    files, path = fsspec.core.url_to_fs(url)
    assert len(files.find(path)) == len(names[1]) + 1  # and nothing of before
    assert (folder / "index.db").stat().st_mtime_ns == (tmp_path / "again.index" / "index.db").stat().st_mtime_ns


def test_a_copy_of_an_earlier_call_is_taken_only_if_it_is_the_same(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/i.index"
    put_index(build(tmp_path / "i.index"), url)
    (copy,) = fetched([url], tmp_path / "copies")
    (copy / "mark").touch()
    assert [(copy / "mark").exists() for copy in fetched([url], tmp_path / "copies")] == [True]
    put_index(build(tmp_path / "i.index", range(12)), url)
    assert [(copy / "mark").exists() for copy in fetched([url], tmp_path / "copies")] == [False]
    with SearchEngine.open(copy) as engine:
        assert len(engine) == 12


def test_an_upload_that_was_interrupted_is_no_index(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = build(tmp_path / "i.index"), f"{bucket}/i.index"
    files, path = fsspec.core.url_to_fs(url)
    real = type(files).put_file
    for changed in (False, True):  # a new index, and one that replaces a whole one
        if changed:
            with SearchEngine.open(folder, writable=True) as engine:
                engine.store_as("fp16")
        for limit in range(3):
            left = [limit]

            def put(self: Any, *arguments: Any, left: list[int] = left, **options: Any) -> None:
                if not left[0]:
                    raise ConnectionResetError("the line is dead")
                left[0] -= 1
                real(self, *arguments, **options)

            monkeypatch.setattr(type(files), "put_file", put)
            with pytest.raises(StoreError, match="the line is dead"):
                put_index(folder, url)
            monkeypatch.undo()
            assert not holds_index(url)
            with pytest.raises(StoreError, match=f"is no whole index .it has no {LIST}"):
                fetch_index(url, tmp_path / "fetched.index")
            assert not (tmp_path / "fetched.index").exists()
            with pytest.raises(InputError, match="no whole index matches"):
                expand(f"{bucket}/*.index")
        put_index(folder, url)
        assert [holds_index(found) for found in expand(f"{bucket}/*.index")] == [True]
    # Files of two uploads, mixed:
    with files.open(f"{path}/index.db", "ab") as database:
        database.write(b"more")
    with pytest.raises(StoreError, match=f"index.db is not what {LIST} says"):
        fetch_index(url, tmp_path / "fetched.index")


def test_a_list_that_names_other_places_is_refused(bucket: str, tmp_path: Path) -> None:
    for content, message in (
        ({"changed": 1, "files": {"../../etc/passwd": [1, "0"]}}, "names files outside the index"),
        ({"files": []}, "cannot be read"),
    ):
        put_text(f"{bucket}/i.index/{LIST}", json.dumps(content))
        with pytest.raises(StoreError, match=message):
            fetch_index(f"{bucket}/i.index", tmp_path / "i.index")


def test_indexes_are_not_searched_in_storage(tmp_path: Path) -> None:
    for command in (
        ["search", "s3://b/i.index", "x"],
        ["info", "s3://b/i.index"],
        ["add", "s3://b/i.index", "x.jsonl"],
    ):
        assert "copy it here first: searchkit merge s3://b/i.index" in printed(*command, code=2)
    assert not is_url("notes/a:b.md")


def test_what_is_missing_or_forbidden_is_said(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    assert "there is nothing there" in printed("index", f"{s3}/nothing.jsonl", "--index", "i.index", code=1)
    assert "no such storage is known" in printed("index", "zzz://b/x.jsonl", "--index", "i.index", code=1)
    assert "is no whole index" in printed("merge", f"{s3}/a.index", "--index", "i.index", code=1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "none",
        "AWS_SHARED_CREDENTIALS_FILE": "none",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    output = printed("index", f"{s3}/x.jsonl", "--index", f"{s3}/i.index", code=1)
    assert "AWS_ACCESS_KEY_ID" in output
    assert not list(tmp_path.iterdir())


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install gcsfs to access GCS", name="gcsfs")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(
        MissingExtraError, match=r"gs:// is read by gcsfs: pip install 'searchkit\[remote-files\]' gcsfs"
    ):
        object_storage.holds_index("gs://bucket/i.index")
