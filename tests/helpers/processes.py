"""Two processes that train together, forked from one that has loaded the libraries."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

_LOADED = ["torch", "accelerate", "peft", "transformers.models.mistral", "searchkit.training.train"]


def run_two(process: Callable[[int, str], None], folder: Path) -> None:
    """Call `process(rank, folder)` in two processes.

    The tests' own process has run backward passes, after which torch must not be forked; starting Python twice would
    load everything twice.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(_LOADED)
    torch.multiprocessing.start_processes(process, args=(str(folder),), nprocs=2, start_method="forkserver")
