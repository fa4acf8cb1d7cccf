from __future__ import annotations

import pytest

from searchkit.errors import InputError
from searchkit.models.remote.address import RemoteModel, parse_remote

URL = "http://10.0.0.7:8000/v1"


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        (f"openai:intfloat/e5-mistral-7b-instruct@{URL}", "intfloat/e5-mistral-7b-instruct", URL),
        ("openai:nomic-embed-text:v1.5@http://localhost:11434/v1/", "nomic-embed-text:v1.5", "http://localhost:11434/v1"),
        ("openai:me@home@https://[::1]:80/api/v1", "me@home", "https://[::1]:80/api/v1"),
        ("openai:text-embedding-3-small", "text-embedding-3-small", "https://api.openai.com/v1"),
    ],
)  # fmt: skip
def test_name_and_address_are_read(text: str, name: str, url: str) -> None:
    found = parse_remote(text)
    assert (found.name, found.url) == (name, url)
    assert parse_remote(str(found)) == found


def test_settings_survive_in_the_stored_name_but_key_and_timeout_do_not() -> None:
    settings = "family=e5-base,query=find%3A%2C ,document=#1: ,template={instruction}%0A{query},length=300"
    found = parse_remote(f"openai:x@{URL}#{settings},key=MY_KEY,timeout=3.5")
    assert (found.query, found.document, found.template) == ("find:, ", "#1: ", "{instruction}\n{query}")
    assert (found.family, found.length, found.key, found.timeout) == ("e5-base", 300, "MY_KEY", 3.5)
    stored = str(found)
    assert "MY_KEY" not in stored
    assert parse_remote(stored) == RemoteModel(
        "x", URL, "e5-base", "find:, ", "#1: ", "{instruction}\n{query}", 300, key=None, timeout=None
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("openai:", "no usable name; expected openai:NAME@"),
        (f"openai:@{URL}", "no usable name"),
        ("openai:x@ftp://host/v1", "is not the address of a model's server"),
        ("openai:x@http:///v1", "is not the address"),
        ("openai:x@http://host:99999/v1", "malformed"),
        ("openai:x@http://host /v1", "is not the address"),
        (f"openai:x@{URL}#prefix=a", "'prefix' is no setting"),
        (f"openai:x@{URL}#length=many", "length is 'many'"),
        (f"openai:x@{URL}#timeout=-1", "timeout is '-1'"),
        (f"openai:x@{URL}#template=Query", "expected {instruction} and {query}"),
    ],
)  # fmt: skip
def test_other_forms_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_remote(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["openai:x@http://user:hunter22@host/v1", "openai:x@http://hunter22@host", "openai:x@http://host/v1?key=hunter22",
     "openai:x@http://host/v1#key=sk-hunter22", "openai:x@http://user:hunter22@host:port/v1"],
)  # fmt: skip
def test_a_secret_in_the_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_remote(text)
    assert "hunter22" not in str(caught.value)


KEYS = {"OPENAI_API_KEY": "sk-1", "OTHER": "sk-2"}


@pytest.mark.parametrize(
    ("url", "more", "key"),
    [
        ("https://api.openai.com/v1", {}, "sk-1"),
        ("http://127.0.0.1:8000/v1", {}, "sk-1"),
        ("http://192.168.1.5/v1", {}, "sk-1"),
        ("http://gpu-box:8000/v1", {}, "sk-1"),
        ("https://models.example.com/v1", {}, None),
        ("http://api.openai.com/v1", {}, None),
        ("https://models.example.com/v1", {"OPENAI_BASE_URL": "https://models.example.com/v1/"}, "sk-1"),
    ],
)
def test_an_index_alone_does_not_send_the_key_abroad(url: str, more: dict[str, str], key: str | None) -> None:
    assert parse_remote(f"openai:x@{url}", stored=True).api_key({**KEYS, **more}) == key
    assert parse_remote(f"openai:x@{url}").api_key({**KEYS, **more}) == "sk-1"
    assert parse_remote(f"openai:x@{url}#key=OTHER").api_key({**KEYS, **more}) == "sk-2"


def test_no_key_is_no_fault_unless_one_was_named() -> None:
    assert parse_remote(f"openai:x@{URL}").api_key({}) is None
    with pytest.raises(InputError, match=r"OTHER, named for the key of .*, is not set"):
        parse_remote(f"openai:x@{URL}#key=OTHER").api_key({"OPENAI_API_KEY": "sk-1"})


@pytest.mark.parametrize("key", ["hunter22 hunter", "hunter22\nX-Evil: 1", "hunter22\u00e9"])
def test_a_malformed_key_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(InputError, match="the key in OPENAI_API_KEY holds") as caught:
        parse_remote(f"openai:x@{URL}").api_key({"OPENAI_API_KEY": key})
    assert "hunter" not in str(caught.value)
