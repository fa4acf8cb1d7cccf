"""The model that ships inside the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from texts import SENTENCES

import searchkit
from searchkit.models.embedder import Embedder

FOLDER = Path(searchkit.__file__).parent / "builtin"
# A fresh interpreter: what a search from a cold shell imports, takes and uses.
COLD = """
import re, resource, sys
from searchkit.engine import SearchEngine
hits = SearchEngine.open(sys.argv[1]).search("why does bread rise", k=1)
loaded = {"torch", "transformers", "pyarrow", "rank_bm25"} & sys.modules.keys()
usage = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss, which begins with what the parent held when it forked.
memory = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
print(hits[0].id, ",".join(loaded) or "none", usage.ru_utime + usage.ru_stime, memory)
"""


def test_it_is_small_and_causal_and_in_int8() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 25e6
    model = Embedder()
    assert (model.name, model.dtype, model.runtime.decoder) == ("builtin", "int8", True)


def test_it_finds_what_is_meant_without_a_word_in_common() -> None:
    model = Embedder()
    wanted = {
        "baking a loaf": 1, "how animals communicate": 5, "melting ice on roads": 8, "protection against disease": 6,
        "navigation at sea": 9, "mortgage": 3, "classical music": 4,
    }  # fmt: skip
    found = (model.encode_queries(list(wanted)) @ model.encode_passages(SENTENCES).T).argmax(1)
    np.testing.assert_array_equal(found, list(wanted.values()))


def test_a_text_embeds_alone_as_in_a_crowd() -> None:
    model = Embedder()
    texts = ["tea", "a long passage about nothing much " * 40, *SENTENCES]
    alone = np.concatenate([model.encode_passages([text]) for text in texts])
    np.testing.assert_allclose(alone, model.encode_passages(texts), atol=1e-6)


def test_an_instruction_changes_the_query_and_keeps_its_meaning() -> None:
    model = Embedder()
    plain = model.encode_queries(["how does bread rise"], "")[0]
    told = model.encode_queries(["how does bread rise"], "Given a question, find passages that answer it")[0]
    assert 0.6 < float(plain @ told) < 0.999


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cold_search_is_quick_and_small_and_needs_no_torch(tmp_path: Path) -> None:
    from searchkit import Document, SearchEngine

    with SearchEngine.create(tmp_path / "i") as engine:
        engine.add(Document(str(n), text) for n, text in enumerate(SENTENCES))
    runs = [
        subprocess.run([sys.executable, "-c", COLD, str(tmp_path / "i")], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    hit, loaded, _, memory = runs[0].stdout.split()
    assert (hit, loaded) == ("1", "none")
    assert int(memory) < 300
    assert min(float(run.stdout.split()[2]) for run in runs) < 1.5  # seconds of processor time, on a busy machine
