"""Whatever a hub answers: an error of ours at most, and nothing wrong in or next to the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.contents import git_blob_sha1
from tests.kit.hostile import TEXTS, as_json, examples, spoiled
from tests.kit.hub import client_environment
from tests.kit.hub_process import Hub
from tests.kit.pulls import QUICK, REPO, lies, pull

COMMIT = "a" * 40
CONTENT = b'{"model_type": "x"}'
SIBLINGS = [
    {"rfilename": "config.json", "blobId": git_blob_sha1(CONTENT), "size": len(CONTENT)},
    {"rfilename": "plots\\loss.png", "size": len(CONTENT)},
    {"rfilename": "model.safetensors", "lfs": {"sha256": hashlib.sha256(CONTENT).hexdigest()}},
]
INFO = {"sha": COMMIT, "id": REPO, "gated": False, "siblings": SIBLINGS}
TREE = [
    {"type": "directory", "path": "sub", "oid": "b" * 40},
    {
        "type": "file",
        "path": "config.json",
        "oid": git_blob_sha1(CONTENT),
        "size": len(CONTENT),
    },
    {
        "type": "file",
        "path": "model.safetensors",
        "oid": "c" * 40,
        "size": len(CONTENT),
        "lfs": {"oid": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)},
        "xetHash": "e" * 64,
    },
]
HURRIED = msgspec.structs.replace(
    QUICK, attempts=1, asks=1, longest_asked=0.0, answer_timeout=0.3, data_timeout=0.3
)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def encoded(self) -> bytes:
        length = {"Content-Length": str(len(self.body)), "Connection": "close"}
        lines = [f"{name}: {value}" for name, value in (length | self.headers).items()]
        # What ends a header line would be another header; all other bytes may stand in one.
        head = "\r\n".join(line.replace("\r", "").replace("\n", "") for line in lines)
        start = f"HTTP/1.1 {self.status} Said\r\n{head}\r\n\r\n"
        return start.encode("utf-8", "replace") + self.body


class FuzzedHub:
    """Answers each kind of question with what was drawn for it."""

    def __init__(self, folder: Path) -> None:
        self.replies: dict[str, Reply] = {}
        hub = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                target = self.rfile.readline().split(b" ")[1].decode("latin-1")
                while self.rfile.readline().strip():
                    pass
                for part, reply in hub.replies.items():
                    if part in target:
                        self.wfile.write(reply.encoded())
                        return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """The client went away, as it may."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.folder = folder
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def environment(self, cache_dir: Path | str, *, token: str | None = None) -> dict[str, str]:
        return client_environment(self.url, self.folder / "home", cache_dir, token)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedHub]:
    hub = FuzzedHub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


ADDRESSES = st.sampled_from(
    [
        "http://127.0.0.1:99999/x",
        "http://[::1/x",
        "https://[x]/",
        "http://user:secret@127.0.0.1:1/x",
        "//127.0.0.1:1/x",
        "file:///etc/passwd",
        "ftp://x/y",
        "javascript:x",
        "/resolve/again",
        "http:///",
        "http://" + "x" * 300 + "/",
        "http://\x00/",
        "?",
        "",
    ]
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Location",
            "Link",
            "ETag",
            "X-Linked-ETag",
            "X-Linked-Size",
            "X-Repo-Commit",
            "Content-Type",
            "Content-Range",
            "Content-Length",
            "Content-Encoding",
            "Transfer-Encoding",
            "Retry-After",
            "RateLimit",
            "X-Error-Code",
            "X-Error-Message",
            "Set-Cookie",
        ]
    ),
    ADDRESSES
    | TEXTS
    | ADDRESSES.map(lambda address: f'<{address}>; rel="next"')
    | st.sampled_from(
        [
            *("9" * 400, "-5", "²", "Mon, 99 Xyz 0000 99:99:99 GMT", "bytes 5-2/1", "bytes 0-8/9"),
            *('"api";r=0;t=' + "9" * 30, "gzip", "chunked", "GatedRepo", "RepoNotFound"),
            *("Fri, 31 Dec 9999 23:59:59 -9999", "application/json", "RevisionNotFound"),
        ]
    ),
    max_size=3,
)
STATUSES = st.sampled_from([200] * 8 + [206, 302, 307, 401, 403, 404, 416, 429, 500, 999, 204])


def replies(bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[Reply]:
    plain = st.builds(Reply, st.just(200), st.just({}), bodies)
    return plain | plain | st.builds(Reply, STATUSES, HEADERS, bodies)


ANSWERS = st.fixed_dictionaries(
    {
        "/revision/": replies(as_json(INFO)) | st.just(Reply(200, {}, json.dumps(INFO).encode())),
        "/tree/": replies(as_json(TREE))
        | st.just(Reply(200, {}, json.dumps(TREE).encode()))
        | st.just(Reply(404, {}, b"none here")),
        "/resolve/": replies(spoiled(CONTENT)),
        "/refs": replies(as_json({"branches": [{"name": "main"}], "tags": []})),
        "/": replies(st.just(b"{}")),
    }
)


@examples(80)
@given(ANSWERS)
def test_a_pull_ends_in_words_and_leaves_no_lie(hub: FuzzedHub, answers: dict[str, Reply]) -> None:
    served: Hub = hub
    hub.replies = answers
    place = hub.folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    cache = place / "cache"
    cache.mkdir(parents=True)
    run = pull(served, cache, patience=HURRIED, max_workers=1)
    assert lies(cache) == []
    assert {one.name for one in place.iterdir()} <= {"cache", "cache-own"}
    if run.problem is not None:
        assert "internal" not in run.problem.code
        assert "secret" not in run.problem.message + (run.problem.hint or "")
