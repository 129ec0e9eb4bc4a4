"""Pulling in this process, quickly, and what a cache must look like afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.kit.caches import CacheBuilder, Entry, fingerprint
from tests.kit.contents import Content
from tests.kit.hub_process import Hub
from vlmcache.cache import layout
from vlmcache.change.plan import Fetch
from vlmcache.commands.pull.plan import FileSelection
from vlmcache.commands.pull.pull import pull as run_pull
from vlmcache.commands.pull.values import PullOptions, PullReport
from vlmcache.config import (
    CacheLocation,
    Config,
    Environment,
    Limits,
    Session,
    read_environment,
    shipped_config,
)
from vlmcache.hub.retry import Patience
from vlmcache.progress import Progress

QUICK = Patience(
    attempts=4,
    asks=4,
    first_wait=0.01,
    longest_wait=0.05,
    answer_timeout=1.0,
    growth=1.0,
    data_timeout=0.5,
)
REPO = "org/name"


class Listener(Progress):
    """Remembers what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.positions: list[tuple[str, int]] = []

    def moved(self, repo: str, file: str, position: int) -> None:
        self.positions.append((file, position))

    def note(self, text: str) -> None:
        self.notes.append(text)


def variables(hub: Hub, cache: Path, *, token: str | None = None) -> dict[str, str]:
    """Return the environment of a child that pulls."""
    own = cache.parent / f"{cache.name}-own"
    return hub.environment(cache, token=token) | {"VLMCACHE_HOME": str(own)}


def environment(hub: Hub, cache: Path) -> Environment:
    return read_environment(variables(hub, cache), str(cache.parent))


def config(**limits: int) -> Config:
    """Return the shipped models as if the user had configured them, with limits of our own.

    No free space is asked for.
    """
    bounds = Limits(**({"min_free": 0} | limits))
    return msgspec.structs.replace(shipped_config(), limits=bounds, shipped=False)


def pull(
    hub: Hub,
    cache: Path,
    *names: str,
    selection: FileSelection | None = None,
    patience: Patience = QUICK,
    progress: Progress | None = None,
    limits: Mapping[str, int] | None = None,
    extra: Mapping[str, str] | None = None,
    **options: Any,
) -> PullReport:
    """Pull in this process; `org/name` by default."""
    where = environment(hub, cache)
    if extra:
        where = msgspec.structs.replace(where, variables=where.variables | dict(extra))
    return run_pull(
        Session(where, config(**(limits or {})), CacheLocation(str(cache), "test")),
        names or (REPO,),
        PullOptions(selection=selection or FileSelection(), **options),
        progress,
        patience,
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vlmcache", *arguments]


def vlmcache(
    hub: Hub, cache: Path, *arguments: str, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a child, with nothing of ours in its environment."""
    return subprocess.run(
        command(*arguments),
        env=variables(hub, cache) | {"VLMCACHE_CONFIG": str(small_config(cache.parent))} | extra,
        cwd=cache.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def client_finds(hub: Hub, cache: Path, repo: str, kind: str = "model") -> str:
    """Return where the real client finds a repo, without a network."""
    script = (
        "import sys\nfrom huggingface_hub import snapshot_download\n"
        "print(snapshot_download(sys.argv[1], repo_type=sys.argv[2], local_files_only=True))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, repo, kind],
        env=variables(hub, cache),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def small_weights(size: int = 500) -> bytes:
    """Return a safetensors file of one tensor of so many bytes."""
    header = b'{"a": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]}}' % (size, size)
    return len(header).to_bytes(8, "little") + header + b"w" * size


def small_config(folder: Path) -> Path:
    """Write a config.yaml whose limits no test machine breaks."""
    path = folder / "small-config.yaml"
    if not path.exists():
        path.write_text(
            "models:\n  one: {model_path: org/name}\n  two: {model_path: org/two}\n"
            "vlmcache:\n  min_free: 0\n"
        )
    return path


def expected(
    folder: Path,
    files: Mapping[str, Content],
    *,
    repo: str = REPO,
    refs: Iterable[str] = ("main",),
    downloaded: Collection[str] | None = None,
    **options: Any,
) -> dict[str, Entry]:
    """Return the fingerprint of the cache that the real client would leave."""
    builder = CacheBuilder(folder)
    builder.repo(repo).revision(files, refs, downloaded=downloaded, **options)
    return fingerprint(folder)


def content(cache: Path) -> dict[str, Entry]:
    """Return the fingerprint of what an interrupted run and the next one leave together.

    Without temporaries; and without locks, which say nothing of what is there, and which the hub's
    client makes in two steps.
    """
    return {
        name: entry
        for name, entry in fingerprint(cache).items()
        if not layout.is_temporary(Path(name).name) and not name.startswith(layout.LOCKS)
    }


def lies(cache: Path) -> list[str]:
    """Return what is under a good name without being good: this must never be anything.

    A blob whose content is not what its name says, and a ref to a commit with a missing file.
    """
    import hashlib

    found: list[str] = []
    for blob in cache.glob("models--*/blobs/*"):
        if blob.name.endswith((".incomplete", ".new")):
            continue
        if layout.is_blob_name(blob.name) and not layout.is_etag(blob.name):
            continue  # A mirror's own name, which says nothing of the content.
        data = blob.read_bytes()
        right = (
            hashlib.sha256(data).hexdigest()
            if len(blob.name) == 64
            else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )
        if right != blob.name:
            found.append(f"wrong blob {blob}")
    for refs in cache.glob("models--*/refs"):
        for ref in refs.rglob("*"):
            if not ref.is_file() or layout.is_temporary(ref.name):
                continue
            # A ref may have folders above it: refs/pr/1.
            snapshot = refs.parent / "snapshots" / ref.read_text()
            if not snapshot.is_dir() or not any(snapshot.iterdir()):
                found.append(f"empty ref {ref}")
    links = (path for path in cache.glob("models--*/snapshots/*/**/*") if path.is_symlink())
    return found + [f"dangling {link}" for link in links if not os.path.exists(link)]


def fetches(run: PullReport) -> dict[str, Fetch]:
    """Return what a run's plan fetches, by file name."""
    return {action.file: action for action in run.plan.actions if isinstance(action, Fetch)}
