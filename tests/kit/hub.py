"""A hub on 127.0.0.1 that the real `huggingface_hub` client works against, faults on request."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, final
from urllib.parse import parse_qs, quote, unquote

from tests.kit.cas import reconstruction, xorb
from tests.kit.contents import Content, StoredFile, Synthetic, commit_id, store_all
from tests.kit.faults import (
    ALTERS_HEADERS,
    DAMAGES_BODY,
    REPLACES_ANSWER,
    Fault,
    Host,
    altered_headers,
    altered_json,
    begins,
    busy_until,
    coded,
    cut,
    encoded,
    expired,
    hang,
    headers,
    html,
    in_chunks,
    malformed_json,
    no_parts,
    no_range,
    no_sizes,
    other_server,
    rate_limited,
    redirect_loop,
    reset,
    short,
    slow,
    status,
    wrong_bytes,
    wrong_etag,
)
from tests.kit.mirrors import Change
from vlmcache.progress import Throttle

__all__ = [
    "Content",
    "Fault",
    "HubRepo",
    "LoopbackHub",
    "Request",
    "Synthetic",
    "altered_headers",
    "altered_json",
    "begins",
    "busy_until",
    "coded",
    "cut",
    "expired",
    "hang",
    "headers",
    "html",
    "malformed_json",
    "no_parts",
    "no_range",
    "no_sizes",
    "other_server",
    "rate_limited",
    "redirect_loop",
    "reset",
    "short",
    "slow",
    "status",
    "wrong_bytes",
    "wrong_etag",
]

Kind = Literal["model", "dataset", "space"]
Redirect = Literal["other-host", "same-host", "none"]

SEND_STEP = 1 << 20
DATE = "2025-01-02T03:04:05.000Z"
API = re.compile(r"/api/(model|dataset|space)s/(.+)")
RESOLVE = re.compile(r"/(?:(dataset|space)s/)?([^/]+(?:/[^/]+)?)/resolve/(.+)")
SIGNED_ON_HUB = "/api/resolve-cache/"
XET = re.compile(r"/(?:(v[12])/)?(reconstructions|xorbs)/([0-9a-f]{64})")
API_PARTS = {"revision", "tree", "refs", "paths-info", "auth-check", "xet-read-token"}
# What of our own environment would change where a child looks for its cache, hub or token.
LEAKY_VARIABLES = re.compile(
    r"(HF_|HUGGING|XDG_|TRANSFORMERS_|VLMCACHE_|HTTPS?_PROXY$|ALL_PROXY$|NO_PROXY$|SSL_CERT_"
    r"|REQUESTS_CA_BUNDLE$|CURL_CA_BUNDLE$|COLUMNS$|LINES$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Request:
    """One request as the hub saw it.

    `bytes_sent` counts the body only; a status of 0 means that there has been no answer.
    """

    method: str
    path: str
    query: str
    host: Host
    range: str | None
    status: int
    bytes_sent: int
    authorization: bool
    file: str | None
    time: float


class HubRepo:
    """One repo: its commits, and the branches, tags and pull requests that name them."""

    def __init__(self, repo_id: str, kind: Kind, private: bool, gated: bool, folder: Path) -> None:
        self.id = repo_id
        self.kind = kind
        self.private = private
        self.gated = gated
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.other_refs: dict[str, str] = {}
        self.commits: dict[str, dict[str, StoredFile]] = {}
        self._folder = folder

    def commit(
        self,
        files: Mapping[str, Content],
        ref: str | None = "main",
        *,
        lfs: Collection[str] | None = None,
        xet: Mapping[str, str] | None = None,
    ) -> str:
        """Add a revision that holds exactly these files and let `ref` name it.

        The commit follows from names and contents alone. `lfs` names the LFS files, where the
        default (weights, and all above 10 MB) is not wanted; `xet` gives Xet hashes to list.
        """
        stored = store_all(files, self._folder, lfs=lfs, xet=xet)
        commit = commit_id(stored)
        self.commits[commit] = stored
        if ref is not None:
            self.branch(ref, commit)
        return commit

    def branch(self, name: str, commit: str) -> None:
        """Let a branch, or a full ref such as `refs/pr/1`, name a commit."""
        refs = self.other_refs if name.startswith("refs/") else self.branches
        refs[name] = commit

    def tag(self, name: str, commit: str) -> None:
        """Let a tag name a commit."""
        self.tags[name] = commit

    def find(self, revision: str) -> str | None:
        """Return the commit that a ref, a commit or the start of one stands for."""
        for refs in (self.branches, self.tags, self.other_refs):
            if revision in refs:
                return refs[revision]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return next((c for c in self.commits if c.startswith(revision)), None)
        return None

    def file(self, name: str, revision: str = "main") -> StoredFile:
        """Return one file with its size and hashes."""
        commit = self.find(revision)
        if commit is None:
            raise KeyError(revision)
        return self.commits[commit][name]


@final
class LoopbackHub:
    """A hub and its CDN on two ports of 127.0.0.1, from `with` to its end.

    Settings are attributes and may be changed at any time. With `tls` both speak https, or the hub
    alone.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        redirect: Redirect = "other-host",
        page_size: int = 1000,
        support_ranges: bool = True,
        tls: ssl.SSLContext | None = None,
        tls_of_cdn: bool = True,
    ) -> None:
        self.redirect: Redirect = redirect
        self.page_size = page_size
        self.link = '<{}>; rel="next"'
        """How the Link header of a page names the next one."""
        self.page_overlap = 0
        """Files of a page that are on the next one too."""
        self.support_ranges = support_ranges
        self.send_xet_headers = False
        self.changes: list[Change] = []
        """What is done to every answer, such as one of `tests.kit.mirrors`."""
        # A small buffer keeps `bytes_sent` close to what a killed client has really received.
        self.send_buffer: int | None = None
        self.throttle = Throttle()
        """Limits the bytes per second of all bodies together."""
        self.connections = 0
        """Connections that were made so far, to the hub and to its CDN."""
        self.errors: list[BaseException] = []
        self.folder = Path(tempfile.mkdtemp(prefix="loopback-hub-"))
        self._repos: dict[tuple[str, str], HubRepo] = {}
        self._renames: dict[tuple[str, str], str] = {}
        self._tokens: dict[str, bool] = {}
        self._addresses: dict[str, _Address] = {}
        self._exchanges: list[_Exchange] = []
        self._armed: list[_Armed] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._closing = False
        self._servers = [
            _Server(self, "hub", port, tls),
            _Server(self, "cdn", 0, tls if tls_of_cdn else None),
        ]
        self.url, self.cdn_url = (server.url for server in self._servers)
        self.xet_url = self.cdn_url
        for server in self._servers:
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
            ).start()

    def __enter__(self) -> LoopbackHub:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if kind is None and self.errors:
            raise AssertionError("the hub itself failed") from self.errors[0]

    def close(self) -> None:
        """Stop serving, whatever is still being sent, and remove temporary content."""
        if self._closing:
            return
        self._closing = True
        self.release()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._drop_connections()
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Close the connections that hang or are slow now; later ones hang again."""
        with self._lock:
            released, self._released = self._released, threading.Event()
            if self._closing:
                self._released.set()
        released.set()

    # What the hub holds.

    def add_repo(
        self, repo_id: str, *, kind: Kind = "model", private: bool = False, gated: bool = False
    ) -> HubRepo:
        """Add an empty repo; its metadata is public where it is gated but not private."""
        repo = HubRepo(repo_id, kind, private, gated, self.folder)
        self._repos[kind, repo_id] = repo
        return repo

    def rename(self, old: str, new: str, *, kind: Kind = "model") -> None:
        """Give a repo a new id; requests for the old one are redirected."""
        repo = self._repos.pop((kind, old))
        repo.id = new
        self._repos[kind, new] = repo
        self._renames[kind, old] = new

    def remove(self, repo_id: str, *, kind: Kind = "model") -> None:
        """Delete a repo, as its owner might."""
        del self._repos[kind, repo_id]

    def accept_token(self, token: str, *, gated_ok: bool = True) -> None:
        """Know a token: it opens private repos, and gated ones where `gated_ok`."""
        self._tokens[token] = gated_ok

    # What goes wrong.

    def fault(self, fault: Fault) -> None:
        """Arm a fault; several can be armed, and are tried in the order they came."""
        with self._lock:
            self._armed.append(_Armed(fault, skip=fault.skip, times=fault.times))

    def clear_faults(self) -> None:
        """Disarm all faults."""
        with self._lock:
            self._armed.clear()

    def expire_addresses(self) -> None:
        """Let every signed address given out so far expire."""
        with self._lock:
            for address in self._addresses.values():
                address.expired = True

    # What was asked.

    @property
    def requests(self) -> list[Request]:
        """All requests in the order they came, those still being answered included."""
        with self._lock:
            return [exchange.frozen() for exchange in self._exchanges]

    def clear_requests(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self._exchanges.clear()

    def count(self, method: str | None = None, contains: str | None = None) -> int:
        """Count requests by method and by a part of path, query or file name."""
        return sum(
            method in (None, request.method)
            and (
                contains is None
                or contains in f"{request.path}?{request.query}"
                or contains in (request.file or "")
            )
            for request in self.requests
        )

    def bytes_sent(self, file: str | None = None) -> int:
        """Return the bytes of files sent so far, of one file or of all."""
        return sum(
            request.bytes_sent
            for request in self.requests
            if request.file is not None
            and request.status in (200, 206)
            and file in (None, request.file)
        )

    def environment(self, cache_dir: Path | str, *, token: str | None = None) -> dict[str, str]:
        """Return the complete environment for a child process that knows this hub and no other."""
        return client_environment(self.url, self.folder / "home", cache_dir, token)

    # Answers.

    def _answer(self, asked: _Asked) -> _Reply:
        try:
            if asked.host == "cdn" and (match := XET.fullmatch(asked.path)):
                return self._answer_xet(asked, *match.groups())
            if asked.host == "cdn" or asked.path.startswith(SIGNED_ON_HUB):
                return self._answer_signed(asked)
            self._check_token(asked)
            if asked.path == "/api/whoami-v2":
                return self._who_am_i(asked)
            if asked.path == "/api/agent-harnesses":
                return _as_json({"standardEnvVars": [], "harnesses": {}})
            if match := API.fullmatch(asked.path):
                return self._answer_api(asked, match[1], match[2])
            if match := RESOLVE.fullmatch(asked.path):
                return self._answer_resolve(asked, match[1] or "model", match[2], match[3])
            raise _RefusedError(404, None, "Sorry, we can't find the page you are looking for.")
        except _RefusedError as refusal:
            return refusal.reply()

    def _check_token(self, asked: _Asked) -> None:
        if asked.token is not None and asked.token not in self._tokens:
            raise _RefusedError(401, None, "Invalid credentials in Authorization header")

    def _who_am_i(self, asked: _Asked) -> _Reply:
        if asked.token is None:
            raise _RefusedError(401, None, "Invalid username or password.")
        return _as_json(
            {
                "type": "user",
                "id": "0" * 24,
                "name": "tester",
                "fullname": "Tester",
                "orgs": [],
                "auth": {
                    "type": "access_token",
                    "accessToken": {"displayName": "tests", "role": "read", "createdAt": DATE},
                },
            }
        )

    def _repo(self, asked: _Asked, kind: str, repo_id: str) -> HubRepo:
        if new := self._renames.get((kind, repo_id)):
            location = asked.target.replace(repo_id, new, 1)
            raise _RefusedError(307, None, "", {"Location": location})
        repo = self._repos.get((kind, repo_id))
        if repo is None or (repo.private and asked.token is None):
            # Whoever may not see a repo does not learn whether it exists.
            if asked.token is None:
                raise _RefusedError(401, "RepoNotFound", "Invalid username or password.")
            raise _RefusedError(404, "RepoNotFound", "Repository not found")
        return repo

    def _check_gate(self, asked: _Asked, repo: HubRepo) -> None:
        if not repo.gated:
            return
        if asked.token is None:
            raise _RefusedError(
                401,
                "GatedRepo",
                f"Access to {repo.kind} {repo.id} is restricted. You must have access to it and be"
                " authenticated to access it. Please log in.",
            )
        if not self._tokens[asked.token]:
            raise _RefusedError(
                403,
                "GatedRepo",
                f"Access to {repo.kind} {repo.id} is restricted and you are not in the authorized"
                f" list. Visit {self.url}/{repo.id} to ask for access.",
            )

    def _answer_api(self, asked: _Asked, kind: str, rest: str) -> _Reply:
        segments = rest.split("/")
        in_id = 1 if len(segments) == 1 or segments[1] in API_PARTS else 2
        repo = self._repo(asked, kind, "/".join(segments[:in_id]))
        what, *arguments = segments[in_id:] or ["revision", "main"]
        if what == "auth-check":
            self._check_gate(asked, repo)
            return _as_json({})
        if what == "refs":
            return _as_json(_refs(repo, pull_requests="include_prs" in asked.query))
        if what not in API_PARTS or not arguments:
            raise _RefusedError(404, None, "Not Found")
        revision, arguments = _split_revision(arguments)
        commit = self._commit(repo, revision)
        if what == "revision":
            return _as_json(_info(repo, commit, asked.query))
        if what == "xet-read-token":
            expiry = int(time.time()) + 3600
            # Older clients let hf_xet ask, which reads the body.
            said = {"accessToken": "xet", "exp": expiry, "casUrl": self.xet_url}
            access = {"X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expiry)}
            return _as_json(said, access | {"X-Xet-Cas-Url": self.xet_url})
        if what == "paths-info":
            wanted = {path.strip("/") for path in asked.form().get("paths", [])}
            entries = _tree(repo.commits[commit])
            return _as_json([entry for entry in entries if entry["path"] in wanted])
        return self._tree_page(asked, repo, commit, unquote("/".join(arguments)))

    def _commit(self, repo: HubRepo, revision: str) -> str:
        commit = repo.find(revision)
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _tree_page(self, asked: _Asked, repo: HubRepo, commit: str, folder: str) -> _Reply:
        entries = _tree(repo.commits[commit])
        if folder:
            entries = [entry for entry in entries if entry["path"].startswith(f"{folder}/")]
            if not entries:
                raise _RefusedError(404, "EntryNotFound", f"{folder} does not exist on {commit}")
        if asked.flag("recursive") is False:
            depth = folder.count("/") + 1 if folder else 0
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        size = min(self.page_size, int(asked.query.get("limit", ["1000000"])[0]))
        start = int(asked.query.get("cursor", ["0"])[0])
        headers: dict[str, str] = {}
        if start + size < len(entries):
            kept = "&".join(part for part in asked.raw_query.split("&") if "cursor=" not in part)
            cursor = start + size - self.page_overlap
            following = f"{self.url}{asked.raw_path}?{kept}&cursor={cursor}"
            headers["Link"] = self.link.format(following, query=following.partition("?")[2])
        return _as_json(entries[start : start + size], headers)

    def _answer_resolve(self, asked: _Asked, kind: str, repo_id: str, rest: str) -> _Reply:
        repo = self._repo(asked, kind, repo_id)
        self._check_gate(asked, repo)
        revision, names = _split_revision(rest.split("/"))
        commit = self._commit(repo, revision)
        name = unquote("/".join(names))
        file = repo.commits[commit].get(name)
        if file is None:
            raise _RefusedError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = self._file_headers(repo, commit, file)
        if file.lfs_sha256 is None or self.redirect == "none":
            return self._bytes_of(asked, file, headers)
        del headers["ETag"]
        headers["Location"] = self._sign(repo, commit, file)
        return _Reply(302, headers, b"", file=file)

    def _file_headers(self, repo: HubRepo, commit: str, file: StoredFile) -> dict[str, str]:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.lfs_sha256 is not None:
            headers["X-Linked-ETag"] = f'"{file.etag}"'
            headers["X-Linked-Size"] = str(file.size)
        if file.xet_hash is not None and self.send_xet_headers:
            headers["X-Xet-Hash"] = file.xet_hash
            route = f"{self.url}/api/{repo.kind}s/{repo.id}/xet-read-token/{commit}"
            headers["X-Xet-Refresh-Route"] = route
        return headers

    def _sign(self, repo: HubRepo, commit: str, file: StoredFile) -> str:
        with self._lock:
            token = f"{len(self._addresses):08x}"
            self._addresses[token] = _Address(repo, commit, file)
        signature = f"X-Expires=3600&X-Signature={token}"
        if self.redirect == "same-host":
            name = quote(file.name)
            return f"{SIGNED_ON_HUB}{repo.kind}s/{repo.id}/{commit}/{name}?{signature}"
        return f"{self.cdn_url}/repos/{repo.kind}s/{repo.id}/{file.etag}?{signature}"

    def _address(self, asked: _Asked) -> _Address | None:
        return self._addresses.get(asked.query.get("X-Signature", [""])[0])

    def _answer_signed(self, asked: _Asked) -> _Reply:
        address = self._address(asked)
        if address is None or address.expired:
            body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
            file = address.file if address else None
            return _Reply(403, {"Content-Type": "application/xml"}, body, file=file)
        headers = self._file_headers(address.repo, address.commit, address.file)
        if asked.host == "cdn":
            headers = {name: headers[name] for name in ("ETag", "Accept-Ranges")}
        return self._bytes_of(asked, address.file, headers)

    def _answer_xet(self, asked: _Asked, version: str | None, what: str, xet_hash: str) -> _Reply:
        commits = [commit for repo in self._repos.values() for commit in repo.commits.values()]
        files = [file for commit in commits for file in commit.values()]
        file = next(file for file in files if file.xet_hash == xet_hash)
        if what == "xorbs":
            body = xorb(file)
            start, stop = _parse_range(asked.range, len(body)) or (0, len(body))
            headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}
            return _Reply(206, headers, body, start=start, stop=stop)
        span = _parse_range(asked.range, file.size) or (0, file.size)
        if span[0] >= span[1]:
            raise _RefusedError(416, None, "")
        url = f"{self.cdn_url}/v1/xorbs/{xet_hash}"
        return _as_json(reconstruction(version, file, span, url))

    def _bytes_of(self, asked: _Asked, file: StoredFile, headers: dict[str, str]) -> _Reply:
        shown = quote(file.name.rsplit("/", 1)[-1])[:200]
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{shown}; filename=\"{shown}\";"
        headers["Content-Type"] = "application/octet-stream"
        if not self.support_ranges:
            headers["Accept-Ranges"] = "none"
        span = _parse_range(asked.range, file.size) if self.support_ranges else None
        if span is None:
            return _Reply(200, headers, file.data, file=file, stop=file.size)
        start, stop = span
        if start >= stop:
            headers["Content-Range"] = f"bytes */{file.size}"
            return _Reply(416, headers, b"", file=file)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        return _Reply(206, headers, file.data, file=file, start=start, stop=stop)

    # Faults.

    def _take_faults(self, asked: _Asked, reply: _Reply) -> list[Fault]:
        taken: list[Fault] = []
        with self._lock:
            for armed in self._armed:
                fault = armed.fault
                replaced = any(other.kind in REPLACES_ANSWER for other in taken)
                if armed.times == 0 or (replaced and fault.kind != "slow"):
                    continue
                file = reply.file.name if reply.file is not None else None
                if not fault.befalls(asked.method, asked.target, file, asked.host):
                    continue
                if not _has_effect(fault, asked, reply):
                    continue
                if armed.skip:
                    armed.skip -= 1
                    continue
                if armed.times is not None:
                    armed.times -= 1
                taken.append(fault)
        return taken

    def _apply(self, fault: Fault, asked: _Asked, reply: _Reply) -> _Reply:
        """Return the answer that the fault makes of the right one; bodies are the handler's."""
        if fault.kind == "status":
            text = http.HTTPStatus(fault.status).phrase
            return _as_json({"error": text}, dict(fault.headers), status=fault.status, of=reply)
        if fault.kind == "expired":
            address = self._address(asked)
            if address is not None:
                address.expired = True
            return self._answer_signed(asked)
        if fault.kind == "redirect_loop":
            return _Reply(307, {"Location": asked.target}, b"", file=reply.file)
        if fault.kind == "html":
            page = (
                b"<!DOCTYPE html><html><body><h1>Please sign in to this network</h1></body></html>"
            )
            page_headers = {name: value for name, value in fault.changed if value is not None}
            return _Reply(fault.status, page_headers, page, file=reply.file, sized=fault.sized)
        if fault.kind == "other_server":
            return _Reply(fault.status, dict(fault.headers), fault.body, file=reply.file)
        if fault.kind == "altered_json" and fault.change is not None:
            assert isinstance(reply.body, bytes)
            return _as_json(fault.change(json.loads(reply.body)), reply.headers)
        if fault.kind == "altered_headers":
            reply.headers = {
                name: value
                for name, value in (reply.headers | dict(fault.headers)).items()
                if value
            }
        if fault.kind == "malformed_json":
            assert isinstance(reply.body, bytes)
            half = reply.body[: max(1, len(reply.body) // 2)]
            return _Reply(200, {"Content-Type": "application/json"}, half)
        if fault.kind == "begins":
            assert reply.file is not None
            reply.start = fault.at
            span = f"bytes {reply.start}-{reply.stop - 1}/{reply.file.size}"
            reply.headers["Content-Range"] = span
        if fault.kind == "coded":
            _encode(fault, reply)
        for name, value in fault.changed:
            reply.headers.pop(name, None)
            # The handler adds the right one to all others.
            reply.sized = reply.sized and name != "Content-Length"
            if value is not None:
                reply.headers[name] = value
        if fault.kind == "no_range":
            del reply.headers["Content-Range"]
            reply.status, reply.start, reply.stop = 200, 0, reply.file.size if reply.file else 0
        if fault.kind == "no_sizes":
            reply.headers.pop("X-Linked-Size", None)
            reply.sized = False
        if fault.kind == "wrong_etag":
            for name in ("ETag", "X-Linked-ETag"):
                if name in reply.headers:
                    reply.headers[name] = f'"{fault.etag}"'
        return reply

    # Connections.

    def _track(self, connection: socket.socket) -> None:
        with self._lock:
            self.connections += 1
            self._connections.add(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _drop_connections(self) -> None:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with self._lock:
                connections = list(self._connections)
            if not connections:
                return
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            time.sleep(0.005)


@dataclass
class _Armed:
    fault: Fault
    skip: int
    times: int | None


@dataclass
class _Address:
    """A signed address: what it leads to, and whether it still does."""

    repo: HubRepo
    commit: str
    file: StoredFile
    expired: bool = False


@dataclass
class _Exchange:
    """One request while it is being answered."""

    asked: _Asked
    file: str | None
    status: int = 0
    bytes_sent: int = 0
    time: float = field(default_factory=time.time)

    def frozen(self) -> Request:
        asked = self.asked
        return Request(
            method=asked.method,
            path=asked.path,
            query=asked.raw_query,
            host=asked.host,
            range=asked.range,
            status=self.status,
            bytes_sent=self.bytes_sent,
            authorization=asked.authorization is not None,
            file=self.file,
            time=self.time,
        )


@dataclass
class _Asked:
    """One request, parsed; `path` keeps its percent signs, as names can hold slashes."""

    host: Host
    method: str
    target: str
    authorization: str | None
    range: str | None
    body: bytes

    def __post_init__(self) -> None:
        self.raw_path, _, self.raw_query = self.target.partition("?")
        self.path = self.raw_path
        self.query = parse_qs(self.raw_query, keep_blank_values=True)
        scheme, _, token = (self.authorization or "").partition(" ")
        self.token = token if scheme.lower() == "bearer" else None

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    def form(self) -> dict[str, list[str]]:
        text = self.body.decode()
        if text.startswith("{"):
            loaded: dict[str, list[str]] = json.loads(text)
            return loaded
        return parse_qs(text)


@dataclass
class _Reply:
    status: int
    headers: dict[str, str]
    body: bytes | Path
    file: StoredFile | None = None
    start: int = 0
    stop: int = -1
    sized: bool = True

    def __post_init__(self) -> None:
        if self.stop < 0:
            assert isinstance(self.body, bytes)
            self.stop = len(self.body)

    @property
    def length(self) -> int:
        return self.stop - self.start


class _RefusedError(Exception):
    def __init__(
        self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.message = message
        if code is not None:
            self.headers["X-Error-Code"] = code
        if message:
            self.headers["X-Error-Message"] = message

    def reply(self) -> _Reply:
        return _as_json({"error": self.message}, self.headers, status=self.status)


def _as_json(
    value: object,
    headers: Mapping[str, str] | None = None,
    *,
    status: int = 200,
    of: _Reply | None = None,
) -> _Reply:
    body = json.dumps(value).encode()
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return _Reply(status, kind | dict(headers or {}), body, file=of.file if of else None)


def _split_revision(segments: list[str]) -> tuple[str, list[str]]:
    """Split off the revision, which may be one quoted segment or a plain `refs/pr/1`."""
    length = 3 if segments[0] == "refs" else 1
    return unquote("/".join(segments[:length])), segments[length:]


def _parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return start and stop, an empty span if it cannot be satisfied, None if there is none."""
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _encode(fault: Fault, reply: _Reply) -> None:
    """Encode what an answer sends of a file."""
    data = reply.body
    if isinstance(data, Path):
        data = data.read_bytes()
    body = encoded(data[reply.start : reply.stop], fault.coding)
    if fault.etag == "file":
        reply.headers["Content-Length"] = str(reply.length)
    if fault.etag == "chunks":
        reply.headers["Transfer-Encoding"] = "chunked"
        body = in_chunks(body)
    reply.sized = fault.etag == "right"
    reply.body, reply.start, reply.stop = body, 0, len(body)


def _has_effect(fault: Fault, asked: _Asked, reply: _Reply) -> bool:
    """Say whether the fault would change this answer."""
    kind = fault.kind
    if fault.parts_only and asked.range is None:
        return False
    if kind == "expired":
        return "X-Signature" in asked.query and reply.status != 403
    if kind in ("no_range", "begins"):
        return reply.status == 206
    if kind in ("headers", "coded"):
        return reply.file is not None and reply.status in (200, 206) and asked.method == "GET"
    if kind in ("malformed_json", "altered_json"):
        return reply.file is None and reply.status == 200 and reply.length > 1
    if kind in ALTERS_HEADERS:
        return reply.file is not None and reply.status in (200, 206, 302)
    if kind in REPLACES_ANSWER or (kind in ("reset", "hang") and fault.after is None):
        return True
    if asked.method == "HEAD" or reply.status not in (200, 206) or not reply.length:
        return False
    if kind == "wrong_bytes":
        return fault.at < reply.stop and fault.at + fault.count > reply.start
    return kind == "slow" or reply.length > (fault.after or 0)


def _refs(repo: HubRepo, *, pull_requests: bool) -> dict[str, object]:
    def entry(name: str, ref: str, commit: str) -> dict[str, str]:
        return {"name": name, "ref": ref, "targetCommit": commit}

    def others(prefix: str) -> list[dict[str, str]]:
        return [
            entry(ref.removeprefix("refs/").replace("convert/", "", 1), ref, commit)
            for ref, commit in repo.other_refs.items()
            if ref.startswith(prefix)
        ]

    answer: dict[str, object] = {
        "branches": [entry(n, f"refs/heads/{n}", c) for n, c in repo.branches.items()],
        "converts": others("refs/convert/"),
        "tags": [entry(n, f"refs/tags/{n}", c) for n, c in repo.tags.items()],
    }
    if pull_requests:
        answer["pullRequests"] = others("refs/pr/")
    return answer


def _info(repo: HubRepo, commit: str, query: Mapping[str, list[str]]) -> dict[str, object]:
    files = repo.commits[commit].values()
    siblings: list[dict[str, object]] = []
    for file in files:
        sibling: dict[str, object] = {"rfilename": file.name}
        if "blobs" in query:
            sibling |= {"size": file.size, "blobId": file.git_oid}
            if file.lfs_sha256 is not None:
                sibling["lfs"] = {
                    "sha256": file.lfs_sha256,
                    "size": file.size,
                    "pointerSize": file.pointer_size,
                }
        siblings.append(sibling)
    # A stable number that looks like the hub's, so that two repos never share one.
    number = hashlib.sha256(repo.id.encode()).hexdigest()[:24]
    info: dict[str, object] = {
        "_id": number,
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit,
        "lastModified": DATE,
        "createdAt": DATE,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
        "usedStorage": sum(file.size for file in files if file.lfs_sha256),
    }
    if repo.kind == "model":
        info |= {"modelId": repo.id, "library_name": "transformers"}
    if wanted := set(query.get("expand", [])):
        return {name: value for name, value in info.items() if name in {"_id", "id"} | wanted}
    return info


def _tree(files: Mapping[str, StoredFile]) -> list[dict[str, Any]]:
    """List files and the folders above them, as a recursive listing of the hub does."""
    folders: dict[str, dict[str, Any]] = {}
    entries: list[dict[str, Any]] = []
    for file in files.values():
        parts = file.name.split("/")
        if not {"", ".", ".."} & set(parts):
            for depth in range(1, len(parts)):
                path = "/".join(parts[:depth])
                oid = hashlib.sha1(path.encode("utf-8", "surrogatepass")).hexdigest()
                folders[path] = {"type": "directory", "oid": oid, "size": 0, "path": path}
        entry: dict[str, Any] = {"type": "file", "oid": file.git_oid, "size": file.size}
        if file.lfs_sha256 is not None:
            entry["lfs"] = {
                "oid": file.lfs_sha256,
                "size": file.size,
                "pointerSize": file.pointer_size,
            }
        if file.xet_hash is not None:
            entry["xetHash"] = file.xet_hash
        entries.append(entry | {"path": file.name})
    return [*folders.values(), *entries]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: LoopbackHub, host: Host, port: int, tls: ssl.SSLContext | None) -> None:
        self.hub = hub
        self.host: Host = host
        self.tls = tls
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.tls is not None:
            # A client that does not shake hands must not hold up the others.
            connection = self.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def server_bind(self) -> None:
        # HTTPServer would look its own name up, which can ask a name server.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests and sends answers, right or wrong."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    connection: socket.socket

    def setup(self) -> None:
        super().setup()
        self.server.hub._track(self.connection)
        if self.server.hub.send_buffer is not None:
            size = self.server.hub.send_buffer
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.server.hub._forget(self.connection)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output free of an access log."""

    def handle(self) -> None:
        self.close_connection = False
        # A client may go away at any moment; that is no failure of the hub.
        with contextlib.suppress(ConnectionError):
            while not self.close_connection:
                self.raw_requestline = self.rfile.readline(1 << 20)
                if not self.raw_requestline or not self.parse_request():
                    return
                self._serve()

    def _serve(self) -> None:
        hub = self.server.hub
        asked = _Asked(
            host=self.server.host,
            method=self.command,
            target=self.path,
            authorization=self.headers.get("Authorization"),
            range=self.headers.get("Range"),
            body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )
        reply = hub._answer(asked)
        for change in hub.changes:
            change(asked, reply)
        faults = hub._take_faults(asked, reply)
        exchange = _Exchange(asked, reply.file.name if reply.file is not None else None)
        with hub._lock:
            hub._exchanges.append(exchange)
        for fault in faults:
            if fault.after is None and fault.kind == "reset":
                self._reset()
                return
            if fault.after is None and fault.kind == "hang" and not self._hang(fault):
                return
            reply = hub._apply(fault, asked, reply)
        exchange.status = reply.status
        self._send(reply, exchange, faults)

    def _send(self, reply: _Reply, exchange: _Exchange, faults: list[Fault]) -> None:
        body_faults = [f for f in faults if f.kind in DAMAGES_BODY or f.after is not None]
        rates = [f.rate for f in faults if f.kind == "slow"]
        ends = [f.until for f in faults if f.kind == "slow" and f.until is not None]

        def hold(seconds: float) -> bool:
            return any(end.is_set() for end in ends) or self._hold(seconds)

        if any(fault.kind == "short" for fault in faults):
            reply.sized = False
        head = self._head(reply)
        if exchange.asked.method == "HEAD":
            self.connection.sendall(head)
            return
        if isinstance(reply.body, bytes) and not body_faults and not rates:
            body = reply.body[reply.start : reply.stop]
            exchange.bytes_sent = len(body)
            self.connection.sendall(head + body)
            return
        self.connection.sendall(head)
        rate, throttle = min(rates, default=0), self.server.hub.throttle
        sender = _Sender(self.connection, exchange, reply, rate, hold, throttle)
        for fault in body_faults:
            if fault.kind == "wrong_bytes":
                sender.flip(fault.at, fault.count)
        position = reply.start
        for fault in sorted(body_faults, key=lambda fault: fault.after or 0):
            if fault.after is None:
                continue
            sender.send(position, reply.start + fault.after)
            position = reply.start + fault.after
            if fault.kind == "reset":
                self._reset()
                return
            if fault.kind != "hang" or not self._hang(fault):
                self.close_connection = True
                return
        sender.send(position, reply.stop)

    def _head(self, reply: _Reply) -> bytes:
        headers = {"Date": self.date_time_string(), **reply.headers}
        if reply.sized:
            headers["Content-Length"] = str(reply.length)
        else:
            headers["Connection"] = "close"
            self.close_connection = True
        lines = [f"HTTP/1.1 {reply.status} {http.HTTPStatus(reply.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def _hang(self, fault: Fault) -> bool:
        """Wait; say whether the answer may go on."""
        until = fault.until
        while until is not None and not until.is_set():
            if not self._hold(0.01):
                return False
        return until is not None or self._hold(fault.seconds)

    def _hold(self, seconds: float | None) -> bool:
        """Wait; say whether the answer may go on."""
        released = self.server.hub._released.wait(seconds)
        self.close_connection = self.close_connection or released
        return not released

    def _reset(self) -> None:
        # Closing discards what is still queued here, so let the client's side have it first.
        deadline = time.monotonic() + 5
        while _unsent(self.connection) and time.monotonic() < deadline:
            time.sleep(0.001)
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.close_connection = True
        self.rfile.close()
        self.server.hub._forget(self.connection)
        self.connection.close()


def _unsent(connection: socket.socket) -> int:
    """Return how many bytes the kernel has not yet delivered to the other side."""
    if sys.platform == "win32":
        return 0
    import fcntl
    import termios

    queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", queued)[0])


class _Sender:
    """Sends parts of a body, counting, at a limited rate, with some bytes inverted."""

    def __init__(
        self,
        connection: socket.socket,
        exchange: _Exchange,
        reply: _Reply,
        rate: int,
        hold: Any,
        throttle: Throttle,
    ) -> None:
        self.throttle = throttle
        self.connection = connection
        self.exchange = exchange
        self.body = reply.body
        self.rate = rate
        self.hold = hold
        self.flipped: list[tuple[int, int]] = []

    def flip(self, at: int, count: int) -> None:
        self.flipped.append((at, at + count))

    def send(self, start: int, stop: int) -> None:
        with contextlib.ExitStack() as stack:
            file = None
            if isinstance(self.body, Path):
                file = stack.enter_context(self.body.open("rb"))
            for begin, end in self._steps(start, stop):
                # Counted first, so that no client ever has more than the count says.
                self.exchange.bytes_sent += end - begin
                sent = 0
                try:
                    if file is not None and not self._touched(begin, end):
                        sent = self.connection.sendfile(file, begin, end - begin)
                    else:
                        self.connection.sendall(self._read(begin, end))
                        sent = end - begin
                finally:
                    self.exchange.bytes_sent += sent - (end - begin)
                if sent != end - begin:
                    raise ConnectionError("the served file became shorter")
                wait = self.throttle.wait_for(end - begin)
                if wait > 0 and not self.hold(wait):
                    raise ConnectionError("the hub is closing")
                if self.rate and not self.hold((end - begin) / self.rate):
                    raise ConnectionError("the hub is closing")

    def _steps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        rate = self.rate or self.throttle.rate or 0
        step = max(1, min(SEND_STEP, rate // 20)) if rate else SEND_STEP
        while start < stop:
            yield start, min(start + step, stop)
            start += step

    def _touched(self, start: int, stop: int) -> bool:
        return any(first < stop and last > start for first, last in self.flipped)

    def _read(self, start: int, stop: int) -> bytes:
        if isinstance(self.body, bytes):
            data = bytearray(self.body[start:stop])
        else:
            with self.body.open("rb") as file:
                file.seek(start)
                data = bytearray(file.read(stop - start))
        for first, last in self.flipped:
            for position in range(max(first, start), min(last, stop)):
                data[position - start] ^= 0xFF
        return bytes(data)


def client_environment(
    url: str, home: Path, cache_dir: Path | str, token: str | None
) -> dict[str, str]:
    """Return the complete environment for a child process that knows a hub and no other."""
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not LEAKY_VARIABLES.match(k)}
    variables = {
        "HOME": str(home),
        "HF_ENDPOINT": url,
        "HF_HUB_CACHE": str(cache_dir),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    if token is not None:
        variables["HF_TOKEN"] = token
    return kept | variables


def main(arguments: list[str] | None = None) -> int:
    """Serve a folder of repos until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.kit.hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="holds <org>/<name>/files")
    parser.add_argument(
        "--redirect", choices=("other-host", "same-host", "none"), default="other-host"
    )
    parser.add_argument("--page-size", type=int, default=1000)
    parser.add_argument("--no-ranges", action="store_true")
    parser.add_argument("--rate", type=int, help="bytes a second of each connection")
    parser.add_argument("--total-rate", type=int, help="bytes a second of all of them together")
    given = parser.parse_args(arguments)
    stop = {signal.SIGTERM, signal.SIGINT}
    # Blocked before any thread starts, so that the signals wait for sigwait alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with LoopbackHub(
        port=given.port,
        redirect=given.redirect,
        page_size=given.page_size,
        support_ranges=not given.no_ranges,
    ) as hub:
        if given.rate:
            hub.fault(slow(given.rate))
        hub.throttle.rate = given.total_rate
        for folder in sorted(given.folder.glob("*/*")):
            if folder.is_dir():
                repo = hub.add_repo(folder.relative_to(given.folder).as_posix())
                files = (path for path in folder.rglob("*") if path.is_file())
                repo.commit({path.relative_to(folder).as_posix(): path for path in files})
        print(hub.url, flush=True)
        signal.sigwait(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
