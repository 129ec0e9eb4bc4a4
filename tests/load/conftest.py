"""A cache of tiny models, made once; and vlmcache run as a process on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder
from tests.kit.contents import Content
from tests.kit.models import CONFIGS, HAS_TORCH

MAKE = """
import json, sys
from vlmcache.load import synthetic
for folder, config in json.loads(sys.argv[1]).items():
    synthetic.make(folder, config)
"""


@dataclass
class World:
    """A hub cache, and the folders that processes are pointed at."""

    root: Path
    cache: CacheBuilder
    made: dict[str, dict[str, Content]]

    @property
    def environment(self) -> dict[str, str]:
        """The variables for a process that works on this cache and on nothing of the user's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return kept | {
            "HF_HOME": str(self.root / "hf"),
            "VLMCACHE_HOME": str(self.root / "own"),
            "HF_HUB_OFFLINE": "1",
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "NO_COLOR": "1",
        }

    def vlmcache(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the command line, with further variables."""
        return subprocess.run(
            [sys.executable, "-m", "vlmcache", *arguments],
            env=self.environment | more,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def document(self, *arguments: str, **more: str) -> tuple[int, dict[str, Any]]:
        """Run the command line with `--json` and return its exit code and document."""
        done = self.vlmcache(*arguments, "--json", **more)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def python(self, code: str, *arguments: str, **more: str) -> str:
        """Run Python code with arguments and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=self.environment | {"PYTHONPATH": os.getcwd()} | more,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def without(self, *packages: str) -> dict[str, str]:
        """Return variables under which Python finds these packages not installed."""
        folder = self.root / ("without-" + "-".join(packages))
        folder.mkdir(exist_ok=True)
        blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in packages)
        (folder / "sitecustomize.py").write_text(f"import sys\n{blocked}")
        return {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


def make_world(root: Path, made: dict[str, dict[str, Content]]) -> World:
    for name in ("hf", "own", "config"):
        (root / name).mkdir()
    return World(root, CacheBuilder(root / "hf" / "hub"), made)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Content]]:
    """The files of a tiny model of each architecture."""
    if not HAS_TORCH:
        pytest.skip("needs torch and transformers: pip install 'vlmcache[load]'")
    root = tmp_path_factory.mktemp("models")
    folders = {str(root / name): config for name, config in CONFIGS.items()}
    subprocess.run([sys.executable, "-c", MAKE, json.dumps(folders)], check=True, timeout=240)
    return {name: {file.name: file for file in (root / name).iterdir()} for name in CONFIGS}


@pytest.fixture(scope="session")
def tiny_world(
    tiny_models: dict[str, dict[str, Content]], tmp_path_factory: pytest.TempPathFactory
) -> World:
    """A cache with a tiny model of each architecture, as `tiny/<architecture>`."""
    world = make_world(tmp_path_factory.mktemp("world"), tiny_models)
    for name, files in tiny_models.items():
        world.cache.repo(f"tiny/{name}").revision(files)
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty cache."""
    return make_world(tmp_path, {})
