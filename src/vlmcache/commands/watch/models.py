"""The configured models and the other repos of a cache, as `watch` shows them."""

from __future__ import annotations

from collections.abc import Iterator

from vlmcache.cache import formats
from vlmcache.cache.completeness import judge, judge_repo
from vlmcache.cache.state import CacheState, Repo, Revision, State
from vlmcache.commands.watch.users import Users
from vlmcache.commands.watch.values import WatchedModel
from vlmcache.config import Config, ModelConfig


class Models:
    """Judges each repo once for each state of it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._judged: dict[tuple[str, str | None], tuple[Repo, State, int | None]] = {}

    def update(self, state: CacheState, users: Users) -> Iterator[WatchedModel]:
        """Yield the configured models, then the other repos of the cache."""
        folders = {repo.folder for repo in state.repos}
        self._judged = {key: known for key, known in self._judged.items() if key[0] in folders}
        repos = {repo.id: repo for repo in state.repos if repo.type == "model"}
        configured = self._config.models.values()
        for model in configured:
            yield self._model(repos.get(model.repo), model, users)
        names = {model.repo for model in configured}
        for repo in state.repos:
            if repo.type != "model" or repo.id not in names:
                yield self._model(repo, None, users)

    def _model(self, repo: Repo | None, model: ModelConfig | None, users: Users) -> WatchedModel:
        revision = model.revision if model is not None else None
        state, expected = self._judge(repo, revision)
        if expected is None and model is not None:
            expected = model.expected_size
        if repo is not None:
            name, kind = repo.id, repo.type
        else:
            assert model is not None
            name, kind = model.repo, "model"
        return WatchedModel(
            key=model.key if model is not None else None,
            repo=name,
            type=kind,
            revision=revision,
            state=state,
            size_on_disk=repo.size_on_disk if repo is not None else 0,
            expected_size=expected,
            used_by=users.of(repo) if repo is not None else (),
        )

    def _judge(self, repo: Repo | None, revision: str | None) -> tuple[State, int | None]:
        """Return the state and the length of the download, computed once per state of a repo."""
        if repo is None:
            return "missing", None
        known = self._judged.get((repo.folder, revision))
        if known is None or known[0] is not repo:
            if revision is None:
                state, shown = judge_repo(repo), repo.revisions[0] if repo.revisions else None
            else:
                judgement = judge(repo, revision)
                state, shown = judgement.state, judgement.revision
            known = (repo, state, _expected_size(shown))
            self._judged[repo.folder, revision] = known
        return known[1], known[2]


def _expected_size(revision: Revision | None) -> int | None:
    if revision is None or not revision.tree:
        return None
    return sum(revision.tree[name].content_size for name in formats.wanted(revision.tree))
