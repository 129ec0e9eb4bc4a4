"""A config.yaml and what it says: the values, and how they are read with the line of each."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from vlmcache import late
from vlmcache.cache import layout
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.weights import Precision
from vlmcache.environment import FILE_LIMIT, user_config
from vlmcache.errors import ConfigError, reason_of
from vlmcache.units import did_you_mean, parse_size

# Most people have no config.yaml, and need not wait for what reads one.
if TYPE_CHECKING:
    import yaml
else:
    yaml = late.module("yaml")

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "int4")
_PRECISIONS_BY_NAME: dict[str, Precision] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "int4": "int4",
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "8bit": "int8",
    "4bit": "int4",
    "nf4": "int4",
}
_VARIANT = late.pattern(r"[0-9A-Za-z][0-9A-Za-z._-]*(?:/[0-9A-Za-z._-]+)*")
_DEEPEST = 100
"""Levels of nesting; thousands of them would end the process within PyYAML's C part."""
SHIPPED = os.path.join(os.path.dirname(__file__), "config.yaml")
SHIPPED_VALUES = os.path.join(os.path.dirname(__file__), "config.json")
"""What the shipped file says, made of it by `python -m docs.generate config`."""
Source: TypeAlias = Literal["--config", "VLMCACHE_CONFIG", "./config.yaml", "user", "shipped"]
_OWN_ONLY = ("max_size", "archive", "base", "sources", "trash_days")
"""Keys that make a command remove more or lead it elsewhere: no working folder sets them."""


class ModelConfig(msgspec.Struct, frozen=True):
    """A model as config.yaml names it, or as the command line named it by its repo id.

    expected_size and expected_memory are bytes: the download, and the loaded model at `precision`,
    or as it is stored.
    """

    key: str
    repo: str
    revision: str = "main"
    precision: Precision | None = None
    """`None` loads the model in its stored type."""
    device_map: str | dict[str, Any] = "auto"
    trust_remote_code: bool = False
    attention: str | None = None
    """What computes attention, one of `ATTENTIONS`; the model's own choice if not given."""
    expected_size: int | None = None
    expected_memory: int | None = None
    configured: bool = True
    """False if only the command line named it."""
    variant: str | None = None
    """The quantization of a repo of GGUF files, after a colon in `model_path`: `Q4_K_M`."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds on disk use, in bytes.

    A pull that would leave less than `min_free` is refused; below `comfortable_free` status
    advises; `max_size` is a budget that `clean` keeps to. `rm` keeps for `trash_days` what it
    removes; 0 frees at once.
    """

    min_free: int = 10_000_000_000
    comfortable_free: int = 30_000_000_000
    max_size: int | None = None
    trash_days: int = 7


class Config(msgspec.Struct, frozen=True):
    """The active configuration, and the file it was read from."""

    path: str
    source: Source
    models: dict[str, ModelConfig]
    limits: Limits
    warnings: tuple[str, ...] = ()
    also: tuple[tuple[str, ModelConfig], ...] = ()
    """Models that other files on the search path name, each with its file: `clean` keeps them."""
    unread: str | None = None
    """Why such a file cannot be read. What it names is not known then, so nothing is evicted."""
    own_limits: Limits | None = None
    """The user's own limits, if `limits` are those of a working folder."""
    hub: str | None = None
    """The address of the hub that HF_ENDPOINT names."""
    unknown: tuple[str, ...] = ()
    """Those of the warnings that are about keys of `vlmcache:` that mean nothing."""
    sources: tuple[str, ...] = ()
    """What a pull asks for contents before the hub, as `--from` names it; the user's own only."""
    archive: str | None = None
    """A folder on a slower drive, to which `clean` moves models; the user's own only."""
    base: str | None = None
    """A read-only cache beneath the user's, as `attach` names it; the user's own only."""
    shipped: bool = False
    """Whether `models` are those that ship with the package: valid names and protected, but
    nobody has asked for them."""

    @property
    def listed(self) -> dict[str, ModelConfig]:
        """The models that somebody has configured, which is what `--all` means."""
        return {} if self.shipped else self.models

    @property
    def notices(self) -> tuple[str, ...]:
        """What `status` and `doctor` report about the files."""
        if self.unread is None:
            return self.warnings
        return *self.warnings, f"clean removes nothing until this is repaired: {self.unread}"

    @property
    def evict_for(self) -> int:
        """The free space that making room may aim at: what a working folder adds is left out."""
        return min(self.limits.min_free, (self.own_limits or self.limits).min_free)

    @property
    def trash_days(self) -> int:
        """Days for which `rm` keeps what it removes: no working folder sets them."""
        return (self.own_limits or self.limits).trash_days

    @property
    def comfortable_for(self) -> int:
        """The free space below which removing is advised: no working folder raises that."""
        own = self.own_limits or self.limits
        return min(self.limits.comfortable_free, own.comfortable_free)


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
                # Nothing in it is wrong, and nothing in it is meant for us.
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
        # ValueError: a scalar such as a date of the 45th of May, which YAML itself lets through.
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
    """Return a loader for which merged mappings (`<<`) do not grow with each merge.

    With PyYAML's own, a few lines that merge one another can fill all memory.
    """

    class Loader(_safe_loader()):  # type: ignore[misc]
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            super().flatten_mapping(node)
            # As with PyYAML, the last of the same name counts.
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

    def is_ours(self, root: yaml.Node | None) -> bool:
        """Return whether a file says anything to us: an application may have its own of the name.

        `models: {}` does: it says that there are none.
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
        sources: tuple[str, ...] = ()
        archive: str | None = None
        base: str | None = None
        if "vlmcache" in sections:
            fields = self.mapping(sections["vlmcache"], "vlmcache", empty=True)
            if "sources" in fields and self.source != "./config.yaml":
                sources = self.sources(fields.pop("sources"))
            if "archive" in fields and self.source != "./config.yaml":
                archive = self.folder(fields.pop("archive"), "vlmcache.archive")
            if "base" in fields and self.source != "./config.yaml":
                base = self.folder(fields.pop("base"), "vlmcache.base")
            limits = self.limits(fields)
        return Config(
            self.path,
            self.source,
            models,
            limits,
            (*self.warnings, *self.unknown),
            unknown=tuple(self.unknown),
            sources=sources,
            archive=archive,
            base=base,
            shipped=shipped,
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
            # What PyYAML makes of a tag that does not suit its text: `!!bool maybe`, `!!int ''`.
            raise self.wrong(node, key, "its tag does not suit it") from error

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
        # What is null is left to its default, as if it were not there.
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

    def sources(self, node: yaml.Node) -> tuple[str, ...]:
        """Return a list of strings; one string alone is a list of it."""
        if node.tag.endswith(":null"):
            return ()
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(self.text(item, "vlmcache.sources") for item in nodes)

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
                known = (*Limits.__struct_fields__, "archive", "base", "sources")
                meant = did_you_mean(name, known, 1) or f"known: {', '.join(known)}"
                self.unknown.append(f"{self.path}:{line}: {key} is not known; {meant}")
            elif null:
                values[name] = None if name == "max_size" else 0
            else:
                values[name] = self.parsed(node, key, _parse_limit(name))
        return Limits(**values)  # type: ignore[arg-type]


def split_variant(text: str) -> tuple[str, str | None]:
    """Return what is before the colon of a name, and the variant after it, if there is one.

    The colons of a drive letter, of `https://` and of a port are none of that.
    """
    rest, _, variant = text.rpartition(":")
    # Of variants of the same name, each is called by its path in the repo.
    is_address = "/" in variant and (len(rest) == 1 or "://" in rest)
    if not rest or is_address or _VARIANT.fullmatch(variant) is None:
        return text, None
    return rest, variant


def parse_precision(text: str) -> Precision:
    """Return a precision by its name or by one of torch's names for it.

    Raises:
        ValueError: the string names none.
    """
    precision = _PRECISIONS_BY_NAME.get(text.lower().removeprefix("torch."))
    if precision is None:
        raise ValueError(f"{text!r} is not one of {', '.join(PRECISIONS)}")
    return precision


def parse_attention(text: str) -> str:
    """Return what computes attention, by transformers' name for it.

    Raises:
        ValueError: the string names none.
    """
    if text not in ATTENTIONS:
        raise ValueError(f"{text!r} is not one of {', '.join(ATTENTIONS)}")
    return text


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
        # The number of a device, which transformers takes to be for the complete model.
        return {"": value}
    if not isinstance(value, str | dict):
        raise ValueError("must be a string such as auto, or a mapping of modules to devices")
    # Aliases of YAML could make a small file a mapping that fills all memory once it is written.
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
