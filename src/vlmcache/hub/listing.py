"""What a hub says about a repo: the commit that a ref names, and the files at that commit."""

from __future__ import annotations

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import TreeFile
from vlmcache.errors import (
    AccessError,
    BadAnswerError,
    HostileListingError,
    NoSuchRepoError,
    NoSuchRevisionError,
    VlmcacheError,
)
from vlmcache.hub.client import Client
from vlmcache.units import did_you_mean

_MOST_FILES = 1_000_000
_MOST_PAGES = 10_000


class Resolved(msgspec.Struct, frozen=True):
    """The commit that a revision means now.

    name is what the hub calls the repo. gated: its files are only for those who were given access.
    """

    commit: str
    name: str
    gated: bool = False


class _Info(msgspec.Struct):
    sha: str
    id: str = ""
    gated: bool | str = False


class _Lfs(msgspec.Struct):
    oid: str
    size: int


class _Entry(msgspec.Struct, rename={"xet_hash": "xetHash"}):
    type: str
    path: str
    oid: str = ""
    size: int = 0
    lfs: _Lfs | None = None
    xet_hash: str | None = None


class _Ref(msgspec.Struct):
    name: str


class _Refs(msgspec.Struct):
    branches: list[_Ref] = []
    tags: list[_Ref] = []


def find_commit(
    client: Client, repo: str, revision: str, *, attempts: int | None = None
) -> Resolved:
    """Return the commit of a branch, tag or beginning of a commit; one request.

    Raises:
        NoSuchRepoError: no such repo, or this user may not see it.
        NoSuchRevisionError: the repo has no such revision; the hint names similar ones.
        HubError: the hub cannot be asked, or refuses.
    """
    try:
        info, _ = client.ask(client.api(repo, "revision", revision), _Info, attempts=attempts)
    except VlmcacheError as error:
        raise named_failure(client, repo, revision, error) from error
    if layout.COMMIT.fullmatch(info.sha) is None:
        raise BadAnswerError(f"{client.name} names no commit for {repo}@{revision}")
    return Resolved(info.sha, info.id or repo, bool(info.gated))


def check_download_access(client: Client, repo: str) -> None:
    """Ask whether this user may have the files of a repo, which can be gated; one request.

    Raises:
        AccessError: not, or not yet. Any other failure is left to the download: a mirror may not
            know this question.
    """
    try:
        client.ask(client.api(repo, "auth-check"), msgspec.Raw, attempts=1)
    except AccessError as error:
        raise named_failure(client, repo, "", error) from error
    except VlmcacheError:
        pass


def list_files(
    client: Client, repo: str, commit: str, *, attempts: int | None = None
) -> dict[str, TreeFile]:
    """Return the files at a commit with sizes and hashes; one request per page.

    Raises:
        HostileListingError: a file's name or hash must not be used as a path.
        NoSuchRepoError, NoSuchRevisionError, HubError: as for `find_commit`.
    """
    files: dict[str, TreeFile] = {}
    asked: set[str] = set()
    address: str | None = client.api(repo, "tree", commit, query="recursive=true&expand=false")
    while address is not None:
        asked.add(address)
        try:
            entries, following = client.ask(address, list[_Entry], attempts=attempts)
        except VlmcacheError as error:
            raise named_failure(client, repo, commit, error) from error
        for entry in entries:
            if entry.type != "file":
                continue
            if entry.path in files:
                raise HostileListingError(f"{repo}: {entry.path!r} is listed twice")
            shared = layout.SHARED_HASH.fullmatch(entry.xet_hash or "")
            files[entry.path] = TreeFile(
                size=entry.size,
                blob_id=entry.oid,
                lfs_sha256=entry.lfs.oid.removeprefix("sha256:") if entry.lfs else None,
                lfs_size=entry.lfs.size if entry.lfs else None,
                xet_hash=entry.xet_hash if shared else None,
            )
        address = client.within(following) if following else None
        if len(files) > _MOST_FILES or address in asked or len(asked) > _MOST_PAGES:
            raise HostileListingError(f"{repo}: the listing does not end")
    check_names(repo, files)
    return dict(sorted(files.items()))


def check_names(repo: str, files: dict[str, TreeFile]) -> None:
    """Refuse a listing of which some file cannot be written as it says.

    Raises:
        HostileListingError: a name leaves the repo's folder, is too long, or is both a file and a
            folder; or a hash or a size is not one.
    """
    folders = {name[:end] for name in files for end, letter in enumerate(name) if letter == "/"}
    for name, file in files.items():
        problems = (
            layout.file_name_problem(name),
            "it is a folder too" if name in folders else None,
            None if layout.is_etag(file.etag) else "its hash is not one",
            "its size makes no sense" if file.content_size < 0 else None,
        )
        for problem in filter(None, problems):
            shown = name if len(name) <= 80 else f"{name[:80]}…"
            raise HostileListingError(
                f"{repo}: the file name {shown!r} is refused: {problem}",
                "nothing was written; do not trust this repo",
            )


def named_failure(client: Client, repo: str, revision: str, error: VlmcacheError) -> VlmcacheError:
    """Return a failure that names the repo."""
    if isinstance(error, NoSuchRevisionError):
        return NoSuchRevisionError(
            f"{repo} has no revision {revision}", _near(client, repo, revision)
        )
    if isinstance(error, NoSuchRepoError):
        return NoSuchRepoError(f"no such model on {client.name}: {repo}", error.hint)
    if isinstance(error, AccessError):
        return AccessError(f"{repo}: {error.message}", error.hint)
    return error


def _near(client: Client, repo: str, revision: str) -> str | None:
    """Return a hint that names the refs, similar ones first."""
    try:
        refs, _ = client.ask(client.api(repo, "refs"), _Refs, attempts=1)
    except VlmcacheError:
        return None
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    listed = f"it has {', '.join(names[:5])}{more}" if names else None
    return did_you_mean(revision, names) or listed
