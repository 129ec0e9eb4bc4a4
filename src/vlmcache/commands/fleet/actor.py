"""What runs on a node: an actor that calls methods of the node's own `Cache`.

Requests and answers are JSON. No class of ours is pickled, so that a node with another version of
vlmcache still answers `hello`, and can be named.
"""

from __future__ import annotations

import importlib
import os
import platform
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from vlmcache import log
from vlmcache.change.plan import Failure
from vlmcache.commands.fleet.calls import Beat
from vlmcache.commands.fleet.wire import as_json
from vlmcache.errors import VlmcacheError, reason_of
from vlmcache.progress import StopToken, Tally
from vlmcache.show.text import printable

METHODS = {
    "hello": "vlmcache.commands.fleet.actor.hello",
    "pull-known": "vlmcache.commands.fleet.pull_on_node.known_models",
    "pull-survey": "vlmcache.commands.fleet.pull_on_node.survey",
    "pull-open": "vlmcache.commands.fleet.pull_on_node.open_node",
    "pull-fetch": "vlmcache.commands.fleet.pull_on_node.fetch_parcel",
    "pull-cancel": "vlmcache.commands.fleet.pull_on_node.cancel_parcel",
    "pull-check": "vlmcache.commands.fleet.pull_on_node.check_parcel",
    "pull-news": "vlmcache.commands.fleet.pull_on_node.news",
    "pull-finish": "vlmcache.commands.fleet.pull_on_node.finish",
    "status": "vlmcache.commands.fleet.on_node.report_status",
    "plan-removal": "vlmcache.commands.fleet.on_node.propose_removal",
    "decide": "vlmcache.commands.fleet.on_node.settle_removal",
    "verify": "vlmcache.commands.fleet.on_node.report_verification",
    "load-test": "vlmcache.commands.fleet.on_node.report_loads",
}
"""Method -> the function that does it: `(worker, request as JSON) -> Struct`."""

_PACKAGE: Any = importlib.import_module("vlmcache")
"""The package, as any program uses it: by its name, since rooms import one way."""


class Setup(msgspec.Struct, frozen=True):
    """How an actor works."""

    cache_dir: str | None = None
    """The hub cache; the one of the node's environment if not given."""
    config: str | None = None
    """The config.yaml; the first one found on the node if not given."""
    verbosity: int = 0
    """How much it writes to the logs that Ray keeps of it."""


class Hello(msgspec.Struct, frozen=True):
    """What a node says of itself."""

    vlmcache: str
    python: str
    ray: str
    host: str
    pid: int
    cache_dir: str = ""


class MethodAnswer(msgspec.Struct, frozen=True):
    """What a method returns, or why it failed."""

    value: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


class Worker:
    """The actor. Its methods run in threads, several at a time.

    Args:
        setup: a `Setup` as JSON.
    """

    def __init__(self, setup: bytes) -> None:
        self.setup = msgspec.json.decode(setup, type=Setup)
        log.configure(self.setup.verbosity, printable)
        self.progress = CountingTally()
        self.stop_token = StopToken()
        self.kept: dict[str, Any] = {}
        """What methods leave for later ones."""
        self._cache: Any = None
        self._lock = threading.Lock()

    @property
    def cache(self) -> Any:
        """The node's `vlmcache.Cache`.

        Raises:
            ConfigError: the configuration cannot be read.
        """
        with self._lock:
            if self._cache is None:
                self._cache = _PACKAGE.Cache(self.setup.cache_dir, self.setup.config)
                self._cache.progress = self.progress
            return self._cache

    def call(self, method: str, request: bytes) -> bytes:
        """Run a method, and return a `MethodAnswer` as JSON; nothing is raised."""
        try:
            module, _, name = METHODS[method].rpartition(".")
            function = getattr(importlib.import_module(module), name)
            return msgspec.json.encode(MethodAnswer(msgspec.Raw(as_json(function(self, request)))))
        except VlmcacheError as error:
            return msgspec.json.encode(MethodAnswer(failure=Failure.of(error)))
        except Exception as error:
            log.debug("fleet", "%s failed: %s", method, error)
            failure = Failure("failed", f"{type(error).__name__}: {reason_of(error)}", None, 1)
            return msgspec.json.encode(MethodAnswer(failure=failure))

    def beat(self) -> bytes:
        """Return a `Beat` as JSON."""
        return msgspec.json.encode(self.progress.beat())

    def stop(self) -> None:
        """Let the work end soon."""
        self.stop_token.stopped.set()


class CountingTally(Tally):
    """Adds up what is done on a node, and counts how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.text = ""

    def step(self, text: str) -> None:
        """Take note of what is done now."""
        self.count, self.text = self.count + 1, text

    def started(self, repo: str, sizes: Mapping[str, int], have: int) -> None:
        """Begin a model."""
        self.count += 1
        super().started(repo, sizes, have)

    def moved(self, repo: str, file: str, position: int) -> None:
        """Take note of a position."""
        self.count += 1
        super().moved(repo, file, position)

    def ended(self, repo: str) -> None:
        """End a model."""
        self.count += 1
        super().ended(repo)

    def beat(self) -> Beat:
        """Return how far the work is."""
        return Beat(self.count, self.done, self.total, self.text)


def own_versions() -> Hello:
    """Return what this process says of itself, without a cache."""
    ray = sys.modules.get("ray")
    return Hello(
        _PACKAGE.__version__,
        platform.python_version(),
        str(getattr(ray, "__version__", "")),
        socket.gethostname(),
        os.getpid(),
    )


def hello(worker: Worker, request: bytes) -> Hello:  # noqa: ARG001
    """Return what the node says of itself."""
    return msgspec.structs.replace(own_versions(), cache_dir=worker.cache.session.cache.dir)
