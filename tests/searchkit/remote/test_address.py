"""Addresses of collections: read, refused, and never shown with a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from searchkit.errors import InputError
from searchkit.remote.address import TOKEN, MilvusAddress, is_milvus, parse_milvus


def test_a_server_with_everything() -> None:
    address = parse_milvus("milvus://ann:p%40ss@milvus.example.org:443/papers?db=research&tls=on&timeout=5", {})
    assert address == MilvusAddress(
        "papers", host="milvus.example.org", port=443, token="ann:p@ss", database="research", tls=True, timeout=5
    )
    assert address.connection() == {
        "uri": "https://milvus.example.org:443", "token": "ann:p@ss", "db_name": "research", "secure": True,
    }  # fmt: skip


def test_the_port_is_milvuss_and_the_token_comes_from_the_environment() -> None:
    address = parse_milvus("milvus://localhost/papers", {TOKEN: " root:Milvus \n"})
    assert (address.port, address.token, address.tls, address.timeout) == (19530, "root:Milvus", False, 30)


def test_a_login_in_the_address_is_preferred() -> None:
    assert parse_milvus("milvus://key@localhost/papers", {TOKEN: "other"}).token == "key"


@pytest.mark.parametrize("text", ["milvus:a/b.db/papers", "milvus:a/b.db/papers/"])
def test_a_file_may_be_relative(text: str) -> None:
    assert parse_milvus(text) == MilvusAddress("papers", file=Path("a/b.db"))


@pytest.mark.parametrize("text", ["milvus:/tmp/b.db/papers", "milvus:///tmp/b.db/papers"])
def test_a_file_may_be_absolute(text: str) -> None:
    address = parse_milvus(text)
    assert address.file == Path("/tmp/b.db")
    assert str(address) == "milvus:/tmp/b.db/papers"


def test_ipv6() -> None:
    address = parse_milvus("milvus://[::1]:19531/papers", {})
    assert address.connection()["uri"] == "http://[::1]:19531"
    assert str(address) == "milvus://[::1]:19531/papers"


def test_no_password_is_shown() -> None:
    address = parse_milvus("milvus://ann:secret@host/papers?db=x", {})
    assert str(address) == "milvus://host:19530/papers?db=x"
    assert "secret" not in repr(address)


def test_certificates_turn_tls_on(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("x")
    address = parse_milvus(f"milvus://host/papers?ca={file}", {})
    assert address.tls
    assert address.connection()["server_pem_path"] == str(file)
    address = parse_milvus(f"milvus://host/papers?ca={file}&cert={file}&key={file}", {})
    assert address.connection()["client_key_path"] == address.connection()["ca_pem_path"] == str(file)
    with pytest.raises(InputError, match="goes with its key and the authority"):
        parse_milvus(f"milvus://host/papers?ca={file}&cert={file}", {})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("milvus://host:19530", "cannot name a collection"),
        ("milvus://host/9papers", "'9papers' cannot name a collection; expected letters"),
        ("milvus://host/a/b", "'a/b' cannot name a collection"),
        ("milvus://host:port/papers", "no usable host"),
        ("milvus:papers", "no usable host"),
        ("milvus:", "no usable host"),
        ("milvus://ann:secret@/papers", "no usable host"),
        ("milvus://host/papers?tsl=on", "no option 'tsl'; expected some of db, tls, ca, cert, key, timeout"),
        ("milvus://host/papers?tls=maybe", "tls is 'maybe'; expected on or off"),
        ("milvus://host/papers?timeout=soon", "timeout is 'soon'; expected seconds"),
        ("milvus://host/papers?timeout=0", "timeout is '0'; expected seconds"),
        ("milvus://host/papers?ca=none.pem", "ca=none.pem: there is no such file"),
        ("milvus:a.db/papers?tls=on", "a local file takes no options"),
    ],
)
def test_other_forms_are_refused(text: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_milvus(text, {})
    assert part in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_folder_is_no_collection() -> None:
    assert not is_milvus("papers.index")
    assert not is_milvus(Path("milvus.index"))
    assert is_milvus("milvus:papers.db/papers")
