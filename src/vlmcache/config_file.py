"""How a config.yaml is read: each value with its line, so that a mistake can be found."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from vlmcache import late
from vlmcache.cache import layout
from vlmcache.cache.reading import read_bytes
from vlmcache.config_values import (
    Config,
    Limits,
    ModelConfig,
    Source,
    parse_attention,
    parse_precision,
    split_variant,
)
from vlmcache.environment import FILE_LIMIT, user_config
from vlmcache.errors import ConfigError, reason_of
from vlmcache.units import did_you_mean, parse_size

# Most people have no config.yaml, and need not wait for what reads one.
if TYPE_CHECKING:
    import yaml
else:
    yaml = late.module("yaml")

_DEEPEST = 100
"""Levels of nesting; thousands of them would end the process within PyYAML's C part."""
SHIPPED = os.path.join(os.path.dirname(__file__), "config.yaml")
SHIPPED_VALUES = os.path.join(os.path.dirname(__file__), "config.json")
"""What the shipped file says, made of it by `python -m docs.generate config`."""
_OWN_ONLY = ("max_size", "archive", "base", "sources", "trash_days")
"""Keys that make a command remove more or lead it elsewhere: no working folder sets them."""


def shipped_config() -> Config:
    """Return the configuration that comes with the package."""
    values = msgspec.json.decode(read_bytes(SHIPPED_VALUES, FILE_LIMIT), type=Config)
    return msgspec.structs.replace(values, path=SHIPPED)


def read_config(path: str, source: Source, *, alone: bool = False) -> Config | None:
    """Return what a file configures, or `None` if it belongs to a working folder and is not ours.

    Without a `models` section the shipped models count, unless the file is read `alone`.

    Raises:
        ConfigError: it cannot be read, or holds a wrong value in a section of ours.
    """
    try:
        content = read_bytes(path, FILE_LIMIT)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (named by {source})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {reason_of(error)}") from error
    return parse_config(content, path, source, alone=alone)


def parse_config(
    content: bytes, path: str, source: Source, *, alone: bool = False
) -> Config | None:
    """Return what the content of a file configures; see `read_config`.

    Raises:
        ConfigError: it cannot be read, or holds a wrong value in a section of ours.
    """
    try:
        _check_depth(path, content)
        loader = _loader_class()(content)
        try:
            reader = _Reader(path, source, loader, alone=alone)
            root = loader.get_single_node()
            is_ours = reader.is_ours(root)
            if source == "./config.yaml" and not is_ours:
                return None
            config = reader.read(root)
            named = source in ("--config", "VLMCACHE_CONFIG") and not alone
            if named and not is_ours and root is not None:
                # Nothing in the file is wrong, but nothing in it is meant for us either.
                raise ConfigError(
                    f"{path}: none of its models has model_path or repo (named by {source})",
                    "name a config.yaml of vlmcache; 'vlmcache init' writes one",
                )
            return config
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        number = content[: error.position].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{number}: holds bytes that are not UTF-8, or control characters",
            "save the file as UTF-8 text",
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: a scalar such as the date 2026-05-45, which YAML itself accepts.
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {reason}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error


def _check_depth(path: str, content: bytes) -> None:
    depth = 0
    for event in yaml.parse(content, Loader=_safe_loader()):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            line = f":{event.start_mark.line + 1}" if event.start_mark is not None else ""
            raise ConfigError(f"{path}{line}: nested too deeply")


def _safe_loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def _loader_class() -> Any:
    """Return a loader with which merged mappings (`<<`) do not grow with each merge.

    With PyYAML's own loader, a few lines that merge one another can fill all memory.
    """

    class Loader(_safe_loader()):  # type: ignore[misc]
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            super().flatten_mapping(node)
            # As with PyYAML, the last key of the same name counts.
            last = {
                name.value if isinstance(name, yaml.ScalarNode) else id(name): (name, value)
                for name, value in node.value
            }
            node.value = list(last.values())

    return Loader


class _Reader:
    """Reads our sections out of a composed YAML document; each value knows its line."""

    def __init__(self, path: str, source: Source, loader: Any, *, alone: bool) -> None:
        self.path = path
        self.source = source
        self.alone = alone
        self.loader = loader
        self.warnings: list[str] = []
        self.unknown: list[str] = []
        self._places: dict[str, Callable[[yaml.Node, str], Any]] = {
            "archive": self.folder,
            "base": self.folder,
            "sources": self.sources,
        }

    def is_ours(self, root: yaml.Node | None) -> bool:
        """Return whether a file is meant for us: an application may have its own config.yaml.

        `models: {}` is: it says that there are none.
        """
        sections = self.mapping(root, "") if isinstance(root, yaml.MappingNode) else {}
        models = sections.get("models")
        if "vlmcache" in sections or models is None:
            return "vlmcache" in sections
        if not isinstance(models, yaml.MappingNode):
            return models.tag.endswith(":null")
        entries = self.mapping(models, "models").values()
        return not models.value or any(
            not self.mapping(entry, "").keys().isdisjoint(("model_path", "repo"))
            for entry in entries
            if isinstance(entry, yaml.MappingNode)
        )

    def read(self, root: yaml.Node | None) -> Config:
        sections = {} if root is None else self.mapping(root, "the file")
        if "models" in sections:
            models = {
                key: self.model(key, node)
                for key, node in self.mapping(sections["models"], "models", empty=True).items()
            }
        elif self.alone:
            models = {}
        else:
            models = shipped_config().models
        shipped = self.source == "shipped" or ("models" not in sections and not self.alone)
        limits = Limits()
        places: dict[str, Any] = {}
        if "vlmcache" in sections:
            fields = self.mapping(sections["vlmcache"], "vlmcache", empty=True)
            if self.source != "./config.yaml":
                places = {
                    name: read(fields.pop(name), f"vlmcache.{name}")
                    for name, read in self._places.items()
                    if name in fields
                }
            limits = self.limits(fields)
        return Config(
            self.path,
            self.source,
            models,
            limits,
            (*self.warnings, *self.unknown),
            unknown=tuple(self.unknown),
            shipped=shipped,
            **places,
        )

    def wrong(self, node: yaml.Node, key: str, problem: str) -> ConfigError:
        line = node.start_mark.line + 1
        return ConfigError(
            f"{self.path}:{line}: {key}: {problem}", "fix that line, or name a file with --config"
        )

    def mapping(self, node: yaml.Node, key: str, *, empty: bool = False) -> dict[str, yaml.Node]:
        if empty and isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, key, "must be a mapping of keys to values")
        self.loader.flatten_mapping(node)
        return {
            name.value: value for name, value in node.value if isinstance(name, yaml.ScalarNode)
        }

    def text(self, node: yaml.Node, key: str) -> str:
        """Return a scalar as it is written, so that a tag `1.0` stays `1.0`."""
        if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":null") or not node.value:
            raise self.wrong(node, key, "must be a string")
        return str(node.value)

    def value(self, node: yaml.Node, key: str) -> Any:
        try:
            return self.loader.construct_object(node, deep=True)
        except yaml.constructor.ConstructorError as error:
            raise self.wrong(node, key, str(error.problem)) from error
        except (AttributeError, LookupError) as error:
            # PyYAML's errors for a tag that does not fit its value: `!!bool maybe`, `!!int ''`.
            raise self.wrong(node, key, "its tag does not fit its value") from error

    def parsed(
        self,
        node: yaml.Node,
        key: str,
        parse: Callable[[Any], Any],
        read: Callable[[yaml.Node, str], Any] | None = None,
    ) -> Any:
        """Return what is made of a scalar as it is written, or of what another method reads."""
        try:
            return parse((read or self.text)(node, key))
        except ValueError as error:
            raise self.wrong(node, key, str(error)) from None

    def model(self, key: str, node: yaml.Node) -> ModelConfig:
        where = f"models.{key}"
        # A null leaves the default.
        fields = {
            name: value
            for name, value in self.mapping(node, where).items()
            if not value.tag.endswith(":null") or name in ("model_path", "repo")
        }
        repo_key = "model_path" if "model_path" in fields else "repo"
        if repo_key not in fields:
            raise self.wrong(node, where, "needs model_path: the repo id, as owner/name")
        if not fields[repo_key].tag.endswith(":str"):
            raise self.wrong(fields[repo_key], f"{where}.{repo_key}", "must be a string")
        repo, variant = self.parsed(fields[repo_key], f"{where}.{repo_key}", _parse_repo)
        model = {
            name: self.parsed(fields[name], f"{where}.{name}", parse)
            for name, parse in _TEXT_PARSERS.items()
            if name in fields
        }
        model |= {
            name: self.parsed(fields[name], f"{where}.{name}", parse, self.value)
            for name, parse in _VALUE_PARSERS.items()
            if name in fields
        }
        return ModelConfig(key=key, repo=repo, variant=variant, **model)

    def sources(self, node: yaml.Node, key: str) -> tuple[str, ...]:
        """Return a list of strings; one string alone is a list of it."""
        if node.tag.endswith(":null"):
            return ()
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(self.text(item, key) for item in nodes)

    def folder(self, node: yaml.Node, key: str) -> str | None:
        """Return the absolute path of a folder, which need not exist; `~` is the user's home."""
        if node.tag.endswith(":null"):
            return None
        path = os.path.expanduser(self.text(node, key))
        if not os.path.isabs(path):
            raise self.wrong(node, key, f"{path!r} is not an absolute path")
        return os.path.normpath(path)

    def limits(self, fields: dict[str, yaml.Node]) -> Limits:
        values: dict[str, int | None] = {}
        for name, node in fields.items():
            key = f"vlmcache.{name}"
            line = node.start_mark.line + 1
            null = node.tag.endswith(":null")
            if self.source == "./config.yaml" and name in _OWN_ONLY:
                if name in ("max_size", "trash_days") and not null:
                    self.parsed(node, key, _parse_limit(name))
                if not null:
                    self.warnings.append(
                        f"{self.path}:{line}: {key} is ignored: it counts only from "
                        f"{user_config()}, --config or VLMCACHE_CONFIG"
                    )
            elif name not in Limits.__struct_fields__:
                known = (*Limits.__struct_fields__, *self._places)
                meant = did_you_mean(name, known, 1) or f"known: {', '.join(known)}"
                self.unknown.append(f"{self.path}:{line}: {key} is not known; {meant}")
            elif null:
                values[name] = None if name == "max_size" else 0
            else:
                values[name] = self.parsed(node, key, _parse_limit(name))
        return Limits(**values)  # type: ignore[arg-type]


def _parse_repo(text: str) -> tuple[str, str | None]:
    repo, variant = split_variant(text)
    if not layout.is_repo_id(repo):
        raise ValueError(f"{repo!r} is not a repo id such as Qwen/Qwen2-VL-2B-Instruct")
    return repo, variant


def _parse_revision(text: str) -> str:
    if not layout.is_revision(text):
        raise ValueError(f"{text!r} is not a branch, tag or commit")
    return text


def _parse_size(text: str) -> int:
    return parse_size(text.replace("_", ""))


def _parse_days(text: str) -> int:
    if not text.isdecimal() or len(text) > 5:
        raise ValueError(f"must be a number of days such as 7, not {text!r}")
    return int(text)


def _parse_limit(name: str) -> Callable[[str], int]:
    return _parse_days if name == "trash_days" else _parse_size


def _parse_device_map(value: Any) -> str | dict[str, Any]:
    if isinstance(value, int) and not isinstance(value, bool):
        # The number of a device, on which transformers puts the complete model.
        return {"": value}
    if not isinstance(value, str | dict):
        raise ValueError("must be a string such as auto, or a mapping of modules to devices")
    # YAML's aliases could turn a small file into a mapping that fills all memory when written.
    if isinstance(value, dict) and any(not isinstance(v, str | int) for v in value.values()):
        raise ValueError("must map each module to a device")
    return value


def _parse_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


_TEXT_PARSERS: dict[str, Callable[[str], Any]] = {
    "revision": _parse_revision,
    "precision": parse_precision,
    "attention": parse_attention,
    "expected_size": _parse_size,
    "expected_memory": _parse_size,
}
_VALUE_PARSERS: dict[str, Callable[[Any], Any]] = {
    "device_map": _parse_device_map,
    "trust_remote_code": _parse_flag,
}
