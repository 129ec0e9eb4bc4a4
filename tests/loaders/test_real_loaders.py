"""What is `cached` loads offline with the library it was made for, and what is not does not."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.commands import Vlmcache
from tests.kit.hub import LoopbackHub
from tests.loaders.made import CASES, Case, files_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

TOO_LITTLE = {
    "tokenizer_config.json": "the tokenizer is then guessed, and may be another",
    "config_sentence_transformers.json": "prompts and the similarity are then the library's own",
    "sentence_bert_config.json": "the longest input is then the library's own",
    "lora/adapter_config.json": "other weights, which a program may load by their folder",
    "lora/adapter_model.safetensors": "the same",
}
"""Files, by path or name, that status may call needed although this loader manages without."""
LISTED = {
    ("chat templates", "README.md"): "the client then refuses the snapshot, whose listing names it",
    ("chat templates", "picture.png"): "the same: transformers asks it for the further templates",
    ("sentence-transformers", "chat_template.jinja"): "a template, which the made model insists on",
}
"""Files that nothing needs and without which this loader fails all the same."""
ALONG = re.compile(r"chat_template\.jinja$|additional_chat_templates/|generation_config\.json$")
"""Files that a pull fetches along, and without which a model is cached: what it is lets it load."""


class Loader:
    """A process that loads models from a cache, offline."""

    def __init__(self, cache: Path, scratch: Path, libraries: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.loaders.server", *libraries],
            cwd=Path(__file__).parents[2],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(scratch),
                "HF_HOME": str(scratch / "hf"),
                "HF_HUB_CACHE": str(cache),
                "HF_MODULES_CACHE": str(scratch / "modules"),
                "HF_HUB_OFFLINE": "1",
                "LANG": "C.UTF-8",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, program: str) -> dict[str, Any]:
        """Return `answer` or `error` of a program."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(program) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            return {"error": "the loader died"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Take a snapshot's link away for a while."""
    target = path.readlink()
    path.unlink()
    try:
        yield
    finally:
        path.symlink_to(target)


def made(name: str, tmp_path: Path) -> tuple[Case, dict[str, dict[str, bytes]]]:
    """Return a case and its repositories, made by a process that keeps the libraries to itself."""
    case = CASES[name]
    for library in case.needs:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}: pip install -e '.[test,load,full]'")
    folder = tmp_path / "made"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.loaders.made", name, str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    repos = [path for path in folder.glob("org/*") if path.is_dir()]
    return case, {f"org/{path.name}": files_of(path) for path in repos}


def state_of(vlmcache: Vlmcache, repo: str = "org/model") -> dict[str, Any]:
    (model,) = vlmcache("status", repo, "--json").document["models"]
    return dict(model)


@pytest.mark.parametrize("name", CASES)
def test_what_a_pull_brought_is_cached_and_loads_and_each_file_decides_alike(
    name: str, tmp_path: Path, vlmcache: Vlmcache
) -> None:
    case, repos = made(name, tmp_path)
    with LoopbackHub() as hub:
        for repo, files in repos.items():
            hub.add_repo(repo).commit(files | {"README.md": b"# A model", "picture.png": b"png"})
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        done = vlmcache("pull", "org/model", "--yes", "--json", **online)
        assert done.code == 0, done.out + done.err
        assert vlmcache("status", "org/model", "--check").code == 0
        before = len(hub.requests)
        again = vlmcache("pull", "org/model", "--yes", "--json", **online)
        assert again.code == 0
        assert len(hub.requests) - before <= len(repos)
    loader = Loader(tmp_path / "hub", tmp_path / "scratch", case.needs)
    (snapshot,) = (tmp_path / "hub" / "models--org--model" / "snapshots").iterdir()
    wrong = []
    try:
        whole = loader(case.load)
        assert "answer" in whole, whole
        for path in sorted(snapshot.rglob("*")):
            if not path.is_symlink():
                continue
            file = path.relative_to(snapshot).as_posix()
            with away(path):
                state = state_of(vlmcache)["state"]
                loads = loader(case.load) == whole
                if ALONG.match(file):
                    loads = "answer" in loader(case.load)
                if (
                    (state == "cached") != loads
                    and (name, file) not in LISTED
                    and not (loads and {file, path.name} & TOO_LITTLE.keys())
                ):
                    wrong.append(f"{file}: {state}, and it {'loads' if loads else 'does not load'}")
        for repo in repos:
            if repo != "org/model":
                folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
                folder.rename(tmp_path / "elsewhere")
                assert "answer" not in loader(case.load)
                assert state_of(vlmcache)["state"] != "cached"
                assert vlmcache("status", "org/model", "--check").code == 4
                (tmp_path / "elsewhere").rename(folder)
    finally:
        loader.close()
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", CASES)
def test_what_the_library_itself_downloaded_is_cached(
    name: str, tmp_path: Path, vlmcache: Vlmcache
) -> None:
    case, repos = made(name, tmp_path)
    with LoopbackHub() as hub:
        for repo, files in repos.items():
            hub.add_repo(repo).commit(files | {"README.md": b"# A model", "picture.png": b"png"})
        environment = hub.environment(tmp_path / "hub") | {
            "HF_MODULES_CACHE": str(tmp_path / "scratch" / "modules")
        }
        prelude = "from tests.loaders.server import summed\n"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", prelude + case.load],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    model = state_of(vlmcache)
    assert model["state"] == "cached", model
