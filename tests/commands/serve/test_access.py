"""Who is answered, and what no request gets: the promises of SECURITY.md about `serve`."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmcache
from tests.kit.caches import CacheBuilder, model_files
from tests.kit.served import TOKEN, Asking, serving
from vlmcache.addresses import parse_networks
from vlmcache.cache import hashing
from vlmcache.cache.state import TreeFile
from vlmcache.commands.serve import access, bodies, catalog, sending, server, values, vouching
from vlmcache.config import own_home, read_environment
from vlmcache.home.journal import Journal
from vlmcache.progress import Throttle

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534
SECRET = b"a secret of the machine"
FILES = {"config.json": b"{}", "weights.safetensors": b"w" * 3_000_000}
WEIGHTS = hashlib.sha256(FILES["weights.safetensors"]).hexdigest()
PATH = "/org/good/resolve/main/weights.safetensors"


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMCACHE_SERVE_TOKEN", TOKEN)


@pytest.fixture
def good(cache: CacheBuilder) -> CacheBuilder:
    cache.repo("org/good").revision(FILES)
    (cache.root.parent / "secret").write_bytes(SECRET)
    return cache


@pytest.fixture
def ask(good: CacheBuilder) -> Iterator[Asking]:
    with serving(good.root) as asking:
        yield asking


# The token.


@pytest.mark.parametrize("token", [TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "", "hf_other", "é"])
def test_a_wrong_token_opens_nothing_and_is_401(ask: Asking, token: str) -> None:
    for path in (PATH, f"/blobs/{WEIGHTS}", "/api/models/org/good", "/metrics", "/x/y"):
        answer = ask(path, token=token.encode().decode("latin-1"))
        assert answer.status == 401
        assert TOKEN.encode() not in answer.body


def test_two_tokens_and_other_schemes_open_nothing(ask: Asking) -> None:
    for line in (f"Basic {TOKEN}", f"Bearer{TOKEN}", f"Token {TOKEN}", TOKEN):
        assert ask(PATH, token=None, authorization=line).status == 401
    head = f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    assert b" 401 " in ask.raw(f"{head}Authorization: Bearer x\r\n\r\n".encode()).split(b"\r\n")[0]


def test_without_the_token_files_are_sent_that_every_user_can_read_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # pytest's own folders can be entered by their owner alone.
        os.chmod(folder, 0o755)
        built = CacheBuilder(Path(folder) / "hub")
        built.repo("org/open").revision(FILES)
        built.repo("org/closed").revision({"config.json": b"closed"})
        for entry in [built.root, *built.root.rglob("*")]:
            if not entry.is_symlink():
                entry.chmod(0o755 if entry.is_dir() else 0o644)
        next(built.repo("org/closed").blobs.iterdir()).chmod(0o640)
        with serving(built.root) as ask:
            assert ask("/org/open/resolve/main/config.json", token=None).body == b"{}"
            # Whoever may not see a repo is not shown whether it exists.
            hidden = ask("/api/models/org/closed", token=None)
            absent = ask("/api/models/org/absent", token=None)
            assert (hidden.status, hidden.body) == (absent.status, absent.body)
            assert hidden.status == 401
            assert ask("/org/closed/resolve/main/config.json").body == b"closed"
            assert ask(f"/blobs/{WEIGHTS}", token=None).status == 401
            assert b"vlmcache_serve_models 1\n" in ask("/metrics", token=None).body
            assert b"vlmcache_serve_models 2\n" in ask("/metrics").body
        monkeypatch.delenv("VLMCACHE_SERVE_TOKEN")
        with serving(built.root) as ask:
            # A client sends the token of its hub, which says nothing here.
            assert ask("/org/open/resolve/main/config.json", token="hf_hub").body == b"{}"
            assert ask("/org/closed/resolve/main/config.json", token="hf_hub").status == 404
            assert ask(f"/blobs/{WEIGHTS}", token="hf_hub").status == 401


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    plain = hmac.compare_digest

    def comparing(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return plain(a, b)

    monkeypatch.setattr(hmac, "compare_digest", comparing)
    judge = access.Access(TOKEN, (), "127.0.0.1", on_network=False).judge
    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + TOKEN.encode())]
    assert judge(headers, "127.0.0.1", "127.0.0.1") is True
    assert compared == [TOKEN.encode()]


def test_other_machines_need_the_token_or_an_allowed_network() -> None:
    host = [(b"host", b"192.168.1.5:9401")]
    networks = parse_networks(["192.168.1.0/24", "2001:db8::/32"])
    both = access.Access(TOKEN, networks, "0.0.0.0", on_network=True)
    only = access.Access(None, networks, "0.0.0.0", on_network=True)
    for client, expected in (
        ("192.168.1.77", True),
        ("::ffff:192.168.1.77", True),
        ("2001:db8::1", True),
        ("192.168.2.1", None),
        ("127.0.0.1", None),
        ("2001:db9::1", None),
        ("", None),
    ):
        # Who is logged in at the hub sends that token, which says nothing here.
        for headers, judging, status in (
            (host, both, 401),
            (host, only, 403),
            ([*host, (b"authorization", b"Bearer hf_hub")], both, 401),
        ):
            answer = judging.judge(headers, client, "192.168.1.5")
            assert answer is True if expected else isinstance(answer, access.Refusal), client
            assert expected or (isinstance(answer, access.Refusal) and answer.status == status)


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (TOKEN, 0o644, "other users can read it"),
        (TOKEN, 0o640, "other users can read it"),
        ("short", 0o600, "fewer than 16 characters"),
        ("", 0o600, "fewer than 16 characters"),
        ("two words of a token", 0o600, "characters that no token has"),
        ("x" * 5000, 0o600, "longer than"),
        ("é" * 20, 0o600, "characters that no token has"),
        (None, 0o600, "No such file"),
    ],
)
def test_a_file_that_cannot_be_the_token_is_refused(
    good: CacheBuilder, tmp_path: Path, content: str | None, mode: int, words: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(vlmcache.UsageError, match=words) as caught:
        vlmcache.Cache(good.root).serve("org/good", listen="127.0.0.1:0", token_file=path)
    assert not content or content not in str(caught.value)


# What a request names.


def test_the_hint_for_a_token_file_can_be_pasted(good: CacheBuilder, tmp_path: Path) -> None:
    path = tmp_path / "my token"
    path.write_text(TOKEN)
    path.chmod(0o640)
    with pytest.raises(vlmcache.UsageError) as caught:
        vlmcache.Cache(good.root).serve(token_file=path, listen="127.0.0.1:0", all=True)
    assert caught.value.hint == f"chmod 600 '{path}'"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9401", "127.0.0.1.evil.example", "8.8.8.8", "localhost."]
)
def test_a_foreign_host_is_refused_without_the_token(ask: Asking, host: str) -> None:
    """A page that has made a name of its own lead here (DNS rebinding) has no token."""
    expected = 401 if host == "localhost." else 421
    assert ask("/api/models/org/good", token=None, host=host).status == expected
    assert ask("/api/models/org/good", host=host).status == 200


@pytest.mark.parametrize(
    "lines", [[], ["a", "b"], ["a b"], ['a">; rel="next", <http://x'], ["a/b"], ["[::1"], ["@"]]
)
def test_a_host_that_is_none_is_400(ask: Asking, lines: list[str]) -> None:
    head = f"GET /api/models/org/good HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "".join(f"Host: {line}\r\n" for line in lines)
    assert ask.raw(f"{head}\r\n".encode()).startswith(b"HTTP/1.1 400 ")


def traversals() -> Iterator[str]:
    for dots in ("..", "%2e%2e", "%252e%252e", "..%2f", "%2e.", "..%5c", "..;", "%c0%ae%c0%ae"):
        for slash in ("/", "%2f", "%252f", "%5c", "//"):
            climb = slash.join([dots] * 6)
            for tail in ("secret", "etc/passwd"):
                yield f"/org/good/resolve/main/{climb}{slash}{tail}"
                yield f"/org/good/resolve/{climb}{slash}{tail}"
                yield f"/{climb}{slash}{tail}"
                yield f"/blobs/{climb}{slash}{tail}"
                yield f"/api/models/{climb}/revision/{tail}"
                yield f"/api/models/org/good/tree/main/{climb}"


def test_no_path_leads_out_of_what_is_served(ask: Asking) -> None:
    with ask.connection() as connection:
        stream = connection.makefile("rb")
        for path in [*traversals(), "/org/good/resolve/main//etc/passwd", "/%00", "/*"]:
            head = (
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            )
            connection.sendall(head.encode())
            status = int(stream.readline().split()[1])
            length = 0
            while line := stream.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = stream.read(length)
            assert 400 <= status < 500, path
            assert SECRET not in body, path
            assert b"root:" not in body, path


WORDS = st.sampled_from(
    [
        *("/", "api", "models", "datasets", "spaces", "org", "good", "resolve", "main", "tree"),
        *("blobs", WEIGHTS, "revision", "..", "%2e%2e", "%2F", "%", "%zz", "?", "&", "=", "#"),
        *("config.json", "paths-info", "refs", "metrics", "recursive=true", "limit=-1", "cursor=x"),
        *("\x7f", "%00", "%ff", "é", ":", "http://evil.example/", "*", "//", "a" * 300),
    ]
)
HEADERS = st.sampled_from(
    [
        *("Range: bytes=0-", "Range: bytes=-1", "Range: bytes=9-1", "If-Range: x", "Range: \xff"),
        *("Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999", "Expect: x"),
        *("Transfer-Encoding: chunked", "Transfer-Encoding: x", "Connection: close"),
        *("Host: evil", "Authorization: Bearer x", "Upgrade: websocket", "bad header", ": "),
        *("\0: x", "X: " + "y" * 99),
        *("If-None-Match: *", "Accept-Encoding: gzip", "Connection: upgrade", "Cookie: a=b"),
    ]
)  # fmt: skip


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.full)])
def test_whatever_is_asked_is_answered_or_ended_and_nothing_else_is_sent(
    good: CacheBuilder, examples: int
) -> None:
    with serving(good.root) as ask:

        @settings(max_examples=examples, deadline=None)
        @given(
            st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW", "get", ""]),
            st.lists(WORDS, max_size=9),
            st.lists(HEADERS, max_size=4),
            st.sampled_from(["localhost", "evil.example", ""]),
            st.sampled_from([TOKEN, "wrong", None]),
            st.binary(max_size=40),
        )
        def answered(
            method: str,
            words: list[str],
            headers: list[str],
            host: str,
            token: str | None,
            body: bytes,
        ) -> None:
            lines = [f"{method} /{''.join(words)} HTTP/1.1", f"Host: {host}", *headers]
            lines += [f"Authorization: Bearer {token}"] if token else []
            sent = "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body
            with contextlib.suppress(ConnectionError):
                answer = ask.raw(sent)
                assert not answer or answer.startswith(b"HTTP/1.1 ")
                assert b" 500 " not in answer.split(b"\r\n")[0], sent
                assert SECRET not in answer
                assert TOKEN.encode() not in answer
                if token != TOKEN:
                    assert FILES["weights.safetensors"][:100] not in answer

        answered()
        assert ask(PATH).body == FILES["weights.safetensors"]


def test_a_request_that_is_too_large_is_refused(ask: Asking) -> None:
    for path, more in (("x" * 17_000, ""), ("", f"X: {'y' * 17_000}\r\n"), ("x" * 1_000_000, "")):
        head = f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"
        with contextlib.suppress(ConnectionError):
            status = ask.raw(head.encode()).split(b"\r\n")[0]
            assert b" 400 " in status or b" 431 " in status
    address = "/api/models/org/good/paths-info/main"
    assert ask(address, "POST", body=b"x" * (bodies.BODY_LIMIT + 1)).status == 413
    start = f"POST {address} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    chunk = b"%x\r\n%s\r\n" % (1 << 17, b"x" * (1 << 17))
    sent = f"{start}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 9 + b"0\r\n\r\n"
    assert b" 413 " in ask.raw(sent).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "path",
    [
        *("/api%2Fmodels", "/api%2Fmodels/org/good", "/api", "/api/", "/api/models/", "//", "/"),
        *("/org/good/resolve", "/org/good/resolve/", "/org/good/resolve/%20", "/%20/resolve/main"),
        *(
            "/api/models/org/good/tree/main/%20x%20",
            "/api/models/org/good/revision/%0d%0aX:%20y%20",
        ),
    ],
)
def test_an_address_that_names_nothing_is_404(ask: Asking, path: str) -> None:
    assert ask(path).status == 404


def test_a_client_that_ends_its_side_gets_its_answers(ask: Asking) -> None:
    head = f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    got = ask.raw(head.encode() * 2)
    assert got.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert got.endswith(FILES["weights.safetensors"])


# Contents.


def test_damaged_content_never_leaves_and_is_remembered(good: CacheBuilder) -> None:
    blob = good.repo("org/good").blobs / WEIGHTS
    blob.write_bytes(b"x" * blob.stat().st_size)
    with serving(good.root) as ask:
        for path in (PATH, f"/blobs/{WEIGHTS}"):
            answer = ask(path, range="bytes=0-9")
            assert answer.status in (404, 500)
            assert b"xxxxxxxxxx" not in answer.body
        assert b"damaged_files_total 1" in ask("/metrics").body
        assert ask(PATH).status == 404
    assert vlmcache.Cache(good.root).status("org/good").models[0].state == "damaged"


def test_what_is_known_to_be_good_is_not_hashed_again_until_it_changes(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlmcache.Cache(good.root).verify().check()
    hashed: list[str] = []
    plain = hashing.hash_all

    def counted(checks: list[hashing.Check], *rest: object, **more: object) -> object:
        hashed.extend(check.expected for check in checks)
        return plain(checks, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(vouching, "hash_all", counted)
    blob = good.repo("org/good").blobs / WEIGHTS
    with serving(good.root) as ask:
        assert ask(PATH).body == FILES["weights.safetensors"]
        assert hashed == []
        os.utime(blob)
        assert ask(PATH).body == ask(PATH).body == FILES["weights.safetensors"]
        assert hashed == [WEIGHTS]
    # What a server has found, the next one knows.
    with serving(good.root) as ask:
        assert ask(PATH).status == 200
    assert hashed == [WEIGHTS]


def test_those_who_ask_at_once_share_one_hash_and_whoever_waits_long_is_asked_to_come_back(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun = threading.Event(), []
    plain = hashing.hash_all

    def held(checks: list[hashing.Check], *rest: object, **more: object) -> object:
        begun.append(checks)
        release.wait(60)
        return plain(checks, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(vouching, "hash_all", held)
    monkeypatch.setattr(vouching, "PATIENCE", 0.2)
    with serving(good.root) as ask:
        early = ask(PATH)
        assert early.status == 429
        assert int(early.headers["retry-after"]) >= 1
        assert early.headers["ratelimit"] == f'"checking";r=0;t={early.headers["retry-after"]}'
        assert ask(PATH, "HEAD").status == 200
        monkeypatch.setattr(vouching, "PATIENCE", 60.0)
        answers: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(PATH).body)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        release.set()
        for thread in threads:
            thread.join()
        assert answers == [FILES["weights.safetensors"]] * 4
        assert len(begun) == 1


def test_a_file_that_is_written_to_while_it_is_sent_ends_short(good: CacheBuilder) -> None:
    blob = good.repo("org/good").blobs / WEIGHTS
    content = sending.open_to_send(lambda path: os.open(path, os.O_RDONLY), _served(blob))
    assert content.read(0, 10) == b"w" * 10
    before = blob.stat()
    blob.write_bytes(b"x" * before.st_size)
    with pytest.raises(OSError, match="changed while it was sent"):
        content.read(10, 10)
    # Whoever owns the file can put back the time of writing.
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(OSError, match="changed while it was sent"):
        content.read(10, 10)
    content.close()


def _served(blob: Path) -> catalog.ServedFile:
    return catalog.ServedFile("w", str(blob), True, TreeFile(blob.stat().st_size, blob.name), True)


def test_a_link_that_leads_out_of_the_cache_is_not_followed(good: CacheBuilder) -> None:
    repo = good.repo("org/good")
    secret = good.root.parent / "secret"
    (repo.blobs / hashlib.sha256(SECRET).hexdigest()).symlink_to(secret)
    snapshot = next(repo.snapshots.iterdir())
    (snapshot / "notes.txt").write_bytes(SECRET)
    with serving(good.root) as ask:
        listing = ask("/api/models/org/good/tree/main")
        assert listing.status == 200, listing
        assert {one["path"] for one in listing.json} == FILES.keys()
    (snapshot / "stolen.txt").symlink_to(secret)
    with serving(good.root) as ask:
        for path in ("/org/good/resolve/main/stolen.txt", "/org/good/resolve/main/notes.txt"):
            assert SECRET not in ask(path).body
        assert SECRET not in ask(f"/blobs/{hashlib.sha256(SECRET).hexdigest()}").body


def test_of_a_link_that_another_user_has_put_in_place_of_a_repo_nothing_is_told(
    good: CacheBuilder,
) -> None:
    if not IS_ROOT:
        pytest.skip("needs two users")
    elsewhere = CacheBuilder(good.root.parent / "elsewhere").repo("org/private")
    elsewhere.revision({"config.json": SECRET})
    link = good.root / elsewhere.folder.name
    link.symlink_to(elsewhere.folder)
    os.lchown(link, NOBODY, NOBODY)
    with serving(good.root) as ask:
        absent = ask("/api/models/org/absent")
        for path in ("/api/models/org/private", "/api/models/org/private/tree/main"):
            assert (ask(path).status, ask(path).body) == (absent.status, absent.body)
        assert ask("/org/private/resolve/main/config.json").status == 404
        assert ask(PATH).status == 200


def test_what_is_removed_while_it_is_sent_ends_short_and_later_requests_are_404(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    big = b"b" * 30_000_000
    good.repo("org/big").revision({"config.json": b"{}", "w.safetensors": big})
    monkeypatch.setattr(catalog, "FRESH", 0.0)
    with serving(good.root) as ask, ask.connection() as connection:
        head = "GET /org/big/resolve/main/w.safetensors HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        got = connection.recv(1000)
        shutil.rmtree(good.repo("org/big").folder)
        assert ask("/org/big/resolve/main/w.safetensors").status == 404
        while part := connection.recv(1 << 20):
            got += part
        content = got.partition(b"\r\n\r\n")[2]
        assert set(content) <= set(b"b")
        assert len(content) < len(big)


# Gated and private repos.


def test_what_a_pull_has_found_gated_is_served_by_name_and_with_the_option_only(
    good: CacheBuilder,
) -> None:
    good.repo("org/gated").revision(model_files())
    with Journal(own_home(read_environment())[0]) as journal:
        journal.record_restriction("model", "org/gated", "gated")
    cache = vlmcache.Cache(good.root)
    with pytest.raises(vlmcache.UsageError, match="org/gated is gated on the hub"):
        cache.serve("org/gated", listen="127.0.0.1:0")
    with pytest.raises(vlmcache.UsageError, match="needs the models"):
        cache.serve(listen="127.0.0.1:0", all=True, include_gated=True)
    with cache.serve(listen="127.0.0.1:0", all=True) as running:
        assert [model.repo for model in running.models] == ["org/good"]
        assert [one.repo for one in running.not_served] == ["org/gated"]
        assert Asking(running.address)("/api/models/org/gated").status == 404
    with serving(good.root, "org/gated", include_gated=True) as ask:
        # A pull from here learns it too.
        assert ask("/api/models/org/gated").json["gated"] == "auto"
        assert ask("/api/models/org/good").status == 404


@pytest.mark.parametrize("names", [(), ("org/good",)])
def test_what_a_pull_finds_gated_meanwhile_is_served_no_more(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr(catalog, "FRESH", 0.0)
    with serving(good.root, *names) as ask:
        assert ask(PATH).status == 200
        with Journal(own_home(read_environment())[0]) as journal:
            journal.record_restriction("model", "org/good", "gated")
        for path in (PATH, "/api/models/org/good", f"/blobs/{WEIGHTS}"):
            while ask(path).status == 200:
                time.sleep(0.1)
            assert ask(path).status == 404


# Connections.


def test_a_thousand_idle_connections_are_bounded_and_the_others_are_answered(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE", 1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        if hard < 4096:
            pytest.skip("the clients of this test need a thousand open files of their own")
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    with serving(good.root, max_connections=40) as ask, contextlib.ExitStack() as stack:
        before = len(os.listdir("/proc/self/fd"))
        idle = []
        for number in range(1000):
            connection = stack.enter_context(ask.connection())
            if number % 3 == 1:
                with contextlib.suppress(OSError):
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
            idle.append(connection)
            if number % 50 == 49:
                opened = len(os.listdir("/proc/self/fd")) - before - len(idle)
                assert opened <= 45, opened
        deadline = time.monotonic() + 60
        while True:
            # Each that says nothing is ended, and then there is room.
            with contextlib.suppress(OSError):
                assert ask(PATH).body == FILES["weights.safetensors"]
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_head_that_arrives_by_drops_and_a_body_that_does_not_are_ended(
    ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE", 0.3)
    monkeypatch.setattr(bodies, "_BODY_TIME", 0.2)
    with ask.connection() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"X: y\r\n")
                time.sleep(0.05)
    head = "POST /api/models/org/good/paths-info/main HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Authorization: Bearer {TOKEN}\r\nContent-Length: 50\r\n\r\npaths"
    with ask.connection() as connection:
        connection.sendall(head.encode())
        assert b" 408 " in connection.recv(100)


def test_a_client_that_reads_nothing_is_ended(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = b"b" * 40_000_000
    good.repo("org/big").revision({"config.json": b"{}", "w.safetensors": big})
    monkeypatch.setattr(server, "STALLED", 0.3)
    with serving(good.root) as ask, ask.connection() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = "GET /org/big/resolve/main/w.safetensors HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        deadline = time.monotonic() + 60
        while b"vlmcache_serve_connections 1\n" not in ask("/metrics").body:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_an_answer_that_is_not_taken_holds_up_the_end_for_its_grace_only(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    good.repo("org/big").revision({"config.json": b"{}", "w.safetensors": b"b" * 40_000_000})
    monkeypatch.setattr(server, "GRACE", 1)
    with contextlib.ExitStack() as stack:
        with serving(good.root) as ask:
            connection = stack.enter_context(ask.connection())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            head = "GET /org/big/resolve/main/w.safetensors HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
            assert connection.recv(10)
        with pytest.raises(ConnectionRefusedError):
            ask.connection()


def test_a_hash_in_progress_ends_with_the_server(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()

    def endless(
        checks: list[hashing.Check], _: int, moved: hashing.OnProgress, *, opener: object
    ) -> Iterator[hashing.Judged]:
        try:
            while True:
                time.sleep(0.01)
                moved(checks[0], 1)
        finally:
            ended.set()
        yield hashing.Judged(checks[0], None)

    monkeypatch.setattr(vouching, "hash_all", endless)
    monkeypatch.setattr(vouching, "PATIENCE", 0.05)
    with serving(good.root) as ask:
        assert ask(PATH).status == 429
    assert ended.is_set()
    assert "callback" not in caplog.text


def test_the_log_has_each_request_and_no_header(
    good: CacheBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), serving(good.root) as ask:
        ask(f"{PATH}?token={TOKEN}")
        ask(PATH, token="some-other-token", cookie="a-cookie")
    assert f'"GET {PATH}" 200, 3000000 bytes' in caplog.text
    assert f'"GET {PATH}" 401' in caplog.text
    for secret in (TOKEN, "some-other-token", "a-cookie", "Bearer"):
        assert secret not in caplog.text


@pytest.mark.parametrize("rate", [500_000, 5_000_000, 50_000_000, 5_000_000_000])
def test_at_a_low_rate_each_client_gets_bytes_before_it_gives_up(rate: int) -> None:
    assert sending.block_at(rate) <= sending.block_at(None) == hashing.BLOCK
    assert sending.block_at(rate) * values.CONNECTIONS / rate < 10


def test_a_rate_bounds_all_clients_together(good: CacheBuilder) -> None:
    throttle = Throttle(1_000_000)
    waits = [throttle.wait_for(1_000_000) for _ in range(3)]
    assert waits[0] < waits[1] < waits[2]
    with serving(good.root, limit_rate="2GB/s") as ask:
        assert ask(PATH).body == FILES["weights.safetensors"]
