"""`vlmcache init` and `pull --add` as people run them: files, links, folders, disks, signals."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import vlmcache as package
from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Done, Vlmcache, run_here
from tests.kit.disks import as_other_user, common_folder, small_filesystem
from tests.kit.hub import LoopbackHub
from vlmcache.commands.init import write
from vlmcache.commands.pull.values import PullOptions
from vlmcache.config_file import read_config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's config.yaml, which does not exist yet; the cache is `tmp_path / "hub"`."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Path(os.environ["HOME"]) / ".config" / "vlmcache" / "config.yaml"


def repos(path: Path) -> dict[str, str]:
    config = read_config(str(path), "user")
    assert config is not None
    assert not config.shipped
    return {key: model.repo for key, model in config.models.items()}


def test_it_names_what_the_cache_holds_completely(cache: CacheBuilder, here: Path) -> None:
    cache.repo("Qwen/Qwen2-VL-2B-Instruct").revision(model_files())
    cache.repo("org/tagged").revision(model_files(), refs=("v1.0",))
    commit = cache.repo("org/detached").revision(model_files(), refs=())
    cache.repo("gpt2").revision(model_files())
    cache.repo("other/gpt2").revision(model_files())
    cache.repo("org/x-GGUF").revision({"x-Q4_K_M.gguf": b"GGUF" * 9, "x-Q8_0.gguf": b"GGUF" * 7})
    files = model_files()
    cache.repo("org/part").revision(files, downloaded=set(files) - {"model.safetensors"})
    cache.repo("org/data", "dataset").revision({"README.md": b"x"})
    shown = run_here("init", "--dry-run")
    assert shown.code == 0
    assert not here.exists()
    done = run_here("init", "--json")
    assert done.code == 0
    text = here.read_text()
    assert done.document["content"] == text
    assert all(line in shown.out for line in text.splitlines())
    assert yaml.safe_load(text)["models"] == {
        "gpt2": {"model_path": "gpt2"},
        "detached": {"model_path": "org/detached", "revision": commit},
        "tagged": {"model_path": "org/tagged", "revision": "v1.0"},
        "x_gguf": {"model_path": "org/x-GGUF:Q4_K_M"},
        "x_gguf_q8_0": {"model_path": "org/x-GGUF:Q8_0"},
        "other_gpt2": {"model_path": "other/gpt2"},
        "qwen_vl_2b": {"model_path": "Qwen/Qwen2-VL-2B-Instruct"},
    }
    assert "#   org/part\n" in text
    assert done.document["left_out"] == ["org/part"]
    assert run_here("status", "--check").code == 0
    assert run_here("init", "-q", "--config", "other.yaml").out.split() == list(repos(here))


def test_with_an_empty_cache_it_names_the_three_that_ship(here: Path) -> None:
    done = run_here("init", "--yes")
    assert done.code == 0
    assert list(repos(here)) == ["got_ocr", "qwen_vl_2b", "qwen_vl_7b"]
    assert "vlmcache status" in done.out


def test_names_in_the_cache_cannot_change_what_the_file_says(
    cache: CacheBuilder, here: Path
) -> None:
    for name in ("models--a--b\nevil: 1", "models--\x1b[31m--x", "models--org--null"):
        (cache.root / name / "snapshots").mkdir(parents=True)
    cache.repo("org/null").revision(model_files())
    assert run_here("init").code == 0
    assert repos(here) == {"org_null": "org/null"}


def make_file(path: Path) -> None:
    path.write_text("mine: 1\n")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere" / "config.yaml")


def make_link(path: Path) -> None:
    path.with_name("real").write_text("mine: 1\n")
    path.symlink_to("real")


@pytest.mark.parametrize("make", [make_file, make_folder, make_dangling_link, make_link])
@pytest.mark.parametrize("named", [False, True])
def test_nothing_is_ever_overwritten(here: Path, tmp_path: Path, make: object, named: bool) -> None:
    path = tmp_path / "named.yaml" if named else here
    path.parent.mkdir(parents=True, exist_ok=True)
    assert callable(make)
    make(path)
    before = sorted((one.name, one.lstat().st_mtime_ns) for one in path.parent.iterdir())
    options = ["--config", str(path)] if named else []
    for more in ([], ["--dry-run"]):
        done = run_here("init", *options, *more)
        assert done.code == 2
        assert done.err.startswith(f"error: {path} ")
        assert "nothing was written" in done.err
    after = sorted((one.name, one.lstat().st_mtime_ns) for one in path.parent.iterdir())
    assert after == before


@pytest.mark.parametrize("links", [True, False])
def test_of_many_at_a_time_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        # A filesystem without hard links.
        def refuse(*_: object, **__: object) -> None:
            raise OSError(write._NO_LINKS[0], "not supported")

        monkeypatch.setattr("vlmcache.change.tree.os.link", refuse)
    path = tmp_path / "folder" / "config.yaml"
    outcomes: list[str] = []

    def run(number: int) -> None:
        try:
            write.create(str(path), f"{number}\n".encode() * 1000)
            outcomes.append(str(number))
        except package.ConfigExistsError:
            outcomes.append("refused")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (one for one in outcomes if one != "refused")
    assert path.read_text() == f"{winner}\n" * 1000
    assert [one.name for one in path.parent.iterdir()] == ["config.yaml"]


def test_a_disk_that_is_full_leaves_nothing_behind() -> None:
    with small_filesystem(65536) as place:
        (place / "ballast").write_bytes(b"x" * 61440)
        for _ in range(2):
            with pytest.raises(package.SpaceError):
                write.create(str(place / "config.yaml"), b"y" * 20000)
        old = b"z" * 100
        os.truncate(place / "ballast", 57344)
        (place / "there.yaml").write_bytes(old)
        with pytest.raises(package.SpaceError):
            write.change(str(place / "there.yaml"), lambda _: b"y" * 20000)
        assert (place / "there.yaml").read_bytes() == old
        assert sorted(one.name for one in place.iterdir()) == ["ballast", "there.yaml"]


def test_a_change_keeps_mode_link_and_owner(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.yaml"
    real.write_text("old")
    real.chmod(0o640)
    link = tmp_path / "config.yaml"
    link.symlink_to(real.name)
    if os.geteuid() == 0:
        os.chown(real, 65534, 65534)
    before = real.stat()
    write.change(str(link), lambda old: (old or b"") + b" and new")
    after = real.stat()
    assert link.is_symlink()
    assert real.read_text() == "old and new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def append(number: int) -> None:
        write.change(str(path), lambda old: (old or b"") + f"{number}\n".encode())

    threads = [threading.Thread(target=append, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, path.read_text().split())) == list(range(12))


@pytest.mark.parametrize("command", [("init",), ("pull", "org/name", "--add")])
def test_a_folder_of_another_user_is_one_error_before_anything_is_fetched(
    command: tuple[str, ...],
) -> None:
    with common_folder() as folder:
        config = folder / "config"
        (config / "vlmcache").mkdir(parents=True)
        config.chmod(0o755)
        (config / "vlmcache").chmod(0o755)
        done = as_other_user(
            [sys.executable, "-m", "vlmcache", *command],
            environment=os.environ
            | {
                "XDG_CONFIG_HOME": str(config),
                "HF_HUB_CACHE": str(folder / "hub"),
                "HF_ENDPOINT": "http://127.0.0.1:9",
            },
            folder=folder,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {config}/vlmcache/config.yaml cannot be written: ")
        assert "--config" in done.stderr
        assert list((config / "vlmcache").iterdir()) == []


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("", "home/.config/vlmcache"),
        ("relative", "home/.config/vlmcache"),
        (".", "home/.config/vlmcache"),
        ("~/x", "home/.config/vlmcache"),
        ("{}/with space/ü", "with space/ü/vlmcache"),
    ],
)
def test_odd_values_of_xdg_config_home(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch, value: str, place: str
) -> None:
    """A relative folder does not count, so that no working folder's file is the user's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", value.format(tmp_path))
    hostile = Path("vlmcache")
    hostile.mkdir()
    (hostile / "config.yaml").write_text("models: {evil: {repo: org/evil}}\n")
    done = run_here("init", "--json")
    assert done.document["path"] == str(tmp_path / place / "config.yaml")
    assert run_here("status", "--json").document["models"][0]["key"] == "got_ocr"


def test_a_file_in_place_of_the_folder_is_an_error(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    done = run_here("init")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {tmp_path}/file/vlmcache/config.yaml cannot be written: ")


def test_a_folder_that_was_typed_wrong_is_not_made(here: Path, tmp_path: Path) -> None:
    done = run_here("init", "--config", str(tmp_path / "nowhere" / "config.yaml"))
    assert done.code == 1
    assert not (tmp_path / "nowhere").exists()


def test_the_file_that_the_environment_names_is_written_though_it_is_missing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMCACHE_CONFIG", "new.yaml")
    assert run_here("status").code == 2
    done = run_here("init")
    assert (done.code, done.out.splitlines()[-1]) == (0, "Next: vlmcache status")
    assert list(repos(Path("new.yaml"))) == ["got_ocr", "qwen_vl_2b", "qwen_vl_7b"]
    assert run_here("status", "--json").document["configured"]
    assert not here.exists()


def test_what_would_be_written_is_shown_as_it_is_on_a_narrow_screen(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = run_here("init", "--dry-run").out.splitlines()
    assert run_here("init").code == 0
    assert set(here.read_text().splitlines()) <= set(shown)


def test_another_file_that_counts_in_its_place_is_named(here: Path) -> None:
    Path("config.yaml").write_text("models: {mine: {repo: org/mine}}\n")
    done = run_here("init")
    assert f"In this folder {Path.cwd()}/config.yaml is read" in done.out
    Path("config.yaml").write_text("models: [broken\n")
    assert run_here("init", "--config", "new.yaml").code == 0


def test_ctrl_c_while_it_writes_leaves_nothing(
    vlmcache: Vlmcache, tmp_path: Path, here: Path
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(
        "import os, stat, time\n"
        "def fsync(file, plain=os.fsync):\n"
        "    if not stat.S_ISREG(os.fstat(file).st_mode):\n"
        "        return plain(file)\n"
        "    open(os.environ['STARTED'], 'w').close()\n"
        "    time.sleep(60)\n"
        "os.fsync = fsync\n"
    )
    started = tmp_path / "started"
    process = vlmcache.start("init", PYTHONPATH=str(trap), STARTED=str(started))
    end = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert [one.suffix for one in here.parent.iterdir()] == [".tmp"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"error: interrupted\n")
    assert list(here.parent.iterdir()) == []


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        for name in ("org/name", "org/other"):
            hub.add_repo(name).commit(model_files())
        yield hub


@pytest.fixture
def pulling(hub: LoopbackHub, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name, value in hub.environment(tmp_path / "hub").items():
        if name.startswith("HF_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLMCACHE_CONFIG", "")
    return here


def add(*arguments: str) -> Done:
    return run_here("pull", *arguments, "--add")


def test_pull_add_makes_the_users_file_and_adds_to_it(pulling: Path) -> None:
    planned = add("org/name", "--dry-run", "--json").document
    assert [one["new"] for one in planned["added"]] == [True]
    assert not pulling.exists()
    done = add("org/name")
    assert (done.code, done.err) == (0, "")
    assert f"org/name: added as name to {pulling}" in done.out
    assert repos(pulling) == {"name": "org/name"}
    before = pulling.read_text().replace("  name:\n", "  name:  # mine\n")
    pulling.write_text(before)
    again = add("org/name@main", "org/other")
    assert (again.code, again.err) == (0, "")
    assert f"org/name: is already name in {pulling}" in again.out
    assert repos(pulling) == {"name": "org/name", "other": "org/other"}
    assert pulling.read_text().replace("  other:\n    model_path: org/other\n", "") == before


def test_pull_add_says_that_the_working_folders_file_counts_instead(pulling: Path) -> None:
    local = Path("config.yaml")
    local.write_text("models: {mine: {repo: org/name, precision: int8}}\n")
    done = add("mine", "--json").document
    assert [(one["key"], one["active"]) for one in done["added"]] == [
        ("mine", str(local.resolve()))
    ]
    assert repos(pulling) == {"mine": "org/name"}
    assert "precision: int8" in pulling.read_text()
    assert f"In this folder {local.resolve()} is read instead of that file" in add("mine").out


def test_pull_add_adds_nothing_that_is_not_complete(pulling: Path) -> None:
    assert add("org/missing").code == 7
    assert not pulling.exists()
    assert add("org/name", "org/missing").code == 3
    assert repos(pulling) == {"name": "org/name"}


def test_what_cannot_be_added_is_said_before_anything_is_fetched(
    pulling: Path, tmp_path: Path
) -> None:
    pulling.parent.mkdir(parents=True)
    pulling.write_text("base: &m {a: {repo: x/y}}\nmodels: *m\n")
    done = add("org/name")
    assert done.code == 1
    assert "add to its models by hand: name: {model_path: org/name}" in done.err
    assert not (tmp_path / "hub").exists()
    assert add("datasets/org/data").code == 2
    pulling.write_text("models: [\n")
    assert add("org/name").code == 2
    assert json.loads(add("org/name", "--json").out)["errors"][0]["code"] == "configuration"


def test_the_python_method_writes_and_raises(here: Path, tmp_path: Path) -> None:
    report = package.Cache().init(dry_run=True).check()
    assert (report.path, report.written) == (str(here), False)
    assert package.Cache().init(config=tmp_path / "x.yaml").written
    with pytest.raises(package.ConfigExistsError):
        package.Cache().init(config=tmp_path / "x.yaml")


def test_the_command_that_continues_a_pull_adds_the_model_too(here: Path) -> None:
    session = package.Cache().session
    assert PullOptions(add=True).command(session, ["a/b"]) == "vlmcache pull a/b --add"
