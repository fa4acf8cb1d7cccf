from __future__ import annotations

import subprocess
import sys

import pytest

import searchkit


@pytest.mark.parametrize("name", searchkit.__all__)
def test_every_public_name_can_be_imported_from_the_top(name: str) -> None:
    assert getattr(searchkit, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'searchkit' has no attribute 'Engine'"):
        _ = searchkit.Engine


def test_importing_searchkit_loads_no_library() -> None:
    code = "import sys, searchkit; print(*{'numpy', 'faiss', 'torch', 'tantivy', 'onnxruntime'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
