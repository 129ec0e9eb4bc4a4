"""The pictures of the README: real commands in a real terminal, on a small cache and a hub here.

The models have the shape of the real ones and a few megabytes of weights.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from docs.terminal import Terminal
from tests.kit.caches import model_files
from tests.kit.hub import LoopbackHub, slow

FOLDER = Path(__file__).with_name("pictures")
COLUMNS = 108
HOME = "/home/you"
MODELS = {
    "stepfun-ai/GOT-OCR2_0": ("got_ocr2", 700_000, 1),
    "Qwen/Qwen2-VL-2B-Instruct": ("qwen2_vl", 12_000_000, 2),
    "Qwen/Qwen2-VL-7B-Instruct": ("qwen2_vl", 12_000_000, 5),
}
CONFIG = """\
models:
  got_ocr: {model_path: stepfun-ai/GOT-OCR2_0, precision: fp16}
  qwen_vl_2b: {model_path: Qwen/Qwen2-VL-2B-Instruct, precision: fp16, expected_size: 4.43GB}
  qwen_vl_7b: {model_path: Qwen/Qwen2-VL-7B-Instruct, precision: fp16, expected_size: 16.6GB}
vlmcache: {min_free: 1GB, comfortable_free: 2GB}
"""
LOAD_TEST = "vlmcache load-test --synthetic tiny --save before.json"
LOAD_REPORT = FOLDER / "load-test.json"
SHOW_REPORT = (
    "import sys; from vlmcache.load.saved import read_report; "
    "from vlmcache.load.view import show; show(read_report(sys.argv[1]))"
)
Wanted: TypeAlias = Callable[[str], bool] | None
SHARD = "model-00002-of-00002.safetensors"


class Stage:
    """A home with a configuration, a hub, and terminals in it."""

    def __init__(self, home: Path, hub: LoopbackHub) -> None:
        self.home = home
        self.hub = hub
        self.hubs_cache = home / ".cache" / "huggingface" / "hub"
        self.work = home / "work"
        self.work.mkdir()
        (self.work / "config.yaml").write_text(CONFIG)
        for repo, (kind, parameters, shards) in MODELS.items():
            hub.add_repo(repo).commit(model_files(parameters, shards, kind))
        self.environment = {
            "HOME": str(home),
            "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "LANG": "C.UTF-8",
        }

    def terminal(self, columns: int = COLUMNS) -> Terminal:
        """Open a terminal in the working folder."""
        renames = {str(self.home): HOME}
        return Terminal(self.environment, self.work, columns, renames)

    def quietly(self, *arguments: str) -> None:
        """Run `vlmcache` before the curtain opens."""
        subprocess.run(
            [sys.executable, "-m", "vlmcache", *arguments],
            env=self.environment,
            cwd=self.work,
            check=True,
            capture_output=True,
        )

    def empty(self) -> None:
        """Let nothing be cached or remembered."""
        self.hub.clear_faults()
        self.hub.clear_requests()
        shutil.rmtree(self.home / ".cache", ignore_errors=True)


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """Build the stage in a temporary home."""
    home = _home()
    try:
        with LoopbackHub() as hub:
            yield Stage(home, hub)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _home() -> Path:
    """Make a folder whose path is as long as the one that is shown, so that lines break alike."""
    above = "/tmp/"  # noqa: S108  the folder is ours alone, or not made
    while True:
        path = Path(above + secrets.token_hex(len(HOME))[: len(HOME) - len(above)])
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path


def change_a_byte(at: Stage) -> None:
    """Damage the second part of qwen_vl_2b, its length unchanged."""
    blob = next(at.hubs_cache.glob(f"models--Qwen*/snapshots/*/{SHARD}")).resolve()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"!")


def draw_status(at: Stage, _wanted: Wanted) -> str:
    """One model cached, one cut short, one missing."""
    at.quietly("pull", "got_ocr")
    at.quietly("pull", "qwen_vl_2b", "--exclude", SHARD)
    terminal = at.terminal()
    terminal.run("vlmcache status")
    return terminal.svg("vlmcache status")


def draw_pull(at: Stage, _wanted: Wanted) -> str:
    """A download that is interrupted and goes on."""
    at.hub.fault(slow(4_000_000))
    terminal = at.terminal()

    def is_half_way(text: str) -> bool:
        return "MB/s" in text and at.hub.bytes_sent(SHARD) > 5_000_000

    terminal.run("vlmcache pull qwen_vl_2b", until=is_half_way, keys="\x03")
    at.hub.clear_faults()
    terminal.run("vlmcache pull qwen_vl_2b")
    return terminal.svg("vlmcache pull qwen_vl_2b")


def draw_rm(at: Stage, _wanted: Wanted) -> str:
    """The plan, the question, and what came of it."""
    at.quietly("pull", "qwen_vl_2b")
    terminal = at.terminal()
    terminal.run("vlmcache rm qwen_vl_2b", until=lambda text: text.endswith("[y/N]"), keys="y\n")
    return terminal.svg("vlmcache rm qwen_vl_2b")


def draw_verify(at: Stage, _wanted: Wanted) -> str:
    """One changed byte, found and mended."""
    at.quietly("pull", "qwen_vl_2b")
    change_a_byte(at)
    terminal = at.terminal()
    terminal.run("vlmcache verify --repair")
    return terminal.svg("vlmcache verify --repair")


def draw_watch(at: Stage, wanted: Wanted) -> str:
    """A download that another process is busy with."""
    at.quietly("pull", "got_ocr")
    at.hub.fault(slow(1_500_000).on("model-00001-of-00002.safetensors"))
    drawn: list[str] = []
    terminal = at.terminal()
    advancing = re.compile(r"00001-of-00002.* [kM]B/s +\d+ s +vlmcache \(")

    def is_there(text: str) -> bool:
        if wanted is not None:
            return wanted(text)
        return "full in" in text and advancing.search(text) is not None

    pull = subprocess.Popen(
        [sys.executable, "-m", "vlmcache", "pull", "qwen_vl_2b", "--max-workers", "1"],
        env=at.environment,
        cwd=at.work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        terminal.run(
            "vlmcache watch",
            until=is_there,
            keys="q",
            shot=lambda: drawn.append(terminal.svg("vlmcache watch")),
        )
    finally:
        pull.kill()
        pull.wait()
    return drawn[0]


def draw_load_test(at: Stage, _wanted: Wanted) -> str:
    """Cold and warm loads of the smallest model; the report is kept beside the picture."""
    terminal = at.terminal()
    terminal.run(LOAD_TEST)
    shutil.copyfile(at.work / "before.json", LOAD_REPORT)
    return terminal.svg(LOAD_TEST)


def draw_saved_load_test(at: Stage) -> str:
    """Return the picture of the load test as its report would be shown now."""
    terminal = at.terminal()
    terminal.run(f"python -c '{SHOW_REPORT}' {LOAD_REPORT}", typed=LOAD_TEST)
    return terminal.svg(LOAD_TEST)


PICTURES: dict[str, Callable[[Stage, Wanted], str]] = {
    "status": draw_status,
    "pull": draw_pull,
    "watch": draw_watch,
    "verify": draw_verify,
    "rm": draw_rm,
    "load-test": draw_load_test,
}
"""Name of each picture -> what draws it.

A live screen is drawn at the moment at which its text is as wanted.
"""


def draw(name: str, at: Stage, wanted: Wanted = None) -> str:
    """Return one picture as SVG, made now."""
    at.empty()
    return PICTURES[name](at, wanted)
