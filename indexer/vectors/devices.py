"""The vector backend for a device."""

from __future__ import annotations

import logging
import re

from searchkit.indexer.errors import InputError
from searchkit.indexer.vectors.backend import VectorBackend
from searchkit.indexer.vectors.faiss_gpu import GpuBackend
from searchkit.indexer.vectors.faiss_index import FaissBackend
from searchkit.indexer.vectors.faiss_library import faiss_module

logger = logging.getLogger(__name__)


def make_backend(device: str | None = None, *, replicate: bool = False) -> VectorBackend:
    """FAISS on the GPUs that a device names, or on the CPU where it names none.

    Args:
        device: As `device_numbers` takes it.
        replicate: Give each GPU all vectors, for more queries at once, instead of a share of them, for more vectors.
    """
    devices = device_numbers(device)
    return GpuBackend(devices, replicate=replicate) if devices else FaissBackend()


def device_numbers(device: str | None) -> list[int]:
    """The GPUs that a device names, as FAISS counts them; none, with a logged reason, where FAISS has no such GPU.

    Args:
        device: "cuda" (every GPU), "cuda:1", "cuda:0,2"; anything else names none.

    Raises:
        InputError: The device begins with "cuda" and cannot be understood.
    """
    if not device or not device.startswith("cuda"):
        return []
    if not (match := re.fullmatch(r"cuda(?::(\d+(?:,\d+)*))?", device)):
        raise InputError(f"device is {device!r}; expected cuda, cuda:1 or cuda:0,1")
    count = int(getattr(faiss_module(), "get_num_gpus", int)())
    wanted = list(dict.fromkeys(map(int, match[1].split(",")))) if match[1] else list(range(count))
    if not count:
        logger.warning(
            "vectors are searched on the CPU: this faiss sees no GPU; "
            "if there is one, install 'searchkit[gpu]' instead of searchkit[cpu]"
        )
    if missing := [number for number in wanted if count and number >= count]:
        logger.warning("faiss sees GPUs 0 to %d; %s are left out", count - 1, missing)
    return [number for number in wanted if number < count]
