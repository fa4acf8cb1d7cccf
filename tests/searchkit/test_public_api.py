from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_the_builtin_model_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    """onnxruntime's builds write a device id and events for Microsoft there, and send them."""
    unset = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    code = "from searchkit import Embedder; Embedder('builtin').encode_queries(['tea'])"
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []
