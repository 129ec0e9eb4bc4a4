"""What a typed name means: `NAME[@REVISION][:VARIANT]` (pure).

Every command reads names here, wherever they are looked up: in a cache, a backup, the kept copies.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

import msgspec

from vlmcache import late
from vlmcache.cache import layout
from vlmcache.config_values import Config, ModelConfig, split_variant
from vlmcache.errors import UnknownModelError, UsageError
from vlmcache.units import command, did_you_mean

_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")
_SCHEME = late.pattern(r"https?://", re.IGNORECASE)
_AT_A_REVISION = frozenset({"tree", "blob", "resolve", "raw", "blame", "edit", "commit", "commits"})
_PAGES = _AT_A_REVISION | {"discussions", "settings"}
"""What follows a repo's id in the address of one of its pages; after those of `_AT_A_REVISION` come
the revision and a file or folder."""


class Name(msgspec.Struct, frozen=True):
    """A name in its parts, as they were typed."""

    name: str
    """A key of config.yaml, a repo id, or `datasets/owner/name` and the like."""
    revision: str | None = None
    """The branch, tag or commit after the `@`."""
    variant: str | None = None
    """The variant of the model after the last `:`: a quantization of its GGUF files."""


class Named(msgspec.Struct, frozen=True):
    """What a name means."""

    kind: str
    """The type of the repo: `model`, `dataset`, …"""
    repo: str
    revision: str | None = None
    """The revision that was typed."""
    variant: str | None = None
    """The variant that was typed, or for which the typed key stands."""
    model: ModelConfig | None = None
    """The configured model that is meant, at its configured revision."""
    in_place: bool = False
    """Whether the repo is in the place where it was looked up."""

    @property
    def folder(self) -> str:
        """The name of the repo's folder in a cache."""
        return layout.repo_folder(self.kind, self.repo)


class Page(msgspec.Struct, frozen=True):
    """What the address of a page on the hub is about."""

    name: str
    """The repo, with `@REVISION` and `:VARIANT` if the address has them."""
    path: str | None = None
    """The file that the page shows, or the folder, which ends with a slash."""


def parse_page(text: str, hub: str | None = None) -> Page | None:
    """Return what an address on the hub is about, `None` if a string is not one.

    Args:
        text: the address, in any case, with or without `https://`.
        hub: the address that HF_ENDPOINT names.
    """
    address = _SCHEME.sub("", text, count=1)
    for host in (_SCHEME.sub("", hub or "", count=1).rstrip("/"), *_HUBS):
        if host and address.casefold().startswith(f"{host.casefold()}/"):
            rest = re.split(r"[?#]", address[len(host) + 1 :], maxsplit=1)[0].strip("/")
            break
    else:
        return None
    rest, variant = split_variant(rest)
    parts = rest.split("/")
    after = ":" + variant if variant else ""
    owner = 1 if parts[0] in layout.KINDS else 0
    # `gpt2/tree/main` is a page of `gpt2`, and `owner/tree` is a repo.
    ends = [owner + 2, *([owner + 1] if len(parts) > owner + 2 else [])]
    at = next((at for at in ends if parts[at : at + 1] and parts[at] in _PAGES), len(parts))
    name = "/".join(parts[:at])
    if at == len(parts) or parts[at] not in _AT_A_REVISION or "@" in name:
        return Page(name + after)
    shown = parts[at + 1 :]
    # A ref such as refs/pr/1 is one part of an address, unless a person has typed it.
    length = 3 if shown[:1] == ["refs"] else 1
    revision, path = "/".join(shown[:length]), "/".join(shown[length:])
    name += f"@{unquote(revision)}" if revision else ""
    folder = "/" if path and parts[at] == "tree" else ""
    return Page(name + after, unquote(path) + folder or None)


def is_pattern(text: str) -> bool:
    """Return whether a name can mean several: it has a `*`, `?` or `[`."""
    return any(sign in text for sign in "*?[")


def parse_name(text: str) -> Name:
    """Return the parts of `NAME[@REVISION][:VARIANT]`."""
    rest, variant = split_variant(text)
    name, at, revision = rest.partition("@")
    return Name(name, revision if at else None, variant)


class Names:
    """Reads names for one configuration and one place that holds repos.

    The id of a repo in the place comes first, so that no key can stand for another repo than its
    spelling says; then keys, then other repo ids.

    Args:
        config: the configuration whose keys count.
        repos: (type, id) of the repos in the place.
        variants: whether the command can work on one variant of a model.
    """

    def __init__(
        self, config: Config, repos: Iterable[tuple[str, str]], *, variants: bool = False
    ) -> None:
        self.config = config
        self._variants = variants
        self._ids: dict[tuple[str, str], set[str]] = {}
        for kind, repo_id in repos:
            self._ids.setdefault((kind, repo_id.casefold()), set()).add(repo_id)

    def is_key(self, text: str) -> bool:
        """Return whether a string is a key of config.yaml, and means what is configured there.

        Raises:
            UsageError: it is the id of several repos in another case.
        """
        return text in self.config.models and self._in_place(parse_name(text).name) is None

    def resolve(self, text: str) -> Named:
        """Return what a name means, whether it is in the place or not.

        Raises:
            UsageError: the revision cannot be one, a variant is named, or it can be several repos.
        """
        if self.is_key(text):
            model = self.respelled(self.config.models[text])
            return Named("model", model.repo, variant=model.variant, model=model)
        parts = parse_name(self.without_address(text))
        in_place = self._in_place(parts.name)
        key = self._key(parts.name)
        configured = None if key is None else self.config.models[key]
        if configured is not None:
            configured = self.respelled(configured)
        if in_place is not None:
            kind, repo_id = in_place
            if kind != "model" or (configured and configured.repo != repo_id):
                configured = None
        elif configured is not None:
            kind, repo_id = "model", configured.repo
        else:
            kind, repo_id = layout.split_name(parts.name)
            if kind != "model" and "/" not in repo_id:
                kind, repo_id = "model", parts.name
        if configured is None and kind == "model":
            configured = self._configured(repo_id, exactly=in_place is not None)
            repo_id = repo_id if configured is None else configured.repo
        if parts.revision is not None and not layout.is_revision(parts.revision):
            raise UsageError(f"{parts.revision!r} is not a branch, tag or commit")
        known = in_place is not None or configured is not None or layout.is_repo_id(repo_id)
        if is_pattern(parts.name) and not known:
            raise UsageError(
                f"{text} is a pattern, and this command takes only names",
                f"type {command('status', text)} to see what it matches",
            )
        reordered = parse_name(parts.name)
        if reordered.variant is not None and not known:
            raise UsageError(
                f"{text}: the variant comes last",
                f"type {reordered.name}@{parts.revision}:{reordered.variant}",
            )
        if parts.variant is not None and known and (kind != "model" or not self._variants):
            raise UsageError(
                f"{text}: this command has no variants to choose from",
                f"type {text.rpartition(':')[0]}",
            )
        variant = parts.variant
        if variant is None and configured is not None and key == configured.key:
            variant = configured.variant
        return Named(kind, repo_id, parts.revision, variant, configured, in_place is not None)

    def respelled(self, model: ModelConfig) -> ModelConfig:
        """Return a model with its repo spelled as in the place, if only one there can be meant."""
        ids = self._ids.get(("model", model.repo.casefold()), set())
        if model.repo in ids or len(ids) != 1:
            return model
        return msgspec.structs.replace(model, repo=next(iter(ids)))

    def model(self, text: str, *, others: bool = False) -> ModelConfig:
        """Return the model that a command's MODEL means, at the revision that is asked for.

        Args:
            text: what was typed.
            others: whether it may be a dataset or a space, whose prefix its `repo` keeps.

        Raises:
            UnknownModelError: no such key, and the string is not a repo id with an owner; only ids
                in the place may have none (`gpt2`).
            UsageError: as `resolve` does.
        """
        named = self.resolve(text)
        model = named.model
        if model is None:
            known = (others or named.kind == "model") and layout.is_repo_id(named.repo)
            name = layout.typed_name(named.kind, named.repo)
            # With an owner called `datasets`, the id of a model would be another repo's name.
            is_its_name = layout.split_name(name) == (named.kind, named.repo)
            if not (known and is_its_name and ("/" in named.repo or named.in_place)):
                raise self.unknown(text)
            model = ModelConfig(key=name, repo=name, configured=False)
        return msgspec.structs.replace(
            model,
            revision=named.revision or model.revision,
            variant=named.variant or model.variant,
        )

    def name_of(self, model: ModelConfig) -> str:
        """Return what to type for a model at a revision, which `model` reads back.

        It is the key, unless that would be read as an option or as another repo's id.
        """
        ids = self._ids.get(("model", parse_name(model.key).name.casefold()), set())
        if model.key.startswith("-") or not ids <= {self.respelled(model).repo}:
            return f"{model.repo}@{model.revision}" + _after(":", model.variant, None)
        known = self.config.models.get(model.key)
        usual = known.revision if known is not None else "main"
        variant = known.variant if known is not None else None
        return model.key + _after("@", model.revision, usual) + _after(":", model.variant, variant)

    def unknown(self, text: str, place: str | None = None) -> UnknownModelError:
        """Return the error for a name that means nothing, with what is similar to it in its hint.

        Args:
            text: what was typed.
            place: `cache` or `backup`, if only what is in the place could be meant.
        """
        in_place = list(self._typed_names())
        models = {key: self.respelled(model) for key, model in self.config.models.items()}
        keys = [key for key, model in models.items() if place is None or model.repo in in_place]
        if place is None:
            # A configured model is named by its key only.
            configured = {model.repo for model in models.values()}
            in_place = [name for name in in_place if name not in configured]
        name = parse_name(text).name
        hint = did_you_mean(name, [*keys, *sorted(in_place)])
        if place is not None:
            listed = "'vlmcache status --all' lists all" if place == "cache" else None
            return UnknownModelError(f"nothing like {text} is in the {place}", hint or listed)
        if hint is None and self.config.listed:
            hint = f"known: {', '.join(self.config.listed)}; or a repo id such as owner/name"
        return UnknownModelError(
            f"no such model: {name}", hint or "name a repo id such as owner/name"
        )

    def matching(self, text: str, *, missing: bool = False) -> list[str]:
        """Return the names that a pattern matches, in any case; any other name as it is.

        A pattern matches keys and ids of models; those of datasets only if it begins with
        `datasets/`. A model that is matched by its key is not matched by its id too.

        Args:
            text: what was typed; its revision and variant count for all that it matches.
            missing: whether to match keys of models that are not in the place, too.

        Raises:
            UnknownModelError: it matches nothing.
        """
        name = self.without_address(text)
        parts = parse_name(name)
        if not is_pattern(parts.name) or text in self.config.models or self._in_place(parts.name):
            return [text]
        after = f"@{parts.revision}" if parts.revision is not None else ""
        after += f":{parts.variant}" if parts.variant is not None else ""
        pattern = parts.name.casefold()
        matched: dict[str, str] = {}
        for key, model in self.config.models.items():
            model = self.respelled(model)
            in_place = model.repo in self._ids.get(("model", model.repo.casefold()), ())
            if (in_place or missing) and fnmatch.fnmatchcase(key.casefold(), pattern):
                matched.setdefault(model.repo, key + after)
        for name in sorted(self._typed_names()):
            kind = layout.split_name(name)[0]
            of_its_type = kind == "model" or pattern.startswith(f"{kind}s/")
            if of_its_type and fnmatch.fnmatchcase(name.casefold(), pattern):
                matched.setdefault(name, name + after)
        if not matched:
            raise UnknownModelError(
                f"nothing matches {text}", "'vlmcache status --all' lists what is cached"
            )
        return list(matched.values())

    def without_address(self, text: str) -> str:
        """Return the name for which the address of a page stands; any other string as it is."""
        page = None if self._in_place(text) else parse_page(text, self.config.hub)
        return text if page is None else page.name

    def _typed_names(self) -> Iterator[str]:
        """Yield what to type for each repo in the place."""
        for (kind, _), ids in self._ids.items():
            for repo_id in ids:
                yield layout.typed_name(kind, repo_id)

    def _key(self, name: str) -> str | None:
        """Return the key that a name is, in the same case or, if only one matches, in any case."""
        if name in self.config.models:
            return name
        folded = name.casefold()
        keys = [key for key in self.config.models if key.casefold() == folded]
        return keys[0] if len(keys) == 1 else None

    def _in_place(self, name: str) -> tuple[str, str] | None:
        """Return type and id of the repo in the place whose id a name is, in any case."""
        for kind, rest in (("model", name), layout.split_name(name)):
            ids = self._ids.get((kind, rest.casefold()), set())
            if rest in ids:
                return kind, rest
            if len(ids) > 1:
                raise ambiguous(rest, ids)
            for repo_id in ids:
                return kind, repo_id
        return None

    def _configured(self, repo_id: str, *, exactly: bool) -> ModelConfig | None:
        """Return the first configured model of a repo, one with the very same id before others."""
        folded = repo_id.casefold()
        models = self.config.models.values()
        same = [model for model in models if model.repo.casefold() == folded]
        for model in sorted(same, key=lambda model: model.repo != repo_id):
            meant = self.respelled(model)
            if not exactly or meant.repo == repo_id:
                return meant
        return None


def ambiguous(name: str, ids: Iterable[str]) -> UsageError:
    """Return the error for a name that can be several repos, which differ only by case."""
    return UsageError(f"{name} can be {' or '.join(sorted(ids))}", "type one of them")


def _after(sign: str, part: str | None, usual: str | None) -> str:
    return "" if part is None or part == usual else f"{sign}{part}"


def find_model(
    config: Config,
    text: str,
    cached: Iterable[str] = (),
    *,
    variants: bool = False,
    others: bool = False,
) -> ModelConfig:
    """Return the model that a name means: a repo id or a key, with `@revision` and `:VARIANT`.

    Args:
        config: the configuration whose keys count.
        text: what was typed.
        cached: names of the repos in the cache; only these may be without an owner (`gpt2`).
        variants: whether the command can work on one variant of a model.
        others: whether it can work on datasets and spaces too.

    Raises:
        UnknownModelError: no such key, and the string is not a repo id with an owner.
        UsageError: the revision cannot be one, or the name can be two repos.
    """
    return _names(config, cached, variants=variants).model(text, others=others)


def name_of(config: Config, model: ModelConfig, cached: Iterable[str]) -> str:
    """Return what to type for a model at a revision; `find_model` reads it back.

    Args:
        config: the configuration whose keys count.
        model: the model, at the revision that is meant.
        cached: ids of the models in the cache, which come before keys.
    """
    return _names(config, cached).name_of(model)


def names_of_all(config: Config, cached: Iterable[str]) -> list[str]:
    """Return a name for each configured model, usually its key; `find_model` reads it back.

    The models that ship with the package are not among them.
    """
    return list(map(_names(config, cached).name_of, config.listed.values()))


def expand_patterns(
    config: Config,
    names: Iterable[str],
    cached: Iterable[str],
    *,
    missing: bool = False,
    folders: Iterable[str] = (),
) -> tuple[str, ...]:
    """Return names, each pattern among them replaced by what it matches.

    Args:
        config: the configuration whose keys count.
        names: what was typed.
        cached: names of the repos that can be matched.
        missing: whether patterns also match keys whose model is not among these.
        folders: the name of an entry in one of these is not a pattern.

    Raises:
        UnknownModelError: a pattern matches nothing.
    """
    reader, folders = _names(config, cached), tuple(folders)
    expanded: dict[str, None] = {}
    for text in names:
        is_path = any(os.path.lexists(os.path.join(folder, text)) for folder in folders)
        if is_path or not is_pattern(text):
            expanded[text] = None
        else:
            expanded |= dict.fromkeys(reader.matching(text, missing=missing))
    return tuple(expanded)


def without_addresses(config: Config, names: Iterable[str]) -> list[str]:
    """Return names, each address on the hub among them replaced by the name of its repo."""
    return [name if (page := parse_page(name, config.hub)) is None else page.name for name in names]


def at_revision(names: Iterable[str], revision: str | None, option: str) -> tuple[str, ...]:
    """Return names at a revision, or as they are if it is `None`.

    Args:
        names: what was typed.
        revision: a branch, tag or commit.
        option: what messages call the revision.

    Raises:
        UsageError: a name has a revision of its own.
    """
    names = tuple(names)
    if revision is None:
        return names
    if any("@" in name for name in names):
        raise UsageError(f"a revision is given twice: with @ and with {option}")
    parts = map(parse_name, names)
    return tuple(f"{part.name}@{revision}" + _after(":", part.variant, None) for part in parts)


def _names(config: Config, cached: Iterable[str], *, variants: bool = False) -> Names:
    return Names(config, map(layout.split_name, cached), variants=variants)
