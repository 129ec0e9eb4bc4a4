"""A real CONNECT proxy in front of the hub: Debian's `tinyproxy`, if it is installed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

USER, PASSWORD = "worker", "open-sesame"


class Proxy:
    """A proxy that is running.

    Args:
        port: on 127.0.0.1.
        log: its log.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.with_password = f"http://{USER}:{PASSWORD}@127.0.0.1:{port}"
        self._log = log

    @property
    def connects(self) -> int:
        """How many tunnels were asked for."""
        return self._log.read_text().count("CONNECT 127.0.0.1")

    def variables(self, address: str) -> dict[str, str]:
        """Return what sends a child's requests through the proxy, those to 127.0.0.1 too."""
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        return dict.fromkeys(names, address) | {"NO_PROXY": "", "no_proxy": ""}


@contextlib.contextmanager
def proxy(folder: Path) -> Iterator[Proxy]:
    """Run a proxy that asks for a password; the test is skipped where there is none."""
    program = shutil.which("tinyproxy")
    if program is None:
        pytest.skip("needs tinyproxy: apt-get install tinyproxy")
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    log = folder / "log"
    log.touch()
    settings = folder / "tinyproxy.conf"
    settings.write_text(
        f"Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nMaxClients 100\nTimeout 60\n"
        f'LogFile "{log}"\nLogLevel Connect\nBasicAuth {USER} {PASSWORD}\n'
    )
    command = [program, "-d", "-c", str(settings)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            _wait_for(port)
            yield Proxy(port, log)
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
