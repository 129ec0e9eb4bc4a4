"""`status`: each model's state, the cache's bytes, the room on the disk, and what to type next."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone

import msgspec

from vlmcache import units
from vlmcache.cache import formats
from vlmcache.cache.completeness import Judgement, judge, judge_repo, judge_revision
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding, Repo, Revision
from vlmcache.cache.usage import LastUse
from vlmcache.cache.weights import (
    MemoryEstimate,
    Tensor,
    TruncatedError,
    read_header,
    rescale,
    weights_bytes,
    with_overhead,
)
from vlmcache.change.names import names_in
from vlmcache.change.removals import Key
from vlmcache.commands.remove.facts import Known
from vlmcache.commands.status.filters import parse_filter, select
from vlmcache.commands.status.recommend import recommend
from vlmcache.commands.status.steps import Advice, Planner
from vlmcache.commands.status.values import (
    Elsewhere,
    MemorySource,
    ModelStatus,
    RepoStatus,
    RevisionStatus,
    Status,
    summarize_cache,
)
from vlmcache.config import ModelConfig, Session, own_home, shipped_config
from vlmcache.home.copies import list_copies


def status(session: Session, names: Sequence[str] = ()) -> Status:
    """Return the state of the cache and of the models asked for (all configured ones by default).

    Nothing is changed and no network is touched.

    Args:
        session: the environment, the configuration and the hub cache.
        names: keys or repo ids.

    Raises:
        ConfigError: the cache path is not a folder.
        UnknownModelError: a name is neither a key nor a repo id.
    """
    environment, config, location = session
    state = scan(location.dir)
    known_names = names_in(state, session.config)
    wanted = [known_names.model(name) for name in names] or [
        known_names.as_held(model) for model in config.models.values()
    ]
    findings = list(state.all_findings())
    findings += (
        Finding("configuration", "warning", None, config.path, warning, None)
        for warning in config.notices
    )
    known = Known(environment, state)
    summary = summarize_cache(session, state, known.mount)
    models = tuple(_model_status(state, model, findings, known.used) for model in wanted)
    repos = tuple(_repo_status(state, repo, known.used) for repo in state.repos)
    advised = Advice(session)
    shown = Status(summary, models, repos, (), tuple(findings), elsewhere=tuple(_elsewhere(state)))
    steps = recommend(advised, Planner(known, session), shown)
    copies = tuple(list_copies(own_home(environment)[0]))
    findings = [advised.completed(finding) for finding in findings]
    findings += (
        Finding(
            "changed-copy",
            "warning",
            copy.repo,
            copy.path,
            f"the kept {copy.precision} copy is not as it was made: the next load checks it, and "
            "quantizes again if it is damaged",
            advised.command("quantize", copy.repo, "--precision", copy.precision),
        )
        for copy in copies
        if copy.changed
    )
    return msgspec.structs.replace(
        shown, recommendations=tuple(steps), findings=tuple(findings), copies=copies
    )


def select_rows(status: Status, filters: Sequence[str], sort: str | None) -> Status:
    """Return the status with only the models and repos that pass, in the order asked for.

    Raises:
        UsageError: a filter or the order has no known form.
    """
    now = datetime.now(timezone.utc)
    tests = [parse_filter(expression, now) for expression in filters]
    return msgspec.structs.replace(
        status,
        models=select(status.models, tests, sort),
        repos=select(status.repos, tests, sort),
    )


@functools.cache
def _shipped() -> dict[str, ModelConfig]:
    """Return repo -> the shipped configuration of it, read only if a model has no better source."""
    return {model.repo: model for model in shipped_config().models.values()}


def _model_status(
    state: CacheState,
    model: ModelConfig,
    findings: list[Finding],
    used: Mapping[Key, LastUse],
) -> ModelStatus:
    repo = state.repo(model.repo)
    judgement = judge(repo, model.revision)
    revision = judgement.revision
    size = size_on_disk = 0
    last_used = None
    if repo is not None and revision is not None:
        size, size_on_disk = _revision_sizes(state, repo, revision)
        last_used = _last_used(used, repo, [revision])
    findings += _unreadable_indexes(model.repo, judgement)
    tensors: dict[str, Tensor] = {}
    if judgement.state == "cached" and revision is not None:
        tensors, short = _read_tensors(model.repo, revision, findings)
        if short:
            judgement = msgspec.structs.replace(judgement, state="damaged", damaged=short)
    memory, source = _memory(model, tensors)
    return ModelStatus(
        key=model.key,
        repo=model.repo,
        revision=model.revision,
        state=judgement.state,
        commit=judgement.commit,
        path=revision.path if revision else None,
        size=size,
        size_on_disk=size_on_disk,
        expected_size=_expected_size(model, judgement, size),
        missing_files=judgement.missing,
        damaged_files=judgement.damaged,
        precision=model.precision,
        memory_estimate=memory.total if memory else None,
        memory_overhead=memory.overhead if memory else None,
        memory_source=source,
        last_used=last_used,
        configured=model.configured,
        linked_to=repo.linked_to if repo is not None else None,
        away=repo.away if repo is not None else None,
    )


def _unreadable_indexes(repo: str, judgement: Judgement) -> Iterator[Finding]:
    """Yield the indexes that exist but make no sense; the scan itself opens no files."""
    revision = judgement.revision
    for file in revision.files if revision is not None else ():
        is_index = file.name.endswith(".index.json") and file.name in judgement.damaged
        if revision is not None and is_index and file.kind in ("link", "copy") and file.size:
            path = revision.file_path(file.name)
            detail = f"{file.name} names no shards that could be loaded"
            remedy = units.command("verify", repo)
            yield Finding("unreadable-index", "error", repo, path, detail, remedy)


def _read_tensors(
    repo: str, revision: Revision, findings: list[Finding]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a complete revision's safetensors, and the files that end too early.

    There are no tensors if a header makes no sense.
    """
    tensors: dict[str, Tensor] = {}
    for name in sorted(formats.wanted(file.name for file in revision.files)):
        if not name.endswith(".safetensors"):
            continue
        path = revision.file_path(name)
        try:
            tensors |= read_header(path)
        except TruncatedError as error:
            remedy = units.command("pull", repo)
            findings.append(Finding("truncated-blob", "error", repo, path, str(error), remedy))
            return {}, (name,)
        except (OSError, ValueError) as error:
            remedy = units.command("verify", repo)
            findings.append(Finding("unreadable-header", "warning", repo, path, str(error), remedy))
            return {}, ()
    return tensors, ()


def _memory(
    model: ModelConfig, tensors: dict[str, Tensor]
) -> tuple[MemoryEstimate | None, MemorySource | None]:
    if tensors:
        return with_overhead(weights_bytes(tensors, model.precision)), "weights"
    if model.expected_memory is not None:
        overhead = with_overhead(0).overhead
        return MemoryEstimate(max(0, model.expected_memory - overhead), overhead), "config"
    if model.expected_size is not None:
        return with_overhead(rescale(model.expected_size, "bf16", model.precision)), "config"
    shipped = _shipped().get(model.repo)
    if shipped is not None and shipped.expected_size is not None:
        return with_overhead(rescale(shipped.expected_size, "bf16", model.precision)), "table"
    return None, None


def _expected_size(model: ModelConfig, judgement: Judgement, size: int) -> int | None:
    """Return the length of the complete download, from the best source there is."""
    if judgement.tree:
        tree = judgement.tree
        return sum(tree[name].content_size for name in formats.wanted(tree))
    if judgement.state == "cached":
        return size
    if model.expected_size is not None:
        return model.expected_size
    shipped = _shipped().get(model.repo)
    return shipped.expected_size if shipped else None


def _revision_sizes(state: CacheState, repo: Repo, revision: Revision) -> tuple[int, int]:
    """Return length and occupied bytes of a revision's content, each blob counted once."""
    size = allocated = 0
    seen: set[tuple[int, int]] = set()
    for file in revision.files:
        blob = repo.blobs.get(file.blob) if file.blob is not None else None
        entry = file if blob is None else blob
        if file.kind not in ("link", "copy") or (entry.device, entry.inode) in seen:
            continue
        seen.add((entry.device, entry.inode))
        size += file.size
        shared = state.shared.get(blob.shared) if blob is not None and blob.shared else None
        allocated += shared.allocated if shared is not None else entry.allocated
        allocated += blob.allocated_there if blob is not None else 0
    return size, allocated


def _repo_status(state: CacheState, repo: Repo, used: Mapping[Key, LastUse]) -> RepoStatus:
    revisions = []
    judged = [judge_revision(repo, revision) for revision in repo.revisions]
    for revision, judgement in zip(repo.revisions, judged, strict=True):
        size, size_on_disk = _revision_sizes(state, repo, revision)
        revisions.append(
            RevisionStatus(
                revision.commit,
                revision.refs,
                judgement.state,
                revision.path,
                len(revision.files),
                size,
                size_on_disk,
                judgement.missing,
                datetime.fromtimestamp(revision.mtime_ns // 1_000_000_000, timezone.utc),
            )
        )
    return RepoStatus(
        repo=repo.id,
        type=repo.type,
        path=repo.path,
        state=judge_repo(repo, judged),
        size=repo.size,
        size_on_disk=repo.size_on_disk,
        revisions=tuple(revisions),
        refs=repo.refs,
        partials=len(repo.partials),
        last_used=_last_used(used, repo, repo.revisions),
        linked_to=repo.linked_to,
        away=repo.away,
    )


def _last_used(
    used: Mapping[Key, LastUse], repo: Repo, revisions: Sequence[Revision]
) -> datetime | None:
    """Return when one of the revisions was last used; `None` if only downloads are known."""
    uses = [used[repo.folder, revision.commit] for revision in revisions]
    known = [use.at for use in uses if use.source != "written"]
    return datetime.fromtimestamp(int(max(known)), timezone.utc) if known else None


def _elsewhere(state: CacheState) -> Iterator[Elsewhere]:
    places: dict[str, list[Repo]] = {}
    for repo in state.repos:
        if repo.linked_to is not None:
            places.setdefault(os.path.dirname(repo.linked_to), []).append(repo)
    for path, repos in sorted(places.items()):
        try:
            free = shutil.disk_usage(path).free
        except OSError:
            free = None
        in_store = sum(blob.allocated_there for repo in repos for blob in repo.blobs.values())
        yield Elsewhere(
            path,
            tuple(repo.id for repo in repos),
            all(repo.moved_to == path or repo.away is not None for repo in repos),
            sum(repo.size_on_disk for repo in repos) + in_store,
            free,
        )
