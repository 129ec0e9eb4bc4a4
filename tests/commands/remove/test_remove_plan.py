"""What planning decides, over caches that are made up: no disk is needed to decide."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmcache.cache.state import (
    Blob,
    ByClass,
    CacheState,
    File,
    LockFolder,
    Partial,
    Repo,
    Revision,
    SharedBlob,
    Stamp,
    State,
)
from vlmcache.cache.usage import LastUse, Process, Usage
from vlmcache.change.names import Target
from vlmcache.change.needed import Evidence
from vlmcache.change.plan import Plan, ReleaseShared, Remove, RemoveTree
from vlmcache.change.removal_plan import plan_removal
from vlmcache.change.removals import Key, Protected
from vlmcache.change.waste import Facts
from vlmcache.commands.remove.plan import plan_cleaning
from vlmcache.commands.remove.values import CleanOptions

NOW = 1_000_000_000.0
BLOCK = 4096
DAY = 86400
EMPTY = Plan(())


def _hash(number: int) -> str:
    return f"{number:064x}"


@st.composite
def caches(draw: st.DrawFn) -> CacheState:
    """A cache of a few repos with revisions that share blobs, within a repo and beyond."""
    inodes = iter(range(1, 10_000))
    shared_sizes = draw(st.lists(st.integers(1, 9), max_size=3))
    users: dict[str, list[str]] = {_hash(n): [] for n in range(len(shared_sizes))}
    repos = []
    locks: dict[str, LockFolder] = {}
    for number in range(draw(st.integers(0, 4))):
        folder = f"models--o--r{number}"
        path = f"/cache/{folder}"
        blobs: dict[str, Blob] = {}
        for count in range(draw(st.integers(0, 5))):
            name = f"{count:040x}"
            in_store = draw(st.integers(-4, len(shared_sizes) - 1)) if shared_sizes else -1
            size = draw(st.integers(1, 9)) * BLOCK
            shared = _hash(in_store) if in_store >= 0 else None
            if shared is not None:
                users[shared].append(f"{folder}/blobs/{name}")
            allocated = 0 if shared else size
            blobs[name] = Blob(next(inodes), 0, size, allocated, name, 1, 1, 0, shared)
        revisions = []
        for place in range(draw(st.integers(0, 4))):
            commit = f"{place:040x}"
            held = draw(st.sets(st.sampled_from(sorted(blobs)))) if blobs else set()
            files = tuple(
                File(next(inodes), 0, blobs[blob].size, 0, f"f-{blob}", "link", blob, 1, 1, 0)
                for blob in sorted(held)
            )
            refs = draw(st.sampled_from([(), (), (f"ref{place}",)]))
            revisions.append(
                Revision(
                    commit,
                    f"{path}/snapshots/{commit}",
                    refs,
                    files,
                    0,
                    entry=Stamp(next(inodes), 0, BLOCK, BLOCK),
                )
            )
        partials = tuple(
            Partial(
                next(inodes),
                int((NOW - draw(st.sampled_from([10, 10_000, 40 * DAY]))) * 1e9),
                BLOCK,
                BLOCK,
                f"p{n}.incomplete",
                f"p{n}",
                f"{path}/blobs/p{n}.incomplete",
                draw(st.booleans()),
                1,
            )
            for n in range(draw(st.integers(0, 2)))
        )
        own = sum(blob.allocated for blob in blobs.values()) + BLOCK * len(revisions)
        metadata = 3 * BLOCK
        named = {ref: one.commit for one in revisions for ref in one.refs}
        repos.append(
            Repo(
                f"o/r{number}",
                "model",
                folder,
                path,
                named,
                tuple(revisions),
                blobs,
                partials,
                (),
                ByClass(referenced=own, partial=BLOCK * len(partials), metadata=metadata),
                (),
                entry=Stamp(next(inodes), 0, BLOCK, BLOCK),
                ref_files={
                    ref: Stamp(next(inodes), draw(st.sampled_from([0, 1])), 40, 0) for ref in named
                },
            )
        )
        files_of_locks = {f"{blob}.lock": Stamp(next(inodes), 0, 0, 0) for blob in blobs}
        locks[folder] = LockFolder(
            f"/cache/.locks/{folder}", Stamp(next(inodes), 0, BLOCK, BLOCK), files_of_locks
        )
    shared_blobs = {
        _hash(n): SharedBlob(
            next(inodes),
            0,
            size * BLOCK,
            size * BLOCK,
            _hash(n),
            f"/cache/blobs/00/{_hash(n)}",
            1,
            1,
            True,
            tuple(users[_hash(n)]),
            BLOCK,
        )
        for n, size in enumerate(shared_sizes)
    }
    total = sum(repo.size_on_disk for repo in repos)
    total += sum(one.allocated + BLOCK for one in shared_blobs.values())
    total += BLOCK * len(locks)
    return CacheState(
        "/cache",
        True,
        tuple(repos),
        shared_blobs,
        True,
        (),
        ByClass(referenced=total),
        (),
        NOW,
        locks,
    )


UNUSED = LastUse(NOW - 40 * DAY, "access")


@st.composite
def evidences(draw: st.DrawFn, state: CacheState) -> Evidence:
    """What can be known of the revisions of a cache, mostly that they load and are unused."""
    uses = [UNUSED, UNUSED, LastUse(NOW - 9, "access"), LastUse(NOW - 40 * DAY, "written"), None]
    states: dict[Key, State] = {}
    known: dict[Key, LastUse] = {}
    for key in keys(state):
        states[key] = draw(st.sampled_from(("cached", "cached", "cached", "partial")))
        use = draw(st.sampled_from(uses))
        if use is not None:
            known[key] = use
    return Evidence(states, known)


def loads(evidence: Evidence, repo: Repo, revision: Revision) -> bool:
    return evidence.states[repo.folder, revision.commit] == "cached"


def keys(state: CacheState) -> list[Key]:
    return [(repo.folder, one.commit) for repo in state.repos for one in repo.revisions]


def gone(state: CacheState, plan: Plan) -> set[Key]:
    """The revisions that are not there once the plan is carried out."""
    paths = {action.path for action in plan.actions if isinstance(action, RemoveTree | Remove)}
    return {
        (repo.folder, one.commit)
        for repo in state.repos
        for one in repo.revisions
        if repo.path in paths or one.path in paths
    }


def lost_blobs(state: CacheState, plan: Plan) -> set[tuple[str, str]]:
    paths = {action.path for action in plan.actions if isinstance(action, RemoveTree | Remove)}
    return {
        (repo.folder, name)
        for repo in state.repos
        for name in repo.blobs
        if repo.path in paths or f"{repo.path}/blobs/{name}" in paths
    }


def really_freed(state: CacheState, plan: Plan) -> int:
    """What the plan gives back, computed in the plain way: by what is left of each thing."""
    paths = {action.path for action in plan.actions if isinstance(action, RemoveTree | Remove)}
    freed = 0
    lost = lost_blobs(state, plan)
    for repo in state.repos:
        if repo.path in paths:
            freed += repo.size_on_disk
            continue
        freed += sum(
            one.entry.allocated for one in repo.revisions if one.path in paths if one.entry
        )
        freed += sum(
            blob.allocated for name, blob in repo.blobs.items() if (repo.folder, name) in lost
        )
        freed += sum(one.allocated for one in repo.partials if one.path in paths)
    references = {f"{folder}/blobs/{name}" for folder, name in lost}
    released = {action.hash for action in plan.actions if isinstance(action, ReleaseShared)}
    for shared in state.shared.values():
        if shared.hash in released and set(shared.users) <= references:
            freed += shared.allocated + shared.manifest_allocated
    for locks in state.locks.values():
        freed += locks.entry.allocated if locks.path in paths else 0
    return freed


def begun(repo: Repo) -> bool:
    """Whether a download into the repo may be going on."""
    return any(part.locked or part.mtime_ns > (NOW - 3600) * 1e9 for part in repo.partials)


def check(state: CacheState, plan: Plan) -> None:
    """What holds for every plan."""
    assert plan.frees == really_freed(state, plan)
    assert len({action.path for action in plan.actions}) == len(plan.actions)
    removed = gone(state, plan)
    lost = lost_blobs(state, plan)
    for repo in state.repos:
        for one in repo.revisions:
            if (repo.folder, one.commit) not in removed:
                assert not any((repo.folder, file.blob) in lost for file in one.files)
    references = {f"{folder}/blobs/{name}" for folder, name in lost}
    for action in plan.actions:
        if isinstance(action, ReleaseShared):
            assert set(action.references) <= references
            assert action.last == (set(state.shared[action.hash].users) <= references)
        else:
            assert isinstance(action, Remove | RemoveTree)
            assert action.reason


@given(caches(), st.data())
def test_rm_removes_what_was_named_and_only_that(state: CacheState, data: st.DataObject) -> None:
    if not keys(state):
        return
    named = data.draw(st.lists(st.sampled_from(keys(state)), min_size=1, unique=True))
    plan = plan_removal(state, [Target("x", folder, commit) for folder, commit in named])

    check(state, plan)
    assert gone(state, plan) == set(named)
    folders = {folder for folder, _ in named}
    for action in plan.actions:
        if isinstance(action, Remove | RemoveTree):
            assert any(folder in action.path for folder in folders)


@given(caches(), st.data())
def test_rm_of_repos_leaves_nothing_of_them(state: CacheState, data: st.DataObject) -> None:
    if not state.repos:
        return
    repos = data.draw(st.lists(st.sampled_from(state.repos), min_size=1, unique_by=id))
    plan = plan_removal(state, [Target("x", repo.folder) for repo in repos])

    check(state, plan)
    trees = {action.path for action in plan.actions if isinstance(action, RemoveTree)}
    assert trees == {repo.path for repo in repos} | {
        state.locks[repo.folder].path for repo in repos
    }


@given(caches(), st.data())
def test_clean_removes_waste_and_no_more(state: CacheState, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.sampled_from(keys(state)))) if keys(state) else set()
    kept_by = Protected(dict.fromkeys(kept, "kept"))
    evidence = data.draw(evidences(state))
    asked = data.draw(st.booleans())
    facts = Facts(NOW, kept=kept_by, evidence=evidence)
    plan, missed = plan_cleaning(state, CleanOptions(partials=asked), facts)

    check(state, plan)
    assert missed == 0
    removed, lost = gone(state, plan), lost_blobs(state, plan)
    paths = {action.path for action in plan.actions}
    for repo in state.repos:
        assert repo.path not in paths
        cached = {one.commit for one in repo.revisions if loads(evidence, repo, one)}
        replaced = {
            one.commit
            for one in repo.revisions
            if not one.refs and (repo.folder, one.commit) not in kept
            if evidence.uses.get((repo.folder, one.commit)) == UNUSED
            if any(
                repo.ref_files[ref].mtime_ns
                for other in repo.revisions
                if other.commit in cached
                # Without a listing, only what was there before shows what is complete.
                if {file.name for file in one.files} <= {file.name for file in other.files}
                for ref in other.refs
            )
        }
        staying = {one.commit for one in repo.revisions} - replaced
        sound = bool(repo.refs) and staying <= cached
        if begun(repo) or not sound:
            assert not {commit for folder, commit in removed if folder == repo.folder}
        else:
            assert {key[1] for key in removed if key[0] == repo.folder} == replaced
        unlinked = {name for name, users in repo.blob_users().items() if not users}
        waits = bool(repo.partials)
        orphans = unlinked if sound and not waits and not begun(repo) else set()
        assert {name for folder, name in lost if folder == repo.folder} & unlinked == orphans
        for partial in repo.partials:
            idle = 0 if partial.locked else NOW - partial.mtime_ns / 1e9
            assert (partial.path in paths) == (idle > (3600 if asked else 30 * DAY))


@given(caches(), st.data())
def test_nothing_in_use_is_removed(state: CacheState, data: st.DataObject) -> None:
    blobs = [(repo, blob) for repo in state.repos for blob in repo.blobs.values()]
    if not blobs:
        return
    repo, blob = data.draw(st.sampled_from(blobs))
    by = (Process(42, "python serve.py", "mapped"),)
    usage = Usage({(blob.device, blob.inode): by})
    wishes = CleanOptions(older_than=0.0, max_size=0, everything=data.draw(st.booleans()))
    plan, _ = plan_cleaning(state, wishes, Facts(NOW, usage=usage))

    check(state, plan)
    assert not {folder for folder, _ in gone(state, plan)} & {repo.folder}
    assert not {folder for folder, _ in lost_blobs(state, plan)} & {repo.folder}


@given(caches(), st.data(), st.sampled_from(["max_size", "free"]))
@settings(max_examples=300)
def test_eviction_removes_the_fewest_of_the_least_recently_used(
    state: CacheState, data: st.DataObject, form: str
) -> None:
    everyone = keys(state)
    pinned = data.draw(st.sets(st.sampled_from(everyone))) if everyone else set()
    times = data.draw(st.lists(st.integers(0, 5), min_size=len(everyone), max_size=len(everyone)))
    uses = {key: LastUse(float(at), "access") for key, at in zip(everyone, times, strict=True)}
    by = Protected(dict.fromkeys(pinned, "configured"))
    # Everything is a number of whole blocks, so that goals are often met to the byte.
    most = state.size_on_disk // BLOCK + (form == "free")
    need = BLOCK * data.draw(st.integers(0, most))
    waste, _ = plan_cleaning(state, CleanOptions(), Facts(NOW, pinned=by))

    def attempt(bytes_needed: int) -> tuple[Plan, int]:
        wishes = CleanOptions(free=100 + bytes_needed)
        if form == "max_size":
            wishes = CleanOptions(max_size=state.size_on_disk - bytes_needed)
        return plan_cleaning(state, wishes, Facts(NOW, 100, uses, by))

    plan, missed = attempt(need)
    check(state, plan)
    assert not gone(state, plan) & pinned
    assert missed == max(0, need - plan.frees)
    evicted = gone(state, plan) - gone(state, waste)
    order = sorted(evicted, key=lambda key: (uses[key].at, key))
    rest = [
        key
        for key in everyone
        if key not in gone(state, plan)
        and key not in pinned
        and not any(begun(repo) for repo in state.repos if repo.folder == key[0])
    ]
    if order and rest:
        last = order[-1]
        assert all((uses[last].at, last) < (uses[key].at, key) for key in rest)
    if missed:
        assert not rest
    if order and not missed:
        # Without the last of them it would not have been enough.
        shorter = Protected({**by.revisions, order[-1]: "spared"})
        shown = {key: uses[key] if key in order else LastUse(NOW, "access") for key in uses}
        without, _ = plan_cleaning(
            state,
            CleanOptions(older_than=NOW - uses[order[-1]].at - 0.5 if len(order) > 1 else None),
            Facts(NOW, last_used=shown, pinned=shorter),
        )
        assert without.frees < need


@given(caches(), st.floats(0, 10))
def test_older_than_removes_all_that_is_older_and_not_pinned(state: CacheState, age: float) -> None:
    uses = {key: LastUse(NOW - number, "journal") for number, key in enumerate(sorted(keys(state)))}
    pinned = set(keys(state)[::3])
    plan, _ = plan_cleaning(
        state,
        CleanOptions(older_than=age),
        Facts(NOW, last_used=uses, pinned=Protected(dict.fromkeys(pinned, "configured"))),
    )

    check(state, plan)
    removed = gone(state, plan)
    for repo in state.repos:
        for one in repo.revisions:
            key = repo.folder, one.commit
            old = NOW - uses[key].at > age
            assert (key in removed) == (key not in pinned and not begun(repo) and old)


@given(caches())
def test_all_removes_every_repo_that_is_not_in_use(state: CacheState) -> None:
    plan, _ = plan_cleaning(state, CleanOptions(everything=True), Facts(NOW))

    check(state, plan)
    paths = {action.path for action in plan.actions}
    for repo in state.repos:
        busy = any(part.locked for part in repo.partials)
        assert (repo.path in paths) == (not busy)


@given(caches())
def test_a_plan_survives_json(state: CacheState) -> None:
    plan, _ = plan_cleaning(state, CleanOptions(everything=True), Facts(NOW))

    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_where_no_use_is_known_the_reason_says_that_the_download_stands_in() -> None:
    revision = Revision("a" * 40, "/cache/models--o--r/snapshots/a", ("main",), (), 0)
    repo = Repo(
        "o/r",
        "model",
        "models--o--r",
        "/cache/models--o--r",
        {"main": revision.commit},
        (revision,),
        {},
        (),
        (),
        ByClass(metadata=BLOCK),
        (),
        ref_files={"main": Stamp(1, 0, 40, 0)},
    )
    state = CacheState("/cache", True, (repo,), {}, False, (), repo.by_class, (), NOW)
    uses = {("models--o--r", revision.commit): LastUse(NOW - 40 * 86400, "written")}

    plan, _ = plan_cleaning(state, CleanOptions(older_than=30 * 86400), Facts(NOW, last_used=uses))

    (action,) = plan.actions
    assert isinstance(action, RemoveTree)
    assert action.reason == "unused for 40 days, by the time of its download"
