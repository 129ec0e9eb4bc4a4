"""The command that installs a package fits how vlmcache was installed, and runs in a shell."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlmcache.installing import Installation, install_package, installation, read_installation

ODD = "a folder's $HOME"


def made_up(
    folder: Path, *, direct_url: Any = None, installer: str | None = "pip", mark: str | None = None
) -> Installation:
    """Return what is read of an installation, whose environment is the folder."""
    package = folder / "site" / "vlmcache-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Name: vlmcache\nVersion: 1.0\n")
    if installer is not None:
        (package / "INSTALLER").write_text(f"{installer}\n")
    if direct_url is not None:
        text = direct_url if isinstance(direct_url, str) else json.dumps(direct_url)
        (package / "direct_url.json").write_text(text)
    if mark is not None:
        (folder / mark).touch()
    python = str(folder / "bin" / "python")
    read = read_installation(importlib.metadata.PathDistribution(package))
    return read._replace(prefix=str(folder), python=python, has_pip=True)


@pytest.fixture
def other_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `pip` be that of another interpreter."""
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "pip").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "else"))


pytestmark = pytest.mark.usefixtures("other_pip")


def editable(folder: Path) -> dict[str, Any]:
    return {"url": folder.as_uri(), "dir_info": {"editable": True}}


def test_a_checkout_is_installed_again_from_its_folder(tmp_path: Path) -> None:
    checkout = tmp_path / ODD
    made = made_up(tmp_path / ODD / "env", direct_url=editable(checkout))
    python = f"{checkout}/env/bin/python"
    words = [python, "-m", "pip", "install", "-e", f"{checkout}[load]"]
    assert shlex.split(made.with_extra("load")) == words


@pytest.mark.parametrize("name", ["source", "vlmcache-1.0-py3-none-any.whl"])
def test_a_folder_or_wheel_is_installed_again_as_long_as_it_is_there(
    tmp_path: Path, name: str
) -> None:
    place = tmp_path / ODD / name
    place.mkdir(parents=True)
    made = made_up(tmp_path / "env", direct_url={"url": place.as_uri(), "dir_info": {}})
    begin = [f"{tmp_path}/env/bin/python", "-m", "pip", "install"]
    there = [*begin, f"vlmcache[load] @ {place.as_uri()}"]
    assert shlex.split(made.with_extra("load")) == there
    place.rmdir()
    assert shlex.split(made.with_extra("load")) == [*begin, "vlmcache[load]"]


def test_a_commit_of_a_repository_is_installed_again(tmp_path: Path) -> None:
    said = {"url": "https://x.example/v.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    made = made_up(tmp_path, direct_url=said)
    wanted = "vlmcache[s3] @ git+https://x.example/v.git@abc"
    assert shlex.split(made.with_extra("s3"))[-1] == wanted


@pytest.mark.parametrize("direct_url", [None, "{", "[]", '{"url": 5, "vcs_info": 3}', "null"])
def test_what_came_from_an_index_or_is_not_known_is_installed_from_one(
    tmp_path: Path, direct_url: str | None
) -> None:
    made = made_up(tmp_path, direct_url=direct_url, installer=None)
    command = f"{tmp_path}/bin/python -m pip install 'vlmcache[load]'"
    assert made.with_extra("load") == command


def test_pip_alone_is_named_only_if_it_is_this_interpreters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_up(tmp_path)
    assert made.package("einops") == f"{tmp_path}/bin/python -m pip install einops"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    command = "pip install 'x>1' --index-url https://h"
    assert made.package("x>1", "--index-url", "https://h") == command


def test_pipx_changes_its_own_environment(tmp_path: Path) -> None:
    made = made_up(tmp_path / "index", mark="pipx_metadata.json")
    assert made.with_extra("load") == "pipx install --force 'vlmcache[load]'"
    assert made.package("einops") == "pipx runpip vlmcache install einops"
    checkout = made_up(
        tmp_path / "checkout", mark="pipx_metadata.json", direct_url=editable(tmp_path)
    )
    command = f"pipx install --force --editable {shlex.quote(f'{tmp_path}[load]')}"
    assert checkout.with_extra("load") == command


def test_uv_changes_its_own_environments(tmp_path: Path) -> None:
    tool = made_up(tmp_path / "tool", installer="uv", mark="uv-receipt.toml")
    tool = tool._replace(has_pip=False)
    assert tool.with_extra("load") == "uv tool install 'vlmcache[load]'"
    python = f"{tmp_path}/tool/bin/python"
    assert tool.package("einops") == f"uv pip install --python {python} einops"
    made = made_up(tmp_path / "env", installer="uv")._replace(has_pip=False)
    python = f"{tmp_path}/env/bin/python"
    assert made.with_extra("load") == f"uv pip install --python {python} 'vlmcache[load]'"


def test_where_there_is_no_pip_it_is_made_first(tmp_path: Path) -> None:
    made = made_up(tmp_path)._replace(has_pip=False)
    python = f"{tmp_path}/bin/python"
    command = f"{python} -m ensurepip && {python} -m pip install einops"
    assert made.package("einops") == command


def test_what_root_has_installed_for_everybody_is_changed_by_root(tmp_path: Path) -> None:
    made = made_up(tmp_path)._replace(is_anothers=True)
    python = f"sudo {tmp_path}/bin/python"
    assert made.package("einops") == f"{python} -m pip install einops"
    command = f"{python} -m ensurepip && {python} -m pip install einops"
    assert made._replace(has_pip=False).package("einops") == command


@pytest.mark.skipif(not installation().has_pip, reason="needs pip in this environment")
def test_the_command_for_this_environment_runs_in_a_shell() -> None:
    command = install_package("--dry-run", "--no-index", "--no-deps", "--quiet", "pytest")
    environment = {**os.environ, "PATH": os.defpath}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert shlex.split(command)[0] == sys.executable
