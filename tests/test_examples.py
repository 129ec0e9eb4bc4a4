"""Every example of README and docs is run: commands against a small cache, and what they print.

A block after a paragraph that says *not run by the tests* is left out, and so is a line that needs
another machine or a bucket; docs/limits.md says how many. In a block of a console the words that a
command prints must be those of the page; figures, times, hashes and the widths of columns may
differ, and `…` stands for anything. A comment `prepare: NAME` before a block names what of PREPARE
the cache has to be by then; without one, got_ocr and qwen_vl_2b are cached.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from docs import pictures
from docs.pictures import Stage
from docs.terminal import words_of
from tests.kit.disks import as_other_user, common_folder, small_filesystem

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
UNRUN = "not run by the tests"
ELSEWHERE = re.compile(r"\bssh \w|\b(?:s3|gs|az)://")


class Block(NamedTuple):
    """A fenced block: the kind of its content, the text before it, where it stands."""

    kind: str
    content: str
    before: str
    where: str

    @property
    def runs(self) -> bool:
        return UNRUN not in " ".join(self.before.split())


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: match.start()].rstrip()
        paragraphs = before.split("\n\n")
        near = (
            paragraphs[-1] if not paragraphs[-1].startswith("<!--") else "\n".join(paragraphs[-2:])
        )
        yield Block(match[1], match[2], near, f"{page.name}:{before.count(chr(10)) + 3}")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A home with a hub, where got_ocr and qwen_vl_2b are cached."""
    with pictures.stage() as opened:
        opened.quietly("pull", "got_ocr", "qwen_vl_2b")
        # As after `pip install .`, without [load]: `doctor` need not wait for torch.
        (opened.home / "light").mkdir()
        light = "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n"
        (opened.home / "light" / "sitecustomize.py").write_text(light)
        opened.environment["PYTHONPATH"] = str(opened.home / "light")
        (opened.home / ".cache").rename(opened.home / ".cached")
        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as drives:
            for drive in ("big", "hdd", "nas", "usb"):
                Path(drives, drive).mkdir()
            (opened.home / "mnt").symlink_to(drives)
            yield opened


@pytest.fixture
def at(stage: Stage) -> Stage:
    stage.empty()
    shutil.copytree(stage.home / ".cached", stage.home / ".cache", symlinks=True)
    return stage


def run(at: Stage, command: str, **variables: str) -> tuple[int, str]:
    """Run a line of shell as a reader would, but without a terminal.

    What the page calls /home/you is the stage's own home; what it calls /mnt is another filesystem
    where there is one in memory.
    """
    places = {"/mnt/": f"{os.path.realpath(at.home / 'mnt')}/", f"{pictures.HOME}/": f"{at.home}/"}
    for shown, real in places.items():
        command = command.replace(shown, real)
    done = subprocess.run(
        ["bash", "-c", command],
        env={**at.environment, **variables},
        cwd=at.work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    output = done.stdout.decode()
    for shown, real in places.items():
        output = output.replace(real, shown)
    return done.returncode, output


def damage(at: Stage) -> None:
    """Change one byte of the second part of qwen_vl_2b."""
    pictures.change_a_byte(at)


def lose(at: Stage) -> None:
    """Take the second part of qwen_vl_2b away."""
    link = next(at.hubs_cache.glob(f"models--Qwen*/snapshots/*/{pictures.SHARD}"))
    link.resolve().unlink()
    link.unlink()


def pull_all(at: Stage) -> None:
    """Let every configured model be cached."""
    at.quietly("pull", "--all")


def remove(at: Stage) -> None:
    """Let the trash hold qwen_vl_2b."""
    at.quietly("rm", "qwen_vl_2b", "--trash", "--yes")


PREPARE: dict[str, Callable[[Stage], None]] = {
    "damage": damage,
    "all": pull_all,
    "remove": remove,
}


def check_console(at: Stage, block: Block) -> None:
    """Type each command after a `$`, and compare what it prints."""
    for example in re.split(r"^\$ ", block.content, flags=re.MULTILINE)[1:]:
        command, _, wanted = example.partition("\n")
        _, shown = run(at, command)
        pattern = re.escape(words_of(wanted.strip("\n"))).replace("…", "(?s:.*)")
        shown = words_of(shown.strip("\n"))
        assert re.fullmatch(pattern, shown), f"{block.where}: {command} prints\n{shown}"


def check_shell(at: Stage, block: Block) -> None:
    """Run the lines, up to the first that fails."""
    here = [line for line in block.content.splitlines() if not ELSEWHERE.search(line)]
    code, shown = run(at, "\n".join(["set -ex", *here]))
    assert code == 0, f"{block.where} exits with {code}:\n{shown}"


def check_python(at: Stage, block: Block) -> None:
    (at.work / "example.py").write_text(block.content, encoding="utf-8")
    code, shown = run(at, f"{sys.executable} -W error example.py")
    assert code == 0, f"{block.where}: {shown}"


def check_yaml(at: Stage, block: Block) -> None:
    (at.work / "example.yaml").write_text(block.content, encoding="utf-8")
    code, shown = run(at, "vlmcache status --config example.yaml")
    assert code == 0, f"{block.where}: {shown}"


CHECKS = {"console": check_console, "sh": check_shell, "python": check_python, "yaml": check_yaml}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_of_a_page_does_what_the_page_says(page: Path, at: Stage) -> None:
    for block in blocks_of(page):
        if block.kind != "text" and block.runs:
            for name in re.findall(r"<!-- prepare: (\w+) -->", block.before):
                PREPARE[name](at)
            assert block.kind in CHECKS, f"{block.where}: how is {block.kind} tried?"
            CHECKS[block.kind](at, block)


def test_how_many_examples_are_not_run_is_told() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    unrun = sum(not block.runs for block in blocks)
    lines = [line for block in blocks if block.runs for line in block.content.splitlines()]
    elsewhere = sum(bool(ELSEWHERE.search(line)) for line in lines if block_line(line))
    told = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert f"marked as *{UNRUN}*: {unrun};" in told
    assert f"lines that need another machine or a bucket: {elsewhere}." in told


def block_line(line: str) -> bool:
    """Whether a line is a command, and not of the help or of what a command prints."""
    return line.startswith(("vlmcache ", "$ vlmcache ", "ssh "))


# The table of troubles: each row's commands, on a cache that has the trouble.


def rows() -> dict[str, list[str]]:
    """Return the first words of each row -> the commands that it names."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {
        re.split("[,:]", cell[0])[0].strip(): re.findall(r"`(vlmcache [^`]+)`", cell[2])
        for cell in cells[1:]
    }


def test_not_found_although_downloaded(at: Stage) -> None:
    lose(at)
    look, mend = rows()["not found"]
    assert f"qwen_vl_2b, missing: {pictures.SHARD}" in run(at, look)[1]
    assert re.search(r"pulled, 13\.\d MB fetched", run(at, mend)[1])
    assert run(at, f"{look} --check")[0] == 0


def test_corrupted(at: Stage) -> None:
    damage(at)
    (mend,) = rows()["corrupted"]
    assert run(at, "vlmcache verify")[0] == 4
    assert "Repaired 1 of 1" in run(at, mend)[1]
    assert run(at, "vlmcache verify --max-age 0")[0] == 0


def test_disk_full(at: Stage) -> None:
    clean, make_room = rows()["disk full"]
    config = (at.work / "config.yaml").read_text().replace("min_free: 1GB", "min_free: 5MB")
    with small_filesystem(50_000_000) as disk:
        shutil.copytree(at.hubs_cache, disk / "hub", symlinks=True)
        (disk / "config.yaml").write_text(config)
        there = {"HF_HUB_CACHE": f"{disk}/hub", "VLMCACHE_CONFIG": f"{disk}/config.yaml"}
        (at.work / "config.yaml").rename(at.work / "aside.yaml")
        try:
            code, shown = run(at, clean, **there)
            assert code == 3
            assert "configured" in shown
            code, shown = run(at, make_room, **there)
            assert code == 9
            assert "not enough space: the download needs" in shown
            assert run(at, "vlmcache clean --free 30MB qwen_vl_2b --yes", **there)[0] == 0
            assert run(at, make_room, **there)[0] == 0
        finally:
            (at.work / "aside.yaml").rename(at.work / "config.yaml")


def test_wrong_folder(at: Stage) -> None:
    (command,) = rows()["wrong folder"]
    _, shown = run(at, command, HF_HOME=f"{at.home}/elsewhere", COLUMNS="300")
    assert f"another cache with models is at {pictures.HOME}/.cache/huggingface/hub" in shown


def test_offline(at: Stage) -> None:
    (command,) = rows()["offline"]
    code, shown = run(at, command, HF_HUB_OFFLINE="1")
    assert code == 4
    assert "qwen_vl_7b" in shown
    assert run(at, f"{command} got_ocr qwen_vl_2b", HF_HUB_OFFLINE="1")[0] == 0


def test_permission_denied(at: Stage) -> None:
    (command,) = rows()["permission denied"]
    with common_folder() as folder:
        shutil.copytree(at.hubs_cache, folder / "hub", symlinks=True)
        folder.joinpath("hub").chmod(0o555)
        shutil.copytree(at.home / "light", folder / "light")
        done = as_other_user(
            [sys.executable, "-m", *command.split()],
            environment={
                "HF_HUB_CACHE": f"{folder}/hub",
                "HOME": "/nowhere",
                "COLUMNS": "300",
                "PYTHONPATH": f"{folder}/light",
            },
            folder=folder,
        )
    assert "the cache cannot be written" in done.stdout
    assert "[cache-read-only]" in done.stdout


def test_slow_load() -> None:
    """What a load test tells is tested with torch, beside the load tests."""
    assert rows()["slow load"] == ["vlmcache load-test qwen_vl_2b"]
    assert len(rows()) == 7
