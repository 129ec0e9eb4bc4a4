"""What the configurations in a model's repo say about its files and about other repos (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from vlmcache import late
from vlmcache.cache import formats, layout
from vlmcache.cache.code_files import own_classes
from vlmcache.cache.reading import JSON_ERRORS, parse_json
from vlmcache.cache.weights import Precision

MODULES = "modules.json"
ADAPTER_CONFIG = "adapter_config.json"
CODE_CONFIGS = (
    formats.CONFIG,
    *("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"),
    *("video_preprocessor_config.json", "image_processor_config.json"),
)
"""Configurations that can name classes of the repo's own code, or of another repo's."""

DECIDING = (formats.CONFIG, ADAPTER_CONFIG)
"""Configurations that can name other repos, which must be known before a download."""

_NUMBERED = late.pattern(r"(\d+_\w+)/")
_PART_CONFIGS = {
    "Scheduler": "scheduler_config.json",
    "Tokenizer": "tokenizer_config.json",
    "Processor": "preprocessor_config.json",
    "Extractor": "preprocessor_config.json",
}
"""Word in the class name of a part -> the part's configuration."""

_STORED: dict[str, Precision] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
}
"""Names of types in torch and safetensors -> precision."""

Read = Callable[[str], bytes | None]
"""Returns the content of a file, `None` if it is not known."""


class KnownFiles(NamedTuple):
    """What is known about the files of a repo."""

    names: frozenset[str]
    """Those that the Hub lists and those that are here."""
    present: AbstractSet[str] = frozenset()
    """Those that are here."""
    read: Read = lambda _: None
    listed: bool = True
    """Whether the Hub's listing is known, so that the repo has no other files."""
    sizes: Mapping[str, int] = {}
    """Name -> bytes, as far as they are known."""


class OtherRepo(NamedTuple):
    """Another repo that a model needs: a base model, or the code of its classes."""

    id: str
    code: frozenset[str] = frozenset()
    """The needed files of code; empty if the repo is needed as a model."""
    revision: str = "main"


class Configs:
    """The configuration files of a repo, each read once."""

    def __init__(self, files: KnownFiles) -> None:
        self._names, _, self._read, self._listed, _ = files
        self._known: dict[str, Any] = {}

    def json(self, name: str) -> Any:
        """Return the JSON value of a file; `None` if the file is missing or not JSON."""
        if name not in self._names:
            return None
        if name not in self._known:
            self._known[name] = decoded(self._read(name))
        return self._known[name]

    def modules(self) -> dict[str, bool]:
        """Return the folders of sentence-transformers' modules -> whether each has a config."""
        modules = self.json(MODULES)
        if not isinstance(modules, list):
            numbered = filter(is_module, self._names)
            return {name.partition("/")[0]: False for name in numbered}
        return {
            path.rstrip("/"): str(module.get("type")).endswith(("Pooling", "Dense", "LayerNorm"))
            for module in modules
            if isinstance(module, dict)
            and isinstance(path := module.get("path"), str)
            and path
            and layout.file_name_problem(path.rstrip("/")) is None
        }

    def parts(self) -> set[str]:
        """Return the folders of a pipeline's parts."""
        index = self.json(formats.PIPELINE)
        folders = {name.partition("/")[0] for name in self._names if "/" in name}
        if not isinstance(index, dict):
            return folders
        named = {part for part, value in _part_classes(index)}
        return named & folders or folders

    def missing_parts(self) -> Iterator[str]:
        """Yield a file of each part of a pipeline that is missing entirely, without a listing."""
        index = self.json(formats.PIPELINE)
        if self._listed or not isinstance(index, dict):
            return
        folders = {name.partition("/")[0] for name in self._names if "/" in name}
        for part, kind in _part_classes(index):
            if part not in folders and layout.file_name_problem(part) is None:
                config = next((name for word, name in _PART_CONFIGS.items() if word in kind), "")
                yield f"{part}/{config or formats.CONFIG}"

    def code_roots(self) -> dict[str, set[str]] | None:
        """Return file -> the named classes of the repo's own code; `None` if not known."""
        if formats.CONFIG in self._names and not isinstance(self.json(formats.CONFIG), dict):
            return None
        roots: dict[str, set[str]] = {}
        for name in CODE_CONFIGS:
            for repo, file, kind in own_classes(self.json(name)):
                if repo is None:
                    roots.setdefault(file, set()).add(kind)
        modules = self.json(MODULES)
        for module in modules if isinstance(modules, list) else ():
            path, _, kind = str(module.get("type") if isinstance(module, dict) else "").rpartition(
                "."
            )
            if path and f"{path}.py" in self._names:
                roots.setdefault(f"{path}.py", set()).add(kind)
        return roots


def other_repos(config: Callable[[str], Any]) -> Iterator[OtherRepo]:
    """Yield the other repos that a model's configurations name.

    Args:
        config: returns the JSON value of a configuration; `None` if there is none.
    """
    adapter = config(ADAPTER_CONFIG)
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if isinstance(base, str) and "/" in base and layout.is_repo_id(base):
        revision = adapter.get("revision")
        yield OtherRepo(base, revision=revision if isinstance(revision, str) else "main")
    code: dict[str, set[str]] = {}
    for name in CODE_CONFIGS:
        for repo, file, _ in own_classes(config(name)):
            if repo is not None and layout.is_repo_id(repo):
                code.setdefault(repo, set()).add(file)
    for repo, files in sorted(code.items()):
        yield OtherRepo(repo, frozenset(files))


def decoded(content: bytes | None) -> Any:
    """Return the JSON value of a configuration; `None` if it is missing or not JSON."""
    try:
        return parse_json(content) if content else None
    except JSON_ERRORS:
        return None


def stored_precision(config: Any, dtypes: Iterable[str]) -> Precision | None:
    """Return the precision at which transformers loads a model if none is asked for.

    It is the one in config.json, else the type of the first floats among the weights. `None` if
    there is neither, or if it is a type that cannot be asked for.

    Args:
        config: the content of config.json.
        dtypes: the types of the tensors, as safetensors names them.
    """
    keys = config if isinstance(config, dict) else {}
    dtype = keys.get("dtype") or keys.get("torch_dtype")
    if isinstance(dtype, str):
        return _STORED.get(dtype.removeprefix("torch."))
    return next((_STORED[dtype] for dtype in dtypes if dtype in _STORED), None)


@layout.by_name
def is_module(name: str) -> bool:
    """Return whether a file is in a folder that is named like a module of sentence-transformers."""
    return _NUMBERED.match(name) is not None


def _part_classes(index: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the folder and class name of each part of a pipeline."""
    for part, value in index.items():
        is_class = isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
        if is_class and not part.startswith("_"):
            yield part, value[1]
