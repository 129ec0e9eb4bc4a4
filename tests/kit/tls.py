"""A certificate authority of our own, as companies have one, made anew by `openssl`."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

_NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost"


class Authority:
    """An authority, and the certificate that it gives to a server on 127.0.0.1.

    Args:
        folder: where the files are kept.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca.pem"
        """What a client has to trust, for SSL_CERT_FILE."""
        self._server = folder / "server.pem"
        key, request = folder / "ca.key", folder / "server.csr"
        new = ["req", "-newkey", "rsa:2048", "-nodes", "-sha256"]
        usage = "keyUsage=critical,keyCertSign,cRLSign"
        _openssl(
            *new, "-x509", "-days", "2", "-subj", "/CN=Private CA", "-addext", usage,
            "-keyout", str(key), "-out", str(self.certificate),
        )  # fmt: skip
        _openssl(
            *new, "-subj", "/CN=127.0.0.1",
            "-keyout", str(folder / "server.key"), "-out", str(request),
        )  # fmt: skip
        extensions = folder / "extensions"
        extensions.write_text(_NAMES + "\n")
        _openssl(
            "x509", "-req", "-days", "2", "-in", str(request), "-extfile", str(extensions),
            "-CA", str(self.certificate), "-CAkey", str(key), "-CAcreateserial",
            "-out", str(folder / "server.crt"),
        )  # fmt: skip
        parts = (folder / "server.key", folder / "server.crt")
        self._server.write_text("".join(part.read_text() for part in parts))

    @property
    def context(self) -> ssl.SSLContext:
        """What a server encrypts with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._server)
        return context


def authority(folder: Path) -> Authority:
    """Return a new authority; the test is skipped where there is no `openssl`."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    return Authority(folder)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
