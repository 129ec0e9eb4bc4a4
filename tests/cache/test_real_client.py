"""Caches that the real client made from a hub over real HTTP are reported as it made them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import du_allocated, model_files
from tests.kit.hub import LoopbackHub
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan

CLIENT = """
import json, sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

snapshot_download("org/vlm")
snapshot_download("org/vlm", revision="v1")
snapshot_download("org/vlm", revision="refs/pr/1", allow_patterns=["*.json"])
snapshot_download("org/table", repo_type="dataset")
hf_hub_download("org/single", "config.json")
found = scan_cache_dir()
json.dump(
    {
        f"{repo.repo_type}:{repo.repo_id}": {
            revision.commit_hash: {
                "refs": sorted(revision.refs),
                "files": {file.file_path.relative_to(revision.snapshot_path).as_posix():
                          file.size_on_disk for file in revision.files},
            }
            for revision in repo.revisions
        }
        for repo in found.repos
    },
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A cache that the real client made, and what the real client says of it."""
    root = tmp_path_factory.mktemp("real") / "hub"
    with LoopbackHub(page_size=3) as hub:
        vlm = hub.add_repo("org/vlm")
        vlm.tag("v1", vlm.commit(model_files(shards=1, second_format=True)))
        vlm.commit(model_files(shards=3, parameters=30_000), ref="refs/pr/1")
        vlm.commit(model_files(shards=2, parameters=40_000))
        hub.add_repo("org/table", kind="dataset").commit({"data/a.csv": b"1,2", "README.md": b""})
        hub.add_repo("org/single").commit(model_files())
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CLIENT],
            env=hub.environment(root),
            capture_output=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr.decode()
    return root, json.loads(done.stdout)


def test_every_revision_ref_file_and_size_is_what_the_client_sees(
    made: tuple[Path, dict[str, Any]],
) -> None:
    root, seen = made
    state = scan(root)
    assert {
        f"{repo.type}:{repo.id}": {
            revision.commit: {
                "refs": sorted(revision.refs),
                "files": {file.name: file.size for file in revision.files},
            }
            for revision in repo.revisions
        }
        for repo in state.repos
    } == seen
    assert state.size_on_disk == du_allocated(root)
    assert not [finding for finding in state.all_findings() if finding.severity != "info"]


@pytest.mark.parametrize(
    ("repo", "kind", "revision", "state"),
    [
        ("org/vlm", "model", "main", "cached"),
        ("org/vlm", "model", "v1", "cached"),
        ("org/vlm", "model", "refs/pr/1", "partial"),
        ("org/table", "dataset", "main", "cached"),
        ("org/single", "model", "main", "partial"),
    ],
)
def test_each_revision_is_judged_by_what_the_client_fetched(
    made: tuple[Path, dict[str, Any]], repo: str, kind: str, revision: str, state: str
) -> None:
    assert judge(scan(made[0]).repo(repo, kind), revision).state == state


def test_no_byte_of_a_complete_download_is_orphan_partial_or_foreign(
    made: tuple[Path, dict[str, Any]],
) -> None:
    classes = scan(made[0]).by_class
    assert classes.orphan == classes.partial == classes.foreign == classes.detached == 0
