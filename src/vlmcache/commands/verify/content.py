"""Whether content is what its hash says: read, hashed, and remembered if good."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from vlmcache.cache.hashing import Check, Identity, Judged, hash_all, identify
from vlmcache.commands.verify.tally import Subject, Tally
from vlmcache.commands.verify.values import VerifyOptions
from vlmcache.home.journal import Memory
from vlmcache.progress import Progress

_REMEMBER_EVERY = 5.0
_LONG = 16 << 20
"""Length in bytes from which on a file's own progress is reported."""
_SHORT_FILES = "small files"


def hash_subjects(
    subjects: Sequence[Subject],
    tally: Tally,
    memory: Memory,
    options: VerifyOptions,
    progress: Progress,
) -> None:
    """Hash what is not known to be good; content that several places share is hashed once."""
    max_age = options.max_age
    now = time.time()
    known = memory.verified() if max_age > 0 else {}
    places: dict[tuple[Identity, str], list[Subject]] = {}
    for subject in subjects:
        try:
            identity = identify(subject.path)
        except OSError as error:
            check = Check(subject.path, subject.expected)
            reason = f"it cannot be read: {error.strerror or error}"
            tally.add([subject], Judged(check, None, problem=reason))
            continue
        places.setdefault((identity, subject.expected), []).append(subject)
    due: dict[str, list[Subject]] = {}
    sizes: dict[str, int] = {}
    for (identity, expected), group in places.items():
        at = known.get((identity, expected))
        # A time in the future cannot be trusted.
        if at is not None and 0 <= now - at < max_age:
            tally.remembered += 1
            tally.remembered_bytes += identity.size
            tally.good |= {subject.path for subject in group}
            continue
        key = f"{expected} {group[0].path}"
        due[key] = group
        sizes[key] = identity.size
    if not due:
        return
    order = sorted(due, key=lambda key: -sizes[key])
    checks = [Check(due[key][0].path, due[key][0].expected) for key in order]
    repos = {subject.repo for group in due.values() for subject in group}
    label = repos.pop() if len(repos) == 1 else "verify"
    shown = _FileProgress(
        progress,
        label,
        dict(zip((check.path for check in checks), (sizes[key] for key in order), strict=True)),
    )
    fresh: list[tuple[Identity, str]] = []
    recorded = time.monotonic()
    try:
        with contextlib.closing(hash_all(checks, options.workers, shown.moved)) as results:
            for judged in results:
                group = due[f"{judged.check.expected} {judged.check.path}"]
                tally.add(group, judged)
                if judged.good and judged.identity is not None:
                    fresh.append((judged.identity, judged.check.expected))
                if fresh and time.monotonic() - recorded > _REMEMBER_EVERY:
                    memory.record_verified(fresh, now)
                    fresh, recorded = [], time.monotonic()
    finally:
        shown.ended()
        if fresh:
            memory.record_verified(fresh, now)


class _FileProgress:
    """Reports the progress of long files one by one, and of all the others together."""

    def __init__(self, progress: Progress, label: str, sizes: dict[str, int]) -> None:
        self._progress = progress
        self._label = label
        self._sizes = sizes
        self._short = 0
        long = {path: size for path, size in sizes.items() if size >= _LONG}
        rest = sum(sizes.values()) - sum(long.values())
        progress.started(label, long | ({_SHORT_FILES: rest} if rest else {}), 0)

    def moved(self, check: Check, position: int) -> None:
        """Take note of a file's progress."""
        size = self._sizes[check.path]
        if size >= _LONG:
            self._progress.moved(self._label, check.path, position)
        elif position >= size:
            # If two threads add at once, the sum may miss one file: that does no harm.
            self._short += size
            self._progress.moved(self._label, _SHORT_FILES, self._short)

    def ended(self) -> None:
        """Stop showing."""
        self._progress.ended(self._label)
