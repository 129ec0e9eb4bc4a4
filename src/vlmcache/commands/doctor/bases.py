"""What `doctor` checks of the caches beneath this one."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vlmcache.cache import layout
from vlmcache.cache.base import bases_beneath
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding
from vlmcache.cache.tree import is_root
from vlmcache.commands.doctor.checks import finding
from vlmcache.config import Session
from vlmcache.errors import VlmcacheError
from vlmcache.units import command, counted


def check_bases(session: Session) -> Iterator[Finding]:
    """Yield what is wrong with the bases, and which models of them are not attached."""
    here = session.cache.dir
    for base in bases_beneath(here, session.config.base):
        if not os.path.isdir(base):
            detail = f"the base is not there: {base}"
            detach = command("detach", base)
            remedy = f"mount it, or attach it where it is now; '{detach}' removes the links to it"
            yield finding("base-absent", "warning", base, detail, remedy)
            continue
        try:
            state = scan(base)
        except VlmcacheError as error:
            yield finding("base-unreadable", "error", base, error.message, _let_read(base))
            continue
        yield from _check_base(state, here)


def _check_base(base: CacheState, here: str) -> Iterator[Finding]:
    # Root can write everywhere except on a read-only mount.
    if os.access(base.dir, os.W_OK) and not is_root():
        yield finding(
            "base-writable",
            "warning",
            base.dir,
            "you can write to the base: what removes models by their files can remove its own",
            "let only its admin write to it, or mount it read-only (docs/base.md)",
        )
    unreadable = [
        path
        for repo in base.repos
        for path in (
            *(repo.blob_path(blob.name) for blob in repo.blobs.values() if blob.present),
            *map(repo.tree_path, repo.tree_files),
        )
        if not os.access(path, os.R_OK)
    ]
    unreadable += (found.path for found in base.all_findings() if found.code == "unreadable-folder")
    if unreadable:
        detail = f"you cannot read {counted(len(unreadable), 'file')} of the base"
        listings = f"{os.sep}{layout.TREES}{os.sep}"
        if all(listings in path for path in unreadable):
            detail += ": listings, without which a pull asks the hub"
        yield finding("base-unreadable", "warning", unreadable[0], detail, _let_read(base.dir))
    new = [
        repo.id
        for repo in base.repos
        if repo.revisions and not os.path.lexists(os.path.join(here, repo.folder))
    ]
    if new:
        detail = f"{counted(len(new), 'model')} of the base {'is' if len(new) == 1 else 'are'} new"
        yield finding("base-has-more", "info", base.dir, detail, command("attach", base.dir))


def _let_read(base: str) -> str:
    return f"whoever manages it runs: chmod -R a+rX {base}"
