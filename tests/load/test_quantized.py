"""Kept copies are found only while they are what was made, listed, and removed with their model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.load.conftest import World
from vlmcache.cache.weights import Precision
from vlmcache.config import Session, load_config, locate_cache, read_environment
from vlmcache.errors import (
    CrashedError,
    DamagedWeightsError,
    MissingPackageError,
    NoDeviceError,
    NotDownloadedError,
    NotEnoughMemoryError,
    SpaceError,
    UnloadableError,
    UnsupportedPrecisionError,
    UntrustedCodeError,
    UsageError,
)
from vlmcache.home import copies
from vlmcache.load import quantized, scratch
from vlmcache.load.source import ModelFiles, read_source
from vlmcache.progress import Tally

COMMIT = "1" * 40
OTHER = "2" * 40


def source(tmp_path: Path, commit: str = COMMIT) -> ModelFiles:
    folder = tmp_path / "snapshot"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return read_source(str(folder), model="m", precision="int8", repo="org/name", commit=commit)


def keep(home: Path, of: ModelFiles) -> copies.KeptCopy:
    with scratch.new_folder(str(home / copies.FOLDER)) as making:
        config = Path(making) / "config.json"
        config.write_text('{"model_type": "qwen2", "quantization_config": {}}')
        config.with_name("model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        return quantized.publish(str(home), making, of)


def test_a_copy_is_preferred_to_the_weights_it_was_made_of(tmp_path: Path) -> None:
    snapshot = source(tmp_path)
    assert quantized.preferred(str(tmp_path), snapshot) is snapshot
    kept = keep(tmp_path, snapshot)
    chosen = quantized.preferred(str(tmp_path), snapshot)
    assert (chosen.kind, chosen.folder) == ("copy", kept.path)
    assert chosen.commit == COMMIT


def test_a_copy_made_again_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    snapshot = source(tmp_path)
    weights = Path(keep(tmp_path, snapshot).path) / "model.safetensors"
    os.truncate(weights, 4)
    assert keep(tmp_path, snapshot).path == str(weights.parent)
    assert quantized.preferred(str(tmp_path), snapshot).kind == "copy"
    assert [entry.name for entry in (tmp_path / copies.FOLDER).iterdir()] == ["models--org--name"]


@pytest.mark.parametrize("change", ["truncate", "bytes", "gone", "manifest"])
def test_a_copy_that_changed_is_not_used(tmp_path: Path, change: str) -> None:
    snapshot = source(tmp_path)
    weights = Path(keep(tmp_path, snapshot).path) / "model.safetensors"
    if change == "truncate":
        os.truncate(weights, 4)
    elif change == "bytes":
        weights.write_bytes((2).to_bytes(8, "little") + b"[]")
    elif change == "gone":
        weights.unlink()
    else:
        weights.with_name(copies.MANIFEST).write_text("{")
    assert quantized.preferred(str(tmp_path), snapshot) is snapshot


def test_a_touched_copy_with_the_same_bytes_is_still_used(tmp_path: Path) -> None:
    snapshot = source(tmp_path)
    weights = Path(keep(tmp_path, snapshot).path) / "model.safetensors"
    os.utime(weights)
    assert quantized.preferred(str(tmp_path), snapshot).kind == "copy"


def test_a_copy_of_the_same_length_and_time_is_taken_to_be_as_it_was_made(tmp_path: Path) -> None:
    snapshot = source(tmp_path)
    weights = Path(keep(tmp_path, snapshot).path) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    weights.write_bytes((2).to_bytes(8, "little") + b"[]")
    os.utime(weights, ns=(before, before))
    assert quantized.preferred(str(tmp_path), snapshot).kind == "copy"


def test_a_copy_of_another_librarys_version_is_listed_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = source(tmp_path)
    keep(tmp_path, snapshot)
    monkeypatch.setattr(copies, "installed_versions", lambda: {"bitsandbytes": "99"})
    assert quantized.preferred(str(tmp_path), snapshot) is snapshot
    assert [copy.current for copy in copies.list_copies(str(tmp_path))] == [False]


def test_copies_of_one_commit_or_of_all_are_removed(tmp_path: Path) -> None:
    home = str(tmp_path)
    keep(tmp_path, source(tmp_path))
    keep(tmp_path, source(tmp_path, OTHER))
    assert [copy.commit for copy in copies.list_copies(home)] == [COMMIT, OTHER]
    assert copies.remove_copies(home, "org/name", COMMIT) > 0
    assert [copy.commit for copy in copies.list_copies(home)] == [OTHER]
    assert copies.remove_copies(home, "org/name") > 0
    assert copies.remove_copies(home, "org/name") == 0
    assert list((tmp_path / copies.FOLDER).iterdir()) == []


def test_a_link_in_place_of_copies_is_never_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    folder = tmp_path / copies.FOLDER / "models--org--name"
    folder.parent.mkdir()
    folder.symlink_to(precious)
    assert copies.remove_copies(str(tmp_path), "org/name") == 0
    assert copies.list_copies(str(tmp_path)) == []
    assert (precious / "file").exists()


def test_what_a_killed_process_was_making_is_cleared_away(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    root = tmp_path / copies.FOLDER
    gone = done.stdout.strip()
    for owner in (gone, f"{gone}-old", os.getpid()):
        left = root / f"{scratch.MAKING}{owner}"
        left.mkdir(parents=True)
        (left / "model.safetensors").touch()
    running = root / f"{scratch.MAKING}{os.getppid()}"
    running.mkdir()
    with scratch.new_folder(str(root)) as making:
        assert {entry.name for entry in root.iterdir()} == {running.name, os.path.basename(making)}
        assert os.listdir(making) == []
    assert running.exists()


def test_two_copies_are_made_at_once_in_folders_of_their_own(tmp_path: Path) -> None:
    root = str(tmp_path / copies.FOLDER)
    with scratch.new_folder(root) as left, scratch.new_folder(root) as right:
        assert left != right
        assert os.path.isdir(left)
        assert os.path.isdir(right)
    assert os.listdir(root) == []


def run_quantize(world: World, **changes: str | bool) -> quantized.Quantization:
    environment = read_environment(world.environment, str(world.root))
    session = Session(environment, load_config(None, environment), locate_cache(None, environment))
    arguments = {"name": "org/name", "precision": "int8"} | changes
    return quantized.quantize(session, **arguments)  # type: ignore[arg-type]


def test_a_copy_that_would_fill_the_disk_is_refused_before_it_is_begun(world: World) -> None:
    header = {"w": {"dtype": "BF16", "shape": [1000, 1000], "data_offsets": [0, 2_000_000]}}
    encoded = json.dumps(header).encode()
    world.cache.repo("org/name").revision(
        {
            "config.json": b'{"model_type": "qwen2"}',
            "model.safetensors": len(encoded).to_bytes(8, "little") + encoded + bytes(2_000_000),
        }
    )
    (world.root / "config.yaml").write_text("models: {}\nvlmcache: {min_free: 900TB}\n")
    plan = run_quantize(world, dry_run=True)
    assert (plan.made, plan.source_bytes > 2_000_000, plan.expected) == (False, True, 1_004_000)
    with pytest.raises(SpaceError, match="takes about 1 MB"):
        run_quantize(world)
    assert not (world.root / "own" / copies.FOLDER).exists()


def test_only_int8_and_int4_are_quantized(world: World) -> None:
    with pytest.raises(UsageError, match="bf16 is not quantized"):
        run_quantize(world, precision="bf16")


def test_a_model_that_is_not_cached_is_not_quantized(world: World) -> None:
    with pytest.raises(NotDownloadedError) as caught:
        run_quantize(world)
    assert caught.value.hint == "vlmcache pull org/name"


def test_a_dry_run_of_removing_a_copy_leaves_it(world: World) -> None:
    world.cache.repo("org/name").revision({"config.json": b"{}"})
    kept = keep(world.root / "own", source(world.root))
    code, would = world.document("quantize", "org/name", "--remove", "--dry-run")
    assert (code, would["removed"], os.path.isdir(kept.path)) == (0, False, True)
    code, did = world.document("quantize", "org/name", "--remove")
    assert (code, did["removed"], os.path.isdir(kept.path)) == (0, True, False)
    assert did["freed"] == would["freed"] > 0


@pytest.mark.parametrize("precision", ["int8,int4", "", "int3"])
def test_a_copy_has_one_precision(world: World, precision: str) -> None:
    code, document = world.document("quantize", "org/name", "--precision", precision)
    assert (code, document["errors"][0]["code"]) == (2, "usage")


def test_status_tells_of_a_copy_that_is_not_as_it_was_made(world: World) -> None:
    world.cache.repo("org/name").revision({"config.json": b"{}"})
    kept = keep(world.root / "own", source(world.root))
    assert world.document("status")[1]["copies"][0]["changed"] is False
    os.truncate(os.path.join(kept.path, "model.safetensors"), 4)
    document = world.document("status")[1]
    assert document["copies"][0]["changed"] is True
    (finding,) = [finding for finding in document["findings"] if finding["code"] == "changed-copy"]
    assert finding["remedy"] == "vlmcache quantize org/name --precision int8"


def test_a_copy_that_is_set_aside_is_not_used_and_status_says_why(world: World) -> None:
    world.cache.repo("org/name").revision({"config.json": b"{}"})
    home, snapshot = world.root / "own", source(world.root)
    kept = keep(home, snapshot)
    copy = quantized.preferred(str(home), snapshot)
    quantized.set_aside(copy, DamagedWeightsError("a weight has another shape", None))
    assert quantized.preferred(str(home), snapshot) is snapshot
    document = world.document("status")[1]
    assert document["copies"][0]["failed"] == "a weight has another shape"
    (finding,) = [one for one in document["findings"] if one["code"] == "failed-copy"]
    assert finding["path"] == kept.path
    assert "a weight has another shape" in finding["detail"]
    assert finding["remedy"] == "vlmcache quantize org/name --precision int8"
    keep(home, snapshot)
    assert quantized.preferred(str(home), snapshot).kind == "copy"


@pytest.mark.parametrize("kind", UnloadableError.__subclasses__())
def test_only_failures_that_can_be_the_copys_fault_count_against_it(
    tmp_path: Path, kind: type[UnloadableError]
) -> None:
    snapshot = source(tmp_path)
    keep(tmp_path, snapshot)
    copy = quantized.preferred(str(tmp_path), snapshot)
    of_the_machine = {
        *(CrashedError, MissingPackageError, NoDeviceError, NotEnoughMemoryError),
        *(UnsupportedPrecisionError, UntrustedCodeError),
    }
    assert quantized.is_the_copys(copy, kind("x", None)) is (kind not in of_the_machine)
    assert not quantized.is_the_copys(snapshot, kind("x", None))


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", [NotEnoughMemoryError, UnsupportedPrecisionError])
@pytest.mark.parametrize("hint", ["--precision int8 or int4 takes less", "--precision fp16"])
def test_no_hint_names_a_precision_that_is_refused_or_was_tried(
    kind: type[UnloadableError], precision: Precision, hint: str
) -> None:
    with pytest.raises(kind) as caught, quantized.fitting_hints(precision):
        raise kind("it failed", hint)
    named = str(caught.value.hint)
    smaller = kind is NotEnoughMemoryError and precision == "int8"
    assert [word in named for word in ("fp16", "int8", "int4")] == [False, False, smaller]


def test_the_plan_of_a_removal_names_the_copies_that_are_removed(world: World) -> None:
    commit = world.cache.repo("org/name").revision({"config.json": b"{}"})
    kept = keep(world.root / "own", source(world.root, commit))
    keep(world.root / "own", source(world.root, OTHER))
    code, planned = world.document("rm", "org/name", "--dry-run")
    assert (code, [copy["path"] for copy in planned["copies"]]) == (0, [kept.path])


def test_status_lists_copies_and_rm_removes_them_with_their_model(world: World) -> None:
    repo = world.cache.repo("org/name")
    commit = repo.revision({"config.json": b"{}", "model.safetensors": b"x" * 100})
    kept = keep(world.root / "own", source(world.root, commit))
    (world.root / "config.yaml").write_text("models: {}\n")
    _, document = world.document("status")
    (copy,) = document["copies"]
    assert (copy["repo"], copy["commit"], copy["precision"]) == ("org/name", commit, "int8")
    assert copy["path"] == kept.path
    assert "org/name int8, 60 B" in world.vlmcache("status").stdout
    assert world.vlmcache("rm", "org/name", "--yes").returncode == 0
    assert not Path(kept.path).exists()
    assert world.document("status")[1]["copies"] == []


def test_removing_a_copy_leaves_other_precisions(world: World) -> None:
    snapshot = source(world.root)
    kept = keep(world.root / "own", snapshot)
    code, document = world.document("quantize", "org/name", "--precision", "int4", "--remove")
    assert (code, document["freed"]) == (0, 0)
    assert Path(kept.path).is_dir()
    code, document = world.document("quantize", "org/name", "--precision", "int8", "--remove")
    assert code == 0
    assert document["freed"] > 0
    assert not Path(kept.path).exists()


def test_the_progress_of_a_copy_is_what_is_written_of_it_and_then_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "_LOOK_EVERY", 0.01)
    tally, folder = Tally(), tmp_path / "making"
    folder.mkdir()
    with quantized._shown(tally, "org/x", str(folder), 1000) as phase_ended:
        assert [file.name for file in tally.models["org/x"].files()] == ["quantizing"]
        (folder / "model.safetensors").write_bytes(b"w" * 500)
        while tally.done != 500:
            time.sleep(0.01)
        assert tally.is_midway
        assert tally.summary() == "500 B of 2 kB written and compared, 1.5 kB left"
        phase_ended()
        assert [file.name for file in tally.models["org/x"].files()] == ["comparing"]
        # How far a comparison is cannot be seen: it is not stalled.
        assert not tally.is_midway
        assert tally.done == 1000
        phase_ended()
        assert tally.done == 2000
