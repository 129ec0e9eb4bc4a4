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

from tests.kit import forks
from tests.kit.caches import CacheBuilder
from tests.kit.contents import Content
from tests.kit.models import CONFIGS, HAS_TORCH

MAKE = """
import json, sys
from vlmcache.load import synthetic
for folder, config in json.loads(sys.argv[1]).items():
    synthetic.make_model(folder, config)
"""


ROOT = Path(__file__).parents[2]
COMMAND_LINE = "from vlmcache.cli.main import main; main()"


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

    def torch(self, code: str, *arguments: str, **more: str) -> str:
        """Run Python code in a process that has imported torch and transformers already.

        Children of load tests that it starts are such processes too.
        """
        environment = self.environment | {"PYTHONPATH": str(ROOT)} | more
        done = forks.finished(code, *arguments, environment=environment, folder=self.root)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def forked_vlmcache(
        self, *arguments: str, without: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line in such a process, which finds some packages not installed."""
        environment = self.environment | {forks.WITHOUT: without} | more
        return forks.finished(COMMAND_LINE, *arguments, environment=environment, folder=self.root)

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


def program(name: str) -> str:
    """Return the text of a program next to this file."""
    return Path(__file__).with_name(name).read_text()


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
    made = forks.finished(MAKE, json.dumps(folders), environment=dict(os.environ), folder=root)
    assert made.returncode == 0, made.stderr
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
