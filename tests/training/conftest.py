"""Small trainings draw no picture, which takes as long as all the rest of one; `pictures` is for those looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from searchkit.training import log


@pytest.fixture(scope="module", autouse=True)
def drawn() -> Iterator[Callable[..., object]]:
    """What draws them, out of use."""
    with pytest.MonkeyPatch.context() as patch:
        draw = log.draw
        patch.setattr(log, "draw", lambda *_, **__: [])
        yield draw


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch, drawn: Callable[..., object]) -> None:
    monkeypatch.setattr(log, "draw", drawn)
