"""Which files of a model's repo loading needs, which come along, and which stay out (pure).

A model can often be loaded in several ways: from safetensors or from pickled weights, by the
tokenizer's own file or by its vocabulary, by transformers or by llama.cpp. One complete way is
enough. What configuration files say is passed in as a function that returns their bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import msgspec

from vlmcache.cache import formats, layout
from vlmcache.cache.code_files import code_files, config_strings, own_classes
from vlmcache.cache.gguf import Variants, variants
from vlmcache.cache.reading import JSON_ERRORS

MODULES = "modules.json"
ADAPTER_CONFIG = "adapter_config.json"
GENERATION = "generation_config.json"
CODE_CONFIGS = (
    formats.CONFIG,
    *("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"),
    *("video_preprocessor_config.json", "image_processor_config.json"),
)
"""Configurations that can name classes of the repo's own code, or of another repo's."""

DECIDING = (formats.CONFIG, ADAPTER_CONFIG)
"""Configurations that can name other repos, which have to be known before a download."""

_SMALL = 1_000_000
"""Bytes that files which nothing needs may have together to be fetched along."""

_FOR_READERS = re.compile(
    r"(?:^|/)(?:README|LICEN[CS]E|NOTICE|USE_POLICY|CITATION|requirements|setup\.cfg|pyproject)"
    r"[^/]*$|(?:^|/)\.[^/]*$|(?:^|/)runs/|\.tfevents"
    r"|\.(?:md|rst|png|jpe?g|gif|svg|webp|bmp|pdf|mp[34]|wav|flac|webm|avi|mov|sh|ipynb|html|whl)$",
    re.IGNORECASE,
)
_TEMPLATES = re.compile(
    rf"(?:^|/)(?:chat_template\.(?:json|jinja)|{re.escape(GENERATION)})$"
    r"|^additional_chat_templates/|\.jinja$"
)
_SCRIPT = re.compile(
    r"(?:^|/)(?:handler|setup|app|demo|sample|example|test|convert|train|finetune|inference|eval"
    r"|benchmark|gradio|streamlit|quantize|export)\w*\.py$",
    re.IGNORECASE,
)
"""Programs that people run, which no loader imports."""
_OWN_CODE = re.compile(
    r"^\w*(?:model|config|tokeniz|process|pipeline|custom)\w*\.py$", re.IGNORECASE
)
"""Names of code that loaders run, where no configuration names it."""
_PROCESSORS = frozenset(
    {
        "audio_tokenizer_config.json",
        "feature_extractor_config.json",
        "image_processor_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "speaker_embeddings_path.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
)
_VOCABULARY = re.compile(
    r"(?:\w*vocab\w*|encoder|added_tokens|dict|normalizer)\.(?:json|txt|bpe)|merges\.txt"
    r"|vocab-\w+\.(?:json|txt)|bpe\.codes|[\w.-]*\.(?:model|spm)(?:\.v\d+)?|tokenizer\.json"
)
"""Files of tokenizers that tokenizer.json makes superfluous."""
_OWN_VOCABULARY = re.compile(r"tekken\.json|[\w.-]*tiktoken(?:\.model)?|[\w.-]*\.spm")
"""Those of tokenizers that do not read tokenizer.json."""
_TOKENIZERS = (
    frozenset({"tokenizer.json"}),
    frozenset({"vocab.json", "merges.txt"}),
    frozenset({"vocab.txt"}),
)
"""What a fast tokenizer can be made of, the preferred first."""
_SENTENCE_CONFIG = re.compile(r"config_sentence_transformers\.json|sentence_\w+_config\.json")
_NUMBERED = re.compile(r"(\d+_\w+)/")
_MISTRAL_TOKENIZER = re.compile(r"tekken\.json|tokenizer\.(?:model|json)(?:\.v\d+)?")

Read = Callable[[str], bytes | None]


class Option(NamedTuple):
    """Files that together do, and the one that a loader looks for first."""

    entry: str
    files: frozenset[str]
    note: str | None = None
    """What there is to say of weights that not every loader finds: see `Division.note`."""


class OtherRepo(NamedTuple):
    """Another repo that a model needs: a base model, or the code of its classes."""

    id: str
    code: frozenset[str] = frozenset()
    """The files of code that are named; none if it is a model, which is needed as such."""
    revision: str = "main"


class Division(NamedTuple):
    """The files of a repo by what they are to loading."""

    needed: frozenset[str]
    """Files of the way of loading that is complete, or comes closest, or is preferred."""
    missing: frozenset[str]
    """Those of them that are not here."""
    along: frozenset[str]
    """Fetched together with something needed, never alone."""
    left_out: Mapping[str, str]
    """File -> why a plain pull leaves it out."""
    repos: tuple[OtherRepo, ...] = ()
    broken: frozenset[str] = frozenset()
    """Indexes that are here and make no sense."""
    note: str | None = None
    """`no-loader` if no library that is known loads the weights; a variant's name if one has to be
    asked for."""
    choices: Variants | None = None
    """The GGUF variants, of which one has to be chosen."""


class _Way(NamedTuple):
    """One way to load a model: of each group of options, one is needed."""

    groups: tuple[tuple[Option, ...], ...]
    weights: tuple[tuple[Option, ...], ...]

    def chosen(self, present: AbstractSet[str]) -> list[Option]:
        return [
            next((option for option in group if option.entry in present), group[0])
            for group in (*self.groups, *self.weights)
        ]

    def begun(self, present: AbstractSet[str]) -> bool:
        return any(
            not option.files.isdisjoint(present) for group in self.weights for option in group
        )


def divide(
    names: Iterable[str],
    present: AbstractSet[str] = frozenset(),
    read: Read = lambda _: None,
    *,
    listed: bool = True,
    sizes: Mapping[str, int] | None = None,
    variant: str | None = None,
    complement: bool = False,
) -> Division:
    """Divide the files of a model's repo by what they are to loading.

    Args:
        names: those that the hub lists and those that are here.
        present: those that are here.
        read: returns the content of a file, `None` if it is not known.
        listed: whether the hub's listing is known, so that no other file can be missing.
        sizes: name -> bytes, as far as they are known.
        variant: the GGUF variant that is asked for.
        complement: whether it is a pull request, of which loaders fetch only the weights.
    """
    every = frozenset(names)
    if complement and not listed and all(map(_is_of_weights, every)):
        listed = True
    return _Repo(every, present, read, listed, sizes or {}, variant).divide()


def weight_map(content: bytes) -> frozenset[str] | None:
    """Return the names of the shards that an index names; `None` if it makes no sense.

    It is content of a repo and so not to be trusted: a shard that is not a plain name below the
    index's folder makes it unreadable.
    """
    try:
        found = frozenset(_INDEX_DECODER.decode(content).weight_map.values())
    except JSON_ERRORS:
        return None
    if not found or any(layout.file_name_problem(name) for name in found):
        return None
    return found


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_INDEX_DECODER = msgspec.json.Decoder(_Index)


class _Repo:
    """One repo while it is divided."""

    def __init__(
        self,
        names: frozenset[str],
        present: AbstractSet[str],
        read: Read,
        listed: bool,
        sizes: Mapping[str, int],
        variant: str | None,
    ) -> None:
        self.names = names
        self.present = present
        self.read = read
        self.listed = listed
        self.sizes = sizes
        self.variant = variant
        self.left_out = formats.left_out(names)
        self.sets = formats.weight_sets(names)
        self.gguf = variants(names)
        self.broken: set[str] = set()
        self.configs: dict[str, Any] = {}

    def divide(self) -> Division:
        ways = self._ways()
        begun = [way for way in ways if way.begun(self.present)] or ways[:1]
        options, missing = [], frozenset[str]()
        best: tuple[int, list[Option], frozenset[str]] | None = None
        for way in begun:
            options = way.chosen(self.present)
            missing = frozenset().union(*(option.files for option in options)) - self.present
            if best is None or len(missing) < best[0]:
                best = len(missing), options, missing
        assert best is not None
        _, options, missing = best
        needed = frozenset().union(*(option.files for option in options))
        left_out = {name: why for name, why in self.left_out.items() if name not in needed}
        chosen = {option.entry for option in options}
        for way in ways:
            for group in way.weights:
                stays = next((option.entry for option in group if option.entry in chosen), None)
                for option in group:
                    others = option.files - needed - left_out.keys()
                    left_out |= dict.fromkeys(
                        others,
                        f"the same weights are in {stays}"
                        if stays
                        else "another form of the model is here",
                    )
        if self.variant or self._is_gguf():
            gguf = {file for one in self.gguf.variants for file in one.files} | {
                *self.gguf.projectors
            }
            left_out |= dict.fromkeys(gguf & self.names - needed, "another variant")
        along = self.names - needed - left_out.keys()
        left_out |= self._too_large(along)
        notes = [option.note for option in options if option.note is not None]
        undecided = len(self.gguf.variants) > 1 and not self.variant
        return Division(
            needed,
            missing,
            along - left_out.keys(),
            left_out,
            tuple(other_repos(self._config)),
            frozenset(self.broken),
            notes[0] if notes else None,
            self.gguf if undecided and self._is_gguf() and missing else None,
        )

    def _too_large(self, along: AbstractSet[str]) -> dict[str, str]:
        """Return what nothing needs and is too much to be fetched for nothing."""
        if sum(self.sizes.get(name, 0) for name in along) <= _SMALL:
            return {}
        extras = [name for name in along if not _is_kept(name)]
        total = 0
        found = {}
        for name in sorted(extras, key=lambda name: (self.sizes.get(name, 0), name)):
            total += self.sizes.get(name, 0)
            if total > _SMALL:
                found[name] = "no loader opens it"
        return found

    # Ways.

    def _ways(self) -> list[_Way]:
        names = self.names
        if self.variant is not None:
            return [self._gguf_way()]
        if formats.PIPELINE in names:
            return self._pipeline_ways()
        root = {key.stem for key in self.sets if not key.folder}
        if "model" in root or (not self.listed and self._lost_weights()):
            ways = [self._transformers_way()]
            if "consolidated.safetensors" in names and "params.json" in names:
                ways.append(self._mistral_way())
            if self.gguf.variants:
                ways.append(self._gguf_way())
            return ways
        if "adapter_model" in root or ADAPTER_CONFIG in names:
            return [self._transformers_way(ADAPTER_CONFIG)]
        if "consolidated.safetensors" in names:
            return [self._mistral_way()]
        return [self._gguf_way()] if self._is_gguf() else [self._any_way()]

    def _lost_weights(self) -> bool:
        """Whether it is, without a listing, a model of transformers without its weights."""
        weights = [name for name in self.names if formats.is_weights(name)]
        config = self._config(formats.CONFIG)
        if weights:
            known = isinstance(config, dict) and not config.keys().isdisjoint(_OF_TRANSFORMERS)
            return known and not any(map(_LOADED_OTHERWISE.match, weights))
        return formats.CONFIG in self.names or not any(map(self._is_opened, self.names))

    def _is_gguf(self) -> bool:
        weights = [name for name in self.names if formats.is_weights(name)]
        return bool(self.gguf.variants) and all(name.lower().endswith(".gguf") for name in weights)

    def _gguf_way(self) -> _Way:
        choices = self.gguf.called(self.variant) if self.variant else list(self.gguf.variants)
        # Of what is begun, the one that comes closest.
        choices.sort(key=lambda one: len(set(one.files) - self.present) / len(one.files))
        whole = tuple(
            Option(
                next(iter(sorted(self.present & {*one.files})), one.files[0]), frozenset(one.files)
            )
            for one in choices
        )
        groups = [whole] if whole else []
        preferred = self.gguf.projector(self.sizes)
        if preferred is not None:
            others = [name for name in self.gguf.projectors if name != preferred]
            groups.append(tuple(_file(name) for name in (preferred, *others)))
        return _Way((), tuple(groups))

    def _mistral_way(self) -> _Way:
        tokenizers = sorted(filter(_MISTRAL_TOKENIZER.fullmatch, self.names))
        groups: list[tuple[Option, ...]] = [(_file("params.json"),)]
        if tokenizers or not self.listed:
            groups.append(tuple(map(_file, tokenizers)) or (_file("tekken.json"),))
        return _Way(self._known(groups), ((_file("consolidated.safetensors"),),))

    def _transformers_way(self, config: str = formats.CONFIG) -> _Way:
        weights: list[tuple[Option, ...]] = list(self._weights())
        root = {key.stem for key in self.sets if not key.folder}
        if not self.listed and not root & {"model", "adapter_model"}:
            weights.append((_file(formats.SAFETENSORS_SINGLE),))
        groups: list[tuple[Option, ...]] = [(_file(config),)]
        if ADAPTER_CONFIG in self.names:
            groups.append((_file(ADAPTER_CONFIG),))
        groups += self._tokenizer()
        groups += ((_file(name),) for name in self._beside(weights))
        return _Way(self._known(groups), tuple(weights))

    def _pipeline_ways(self) -> list[_Way]:
        parts = self._parts()
        sets = [key for key in self.sets if key.folder.partition("/")[0] in parts]
        default = all(
            key._replace(variant="") in self.sets
            for key in sets
            if key.stem in formats.DEFAULT_STEMS
        )
        kinds = sorted({key.variant for key in sets} & formats.VARIANTS)
        groups = [(_file(formats.PIPELINE),)]
        groups += (
            (_file(name),)
            for name in self.names - self.left_out.keys()
            if (
                name.partition("/")[0] in parts
                and not formats.is_weights(name)
                and not _is_index(name)
                and self._is_opened(name)
            )
            or ("/" not in name and _OWN_CODE.match(name) and not _SCRIPT.search(name))
        )
        groups += ((_file(name),) for name in self._missing_parts())
        return [
            _Way(
                self._known(groups),
                tuple(self._weights(parts, kind)),
            )
            for kind in ("", *kinds)
            if kind or default or not kinds
        ]

    def _any_way(self) -> _Way:
        """Return the way of a library that is not known: all that it could open."""
        weights = list(self._weights())
        known = {name for group in weights for option in group for name in option.files}
        code, sure = code_files(self.names, self._code_roots(), self.read, self.listed)
        groups = [
            (_file(name),)
            for name in self.names - self.left_out.keys() - known
            if (name in code if name.endswith(".py") and sure else self._is_opened(name))
        ]
        groups += ((_file(name),) for name in self._sentence())
        return _Way(self._known(groups), tuple(weights))

    # Parts of ways.

    def _known(self, groups: Iterable[tuple[Option, ...]]) -> tuple[tuple[Option, ...], ...]:
        """Return the groups that can be had: the hub cannot have what it does not list."""
        if not self.listed:
            return tuple(groups)
        kept = (tuple(one for one in group if one.files <= self.names) for group in groups)
        return tuple(filter(None, kept))

    def _is_opened(self, name: str) -> bool:
        return not (_FOR_READERS.search(name) or _TEMPLATES.search(name) or _SCRIPT.search(name))

    def _weights(
        self, folders: AbstractSet[str] | None = None, kind: str = ""
    ) -> Iterator[tuple[Option, ...]]:
        """Yield the options for each set of weights, and each other file of weights as one.

        Args:
            folders: the folders at the top whose sets are loaded; all if not given.
            kind: the variant that is preferred.
        """
        grouped: dict[formats.WeightKey, list[formats.WeightKey]] = {}
        for key in self.sets:
            if folders is None or key.folder.partition("/")[0] in folders:
                plain = key._replace(variant="") if key.variant in formats.VARIANTS else key
                grouped.setdefault(plain, []).append(key)
        for keys in grouped.values():
            keys.sort(key=lambda key: (key.variant != kind, key.variant))
            options = [option for key in keys for option in self._options(key)]
            if any(option.files - self.left_out.keys() for option in options):
                yield tuple(options)
        parsed = {
            name for sets in self.sets.values() for one in sets.values() for name in one.files
        }
        gguf = self._is_gguf()
        for name in self.names - parsed - self.left_out.keys():
            if (
                formats.is_weights(name)
                and (folders is None or name.partition("/")[0] in folders)
                and (gguf or not name.lower().endswith(".gguf"))
            ):
                yield (_file(name),)

    def _options(self, key: formats.WeightKey) -> list[Option]:
        """Return the formats of a set of weights in the order in which loaders look for them."""
        by_ending = self.sets[key]
        order = [ending for ending in _LOADED if ending in by_ending]
        complete = [ending for ending in order if self._is_usable(by_ending[ending])]
        sound = [ending for ending in complete if ending in ("safetensors", "bin")]
        options = []
        for ending in sound or complete or order:
            note = key.variant if key.variant in formats.VARIANTS else None
            if ending not in ("safetensors", "bin") and key == formats.WEIGHTS:
                note = "no-loader"
            weights = by_ending[ending]
            if weights.single is not None:
                options.append(Option(weights.single, frozenset({weights.single}), note))
            if weights.index_file is not None or weights.shards:
                options.append(self._sharded(weights, note))
        return options

    def _is_usable(self, weights: formats.WeightSet) -> bool:
        """Whether a set is complete by its names, or its index is what a loader opens."""
        if weights.complete or weights.index_file is None:
            return weights.complete
        shards = self._shards(weights)
        return not self.listed or (shards is not None and shards <= self.names)

    def _sharded(self, weights: formats.WeightSet, note: str | None) -> Option:
        index = weights.index_name
        shards = self._shards(weights)
        if index in self.present and shards is None and self.read(index) is not None:
            self.broken.add(index)
        if shards is None:
            files = weights.expected | {index}
            return Option(index, files & self.names if self.listed else files, note)
        return Option(index, shards | {index}, note)

    def _shards(self, weights: formats.WeightSet) -> frozenset[str] | None:
        """Return the shards that the index names, if it is here and makes sense."""
        index = weights.index_name
        if weights.complete and index not in self.present:
            return None
        content = self.read(index)
        shards = weight_map(content) if content is not None else None
        folder = index[: index.rfind("/") + 1]
        return frozenset(folder + name for name in shards) if shards is not None else None

    def _tokenizer(self) -> list[tuple[Option, ...]]:
        fast = (
            [Option(min(files), files) for files in _TOKENIZERS if files <= self.names]
            if "tokenizer.json" in self.names
            else []
        )
        return [tuple(fast)] if fast else []

    def _beside(self, weights: Iterable[tuple[Option, ...]]) -> set[str]:
        """Return the files that transformers and sentence-transformers open next to the weights."""
        names = self.names - self.left_out.keys()
        folders = {option.entry.rpartition("/")[0] for group in weights for option in group} - {""}
        folders |= {folder for folder in self._modules() if folder}
        named = config_strings(self._config(formats.CONFIG))
        fast = "tokenizer.json" in names
        found, sure = code_files(self.names, self._code_roots(), self.read, self.listed)
        code = frozenset(found)
        for name in names:
            folder, _, base = name.rpartition("/")
            if _is_of_weights(name):
                found |= {name} & named
            elif name.endswith(".py"):
                if not sure and not folder and not _SCRIPT.search(name):
                    found.add(name)
            elif folder:
                if folder in folders or named & {name, folder, name.partition("/")[0]}:
                    found |= {name} if self._is_opened(name) else set()
            elif (
                base in _PROCESSORS
                or name in named
                or _OWN_VOCABULARY.fullmatch(base)
                or (not fast and _VOCABULARY.fullmatch(base))
                or (code and self._is_opened(name) and base.endswith((".json", ".csv", ".vocab")))
            ):
                found.add(name)
        if not sure and not any(map(_OWN_CODE.match, found)):
            found = {name for name in found if not name.endswith(".py")} | code
        return (found | self._sentence()) - {"tokenizer.json"}

    def _sentence(self) -> set[str]:
        """Return what sentence-transformers opens, without which another model is loaded."""
        found = set(filter(_SENTENCE_CONFIG.fullmatch, self.names)) | ({MODULES} & self.names)
        if found or any(map(_NUMBERED.match, self.names)):
            found.add(MODULES)
        if not self.listed:
            found |= {f"{folder}/config.json" for folder, own in self._modules().items() if own}
        return found

    # What configuration files say.

    def _config(self, name: str) -> Any:
        if name not in self.configs:
            self.configs[name] = decoded(self.read(name))
        return self.configs[name]

    def _modules(self) -> dict[str, bool]:
        """Return the folders of sentence-transformers' modules -> whether each has a config."""
        modules = self._config(MODULES)
        if not isinstance(modules, list):
            return {match[1]: False for name in self.names if (match := _NUMBERED.match(name))}
        return {
            path.rstrip("/"): str(module.get("type")).endswith(("Pooling", "Dense", "LayerNorm"))
            for module in modules
            if isinstance(module, dict)
            and isinstance(path := module.get("path"), str)
            and path
            and layout.file_name_problem(path.rstrip("/")) is None
        }

    def _parts(self) -> set[str]:
        """Return the folders of a pipeline's parts."""
        index = self._config(formats.PIPELINE)
        folders = {name.partition("/")[0] for name in self.names if "/" in name}
        if not isinstance(index, dict):
            return folders
        named = {part for part, value in _part_classes(index)}
        return named & folders or folders

    def _missing_parts(self) -> Iterator[str]:
        """Yield what shows that a part of a pipeline is not there at all, without a listing."""
        index = self._config(formats.PIPELINE)
        if self.listed or not isinstance(index, dict):
            return
        folders = {name.partition("/")[0] for name in self.names if "/" in name}
        for part, kind in _part_classes(index):
            if part not in folders and layout.file_name_problem(part) is None:
                config = next((name for word, name in _PART_CONFIGS.items() if word in kind), "")
                yield f"{part}/{config or formats.CONFIG}"

    def _code_roots(self) -> dict[str, set[str]] | None:
        """Return file -> classes of the repo's own code that are named; `None` if not known."""
        if formats.CONFIG in self.names and not isinstance(self._config(formats.CONFIG), dict):
            return None
        roots: dict[str, set[str]] = {}
        for name in CODE_CONFIGS:
            for repo, file, kind in own_classes(self._config(name)):
                if repo is None:
                    roots.setdefault(file, set()).add(kind)
        modules = self._config(MODULES)
        for module in modules if isinstance(modules, list) else ():
            path, _, kind = str(module.get("type") if isinstance(module, dict) else "").rpartition(
                "."
            )
            if path and f"{path}.py" in self.names:
                roots.setdefault(f"{path}.py", set()).add(kind)
        return roots


def other_repos(config: Callable[[str], Any]) -> Iterator[OtherRepo]:
    """Yield the other repos that a model's configurations name.

    Args:
        config: returns what the JSON of a configuration says, `None` without it.
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
    """Return what the JSON of a configuration says; `None` if it is not JSON."""
    try:
        return msgspec.json.decode(content) if content else None
    except JSON_ERRORS:
        return None


_OF_TRANSFORMERS = ("architectures", "model_type")
"""Keys of config.json that say that transformers loads the model."""
_LOADED_OTHERWISE = re.compile(r"consolidated|adapter_model|[^/]*\.gguf$", re.IGNORECASE)
"""Weights next to which transformers' own are not missed."""

_LOADED = ("safetensors", "bin", "h5", "msgpack", "ot")
"""Endings of weights in the order in which they are preferred; no library loads the last three."""

_PART_CONFIGS = {
    "Scheduler": "scheduler_config.json",
    "Tokenizer": "tokenizer_config.json",
    "Processor": "preprocessor_config.json",
    "Extractor": "preprocessor_config.json",
}
"""Word in the name of a part's class -> the configuration that the part has."""


def _part_classes(index: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield folder and class of each part that a pipeline has."""
    for part, value in index.items():
        is_class = isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
        if is_class and not part.startswith("_"):
            yield part, value[1]


def _file(name: str) -> Option:
    return Option(name, frozenset({name}))


def _is_of_weights(name: str) -> bool:
    return formats.is_weights(name) or _is_index(name)


def _is_index(name: str) -> bool:
    return ".index." in name and name.endswith(".json")


def _is_kept(name: str) -> bool:
    """Whether a file that nothing needs is fetched along whatever its size."""
    return bool(
        formats.is_weights(name)
        or name.endswith(".py")
        or _TEMPLATES.search(name)
        or _VOCABULARY.fullmatch(name.rpartition("/")[2])
        or re.match("README|LICEN|NOTICE", name, re.IGNORECASE)
    )
