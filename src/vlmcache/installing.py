"""How vlmcache was installed, and the command that therefore adds a package to it."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from importlib.metadata import Distribution

NAME = "vlmcache"


class Installation(NamedTuple):
    """How a package was installed, as the files next to it record it."""

    prefix: str = sys.prefix
    python: str = sys.executable
    installer: str = "pip"
    """The program, as INSTALLER names it (the packaging guide's "recording installed projects")."""
    origin: str = ""
    """The address in direct_url.json (PEP 610), with its revision; empty if from an index."""
    editable: bool = False
    """Whether the source itself is imported."""
    has_pip: bool = True
    """Whether the interpreter has pip."""
    is_anothers: bool = False
    """Whether this is a virtual environment that this user cannot write to, such as root's."""

    def with_extra(self, name: str) -> str:
        """Return the command that installs vlmcache with one of its extras: `load`, `s3`, …."""
        wanted = f"{NAME}[{name}]"
        if self.editable:
            wanted = f"{_path_of(self.origin)}[{name}]"
        elif self.origin and _exists(self.origin):
            wanted = f"{wanted} @ {self.origin}"
        words = ["--editable", wanted] if self.editable else [wanted]
        if self._has("pipx_metadata.json"):
            return shlex.join(["pipx", "install", "--force", *words])
        if self._has("uv-receipt.toml"):
            return shlex.join(["uv", "tool", "install", *words])
        return self.package(*(["-e", wanted] if self.editable else words))

    def package(self, *words: str) -> str:
        """Return the command that installs packages next to vlmcache.

        Args:
            words: what pip is to install, and its options.
        """
        if self._has("pipx_metadata.json"):
            return shlex.join(["pipx", "runpip", NAME, "install", *words])
        uv = self._has("uv-receipt.toml") or self.installer == "uv" or shutil.which("uv")
        if not self.has_pip and uv:
            return shlex.join(["uv", "pip", "install", "--python", self.python, *words])
        sudo = ["sudo"] if self.is_anothers else []
        if not self.has_pip:
            python = shlex.join([*sudo, self.python])
            return f"{python} -m ensurepip && {python} -m pip install {shlex.join(words)}"
        pip = shutil.which("pip")
        own = pip is not None and os.path.dirname(pip) == os.path.dirname(self.python)
        # sudo looks for `pip` on a PATH of its own.
        program = ["pip"] if own and not sudo else [*sudo, self.python, "-m", "pip"]
        return shlex.join([*program, "install", *words])

    def _has(self, name: str) -> bool:
        return os.path.exists(os.path.join(self.prefix, name))


def _path_of(address: str) -> str:
    """Return the path that a `file:` address means."""
    from urllib.request import url2pathname  # only for hints

    return url2pathname(urlsplit(address).path)


def _exists(address: str) -> bool:
    """Return whether a `file:` address leads to something; other addresses are taken to."""
    return urlsplit(address).scheme != "file" or os.path.exists(_path_of(address))


def read_installation(distribution: Distribution) -> Installation:
    """Return how a distribution was installed; from an index, if that cannot be read."""
    installer = (distribution.read_text("INSTALLER") or "pip").strip()
    has_pip = importlib.util.find_spec("pip") is not None
    try:
        direct_url = json.loads(distribution.read_text("direct_url.json") or "{}")
        origin, version = str(direct_url.get("url", "")), direct_url.get("vcs_info", {})
        if version:
            origin = f"{version['vcs']}+{origin}@{version['commit_id']}"
        editable = bool(direct_url.get("dir_info", {}).get("editable"))
    except (ValueError, LookupError, AttributeError, TypeError):
        origin, editable = "", False
    return Installation(
        installer=installer,
        origin=origin,
        editable=editable,
        has_pip=has_pip,
        is_anothers=sys.prefix != sys.base_prefix and not os.access(sys.prefix, os.W_OK),
    )


@lru_cache(maxsize=1)
def installation() -> Installation:
    """Return how this vlmcache was installed."""
    from importlib.metadata import PackageNotFoundError, distribution  # only for hints: 10 ms

    try:
        return read_installation(distribution(NAME))
    except PackageNotFoundError:  # imported from a folder on sys.path
        return Installation(has_pip=importlib.util.find_spec("pip") is not None)


def install_extra(name: str) -> str:
    """Return the command that installs vlmcache with one of its extras, as it was installed."""
    return installation().with_extra(name)


def install_package(*words: str) -> str:
    """Return the command that installs packages next to vlmcache, as it was installed."""
    return installation().package(*words)
