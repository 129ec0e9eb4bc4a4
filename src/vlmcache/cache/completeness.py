"""Whether a revision can be loaded: `cached`, `partial`, `missing`, `damaged` or `away`."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping

import msgspec

from vlmcache.cache import formats, layout
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.state import File, Repo, Revision, State, TreeFile
from vlmcache.cache.weights import TruncatedError, read_header

_INDEX_LIMIT = 64_000_000


class Judgement(msgspec.Struct, frozen=True):
    """What can be said of one revision of a repo. Files are named as in the repo."""

    state: State
    commit: str | None
    revision: Revision | None
    missing: tuple[str, ...] = ()
    """Files that loading needs and that do not exist."""
    damaged: tuple[str, ...] = ()
    """Files that exist, but cannot be what they should be."""
    tree: Mapping[str, TreeFile] | None = None
    """The Hub's listing of the commit, if the cache holds it."""


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_INDEX_DECODER = msgspec.json.Decoder(_Index)


def resolve(repo: Repo, revision: str) -> str | None:
    """Return the commit that a branch, tag, commit or beginning of a commit means in this cache."""
    commits = [snapshot.commit for snapshot in repo.revisions]
    is_commit = layout.COMMIT.fullmatch(revision) is not None
    return commit_named(revision, repo.refs, commits) or (revision if is_commit else None)


def commit_named(revision: str, refs: Mapping[str, str], commits: Collection[str]) -> str | None:
    """Return the commit that a branch, tag, commit or beginning of a commit means.

    A beginning counts from seven characters on, and only if it is that of one commit.

    Args:
        revision: what was typed.
        refs: ref -> the commit that it names.
        commits: the commits that exist.
    """
    if revision in refs or revision in commits:
        return refs.get(revision, revision)
    starts = [commit for commit in commits if len(revision) >= 7 and commit.startswith(revision)]
    return starts[0] if len(starts) == 1 else None


def judge(repo: Repo | None, revision: str) -> Judgement:
    """Return the state of one revision (branch, tag or commit) of a repo."""
    if repo is None:
        return Judgement("missing", None, None)
    if repo.away is not None:
        return Judgement("away", None, None)
    commit = resolve(repo, revision)
    if commit is None:
        # A first download that was interrupted before it wrote its ref leaves partial files, and
        # maybe a snapshot of the small ones.
        if ref_is_malformed(repo, revision):
            return Judgement("damaged", None, None)
        if not repo.partials or repo.refs:
            return Judgement("missing", None, None)
        return _begun(repo, {*repo.trees, *(snapshot.commit for snapshot in repo.revisions)})
    snapshot = repo.revision(commit)
    if snapshot is None:
        if lost := repo.lost_names(commit):
            tree = repo.trees[commit]
            return Judgement("damaged", commit, None, damaged=tuple(sorted(lost)), tree=tree)
        # The hub's client writes the listing and the ref first, and then the files.
        if repo.partials or commit in repo.tree_files:
            return msgspec.structs.replace(_begun(repo, {commit}), commit=commit)
        return Judgement("damaged" if revision in repo.refs else "missing", commit, None)
    judgement = judge_revision(repo, snapshot)
    if judgement.state == "cached" and ref_is_malformed(repo, revision):
        return msgspec.structs.replace(judgement, state="damaged")
    return judgement


def _begun(repo: Repo, commits: set[str]) -> Judgement:
    """Return what is known of a download that has no ref or no snapshot yet.

    Args:
        repo: where it goes.
        commits: what it may be of; if there are several, what is missing cannot be known.
    """
    if len(commits) != 1:
        return Judgement("partial", None, None)
    (commit,) = commits
    tree = repo.trees.get(commit)
    snapshot = repo.revision(commit)
    if tree is None and snapshot is None:
        return Judgement("partial", None, None)
    missing, _ = _needs(
        repo,
        snapshot or Revision(commit, "", (), (), 0, tree),
        {} if snapshot is None else {file.name: file for file in snapshot.files},
    )
    return Judgement("partial", None, snapshot, tuple(sorted(missing)), tree=tree)


def ref_is_malformed(repo: Repo, revision: str) -> bool:
    """Return whether a ref is there and does not hold a commit and nothing else."""
    path = repo.ref_path(revision)
    return any(
        finding.path == path and finding.code in ("malformed-ref", "unreadable-ref")
        for finding in repo.findings
    )


def judge_revision(repo: Repo, revision: Revision) -> Judgement:
    """Return the state of one snapshot: damage first, then what is missing."""
    files = {file.name: file for file in revision.files}
    damaged = {name for name, file in files.items() if not _is_whole(revision, file)}
    missing, broken = _needs(repo, revision, files)
    # What is here and linked from nowhere was not left out: its link is lost.
    damaged |= broken | (missing & repo.lost_names(revision.commit) if missing else set())
    missing -= damaged
    state: State = "damaged" if damaged or revision.linked else "partial" if missing else "cached"
    return Judgement(
        state,
        revision.commit,
        revision,
        tuple(sorted(missing)),
        tuple(sorted(damaged)),
        revision.tree,
    )


def judge_content(repo: Repo, revision: Revision) -> State:
    """Return the state of one snapshot, read from the files that loading opens too.

    A file can be shorter than it was, or half empty after a crash, and no listing says so: tensors
    that lie beyond a file's end and a configuration that is not JSON are damage.
    """
    state = judge_revision(repo, revision).state
    if state != "cached" or repo.type != "model":
        return state
    for name in sorted(formats.wanted(file.name for file in revision.files)):
        path = revision.file_path(name)
        try:
            if name.endswith(".safetensors"):
                read_header(path)
            elif name in (formats.CONFIG, *formats.OTHER_CONFIGS):
                # As transformers does: NaN and Infinity are no errors.
                json.loads(read_bytes(path, _INDEX_LIMIT))
        except (OSError, TruncatedError, json.JSONDecodeError, RecursionError, UnicodeDecodeError):
            return "damaged"
        except ValueError:
            continue  # not a file that we can judge
    return state


def judge_repo(repo: Repo, judged: Iterable[Judgement] | None = None) -> State:
    """Return the state of a repo: the worst of its revisions.

    Args:
        repo: the repo.
        judged: what was said of each of its revisions, where that is known already.
    """
    if repo.away is not None:
        return "away"
    errors = {finding.code for finding in repo.findings if finding.severity == "error"}
    if errors and not _only_begun(repo, errors):
        return "damaged"
    if judged is None:
        judged = (judge_revision(repo, revision) for revision in repo.revisions)
    states = {judgement.state for judgement in judged}
    order: tuple[State, ...] = ("damaged", "partial", "cached")
    for state in order:
        if state in states:
            return state
    return "partial"


def _only_begun(repo: Repo, errors: set[str]) -> bool:
    """Whether the errors are no more than what a first download looks like while it runs.

    The Hub's client writes the listing and the ref first, then the files.
    """
    begun = {"ref-to-missing-commit", "missing-snapshots"}
    if any(map(repo.lost_names, repo.refs.values())):
        return False  # A file that has arrived is linked at once.
    if repo.partials:
        return errors <= {*begun, "empty-snapshot"}
    return errors <= begun and bool(repo.tree_files) and not repo.blobs


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


def _needs(repo: Repo, revision: Revision, files: Mapping[str, File]) -> tuple[set[str], set[str]]:
    """Return the needed files that do not exist, and the indexes that cannot be read."""
    if repo.type == "model":
        return _model_needs(revision, files)
    if revision.tree is not None:
        return set(revision.tree) - set(files), set()
    return (set() if files else {"*"}), set()


def _model_needs(revision: Revision, files: Mapping[str, File]) -> tuple[set[str], set[str]]:
    """Do as `_needs`, for a model: its configuration, weights, tokenizer and processor."""
    listed = set(revision.tree or ())
    known = set(files) | listed
    candidates = formats.weight_candidates(known)
    if "model_index.json" in known or (listed and not candidates):
        # A pipeline keeps its weights in folders of its parts; and other libraries' models are
        # what the Hub says they are.
        return formats.wanted(known) - set(files), set()
    needed = formats.needed_beside_weights(known)
    gguf_only = any(name.endswith(".gguf") for name in known) and formats.CONFIG not in known
    if formats.CONFIG in known or not (gguf_only or known.intersection(formats.OTHER_CONFIGS)):
        needed.add(formats.CONFIG)
    # Of several formats, the first one that exists is the one that transformers takes.
    present = next((weights for weights in candidates if weights[0] in files), None)
    shards: set[str] | None = set()
    broken: set[str] = set()
    if present is None:
        name, is_index = candidates[0] if candidates else (formats.SAFETENSORS_SINGLE, False)
        needed |= {name, *(formats.shards_of(name, known) if is_index else ())}
    elif present[1]:
        shards = read_shards(revision, present[0])
        broken = {present[0]} if shards is None else set()
    if listed:
        # What the Hub does not have cannot be missing.
        needed &= listed
    return (needed | (shards or set())) - set(files), broken


def read_shards(revision: Revision, index: str) -> set[str] | None:
    """Return the names of the shards that an index file names, or `None` if it cannot be read.

    The index is content of a repo and so not to be trusted: a shard that is not a plain name below
    the index's folder makes it unreadable.
    """
    path = revision.file_path(index)
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
