"""What `watch` sees as metrics in Prometheus' text format: as text, as a file, over HTTP.

The format is that of https://prometheus.io/docs/instrumenting/exposition_formats/, the file is for
the textfile collector of Prometheus' node exporter.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from vlmcache.addresses import in_address, is_own_host
from vlmcache.cache.state import State
from vlmcache.change import place
from vlmcache.commands.watch.values import DownloadState, EventKind, Observation, Snapshot
from vlmcache.errors import VlmcacheError, reason_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONNECTIONS = 16
"""Requests that are answered at a time."""
HEAD_LIMIT = 16_384
"""Bytes of a request's line and headers."""
Sample = tuple[Mapping[str, str], float | int | None]
"""Labels and value; a sample without a value is left out."""


class MetricsError(VlmcacheError):
    """The metrics cannot be written, or the address cannot be listened on."""

    code = "metrics"


class Exposition:
    """The metrics after the checks so far, as text."""

    def __init__(self) -> None:
        self.text = ""
        self._events: Counter[str] = Counter(dict.fromkeys(get_args(EventKind), 0))

    def update(self, check: Observation) -> str:
        """Count the events of a check and return the text."""
        self._events.update(event.kind for event in check.events)
        self.text = "".join(_families(check.snapshot, self._events))
        return self.text


def _families(snapshot: Snapshot, events: Mapping[str, int]) -> Iterator[str]:
    cache = snapshot.cache
    models = [
        ({"repo": model.repo, "type": model.type, "revision": model.revision or ""}, model)
        for model in {
            (model.repo, model.type, model.revision): model for model in snapshot.models
        }.values()
    ]
    states = Counter(download.state for download in snapshot.downloads)
    downloads = [
        (
            {
                "repo": download.repo,
                "type": download.type,
                "file": download.file or "",
                "partial": os.path.basename(download.path),
            },
            download,
        )
        for download in snapshot.downloads
    ]
    families: list[tuple[str, str, list[Sample]]] = [
        (
            "cache_bytes",
            "Bytes on disk below the cache folder, by class.",
            [
                ({"class": name}, size)
                for name, size in msgspec.structs.asdict(cache.by_class).items()
            ],
        ),
        ("filesystem_free_bytes", "Free bytes on the cache's disk.", [({}, cache.free)]),
        ("filesystem_size_bytes", "Size of the cache's disk.", [({}, cache.total)]),
        ("min_free_bytes", "Free bytes below which space is low.", [({}, cache.min_free)]),
        ("low_space", "Whether less than min_free_bytes is free.", [({}, int(snapshot.low))]),
        (
            "findings",
            "Problems found in the cache, by severity.",
            [({"severity": name}, count) for name, count in snapshot.problems.items()],
        ),
        (
            "model_state",
            "1 for the state that a model or other repo is in.",
            [
                (labels | {"state": state}, int(model.state == state))
                for labels, model in models
                for state in get_args(State)
            ],
        ),
        (
            "model_bytes",
            "Bytes on disk of a model's or other repo's folder.",
            [(labels, model.size_on_disk) for labels, model in models],
        ),
        (
            "model_users",
            "Processes that have files of the model open or mapped.",
            [(labels, len(model.used_by)) for labels, model in models],
        ),
        (
            "downloads",
            "Unfinished downloads, by state.",
            [({"state": state}, states[state]) for state in get_args(DownloadState)],
        ),
        (
            "download_received_bytes",
            "Bytes received of an unfinished download.",
            [(labels, download.size) for labels, download in downloads],
        ),
        (
            "download_size_bytes",
            "Length of the complete file, as the Hub listed it.",
            [(labels, download.expected_size) for labels, download in downloads],
        ),
        (
            "download_bytes_per_second",
            "Speed of a download over the last twenty seconds.",
            [(labels, download.speed) for labels, download in downloads],
        ),
        (
            "events_total",
            "What happened since the watch began, by kind.",
            [({"kind": kind}, count) for kind, count in events.items()],
        ),
        (
            "last_look_timestamp_seconds",
            "When the cache was last checked.",
            [({}, snapshot.at.timestamp())],
        ),
    ]
    for name, description, samples in families:
        lines = [
            f"vlmcache_{name}{_labels(labels)} {value}"
            for labels, value in samples
            if value is not None
        ]
        if lines:
            kind = "counter" if name.endswith("_total") else "gauge"
            yield f"# HELP vlmcache_{name} {description}\n# TYPE vlmcache_{name} {kind}\n"
            yield "\n".join([*lines, ""])


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write_metrics(path: str, text: str) -> None:
    """Replace a file at once: readers see the old content or the new one.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # The collector reads every file whose name ends in .prom; that of this one must not.
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    place.write_file(os.path.join(folder, name), text.encode(), temporary=temporary)


class MetricsFile:
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
        """Write the text if it is time to, and return why it could not be written.

        Raises:
            MetricsError: it could not be written the first time.
        """
        now = time.monotonic()
        if self._written is not None and now - self._written < self._interval:
            return None
        try:
            write_metrics(self._path, text)
        except OSError as error:
            problem = f"cannot write {self._path}: {reason_of(error)}"
            if self._written is None:
                raise MetricsError(problem, "name a file in a folder that exists") from error
            return problem
        self._written = now
        return None


@contextlib.contextmanager
def endpoint(exposition: Exposition, host: str, port: int) -> Iterator[str]:
    """Answer `GET /metrics` with the exposition's text at that moment, until the block ends.

    A browser that a foreign page has led here by its own name (DNS rebinding) sends that name, and
    is not answered. Clients that send slowly, or much, or all at once are cut off.

    Args:
        exposition: what to answer with.
        host: the address to listen on.
        port: the port; 0 chooses a free one.

    Yields:
        The URL.

    Raises:
        MetricsError: the address cannot be listened on.
    """

    class Handler(_Handler):
        source = exposition
        listened_on = host

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        server = Server((host, port), Handler)
    except OSError as error:
        raise MetricsError(
            f"cannot listen on {host} port {port}: {reason_of(error)}", "name another with --listen"
        ) from error
    with server:
        threading.Thread(target=server.serve_forever, args=(0.5,), daemon=True).start()
        try:
            yield f"http://{in_address(host)}:{server.server_address[1]}/metrics"
        finally:
            server.shutdown()


class _Server(socketserver.ThreadingTCPServer):
    """A server with a limit on connections; that of `http.server` would look its own name up."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self.slots = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close what is one connection too many."""
        if self.slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away: the terminal belongs to the view."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request per connection."""

    source: Exposition
    listened_on: str
    timeout = 10.0
    """Seconds for a request to arrive, and for its answer to be taken."""
    server_version = "vlmcache"
    sys_version = ""

    def handle(self) -> None:
        """Answer one request if its head arrives in time and is short."""
        ends = time.monotonic() + self.timeout
        head = b""
        while b"\r\n\r\n" not in head and len(head) <= HEAD_LIMIT:
            left = ends - time.monotonic()
            if left <= 0:
                return
            self.connection.settimeout(left)
            part = self.connection.recv(4096)
            if not part:
                return
            head += part
        self.connection.settimeout(self.timeout)
        self.rfile.close()
        self.rfile = io.BytesIO(head)
        self.close_connection = True
        if len(head) > HEAD_LIMIT:
            self.requestline = self.command = ""
            self.request_version = "HTTP/1.0"
            self.send_error(431)
        else:
            self.handle_one_request()

    def do_GET(self) -> None:
        """Answer with the metrics."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) > 1 or (not hosts and self.request_version != "HTTP/1.0"):
            self.send_error(400, explain="one Host header is expected")
            return
        if not all(map(self._is_ours, hosts)):
            self.send_error(421, explain="no address or name that this listens on")
            return
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, explain="only /metrics exists")
            return
        body = self.source.text.encode()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _is_ours(self, host: str) -> bool:
        """Return whether a Host header names what this listens on, or this machine."""
        return is_own_host(host, self.listened_on, self.connection.getsockname()[0])

    def log_message(self, *arguments: object) -> None:
        """Say nothing: the terminal belongs to the view."""
