"""`vlmcache backup` and `vlmcache restore` as processes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import jsonschema

from tests.kit.caches import CacheBuilder
from tests.kit.commands import Vlmcache, is_failure

FILES = {"config.json": b"{}", "pytorch_model.bin": b"weights" * 1000}


def test_models_go_to_a_file_and_come_back(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    vlmcache.config("vlmcache: {min_free: 0}\n")
    saved = vlmcache("backup", "saved.tar", "org/name", "--json")
    assert saved.code == 0, saved.err
    jsonschema.validate(saved.document, json.loads(vlmcache("schema", "backup").out))
    new = str(tmp_path / "new")
    planned = vlmcache("restore", "saved.tar", "--dry-run", "--cache-dir", new)
    assert planned.code == 0, planned.err
    assert "Would restore org/name from the tar saved.tar: 2 blobs, 7 kB\n" in planned.out
    assert "7 kB      2  org/name  missing\n" in planned.out
    every = vlmcache("restore", "saved.tar", "--dry-run", "-v", "--cache-dir", new)
    lines = [line for line in every.out.splitlines() if "/blobs/" in line]
    assert [line.split(" B")[0].split(" kB")[0].strip() for line in lines] == ["7", "2"]
    done = vlmcache("restore", "saved.tar", "--json", "--cache-dir", new)
    assert done.code == 0
    assert done.document["plan"]["needs"] == 7002
    assert len(done.document["receipt"]["outcomes"]) == 3
    jsonschema.validate(done.document, json.loads(vlmcache("schema", "restore").out))
    assert vlmcache("verify", "--cache-dir", new).code == 0
    again = vlmcache("restore", "saved.tar", "--cache-dir", new)
    assert "2 blobs there already" in again.out


def test_backup_and_restore_take_yes_and_a_dry_run_writes_nothing(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    vlmcache.config("vlmcache: {min_free: 0}\n")
    planned = vlmcache("backup", "saved.tar", "--dry-run")
    assert (planned.code, planned.out) == (
        0,
        "Would save org/name to the tar saved.tar: 7 kB\n",
    )
    assert not (vlmcache.folder / "saved.tar").exists()
    assert vlmcache("backup", "saved.tar", "--yes").code == 0
    assert vlmcache("restore", "saved.tar", "-y", "--cache-dir", str(tmp_path / "new")).code == 0
    assert (tmp_path / "new/models--org--name/refs/main").is_file()


def test_models_go_to_a_store_once_and_come_back_by_name(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    repo = cache.repo("org/name")
    old = repo.revision(FILES)
    vlmcache.config("vlmcache: {min_free: 0}\nmodels: {one: {model_path: org/name}}\n")
    saved = vlmcache("backup", "store/", "one", "--json")
    assert saved.code == 0, saved.err
    jsonschema.validate(saved.document, json.loads(vlmcache("schema", "backup").out))
    assert saved.document["uploaded"] == {"blobs": 2, "size": 7002}
    new = repo.revision({**FILES, "config.json": b"{1}"})
    again = vlmcache("backup", "store", "--verify")
    line, skipped, moved = again.out.splitlines()
    assert re.fullmatch(r"Saved org/name to the store store: 3 B in .* s \(.*/s\)", line)
    assert skipped == "2 blobs, 7 kB, there already"
    assert moved == f"org/name: main is now {new[:12]}, was {old[:12]}"
    done = vlmcache("restore", "store", "one@main", "--cache-dir", str(tmp_path / "new"))
    assert done.out == "Restored org/name from the store store: 2 blobs, 7 kB\n"
    etag = repo.file("pytorch_model.bin").etag
    (tmp_path / "work/store/blobs" / etag[:2] / etag).write_bytes(b"x" * 7000)
    failed = vlmcache("restore", "store", "--json", "--cache-dir", str(tmp_path / "other"))
    assert failed.code == 4
    assert failed.document["errors"][0]["code"] == "bad-backup"
    assert "failed" in [one["result"] for one in failed.document["receipt"]["outcomes"]]


def test_a_backup_goes_through_a_pipe(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    vlmcache.config("vlmcache: {min_free: 0}\n")
    with vlmcache.start("backup", "-") as source:
        done = subprocess.run(
            [*vlmcache.command, "restore", "-", "-q", "--cache-dir", str(tmp_path / "new")],
            env=vlmcache.environment,
            cwd=vlmcache.folder,
            stdin=source.stdout,
            capture_output=True,
            text=True,
        )
        _, errors = source.communicate()
    assert (source.returncode, done.returncode) == (0, 0), done.stderr
    assert done.stdout == "org/name\n"
    assert "Saved org/name to the tar stdout: 7 kB" in errors.decode()


def test_what_is_impossible_is_refused_in_one_line(cache: CacheBuilder, vlmcache: Vlmcache) -> None:
    cache.repo("org/name").revision(FILES)
    (vlmcache.folder / "no.tar").write_bytes(b"not a tar")
    for arguments, code in (
        (("backup", "-", "--json"), 2),
        (("backup", "nosuch://bucket/key"), 2),
        (("backup", "nowhere/saved.tar"), 2),
        (("backup", "-", "--verify"), 2),
        (("backup", "x.tar.xz"), 2),
        (("backup", "x.tar", "org/nothing"), 7),
        (("restore", "absent.tar"), 2),
        (("restore", "no.tar"), 4),
        (("restore", "."), 2),
        (("restore",), 2),
    ):
        done = vlmcache(*arguments)
        assert done.code == code, (arguments, done.err)
        if "--json" not in arguments:
            assert is_failure(done.err), done.err


def test_a_backup_that_lost_its_reader_fails(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision({**FILES, "pytorch_model.bin": b"weights" * 300_000})
    with vlmcache.start("backup", "-") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(1000)
        child.stdout.close()
        told = child.stderr.read().decode()
    assert child.returncode == 1
    assert "the backup is not complete: its reader ended" in told
    assert "Traceback" not in told


def test_a_backup_to_an_empty_destination_is_refused(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    cache.repo("org/name").revision(FILES)
    done = vlmcache("backup", "")
    assert (done.code, "the destination is empty" in done.err) == (2, True)


def test_a_path_at_which_there_is_no_backup_leads_to_those_nearby(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    drive = tmp_path / "my drive"
    drive.mkdir()
    assert vlmcache("backup", f"{drive}/models/").code == 0
    assert vlmcache("backup", f"{drive}/saved.tar").code == 0
    (drive / "notes.txt").write_text("neither")
    (tmp_path / "empty").mkdir()
    hints = {
        f"{drive}": f"did you mean '{drive}/models' or '{drive}/saved.tar'?",
        f"{drive}/modles": f"did you mean '{drive}/models'?",
        f"{drive}/modles/": f"did you mean '{drive}/models'?",
        f"{drive}/save.tar": f"did you mean '{drive}/saved.tar'?",
        f"{tmp_path}/empty/models": "is its drive mounted?",
        f"{tmp_path}/absent/models": "is its drive mounted?",
    }
    for source, hint in hints.items():
        done = vlmcache("restore", source)
        assert (done.code, done.err.splitlines()[-1]) == (2, f"hint: {hint}"), source
    refused = vlmcache("backup", f"{drive}")
    assert refused.err.splitlines()[-1] == (
        f"hint: name a new folder in it, such as '{drive}/vlmcache/'"
    )


def test_a_damaged_backup_is_named_with_what_to_do(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    assert vlmcache("backup", "saved.tar").code == 0
    saved = vlmcache.folder / "saved.tar"
    saved.write_bytes(saved.read_bytes()[:5000])
    (vlmcache.folder / "notes.txt").write_text("no tar at all")
    for name in ("saved.tar", "notes.txt"):
        done = vlmcache("restore", name, "--cache-dir", str(tmp_path / "new"))
        assert done.code == 4
        message, hint = done.err.splitlines()
        assert name in message
        assert hint == "hint: copy it again, or make a new one with 'vlmcache backup'"


def test_a_ref_that_stays_is_reported_with_its_repo_and_the_way_out(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    cache.repo("org/name").revision(FILES)
    assert vlmcache("backup", "saved.tar").code == 0
    other = CacheBuilder(tmp_path / "new")
    commit = other.repo("org/name").revision({**FILES, "README.md": b"older"})
    done = vlmcache("restore", "saved.tar", "--cache-dir", str(other.root))
    assert done.code == 3
    assert done.err.splitlines() == [
        f"error: org/name: main names another commit here ({commit[:12]})",
        "hint: --overwrite lets it name the backup's; the files of both stay",
    ]


def test_the_folder_for_a_tar_is_named_with_the_command_that_makes_it(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    cache.repo("org/name").revision(FILES)
    done = vlmcache("backup", "my drive/may/saved.tar")
    assert done.code == 2
    hint = f"mkdir -p '{vlmcache.folder}/my drive/may'"
    assert done.err.splitlines()[-1].endswith(f"or make the folder: {hint}")


def test_a_pull_of_nothing_from_a_backup_is_answered_with_restore(vlmcache: Vlmcache) -> None:
    hint = "hint: name one to pull, such as owner/name; 'vlmcache "
    done = vlmcache("pull", "--from", "saved.tar")
    assert done.err.splitlines()[-1] == f"{hint}restore' copies all that is in a backup"
    assert vlmcache("pull").err.splitlines()[-1] == f"{hint}init' writes a config.yaml"
