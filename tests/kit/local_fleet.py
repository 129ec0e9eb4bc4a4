"""A fleet without Ray: nodes of this process, each with a cache of its own, and with faults."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from tests.kit.hub_process import Hub
from tests.kit.pulls import config, environment
from vlmcache.change.plan import Failure
from vlmcache.commands.fleet.actor import MethodAnswer, Setup, Worker
from vlmcache.commands.fleet.calls import LOST, Beat, Call, Node, Reply
from vlmcache.commands.fleet.holdings import Holdings
from vlmcache.commands.fleet.pull import pull_to_fleet
from vlmcache.commands.fleet.pull_values import FleetPull, FleetPullOptions
from vlmcache.config import CacheLocation, Session
from vlmcache.progress import Progress

REPO = "org/name"


class LocalWorker(Worker):
    """What runs on a node, with its session given."""

    def __init__(self, session: Session) -> None:
        super().__init__(msgspec.json.encode(Setup()))
        self.session = session

    @property
    def cache(self) -> Any:
        return SimpleNamespace(session=self.session)

    @property
    def holdings(self) -> Holdings | None:
        return self.kept.get("pull")


class LocalFleet:
    """Nodes that are asked in threads of this process; it has what `calls.Fleet` promises."""

    def __init__(self, hub: Hub, folder: Path, count: int, **limits: int) -> None:
        self.hub = hub
        self.caches = {f"node{number}": folder / f"node{number}" for number in range(1, count + 1)}
        self.nodes = tuple(Node(name, name, "127.0.0.1") for name in self.caches)
        self.workers = {
            name: LocalWorker(
                Session(environment(hub, path), config(**limits), CacheLocation(str(path), "test"))
            )
            for name, path in self.caches.items()
        }
        self.driver = Session(
            environment(hub, folder / "driver"),
            config(),
            CacheLocation(str(folder / "driver"), "test"),
        )
        self.lost: dict[str, str] = {}
        self.beats: Mapping[str, Beat] = {}
        self.on_call: Callable[[str, str], None] = lambda node, method: None
        """Called with each node and method, before it is passed on."""
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(64)
        self._number = 0
        self._lock = threading.Lock()

    def call(
        self,
        node: Node,
        method: str,
        request: msgspec.Struct | None = None,
        *,
        silent: float = 300.0,
    ) -> Call:
        self._number += 1
        call = Call(self._number, node, method)
        self.on_call(node.name, method)
        content = b"{}" if request is None else msgspec.json.encode(request)
        self._pool.submit(self._do, call, content)
        return call

    def _do(self, call: Call, content: bytes) -> None:
        try:
            self._answer(call, content)
        except BaseException as error:
            failure = Failure("test", f"{type(error).__name__}: {error}", None, 1)
            self._replies.put(Reply(call, failure=failure))
            raise

    def _answer(self, call: Call, content: bytes) -> None:
        name = call.node.name
        if name not in self.lost:
            answer = msgspec.json.decode(
                self.workers[name].call(call.method, content), type=MethodAnswer
            )
        if name in self.lost:
            self._replies.put(Reply(call, failure=Failure(LOST, self.lost[name], None, 1)))
            return
        value = bytes(answer.value)
        self._replies.put(Reply(call, value, answer.failure))

    def arrived(self, timeout: float) -> list[Reply]:
        replies: list[Reply] = []
        with contextlib.suppress(queue.Empty):
            replies.append(self._replies.get(timeout=timeout))
            while True:
                replies.append(self._replies.get_nowait())
        return replies

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.stop()

    def kill(self, name: str) -> None:
        """Let a node die: what it sends ends at once, and so does what it fetches."""
        with self._lock:
            if name in self.lost:
                return
            self.lost[name] = "the node died"
        holdings = self.workers[name].holdings
        if holdings is not None:
            threading.Thread(target=holdings.close).start()

    def close(self) -> None:
        for worker in self.workers.values():
            if worker.holdings is not None:
                worker.holdings.close()
        self._pool.shutdown(cancel_futures=True)

    def pull(self, *names: str, progress: Progress | None = None, **options: Any) -> FleetPull:
        """Pull to all nodes; `org/name` unless another is given."""
        return pull_to_fleet(
            self.driver,
            lambda: self,
            names or (REPO,),
            FleetPullOptions(**options),
            progress or Progress(),
        )


@contextlib.contextmanager
def local_fleet(hub: Hub, folder: Path, count: int, **limits: int) -> Iterator[LocalFleet]:
    """Yield a fleet whose nodes end with it."""
    fleet = LocalFleet(hub, folder, count, **limits)
    try:
        yield fleet
    finally:
        fleet.close()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition is true; fail if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
