"""`status`: each model's state, the cache's bytes, the disk's room, and what to type next."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone

import msgspec

from vlmcache import units
from vlmcache.cache import formats
from vlmcache.cache.completeness import Judgement, judge, judge_repo, judge_revision
from vlmcache.cache.last_use import LastUse
from vlmcache.cache.moved import away_remedy
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding, Repo, Revision
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
from vlmcache.commands.status.recommend import Advice, Planner, recommend
from vlmcache.commands.status.summary import summarise
from vlmcache.commands.status.values import (
    Elsewhere,
    MemorySource,
    ModelStatus,
    NotCachedError,
    RepoStatus,
    RevisionStatus,
    Status,
)
from vlmcache.config import (
    CacheLocation,
    Config,
    Environment,
    ModelConfig,
    own_home,
    read_environment,
    shipped_config,
)
from vlmcache.home.copies import list_copies


def status(
    config: Config,
    location: CacheLocation,
    names: Sequence[str] = (),
    *,
    environment: Environment | None = None,
) -> Status:
    """Return the state of the cache and of the models asked for (all configured ones by default).

    Nothing is changed and no network is touched.

    Args:
        config: the configuration in force.
        location: the hub cache.
        names: keys or repo ids.
        environment: the variables that tell where our journal is; those of the process if not
            given.

    Raises:
        ConfigError: the cache path is no folder.
        UnknownModelError: a name is neither a key nor a repo id.
    """
    state = scan(location.dir)
    known_names = names_in(state, config)
    wanted = [known_names.model(name) for name in names] or [
        known_names.as_held(model) for model in config.models.values()
    ]
    findings = list(state.all_findings())
    findings += (
        Finding("configuration", "warning", None, config.path, warning, None)
        for warning in config.notices
    )
    environment = environment or read_environment()
    known = Known(environment, state)
    summary = summarise(state, config, location, known)
    table = _Table()
    models = tuple(_model_status(state, model, table, findings, known.used) for model in wanted)
    repos = tuple(_repo_status(state, repo, known.used) for repo in state.repos)
    advised = Advice(config, location)
    planner = Planner(known, config, location)
    steps = recommend(advised, planner, summary, models, repos, findings)
    copies = tuple(list_copies(own_home(environment)[0]))
    findings = [advised.completed(finding) for finding in findings]
    findings += (
        Finding(
            "changed-copy",
            "warning",
            copy.repo,
            copy.path,
            f"the kept {copy.precision} copy is not as it was made: the next load checks it, and "
            "quantises anew if it is damaged",
            advised.command("quantize", copy.repo, "--precision", copy.precision),
        )
        for copy in copies
        if copy.changed
    )
    elsewhere = tuple(_elsewhere(state))
    return Status(summary, models, repos, tuple(steps), tuple(findings), copies, elsewhere)


def ids(status: Status, *, every: bool) -> list[str]:
    """Return one id a line for `--quiet`: repo ids, with the revision where it is not main."""
    names = [
        model.repo if model.revision == "main" else f"{model.repo}@{model.revision}"
        for model in status.models
    ]
    if every:
        names += [repo.repo for repo in status.repos if repo.repo not in names]
    return names


def not_cached(status: Status) -> NotCachedError | None:
    """Return the failure that `--check` tells of, or `None` if every model is cached."""
    lacking = [model for model in status.models if model.state != "cached"]
    if not lacking:
        return None
    states = ", ".join(f"{model.key} is {model.state}" for model in lacking)
    commands = [one.command for one in status.recommendations if one.command]
    fetching = (one for one in commands if one.startswith(("vlmcache pull ", "vlmcache verify ")))
    away = {away_remedy(model.away): None for model in lacking if model.away is not None}
    first = next(fetching, None if away else next(iter(commands), None))
    hint = "; ".join([*([first] if first else []), *away]) or None
    return NotCachedError(f"not every model is cached: {states}", hint)


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


class _Table:
    """The shipped list of models, read only where some model has nothing better to go by."""

    def __init__(self) -> None:
        self._models: dict[str, ModelConfig] | None = None

    def get(self, repo: str) -> ModelConfig | None:
        if self._models is None:
            self._models = {model.repo: model for model in shipped_config().models.values()}
        return self._models.get(repo)


def _model_status(
    state: CacheState,
    model: ModelConfig,
    table: _Table,
    findings: list[Finding],
    used: Mapping[Key, LastUse],
) -> ModelStatus:
    repo = state.repo(model.repo)
    judgement = judge(repo, model.revision)
    held = judgement.revision
    size = size_on_disk = 0
    last_used = None
    if repo is not None and held is not None:
        size, size_on_disk = _revision_sizes(state, repo, held)
        last_used = _last_used(used, repo, [held])
    findings += _unreadable_indexes(model.repo, judgement)
    tensors: dict[str, Tensor] = {}
    if judgement.state == "cached" and held is not None:
        tensors, short = _read_tensors(model.repo, held, findings)
        if short:
            judgement = msgspec.structs.replace(judgement, state="damaged", damaged=short)
    memory, source = _memory(model, tensors, table)
    return ModelStatus(
        key=model.key,
        repo=model.repo,
        revision=model.revision,
        state=judgement.state,
        commit=judgement.commit,
        path=held.path if held else None,
        size=size,
        size_on_disk=size_on_disk,
        expected_size=_expected_size(model, judgement, size, table),
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
    """Tell of indexes that are there and make no sense; the scan itself opens no files."""
    held = judgement.revision
    if held is None:
        return
    for file in held.files:
        if file.name not in judgement.damaged or not file.name.endswith(".index.json"):
            continue
        if file.kind in ("link", "copy") and file.size:
            path = held.file_path(file.name)
            detail = f"{file.name} names no shards that could be loaded"
            remedy = units.command("verify", repo)
            yield Finding("unreadable-index", "error", repo, path, detail, remedy)


def _read_tensors(
    repo: str, revision: Revision, findings: list[Finding]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a whole revision's safetensors, and the files that end too early.

    There are no tensors where a header makes no sense.
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
    model: ModelConfig, tensors: dict[str, Tensor], table: _Table
) -> tuple[MemoryEstimate | None, MemorySource | None]:
    if tensors:
        return with_overhead(weights_bytes(tensors, model.precision)), "weights"
    if model.expected_memory is not None:
        overhead = with_overhead(0).overhead
        return MemoryEstimate(max(0, model.expected_memory - overhead), overhead), "config"
    if model.expected_size is not None:
        return with_overhead(rescale(model.expected_size, "bf16", model.precision)), "config"
    shipped = table.get(model.repo)
    if shipped is not None and shipped.expected_size is not None:
        return with_overhead(rescale(shipped.expected_size, "bf16", model.precision)), "table"
    return None, None


def _expected_size(
    model: ModelConfig, judgement: Judgement, size: int, table: _Table
) -> int | None:
    """Return the length of the whole download, from the best that is known of it."""
    if judgement.tree:
        tree = judgement.tree
        return sum(tree[name].content_size for name in formats.wanted(tree))
    if judgement.state == "cached":
        return size
    if model.expected_size is not None:
        return model.expected_size
    shipped = table.get(model.repo)
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
                _instant(revision.mtime_ns),
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
    """Return when one of the revisions was last used; `None` where only downloads are known."""
    uses = [used[repo.folder, revision.commit] for revision in revisions]
    known = [use.at for use in uses if use.source != "written"]
    return datetime.fromtimestamp(int(max(known)), timezone.utc) if known else None


def _instant(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, timezone.utc)


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
        there = sum(blob.allocated_there for repo in repos for blob in repo.blobs.values())
        yield Elsewhere(
            path,
            tuple(repo.id for repo in repos),
            all(repo.moved_to == path or repo.away is not None for repo in repos),
            sum(repo.size_on_disk for repo in repos) + there,
            free,
        )
