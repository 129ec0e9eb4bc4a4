"""The routes of the server: the hub's, `/blobs/<hash>` for `pull --from`, and `/metrics`."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.hashing import Opener
from vlmcache.commands.serve import answers
from vlmcache.commands.serve.access import Access, Refusal
from vlmcache.commands.serve.answers import AnswerError
from vlmcache.commands.serve.bodies import BODY_LIMIT, paths_asked
from vlmcache.commands.serve.catalog import ServedFile, ServedRepo, ServedRevision
from vlmcache.commands.serve.sending import ContentResponse, OpenContent, open_to_send
from vlmcache.commands.serve.vouching import (
    NotGoodError,
    ReplacedError,
    StillHashingError,
    Vouching,
)
from vlmcache.progress import Throttle

HEAD_LIMIT = 16_384
"""Bytes of a request's path and headers."""
_API = re.compile(r"(model|dataset|space)s")
_OF_REVISION = frozenset({"revision", "tree", "paths-info"})
_PARTS = _OF_REVISION | {"refs", "auth-check"}
_FIXED = frozenset({"api", "blobs", "metrics"})
"""First parts of a path that are not the owner of a repo."""
_TRUE = frozenset({"1", "true", "yes"})
_ADDRESS = re.compile(rb"https?://[^/]*", re.IGNORECASE)
"""What precedes the path in a request whose target is a complete address."""


class Counts:
    """What the server has done so far."""

    def __init__(self) -> None:
        self.by_status: Counter[int] = Counter()
        self.bytes_sent = 0
        self.contents: set[str] = set()
        """Hashes of what was sent, completely or a part of it."""

    @property
    def requests(self) -> int:
        """How many requests were answered."""
        return sum(self.by_status.values())

    @property
    def refused(self) -> int:
        """How many of them with a status of 400 or more."""
        return sum(count for status, count in self.by_status.items() if status >= 400)


class Contents(Protocol):
    """What is served: a `Catalog` of complete revisions, or a `Shelf` of single contents."""

    def repos(self) -> Sequence[ServedRepo]:
        """Return what is served, as it was when it was last read."""

    def repo(self, kind: str, repo_id: str) -> ServedRepo | None:
        """Return a repo as it is now; `None` if nothing of it is served."""

    def content(self, etag: str) -> ServedFile | None:
        """Return a file whose content has a hash; `None` if nothing that is served has it."""

    def opener(self, is_blob: bool) -> Opener:
        """Return what opens blobs, or the files of snapshots that are no links."""

    def distrust(self, etag: str) -> None:
        """Take note of a content that was found to be damaged."""

    def tend(self) -> None:
        """Look after what is served; called now and then."""


class Served(NamedTuple):
    """What the routes work with."""

    catalog: Contents
    vouching: Vouching
    access: Access
    throttle: Throttle
    counts: Counts
    connections: Callable[[], int]


def application(served: Served) -> ASGIApp:
    """Return the application that answers requests."""
    routes = _Routes(served)
    only = ["GET", "HEAD"]
    app = Starlette(
        routes=[
            Route("/metrics", routes.metrics, methods=only),
            Route("/blobs/{etag}", routes.blob, methods=only),
            Route("/api/{rest:path}", routes.api, methods=[*only, "POST"]),
            Route("/{rest:path}", routes.resolve, methods=only),
        ],
        exception_handlers={AnswerError: _refused},
    )
    app.router.redirect_slashes = False
    return _Gate(app, served)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, AnswerError)
    return refusal_answer(Refusal(error.status, error.code, error.message), error.headers)


def refusal_answer(reason: Refusal, headers: dict[str, str] | None = None) -> Response:
    """Return the answer that refuses a request, as the hub words it."""
    message = reason.message.encode("ascii", "replace").decode()
    # A header's value neither begins nor ends with a space.
    shown = "".join(filter(str.isprintable, message)).strip()
    also = {"X-Error-Message": shown, **(headers or {})}
    if reason.code is not None:
        also["X-Error-Code"] = reason.code
    return JSONResponse({"error": reason.message}, reason.status, headers=also)


class _Gate:
    """Lets in whoever may ask, counts and logs what is answered; no header is ever logged."""

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counts, begun, status, sent = self._served.counts, time.monotonic(), 0, 0
        address = _ADDRESS.match(scope["raw_path"])
        if address is not None:
            # As proxies ask (RFC 9112, 3.2.2): the Host header is checked all the same.
            raw = scope["raw_path"][address.end() :] or b"/"
            scope = {**scope, "raw_path": raw, "path": unquote(raw.decode("ascii", "replace"))}

        async def counting(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                counts.by_status[status] += 1
            await send(message)
            if message["type"] == "http.response.body" and scope["method"] != "HEAD":
                sent += len(message.get("body", b""))

        client = (scope.get("client") or ("",))[0]
        try:
            answer = self._let_in(scope, client)
            if isinstance(answer, Refusal):
                await refusal_answer(answer)(scope, receive, counting)
            else:
                scope["state"] = {"trusted": answer}
                await self._app(scope, receive, counting)
        finally:
            counts.bytes_sent += sent
            path = scope["raw_path"].decode("ascii", "replace")
            seconds = time.monotonic() - begun
            words = '%s "%s %s" %d, %d bytes in %.3f s'
            log.info("serve", words, client, scope["method"], path, status, sent, seconds)

    def _let_in(self, scope: Scope, client: str) -> bool | Refusal:
        head = sum(len(name) + len(value) for name, value in scope["headers"])
        if head + len(scope["raw_path"]) + len(scope["query_string"]) > HEAD_LIMIT:
            return Refusal(431, None, "the request's head is too large")
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > BODY_LIMIT):
                return Refusal(413, None, "the request's body is too large")
        reached_at = (scope.get("server") or ("",))[0]
        return self._served.access.judge(scope["headers"], client, reached_at)


class _Routes:
    """Answers requests. What they name is looked up among what is served, never used as a path."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def metrics(self, request: Request) -> Response:
        """Answer with metrics in Prometheus' text format."""
        trusted, repos = request.state.trusted, self._served.catalog.repos()
        counts, vouching = self._served.counts, self._served.vouching
        lines = [
            "# TYPE vlmcache_serve_requests_total counter",
            *(
                f'vlmcache_serve_requests_total{{status="{status}"}} {count}'
                for status, count in sorted(counts.by_status.items())
            ),
        ]
        for name, kind, value in (
            ("sent_bytes_total", "counter", counts.bytes_sent),
            ("files_total", "counter", len(counts.contents)),
            ("hashed_bytes_total", "counter", vouching.hashed),
            ("damaged_files_total", "counter", vouching.damaged),
            ("hashing", "gauge", vouching.running),
            ("connections", "gauge", self._served.connections()),
            ("models", "gauge", sum(trusted or repo.open_to_others for repo in repos)),
        ):
            full = f"vlmcache_serve_{name}"
            lines += [f"# TYPE {full} {kind}", f"{full} {value}"]
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response("\n".join([*lines, ""]), media_type=kind)

    async def blob(self, request: Request) -> Response:
        """Answer with a content by its hash, to holders of the token."""
        if not request.state.trusted:
            raise AnswerError(401, None, "contents are sent by their hashes with the token only")
        etag = request.path_params["etag"]
        file = None
        if layout.is_etag(etag):
            file = await run_in_threadpool(self._served.catalog.content, etag)
        if file is None:
            raise AnswerError(404, "EntryNotFound", "no such content is served")
        return await self._content(request, file, {})

    async def api(self, request: Request) -> Response:
        """Answer a question about a repo."""
        kinds, *parts = _parts(request)[1:] or [""]
        match = _API.fullmatch(kinds)
        if match is None or not parts or "" in parts[:1]:
            raise AnswerError(404, None, "Not Found")
        count = _id_length(parts)
        repo = await self._repo(request, match[1], "/".join(parts[:count]))
        question, *rest = parts[count:] or ["revision", "main"]
        if (request.method == "POST") != (question == "paths-info"):
            raise AnswerError(405, None, "Method Not Allowed")
        if question == "auth-check":
            return JSONResponse({})
        if question == "refs":
            return JSONResponse(answers.refs(repo))
        if question not in _PARTS or not rest:
            raise AnswerError(404, None, "Not Found")
        revision = _revision(repo, rest[0])
        if question == "revision":
            blobs = "blobs" in request.query_params
            return JSONResponse(answers.repo_info(repo, revision, blobs=blobs))
        if question == "paths-info":
            return JSONResponse(answers.paths_info(revision, await paths_asked(request)))
        recursive = request.query_params.get("recursive", "").lower() in _TRUE
        folder = "/".join(rest[1:]).strip("/")
        return _page(request, answers.tree(revision, folder, recursive=recursive))

    async def resolve(self, request: Request) -> Response:
        """Answer with a file of a repo."""
        parts = _parts(request)
        kind = "model"
        if parts[0] in ("datasets", "spaces"):
            kind, parts = parts[0].removesuffix("s"), parts[1:]
        if "resolve" not in parts[1:3] or parts[0] in _FIXED:
            raise AnswerError(404, None, "Not Found")
        # In the address of `org/resolve` the word occurs twice.
        count = 2 if parts[2:3] == ["resolve"] else 1
        repo = await self._repo(request, kind, "/".join(parts[:count]))
        revision = _revision(repo, parts[count + 1] if len(parts) > count + 1 else "")
        file = revision.files.get("/".join(parts[count + 2 :]))
        commit = {"X-Repo-Commit": revision.commit}
        if file is None:
            raise AnswerError(404, "EntryNotFound", "Entry not found", commit)
        if file.listed.lfs_sha256 is not None:
            commit |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        shown = quote(file.name.rpartition("/")[2])
        commit["Content-Disposition"] = f"inline; filename*=UTF-8''{shown}; filename=\"{shown}\";"
        return await self._content(request, file, commit)

    async def _repo(self, request: Request, kind: str, repo_id: str) -> ServedRepo:
        repo = await run_in_threadpool(self._served.catalog.repo, kind, repo_id)
        trusted = request.state.trusted
        if repo is not None and (trusted or repo.open_to_others):
            return repo
        # Whoever may not see a repo does not learn whether it exists, as on the hub.
        if not trusted and self._served.access.has_token:
            raise AnswerError(
                401, "RepoNotFound", "no such repo, or set HF_TOKEN to this server's token"
            )
        message = "no such repo is served"
        if not trusted:
            message += "; what other users here cannot read is served only with a token"
        raise AnswerError(404, "RepoNotFound", message)

    async def _content(
        self, request: Request, file: ServedFile, headers: dict[str, str]
    ) -> Response:
        """Answer with a file's content, or a part of it, once that is known to be good."""
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if answers.is_unchanged(request.headers.get("if-none-match"), file.etag):
            return Response(status_code=304, headers=headers)
        span = answers.span_of(
            request.headers.get("range"),
            request.headers.get("if-range"),
            file.size,
            file.etag,
        )
        headers["Content-Length"] = str(span.stop - span.start)
        if span.status == 206:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size}"
        opener = self._served.catalog.opener(file.is_blob)
        content = await run_in_threadpool(open_to_send, opener, file)
        try:
            if not (request.state.trusted or content.open_to_others):
                raise AnswerError(404, "EntryNotFound", "Entry not found")
            if request.method != "HEAD":
                content = await self._vouched(file, content, opener)
        except BaseException:
            content.close()
            raise
        if request.method == "HEAD":
            content.close()
            kind = "application/octet-stream"
            return Response(None, span.status, headers=headers, media_type=kind)
        self._served.counts.contents.add(file.etag)
        return ContentResponse(content, span, self._served.throttle, headers)

    async def _vouched(self, file: ServedFile, content: OpenContent, opener: Opener) -> OpenContent:
        """Return the open file once it is known to have the content that its hash names."""
        check = self._served.vouching.check
        try:
            for last in (False, True):
                try:
                    await check(file.path, file.etag, content.identity, opener)
                except ReplacedError:
                    if last:
                        raise NotGoodError from None
                    content.close()
                    content = await run_in_threadpool(open_to_send, opener, file)
                else:
                    return content
        except StillHashingError as hashing:
            seconds = str(math.ceil(min(max(hashing.seconds, 1.0), 3600.0)))
            # Its clients wait for a busy hub, and give up on one that is out of order.
            raise AnswerError(
                429,
                None,
                f"this content is being checked: come back in {seconds} s",
                {"Retry-After": seconds, "RateLimit": f'"checking";r=0;t={seconds}'},
            ) from None
        except NotGoodError:
            # A repair must not find it in use here.
            await run_in_threadpool(self._served.catalog.distrust, file.etag)
        raise AnswerError(
            500,
            None,
            "the file is damaged on the machine that serves it: 'vlmcache verify --repair' there",
        )


def _parts(request: Request) -> list[str]:
    """Return the parts of a request's path, each decoded once: a ref has its slashes encoded."""
    path = request.scope["raw_path"].decode("ascii", "replace")
    return [unquote(part) for part in path.split("/")[1:]] or [""]


def _id_length(parts: list[str]) -> int:
    """Return how many parts of an address are the repo's id: one of `gpt2`, two of `org/tree`."""
    if parts[1:2] == [] or parts[1] not in _PARTS:
        return min(2, len(parts))
    is_name = parts[2] in _PARTS if len(parts) > 2 else parts[1] in _OF_REVISION
    return 2 if is_name else 1


def _revision(repo: ServedRepo, text: str) -> ServedRevision:
    revision = repo.revision(text)
    if revision is None:
        raise AnswerError(404, "RevisionNotFound", f"Invalid rev id: {text[:200]}")
    return revision


def _page(request: Request, entries: list[dict[str, Any]]) -> Response:
    """Return one page of a listing, whose Link header names the next one."""
    try:
        limit = int(request.query_params.get("limit", answers.PAGE))
        start = int(request.query_params.get("cursor", 0))
    except ValueError:
        raise AnswerError(400, None, "limit and cursor are numbers") from None
    limit, start = min(max(limit, 1), answers.PAGE), max(start, 0)
    headers: dict[str, str] = {}
    if start + limit < len(entries):
        kept = [part for part in request.url.query.split("&") if part and "cursor=" not in part]
        query = "&".join([*kept, f"cursor={start + limit}"])
        path = request.scope["raw_path"].decode("ascii")
        # The Host header was checked: nothing in it ends the address.
        base = f"{request.url.scheme}://{request.headers['host']}"
        headers["Link"] = f'<{base}{path}?{query}>; rel="next"'
    return JSONResponse(entries[start : start + limit], headers=headers)
