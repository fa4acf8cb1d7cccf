"""Kills against a real language model's server: what was answered is not asked for again.

    llama-server -m model.gguf --port 8011
    SEARCHKIT_TEST_LLM=http://127.0.0.1:8011/v1 pytest -n 0 tests/training/synthesis/test_real_server.py -s

SEARCHKIT_KILLS is the number of kills, 10 by default.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from synthetic import rows

from searchkit.engine import SearchEngine
from searchkit.records import Document
from searchkit.training.synthesis.journal import Journal

SERVER = os.environ.get("SEARCHKIT_TEST_LLM", "")
KILLS = int(os.environ.get("SEARCHKIT_KILLS", "10"))
pytestmark = pytest.mark.skipif(
    not SERVER, reason="needs a language model: SEARCHKIT_TEST_LLM=http://127.0.0.1:8011/v1"
)

NOTES = {
    "kettle": "Scale in a kettle comes off with citric acid: two spoons to a litre, heated and left for half an hour.",
    "saddle": "A bicycle saddle is level when a board laid along it touches the nose and the back at the same time.",
    "rye": "A sourdough of rye is ready when its surface cracks like dry mud and the smell has turned to fruit.",
    "gutter": "Leaves that clog a gutter in autumn freeze there, and the ice lifts the lowest row of tiles by spring.",
    "violin": "Gut strings go out of tune as soon as the hall fills with people, because they swell in moist air.",
    "lichen": "Grey lichen on the north side of an apple tree does no harm; it shows that the branches grow slowly.",
}


class Counting:
    """Passes requests on to the server, and counts those it answered by their bodies.

    Attributes:
        url: Its own address.
        answered: Request body -> how often the server answered it, whether or not anybody still listened.
    """

    def __init__(self) -> None:
        self.answered: Counter[bytes] = Counter()
        self.slot = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = urllib.request.Request(
                    SERVER + self.path.removeprefix("/v1"), body, {"Content-Type": "application/json"}
                )
                try:
                    with outer.slot, urllib.request.urlopen(request, timeout=900) as response:
                        status, text = response.status, response.read()
                    outer.answered[body] += 1
                except urllib.error.HTTPError as error:
                    status, text = error.code, error.read()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except OSError:  # it was killed meanwhile
                    pass

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def counting() -> Iterator[Counting]:
    made = Counting()
    yield made
    made.close()


def test_ten_kills_pay_for_nothing_twice(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "notes.index") as engine:
        engine.add(Document(name, text) for name, text in NOTES.items())
    kills, killed, rng = KILLS, 0, random.Random(4)
    with counting() as server:
        command = [
            sys.executable, "-c", "from searchkit.cli.main import main; main()", "synthesize",
            str(tmp_path / "notes.index"), "--out", str(tmp_path / "pairs.jsonl"), "--model", "any",
            "--base-url", server.url, "--concurrency", "1", "--timeout", "900", "--temperature", "0.7",
            "--instruction", "Find notes", "--queries-per-passage", "1", "--min-words", "5", "--count", "18",
            "--tries", "2",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        while killed < kills:
            before = sum(server.answered.values())
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # Some are killed as they start, some as they ask or write, the rest after one answer or two.
            wanted, pause = before + rng.choice((0, 0, 1, 1, 2)), rng.uniform(0, 5)
            deadline = time.monotonic() + 900
            while process.poll() is None and time.monotonic() < deadline:
                if sum(server.answered.values()) >= wanted:
                    time.sleep(pause)
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            if process.returncode == 0:
                break  # finished before it could be killed
        with server.slot:  # what was in flight at the last kill is answered too
            pass
        assert subprocess.run(command, env=environment, capture_output=True, timeout=3000).returncode == 0
        paid = sum(server.answered.values())
        again = subprocess.run([*command, "--format", "json"], env=environment, capture_output=True, timeout=900)
        assert sum(server.answered.values()) == paid
    report = json.loads(again.stdout)
    with Journal(tmp_path / "pairs.work") as journal:
        kept = journal.answers
    print(
        f"\n{killed} kills: {paid} requests answered by the server, {kept} answers kept, {report['examples']} examples"
    )
    assert report["asked"] == 0
    assert report["answers"] == kept
    assert len(rows(tmp_path / "pairs.jsonl")) == report["examples"] > 0
    assert kept <= paid <= kept + killed  # one request was in flight at each kill, and no other is repeated
    assert killed >= min(kills, 5)
