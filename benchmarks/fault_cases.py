"""What goes wrong between a hub and its clients, one case each: data for `benchmarks.hub_faults`.

A case is a name, what is done to the hub once all that should be cached is, and what is in the
client's environment. Add one by adding a line to `CASES`.
"""

from __future__ import annotations

import email.utils
import gzip
import importlib.metadata
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tests.hub.test_versions import XET, oldest
from tests.kit.contents import Content, Synthetic
from tests.kit.faults import (
    Fault,
    cut,
    expired,
    hang,
    html,
    malformed_json,
    redirect_loop,
    reset,
    status,
    wrong_bytes,
)
from tests.kit.hub import Kind, LoopbackHub
from tests.kit.mirrors import MIRRORS, Change, answered

REPO = "org/big"
WEIGHTS = "model.safetensors"
SIZE = 40_000_000
FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    WEIGHTS: Synthetic(SIZE, 1),
    "tokenizer.json": b"{}" * 3000,
}
LITTLE: dict[str, Content] = FILES | {WEIGHTS: Synthetic(2_000_000, 1)}
Arm = Callable[[LoopbackHub], None]
Front = Literal["proxy", "proxy without its password"]
Tls = Literal["private CA", "another CA", "hub only"]


class Case(NamedTuple):
    """One fault."""

    name: str
    arm: Arm = lambda _: None
    """Does it to the hub."""
    variables: Mapping[str, str] = {}
    """The client's; `{host}` stands for the hub's host and port, `{folder}` for an empty folder."""
    files: Mapping[str, Content] = LITTLE
    spared: frozenset[str] = frozenset()
    """Files that need not be there in the end."""
    cached: bool = False
    """Whether all was pulled before, by the same client."""
    kind: Kind = "model"
    options: tuple[str, ...] = ()
    """What both commands are given in addition."""
    xet: bool = False
    """Whether the weights are listed with a Xet hash."""
    tls: Tls | None = None
    front: Front | None = None
    busy: bool = False
    """Whether it is measured alone, since it does more than wait."""
    others: tuple[str, ...] = ()
    """More repos with the same files: hf is run once for each, `vlmcache pull --all` once."""
    build: Callable[[Path], object] = lambda _: None
    """Makes what the variables name, in the empty folder."""
    tool: str | None = None
    """A program that building it needs."""
    locked: bool = False
    """Whether another user than root runs it, and root owns the lock of the weights."""


def faults(*which: Fault) -> Arm:
    """Return what arms faults of the kit."""

    def arm(hub: LoopbackHub) -> None:
        for fault in which:
            hub.fault(fault)

    return arm


def changes(*which: Change, of: Arm = lambda _: None) -> Arm:
    """Return what lets the hub change its answers, after something else was done to it."""

    def arm(hub: LoopbackHub) -> None:
        of(hub)
        hub.changes.extend(which)

    return arm


def on_weights(change: Callable[[Any], object]) -> Change:
    """Change every answer that sends bytes of the weights."""

    def changed(_: Any, reply: Any) -> None:
        if reply.file is not None and reply.file.name == WEIGHTS and reply.status in (200, 206):
            change(reply)

    return changed


def the_second(change: Callable[[Any], object]) -> Change:
    """Change the second answer that sends bytes of the weights, and no other."""
    count = 0

    def counted(asked: Any, reply: Any) -> None:
        nonlocal count
        sends = reply.file is not None and reply.file.name == WEIGHTS and asked.method == "GET"
        count += sends and reply.status in (200, 206)
        if sends and count == 2 and reply.status in (200, 206):
            change(reply)

    return counted


def header(name: str, value: str | None) -> Callable[[Any], None]:
    """Set a header, or leave it out."""

    def change(reply: Any) -> None:
        reply.headers.pop(name, None)
        if value is not None:
            reply.headers[name] = value

    return change


def gzipped(*, sized: bool) -> Callable[[Any], None]:
    """Compress a body although nobody asked for that."""

    def change(reply: Any) -> None:
        body = reply.body.read_bytes() if isinstance(reply.body, Path) else reply.body
        reply.body = gzip.compress(body[reply.start : reply.stop], 1)
        reply.start, reply.stop, reply.sized = 0, len(reply.body), sized
        reply.headers["Content-Encoding"] = "gzip"

    return change


def page(code: int, *, sized: bool = True) -> Callable[[Any], None]:
    """Answer with a page for people in place of what was asked for."""

    def change(reply: Any) -> None:
        answered(reply, code, "<html><h1>Please wait</h1></html>", "text/html")
        reply.sized = sized

    return change


def of_api(change: Callable[[Any], object], part: str = "/api/models/") -> Change:
    """Change every answer of the API."""

    def changed(asked: Any, reply: Any) -> None:
        if asked.path.startswith("/api/") and part in asked.path:
            change(reply)

    return changed


def described(**values: object) -> Change:
    """Let the description of the repo hold other values."""

    def change(reply: Any) -> None:
        if reply.status == 200:
            reply.body = json.dumps(json.loads(reply.body) | values).encode()
            reply.stop = len(reply.body)

    return of_api(change, "/revision/")


def limited(part: str, name: str, seconds: float = 5.0, *, wrong_by: float | None = None) -> Change:
    """Answer 429 for a while, from the first request on, and say in a header how long.

    As a date, if it is given by how many seconds the hub's clock is wrong.
    """
    until: list[float] = []

    def change(asked: Any, reply: Any) -> None:
        if part not in asked.target:
            return
        now = time.monotonic()
        until.append(now + seconds)
        rest = math.ceil(until[0] - now)
        if rest <= 0:
            return
        answered(reply, 429, '{"error": "Too Many Requests"}', "application/json")
        reply.headers[name] = str(rest) if name == "Retry-After" else f'"api";r=0;t={rest}'
        if wrong_by is not None:
            date = time.time() + wrong_by
            reply.headers["Date"] = email.utils.formatdate(date, usegmt=True)
            reply.headers[name] = email.utils.formatdate(math.ceil(date) + rest, usegmt=True)

    return change


def xet_token(reply: Any) -> None:
    """Give out a token for a Xet server that refuses connections."""
    token = {"casUrl": "http://127.0.0.1:9", "exp": 4_000_000_000, "accessToken": "x"}
    answered(reply, 200, json.dumps(token), "application/json")
    reply.headers |= {
        "X-Xet-Cas-Url": "http://127.0.0.1:9",
        "X-Xet-Token-Expiration": "4000000000",
        "X-Xet-Access-Token": "x",
    }


def with_xet(hub: LoopbackHub) -> None:
    """Send the headers of Xet."""
    hub.send_xet_headers = True


def with_hanging_xet(hub: LoopbackHub) -> None:
    """Send the headers of Xet, and never the token for it."""
    with_xet(hub)
    hub.fault(hang().on("/xet-read-token/", times=None))


def without_ranges(hub: LoopbackHub) -> None:
    """Send complete files only, and lose the first connection."""
    hub.support_ranges = False
    hub.fault(CUT)


QUOTA = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>
static long left = 1000000;
static int is_over(int file, size_t count) {
    struct stat status;
    if (file < 3 || fstat(file, &status) || !S_ISREG(status.st_mode)) return 0;
    return (left -= count) < 0 && (errno = EDQUOT);
}
ssize_t write(int file, const void *data, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return is_over(file, count) ? -1 : real(file, data, count);
}
ssize_t pwrite64(int file, const void *data, size_t count, off_t at) {
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite64");
    return is_over(file, count) ? -1 : real(file, data, count, at);
}
ssize_t pwrite(int file, const void *data, size_t count, off_t at) {
    return pwrite64(file, data, count, at);
}
"""
"""Lets a process write 1 MB to files, as a quota would: the kernel here may have none."""


def quota(folder: Path) -> None:
    """Build what is preloaded to run into a quota."""
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / "quota.so"), "-ldl"]
    subprocess.run(command, input=QUOTA, text=True, check=True, capture_output=True)


def oldest_client(folder: Path) -> None:
    """Install the oldest huggingface_hub that is allowed, from the index that pip uses."""
    wanted = oldest(importlib.metadata.requires("vlmcache"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", f"--target={folder / 'client'}"]
    subprocess.run([*command, wanted, XET], check=True, capture_output=True)


def without_one(hub: LoopbackHub) -> None:
    """Let the hub have one of the repos no more."""
    hub.remove(OTHERS[1])


CUT = cut(36_000_000).on(WEIGHTS)
XET_ON = {"HF_HUB_DISABLE_XET": "0"}
OLDEST = {"PYTHONPATH": "{folder}/client"}
OTHERS = tuple(f"org/other-{number}" for number in range(4))
OFFLINE = {"HF_HUB_OFFLINE": "1"}
SOCKS = {"ALL_PROXY": "socks5://127.0.0.1:9"}
NO_CERTIFICATES = {"SSL_CERT_FILE": "{folder}/missing.pem"}
NO_NUMBER = {"HF_HUB_DOWNLOAD_TIMEOUT": "10s", "HF_HUB_ETAG_TIMEOUT": "10s"}
MANY: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    **{f"part{n % 20:02}/{n:04}.json": b"[%d]" % n * 2000 for n in range(500)},
}


def cases() -> tuple[Case, ...]:
    """Return all cases."""
    return (
        # What is sent in another form than it was asked for.
        Case("gzip, with a length", changes(on_weights(gzipped(sized=True)))),
        Case("gzip, without a length", changes(on_weights(gzipped(sized=False)))),
        Case("an empty Content-Encoding", changes(on_weights(header("Content-Encoding", "")))),
        Case(
            "Content-Encoding: aws-chunked",
            changes(on_weights(header("Content-Encoding", "aws-chunked"))),
        ),
        Case(
            "Content-Encoding: Identity",
            changes(on_weights(header("Content-Encoding", "Identity"))),
        ),
        Case(
            "206 without Content-Range, 36 of 40 MB here",
            changes(on_weights(header("Content-Range", None)), of=faults(CUT)),
            files=FILES,
        ),
        # What is here by then, and what comes after it.
        Case("a lost connection, 36 of 40 MB here", faults(CUT), files=FILES),
        Case(
            "then a page without a length",
            changes(the_second(page(200, sized=False)), of=faults(CUT)),
            files=FILES,
        ),
        Case("then one 416", changes(the_second(page(416)), of=faults(CUT)), files=FILES),
        Case("then no ranges", without_ranges, files=FILES),
        Case("wrong bytes, once", faults(wrong_bytes(5000).on(WEIGHTS))),
        # Slow answers.
        Case("the listing takes 15 s", faults(hang(seconds=15).on("/tree/", times=None))),
        Case("the revision takes 15 s", faults(hang(seconds=15).on("/revision/", times=None))),
        Case("the first byte takes 15 s", faults(hang(seconds=15).on(host="cdn", times=None))),
        # The environment.
        Case("a SOCKS proxy without its package", variables=SOCKS),
        Case("a proxy with socks://", variables={"ALL_PROXY": "socks://127.0.0.1:9"}),
        Case("a proxy with a bad port", variables={"HTTP_PROXY": "http://127.0.0.1:port"}),
        Case("SSL_CERT_FILE is missing", variables=NO_CERTIFICATES),
        Case("SSL_CERT_FILE is empty", variables={"SSL_CERT_FILE": "/dev/null"}),
        Case("timeouts that are no numbers", variables=NO_NUMBER),
        Case("a token with a letter outside ASCII", variables={"HF_TOKEN": "hf_café"}),
        Case("HF_ENDPOINT without http://", variables={"HF_ENDPOINT": "{host}"}),
        Case("offline, cached, a SOCKS proxy", variables=SOCKS | OFFLINE, cached=True),
        Case("offline, cached, no SSL_CERT_FILE", variables=NO_CERTIFICATES | OFFLINE, cached=True),
        Case("offline, cached, bad timeouts", variables=NO_NUMBER | OFFLINE, cached=True),
        # Xet.
        Case(
            "Xet's server refuses connections",
            changes(of_api(xet_token, "/xet-read-token/"), of=with_xet),
            XET_ON,
            xet=True,
        ),
        Case(
            "Xet's token never comes",
            changes(of_api(xet_token, "/xet-read-token/"), of=with_hanging_xet),
            XET_ON,
            xet=True,
        ),
        # Older clients.
        Case("the oldest client that is allowed", variables=OLDEST, build=oldest_client),
        Case(
            "the oldest client, with Xet", with_xet, OLDEST | XET_ON, build=oldest_client, xet=True
        ),
        # A hub that cannot be reached.
        Case("a hub that never answers, cached", faults(hang().on(times=None)), cached=True),
        Case(
            "a hub that never answers, 5 models cached",
            faults(hang().on(times=None)),
            cached=True,
            others=OTHERS,
        ),
        Case("resets before every answer, cached", faults(reset().on(times=None)), cached=True),
        Case("503 from everything, cached", faults(status(503).on(times=None)), cached=True),
        Case("one reset of an answer", faults(reset().on("/tree/"), reset().on(WEIGHTS))),
        Case("one 503", faults(status(503).on("/tree/"), status(503).on(WEIGHTS))),
        # Failures that stay.
        Case("410 for a file, always", faults(status(410).on(WEIGHTS, host="cdn", times=None))),
        Case("404 for a file, always", faults(status(404).on(WEIGHTS, host="cdn", times=None))),
        Case("a page for a file, always", faults(html().on(WEIGHTS, host="cdn", times=None))),
        Case("half of the JSON, always", faults(malformed_json().on("/tree/", times=None))),
        Case("redirects in a loop", faults(redirect_loop().on(WEIGHTS))),
        # What a status code says.
        Case("401 that is not the hub's", changes(of_api(page(401)))),
        Case("404 that is not the hub's", changes(of_api(page(404)))),
        Case("403 for a signed address, once", faults(expired().on(host="cdn"))),
        Case("one 403 of a guard", faults(status(403).on(WEIGHTS, host="cdn"))),
        Case("https that redirects to http", tls="hub only"),
        *(Case(f"a mirror: {name}", changes(change)) for name, change in MIRRORS.items()),
        Case('a mirror: "gated": null, "id": null', changes(described(gated=None, id=None))),
        # Names.
        Case(
            r"a file named plots\loss.png",
            files=LITTLE | {"plots\\loss.png": b"png"},
            spared=frozenset({"plots\\loss.png"}),
        ),
        Case(
            "the same, left out with --exclude",
            files=LITTLE | {"plots\\loss.png": b"png"},
            spared=frozenset({"plots\\loss.png"}),
            options=("--exclude", "plots*"),
        ),
        Case(
            "a file name with a tab",
            files=LITTLE | {"a\tb.txt": b"tab"},
            spared=frozenset({"a\tb.txt"}),
        ),
        # Being asked to wait.
        Case("429 for 5 s, RateLimit", changes(limited("/tree/", "RateLimit"))),
        Case("429 for 5 s, Retry-After", changes(limited("/revision/", "Retry-After"))),
        Case("429 for 5 s, for a file", changes(limited(WEIGHTS, "Retry-After"))),
        Case(
            "429 for 5 s, a date of a clock an hour late",
            changes(limited("/tree/", "Retry-After", wrong_by=-3600)),
        ),
        Case(
            "429 for 5 s, a date of a clock an hour early",
            changes(limited("/tree/", "Retry-After", wrong_by=3600)),
        ),
        # Several models, and what the disk refuses.
        Case("one of 5 models is gone", without_one, others=OTHERS),
        Case("one of 5 models is gone, cached", without_one, others=OTHERS, cached=True),
        Case(
            "a quota is used up (EDQUOT)",
            variables={"LD_PRELOAD": "{folder}/quota.so"},
            build=quota,
            tool="gcc",
        ),
        Case("a lock that root has left, another user", tool="setpriv", locked=True),
        # Other repos, and many files.
        Case("a dataset", kind="dataset"),
        Case("a space", kind="space"),
        Case("500 files of 10 KB", files=MANY, busy=True),
        # What stands in front.
        Case("a company's own CA", tls="private CA"),
        Case("a certificate of somebody else", tls="another CA"),
        Case("a proxy with a password", front="proxy"),
        Case("a proxy with a password, TLS", tls="private CA", front="proxy"),
        Case("a proxy, the password missing", front="proxy without its password"),
    )


CASES = {case.name: case for case in cases()}
