"""When revisions were last used: by a journal and by access times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from vlmcache.cache.mounts import AccessTimes
from vlmcache.cache.state import CacheState


class LastUse(msgspec.Struct, frozen=True):
    """When a revision was last used: seconds since the epoch, and what says so.

    journal: vlmcache saw it. access: the access times of its files. written: nothing shows
    uses, so it is the time of the download.
    """

    at: float
    source: Literal["journal", "access", "written"]


def last_uses(
    state: CacheState, journal: Mapping[tuple[str, str, str], float], access_times: AccessTimes
) -> dict[tuple[str, str], LastUse]:
    """Return (repo folder, commit) -> last use, for every revision.

    Args:
        state: the cache.
        journal: (type, repo, commit) -> seconds since the epoch, as `Journal.uses` gives them.
        access_times: what access times on the cache's mount are worth. Where they are `never`
            kept, they are not looked at.
    """
    found: dict[tuple[str, str], LastUse] = {}
    for repo in state.repos:
        for revision in repo.revisions:
            written = read = 0 if revision.files else revision.mtime_ns
            for file in revision.files:
                # A link is made by a download, even if its blob has existed for a long time.
                written = max(written, file.mtime_ns)
                blob = repo.blobs.get(file.blob) if file.blob is not None else None
                if blob is not None:
                    written, read = max(written, blob.mtime_ns), max(read, blob.atime_ns)
                elif file.kind == "copy":
                    read = max(read, file.atime_ns)
            use = LastUse(written / 1e9, "written")
            if access_times != "never":
                use = LastUse(max(written, read) / 1e9, "access")
            noted = journal.get((repo.type, repo.id, revision.commit))
            if noted is not None and (use.source == "written" or noted > use.at):
                use = LastUse(max(noted, use.at), "journal")
            found[repo.folder, revision.commit] = use
    return found
