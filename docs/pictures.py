"""The pictures of README and docs: real commands in a real terminal, on a hub here.

For the pictures the models have their true sizes: files of that length full of zeros, but for their
headers. The tests, which compare the words, use models of the same shapes and a few megabytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from docs.terminal import BACKGROUND, FONTS, FOREGROUND, Terminal
from tests.kit.caches import model_files
from tests.kit.contents import Content
from tests.kit.hub import HubRepo, LoopbackHub, slow

FOLDER = Path(__file__).with_name("pictures")
WIDTHS = (80, 120)
HOME = "/home/you"
DRIVE = "/media/you/usb"
"""Another filesystem, as it is shown."""
MODELS = {
    "stepfun-ai/GOT-OCR2_0": ("got_ocr2", 700_000, 1),
    "Qwen/Qwen2-VL-2B-Instruct": ("qwen2_vl", 12_000_000, 2),
    "Qwen/Qwen2-VL-7B-Instruct": ("qwen2_vl", 12_000_000, 5),
}
TRUE_SIZES = {
    "stepfun-ai/GOT-OCR2_0": [1_432_121_416],
    "Qwen/Qwen2-VL-2B-Instruct": [3_988_609_112, 429_441_736],
    "Qwen/Qwen2-VL-7B-Instruct": [
        3_900_233_256,
        3_864_726_320,
        3_864_726_424,
        3_864_733_680,
        1_089_994_880,
    ],
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
NOT_SENT = "Qwen/Qwen2-VL-7B-Instruct"
"""The repo that nothing downloads here: hashing 16 GB for it would take half a minute."""
SHARD = "model-00002-of-00002.safetensors"
HEAD = 4096
WIDTH = 1536
"""The columns of the one matrix in each file of true size."""
MONTHS = 60 * 86_400


class Large(NamedTuple):
    """A file of zeros but for its head."""

    head: bytes
    size: int

    def write(self, path: Path) -> None:
        """Write the head, and let the filesystem allocate the rest."""
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.size)
            file.write(self.head)


class Stage:
    """A home with a configuration, a hub, and terminals in it."""

    def __init__(self, home: Path, hub: LoopbackHub, drive: Path | None, true: bool) -> None:
        self.home = home
        self.hub = hub
        self.drive = drive
        self.true = true
        self.hubs_cache = home / ".cache" / "huggingface" / "hub"
        self.work = home / "work"
        self.work.mkdir()
        self._repos: list[HubRepo] = []
        (self.work / "config.yaml").write_text(CONFIG)
        for repo, (kind, parameters, shards) in MODELS.items():
            files: dict[str, Content] = {**model_files(parameters, shards, kind)}
            weights = self._true_weights(repo) if true else {}
            sent = {
                name: _head(path) if repo == NOT_SENT else path for name, path in weights.items()
            }
            added = hub.add_repo(repo)
            self._repos.append(added)
            stored = added.commits[added.commit(files | sent)]
            for name, path in weights.items():
                stored[name] = dataclasses.replace(stored[name], size=path.stat().st_size)
        self.environment = {
            "HOME": str(home),
            "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "LANG": "C.UTF-8",
        }

    def _true_weights(self, repo: str) -> dict[str, Path]:
        folder = self.home / "weights" / repo
        folder.mkdir(parents=True)
        sizes = TRUE_SIZES[repo]
        places, files = {}, dict[str, Path]()
        for number, size in enumerate(sizes):
            name = "model.safetensors"
            if len(sizes) > 1:
                name = f"model-{number + 1:05}-of-{len(sizes):05}.safetensors"
            rows = (size - HEAD) // (2 * WIDTH)
            length = rows * 2 * WIDTH
            tensor = f"model.layers.{number}.mlp.down_proj.weight"
            described = {"dtype": "F16", "shape": [rows, WIDTH], "data_offsets": [0, length]}
            text = json.dumps({tensor: described}).encode().ljust(HEAD - 8)
            with (folder / name).open("wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(HEAD + length)
            files[name], places[tensor] = folder / name, name
        if len(sizes) > 1:
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
            files["model.safetensors.index.json"] = folder / "index.json"
            (folder / "index.json").write_text(json.dumps(index))
        return files

    def terminal(self, columns: int, lines: int = 40) -> Terminal:
        """Open a terminal in the working folder."""
        renames = {str(self.home): HOME}
        if self.drive is not None:
            renames[str(self.drive)] = DRIVE
        return Terminal(self.environment, self.work, columns, renames, lines)

    def quietly(self, *arguments: str) -> None:
        """Run `vlmcache` before the curtain opens."""
        subprocess.run(
            [sys.executable, "-m", "vlmcache", *arguments],
            env=self.environment,
            cwd=self.work,
            check=True,
            capture_output=True,
        )

    @functools.cached_property
    def _pulled(self) -> dict[str, bytes | str | Large]:
        """What a pull of got_ocr and qwen_vl_2b leaves in the hub's cache: path -> content."""
        large = ["--exclude", "*.safetensors"] if self.true else []
        self.quietly("pull", "got_ocr", "qwen_vl_2b", *large)
        pulled: dict[str, bytes | str | Large] = {}
        for path in sorted(self.hubs_cache.rglob("*")):
            name = str(path.relative_to(self.hubs_cache))
            if path.is_symlink():
                pulled[name] = os.readlink(path)
            elif path.is_file():
                pulled[name] = path.read_bytes()
        for repo in self._repos if large else ():
            folder, commit = f"models--{repo.id.replace('/', '--')}", repo.branches["main"]
            for name, file in repo.commits[commit].items():
                if isinstance(file.data, Path) and name.endswith(".safetensors"):
                    pulled[f"{folder}/blobs/{file.etag}"] = Large(_head(file.data), file.size)
                    pulled[f"{folder}/snapshots/{commit}/{name}"] = f"../../blobs/{file.etag}"
        self.empty()
        return pulled

    def fill(self, *names: str) -> None:
        """Let the repos whose names contain one of these be cached, of got_ocr and qwen_vl_2b."""
        for name, content in self._pulled.items() if names else ():
            if any(part in name for part in names):
                path = self.hubs_cache / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, str):
                    path.symlink_to(content)
                elif isinstance(content, Large):
                    content.write(path)
                else:
                    path.write_bytes(content)

    def empty(self) -> None:
        """Let nothing be cached or remembered."""
        self.hub.clear_faults()
        self.hub.clear_requests()
        shutil.rmtree(self.home / ".cache", ignore_errors=True)
        shutil.rmtree(self.home / ".config", ignore_errors=True)
        if self.drive is not None:
            shutil.rmtree(self.drive, ignore_errors=True)
            self.drive.mkdir()

    def scaled(self, size: int) -> int:
        """Return a size, or a rate, as it is for models of these sizes."""
        return size if self.true else size // 180


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


@contextlib.contextmanager
def stage(*, true: bool = False) -> Iterator[Stage]:
    """Build the stage in a temporary home; models have their true sizes only if asked for."""
    home = _folder("/tmp/", HOME)  # noqa: S108  the folder is ours alone, or not made
    drive = _folder("/dev/shm/", DRIVE) if os.path.isdir("/dev/shm") else None  # noqa: S108
    try:
        with LoopbackHub() as hub:
            yield Stage(home, hub, drive, true)
    finally:
        shutil.rmtree(home, ignore_errors=True)
        if drive is not None:
            shutil.rmtree(drive, ignore_errors=True)


def _folder(above: str, shown: str) -> Path:
    """Make a folder whose path is as long as the one that is shown, so that lines break alike."""
    while True:
        path = Path(above + secrets.token_hex(len(shown))[: len(shown) - len(above)])
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path


def change_a_byte(at: Stage) -> None:
    """Damage the second part of qwen_vl_2b, its length unchanged."""
    blob = _second_part(at).resolve()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"!")


def _second_part(at: Stage) -> Path:
    return next(at.hubs_cache.glob(f"models--Qwen*/snapshots/*/{SHARD}"))


def _lose_the_second_part(at: Stage) -> None:
    link = _second_part(at)
    link.resolve().unlink()
    link.unlink()


def _leave_waste(at: Stage) -> None:
    """Leave an old revision and an unfinished download."""
    repo = at.hubs_cache / "models--Qwen--Qwen2-VL-2B-Instruct"
    old, replaced, begun = (
        hashlib.sha256(name.encode()).hexdigest() for name in ("old", "replaced", "begun")
    )
    snapshot = repo / "snapshots" / old[:40]
    snapshot.mkdir()
    sizes = {replaced: 429_441_736, f"{begun}.0123abcd.incomplete": 95_000_000}
    for name, size in sizes.items():
        Large(b"", at.scaled(size)).write(repo / "blobs" / name)
    (snapshot / SHARD).symlink_to(f"../../blobs/{replaced}")
    then = time.time() - MONTHS
    for path in [*(repo / "blobs" / name for name in sizes), snapshot / SHARD, snapshot]:
        os.utime(path, (then, then), follow_symlinks=False)


def _nothing_configured(at: Stage) -> Callable[[], object]:
    """Take the configuration away; return what puts it back."""
    config = at.work / "config.yaml"
    aside = config.rename(at.work / "aside.yaml")
    return lambda: aside.rename(config)


class Screen(NamedTuple):
    """A command that ends by itself, and what is the case before it."""

    command: str
    cached: tuple[str, ...] = ("GOT", "2B")
    prepare: Callable[[Stage], None] | None = None
    until: Callable[[str], bool] | None = None
    keys: str = ""
    first: tuple[str, ...] = ()
    """A command that is run before, unseen."""
    then: tuple[tuple[Callable[[str], bool], str], ...] = ()
    """What is waited for after that, and what is typed there."""

    def draw(self, at: Stage, columns: int, _wanted: Wanted) -> str:
        """Run it and draw what it shows."""
        at.fill(*self.cached)
        if self.prepare is not None:
            self.prepare(at)
        if self.first:
            at.quietly(*(word.replace(DRIVE, str(at.drive)) for word in self.first))
        terminal = at.terminal(columns, 80)
        terminal.run(self.command, until=self.until, keys=self.keys, then=self.then)
        return terminal.svg(self.command)


def asks(text: str) -> bool:
    """Whether a question of yes or no is on the screen."""
    return text.endswith("[y/N]")


def lists(text: str) -> bool:
    """Whether a list is on the screen, and nothing is chosen from it yet."""
    return text.endswith("(Enter leaves):")


def has_chosen(text: str) -> bool:
    """Whether something is chosen from a list, and the next answer is waited for."""
    return text.endswith("(Enter continues):")


def draw_choose(at: Stage, columns: int, _wanted: Wanted) -> str:
    """What `rm` without a name lists, of which one model is configured and the other is chosen."""
    at.fill("GOT", "2B")
    config = at.work / "config.yaml"
    config.write_text(
        "models: {got_ocr: {model_path: stepfun-ai/GOT-OCR2_0}}\n"
        "vlmcache: {min_free: 1GB, comfortable_free: 2GB}\n"
    )
    try:
        terminal = at.terminal(columns, 80)
        terminal.run(
            "vlmcache rm", until=lists, keys="1-2\n", then=((has_chosen, "\n"), (asks, "y\n"))
        )
    finally:
        config.write_text(CONFIG)
    return terminal.svg("vlmcache rm")


def draw_undo(at: Stage, columns: int, _wanted: Wanted) -> str:
    """A removal, what the trash holds then, and how it comes back."""
    at.fill("GOT", "2B")
    terminal = at.terminal(columns, 80)
    terminal.run("vlmcache rm qwen_vl_2b", until=asks, keys="y\n")
    terminal.run("vlmcache trash")
    terminal.run("vlmcache undo")
    return terminal.svg("vlmcache undo")


def draw_pull(at: Stage, columns: int, _wanted: Wanted) -> str:
    """A download that is interrupted and resumed."""
    terminal = at.terminal(columns)
    _pull_twice(at, terminal)
    return terminal.svg("vlmcache pull qwen_vl_2b")


def _pull_twice(at: Stage, terminal: Terminal) -> None:
    at.hub.fault(slow(at.scaled(550_000_000)))

    def is_half_way(text: str) -> bool:
        return "B/s" in text and re.search(r" [3-7]\d%", text) is not None

    terminal.run("vlmcache pull qwen_vl_2b", until=is_half_way, keys="\x03")
    terminal.run("vlmcache pull qwen_vl_2b")
    at.hub.clear_faults()


def draw_session(at: Stage, columns: int, _wanted: Wanted) -> str:
    """What the README shows: status, a pull that Ctrl-C interrupts, the same again, status."""
    at.fill("GOT")
    terminal = at.terminal(columns, 44)
    terminal.run("vlmcache status got_ocr qwen_vl_2b")
    _pull_twice(at, terminal)
    terminal.run("vlmcache status got_ocr qwen_vl_2b")
    return terminal.animated("status, pull, Ctrl-C, pull, status", 1.0, 3.0)


def draw_pull_bars(at: Stage, columns: int, wanted: Wanted) -> str:
    """A download of several models that is under way."""
    at.hub.fault(slow(at.scaled(180_000_000)))
    drawn: list[str] = []
    terminal = at.terminal(columns)

    def is_there(text: str) -> bool:
        if wanted is not None:
            return wanted(text)
        return "B/s" in text and at.hub.bytes_sent() > at.scaled(900_000_000)

    command = "vlmcache pull got_ocr qwen_vl_2b"
    terminal.run(
        command,
        until=is_there,
        keys="\x03",
        shot=lambda: drawn.append(terminal.svg(command)),
    )
    return drawn[0] if drawn else terminal.svg(command)


def draw_watch(at: Stage, columns: int, wanted: Wanted) -> str:
    """A download that another process is busy with."""
    at.fill("GOT")
    part = "model-00001-of-00002.safetensors"
    at.hub.fault(slow(at.scaled(180_000_000)).on(part))
    drawn: list[str] = []
    terminal = at.terminal(columns, 24)

    def is_there(text: str) -> bool:
        if wanted is not None:
            return wanted(text)
        found = re.search(r" [2-7]\d ?%", text)
        return found is not None and ("full in" in text or "downloads are done" in text)

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
    return drawn[0] if drawn else terminal.svg("vlmcache watch")


def draw_load_test(at: Stage, columns: int, _wanted: Wanted) -> str:
    """Cold and warm loads of the smallest model, from the report that is kept with the pictures."""
    terminal = at.terminal(columns)
    terminal.run(f"python -c '{SHOW_REPORT}' {LOAD_REPORT}", typed=LOAD_TEST)
    return terminal.svg(LOAD_TEST)


def draw_init(at: Stage, columns: int, _wanted: Wanted) -> str:
    """What is cached, with nothing configured, and the file that `init` writes of it."""
    at.fill("GOT", "2B")
    put_back = _nothing_configured(at)
    try:
        terminal = at.terminal(columns, 80)
        terminal.run("vlmcache status")
        terminal.run("vlmcache init")
        terminal.run("cat ~/.config/vlmcache/config.yaml")
    finally:
        put_back()
    return terminal.svg("vlmcache init")


def draw_errors(at: Stage, columns: int, _wanted: Wanted) -> str:
    """A name and an option that mean nothing, a file that is not there."""
    at.fill("GOT", "2B")
    terminal = at.terminal(columns)
    for command in (
        "vlmcache rm qwen_vl_2",
        "vlmcache pull qwen_vl_2b --revison main",
        "vlmcache restore models.tar",
    ):
        terminal.run(command)
    return terminal.svg("errors")


def draw_doctor(at: Stage, columns: int, _wanted: Wanted) -> str:
    """All checks, with the names of an environment in the working folder."""
    at.fill("GOT", "2B")
    terminal = at.terminal(columns, 60)
    environment = at.work / ".venv"
    if not environment.exists():
        environment.symlink_to(sys.prefix)
    command = "vlmcache doctor"
    # Waiting for torch takes ten seconds, and what it says is not compared.
    light = "import sys; sys.modules['torch'] = None; from vlmcache.__main__ import main; main()"
    module = "-m vlmcache" if at.true else f'-c "{light}"'
    terminal.run(f"{environment}/bin/python {module} doctor", typed=command)
    return terminal.svg(command)


def draw_serve(at: Stage, columns: int, _wanted: Wanted) -> str:
    """What `serve` says when it starts; the port is the usual one, whichever is free here."""
    at.fill("2B")
    terminal = at.terminal(columns)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    terminal.renames[f":{port}".encode()] = b":9401"
    command = "vlmcache serve qwen_vl_2b"
    listen = f"{command} --listen 127.0.0.1:{port}"
    drawn: list[str] = []

    def answers(text: str) -> bool:
        with socket.socket() as client:
            return (
                "their files" in " ".join(text.split())
                and client.connect_ex(("127.0.0.1", port)) == 0
            )

    terminal.run(
        listen,
        typed=command,
        until=answers,
        keys="\x03",
        shot=lambda: drawn.append(terminal.svg(command)),
    )
    return drawn[0] if drawn else terminal.svg(command)


def measure_load() -> None:
    """Load the smallest model anew, and keep the report: a minute."""
    with stage() as at:
        at.terminal(120).run(LOAD_TEST)
        shutil.copyfile(at.work / "before.json", LOAD_REPORT)


Draw: TypeAlias = Callable[[Stage, int, Wanted], str]
PICTURES: dict[str, Draw] = {
    "status": Screen("vlmcache status", prepare=_lose_the_second_part).draw,
    "status-v": Screen("vlmcache status --all -v", prepare=_leave_waste).draw,
    "pull": draw_pull,
    "pull-bars": draw_pull_bars,
    "picker": Screen(
        "vlmcache pull",
        ("GOT",),
        until=lists,
        keys="1\n",
        then=((lambda text: lists(text) and "Not chosen" in text, "\n"),),
    ).draw,
    "rm": Screen("vlmcache rm qwen_vl_2b", until=asks, keys="y\n").draw,
    "clean": Screen("vlmcache clean", prepare=_leave_waste, until=asks, keys="y\n").draw,
    "choose": draw_choose,
    "clean-choose": Screen(
        "vlmcache clean -i",
        prepare=_leave_waste,
        until=lists,
        keys="all\n",
        then=((has_chosen, "\n"), (asks, "y\n")),
    ).draw,
    "undo": draw_undo,
    "verify": Screen("vlmcache verify --repair", prepare=change_a_byte).draw,
    "move": Screen(f"vlmcache move {DRIVE}/hub qwen_vl_2b").draw,
    "backup": Screen(f"vlmcache backup {DRIVE}/models/").draw,
    "restore": Screen(
        f"vlmcache restore {DRIVE}/models/ got_ocr",
        first=("backup", f"{DRIVE}/models/", "got_ocr"),
    ).draw,
    "watch": draw_watch,
    "serve": draw_serve,
    "load-test": draw_load_test,
    "quantize": Screen("vlmcache quantize qwen_vl_2b --precision int4 --dry-run").draw,
    "doctor": draw_doctor,
    "init": draw_init,
    "help": Screen("vlmcache --help", ()).draw,
    "errors": draw_errors,
}
"""Name of each picture -> what draws it.

A live screen is drawn at the moment at which its text is as wanted.
"""


def draw(name: str, at: Stage, columns: int, wanted: Wanted = None) -> str:
    """Return one picture as SVG, made now."""
    at.empty()
    return PICTURES[name](at, columns, wanted)


def badge(label: str, value: str) -> str:
    """Draw a badge: two words next to each other."""
    left, right = (7 * len(word) + 14 for word in (label, value))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img">
<title>{label}: {value}</title>
<g font-family="{FONTS}" font-size="11" fill="{FOREGROUND}">
<rect width="{left + right}" height="20" rx="4" fill="{BACKGROUND}"/>
<rect x="{left}" width="{right}" height="20" rx="4" fill="#2f5d8a"/>
<text x="7" y="14" textLength="{left - 14}">{label}</text>
<text x="{left + 7}" y="14" textLength="{right - 14}">{value}</text>
</g>
</svg>
"""
