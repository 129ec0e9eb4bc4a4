"""Whether a revision can be loaded: `cached`, `partial`, `missing` or `damaged`, and what lacks."""

from __future__ import annotations

import os

import msgspec

from vlmcache.cache import formats, layout
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.state import File, Repo, Revision, State

_INDEX_LIMIT = 64_000_000


class Judgement(msgspec.Struct, frozen=True):
    """What can be said of one revision of a repo.

    missing: files that loading needs and that are not there. damaged: files that are there, but
    cannot be what they should be. Both are names in the repo.
    """

    state: State
    commit: str | None
    revision: Revision | None
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_INDEX_DECODER = msgspec.json.Decoder(_Index)


def resolve(repo: Repo, revision: str) -> str | None:
    """Return the commit that a branch, tag, commit or beginning of a commit means in this cache.

    A beginning counts from seven characters on, and only where one snapshot has it.
    """
    if revision in repo.refs:
        return repo.refs[revision]
    if repo.revision(revision) is not None or layout.COMMIT.fullmatch(revision):
        return revision
    if len(revision) >= 7:
        starts = [held.commit for held in repo.revisions if held.commit.startswith(revision)]
        if len(starts) == 1:
            return starts[0]
    return None


def judge(repo: Repo | None, revision: str) -> Judgement:
    """Return the state of one revision (branch, tag or commit) of a repo."""
    if repo is None:
        return Judgement("missing", None, None)
    commit = resolve(repo, revision)
    if commit is None:
        # A first download that was cut before it wrote its ref leaves partial files, and maybe a
        # snapshot of the small ones.
        begun = bool(repo.partials) and not repo.refs
        unreadable = _ref_is_malformed(repo, revision)
        state: State = "damaged" if unreadable else "partial" if begun else "missing"
        return Judgement(state, None, None)
    held = repo.revision(commit)
    if held is None:
        # The hub's client writes the listing and the ref first, and then the files.
        begun = bool(repo.partials) or commit in repo.tree_files
        if revision not in repo.refs:
            return Judgement("partial" if begun else "missing", commit, None)
        return Judgement("partial" if begun else "damaged", commit, None)
    judgement = judge_revision(repo, held)
    if judgement.state == "cached" and _ref_is_malformed(repo, revision):
        return msgspec.structs.replace(judgement, state="damaged")
    return judgement


def _ref_is_malformed(repo: Repo, revision: str) -> bool:
    path = os.path.join(repo.path, layout.REFS, *revision.split("/"))
    return any(
        finding.path == path and finding.code in ("malformed-ref", "unreadable-ref")
        for finding in repo.findings
    )


def judge_revision(repo: Repo, revision: Revision) -> Judgement:
    """Return the state of one snapshot: damage first, then what lacks."""
    files = {file.name: file for file in revision.files}
    damaged = {name for name, file in files.items() if not _is_whole(revision, file)}
    if repo.type == "model":
        missing, broken = _model_needs(revision, files)
        damaged |= broken
    else:
        missing = set(revision.tree or ()) - set(files)
        if not files:
            missing.add("*")
    missing -= damaged
    state: State = "damaged" if damaged or revision.linked else "partial" if missing else "cached"
    return Judgement(
        state, revision.commit, revision, tuple(sorted(missing)), tuple(sorted(damaged))
    )


def judge_repo(repo: Repo) -> State:
    """Return the state of a repo as a whole: its worst."""
    if any(finding.severity == "error" for finding in repo.findings) and not _only_begun(repo):
        return "damaged"
    states = {judge_revision(repo, revision).state for revision in repo.revisions}
    order: tuple[State, ...] = ("damaged", "partial", "cached")
    for state in order:
        if state in states:
            return state
    return "partial"


def _only_begun(repo: Repo) -> bool:
    """Whether the errors are no more than what a running first download looks like."""
    begun = {"ref-to-missing-commit", "empty-snapshot", "missing-snapshots"}
    errors = {finding.code for finding in repo.findings if finding.severity == "error"}
    return bool(repo.partials) and errors <= begun


def _is_whole(revision: Revision, file: File) -> bool:
    """Whether a file's link leads to content of the length that the Hub named."""
    if file.kind not in ("link", "copy"):
        return False
    listed = revision.tree.get(file.name) if revision.tree is not None else None
    if listed is not None:
        return listed.content_size == file.size
    if file.size or file.blob is None:
        return True
    return file.blob in layout.EMPTY_HASHES


def _model_needs(revision: Revision, files: dict[str, File]) -> tuple[set[str], set[str]]:
    """Return the needed files that are not there, and the indexes that cannot be read."""
    known = set(files) | set(revision.tree or ())
    needed = formats.needed_beside_weights(known)
    if formats.CONFIG in known or not known.intersection(formats.OTHER_CONFIGS):
        gguf_only = any(name.endswith(".gguf") for name in known) and formats.CONFIG not in known
        if not gguf_only:
            needed.add(formats.CONFIG)
    missing = needed - set(files)
    broken: set[str] = set()
    if "model_index.json" in known:
        # A pipeline keeps its weights in folders of its parts.
        return missing | (formats.wanted(known) - set(files)), broken
    shortest: set[str] | None = None
    for name, is_index in formats.weight_candidates(known):
        lacking = {name} - set(files)
        if is_index and not lacking:
            shards = read_shards(revision, name)
            if shards is None:
                broken.add(name)
                shards = set()
            lacking = shards - set(files)
        if not lacking and name not in broken:
            return missing, set()
        if shortest is None:
            shortest = lacking
    return missing | (shortest or set()), broken


def read_shards(revision: Revision, index: str) -> set[str] | None:
    """Return the names of the shards that an index file names, or `None` if it cannot be read.

    The index is content of a repo and so not to be trusted: a shard that is no plain name below
    the index's folder makes it unreadable.
    """
    path = os.path.join(revision.path, *index.split("/"))
    try:
        weight_map = _INDEX_DECODER.decode(read_bytes(path, _INDEX_LIMIT)).weight_map
    except (OSError, *JSON_ERRORS):
        return None
    shards = set(weight_map.values())
    folder = index.rpartition("/")[0]
    if not shards or any(not _is_plain(shard) for shard in shards):
        return None
    return {f"{folder}/{shard}" if folder else shard for shard in shards}


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return "\0" not in name and "\\" not in name and all(p not in ("", ".", "..") for p in parts)
