"""The process that knows Ray.

Ray prints, installs signal handlers, ends its process if the node on which that runs dies, waits
for minutes for an address at which nobody answers, and notes the command line of its process in the
cluster. Therefore it has a process of its own, which gets orders and answers them as lines of JSON
(`wire`). It ends with the process that started it, and the actors end with it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import signal
import sys
import threading
import time
from typing import Any

import msgspec

from vlmcache.commands.fleet import actor, wire
from vlmcache.errors import reason_of

BEAT = 2.0
"""Seconds after which a node is asked again how far it is."""
PATIENCE = 30.0
"""Seconds that a node may take to answer that; an actor that starts, to answer at all."""
START = 90.0
"""Seconds that an actor may take to start: it imports from the node's disk."""
_SEES_GPUS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # For versions of Ray that do not know the first one.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_EXPERIMENTAL_NOSET_ROCR_VISIBLE_DEVICES": "1",
    "RAY_EXPERIMENTAL_NOSET_ONEAPI_DEVICE_SELECTOR": "1",
}
_TICK = 0.05
_LEAVE = 5.0


def main() -> None:
    """Join a cluster and pass calls on until standard input ends."""
    # Ctrl-C reaches the whole group; the parent says what it means here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    orders: queue.SimpleQueue[wire.Order | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    try:
        join = orders.get()
        if isinstance(join, wire.Join):
            _Driver(answers, join).run(orders)
    finally:
        os._exit(0)


def _read(orders: queue.SimpleQueue[wire.Order | None]) -> None:
    decoder = msgspec.json.Decoder(wire.Order)
    try:
        for line in sys.stdin.buffer:
            orders.put(decoder.decode(line))
    finally:
        orders.put(None)
        # Ray may be in a call that does not end.
        time.sleep(_LEAVE + 1)
        os._exit(1)


class _RemoteWorker:
    """An actor on a node, and what it was asked."""

    def __init__(self, handle: Any, now: float) -> None:
        self.handle = handle
        self.calls: dict[Any, wire.Ask] = {}
        """Reference of an answer -> the call."""
        self.ping: Any = None
        self.pinged = now
        self.beat = b""
        self.grew: dict[int, float] = {}
        """Call -> when the node's work last made progress."""
        self.lost = ""
        self.started = False


class _Driver:
    def __init__(self, answers: int, join: wire.Join) -> None:
        self._answers = answers
        self._join = join
        self._workers: dict[str, _RemoteWorker] = {}
        import ray

        self.ray: Any = ray

    def tell(self, news: wire.News) -> None:
        """Send a line to the parent."""
        line = wire.line(news)
        try:
            while line:
                line = line[os.write(self._answers, line) :]
        except OSError:
            self.leave()

    def run(self, orders: queue.SimpleQueue[wire.Order | None]) -> None:
        """Join, then work until there are no more orders."""
        if not self.join():
            return
        while True:
            with contextlib.suppress(queue.Empty):
                while True:
                    # Without calls there is nothing to do but to wait.
                    order = orders.get(timeout=None if self._idle() else 0.0)
                    if order is None:
                        self.leave()
                    self.obey(order)
            self.collect()
            self.ping()

    def _idle(self) -> bool:
        return not any(worker.calls for worker in self._workers.values())

    def join(self) -> bool:
        """Join the cluster, and return whether that succeeded."""
        address = self._join.address
        try:
            self.ray.init(
                address=address,
                log_to_driver=self._join.verbose,
                logging_level="info" if self._join.verbose else "error",
                **({} if address.startswith("ray://") else {"include_dashboard": None}),
            )
            nodes = tuple(map(_facts, self.ray.nodes()))
        except BaseException as error:
            self.tell(wire.Refused(type(error).__name__, reason_of(error)))
            return False
        # Ray's handler would end this process in the middle of a line.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.tell(wire.Joined(nodes, platform.python_version(), self.ray.__version__))
        return True

    def obey(self, order: wire.Order | None) -> None:
        """Do what the parent asks for."""
        if isinstance(order, wire.Start):
            for node in order.nodes:
                self._workers[node] = _RemoteWorker(self._start(node), time.monotonic())
        elif isinstance(order, wire.Ask):
            self.ask(order)
        elif isinstance(order, wire.Stop):
            for worker in self._workers.values():
                if not worker.lost:
                    worker.handle.stop.remote()

    def _start(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            "num_cpus": 0,
            "num_gpus": 0,
            "max_restarts": 0,
            "max_concurrency": 64,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        if self._join.sees_gpus:
            # An actor that reserves none would not. Ray makes an environment for it, which takes
            # time.
            options["runtime_env"] = {"env_vars": dict(_SEES_GPUS)}
        return self.ray.remote(actor.Worker).options(**options).remote(self._join.setup.encode())

    def ask(self, order: wire.Ask) -> None:
        """Pass a call on."""
        worker = self._workers[order.node]
        if worker.lost:
            self.tell(wire.Answered(order.number, lost=worker.lost))
            return
        if not worker.calls:
            worker.pinged = time.monotonic()
        worker.grew[order.number] = time.monotonic()
        reference = worker.handle.call.remote(order.method, order.request.encode())
        worker.calls[reference] = order

    def collect(self) -> None:
        """Pass on what has been answered."""
        places = {ref: worker for worker in self._workers.values() for ref in worker.calls}
        pings = {
            worker.ping: (node, worker) for node, worker in self._workers.items() if worker.ping
        }
        waited = [*places, *pings]
        if not waited:
            return
        ready, _ = self.ray.wait(waited, num_returns=1, timeout=_TICK)
        if ready:
            ready, _ = self.ray.wait(waited, num_returns=len(waited), timeout=0)
        for reference in ready:
            worker = places[reference] if reference in places else pings[reference][1]
            try:
                content = self.ray.get(reference, timeout=PATIENCE)
            except Exception as error:
                self.lose(worker, _words(error))
                continue
            worker.started = True
            if reference in places:
                order = worker.calls.pop(reference, None)
                if order is not None:
                    worker.grew.pop(order.number)
                    self.tell(wire.Answered(order.number, content.decode()))
            else:
                self._take_beat(pings[reference][0], worker, content)

    def _take_beat(self, node: str, worker: _RemoteWorker, beat: bytes) -> None:
        worker.ping, worker.pinged = None, time.monotonic()
        if beat != worker.beat:
            worker.beat = beat
            worker.grew = dict.fromkeys(worker.grew, worker.pinged)
            self.tell(wire.Beats(node, beat.decode()))

    def ping(self) -> None:
        """Ask busy nodes how far they are, and give up those that do not answer."""
        now = time.monotonic()
        for worker in self._workers.values():
            if not worker.calls:
                continue
            waited, patience = now - worker.pinged, PATIENCE if worker.started else START
            if worker.ping is None and waited >= BEAT:
                worker.ping, worker.pinged = worker.handle.beat.remote(), now
            elif worker.ping is not None and waited >= patience:
                self.lose(worker, f"no answer for {waited:.0f} s")
            late = [o for o in worker.calls.values() if now - worker.grew[o.number] >= o.silent]
            if late:
                self.lose(worker, f"its work has made no progress for {late[0].silent:.0f} s")

    def lose(self, worker: _RemoteWorker, why: str) -> None:
        """Give a node up, and answer every call to it."""
        worker.lost, worker.ping = worker.lost or why, None
        calls, worker.calls = worker.calls, {}
        worker.grew = {}
        for order in calls.values():
            self.tell(wire.Answered(order.number, lost=worker.lost))
        with contextlib.suppress(Exception):
            self.ray.kill(worker.handle)

    def leave(self) -> None:
        """End the actors, and this process."""

        def end() -> None:
            with contextlib.suppress(Exception):
                for worker in self._workers.values():
                    self.ray.kill(worker.handle)
                self.ray.shutdown()

        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(_LEAVE)
        os._exit(0)


def _facts(node: dict[str, Any]) -> wire.NodeFacts:
    labels = {str(key): str(value) for key, value in (node.get("Labels") or {}).items()}
    hostname, address = str(node["NodeManagerHostname"]), str(node["NodeManagerAddress"])
    name = str(node.get("NodeName") or "")
    return wire.NodeFacts(
        str(node["NodeID"]),
        hostname if name in ("", address) else name,
        hostname,
        address,
        bool(node["Alive"]),
        labels,
    )


def _words(error: Exception) -> str:
    """Return in one line why a node no longer answers."""
    text = str(error)
    if "No module named 'vlmcache" in text:
        return "vlmcache is not installed for the Python that Ray runs on the node"
    if type(error).__name__ == "ActorUnavailableError" or "actor died unexpectedly" in text:
        return "it died, or can no longer be reached"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
