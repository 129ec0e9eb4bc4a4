"""The loopback hub as a process of its own, for tests that fork and so must have no threads."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.kit.contents import Content, Synthetic
from tests.kit.hub import client_environment

_ROOT = Path(__file__).parents[2]


class Hub(Protocol):
    """What a client has to know of a hub."""

    def environment(self, cache_dir: Path | str, *, token: str | None = None) -> dict[str, str]:
        """Return the complete environment for a child process that knows this hub and no other."""


class HubProcess:
    """A hub that another process serves."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self._home = home

    def environment(self, cache_dir: Path | str, *, token: str | None = None) -> dict[str, str]:
        return client_environment(self.url, self._home, cache_dir, token)


@contextlib.contextmanager
def served(repos: Mapping[str, Mapping[str, Content]], *options: str) -> Iterator[HubProcess]:
    """Serve repos until the end, to clients whose sessions are made quickly.

    Args:
        repos: repo id -> file name -> content.
        options: of the hub's command, such as `--no-ranges`.
    """
    with tempfile.TemporaryDirectory(prefix="hub-process-") as folder, _quick_sessions():
        place = Path(folder, "repos")
        for repo, files in repos.items():
            for name, content in files.items():
                path = place / repo / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Synthetic):
                    content.write(path)
                else:
                    path.write_bytes(
                        content if isinstance(content, bytes) else content.read_bytes()
                    )
        command = [sys.executable, "-m", "tests.kit.hub", "--folder", str(place), *options]
        with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield HubProcess(process.stdout.readline().strip(), Path(folder, "home"))
            finally:
                process.terminate()


@contextlib.contextmanager
def _quick_sessions() -> Iterator[None]:
    """Let huggingface_hub make sessions that read no certificates, which takes 0.16 s each time.

    It makes one anew in each forked process, and the hub on loopback speaks plain HTTP.
    """
    # What a child process would else import again and again, as far as a version has it.
    for name in ("_fixes", "_headers", "_runtime", "_shared_blobs"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"huggingface_hub.utils.{name}")
    import filelock  # noqa: F401
    from huggingface_hub.utils import _http

    usual = _http.default_client_factory()
    library: Any = sys.modules[type(usual).__module__.partition(".")[0]]
    hooks = usual.event_hooks
    usual.close()

    def make() -> Any:
        return library.Client(verify=False, event_hooks=hooks, timeout=None)

    _http.set_client_factory(make)
    try:
        yield
    finally:
        _http.set_client_factory(_http.default_client_factory)
