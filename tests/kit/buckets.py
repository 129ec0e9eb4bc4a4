"""Buckets on a real server with S3's interface, on loopback, and a gate that stops its clients."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kit.swift_server import ACCESS_KEY, REGION, SECRET_KEY

HAS_SERVER = all(importlib.util.find_spec(name) is not None for name in ("swift", "s3fs"))


class Bucket:
    """A bucket, and how processes reach it."""

    def __init__(self, client: Any, endpoint: str, name: str) -> None:
        self.client = client
        self.endpoint = endpoint
        self.name = name
        client.create_bucket(Bucket=name)

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs in its environment to use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
        }

    def address(self, name: str) -> str:
        return f"s3://{self.name}/{name}"

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Return name below a prefix -> content of all objects."""
        return {
            name.removeprefix(prefix): self.client.get_object(Bucket=self.name, Key=name)[
                "Body"
            ].read()
            for name in self.names(prefix)
        }

    def unfinished(self) -> list[str]:
        """Return the names of multipart uploads that were neither completed nor aborted."""
        answer = self.client.list_multipart_uploads(Bucket=self.name)
        return [upload["Key"] for upload in answer.get("Uploads", ())]


class ObjectStore:
    """The server, as a process of its own."""

    def __init__(self, folder: Path) -> None:
        with (folder / "errors.txt").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.kit.swift_server", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={"PATH": os.environ["PATH"]},
                cwd=Path(__file__).parents[2],
            )
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().decode().strip()
        assert self.endpoint, (folder / "errors.txt").read_text()
        self._numbers = itertools.count(1)
        self._client = self._connect()

    def _connect(self) -> Any:
        from botocore.session import Session

        return Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
        )

    def bucket(self) -> Bucket:
        """Make a new bucket."""
        return Bucket(self._client, self.endpoint, f"bucket{next(self._numbers)}")

    def close(self) -> None:
        """End the server."""
        self._client.close()
        self.process.communicate()


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """Start the server; skip where it is not installed."""
    if not HAS_SERVER:
        pytest.skip("needs OpenStack Swift and s3fs: pip install 'vlmcache[test]', on Linux")
    try:
        os.setxattr(folder, "user.test", b"1")
    except OSError:
        pytest.skip(f"Swift needs a filesystem with extended attributes: {folder}")
    server = ObjectStore(folder)
    try:
        yield server
    finally:
        server.close()


class Gate:
    """Passes connections on to a server and counts their bytes, up to a limit for each direction.

    After that nothing passes, and `shut` is set.
    """

    def __init__(self, endpoint: str, *, sent: int | None = None, received: int | None = None):
        address = urlsplit(endpoint)
        assert address.port is not None
        self._target = address.hostname, address.port
        self._most = {"sent": sent, "received": received}
        self.count = {"sent": 0, "received": 0}
        self.shut = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                thread = threading.Thread(target=self._pass_on, args=(self._listener.accept()[0],))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            while not self._closed.is_set():
                ready = select.select([client, server], [], [], 0.05)[0]
                for reader in ready if not self.shut.is_set() else ():
                    way = "sent" if reader is client else "received"
                    block = reader.recv(65536)
                    if not block:
                        return
                    with self._lock:
                        self.count[way] += len(block)
                        most = self._most[way]
                        if most is not None and self.count[way] > most:
                            self.shut.set()
                            break
                    (server if reader is client else client).sendall(block)
                if self.shut.is_set():
                    self._closed.wait(0.05)

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
