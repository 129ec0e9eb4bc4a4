"""A private cache on top of an admin's, as `attach` and `detach` find them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.kit.caches import CacheBuilder, Entry, fingerprint
from vlmcache import Cache
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo, State

WEIGHTS = b"weights " * 4000
FILES: dict[str, bytes] = {
    "config.json": b'{"model_type": "x", "architectures": ["X"]}',
    "model.safetensors": WEIGHTS,
    "sub/more.json": b'{"more": 1}',
}
NEWER: dict[str, bytes] = {**FILES, "config.json": b'{"model_type": "x", "new": true}'}
CONFIG = "vlmcache:\n  min_free: 0\n"


class Based:
    """An empty private cache, and a base that another one may have filled.

    Args:
        folder: an empty folder for both.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = CacheBuilder(folder / "base")
        self.root = folder / "private" / "hub"
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG)
        self.settled: dict[str, Entry] = {}

    def fill(self, name: str = "org/one", files: Mapping[str, bytes] = FILES) -> str:
        """Let the base have a model, and return its commit."""
        commit = self.base.repo(name).revision(files)
        self.open_up()
        return commit

    def settle(self) -> None:
        """From here on, nothing in the base may change."""
        self.open_up()
        self.settled = self.base_now()

    def open_up(self) -> None:
        """Let everybody read the base, as its admin does after each download."""
        for path in self.base.root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o444)

    @property
    def cache(self) -> Cache:
        """The private cache."""
        return Cache(self.root, self.config)

    def scan(self) -> CacheState:
        return scan(self.root)

    def repo(self, name: str = "org/one") -> Repo:
        found = self.scan().repo(name)
        assert found is not None
        return found

    def state(self, name: str = "org/one", revision: str = "main") -> State:
        return judge(self.scan().repo(name), revision).state

    def base_now(self) -> dict[str, Entry]:
        """Describe all that the base has."""
        return fingerprint(self.base.root)

    def base_file(self, name: str) -> str:
        """Return the etag of a file of the base's first model."""
        links = (self.base.root / "models--org--one" / "snapshots").glob(f"*/{name}")
        return next(links).readlink().name
