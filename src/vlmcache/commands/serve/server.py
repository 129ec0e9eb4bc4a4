"""The server itself: its socket, its connections and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlmcache.commands.serve.app import HEAD_LIMIT, Counts, Served, application
from vlmcache.commands.serve.values import ServeError, ServeOptions
from vlmcache.errors import UsageError, reason_of
from vlmcache.units import shell_words

IDLE = 20.0
"""Seconds for the head of a request to arrive, since the connection or the last answer."""
STALLED = 60.0
"""Seconds in which a client has to take what is ready for it, a block of 1 MiB at most."""
GRACE = 5
"""Seconds that answers have for their completion after the signal that ends the server."""
_TEND_EVERY = 2.0
_BACKLOG = 128


class Listener(socket.socket):
    """A listening socket that closes connections beyond a number at once."""

    most = 0
    _accepted: tuple[socket.socket, ...] = ()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises:
            ConnectionAbortedError: it was one too many.
        """
        connection, address = super().accept()
        if self.live >= self.most:
            connection.close()
            raise ConnectionAbortedError
        self._accepted = (*self._accepted, connection)
        return connection, address

    @property
    def live(self) -> int:
        """How many connections are open."""
        self._accepted = tuple(
            connection for connection in self._accepted if connection.fileno() >= 0
        )
        return len(self._accepted)


def listen(host: str, port: int, most: int) -> Listener:
    """Return a socket that listens on an address.

    Args:
        host: an address, or a name that means one.
        port: the port; 0 chooses a free one.
        most: connections at a time.

    Raises:
        ServeError: the address cannot be listened on.
    """
    listener: Listener | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = Listener(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise ServeError(
            f"cannot listen on {host} port {port}: {reason_of(error)}", "name another with --listen"
        ) from None
    listener.most = most
    return listener


def check_tls(options: ServeOptions) -> None:
    """Make sure that certificate and key can be used.

    Raises:
        UsageError: they cannot, or there is only a key.
    """
    if options.tls_cert is None:
        if options.tls_key is not None:
            raise UsageError("--tls-key belongs to --tls-cert")
        return
    asked: list[str] = []

    def password() -> str:
        # Without this OpenSSL would ask for one on the terminal.
        asked.append("")
        return ""

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls_cert, options.tls_key, password=password)
    except (OSError, ValueError) as error:
        key = options.tls_key or options.tls_cert
        if asked:
            raise UsageError(
                f"the key in {key} is encrypted, and nobody can be asked for its password",
                "write it without one: "
                + shell_words("openssl", "pkey", "-in", key, "-out", f"{key}.plain"),
            ) from None
        raise UsageError(
            f"--tls-cert {options.tls_cert}: it cannot be used: {reason_of(error)}",
            "name PEM files: the certificate's chain, and its key with --tls-key",
        ) from None


class _Protocol(H11Protocol):
    """uvicorn's protocol, which bounds what it waits for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._stalled: asyncio.TimerHandle | None = None
        self._half_closed = False
        self._idle = self.loop.call_later(IDLE, self._end_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._idle.cancel()
        self._idle = self.loop.call_later(IDLE, self._end_if_idle)
        super().on_response_complete()
        if self._half_closed and not self._is_answering:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Complete the answer to a client that ends its side after the request, as `nc -N` does."""
        is_asked = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        is_plain = self.transport.get_extra_info("sslcontext") is None
        self._half_closed = is_plain and is_asked and self._is_answering
        return self._half_closed

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _end_if_idle(self) -> None:
        if not self._is_answering:
            self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return not getattr(self.cycle, "response_complete", True)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which remembers the signal that ended it instead of raising it again."""

    def __init__(self, config: uvicorn.Config, served: Served) -> None:
        super().__init__(config)
        self._served = served
        self.ended_by: int | None = None
        self.is_up = threading.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end it, in the main thread."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)
        # `nohup` lets the server outlive its terminal.
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            numbers.append(hangup)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """End the server; a second signal ends the answers too."""
        self.force_exit = self.ended_by is not None
        if self.ended_by is None:
            self.ended_by = sig
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        self.is_up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End within the grace, whatever clients have not taken by then."""
        await super().shutdown(sockets)
        await self._served.vouching.stop()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        # What is aborted is closed in the loop's next rounds.
        await asyncio.sleep(0.05)

    async def on_tick(self, counter: int) -> bool:
        """Look after the catalog now and then; uvicorn calls this every tenth of a second."""
        if counter % int(_TEND_EVERY * 10) == 0:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._served.catalog.tend)
        return await super().on_tick(counter)


def uvicorn_server(served: Served, options: ServeOptions) -> _Uvicorn:
    """Return the server that answers with what is served."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        # What clients do is in our own log, if anywhere.
        logger = logging.getLogger(name)
        logger.propagate, logger.handlers = False, [logging.NullHandler()]
    config = uvicorn.Config(
        application(served),
        http=_Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        h11_max_incomplete_event_size=HEAD_LIMIT,
        timeout_keep_alive=int(IDLE),
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    return _Uvicorn(config, served)


def answer_in_thread(server: _Uvicorn, listener: Listener) -> threading.Thread:
    """Let a server answer in a thread, and return the thread once it does.

    Raises:
        ServeError: it could not start.
    """
    thread = threading.Thread(target=server.run, args=([listener],), name="serve", daemon=True)
    thread.start()
    while not server.is_up.wait(0.05):
        if not thread.is_alive():
            raise ServeError("the server could not start")
    return thread


__all__ = [
    "Counts",
    "Listener",
    "Served",
    "answer_in_thread",
    "check_tls",
    "listen",
    "uvicorn_server",
]
