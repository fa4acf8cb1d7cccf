"""The search page as files: what is served, and what a browser would refuse or miss."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

import searchkit

STATIC = Path(searchkit.__file__).parent / "server" / "static"
FILES = sorted(STATIC.iterdir())
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """The elements of index.html, checked for balance while they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed((STATIC / "index.html").read_text("utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if attributes.get("id")]

    def named(self, *tags: str) -> list[tuple[str, dict[str, str | None]]]:
        return [(tag, attributes) for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


@pytest.mark.parametrize("name", ["", *(f"static/{file.name}" for file in FILES)])
def test_every_file_is_served_under_the_policy(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/{name}")
    assert answer.status_code == 200
    assert answer.content == (STATIC / (name.removeprefix("static/") or "index.html")).read_bytes()
    types = {"": "text/html", "html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].partition(";")[0] == types[name.rpartition(".")[2] if name else ""]
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["img-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"


def test_a_file_that_has_not_changed_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/static/page.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/static/page.css", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_the_page_is_open_and_what_it_asks_is_not(serve) -> None:
    from serving import KEYS

    with httpx.Client(base_url=serve(keys=KEYS).address) as client:
        assert client.get("/").status_code == client.get("/static/page.js").status_code == 200
        for path in ("/indexes", "/indexes/notes", "/tasks", "/indexes/notes/search?query=tea"):
            assert client.get(path).status_code == 401
        assert client.get("/tasks", headers={"Authorization": f"Bearer {KEYS.read[0]}"}).status_code == 200


def test_nothing_comes_from_another_host() -> None:
    for file in FILES:
        addresses = set(re.findall(r"(?:https?:)?//[a-z0-9][\w.:-]*\.[a-z]+[^\s\"'`]*", file.read_text("utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name  # a name space, which nobody fetches
    assert "@import" not in (STATIC / "page.css").read_text("utf-8")
    assert "url(" not in (STATIC / "page.css").read_text("utf-8")


def test_no_script_or_style_is_inside_the_page(page: Page) -> None:
    assert [attributes.get("src") for _, attributes in page.named("script")] == ["static/page.js"]
    assert page.named("style") == []
    assert not page.texts.get("script", "").strip()
    for tag, attributes in page.elements:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not [value for value in attributes.values() if value and value.lower().startswith("javascript:")], tag


def test_text_is_only_ever_set_as_text() -> None:
    for file in SCRIPTS:
        source = file.read_text("utf-8")
        assert not re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|setHTML|srcdoc|"
            r"setTimeout\(\s*[\"'`]|createContextualFragment|localStorage|document\.cookie",
            source,
        ), file.name


def test_every_element_that_the_scripts_look_up_exists(page: Page) -> None:
    ids = page.ids()
    assert len(ids) == len(set(ids))
    wanted = {name for file in SCRIPTS for name in re.findall(r"byId\(\"([^\"]+)\"\)", file.read_text("utf-8"))}
    assert len(wanted) > 30
    assert wanted <= set(ids)
    assert not [file.name for file in SCRIPTS if re.search(r"byId\((?!\"|id\))", file.read_text("utf-8"))]


def test_every_import_names_a_file_and_what_it_exports() -> None:
    for file in SCRIPTS:
        for names, module in re.findall(r"import \{([^}]+)\} from \"\./([^\"]+)\"", file.read_text("utf-8")):
            source = (STATIC / module).read_text("utf-8")
            for name in (part.strip() for part in names.split(",")):
                assert re.search(rf"export (?:async )?(?:function|const|class) {name}\b", source), (
                    f"{file.name}: {name}"
                )


def test_the_page_can_be_read_by_a_screen_reader(page: Page) -> None:
    html = dict(page.named("html"))["html"]
    assert html["lang"] == "en"
    assert page.texts["title"]
    assert [tag for tag, _ in page.named("header", "main", "aside", "h1")] == ["header", "h1", "aside", "main"]
    assert ("form", "search") in [(tag, attributes.get("role")) for tag, attributes in page.elements]
    assert "status" in [attributes.get("role") for _, attributes in page.elements]  # tells how many hits there are
    ids = set(page.ids())
    labelled = {attributes["for"] for _, attributes in page.named("label") if attributes.get("for")}
    inside = _inside_labels()
    for tag, attributes in page.named("input", "select", "textarea"):
        name = attributes["id"]
        assert name in labelled | inside or attributes.get("aria-label") or attributes.get("aria-labelledby"), (
            tag,
            name,
        )
    for _, attributes in page.named("dialog"):
        assert attributes["aria-labelledby"] in ids
    for _, attributes in page.named("img"):
        assert "alt" in attributes
    references = [attributes.get(name, "") for _, attributes in page.elements for name in ("aria-describedby", "for")]
    assert {each for reference in references for each in (reference or "").split()} <= ids


def _inside_labels() -> set[str]:
    labels = re.findall(r"<label[^>]*>(.*?)</label>", (STATIC / "index.html").read_text("utf-8"), re.DOTALL)
    return set(re.findall(r"id=\"([^\"]+)\"", "".join(labels)))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        *[(text, ground) for text in ("text", "quiet", "link", "up", "down") for ground in ("ground", "raised")],
        ("error", "ground"), ("error", "error-ground"), ("text", "sunken"), ("quiet", "sunken"), ("text", "passage"),
        ("on-accent", "accent"), ("on-mark", "mark"),
    ],
)  # fmt: skip
def test_text_has_enough_contrast(theme: str, text: str, ground: str) -> None:
    """At least 4.5 to 1, as WCAG 2 has it for AA."""
    light, dark = re.findall(r":root \{(.*?)\}", (STATIC / "page.css").read_text("utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if theme == "light" else dark))
    lighter, darker = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def _luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
