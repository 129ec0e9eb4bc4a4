"""What `watch` sees as metrics in Prometheus' text format: as text, as a file, over HTTP.

The format is that of https://prometheus.io/docs/instrumenting/exposition_formats/, the file is for
the textfile collector of Prometheus' node exporter.
"""

from __future__ import annotations

import http.server
import os
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import get_args

from vlmcache.cache.state import State
from vlmcache.change import place
from vlmcache.commands.watch.values import DownloadState, EventKind, Look, Snapshot
from vlmcache.errors import UsageError, VlmcacheError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, str], float | int]


class MetricsError(VlmcacheError):
    """The metrics cannot be written, or the address to answer on cannot be had."""

    code = "metrics"


class Exposition:
    """The metrics after the looks so far, as text."""

    def __init__(self) -> None:
        self.text = ""
        self._events: Counter[str] = Counter(dict.fromkeys(get_args(EventKind), 0))

    def update(self, look: Look) -> str:
        """Take a look into account and return the text."""
        self._events.update(event.kind for event in look.events)
        self.text = "".join(_families(look.snapshot, self._events))
        return self.text


def _families(snapshot: Snapshot, events: Mapping[str, int]) -> Iterator[str]:
    cache = snapshot.cache
    classes = cache.by_class
    yield _family(
        "cache_bytes",
        "Bytes on disk below the cache folder, by class.",
        [({"class": name}, getattr(classes, name)) for name in classes.__struct_fields__],
    )
    if cache.free is not None and cache.total is not None:
        yield _family(
            "filesystem_free_bytes", "Free bytes on the cache's disk.", [({}, cache.free)]
        )
        yield _family("filesystem_size_bytes", "Size of the cache's disk.", [({}, cache.total)])
    yield _family("min_free_bytes", "Free bytes below which space is low.", [({}, cache.min_free)])
    yield _family("low_space", "Whether less than that is free.", [({}, int(snapshot.low))])
    yield _family(
        "findings",
        "Problems found in the cache, by severity.",
        [({"severity": name}, count) for name, count in snapshot.problems.items()],
    )
    models = [
        ({"repo": one.repo, "type": one.type, "revision": one.revision or ""}, one)
        for one in {(one.repo, one.type, one.revision): one for one in snapshot.models}.values()
    ]
    yield _family(
        "model_state",
        "1 for the state that a model or other repo is in.",
        [
            (labels | {"state": state}, int(one.state == state))
            for labels, one in models
            for state in get_args(State)
        ],
    )
    yield _family(
        "model_bytes",
        "Bytes on disk of a model's or other repo's folder.",
        [(labels, one.size_on_disk) for labels, one in models],
    )
    yield _family(
        "model_users",
        "Processes that have files of the model open or mapped.",
        [(labels, len(one.used_by)) for labels, one in models],
    )
    states = Counter(one.state for one in snapshot.downloads)
    yield _family(
        "downloads",
        "Unfinished downloads, by state.",
        [({"state": state}, states[state]) for state in get_args(DownloadState)],
    )
    downloads = [
        ({"repo": one.repo, "type": one.type, "file": one.file or "", "partial": name}, one)
        for one in snapshot.downloads
        for name in [os.path.basename(one.path)]
    ]
    yield _family(
        "download_received_bytes",
        "Bytes received of an unfinished download.",
        [(labels, one.size) for labels, one in downloads],
    )
    yield _family(
        "download_size_bytes",
        "Length of the whole file, as the Hub listed it.",
        [(labels, one.expected_size) for labels, one in downloads if one.expected_size is not None],
    )
    yield _family(
        "download_bytes_per_second",
        "Speed of a download over the last twenty seconds.",
        [(labels, one.speed) for labels, one in downloads if one.speed is not None],
    )
    yield _family(
        "events_total",
        "What happened since the watch began, by kind.",
        [({"kind": kind}, count) for kind, count in events.items()],
        kind="counter",
    )
    yield _family(
        "last_look_timestamp_seconds",
        "When the cache was last looked at.",
        [({}, snapshot.at.timestamp())],
    )


def _family(name: str, text: str, samples: Iterable[Sample], *, kind: str = "gauge") -> str:
    lines = [f"vlmcache_{name}{_labels(labels)} {value}" for labels, value in samples]
    if not lines:
        return ""
    head = [f"# HELP vlmcache_{name} {text}", f"# TYPE vlmcache_{name} {kind}"]
    return "\n".join([*head, *lines, ""])


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write(path: str, text: str) -> None:
    """Put a text in a file's place as a whole: readers see the old one or the new one.

    Raises:
        OSError: the folder is not there or cannot be written to.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # The collector reads every file that ends in .prom, so the temporary one must not.
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    place.write_file(os.path.join(folder, name), text.encode(), temporary=temporary)


class File:
    """A file of metrics that is kept up to date.

    Args:
        path: the file.
        interval: seconds between two writes, at the least.
    """

    def __init__(self, path: str, interval: float) -> None:
        self._path = path
        self._interval = interval
        self._written: float | None = None

    def update(self, text: str) -> str | None:
        """Write the text if it is time to, and return what kept it from being written.

        Raises:
            MetricsError: it could not be written from the beginning.
        """
        now = time.monotonic()
        if self._written is not None and now - self._written < self._interval:
            return None
        try:
            write(self._path, text)
        except OSError as error:
            problem = f"cannot write {self._path}: {error.strerror or error}"
            if self._written is None:
                raise MetricsError(problem, "name a file in a folder that is there") from error
            return problem
        self._written = now
        return None


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `9400`, `:9400`, `0.0.0.0:9400` or `[::1]:9400`.

    Without a host it is the loopback, so that other machines are answered only where told so.

    Raises:
        UsageError: the text is no address.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
        port = ""
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (host and not colon):
        raise UsageError(
            f"--listen {text!r} is no address", "write PORT, ADDRESS:PORT or [ADDRESS]:PORT"
        )
    return host or "127.0.0.1", int(port)


class Endpoint:
    """Answers `GET /metrics` with what an exposition says at that moment.

    As a context manager it listens until the end of the block.

    Args:
        exposition: what to tell.
        host: the address to listen on.
        port: the port; 0 takes any that is free.

    Raises:
        MetricsError: the address cannot be had.
    """

    def __init__(self, exposition: Exposition, host: str, port: int) -> None:
        class Handler(_Handler):
            source = exposition

        # http.server's own server would ask the name service for its name.
        class Server(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            allow_reuse_address = True
            daemon_threads = True

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise MetricsError(
                f"cannot listen on {host} port {port}: {error.strerror or error}"
            ) from error
        bound = self._server.server_address
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{bound[1]}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True
        )

    def __enter__(self) -> Endpoint:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    source: Exposition
    timeout = 10.0
    server_version = "vlmcache"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, explain="there is only /metrics")
            return
        body = self.source.text.encode()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing: the terminal belongs to the view."""
