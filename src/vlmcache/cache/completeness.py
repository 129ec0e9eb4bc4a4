"""Whether a revision can be loaded: `cached`, `partial`, `missing`, `damaged` or `away`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import msgspec

from vlmcache import late, units
from vlmcache.cache import formats, gguf, layout
from vlmcache.cache.code_files import code_files
from vlmcache.cache.model_configs import DECIDING, KnownFiles, OtherRepo, decoded, other_repos
from vlmcache.cache.needed_files import GENERATION, Division, divide
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.state import CacheState, File, Finding, Repo, Revision, State, TreeFile
from vlmcache.cache.weight_options import index_shards
from vlmcache.cache.weights import Tensor, TruncatedError, read_header
from vlmcache.errors import reason_of

json = late.module("json")

_INDEX_LIMIT = 64_000_000


class Judgement(msgspec.Struct, frozen=True):
    """What is known about one revision of a repo. Files are named as in the repo."""

    state: State
    commit: str | None
    revision: Revision | None
    missing: tuple[str, ...] = ()
    """Files that loading needs and that do not exist."""
    damaged: tuple[str, ...] = ()
    """Files that exist but cannot be what they should be."""
    tree: Mapping[str, TreeFile] | None = None
    """The Hub's listing of the commit, if the cache holds it."""
    division: Division | None = None
    """The files by their role in loading, if it is a model and some of its files are known."""
    missing_repos: tuple[str, ...] = ()
    """Other repos that loading needs and that are not cached, if these were looked up."""


Others = Callable[[str], Repo | None]
"""Returns another model's repo, by its id."""


def resolve(repo: Repo, revision: str) -> str | None:
    """Return the commit that a branch, tag, commit or start of a commit names in this cache."""
    commits = [snapshot.commit for snapshot in repo.revisions]
    is_commit = layout.COMMIT.fullmatch(revision) is not None
    return commit_named(revision, repo.refs, commits) or (revision if is_commit else None)


def commit_named(revision: str, refs: Mapping[str, str], commits: Collection[str]) -> str | None:
    """Return the commit that a branch, tag, commit or start of a commit names.

    A start needs seven characters, and has to be that of one commit only.

    Args:
        revision: what was typed.
        refs: ref -> the commit that it names.
        commits: the commits that exist.
    """
    if revision in refs or revision in commits:
        return refs.get(revision, revision)
    starts = [commit for commit in commits if len(revision) >= 7 and commit.startswith(revision)]
    return starts[0] if len(starts) == 1 else None


def judge(
    repo: Repo | None, revision: str, others: Others | None = None, variant: str | None = None
) -> Judgement:
    """Return the state of one revision (branch, tag or commit) of a repo.

    Args:
        repo: the repo; `None` if it is not in the cache.
        revision: the revision.
        others: finds the other repos that it may need; if not given, they are not checked.
        variant: the GGUF variant that is asked for; if not given, any will do.
    """
    judgement = _judge(repo, revision, others, variant)
    if repo is None or variant is None or judgement.division is None:
        return judgement
    # Files that every variant needs do not make this one begun.
    snapshot = judgement.revision
    own = {file.name for file in snapshot.files} if snapshot is not None else set()
    listed = judgement.tree or {}
    begun = {partial.etag for partial in repo.partials}
    own |= {name for name, file in listed.items() if file.etag in begun}
    own |= repo.lost_names(snapshot.commit) if snapshot is not None else set()
    asked_for = gguf.variants(own | listed.keys()).called(variant)
    if not any(own.intersection(candidate.files) for candidate in asked_for):
        return msgspec.structs.replace(judgement, state="missing")
    return without_others(judgement)


def without_others(judgement: Judgement) -> Judgement:
    """Return the judgement of one variant: damage to the files of other variants does not count."""
    division, revision = judgement.division, judgement.revision
    if division is None or revision is None or judgement.state != "damaged" or revision.linked:
        return judgement
    damaged = tuple(name for name in judgement.damaged if name not in division.left_out)
    if damaged or not judgement.damaged:
        return msgspec.structs.replace(judgement, damaged=damaged)
    state: State = "partial" if judgement.missing or judgement.missing_repos else "cached"
    return msgspec.structs.replace(judgement, state=state, damaged=())


def _judge(
    repo: Repo | None, revision: str, others: Others | None, variant: str | None
) -> Judgement:
    if repo is None:
        return Judgement("missing", None, None)
    if repo.away is not None:
        return Judgement("away", None, None)
    commit = resolve(repo, revision)
    if commit is None:
        # A first download that was interrupted before it wrote its ref leaves partial files, and
        # maybe a snapshot with the small files.
        if ref_is_malformed(repo, revision):
            return Judgement("damaged", None, None)
        if not repo.partials or repo.refs:
            return Judgement("missing", None, None)
        commits = {*repo.trees, *(snapshot.commit for snapshot in repo.revisions)}
        return _begun(repo, commits, variant)
    snapshot = repo.revision(commit)
    if snapshot is None:
        if lost := repo.lost_names(commit):
            tree = repo.trees[commit]
            return Judgement("damaged", commit, None, damaged=tuple(sorted(lost)), tree=tree)
        # The hub's client writes the listing and the ref first, and then the files.
        if repo.partials or commit in repo.tree_files:
            return msgspec.structs.replace(_begun(repo, {commit}, variant), commit=commit)
        return Judgement("damaged" if revision in repo.refs else "missing", commit, None)
    judgement = judge_revision(repo, snapshot, others, variant)
    if judgement.state == "cached" and ref_is_malformed(repo, revision):
        return msgspec.structs.replace(judgement, state="damaged")
    return judgement


def _begun(repo: Repo, commits: set[str], variant: str | None) -> Judgement:
    """Return the judgement of a download that has no ref or no snapshot yet.

    Args:
        repo: the repo.
        commits: those that it may be of; if there are several, what is missing cannot be known.
        variant: the GGUF variant that is asked for.
    """
    if len(commits) != 1:
        return Judgement("partial", None, None)
    (commit,) = commits
    tree = repo.trees.get(commit)
    snapshot = repo.revision(commit)
    if tree is None and snapshot is None:
        return Judgement("partial", None, None)
    begun = snapshot or Revision(commit, "", (), (), 0, tree)
    missing, _, division = _needs(repo, begun, variant)
    return Judgement(
        "partial", None, snapshot, tuple(sorted(missing)), tree=tree, division=division
    )


def ref_is_malformed(repo: Repo, revision: str) -> bool:
    """Return whether a ref exists and holds anything but a commit."""
    path = repo.ref_path(revision)
    return any(
        finding.path == path and finding.code in ("malformed-ref", "unreadable-ref")
        for finding in repo.findings
    )


def judge_revision(
    repo: Repo, revision: Revision, others: Others | None = None, variant: str | None = None
) -> Judgement:
    """Return the state of one snapshot: damage first, then what is missing."""
    had_files, revision = bool(revision.files), revision.here
    all_gone = had_files and not revision.files
    unlisted = revision.tree is None
    damaged = {
        file.name
        for file in revision.files
        # A shortcut for most files of a cache: without a listing, a link to content is good.
        if not (unlisted and file.size and file.kind == "link" and not file.damaged)
        if not _is_complete(revision, file)
    }
    missing, broken, division = _needs(repo, revision, variant)
    if division is not None and division.choices is not None:
        lost = repo.lost_names(revision.commit)
        choices = division.choices.variants
        unlinked = [choice.name for choice in choices if lost.intersection(choice.files)]
        if unlinked and not missing & lost:
            missing, broken, division = _needs(repo, revision, unlinked[0])
    # Content that is here without any link was not left out: its link is lost.
    damaged |= broken | (missing & repo.lost_names(revision.commit) if missing else set())
    missing -= damaged
    state: State = "damaged" if damaged or revision.linked else "partial" if missing else "cached"
    if all_gone and not repo.partials:
        state = "missing"
    missing_repos: tuple[str, ...] = ()
    if others is not None and division is not None:
        needs = division.repos
        missing_repos = tuple(need.id for need in needs if not is_here(need, others, {repo.id}))
    return Judgement(
        "partial" if state == "cached" and missing_repos else state,
        revision.commit,
        revision,
        tuple(sorted(missing)),
        tuple(sorted(damaged)),
        revision.tree,
        division,
        missing_repos,
    )


def is_here(need: OtherRepo, others: Others, seen: AbstractSet[str] = frozenset()) -> bool:
    """Return whether another repo that a model needs is cached, with all that it needs itself.

    Args:
        need: the repo.
        others: finds repos.
        seen: ids of repos that are being checked already, and count as cached.
    """
    repo = others(need.id)
    if need.id in seen or repo is None:
        return need.id in seen
    if not need.code:
        commit = resolve(repo, need.revision)
        revision = repo.revision(commit) if commit is not None else None
        if revision is None:
            return False
        judgement = judge_revision(repo, revision)
        needs = judgement.division.repos if judgement.division is not None else ()
        seen = {*seen, need.id}
        return judgement.state == "cached" and all(is_here(other, others, seen) for other in needs)
    for revision in repo.revisions:
        names = {file.name for file in revision.files if _is_complete(revision, file)}
        roots = dict.fromkeys(need.code, frozenset[str]())
        code, _ = code_files(names, roots, reader(revision), listed=False)
        if code <= names:
            return True
    return False


def needs_of(state: CacheState) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Return (repo folder, commit) of each model that needs others -> those of them that are here.

    If the commit that it names is not here, it may need any. What these need in turn is included.
    """
    needs: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for repo in state.repos:
        for revision in repo.revisions if repo.type == "model" else ():
            read = reader(revision)
            configs = {name: decoded(read(name)) for name in DECIDING}
            for need in other_repos(configs.get):
                other = state.repo(need.id)
                if other is None or other is repo:
                    continue
                commit = resolve(other, need.revision) if not need.code else None
                commits = (snapshot.commit for snapshot in other.revisions)
                needed = needs.setdefault((repo.folder, revision.commit), set())
                needed |= {(other.folder, here) for here in commits if commit in (None, here)}
    for (folder, _), needed in needs.items():
        pending = list(needed)
        while pending:
            more = {key for key in needs.get(pending.pop(), ()) if key[0] != folder} - needed
            needed |= more
            pending += more
    return needs


def remarks(repo: Repo, judgement: Judgement) -> Iterator[Finding]:
    """Yield the findings about a revision that was judged."""
    division, revision = judgement.division, judgement.revision
    for name in judgement.missing:
        problem = layout.file_name_problem(name)
        if problem is not None and revision is not None:
            detail = f"{units.short_text(name)} is missing and cannot be pulled: {problem}"
            yield Finding("refused-name", "warning", repo.id, revision.path, detail)
    if division is None or revision is None:
        return
    pull = units.command("pull", repo.id)
    for other in judgement.missing_repos:
        detail = f"needs {other}, which is missing"
        yield Finding("needs-repo", "error", repo.id, revision.path, detail, pull)
    if judgement.state != "cached":
        return
    note = loader_note(repo.id, revision.path, division.note)
    if note is not None:
        yield note
    if GENERATION in division.along and all(file.name != GENERATION for file in revision.files):
        detail = f"{GENERATION} is missing: text is generated with the library's own settings"
        remedy = units.command("pull", repo.id, "--include", GENERATION)
        yield Finding("no-generation-config", "warning", repo.id, revision.path, detail, remedy)


def loader_note(repo_id: str, path: str, note: str | None) -> Finding | None:
    """Return the finding for `Division.note` of a model; `None` if there is no note."""
    if note is None:
        return None
    if note == "no-loader":
        detail = "the weights are in a format that no installed library loads"
        return Finding("no-loader", "warning", repo_id, path, detail)
    detail = f'the weights are a variant: load it with variant="{note}"'
    return Finding("variant-only", "warning", repo_id, path, detail)


class Content(NamedTuple):
    """What is in those files of a model's snapshot that loading opens."""

    damaged: dict[str, str]
    """File -> why it cannot be what it should be."""
    unreadable: dict[str, str]
    """Weights whose header makes no sense -> why."""
    tensors: dict[str, Tensor]
    """The tensors of all weights that are loaded, by name."""
    config: dict[str, Any]
    """The content of config.json."""


def read_content(judgement: Judgement) -> Content:
    """Return what is in those files of a complete snapshot that loading opens.

    After a crash a file can be shorter than it was, or half empty, without any listing to compare
    it with: tensors beyond a file's end and a configuration that is not JSON are damage.
    """
    content = Content({}, {}, {}, {})
    revision, division = judgement.revision, judgement.division
    others = division.left_out if division is not None else ()
    for name in sorted(file.name for file in revision.files) if revision is not None else ():
        if name in others or revision is None:
            continue
        path = revision.file_path(name)
        try:
            if name.endswith(".safetensors"):
                content.tensors.update(read_header(path))
            elif name.endswith(".bin"):
                # Few caches have such weights, and their reader is slow to import.
                # Whether they are sound is for `verify` to say.
                from vlmcache.cache.pickles import PickleError, read_pickled

                with contextlib.suppress(PickleError):
                    content.tensors.update(read_pickled(path))
            elif name in (formats.CONFIG, *formats.OTHER_CONFIGS):
                # As in transformers, NaN and Infinity are no errors.
                value = json.loads(read_bytes(path, _INDEX_LIMIT))
                if name == formats.CONFIG and isinstance(value, dict):
                    content.config.update(value)
        except (TruncatedError, RecursionError) as error:
            content.damaged[name] = reason_of(error)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            content.damaged[name] = f"{name} is not JSON: {reason_of(error)}"
        except OSError as error:
            content.damaged[name] = f"{name} cannot be read: {reason_of(error)}"
        except ValueError as error:
            content.unreadable[name] = reason_of(error)
    return content


def judge_content(repo: Repo, revision: Revision) -> State:
    """Return the state of one snapshot, with the content of its files taken into account."""
    judgement = judge_revision(repo, revision)
    if judgement.state == "cached" and repo.type == "model" and read_content(judgement).damaged:
        return "damaged"
    return judgement.state


def judge_repo(repo: Repo, judged: Iterable[Judgement] | None = None) -> State:
    """Return the state of a repo: the worst of its revisions.

    Args:
        repo: the repo.
        judged: the judgements of its revisions, if they are known already.
    """
    if repo.away is not None:
        return "away"
    errors = {finding.code for finding in repo.findings if finding.severity == "error"}
    if errors and not _only_begun(repo, errors):
        return "damaged"
    if judged is None:
        judged = (judge_revision(repo, revision) for revision in repo.revisions)
    states = {judgement.state for judgement in judged}
    if states == {"missing"}:
        return "missing"
    order: tuple[State, ...] = ("damaged", "partial", "cached")
    for state in order:
        if state in states:
            return state
    return "partial"


def worst(state: State, judged: Iterable[Judgement]) -> Judgement:
    """Return the judgement that gives a repo the state that `judge_repo` returned."""
    same = (judgement for judgement in judged if judgement.state == state)
    return next(same, Judgement(state, None, None))


def _only_begun(repo: Repo, errors: set[str]) -> bool:
    """Return whether the errors are only those of a first download while it runs.

    The Hub's client writes the listing and the ref first, then the files.
    """
    begun = {"ref-to-missing-commit", "missing-snapshots"}
    if any(map(repo.lost_names, repo.refs.values())):
        return False  # The client links a file as soon as it has arrived.
    if repo.partials:
        return errors <= {*begun, "empty-snapshot"}
    return errors <= begun and bool(repo.tree_files) and not repo.blobs


def _is_complete(revision: Revision, file: File) -> bool:
    """Return whether a file has content, of the length that the Hub listed if that is known."""
    if file.kind not in ("link", "copy") or file.damaged:
        return False
    listed = revision.tree.get(file.name) if revision.tree is not None else None
    if listed is not None:
        return listed.content_size == file.size
    if file.size or file.blob is None:
        return True
    return file.blob in layout.EMPTY_HASHES


def _needs(
    repo: Repo, revision: Revision, variant: str | None
) -> tuple[set[str], set[str], Division | None]:
    """Return the needed files that do not exist, the broken indexes, and a model's division."""
    if repo.type == "model":
        division = divide_revision(revision, variant)
        return set(division.missing), set(division.broken), division
    names = {file.name for file in revision.files}
    if revision.tree is not None:
        return set(revision.tree) - names, set(), None
    return (set() if names else {"*"}), set(), None


def divide_revision(revision: Revision, variant: str | None = None) -> Division:
    """Return the files of a model's snapshot by their role in loading."""
    tree = revision.tree or {}
    present = {file.name for file in revision.files}
    files = KnownFiles(
        frozenset(present | tree.keys()),
        present,
        reader(revision, present),
        listed=bool(tree),
        sizes={name: file.content_size for name, file in tree.items()},
    )
    complement = bool(revision.refs) and all(ref.startswith("refs/pr/") for ref in revision.refs)
    return divide(files, variant, complement=complement)


def reader(
    revision: Revision, present: AbstractSet[str] | None = None
) -> Callable[[str], bytes | None]:
    """Return a function that reads a file of a snapshot.

    It returns `None` for a file that is not here or that this user may not read, and no bytes for
    one that cannot be read for another reason.

    Args:
        revision: the snapshot.
        present: the names of its files, if they are known already.
    """
    names = {file.name for file in revision.files} if present is None else present

    def read(name: str) -> bytes | None:
        try:
            return read_bytes(revision.file_path(name), _INDEX_LIMIT) if name in names else None
        except PermissionError:
            return None
        except OSError:
            return b""

    return read


def read_shards(revision: Revision, index: str) -> frozenset[str] | None:
    """Return the shards that an index file names; `None` if it cannot be read or makes no sense."""
    try:
        return index_shards(index, read_bytes(revision.file_path(index), _INDEX_LIMIT))
    except OSError:
        return None
