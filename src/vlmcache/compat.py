"""Functions for applications written for the guide's helper scripts: plain types in and out."""

from __future__ import annotations

from typing import Any

from vlmcache import units
from vlmcache.cache.moved import away_remedy, away_words
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.commands.remove.remove import remove
from vlmcache.commands.status.status import status
from vlmcache.config import open_session
from vlmcache.errors import VlmcacheError

_GB = 1_000_000_000


def check_model_cache(key: str) -> tuple[bool, str]:
    """Return whether a model is cached completely, and a line that says so or what is missing.

    Args:
        key: a key of config.yaml or a repo id, with an optional `@revision`.
    """
    try:
        model = status(open_session(), [key]).models[0]
    except VlmcacheError as error:
        return False, str(error)
    if model.state == "cached":
        return True, f"{model.repo} is cached at {model.path}"
    if model.away is not None:
        return False, f"{away_words(model.away, model.repo)} ({away_remedy(model.away)})"
    files = ", ".join((*model.damaged_files, *model.missing_files))
    reason = f"{model.repo} is {model.state}" + (f": {files}" if files else "")
    return False, f"{reason} ({units.command('pull', model.key)})"


def delete_model_cache(repo_id: str) -> bool:
    """Remove a model with all its revisions, without asking.

    Args:
        repo_id: a repo id or a key of config.yaml; with `@revision` only that revision is removed.

    Returns:
        Whether it was cached and has been removed. If a process uses it, nothing is removed.
    """
    try:
        removal = remove(open_session(), [repo_id])
    except VlmcacheError:
        return False
    return removal.receipt is not None and removal.receipt.whole


def get_cache_info() -> dict[str, Any]:
    """Return figures on the cache: `model_count`, `total_size_gb` (10^9 bytes) and more."""
    state = scan(open_session().cache.dir)
    return {
        "cache_dir": state.dir,
        "exists": state.exists,
        "model_count": len(_models(state)),
        "repo_count": len(state.repos),
        "total_size_bytes": state.size_on_disk,
        "total_size_gb": state.size_on_disk / _GB,
    }


def list_cached_models() -> list[dict[str, Any]]:
    """Return a dict for each model repo: `model_id`, `size_gb` (10^9 bytes), `path` and more."""
    return [
        {
            "model_id": repo.id,
            "size_bytes": repo.size_on_disk,
            "size_gb": repo.size_on_disk / _GB,
            "path": repo.path,
            "revisions": [revision.commit for revision in repo.revisions],
            "refs": dict(repo.refs),
        }
        for repo in _models(scan(open_session().cache.dir))
    ]


def _models(state: CacheState) -> list[Repo]:
    return [repo for repo in state.repos if repo.type == "model"]
