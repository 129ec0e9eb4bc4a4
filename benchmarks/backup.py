"""`vlmcache backup` to a file compared with `tar -cf` of the same cache, both until on the disk."""

from __future__ import annotations

import os

from benchmarks.pairs import Row, Setting, rounds, values_row
from benchmarks.pull import OURS, REPO, environment, timed
from tests.kit.caches import CacheBuilder
from tests.kit.contents import Synthetic


def rows(setting: Setting) -> list[Row]:
    """Measure a backup to one file."""
    cache, saved = setting.folder / "cache", setting.folder / "saved.tar"
    CacheBuilder(cache).repo(REPO).revision(
        {"config.json": b"{}", "model.safetensors": Synthetic(setting.size, 1)}
    )
    variables = environment("http://127.0.0.1:9", cache)

    def run(command: list[str]) -> float:
        saved.unlink(missing_ok=True)
        os.sync()
        return timed(command, variables)

    tar = f"tar -cf {saved} -C {cache} . && sync {saved}"
    runs = rounds(
        {
            "ours": lambda: run([OURS[0], "backup", str(saved), "-q"]),
            "tar": lambda: run(["sh", "-c", tar]),
        },
        setting.pairs,
    )
    what = f"backup of {setting.size / 1e9:g} GB, every byte hashed"
    return [values_row(what, runs["ours"], runs["tar"], 0.8, "tar -cf", runs.busy)]
