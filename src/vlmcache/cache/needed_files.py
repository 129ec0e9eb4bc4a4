"""Which files of a model's repo loading needs, which come along, and which are left out (pure).

A model can often be loaded in several ways: from safetensors or from pickled weights, with the
tokenizer's own file or with its vocabulary, by transformers or by llama.cpp. One complete way is
enough. Files are read through a function that the caller passes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from vlmcache import late
from vlmcache.cache import formats, layout
from vlmcache.cache.code_files import code_files, config_strings
from vlmcache.cache.gguf import Variants, is_gguf
from vlmcache.cache.model_configs import (
    ADAPTER_CONFIG,
    MODULES,
    Configs,
    KnownFiles,
    OtherRepo,
    is_module,
    other_repos,
)
from vlmcache.cache.weight_options import Option, Weights, is_index, one_file

GENERATION = "generation_config.json"
_SMALL = 1_000_000
"""The most bytes, all together, of files that come along although nothing is known to need them."""

_FOR_READERS = late.pattern(
    r"(?:^|/)(?:README|LICEN[CS]E|NOTICE|USE_POLICY|CITATION|requirements|setup\.cfg|pyproject)"
    r"[^/]*$|(?:^|/)\.[^/]*$|(?:^|/)runs/|\.tfevents"
    r"|\.(?:md|rst|png|jpe?g|gif|svg|webp|bmp|pdf|mp[34]|wav|flac|webm|avi|mov|sh|ipynb|html|whl|log)$",
    re.IGNORECASE,
)
_ADAPTER = "adapter_model.safetensors"
_TEMPLATES = late.pattern(
    rf"(?:^|/)(?:chat_template\.(?:json|jinja)|{re.escape(GENERATION)})$"
    r"|^additional_chat_templates/|\.jinja$"
)
_SCRIPT = late.pattern(
    r"(?:^|/)(?:handler|setup|app|demo|sample|example|test|convert|train|finetune|inference|eval"
    r"|benchmark|gradio|streamlit|quantize|export)\w*\.py$",
    re.IGNORECASE,
)
"""Programs that people run, which no loader imports."""
_OWN_CODE = late.pattern(
    r"^\w*(?:model|config|tokeniz|process|pipeline|custom)\w*\.py$", re.IGNORECASE
)
"""Names of code that loaders run if no configuration names any."""
_PROCESSORS = frozenset(
    {
        "alphabet.json",
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
_VOCABULARY = late.pattern(
    r"(?:\w*vocab\w*|encoder|added_tokens|dict|normalizer)\.(?:json|txt|bpe)|merges\.txt"
    r"|vocab-\w+\.(?:json|txt)|bpe\.codes|[\w.-]*\.(?:model|spm)(?:\.v\d+)?|tokenizer\.json"
)
"""Files of tokenizers that tokenizer.json makes superfluous."""
_OWN_VOCABULARY = late.pattern(r"tekken\.json|[\w.-]*tiktoken(?:\.model)?|[\w.-]*\.spm")
"""Files of tokenizers that do not read tokenizer.json."""
_TOKENIZERS = (
    frozenset({"tokenizer.json"}),
    frozenset({"vocab.json", "merges.txt"}),
    frozenset({"vocab.txt"}),
)
"""The files that are enough for a fast tokenizer, the preferred ones first."""
_SENTENCE_CONFIG = late.pattern(r"config_sentence_transformers\.json|sentence_\w+_config\.json")
_MISTRAL_TOKENIZER = late.pattern(r"tekken\.json|tokenizer\.(?:model|json)(?:\.v\d+)?")


class Division(NamedTuple):
    """The files of a repo by their role in loading."""

    needed: frozenset[str]
    """Files of the way of loading that is complete, or the closest to it, or preferred."""
    missing: frozenset[str]
    """The needed files that are not here."""
    along: frozenset[str]
    """Fetched together with something needed, never alone."""
    left_out: Mapping[str, str]
    """File -> why a plain pull leaves it out."""
    repos: tuple[OtherRepo, ...] = ()
    broken: frozenset[str] = frozenset()
    """Indexes that are here and name no shards, or some that the Hub does not have."""
    note: str | None = None
    """`no-loader` if no known library loads the weights; a variant's name if loading has to ask for
    it."""
    choices: Variants | None = None
    """The GGUF variants, if one of them has to be chosen."""


class _Way(NamedTuple):
    """One way to load a model: of each group of options, one is needed."""

    groups: tuple[tuple[Option, ...], ...]
    weights: tuple[tuple[Option, ...], ...]

    def chosen(self, present: AbstractSet[str]) -> list[Option]:
        return [
            group[0]
            if len(group) == 1
            else next((option for option in group if option.entry in present), group[0])
            for group in (*self.groups, *self.weights)
        ]

    def begun(self, present: AbstractSet[str]) -> bool:
        return any(
            not option.files.isdisjoint(present) for group in self.weights for option in group
        )


def divide(files: KnownFiles, variant: str | None = None, *, complement: bool = False) -> Division:
    """Divide the files of a model's repo by their role in loading.

    Args:
        files: the files of the repo.
        variant: the GGUF variant that is asked for.
        complement: whether it is a pull request, from which loaders fetch only the weights.
    """
    if complement and not files.listed and all(map(_is_of_weights, files.names)):
        files = files._replace(listed=True)
    return _Repo(files, variant).divide()


class _Repo:
    """One repo while it is divided."""

    def __init__(self, files: KnownFiles, variant: str | None) -> None:
        self.names, self.present, self.read, self.listed, self.sizes = files
        self.variant = variant
        self.weights = Weights(files)
        self.configs = Configs(files)

    def divide(self) -> Division:
        ways = self._ways()
        begun = [way for way in ways if way.begun(self.present)] or ways[:1]
        options = min(
            (way.chosen(self.present) for way in begun),
            key=lambda options: len(_files_of(options) - self.present),
        )
        needed = _files_of(options)
        missing = needed - self.present
        left_out = {name: why for name, why in self.weights.left_out.items() if name not in needed}
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
        if self.variant or self.weights.all_gguf:
            gguf = {*self.weights.gguf.projectors}
            gguf.update(*(variant.files for variant in self.weights.gguf.variants))
            left_out |= dict.fromkeys(gguf & self.names - needed, "another variant")
        along = self.names - needed - left_out.keys()
        large = self._too_large(along)
        # llama.cpp opens nothing else; what other loaders open is not known completely.
        unknown = frozenset() if any(map(is_gguf, needed)) else frozenset(filter(_is_opened, large))
        if not needed:
            unknown, large = along, set()
        needed |= unknown
        missing |= unknown - self.present
        left_out |= dict.fromkeys(large - unknown, "no loader opens it")
        notes = [option.note for option in options if option.note is not None]
        undecided = len(self.weights.gguf.variants) > 1 and not self.variant
        return Division(
            needed,
            missing,
            along - needed - left_out.keys(),
            left_out,
            tuple(other_repos(self.configs.json)),
            frozenset(self.weights.broken),
            notes[0] if notes else None,
            self.weights.gguf if undecided and self.weights.all_gguf and missing else None,
        )

    def _too_large(self, along: AbstractSet[str]) -> set[str]:
        """Return the files that are not known to be needed and too large to come along."""
        sizes = {name: self.sizes.get(name, 0) for name in along}
        if not self.sizes or sum(sizes.values()) <= _SMALL:
            return set()
        extras = [name for name in along if not _is_kept(name)]
        total = 0
        large = set()
        for name in sorted(extras, key=lambda name: (not _is_opened(name), sizes[name], name)):
            if total + sizes[name] > _SMALL:
                large.add(name)
            else:
                total += sizes[name]
        return large

    def _ways(self) -> list[_Way]:
        names = self.names
        if self.variant is not None:
            return [self._gguf_way()]
        if formats.PIPELINE in names:
            return self._pipeline_ways()
        root = {key.stem for key in self.weights.sets if not key.folder}
        lost = not self.listed and ADAPTER_CONFIG not in names and self._lost_weights()
        if "model" in root or lost:
            ways = [self._transformers_way()]
            if "consolidated.safetensors" in names and "params.json" in names:
                ways.append(self._mistral_way())
            if self.weights.gguf.variants:
                ways.append(self._gguf_way())
            return ways
        if "adapter_model" in root or ADAPTER_CONFIG in names:
            return [self._transformers_way(ADAPTER_CONFIG)]
        if "consolidated.safetensors" in names:
            return [self._mistral_way()]
        return [self._gguf_way()] if self.weights.all_gguf else [self._any_way()]

    def _lost_weights(self) -> bool:
        """Return whether, without a listing, this is a transformers model without its weights."""
        weights = [name for name in self.names if formats.is_weights(name)]
        config = self.configs.json(formats.CONFIG)
        if weights:
            known = isinstance(config, dict) and not config.keys().isdisjoint(_OF_TRANSFORMERS)
            return known and not any(map(_LOADED_OTHERWISE.match, weights))
        return formats.CONFIG in self.names or not any(map(_is_opened, self.names))

    def _gguf_way(self) -> _Way:
        return _Way((), tuple(self.weights.gguf_groups(self.variant, self.sizes)))

    def _mistral_way(self) -> _Way:
        tokenizers = sorted(filter(_MISTRAL_TOKENIZER.fullmatch, self.names))
        groups: list[tuple[Option, ...]] = [(one_file("params.json"),)]
        if tokenizers or not self.listed:
            groups.append(tuple(map(one_file, tokenizers)) or (one_file("tekken.json"),))
        return _Way(self._known(groups), ((one_file("consolidated.safetensors"),),))

    def _transformers_way(self, config: str = formats.CONFIG) -> _Way:
        weights: list[tuple[Option, ...]] = list(self.weights.groups())
        root = {key.stem for key in self.weights.sets if not key.folder}
        if not self.listed and not root & {"model", "adapter_model"}:
            adapter = config == ADAPTER_CONFIG
            weights.append((one_file(_ADAPTER if adapter else formats.SAFETENSORS_SINGLE),))
        groups: list[tuple[Option, ...]] = [(one_file(config),)]
        if ADAPTER_CONFIG in self.names:
            groups.append((one_file(ADAPTER_CONFIG),))
        groups += self._tokenizer()
        groups += ((one_file(name),) for name in self._next_to(weights))
        return _Way(self._known(groups), tuple(weights))

    def _pipeline_ways(self) -> list[_Way]:
        parts = self.configs.parts()
        sets = [key for key in self.weights.sets if key.folder.partition("/")[0] in parts]
        default = all(
            key._replace(variant="") in self.weights.sets
            for key in sets
            if key.stem in formats.DEFAULT_STEMS
        )
        kinds = sorted({key.variant for key in sets} & formats.VARIANTS)
        groups = [(one_file(formats.PIPELINE),)]
        groups += (
            (one_file(name),)
            for name in self.names - self.weights.left_out.keys()
            if (
                name.partition("/")[0] in parts
                and not formats.is_weights(name)
                and not is_index(name)
                and _is_opened(name)
            )
            or ("/" not in name and _OWN_CODE.match(name) and not _SCRIPT.search(name))
        )
        groups += ((one_file(name),) for name in self.configs.missing_parts())
        return [
            _Way(
                self._known(groups),
                tuple(self.weights.groups(parts, kind)),
            )
            for kind in ("", *kinds)
            if kind or default or not kinds
        ]

    def _any_way(self) -> _Way:
        """Return the way of an unknown library: all files that it could open."""
        weights = list(self.weights.groups())
        known = {name for group in weights for option in group for name in option.files}
        code, sure = code_files(self.names, self.configs.code_roots(), self.read, self.listed)
        groups = [
            (one_file(name),)
            for name in self.names - self.weights.left_out.keys() - known
            if (name in code if name.endswith(".py") and sure else _is_opened(name))
        ]
        groups += ((one_file(name),) for name in self._sentence())
        return _Way(self._known(groups), tuple(weights))

    def _known(self, groups: Iterable[tuple[Option, ...]]) -> tuple[tuple[Option, ...], ...]:
        """Return the groups that can exist: the Hub does not have what it does not list."""
        if not self.listed:
            return tuple(groups)
        kept = (tuple(option for option in group if option.files <= self.names) for group in groups)
        return tuple(filter(None, kept))

    def _tokenizer(self) -> list[tuple[Option, ...]]:
        if "tokenizer.json" not in self.names:
            return []
        complete = (files for files in _TOKENIZERS if files <= self.names)
        return [tuple(Option(min(files), files) for files in complete)]

    def _next_to(self, weights: Iterable[tuple[Option, ...]]) -> set[str]:
        """Return the files that transformers and sentence-transformers open next to the weights."""
        names = self.names - self.weights.left_out.keys()
        folders = {option.entry.rpartition("/")[0] for group in weights for option in group} - {""}
        folders |= {folder for folder in self.configs.modules() if folder}
        named = config_strings(self.configs.json(formats.CONFIG))
        fast = "tokenizer.json" in names
        found, sure = code_files(self.names, self.configs.code_roots(), self.read, self.listed)
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
                    found |= {name} if _is_opened(name) else set()
            elif (
                base in _PROCESSORS
                or name in named
                or _OWN_VOCABULARY.fullmatch(base)
                or (not fast and _VOCABULARY.fullmatch(base))
                or (code and _is_opened(name) and base.endswith((".json", ".csv", ".vocab")))
            ):
                found.add(name)
        if not sure and not any(map(_OWN_CODE.match, found)):
            found = {name for name in found if not name.endswith(".py")} | code
        return (found | self._sentence()) - {"tokenizer.json"}

    def _sentence(self) -> set[str]:
        """Return what sentence-transformers opens: without it, it loads another model."""
        found = set(filter(_is_sentence_config, self.names)) | ({MODULES} & self.names)
        if found or any(map(is_module, self.names)):
            found.add(MODULES)
        if not self.listed:
            found |= {
                f"{folder}/config.json" for folder, own in self.configs.modules().items() if own
            }
        return found


def _files_of(options: Iterable[Option]) -> frozenset[str]:
    return frozenset().union(*(option.files for option in options))


_OF_TRANSFORMERS = ("architectures", "model_type")
"""Keys of config.json which show that transformers loads the model."""
_LOADED_OTHERWISE = late.pattern(r"consolidated|adapter_model|[^/]*\.gguf$", re.IGNORECASE)
"""Weights next to which no weights of transformers' own are missing."""


@layout.by_name
def _is_of_weights(name: str) -> bool:
    return formats.is_weights(name) or is_index(name)


@layout.by_name
def _is_opened(name: str) -> bool:
    """Return whether a loader may open a file, by its name."""
    return not (_FOR_READERS.search(name) or _TEMPLATES.search(name) or _SCRIPT.search(name))


@layout.by_name
def _is_sentence_config(name: str) -> bool:
    return _SENTENCE_CONFIG.fullmatch(name) is not None


def _is_kept(name: str) -> bool:
    """Return whether a file that nothing needs comes along whatever its size."""
    return bool(
        formats.is_weights(name)
        or name.endswith(".py")
        or _TEMPLATES.search(name)
        or _VOCABULARY.fullmatch(name.rpartition("/")[2])
        or re.match("README|LICEN|NOTICE", name, re.IGNORECASE)
    )
