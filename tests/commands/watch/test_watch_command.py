"""`vlmcache watch` as people and scripts meet it: in a real terminal, in a pipe, and when ended."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import http.client
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jsonschema
import pyte
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.caches import CacheBuilder, CachedRepo, model_files
from tests.kit.commands import Vlmcache, is_failure
from tests.kit.hub import Fault, LoopbackHub, Synthetic, hang, slow
from vlmcache.config_file import SHIPPED

PROGRAM = (sys.executable, "-m", "vlmcache")
HF = Path(sys.executable).with_name("hf")
ALTERNATE_ON, ALTERNATE_OFF = b"\x1b[?1049h", b"\x1b[?1049l"
CURSOR_OFF, CURSOR_ON = b"\x1b[?25l", b"\x1b[?25h"
WEIGHTS = Synthetic(40_000_000)
PATIENCE = 120.0


@pytest.fixture
def repo(cache: CacheBuilder) -> CachedRepo:
    repo = cache.repo("org/name")
    repo.revision(model_files())
    return repo


@pytest.fixture
def three(vlmcache: Vlmcache) -> None:
    """Three configured models that are not cached."""
    vlmcache.config(Path(SHIPPED).read_text(encoding="utf-8"))


def eventually(condition: Callable[[], object], what: Callable[[], str] = str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


class Terminal:
    """`vlmcache watch` in a pseudo-terminal, and what a person would see of it."""

    def __init__(self, environment: dict[str, str], folder: Path, *options: str) -> None:
        self.master, self.slave = pty.openpty()
        self.screen = pyte.Screen(100, 24)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        self.resize(100, 24)
        self.settings = termios.tcgetattr(self.slave)
        # The leader of a session takes the first terminal that it opens for its own.
        takes_terminal = 'exec <"$0" >"$0" 2>&1; exec "$@"'
        self.process = subprocess.Popen(
            ["sh", "-c", takes_terminal, os.ttyname(self.slave), *PROGRAM, "watch", *options],
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while read := os.read(self.master, 1 << 16):
                self.output += read
                self._stream.feed(read)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        self.screen.resize(lines, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, size)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def shows(self, pattern: str) -> None:
        eventually(lambda: re.search(pattern, self.text), lambda: f"{pattern!r} in\n{self.text}")

    def ends(self) -> int:
        return self.process.wait(PATIENCE)

    def is_restored(self) -> bool:
        """Whether the terminal is as if the program had never been there."""
        eventually(lambda: self.output.count(ALTERNATE_OFF) == self.output.count(ALTERNATE_ON))
        return (
            termios.tcgetattr(self.slave) == self.settings
            and self.output.count(ALTERNATE_ON) > 0
            and self.output.rfind(CURSOR_ON) > self.output.rfind(CURSOR_OFF)
            and self.output.rfind(ALTERNATE_OFF) > self.output.rfind(ALTERNATE_ON)
        )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        os.close(self.master)


@pytest.fixture
def terminal(vlmcache: Vlmcache) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*options: str, **variables: str) -> Terminal:
        environment = vlmcache.environment | {"TERM": "xterm-256color"} | variables
        opened.append(Terminal(environment, vlmcache.folder, *options))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@contextlib.contextmanager
def downloading(cache: Path, fault: Fault) -> Iterator[subprocess.Popen[bytes]]:
    """Let the hub's own client download a model whose weights come as a fault says."""
    with LoopbackHub() as hub:
        hub.add_repo("org/big").commit({"config.json": b"{}", "model.safetensors": WEIGHTS})
        hub.fault(fault.on("model.safetensors"))
        client = subprocess.Popen(
            [HF, "download", "org/big"],
            env=hub.environment(cache) | {"HF_HUB_DOWNLOAD_TIMEOUT": "300"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield client
        finally:
            client.kill()
            client.wait()


def test_a_download_by_hf_appears_advances_and_completes_on_the_screen(
    repo: CachedRepo, terminal: Callable[..., Terminal]
) -> None:
    view = terminal()
    view.shows(r"org/name +cached")
    shown = threading.Event()
    with downloading(repo.cache.root, slow(800_000, until=shown)) as client:
        view.shows(r"download started +org/big: model\.safetensors")
        view.shows(r"(?m)^  model\.safetensors +━+─+ +\d+% +[\d.]+ MB +[\d.]+ [kM]B/s ")
        view.shows(re.escape(f"{getpass.getuser()}: hf ({client.pid})"))
        # What else is written to the disk just now may fill it sooner.
        view.shows(r"(?m)^Disk .* (once the downloads are done|full in .*)$")
        view.shows(r"(?m)^Total +━+─+ +\d+%  [\d.]+ MB left, .*B/s, \d+ s")
        view.shows(r"(?m)^org/big +━+─+ +\d+% +[\d.]+ MB .* \d+ s ")
        shown.set()
        assert client.wait(PATIENCE) == 0
        view.shows(r"downloaded +org/big: model\.safetensors, 40 MB")
        view.shows(r"org/big +cached")
    assert "Total" not in view.text


def test_a_killed_download_is_shown_as_left_behind_and_a_removal_appears(
    repo: CachedRepo, terminal: Callable[..., Terminal]
) -> None:
    view = terminal()
    # The client writes 10 MiB at a time.
    with downloading(repo.cache.root, hang(12_000_000)) as client:
        view.shows(r"(?m)^  model\.safetensors .* +10\.5 MB")
        client.kill()
        client.wait()
        view.shows(r"(?m)^  model\.safetensors +━+─+ +26% +10\.5 MB +- +left behind +-$")
        view.shows(r"(?m)^org/big +partial 26% +10\.5 MB +- +left behind")
        view.shows(r"download left behind +org/big: model\.safetensors, 10\.5 MB of 40 MB")
    shutil.rmtree(repo.cache.repo("org/big").folder)
    view.shows(r"removed +org/big")
    assert "model.safetensors  " not in view.text


@pytest.mark.parametrize(
    ("end", "code"), [("\x03", 130), (signal.SIGTERM, 143), (signal.SIGINT, 130), ("q", 0)]
)
def test_the_terminal_is_restored_however_the_view_is_ended(
    repo: CachedRepo, terminal: Callable[..., Terminal], end: str | signal.Signals, code: int
) -> None:
    view = terminal()
    view.shows("org/name +cached")
    assert termios.tcgetattr(view.slave) != view.settings
    if isinstance(end, str):
        view.type(end)
    else:
        view.process.send_signal(end)
    assert view.ends() == code
    assert view.is_restored()
    assert b"Traceback" not in view.output


def test_a_suspended_view_gives_the_terminal_back_and_returns(
    repo: CachedRepo, terminal: Callable[..., Terminal]
) -> None:
    view = terminal()
    view.shows("org/name +cached")
    view.type("\x1a")
    status = Path(f"/proc/{view.process.pid}/stat")
    eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
    assert view.is_restored()
    view.process.send_signal(signal.SIGCONT)
    eventually(lambda: view.output.count(ALTERNATE_ON) == 2)
    view.type("q")
    assert view.ends() == 0
    assert view.is_restored()


@pytest.mark.usefixtures("three")
def test_every_repo_is_reached_at_any_size_by_scrolling_and_by_a_filter(
    repo: CachedRepo, terminal: Callable[..., Terminal]
) -> None:
    for number in range(200):
        repo.cache.repo(f"org/more-{number:03}").revision({"config.json": b"{}"})
    view = terminal()
    view.shows(r"MODEL 1-\d+/204")
    assert "Qwen/Qwen2-VL-2B-Instruct" not in view.text
    view.resize(140, 50)
    view.shows(r"qwen_vl_2b +Qwen/Qwen2-VL-2B-Instruct")
    view.shows(r"org/more-029")
    view.resize(60, 20)
    view.shows(r"MODEL 1-1\d/204")
    view.shows("(?m)^q quit  s sort: activity  / filter  f files  p pause  arrows$")
    view.type("\x1b[F")
    view.shows(r"MODEL 1\d\d-204/204")
    view.shows("org/more-199")
    view.type("/more-19")
    view.shows("/more-19_")
    view.type("0\n")
    view.shows(r"/ filter \(more-190\)")
    view.shows(r"(?m)^MODEL +PROGRESS")
    assert re.findall(r"more-\d+ ", view.text) == ["more-190 "]
    view.type("\x1b")
    view.shows(r"MODEL 1-1\d/204")


@pytest.mark.usefixtures("three")
def test_keys_sort_and_pause(repo: CachedRepo, terminal: Callable[..., Terminal]) -> None:
    view = terminal()
    view.shows("s sort: activity")
    assert view.text.index("got_ocr") < view.text.index("org/name")
    view.type("ss")
    view.shows("s sort: size")
    assert view.text.index("org/name") < view.text.index("got_ocr")
    view.type("p")
    view.shows("PAUSED")
    shutil.rmtree(repo.folder)
    time.sleep(1.2)
    assert re.search("org/name +cached", view.text)
    view.type("\x1b[A")
    view.type("p")
    view.shows("removed +org/name")


def test_no_screen_is_drawn_where_colors_are_not_wanted(
    repo: CachedRepo, terminal: Callable[..., Terminal]
) -> None:
    view = terminal(NO_COLOR="1")
    view.shows("org/name +cached")
    repo.partial()
    view.shows("download started +org/name")
    view.type("\x03")
    assert view.ends() == 130
    assert b"\x1b" not in view.output


# In a pipe.


@contextlib.contextmanager
def piped(vlmcache: Vlmcache, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    process = vlmcache.start("watch", *options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(stream: IO[bytes] | None) -> str:
    assert stream is not None
    return stream.readline().decode()


def line_schema(vlmcache: Vlmcache) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(vlmcache("schema", "watch").document)


def test_json_is_one_valid_object_a_line_snapshot_first_failure_last(
    repo: CachedRepo, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    validator = line_schema(vlmcache)
    lines: list[dict[str, Any]] = []

    def until(kind: str) -> dict[str, Any]:
        while not lines or lines[-1]["kind"] != kind:
            lines.append(json.loads(line_of(process.stdout)))
        return lines[-1]

    with piped(vlmcache, "--json") as process:
        snapshot = until("snapshot")
        assert len(lines) == 1
        assert snapshot["cache"]["dir"] == str(repo.cache.root)
        (row,) = (row for row in snapshot["models"] if row["repo"] == "org/name")
        assert row["state"] == "cached"
        advanced = threading.Event()
        with downloading(repo.cache.root, slow(2_000_000, until=advanced)) as client:
            started = until("download-started")
            assert (started["repo"], started["files"]) == ("org/big", ["model.safetensors"])
            assert started["expected_size"] == WEIGHTS.size
            assert until("download-advanced")["size"] > 0
            advanced.set()
            assert until("downloaded")["repo"] == "org/big"
            client.wait(PATIENCE)
        # At once: half of it gone would be damage.
        repo.folder.rename(tmp_path / "removed")
        assert until("removed")["repo"] == "org/name"
        process.terminate()
        assert until("error")["exit_code"] == 143
        assert process.wait(PATIENCE) == 143
    # The beginning of a download is damage only if something was there before.
    assert "damaged" not in {line["kind"] for line in lines}
    for line in lines:
        validator.validate(line)
        assert line["schema"] == "vlmcache.watch/1"


def test_lines_in_a_pipe_say_what_happens_without_escape_codes(
    repo: CachedRepo, vlmcache: Vlmcache
) -> None:
    with piped(vlmcache) as process:
        read = [line_of(process.stdout)]
        while not read[-1].startswith("org/name"):
            read.append(line_of(process.stdout))
        repo.missing_blob("model.safetensors")
        read += [line_of(process.stdout), line_of(process.stdout)]
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
    assert re.search(r"removed  org/name: model\.safetensors", read[-2])
    assert re.search(r"damaged  org/name: the blob it links to is missing", read[-1])
    assert "\x1b" not in "".join(read) + out.decode()
    assert error == b"error: interrupted\n"


@pytest.mark.usefixtures("three")
def test_quiet_prints_ids(repo: CachedRepo, vlmcache: Vlmcache) -> None:
    result = vlmcache("watch", "--once", "-q")
    assert result.out.splitlines()[-1] == "org/name"
    assert len(result.out.splitlines()) == 4


@pytest.mark.parametrize("options", [(), ("--json",), ("-q",)])
def test_a_closed_pipe_ends_it_quietly_although_nothing_happens(
    repo: CachedRepo, vlmcache: Vlmcache, options: tuple[str, ...]
) -> None:
    with piped(vlmcache, *options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""
        process.stdout = None


def test_once_checks_once(repo: CachedRepo, vlmcache: Vlmcache) -> None:
    repo.partial(age=60)
    plain = vlmcache("watch", "--once")
    assert plain.code == 0
    assert re.search(r"org/name +cached", plain.out)
    assert "left behind" in plain.out
    (line,) = vlmcache("watch", "--once", "--json").out.splitlines()
    assert json.loads(line)["kind"] == "snapshot"
    line_schema(vlmcache).validate(json.loads(line))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ("--min-free", "900TB", "--exit-on-low"),
            9,
            "free, less than 900 TB\nhint: vlmcache status --all",
        ),
        (("--min-free", "900TB", "--once"), 0, ""),
        (("--min-free", "1kB", "--exit-on-low", "--once"), 0, ""),
        (("--min-free", "much"), 2, "--min-free: not a size: 'much'"),
        (("--interval", "0"), 2, "--interval"),
        (("--listen", "nowhere"), 2, "--listen 'nowhere' is not an address"),
        (("--metrics", "absent/x.prom"), 1, "cannot write absent/x.prom"),
    ],
)
def test_each_ending_has_its_code_and_one_line(
    repo: CachedRepo,
    vlmcache: Vlmcache,
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    result = vlmcache("watch", *options)
    assert result.code == code
    assert message in result.err
    assert is_failure(result.err) == (code != 0)
    if "900TB" in options:
        assert "less than 900 TB" in result.out


def test_low_space_ends_the_full_screen_with_nine(
    repo: CachedRepo, terminal: Callable[..., Terminal]
) -> None:
    view = terminal("--min-free", "900TB", "--exit-on-low")
    assert view.ends() == 9
    assert view.is_restored()
    assert b"less than 900 TB\r\nhint: vlmcache status --all" in view.output


def test_metrics_are_kept_in_a_file_and_answered_on_the_loopback_only(
    repo: CachedRepo, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    path = tmp_path / "vlmcache.prom"
    with piped(vlmcache, "--metrics", str(path), "--listen", "0", "--interval", "1s") as process:
        match = re.search(r"metrics at http://127\.0\.0\.1:(\d+)/", line_of(process.stderr))
        assert match is not None
        port = int(match[1])
        assert listening(port) == {"0100007F"}

        def value(text: str, name: str, **labels: str) -> float | None:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == name and labels.items() <= sample.labels.items():
                        return sample.value
            return None

        def answer() -> str:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/metrics")
                return connection.getresponse().read().decode()

        eventually(path.exists)
        assert value(path.read_text(), "vlmcache_downloads", state="running") == 0
        before = path.stat().st_ino
        repo.partial()
        eventually(lambda: value(answer(), "vlmcache_downloads", state="running") == 1)
        eventually(lambda: value(path.read_text(), "vlmcache_downloads", state="running") == 1)
        for text in (answer(), path.read_text()):
            assert value(text, "vlmcache_events_total", kind="download-started") == 1
        assert path.stat().st_ino != before


def listening(port: int) -> set[str]:
    """Return the addresses, in the kernel's hexadecimal, that are listened on at a port."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    addresses = [row.split()[1].split(":") for row in rows if row.split()[3] == "0A"]
    return {address for address, number in addresses if int(number, 16) == port}
