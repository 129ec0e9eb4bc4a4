"""config.yaml and the environment, turned into values that know where they come from."""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.weights import Precision
from vlmcache.errors import ConfigError, UnknownModelError, UsageError
from vlmcache.units import parse_size

if TYPE_CHECKING:
    import yaml

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "int4")
_PRECISION_ALIASES: dict[str, Precision] = {
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "8bit": "int8",
    "4bit": "int4",
    "nf4": "int4",
}
_CONFIG_LIMIT = 4_000_000
_DEEPEST = 100
"""Levels of nesting; thousands of them would end the process within PyYAML's C part."""
SHIPPED = os.path.join(os.path.dirname(__file__), "config.yaml")
Source: TypeAlias = Literal["--config", "VLMCACHE_CONFIG", "./config.yaml", "user", "shipped"]
_OWN_ONLY = ("max_size", "archive", "base", "sources", "trash_days")
"""Keys that make a command remove more or lead it elsewhere: no working folder sets them."""
_DOTENV = frozenset(
    {
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HOME",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "HF_HUB_ETAG_TIMEOUT",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_USER_AGENT_ORIGIN",
        "HF_HUB_VERBOSITY",
        "HF_DEBUG",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_HUB_DISABLE_SHARED_BLOBS",
        "HF_HUB_DISABLE_SYMLINKS",
        "HF_HUB_DISABLE_SYMLINKS_WARNING",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_ENABLE_HF_TRANSFER",
        "HF_XET_HIGH_PERFORMANCE",
        "HF_XET_CHUNK_CACHE_SIZE_BYTES",
    }
)
"""What a `.env` may set: no file or folder but the hub cache, for a checkout may be anybody's."""


class ModelConfig(msgspec.Struct, frozen=True):
    """A model as config.yaml names it, or as the command line named it by its repo id.

    expected_size and expected_memory are bytes: the download, and the loaded model at `precision`.
    """

    key: str
    repo: str
    revision: str = "main"
    precision: Precision = "fp16"
    device_map: str | dict[str, Any] = "auto"
    trust_remote_code: bool = False
    expected_size: int | None = None
    expected_memory: int | None = None
    configured: bool = True
    """False where only the command line named it."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds on disk use, in bytes.

    A pull that would leave less than `min_free` is refused; below `comfortable_free` status
    advises; `max_size` is a budget that `clean` keeps to.
    """

    min_free: int = 10_000_000_000
    comfortable_free: int = 30_000_000_000
    max_size: int | None = None


class Config(msgspec.Struct, frozen=True):
    """The configuration in force, and the file it was read from."""

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

    @property
    def notices(self) -> tuple[str, ...]:
        """What `status` and `doctor` say of the files."""
        if self.unread is None:
            return self.warnings
        return *self.warnings, f"clean removes nothing until this is repaired: {self.unread}"

    @property
    def evict_for(self) -> int:
        """The free space that making room may aim at: what a working folder adds is left out."""
        return min(self.limits.min_free, (self.own_limits or self.limits).min_free)

    @property
    def comfortable_for(self) -> int:
        """The free space below which removing is advised: no working folder raises that."""
        own = self.own_limits or self.limits
        return min(self.limits.comfortable_free, own.comfortable_free)


class Environment(msgspec.Struct, frozen=True):
    """The variables in force: the process's, and HF_* ones of a `.env` in the working folder."""

    variables: dict[str, str]
    from_file: frozenset[str]
    """Names that the `.env` supplied."""
    folder: str
    """The working folder."""
    ignored: tuple[str, ...] = ()
    """Sentences about variables that the `.env` may not set."""

    def get(self, name: str) -> str | None:
        """Return a variable's value; an empty one counts as not set."""
        return self.variables.get(name) or None

    def own(self, name: str) -> str | None:
        """Return a variable's value if the process has it, whatever a `.env` says."""
        return None if name in self.from_file else self.get(name)

    @property
    def offline_by(self) -> str | None:
        """The variable that switches the network off, as huggingface_hub reads them."""
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if is_on(self.get(name)):
                return name
        return None

    def source(self, name: str) -> str:
        """Return how to name a variable to a person, with the file it came from."""
        return f"{name} (.env)" if name in self.from_file else name


class CacheLocation(msgspec.Struct, frozen=True):
    """The cache folder and the rule that chose it."""

    dir: str
    source: str
    conflicts: tuple[str, ...] = ()
    """Sentences about settings that disagree with the choice."""


class Session(NamedTuple):
    """What a command works on; the first argument of every command's function."""

    environment: Environment
    config: Config
    cache: CacheLocation


def open_session(config: str | None = None, cache_dir: str | None = None) -> Session:
    """Return what commands work on.

    Args:
        config: the config.yaml to use; the first one found if not given.
        cache_dir: the hub cache; the one that the environment names if not given.

    Raises:
        ConfigError: the configuration or the `.env` cannot be read.
    """
    environment = read_environment()
    return Session(
        environment, load_config(config, environment), locate_cache(cache_dir, environment)
    )


def is_on(value: str | None) -> bool:
    """Return whether a variable's value means yes, as huggingface_hub takes it."""
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")


def read_environment(
    variables: Mapping[str, str] | None = None, folder: str | None = None
) -> Environment:
    """Return the variables in force.

    Args:
        variables: the process's variables; those of this process if not given.
        folder: the working folder; that of this process if not given.

    Raises:
        ConfigError: the `.env` is there and cannot be read as text.
    """
    merged = dict(os.environ if variables is None else variables)
    where = os.getcwd() if folder is None else folder
    path = os.path.join(where, ".env")
    supplied: set[str] = set()
    ignored: list[str] = []
    if os.path.isfile(path):
        for name, value in _read_dotenv(path).items():
            if merged.get(name):
                continue
            if name in _DOTENV:
                merged[name] = value
                supplied.add(name)
            else:
                ignored.append(f"{path}: {name} is ignored: it counts only from the environment")
    return Environment(merged, frozenset(supplied), where, tuple(ignored))


def _read_dotenv(path: str) -> dict[str, str]:
    """Return the hub's variables of a `.env`. Lines that say nothing are passed over in silence."""
    from dotenv.parser import parse_stream

    from vlmcache.cache.reading import read_bytes

    try:
        lines = read_bytes(path, _CONFIG_LIMIT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    values: dict[str, str] = {}
    for line in parse_stream(io.StringIO(lines)):
        name = line.key or ""
        if not name.startswith(("HF_", "HUGGINGFACE_", "VLMCACHE_")):
            continue
        if "\0" in (line.value or ""):
            raise ConfigError(f"{path}:{line.original.line}: {name}: holds a null character")
        values[name] = line.value or ""
    return {name: value for name, value in values.items() if value}


def _expand(path: str, environment: Environment) -> str:
    """Return an absolute path with `~` and variables expanded, as huggingface_hub does it."""
    expanded = os.path.expandvars(os.path.expanduser(path))
    return os.path.abspath(os.path.join(environment.folder, expanded))


def locate_cache(option: str | None, environment: Environment) -> CacheLocation:
    """Return the hub cache's folder: what the first of the known sources says.

    The order after `--cache-dir` is huggingface_hub's own (its `constants.py`).
    """
    candidates: list[tuple[str, str]] = []
    if option:
        candidates.append(("--cache-dir", _expand(option, environment)))
    for name, below in (
        ("HF_HUB_CACHE", ()),
        ("HUGGINGFACE_HUB_CACHE", ()),
        ("HF_HOME", ("hub",)),
        ("XDG_CACHE_HOME", ("huggingface", "hub")),
    ):
        value = environment.get(name)
        if value is not None:
            path = os.path.join(_expand(value, environment), *below)
            candidates.append((environment.source(name), path))
    default = _expand(os.path.join("~", ".cache", "huggingface", "hub"), environment)
    candidates.append(("default", default))
    source, chosen = candidates[0]
    conflicts = [
        f"{other} points to {path}, but {source} decides: {chosen}"
        for other, path in candidates[1:-1]
        if os.path.realpath(path) != os.path.realpath(chosen)
        # It is for all programs and says nothing of this one, unless models are there.
        and (not other.startswith("XDG_CACHE_HOME") or os.path.isdir(path))
    ]
    return CacheLocation(chosen, source, tuple(conflicts))


def hub_home(environment: Environment) -> str:
    """Return huggingface_hub's own folder: tokens, `xet` chunks, remote code `modules`."""
    value = environment.get("HF_HOME")
    if value is not None:
        return _expand(value, environment)
    base = environment.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.join(_expand(base, environment), "huggingface")


def side_caches(environment: Environment) -> dict[str, str]:
    """Return name -> folder of the caches that hub libraries keep beside the hub cache.

    `xet` holds chunks of transfers (huggingface_hub's `HF_XET_CACHE`), `modules` the code of
    trust_remote_code (transformers' `HF_MODULES_CACHE`). `clean` can empty them, so only the
    process's own variables say where they are.
    """
    names = {name for name in environment.variables if name not in environment.from_file}
    own = {name: environment.variables[name] for name in names}
    environment = msgspec.structs.replace(environment, variables=own)
    home = hub_home(environment)
    return {
        name: _expand(environment.get(variable) or os.path.join(home, name), environment)
        for name, variable in (("xet", "HF_XET_CACHE"), ("modules", "HF_MODULES_CACHE"))
    }


def own_home(environment: Environment) -> tuple[str, str]:
    """Return vlmcache's own folder (journal, reports, kept copies) and where that comes from."""
    value = environment.get("VLMCACHE_HOME")
    if value is not None:
        return _expand(value, environment), environment.source("VLMCACHE_HOME")
    import platformdirs

    return platformdirs.user_cache_dir("vlmcache", appauthor=False), "default"


def options_in_force(config: Config, location: CacheLocation) -> list[str]:
    """Return the options that a command needs to work on the same cache as this one does."""
    options: list[str] = []
    if location.source == "--cache-dir":
        options += ["--cache-dir", location.dir]
    if config.source == "--config":
        options += ["--config", config.path]
    return options


def user_config() -> str:
    """Return the path of the user's own config.yaml, which need not exist."""
    import platformdirs

    return os.path.join(platformdirs.user_config_dir("vlmcache", appauthor=False), "config.yaml")


def _search_path(option: str | None, environment: Environment) -> list[tuple[Source, str]]:
    """Return the files that may be read, the one that counts first; no file twice."""
    own = user_config()
    found: list[tuple[Source, str]] = []
    if option:
        found.append(("--config", _expand(option, environment)))
    value = environment.get("VLMCACHE_CONFIG")
    if value is not None:
        found.append(("VLMCACHE_CONFIG", _expand(value, environment)))
    local = os.path.join(environment.folder, "config.yaml")
    # In the user's own config folder, the file is the user's.
    if os.path.lexists(local) and os.path.realpath(local) != os.path.realpath(own):
        found.append(("./config.yaml", local))
    if os.path.lexists(own):
        found.append(("user", own))
    places: dict[str, tuple[Source, str]] = {}
    for source, path in found:
        places.setdefault(os.path.realpath(path), (source, path))
    return list(places.values())


def load_config(option: str | None, environment: Environment) -> Config:
    """Return the active configuration, and what other files on the search path protect.

    Raises:
        ConfigError: the file that should be read cannot be, or holds a wrong value in a section of
            ours; the message names file, line and key.
    """
    active: Config | None = None
    notes: list[str] = []
    also: list[tuple[str, ModelConfig]] = []
    unread: str | None = None
    own_limits = Limits()
    for source, path in _search_path(option, environment):
        try:
            config = _read_config(path, source, alone=active is not None)
        except ConfigError as error:
            if active is None:
                raise
            unread = unread or error.message
            continue
        if config is None:
            if active is None:
                notes.append(f"{path}: not used: none of its models has model_path or repo")
        elif active is None:
            active = config
        else:
            also += ((path, model) for model in config.models.values())
            own_limits = config.limits
    active = active or shipped_config()
    return msgspec.structs.replace(
        active,
        warnings=(*notes, *active.warnings),
        also=tuple(also),
        unread=unread,
        own_limits=own_limits if active.source == "./config.yaml" else None,
    )


def shipped_config() -> Config:
    """Return the configuration that comes with the package."""
    config = _read_config(SHIPPED, "shipped")
    assert config is not None
    return config


def _read_config(path: str, source: Source, *, alone: bool = False) -> Config | None:
    """Return what a file configures, or `None` if it is a working folder's and not ours.

    Without a `models` section the shipped models count, unless the file is read `alone`.
    """
    import yaml

    from vlmcache.cache.reading import read_bytes

    try:
        content = read_bytes(path, _CONFIG_LIMIT)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (named by {source})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        _check_depth(path, content)
        loader = _loader(content)
        try:
            reader = _Reader(path, source, loader, alone=alone)
            root = loader.get_single_node()
            if source == "./config.yaml" and not reader.is_ours(root):
                return None
            return reader.read(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        number = content[: error.position].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{number}: holds bytes that are no UTF-8, or control characters",
            "save the file as UTF-8 text",
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: a scalar such as a date of the 45th of May, which YAML itself lets through.
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {reason}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error


def _check_depth(path: str, content: bytes) -> None:
    import yaml

    depth = 0
    for event in yaml.parse(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            line = f":{event.start_mark.line + 1}" if event.start_mark is not None else ""
            raise ConfigError(f"{path}{line}: nested too deeply")


def _loader(content: bytes) -> Any:
    """Return a loader for which merged mappings (`<<`) do not grow with each merge.

    With PyYAML's own, a few lines that merge one another can fill all memory.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            super().flatten_mapping(node)
            # As with PyYAML, the last of the same name counts.
            last = {
                name.value if isinstance(name, yaml.ScalarNode) else id(name): (name, value)
                for name, value in node.value
            }
            node.value = list(last.values())

    return Loader(content)


class _Reader:
    """Reads our sections out of a composed YAML document; each value knows its line."""

    def __init__(self, path: str, source: Source, loader: Any, *, alone: bool) -> None:
        self.path = path
        self.source = source
        self.alone = alone
        self.loader = loader
        self.warnings: list[str] = []

    def is_ours(self, root: yaml.Node | None) -> bool:
        """Return whether a file says anything to us: an application may have its own of the name.

        `models: {}` does: it says that there are none.
        """
        import yaml

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
        elif self.source == "shipped" or self.alone:
            models = {}
        else:
            models = shipped_config().models
        limits = Limits()
        if "vlmcache" in sections:
            limits = self.limits(self.mapping(sections["vlmcache"], "vlmcache", empty=True))
        return Config(self.path, self.source, models, limits, tuple(self.warnings))

    def wrong(self, node: yaml.Node, key: str, problem: str) -> ConfigError:
        line = node.start_mark.line + 1
        return ConfigError(
            f"{self.path}:{line}: {key}: {problem}", "mend that line, or name a file with --config"
        )

    def mapping(self, node: yaml.Node, key: str, *, empty: bool = False) -> dict[str, yaml.Node]:
        import yaml

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
        import yaml

        if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":null") or not node.value:
            raise self.wrong(node, key, "must be a text")
        return str(node.value)

    def value(self, node: yaml.Node, key: str) -> Any:
        import yaml

        try:
            return self.loader.construct_object(node, deep=True)
        except yaml.constructor.ConstructorError as error:
            raise self.wrong(node, key, str(error.problem)) from error
        except (AttributeError, LookupError) as error:
            # What PyYAML makes of a tag that does not suit its text: `!!bool maybe`, `!!int ''`.
            raise self.wrong(node, key, "its tag does not suit it") from error

    def size(self, node: yaml.Node, key: str) -> int:
        try:
            return parse_size(self.text(node, key).replace("_", ""))
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
        repo = self.text(fields[repo_key], f"{where}.{repo_key}")
        if not fields[repo_key].tag.endswith(":str"):
            raise self.wrong(fields[repo_key], f"{where}.{repo_key}", "must be a text")
        if not layout.is_repo_id(repo):
            problem = f"{repo!r} is not a repo id such as Qwen/Qwen2-VL-2B-Instruct"
            raise self.wrong(fields[repo_key], f"{where}.{repo_key}", problem)
        model: dict[str, Any] = {"key": key, "repo": repo}
        if "revision" in fields:
            revision = self.text(fields["revision"], f"{where}.revision")
            if not layout.is_revision(revision):
                problem = f"{revision!r} is not a branch, tag or commit"
                raise self.wrong(fields["revision"], f"{where}.revision", problem)
            model["revision"] = revision
        if "precision" in fields:
            text = self.text(fields["precision"], f"{where}.precision")
            model["precision"] = self.precision(fields["precision"], f"{where}.precision", text)
        if "device_map" in fields:
            model["device_map"] = self.device_map(fields["device_map"], f"{where}.device_map")
        if "trust_remote_code" in fields:
            value = self.value(fields["trust_remote_code"], f"{where}.trust_remote_code")
            if not isinstance(value, bool):
                problem = "must be true or false"
                raise self.wrong(fields["trust_remote_code"], f"{where}.trust_remote_code", problem)
            model["trust_remote_code"] = value
        for name in ("expected_size", "expected_memory"):
            if name in fields:
                model[name] = self.size(fields[name], f"{where}.{name}")
        return ModelConfig(**model)

    def device_map(self, node: yaml.Node, key: str) -> str | dict[str, Any]:
        value = self.value(node, key)
        if isinstance(value, int) and not isinstance(value, bool):
            # The number of a device, which transformers takes to be for the whole model.
            return {"": value}
        if not isinstance(value, str | dict):
            problem = "must be a text such as auto, or a mapping of modules to devices"
            raise self.wrong(node, key, problem)
        return value

    def precision(self, node: yaml.Node, key: str, text: str) -> Precision:
        try:
            return parse_precision(text)
        except ValueError as error:
            raise self.wrong(node, key, str(error)) from None

    def limits(self, fields: dict[str, yaml.Node]) -> Limits:
        values: dict[str, int | None] = {}
        for name, node in fields.items():
            key = f"vlmcache.{name}"
            line = node.start_mark.line + 1
            null = node.tag.endswith(":null")
            if self.source == "./config.yaml" and name in _OWN_ONLY:
                if name == "max_size" and not null:
                    self.size(node, key)
                if not null:
                    self.warnings.append(
                        f"{self.path}:{line}: {key} is ignored: it counts only from "
                        f"{user_config()}, --config or VLMCACHE_CONFIG"
                    )
            elif name not in Limits.__struct_fields__:
                near = difflib.get_close_matches(name, Limits.__struct_fields__, 1)
                meant = f"; did you mean {near[0]}?" if near else ""
                self.warnings.append(f"{self.path}:{line}: {key} is not known{meant}")
            elif null:
                values[name] = None if name == "max_size" else 0
            else:
                values[name] = self.size(node, key)
        return Limits(**values)  # type: ignore[arg-type]


def parse_precision(text: str) -> Precision:
    """Return a precision by its name or by one of torch's names for it.

    Raises:
        ValueError: the text names none.
    """
    lowered = text.lower().removeprefix("torch.")
    for precision in PRECISIONS:
        if lowered == precision:
            return precision
    if lowered in _PRECISION_ALIASES:
        return _PRECISION_ALIASES[lowered]
    raise ValueError(f"{text!r} is not one of {', '.join(PRECISIONS)}")


def cached_repo(name: str, cached: Iterable[str]) -> str | None:
    """Return the cached repo whose id a name is, in whatever case; the exact one if there are two.

    Raises:
        UsageError: it is several repos' id in another case.
    """
    found = {repo for repo in cached if repo.casefold() == name.casefold()}
    if name in found:
        return name
    if len(found) > 1:
        raise UsageError(f"{name} can be {' or '.join(sorted(found))}", "type one of them")
    return found.pop() if found else None


def as_cached(model: ModelConfig, cached: Collection[str]) -> ModelConfig:
    """Return a model with its repo spelled as in the cache, if just one repo there can be meant."""
    if model.repo in cached:
        return model
    folded = model.repo.casefold()
    found = [repo for repo in cached if repo.casefold() == folded]
    return msgspec.structs.replace(model, repo=found[0]) if len(found) == 1 else model


def find_model(config: Config, text: str, cached: Iterable[str] = ()) -> ModelConfig:
    """Return the model that a command's MODEL means: a repo id or a key, with `@revision`.

    The id of a repo in the cache comes first, so that no key can stand for another repo than the
    one that is read off it; then keys, then other repo ids.

    Args:
        config: the configuration whose keys count.
        text: what was typed.
        cached: ids of the models in the cache; only these may be without an owner (`gpt2`).

    Raises:
        UnknownModelError: no such key, and the text is not a repo id with an owner.
        UsageError: the revision cannot be one, or the name can be two repos.
    """
    cached = set(cached)
    name, at, revision = text.partition("@")
    repo = cached_repo(name, cached)
    if repo is None and text in config.models:
        return as_cached(config.models[text], cached)
    if at and not layout.is_revision(revision):
        raise UsageError(f"{revision!r} is not a branch, tag or commit")
    model = config.models.get(name)
    if model is not None:
        model = as_cached(model, cached)
    if model is None or repo not in (None, model.repo):
        model = _by_repo(config, repo or name, cached)
    return msgspec.structs.replace(model, revision=revision) if at else model


def name_of(config: Config, model: ModelConfig, cached: Iterable[str]) -> str:
    """Return what to type for a model, which `find_model` takes for it: its key, usually.

    A key that would be read as an option, or as another repo's id, gives way to the repo id.

    Args:
        config: the configuration whose keys count.
        model: the model, at the revision that is meant.
        cached: ids of the models in the cache, which come before keys.
    """
    known = config.models.get(model.key)
    shadow = cached_repo(model.key.partition("@")[0], cached)
    if model.key.startswith("-") or shadow not in (None, model.repo):
        return f"{model.repo}@{model.revision}"
    usual = known.revision if known is not None else "main"
    return model.key if model.revision == usual else f"{model.key}@{model.revision}"


def names_of_all(config: Config, cached: Iterable[str]) -> list[str]:
    """Return a name for each configured model that `find_model` takes for it: its key, usually."""
    cached = set(cached)
    ids: dict[str, set[str]] = {}
    for repo in cached:
        ids.setdefault(repo.casefold(), set()).add(repo)
    return [
        key
        if ids.get(key.partition("@")[0].casefold(), set()) <= {as_cached(model, cached).repo}
        and not key.startswith("-")
        else f"{model.repo}@{model.revision}"
        for key, model in config.models.items()
    ]


def cached_models(location: CacheLocation) -> list[str]:
    """Return the ids of the models that have a folder in the cache, without a scan."""
    try:
        entries = os.listdir(location.dir)
    except OSError:
        return []
    folders = [found for name in entries if (found := layout.parse_repo_folder(name)) is not None]
    return [repo for kind, repo in folders if kind == "model"]


def _by_repo(config: Config, name: str, cached: set[str]) -> ModelConfig:
    named = [m for m in config.models.values() if m.repo.casefold() == name.casefold()]
    for model in sorted(named, key=lambda one: one.repo != name):
        found = as_cached(model, cached)
        if name not in cached or found.repo == name:
            return found
    if layout.is_repo_id(name) and ("/" in name or name in cached):
        return ModelConfig(key=name, repo=name, configured=False)
    configured = {model.repo for model in config.models.values()}
    near = difflib.get_close_matches(name, [*config.models, *sorted(cached - configured)], 3, 0.5)
    if near:
        hint = "did you mean " + " or ".join(near) + "?"
    elif config.models:
        hint = "known: " + ", ".join(config.models) + "; or a repo id such as owner/name"
    else:
        hint = "name a repo id such as owner/name"
    raise UnknownModelError(f"no such model: {name}", hint)
