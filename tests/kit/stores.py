"""Stores of backups, as seen from outside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tests.kit.caches import fingerprint
from tests.kit.contents import git_blob_sha1
from vlmcache.cache import layout


def contents(root: Path) -> dict[str, bytes]:
    """Return name -> content of all files of a folder store but temporaries."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not layout.is_temporary(path.name)
    }


def store_lies(files: Mapping[str, bytes]) -> list[str]:
    """Return what a store must never have: names that do not tell the truth.

    These are content or a manifest that is not what its name says, a manifest whose content is
    missing, and a ref to a commit that is missing.
    """
    found = []
    for name, data in files.items():
        parts = name.split("/")
        if parts[0] == "blobs":
            right = hashlib.sha256(data).hexdigest() if len(parts[2]) == 64 else git_blob_sha1(data)
            if (parts[1], parts[2]) != (right[:2], right):
                found.append(f"wrong content {name}")
        elif parts[2:3] == ["refs"]:
            commit = data.decode().strip()
            if not any(other.startswith(f"repos/{parts[1]}/{commit}/") for other in files):
                found.append(f"a ref to nothing {name}")
        elif parts[0] == "repos":
            if parts[3] != f"{hashlib.sha256(data).hexdigest()}.json":
                found.append(f"wrong manifest {name}")
            needed = [file["hash"] for file in json.loads(data)["files"].values()]
            found += [
                f"{name} needs {digest}"
                for digest in needed
                if f"blobs/{digest[:2]}/{digest}" not in files
            ]
    return found


def restored(root: Path) -> dict[str, tuple[str, int, int, str]]:
    """Return the fingerprint of a cache without locks and temporaries."""
    return {
        name: entry
        for name, entry in fingerprint(root).items()
        if not name.startswith(".locks") and not layout.is_temporary(Path(name).name)
    }
