"""Build the parts of an index by actors of Ray Core: each holds the model once, and makes one part after another.

A part is an index of its own, made where it stays. What an actor has committed outlives it, its node and the driver:
whoever makes the part next goes on from there.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from searchkit.errors import BusyError, InputError, SearchkitError, StoreError
from searchkit.ingest import AddReport
from searchkit.merging import Part
from searchkit.models.embedder import Embedder

logger = logging.getLogger(__name__)

CPUS = 4
"""CPUs of a worker, unless its node has fewer: its model computes on as many threads."""

PARTS = 4
"""Parts for every worker, so that none waits long for the last."""

TRIES = 5
"""How often a part is begun before its failing workers count as an error."""

_POLL = 0.5  # seconds
_PATIENCE = 30.0  # seconds that a part may be held by a worker that has just died
_CONNECT = 5.0  # seconds


class Maker(Protocol):
    """Makes the parts of one index; every worker gets a copy."""

    def load(self, threads: int) -> Embedder | None:
        """The model, which a worker holds for all its parts; None where vectors come with the documents."""

    def make(
        self, part: Part, place: str, embedder: Embedder | None, on_progress: Callable[[float, int], None]
    ) -> AddReport:
        """Make a part at a place, a folder or a URL, or go on with it."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """What went wrong with a part, where another worker would fare no better."""

    message: str
    is_input: bool


class _Worker:
    """An actor; it tells how far it is while it works."""

    def __init__(self, maker: Maker, threads: int) -> None:
        self._maker, self._threads = maker, threads
        self._embedder: Embedder | None = None
        self._done: tuple[float, int] = (0, 0)

    def load(self) -> _Failure | None:
        """Load the model."""
        try:
            self._embedder = self._maker.load(self._threads)
        except (SearchkitError, OSError) as error:
            return _Failure(str(error), isinstance(error, InputError))
        return None

    def make(self, part: Part, place: str) -> AddReport | _Failure:
        """Make a part."""
        self._done = (0, 0)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._maker.make(part, place, self._embedder, self._note)
            except BusyError as error:
                if time.monotonic() > until:
                    return _Failure(str(error), False)
            except (SearchkitError, OSError) as error:
                return _Failure(str(error), isinstance(error, InputError))
            time.sleep(_POLL)

    def progress(self) -> tuple[float, int]:
        """Documents and passages done of the part that is being made."""
        return self._done

    def _note(self, documents: float, passages: int) -> None:
        self._done = (documents, passages)


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers.

    Args:
        count: How many.
        cpus: CPUs of each.
        gpus: GPUs of each, 0 or 1.
    """

    count: int
    cpus: int
    gpus: int


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a cluster, or to one that is started here and stopped at the end.

    Args:
        address: "local" starts Ray on this machine; "auto" is the cluster that runs on it; or HOST:PORT, or
            ray://HOST:PORT.

    Raises:
        InputError: There is no cluster at the address.
        StoreError: None can be started.
    """
    import ray

    if address not in ("local", "auto"):
        _check_reachable(address)
    # Its usage reports would go out to other hosts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {"include_dashboard": False, "object_store_memory": 100 << 20} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # a node that starts too slowly is a plain Exception
        if address == "local":
            raise StoreError(
                f"Ray cannot be started here ({_first_line(error)}); look into /tmp/ray, or try again"
            ) from error
        raise InputError(
            f"no cluster of Ray can be reached at {address} ({_first_line(error)}); expected local, auto, HOST:PORT or "
            "ray://HOST:PORT, and the same version of Ray on all nodes"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def crew(*, workers: int | None = None, threads: int | None = None, gpu: bool = False) -> Crew:
    """As many workers as the connected cluster has room for.

    Args:
        workers: How many at most; None for as many as there is room for.
        threads: CPUs of each; None for CPUS, or those of the smallest node.
        gpu: Each needs a GPU.

    Raises:
        InputError: There is no room for any.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    cpus = threads or max(1, min([CPUS, *(int(node["CPU"]) for node in nodes)]))
    room = sum(min(int(node["CPU"]) // cpus, int(node.get("GPU", 0)) if gpu else int(node["CPU"])) for node in nodes)
    if not room:
        raise InputError(
            f"no node of the cluster has {cpus} CPUs{' and a GPU' if gpu else ''} for a worker; its nodes have "
            f"{[{key: node.get(key, 0) for key in ('CPU', 'GPU')} for node in nodes]}"
        )
    return Crew(min(room, workers or room), cpus, int(gpu))


def build_parts(
    maker: Maker,
    places: Sequence[str],
    crew: Crew,
    *,
    on_progress: Callable[[float, int], None] | None = None,
) -> list[AddReport]:
    """Make all parts of an index by the workers of the connected cluster.

    Args:
        maker: Makes a part.
        places: Where the parts are made, or gone on with, in order: folders that all nodes see, or URLs.
        crew: The workers.
        on_progress: Called now and then with (documents, passages) done so far.

    Raises:
        InputError: The corpus, the model or the options cannot be used.
        StoreError: A part cannot be made; what was committed stays, and the same call goes on from there.
    """
    run = _Run(maker, places, crew)
    try:
        while not run.done:
            run.step()
            if on_progress:
                on_progress(*run.progress())
        return [run.reports[part.number] for part in run.parts]
    finally:
        run.close()


class _Run:
    """Parts that wait, workers that start, idle or work.

    Args:
        maker: Makes a part.
        places: Of the parts.
        crew: The workers.
    """

    def __init__(self, maker: Maker, places: Sequence[str], crew: Crew) -> None:
        import ray

        self._ray, self._places, self._crew = ray, places, crew
        self._maker = ray.put(maker)
        self._class = ray.remote(_Worker).options(
            num_cpus=crew.cpus,
            num_gpus=crew.gpus,
            max_restarts=0,
            max_concurrency=2,  # one to tell how far it is
        )
        self.parts = [Part(number, len(places)) for number in range(1, len(places) + 1)]
        self.reports: dict[int, AddReport] = {}
        self._waiting = deque(self.parts)
        self._tries: dict[int, int] = {}
        self._starting: dict[Any, Any] = {}  # by what is awaited: the actor
        self._working: dict[Any, tuple[Any, Part]] = {}
        self._idle: list[Any] = []
        self._asked: dict[Any, Any] = {}  # what an actor was asked last, by the actor
        self._told: dict[Any, tuple[float, int]] = {}
        self._lost = 0  # workers, since one was ready

    @property
    def done(self) -> bool:
        """Whether every part is made."""
        return len(self.reports) == len(self.parts)

    def step(self) -> None:
        """Give work to idle workers, and wait a little for what comes back."""
        left = len(self._waiting) + len(self._working)
        for _ in range(min(self._crew.count, left) - len(self._starting) - len(self._working) - len(self._idle)):
            actor = self._class.remote(self._maker, self._crew.cpus)
            self._starting[actor.load.remote()] = actor
        while self._idle and self._waiting:
            actor, part = self._idle.pop(), self._waiting.popleft()
            self._tries[part.number] = self._tries.get(part.number, 0) + 1
            self._working[actor.make.remote(part, self._places[part.number - 1])] = (actor, part)
        ready, _ = self._ray.wait([*self._starting, *self._working], timeout=_POLL)
        for awaited in ready:
            if awaited in self._starting:
                self._started(awaited)
            else:
                self._made(awaited)

    def progress(self) -> tuple[float, int]:
        """Documents and passages done so far."""
        for actor, _ in self._working.values():
            asked = self._asked.get(actor)
            if asked is None:
                self._asked[actor] = actor.progress.remote()
            elif self._ray.wait([asked], timeout=0)[0]:
                del self._asked[actor]
                try:
                    self._told[actor] = self._ray.get(asked)
                except self._ray.exceptions.RayError:  # it has died, which the work itself tells too
                    self._told.pop(actor, None)
        now = [self._told.get(actor, (0, 0)) for actor, _ in self._working.values()]
        finished = self.reports.values()
        documents = sum(report.documents + report.unchanged for report in finished) + sum(each[0] for each in now)
        return documents, sum(report.passages for report in finished) + sum(each[1] for each in now)

    def close(self) -> None:
        """End the workers."""
        working = [actor for actor, _ in self._working.values()]
        for actor in [*self._starting.values(), *working, *self._idle]:
            self._ray.kill(actor)

    def _started(self, awaited: Any) -> None:
        actor = self._starting.pop(awaited)
        try:
            failure = self._ray.get(awaited)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            self._lost += 1
            logger.warning("a worker was lost before it began: %s", _first_line(error))
            if self._lost >= TRIES:
                raise StoreError(
                    f"{self._lost} workers one after another were lost before they began: {_first_line(error)}; look "
                    "into Ray's logs, then run the same command to go on"
                ) from error
            return
        if failure is not None:
            _raise(failure)
        self._lost = 0
        self._idle.append(actor)

    def _made(self, awaited: Any) -> None:
        actor, part = self._working.pop(awaited)
        self._told.pop(actor, None)
        try:
            report = self._ray.get(awaited)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            logger.warning("a worker was lost at part %d of %d: %s", part.number, part.count, _first_line(error))
            if self._tries[part.number] >= TRIES:
                raise StoreError(
                    f"part {part.number} of {part.count} has lost {TRIES} workers, the last by: {_first_line(error)}; "
                    "look into Ray's logs, then run the same command to go on"
                ) from error
            self._waiting.append(part)
            return
        if isinstance(report, _Failure):
            _raise(report)
        self.reports[part.number] = report
        self._idle.append(actor)


def _raise(failure: _Failure) -> None:
    raise (InputError if failure.is_input else StoreError)(failure.message)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_reachable(address: str) -> None:
    """Raise InputError where nothing listens: Ray itself takes minutes to say so, or ends the process."""
    match = re.fullmatch(r"(?:ray://)?(\[[0-9a-fA-F:]+\]|[^:/\s]+):(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise InputError(f"the address of Ray is {address!r}; expected local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=_CONNECT).close()
    except OSError as error:
        raise InputError(f"no cluster of Ray can be reached at {address} ({error.strerror or error})") from error
