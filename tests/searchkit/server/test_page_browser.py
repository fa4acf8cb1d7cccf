"""The search page in Chromium, driven by Selenium: skipped where either is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from serving import KEYS, running

from searchkit.engine import SearchEngine
from searchkit.records import Document
from searchkit.server.settings import Settings

selenium = pytest.importorskip("selenium", reason="the browser is driven by selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")

MARKUP = (
    "<script>window.ran = 1</script><img src='https://example.com/x.png' onerror='window.ran = 1'><h1>tea</h1> &amp;"
)
SUPPORT = "Given a claim, find documents that support the claim"
REFUTE = "Given a claim, find documents that refute the claim"
BIG = 2**53 + 1  # the next integers are no numbers of JavaScript
FILLER = "😀 Coffee is grown in many countries and drunk in more. " * 12


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that a page may break on, beside ordinary ones."""
    folder = tmp_path_factory.mktemp("page") / "papers.index"
    kombucha = "Kombucha is a fermented tea whose culture turns sugar into acids within a week."
    with SearchEngine.create(folder, model="builtin") as engine:
        engine.add([
            Document("markup", MARKUP, "<b>Bold</b> tea", {"<i>key</i>": "<u>value</u>", "kind": "odd"}),
            Document("book", "\n\n".join([*[FILLER] * 6, kombucha, *[FILLER] * 6]), "", {"kind": "long", "year": 2020}),
            Document("a/b ?#%", "An id like a path: of tea and of coffee.", title="A slash", metadata={"kind": "odd"}),
            *[
                Document(str(n), text, title=title, metadata={"kind": "note", "year": 2000 + n, "serial": BIG + n})
                for n, (title, text) in enumerate([
                    ("Green tea", "Green tea lowers blood pressure a little."),
                    ("Black tea", "Black tea does nothing for blood pressure."),
                    ("Walking", "Walking lowers blood pressure more than tea."),
                    ("Salt", "Less salt lowers blood pressure within weeks."),
                    ("Myths", "It is a myth that tea lowers blood pressure; trials found no effect."),
                    ("Trains", "The night train to Vienna leaves at nine."),
                ])
            ],
        ])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def address(papers: Path) -> Iterator[str]:
    with running(Settings((papers,), port=0)) as server:
        yield server.address


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as driver:
        yield driver


class Browser:
    """What a user does with the page and sees of it."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def visit(self, **state: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/#{urlencode(state)}")
        self.until(lambda: self.text("status") or self.find("#key[open]") or self.find("#error:not([hidden])"))
        self.settle()

    def settle(self) -> None:
        """Wait until no search runs; a pause in typing starts one."""
        self.driver.execute_async_script("setTimeout(arguments[0], 250)")
        self.until(lambda: self.at("main").get_attribute("aria-busy") != "true")

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 10, poll_frequency=0.05).until(lambda _: condition())

    def find(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def at(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return self.at(name).text

    def type(self, name: str, text: str) -> None:
        self.at(name).send_keys(Keys.CONTROL, "a")
        self.at(name).send_keys(text)
        self.settle()

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, selector: str) -> None:
        self.find(selector)[0].click()
        self.settle()

    def hits(self, column: int = 0) -> list[str]:
        lists = self.find("ol.hits")
        return [item.get_attribute("data-id") for item in lists[column].find_elements(By.CSS_SELECTOR, "li.hit")]

    def focused(self) -> str:
        script = "return document.activeElement.closest('li.hit')?.dataset.id ?? document.activeElement.id"
        return self.driver.execute_script(script)

    def requested(self) -> list[str]:
        """Addresses of all requests since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]


@pytest.fixture
def browser(chromium: webdriver.Chrome, address: str) -> Iterator[Browser]:
    """A page that must send nothing elsewhere and break no rule of its policy."""
    with _watched(chromium, address) as browser:
        yield browser


@contextmanager
def _watched(chromium: webdriver.Chrome, address: str) -> Iterator[Browser]:
    browser = Browser(chromium, address)
    browser.requested()
    yield browser
    elsewhere = [each for each in browser.requested() if not each.startswith((address, "about:", "data:"))]
    assert elsewhere == []
    faults = [entry["message"] for entry in chromium.get_log("browser")]
    assert not [each for each in faults if "status of 4" not in each]


def asked(papers: Path, query: str, **options: Any) -> list[str]:
    with SearchEngine.open(papers) as engine:
        return [hit.id for hit in engine.search(query, **options)]


def test_it_searches_while_one_types(browser: Browser, papers: Path) -> None:
    browser.visit()
    assert "9 documents" in browser.text("status")
    browser.type("query", "does tea lower blood pressure")
    assert browser.hits() == asked(papers, "does tea lower blood pressure")
    assert browser.text("status") == "9 documents"
    assert re.search(r"embed [\d.]+ ms · rank [\d.]+ ms · \d+ ms in all · commit \d+", browser.text("timings"))
    assert not browser.at("index").is_displayed()  # there is only one


def test_mode_and_k_and_instruction_are_those_of_the_search(browser: Browser, papers: Path) -> None:
    browser.visit(q="tea lowers blood pressure")
    Select(browser.at("mode")).select_by_value("dense")
    browser.type("k", "3")
    Select(browser.at("task-a")).select_by_visible_text("arguana")
    browser.settle()
    assert browser.at("instruction-a").get_attribute("value") == REFUTE
    assert browser.hits() == asked(papers, "tea lowers blood pressure", mode="dense", k=3, instruction=REFUTE)
    browser.type("instruction-a", SUPPORT)
    assert Select(browser.at("task-a")).first_selected_option.text == "Own words"
    assert browser.hits() == asked(papers, "tea lowers blood pressure", mode="dense", k=3, instruction=SUPPORT)


def test_two_instructions_show_what_moved(browser: Browser, papers: Path) -> None:
    browser.visit(q="tea lowers blood pressure", k="4", mode="dense")
    browser.click("#compare")
    browser.type("instruction-a", "Find timetables of trains")
    browser.type("instruction-b", REFUTE)
    a = asked(papers, "tea lowers blood pressure", mode="dense", k=4, instruction="Find timetables of trains")
    b = asked(papers, "tea lowers blood pressure", mode="dense", k=4, instruction=REFUTE)
    assert (browser.hits(0), browser.hits(1)) == (a, b)
    assert a != b
    expected = ["new in B" if id not in a else _moved(a.index(id) - b.index(id)) for id in b]
    columns = browser.find("section.column")
    assert [mark.get_attribute("title") for mark in columns[1].find_elements(By.CSS_SELECTOR, ".move")] == expected
    gone = [item.get_attribute("data-id") for item in columns[0].find_elements(By.CSS_SELECTOR, "li:has(.move.gone)")]
    assert gone == [id for id in a if id not in b]
    browser.click("#compare")
    assert browser.hits() == a
    assert len(browser.find("ol.hits")) == 1


def _moved(by: int) -> str:
    return f"up {by}" if by > 0 else f"down {-by}" if by else "same rank"


@pytest.mark.parametrize(
    ("typed", "message"),
    [('{"year": ', "This is not JSON"), ("[1]", "A filter is an object"), ('{"year": {"$near": 1}}', "$near")],
)
def test_a_wrong_filter_is_explained_in_place(browser: Browser, typed: str, message: str) -> None:
    browser.visit(q="tea")
    before = browser.hits()
    browser.type("where", typed)
    browser.until(lambda: message in browser.text("where-error"))
    assert browser.at("where").get_attribute("aria-invalid") == "true"
    assert browser.hits() == before
    browser.type("where", '{"year": {"$gte": 2004}}')
    assert browser.text("where-error") == ""
    assert set(browser.hits()) == {"4", "5", "book"}


def test_a_filter_that_matches_nothing_says_why(browser: Browser) -> None:
    browser.visit(q="tea", where='{"yaer": 2004}')
    assert 'no document has the key "yaer"' in browser.text("where-error")
    assert browser.text("status") == "Nothing found."


def test_values_of_metadata_are_counted_and_narrow_the_search(browser: Browser, papers: Path) -> None:
    browser.visit(q="tea")
    facets = {button.text.split("\n")[0]: button.text.split("\n")[-1] for button in browser.find("#facets button")}
    assert {"note": "6", "odd": "2", "long": "1"}.items() <= facets.items()
    browser.click("#facets button[title='odd']")
    assert json.loads(browser.at("where").get_attribute("value")) == {"kind": "odd"}
    assert set(browser.hits()) == {"markup", "a/b ?#%"}
    assert browser.driver.switch_to.active_element.get_attribute("title") == "odd"  # redrawn, and still focused
    browser.driver.execute_script("document.querySelector('#facets').scrollIntoView()")
    browser.visit(q="tea", where='{"kind": "odd", "year": {"$lt": 5}}')
    browser.click("#facets button[title='odd']")
    assert json.loads(browser.at("where").get_attribute("value")) == {"year": {"$lt": 5}}


def test_long_integers_keep_their_digits(browser: Browser) -> None:
    browser.visit(q="tea")
    button = f"button[title='{BIG + 2}']"
    browser.click(f"#facets details:has({button}) summary")
    browser.click(f"#facets {button}")
    assert browser.at("where").get_attribute("value") == f'{{"serial":{BIG + 2}}}'
    assert browser.hits() == ["2"]
    browser.click(f"#facets {button}")
    assert browser.at("where").get_attribute("value") == ""


def test_a_link_restores_everything_and_back_goes_back(browser: Browser) -> None:
    state = {
        "q": "tea & <salt>", "instruction": SUPPORT, "compare": "1", "instruction_b": REFUTE, "mode": "dense", "k": "3",
        "where": '{"kind": "note"}',
    }  # fmt: skip
    browser.visit(**state)
    shown = [
        browser.at(each).get_attribute("value")
        for each in ("query", "instruction-a", "instruction-b", "mode", "k", "where")
    ]
    assert shown == ["tea & <salt>", SUPPORT, REFUTE, "dense", "3", '{"kind": "note"}']
    assert [len(browser.hits(0)), len(browser.hits(1))] == [3, 3]
    lists = browser.hits(0), browser.hits(1)
    link = browser.driver.current_url
    browser.click("#compare")
    browser.type("query", "salt")
    browser.driver.back()
    browser.settle()
    assert browser.at("query").get_attribute("value") == "tea & <salt>"
    assert len(browser.find("ol.hits")) == 1
    browser.driver.back()
    browser.settle()
    assert (browser.hits(0), browser.hits(1)) == lists
    assert browser.driver.current_url == link


def test_the_keyboard_is_enough(browser: Browser) -> None:
    browser.visit(q="tea lowers blood pressure")
    browser.driver.execute_script("document.activeElement.blur()")
    browser.press("/")
    assert browser.focused() == "query"
    browser.press(Keys.ARROW_DOWN)
    hits = browser.hits()
    assert browser.focused() == hits[0]
    browser.press("j", "j", "k", Keys.ARROW_DOWN)
    assert browser.focused() == hits[2]
    browser.press(Keys.ENTER)
    browser.until(lambda: browser.find("#document[open]"))
    browser.press("j")
    browser.until(lambda: f"open={hits[3]}" in browser.driver.current_url)
    browser.press(Keys.ESCAPE)
    browser.until(lambda: not browser.find("#document[open]"))
    assert "open=" not in browser.driver.current_url
    browser.press("?")
    browser.until(lambda: browser.find("#help[open]"))
    browser.press(Keys.ESCAPE)
    browser.until(lambda: not browser.find("#help[open]"))
    browser.press(Keys.ESCAPE)
    assert browser.focused() == "query"


def test_arrows_go_across_two_lists(browser: Browser) -> None:
    browser.visit(q="tea", compare="1", instruction_b="Find timetables of trains", k="4")
    browser.driver.execute_script("document.querySelector('a.open').focus()")
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert browser.focused() == browser.hits(1)[1]
    assert len(browser.find("li.hit.twin")) == 1 + (browser.hits(1)[1] in browser.hits(0))
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_UP)
    assert browser.focused() == "query"


def test_back_closes_a_document(browser: Browser) -> None:
    browser.visit(q="tea")
    hits = browser.hits()
    browser.click("a.open")
    browser.until(lambda: browser.find("#document[open]"))
    browser.click("#document-after")
    assert f"open={hits[1]}" in browser.driver.current_url
    browser.driver.back()
    browser.until(lambda: not browser.find("#document[open]"))
    assert browser.hits() == hits
    assert browser.at("query").get_attribute("value") == "tea"


def test_the_best_passage_is_marked_in_the_whole_document(browser: Browser, papers: Path) -> None:
    browser.visit(q="kombucha culture", mode="dense", k="1")
    with SearchEngine.open(papers) as engine:
        hit = engine.search("kombucha culture", mode="dense", k=1)[0]
        whole = engine.get("book").text  # behind characters of two UTF-16 units
    browser.click("a.open")
    passage = browser.until(lambda: browser.find("mark.passage"))[0]
    assert passage.get_attribute("textContent") == whole[hit.start : hit.stop]
    assert browser.at("document-text").get_attribute("textContent") == whole
    assert browser.driver.execute_script("return document.getElementById('document-page').scrollTop") > 100
    assert "Kombucha" in [mark.text for mark in passage.find_elements(By.TAG_NAME, "mark")]


def test_a_document_full_of_markup_stays_text(browser: Browser) -> None:
    browser.visit(q=MARKUP[:60], mode="lexical", open="markup")
    browser.until(lambda: browser.text("document-title") == "<b>Bold</b> tea")
    assert browser.at("document-text").get_attribute("textContent") == MARKUP
    assert "<i>key</i>" in browser.text("document-metadata")
    made = "#results :is(script, img, h1, b:not(.fields b), i, u), #document :is(script, img, h1, b, i, u)"
    assert browser.find(made) == []
    assert browser.driver.execute_script("return window.ran") is None
    browser.visit(q="<img src=x onerror='window.ran = 1'>", instruction="<script>window.ran = 1</script>", like="")
    assert browser.driver.execute_script("return window.ran") is None


def test_why_a_document_stands_where_it_does(browser: Browser, papers: Path) -> None:
    browser.visit(q="green tea")
    with SearchEngine.open(papers) as engine:
        why = engine.search("green tea", explain=True)[0].explanation
    browser.click(".why summary")
    cells = [cell.text for cell in browser.find(".why[open] td")]
    assert cells[:3] == [str(why.dense_rank), f"{why.dense_score:.3f}", f"{why.dense_weight:.2f}"]
    assert cells[3:] == [str(why.lexical_rank), f"{why.lexical_score:.3f}", f"{1 - why.dense_weight:.2f}"]


def test_more_like_this(browser: Browser, papers: Path) -> None:
    browser.visit(q="green tea")
    first = browser.hits()[0]
    browser.click("button.like")
    with SearchEngine.open(papers) as engine:
        assert browser.hits() == [hit.id for hit in engine.similar(first)]
    assert browser.text("like-title") == "Green tea"
    link = browser.driver.current_url
    browser.driver.back()
    browser.settle()
    assert browser.at("query").get_attribute("value") == "green tea"
    assert browser.hits()[0] == first
    browser.driver.get("about:blank")
    browser.driver.get(link)
    browser.until(lambda: browser.text("like-title") == "Green tea")  # known by its id only, until it is looked up


def test_ids_like_paths_open(browser: Browser) -> None:
    browser.visit(q="slash", open="a/b ?#%")
    browser.until(lambda: "An id like a path" in browser.text("document-text"))


def test_an_answer_that_comes_late_is_dropped(browser: Browser, chromium: webdriver.Chrome) -> None:
    # A network whose first answer comes last, and which knows nothing of aborting.
    slow = """
        const real = window.fetch;
        window.fetch = async (address, options = {}) => {
          if (!String(options.body).includes('"trains"')) return real(address, options);
          await new Promise((done) => setTimeout(done, 900));
          window.late = true;
          return real(address, { ...options, signal: undefined });
        };"""
    with scripted(chromium, slow):
        browser.visit()
        browser.at("query").send_keys("trains")
        chromium.execute_async_script("setTimeout(arguments[0], 300)")
        browser.at("query").send_keys(" or green tea")
        browser.until(lambda: browser.find("ol.hits"))
        hits = browser.hits()
        browser.until(lambda: chromium.execute_script("return window.late"))
        chromium.execute_async_script("setTimeout(arguments[0], 400)")
        assert browser.hits() == hits
        assert "trains+or+green+tea" in chromium.current_url


def test_it_waits_as_long_as_a_busy_service_says(browser: Browser, chromium: webdriver.Chrome) -> None:
    busy = """
        const real = window.fetch;
        window.tries = [];
        window.fetch = async (address, options = {}) => {
          if (!options.body) return real(address, options);
          window.tries.push(performance.now());
          if (window.tries.length > 2) return real(address, options);
          const error = JSON.stringify({ error: { code: "overloaded", message: "too much waits" } });
          return new Response(error, { status: 429, headers: { "Retry-After": "1", "retry-after-ms": "300" } });
        };"""
    with scripted(chromium, busy):
        browser.visit(q="tea")
        browser.until(lambda: browser.find("ol.hits"))
        first, second, third = chromium.execute_script("return window.tries")
        assert 300 <= second - first < 900
        assert 300 <= third - second < 900


@contextmanager
def scripted(chromium: webdriver.Chrome, script: str) -> Iterator[None]:
    """Run a script before those of every page."""
    added = chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        yield
    finally:
        chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_a_service_that_is_gone_is_reported(chromium: webdriver.Chrome, papers: Path) -> None:
    with running(Settings((papers,), port=0)) as server:
        browser = Browser(chromium, server.address)
        browser.visit(q="tea")
        assert browser.hits()
    browser.type("query", "green tea")
    browser.until(lambda: browser.text("error-text") == "The service does not answer. Is it running?")
    assert not browser.find("ol.hits")
    chromium.get_log("browser")  # tells of the connection that failed


def test_what_does_not_exist_is_named(browser: Browser) -> None:
    browser.visit(index="nonesuch", q="tea")
    assert browser.text("error-text") == "no such index; this service has papers"
    browser.visit(q="tea", open="nonesuch")
    browser.until(lambda: "the index holds no document of that id" in browser.text("document-about"))
    browser.visit(like="nonesuch")
    assert "no document" in browser.text("error-text")


def test_what_is_copied_runs(browser: Browser, chromium: webdriver.Chrome, papers: Path) -> None:
    query = 'tea\'s "price" \\ $HOME `id` 😀'
    browser.visit(q=query, k="3", where='{"kind": "note", "year": {"$gte": 2000}}')
    expected = browser.hits()
    curl, python = (_copied(browser, name) for name in ("copy-curl", "copy-python"))
    if shutil.which("curl"):
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=30)
        assert [hit["id"] for hit in json.loads(answer.stdout)["hits"]] == expected
    denied = "navigator.clipboard.writeText = async () => { throw new DOMException('no', 'NotAllowedError'); };"
    chromium.execute_script(denied)
    browser.at("copy-curl").click()
    assert browser.at("code-text").get_attribute("value") == curl
    printed = subprocess.run([sys.executable, "-c", python], capture_output=True, check=True, timeout=60, text=True)
    assert [line.split()[2] for line in printed.stdout.splitlines()] == expected


def _copied(browser: Browser, button: str) -> str:
    browser.driver.execute_script("navigator.clipboard.writeText = async (text) => { window.copied = text; };")
    browser.at(button).click()
    return browser.until(
        lambda: browser.driver.execute_script("const it = window.copied; window.copied = ''; return it")
    )


def test_the_page_asks_for_the_key(chromium: webdriver.Chrome, papers: Path) -> None:
    with running(Settings((papers,), port=0, keys=KEYS)) as server, _watched(chromium, server.address) as browser:
        browser.visit(q="green tea")
        browser.at("key-value").send_keys("wrong", Keys.ENTER)
        browser.until(lambda: "does not know this key" in browser.text("key-message"))
        browser.at("key-value").send_keys(KEYS.read[0], Keys.ENTER)
        browser.until(lambda: browser.find("ol.hits"))
        assert browser.hits()[0] == "0"
        assert KEYS.read[0] not in chromium.current_url
        stored = chromium.execute_script("return [Object.values(sessionStorage), localStorage.length, document.cookie]")
        assert stored == [[KEYS.read[0]], 0, ""]
        curl = _copied(browser, "copy-curl")
        assert KEYS.read[0] not in curl
        if shutil.which("curl"):
            environment = {**os.environ, "SEARCHKIT_KEY": KEYS.read[0]}
            answer = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=30, env=environment)
            assert json.loads(answer.stdout)["hits"]
        chromium.refresh()
        browser.until(lambda: browser.find("ol.hits"))
        assert not any(KEYS.read[0] in each for each in browser.requested())


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_nothing_is_wider_than_the_window(browser: Browser, chromium: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for state in (
            {},
            {"q": "tea"},
            {"q": "tea", "compare": "1", "instruction_b": REFUTE},
            {"q": "x" * 300, "open": "book"},
        ):
            browser.visit(**state)
            assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
