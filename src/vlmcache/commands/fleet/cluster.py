"""A Ray cluster that was joined: nodes, an actor on each, calls to them.

`starting(address, setup)` is the way in; what `Cluster.join` returns is described in `calls`. Ray
itself runs in a process of its own, see `driver`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import IO

import msgspec

from vlmcache import log
from vlmcache.change.plan import Failure
from vlmcache.commands.fleet import wire
from vlmcache.commands.fleet.actor import Hello, MethodAnswer, Setup, own_versions
from vlmcache.commands.fleet.calls import LOST, SILENT, Beat, Call, Node, Reply
from vlmcache.commands.fleet.joining import UNAUTHORIZED, ClusterError
from vlmcache.commands.fleet.nodes import named_nodes, require_same_versions, select_nodes
from vlmcache.errors import ExitCode, MissingPackageError, UsageError, reason_of
from vlmcache.installing import install_extra

_COMMAND = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from vlmcache.commands.fleet.driver import main; main()"
)
_REACH = 5.0
"""Seconds in which somebody has to listen at the cluster's address."""
_JOIN = 60.0
"""Seconds in which Ray has to join the cluster."""
_EXIT = 8.0
_PATHS = ("RAY_AUTH_TOKEN_PATH", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


@contextlib.contextmanager
def starting(
    address: str | None, setup: Setup, *, sees_gpus: bool = False, verbose: bool = False
) -> Iterator[Cluster]:
    """Let Ray's process join a running cluster, and end it with the block.

    That takes seconds: `Cluster.join` waits for it, once what needs no node is done.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`; RAY_ADDRESS, else `auto`, if not given.
        setup: how the actors work.
        sees_gpus: whether actors see the GPUs, of which they reserve none.
        verbose: whether Ray may say what it does, in the log.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: nobody listens at the address.
        UsageError: it is not an address.
    """
    if not _has_ray():
        raise MissingPackageError("fleet needs Ray, which is not installed", install_extra("fleet"))
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    _reach(address)
    work = msgspec.json.encode(setup).decode()
    cluster = Cluster(wire.Join(address, work, sees_gpus=sees_gpus, verbose=verbose))
    try:
        yield cluster
    finally:
        cluster.close()


def _has_ray() -> bool:
    try:
        return importlib.util.find_spec("ray") is not None
    except ValueError:  # a program keeps it from being imported
        return False


def _reach(address: str) -> None:
    """Make sure that somebody listens at an address: Ray would try for more than three minutes.

    Raises:
        UsageError: it is not an address.
        ClusterError: nobody does.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    known = address.startswith("ray://") or "://" not in address
    if address in ("auto", "local") or not known or not colon or not port.isdecimal():
        if address == "auto":
            return
        raise UsageError(
            f"not the address of a cluster: '{address}'",
            "write auto, HOST:PORT or ray://HOST:PORT",
        )
    try:
        place = host.strip("[]"), int(port)
        with contextlib.closing(socket.create_connection(place, _REACH)):
            pass
    except (OSError, OverflowError) as error:
        raise ClusterError.of(address, "OSError", reason_of(error)) from None


class Cluster:
    """A Ray cluster; it has what `calls.Fleet` promises.

    Args:
        join: which, and how.
    """

    def __init__(self, join: wire.Join) -> None:
        self.nodes: tuple[Node, ...] = ()
        self.lost: dict[str, str] = {}
        self.beats: dict[str, Beat] = {}
        self._join = join
        self._own = own_versions()
        self._calls: dict[int, Call] = {}
        self._number = 0
        self._news: queue.SimpleQueue[wire.News | None] = queue.SimpleQueue()
        self._early: list[Reply] = []
        self._ended = ""
        self._joined = False
        self._said: deque[str] = deque(maxlen=5)
        path = [folder for folder in sys.path if os.path.isabs(folder)]
        environment = dict(os.environ)
        for name in _PATHS:
            if environment.get(name):
                environment[name] = os.path.abspath(environment[name])
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                # Ray lets workers on all nodes import from the folder in which it was called.
                cwd="/",
            )
        except OSError as error:
            raise ClusterError(f"no process for Ray: {reason_of(error)}") from error
        for listen, stream in ((self._listen, self._child.stdout), (self._log, self._child.stderr)):
            threading.Thread(target=listen, args=(stream,), daemon=True).start()
        self._send(join)

    def join(self, wanted: Sequence[str] = ()) -> Cluster:
        """Return the cluster once it is joined, and an actor has answered on each node or is lost.

        Args:
            wanted: what `--nodes` names; all nodes if it names none.

        Raises:
            ClusterError: the cluster cannot be joined.
            UsageError: a node that is wanted does not exist.
            VersionsError: nodes have other versions.
        """
        nodes = select_nodes(self._known_nodes(), wanted)
        self.nodes = nodes
        self._send(wire.Start(tuple(node.id for node in nodes)))
        calls = [self.call(node, "hello") for node in nodes]
        hellos: dict[str, Hello] = {}
        for reply in self._until(calls):
            if reply.failure is None:
                hellos[reply.call.node.name] = reply.value(Hello)
            elif not reply.lost:
                self.lost[reply.call.node.id] = reply.failure.message
        require_same_versions(self._own, hellos)
        return self

    def _known_nodes(self) -> tuple[Node, ...]:
        """Return the nodes that are alive, once Ray has joined them.

        Raises:
            ClusterError: it has not.
        """
        try:
            news = self._news.get(timeout=_JOIN)
        except queue.Empty:
            news = wire.Refused("TimeoutError", f"no answer in {_JOIN:.0f} s")
        if isinstance(news, wire.Joined):
            self._joined = True
            log.info("fleet", "joined: Ray %s, %s nodes", news.ray, len(news.nodes))
            self._own = msgspec.structs.replace(self._own, ray=news.ray)
            return named_nodes(news.nodes)
        refused = news if isinstance(news, wire.Refused) else wire.Refused("", self._last_words())
        raise ClusterError.of(self._join.address, refused.code, refused.text)

    def call(
        self,
        node: Node,
        method: str,
        request: msgspec.Struct | None = None,
        *,
        silent: float = SILENT,
    ) -> Call:
        """Let a node do something; see `calls.Fleet`."""
        self._number += 1
        call = self._calls[self._number] = Call(self._number, node, method)
        if self._ended or node.id in self.lost:
            self._early.append(self._lost(call, self.lost.get(node.id) or self._ended))
        else:
            content = b"{}" if request is None else msgspec.json.encode(request)
            self._send(wire.Ask(call.number, node.id, method, content.decode(), silent))
        return call

    def arrived(self, timeout: float) -> list[Reply]:
        """Return the answers that came since; see `calls.Fleet`."""
        replies, self._early = self._early, []
        deadline = time.monotonic() + timeout
        while True:
            left = 0.0 if replies else max(0.0, deadline - time.monotonic())
            try:
                # Short, since a wait in C keeps signals out on some systems.
                news = self._news.get(timeout=min(left, 0.5)) if left else self._news.get_nowait()
            except queue.Empty:
                if replies or time.monotonic() >= deadline:
                    return replies
                continue
            if news is None:
                self._ended = self._last_words()
                replies += [self._lost(call, self._ended) for call in list(self._calls.values())]
            elif isinstance(news, wire.Beats):
                self.beats[news.node] = msgspec.json.decode(news.beat, type=Beat)
            elif isinstance(news, wire.Answered):
                call = self._calls.get(news.number)
                if call is not None:
                    replies.append(self._reply(call, news))

    def _until(self, calls: Sequence[Call]) -> Iterator[Reply]:
        """Yield the answers of some calls as they come, until all have; others are kept."""
        numbers = {call.number for call in calls}
        others: list[Reply] = []
        while numbers:
            for reply in self.arrived(0.5):
                if reply.call.number in numbers:
                    numbers.remove(reply.call.number)
                    yield reply
                else:
                    others.append(reply)
        self._early += others

    def stop(self) -> None:
        """Ask the work on all nodes to end soon."""
        self._send(wire.Stop())

    def close(self) -> None:
        """End the actors, and the process that knows Ray."""
        if not self._joined:
            self._child.kill()  # Ray may be in a call that does not end
        with contextlib.suppress(OSError, ValueError):
            assert self._child.stdin is not None
            self._child.stdin.close()
        try:
            self._child.wait(_EXIT)
        except subprocess.TimeoutExpired:
            self._child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_EXIT)

    def _reply(self, call: Call, news: wire.Answered) -> Reply:
        if news.lost:
            return self._lost(call, news.lost)
        del self._calls[call.number]
        answer = msgspec.json.decode(news.content, type=MethodAnswer)
        return Reply(call, bytes(answer.value), answer.failure)

    def _lost(self, call: Call, why: str) -> Reply:
        self._calls.pop(call.number, None)
        self.lost.setdefault(call.node.id, why)
        log.info("fleet", "lost '%s': %s", call.node.name, why)
        return Reply(call, failure=Failure(LOST, why, None, int(ExitCode.FAILED)))

    def _send(self, order: wire.Order) -> None:
        # A process that has ended says so to `_listen`.
        with contextlib.suppress(OSError, ValueError):
            assert self._child.stdin is not None
            self._child.stdin.write(wire.line(order))
            self._child.stdin.flush()

    def _listen(self, stream: IO[bytes]) -> None:
        decoder = msgspec.json.Decoder(wire.News)
        # What is no answer ends it: something else has written to its output.
        with stream, contextlib.suppress(msgspec.DecodeError):
            for line in stream:
                self._news.put(decoder.decode(line))
        self._news.put(None)

    def _log(self, stream: IO[bytes]) -> None:
        """Keep what Ray prints from the terminal."""
        with stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                self._said.append(text)
                if UNAUTHORIZED in text:
                    # Ray would try again for 20 seconds, and then say nothing of a token.
                    self._news.put(wire.Refused("", UNAUTHORIZED))
                log.debug("ray", "%s", text)

    def _last_words(self) -> str:
        said = next((line for line in reversed(self._said) if line), "")
        return "Ray's process ended" + (f": {said}" if said else "")
