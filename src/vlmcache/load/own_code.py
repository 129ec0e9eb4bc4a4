"""Python code of repos: whether it may run, and at which commit another repo's code does.

transformers fetches and copies all such code in one function of its `dynamic_module_utils.py`. That
function is replaced here: while a model is loaded, it serves the model's own folder and pinned
commits of other repos, and only if code is allowed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from vlmcache.errors import UntrustedCodeError
from vlmcache.load.source import ModelFiles

_MODELS = (
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "AutoModelForMultimodalLM",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
)
"""Auto classes that are preferred to others, in this order; `AutoModel` is the last choice."""
_loading: ContextVar[ModelFiles | None] = ContextVar("loading", default=None)


def untrusted_code(source: ModelFiles) -> UntrustedCodeError:
    """Return the error of a model that needs code which is not allowed to run."""
    repos = " and ".join(repo for repo, commit in source.code_repos.items() if commit is None)
    give = f"give {repos}, too, an entry with" if repos else "set"
    return UntrustedCodeError(
        f"{source.model} needs Python code of {repos or 'its repo'}"
        f" (architecture {source.model_type!r}) to run",
        f"read that code, then pass --trust-remote-code, or {give} trust_remote_code and a full"
        " commit as revision in a config.yaml of your own (for commands, not ./config.yaml)",
    )


@contextlib.contextmanager
def only_allowed(source: ModelFiles) -> Iterator[None]:
    """Let transformers run the code that a source allows, and no other.

    Raises:
        UntrustedCodeError: other code was about to run inside.
    """
    _replace_function()
    token = _loading.set(source)
    try:
        yield
    finally:
        _loading.reset(token)


def _replace_function() -> None:
    from transformers import dynamic_module_utils as dynamic

    original = dynamic.get_cached_module_file
    if getattr(original, "only_allowed", False):
        return

    # transformers passes the first argument by its name in places.
    def replacement(pretrained_model_name_or_path: Any, *arguments: Any, **named: Any) -> Any:
        source, repo = _loading.get(), pretrained_model_name_or_path
        if source is None:
            return original(repo, *arguments, **named)
        if not source.trust_remote_code:
            raise untrusted_code(source)
        if str(repo) in (source.folder, source.processor):
            return original(repo, *arguments, **named)
        commit = source.code_repos.get(str(repo))
        # transformers would take a folder of that name for the repo.
        if commit is None or os.path.isdir(repo):
            raise untrusted_code(source)
        pinned = {"cache_dir": source.cache_dir, "revision": commit, "local_files_only": True}
        return original(repo, *arguments[:1], **(named | pinned))

    replacement.only_allowed = True  # type: ignore[attr-defined]
    dynamic.get_cached_module_file = replacement


def own_settings(source: ModelFiles) -> Any:
    """Return the configuration object, of the repo's own class."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    own = get_class_from_dynamic_module(
        source.classes["AutoConfig"], source.folder, local_files_only=True
    )
    own.register_for_auto_class()
    return own.from_pretrained(source.folder, local_files_only=True)


def own_model_class(source: ModelFiles, architectures: Any) -> tuple[str, str] | None:
    """Return the auto class that a repo's own model class stands for, and the reference to it.

    The class that config.json names as architecture is preferred. `None` if the code has no model.

    Args:
        source: the model's files.
        architectures: the names of classes in config.json; the first counts.
    """
    named = next(iter(architectures or ()), None)

    def rank(auto: str) -> tuple[bool, bool, int, str]:
        place = _MODELS.index(auto) if auto in _MODELS else len(_MODELS)
        is_other = source.classes[auto].rpartition(".")[2] != named
        return is_other, auto == "AutoModel", place, auto

    models = [auto for auto in source.classes if auto.startswith("AutoModel")]
    chosen = min(models, key=rank, default=None)
    return None if chosen is None else (chosen, source.classes[chosen])
