"""Making the processor or tokenizer of a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from vlmcache.cache.reading import JSON_ERRORS, parse_json, read_bytes
from vlmcache.load.own_code import only_allowed
from vlmcache.load.source import TOKENIZERS, ModelFiles

_CONFIG_LIMIT = 16_000_000
_OWN = {"AutoTokenizer": "tokenizer_config.json", "AutoImageProcessor": "preprocessor_config.json"}
"""Auto class -> the file in which transformers looks for a repo's own class, not config.json."""
_FOR_IMAGES = (
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)


def load_processor(source: ModelFiles) -> Any:
    """Return the repo's processor or tokenizer; `None` for a repo without one.

    Without torchvision it is one for images and text: transformers' video processors need it.

    Raises:
        UnloadableError: it needs code that is not allowed to run. Errors of the libraries are left
            to `explained`.
    """
    names = {name for name in (*_FOR_IMAGES, *TOKENIZERS) if _is_file(source.processor, name)}
    own = next((auto for auto, file in _OWN.items() if _is_own(source, auto, file)), None)
    if not names and own is None:
        return None
    from transformers import ProcessorMixin

    try:
        processor = _of_transformers(source, names)
    except (ImportError, OSError, ValueError):
        if own is None:
            raise
        processor = None
    general = processor is None or type(processor).__module__.startswith("transformers.")
    if own is None or isinstance(processor, ProcessorMixin) or not general:
        return processor
    if processor is not None and not source.trust_remote_code:
        return processor
    # The repo's own class is preferred to a general one of transformers.
    try:
        return _read_own(source, own)
    except (OSError, ValueError):
        if names:
            raise
        # The class finds no file that it could read.
        return None


def _of_transformers(source: ModelFiles, names: AbstractSet[str]) -> Any:
    """Return what transformers' own classes make of some of the processor's files."""
    from transformers import AutoProcessor, AutoTokenizer

    def read(auto_class: Any) -> Any:
        with only_allowed(source):
            return auto_class.from_pretrained(
                source.processor, trust_remote_code=source.trust_remote_code, local_files_only=True
            )

    try:
        return read(AutoProcessor)
    except (ImportError, OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise
        if names.isdisjoint(_FOR_IMAGES):
            # A vision model's repo with only a tokenizer cannot have a processor.
            return read(AutoTokenizer)
        if not isinstance(error, ImportError) or "torchvision" not in str(error).lower():
            raise
    with _without_videos():
        return read(AutoProcessor)


def _read_own(source: ModelFiles, auto: str) -> Any:
    """Return what the repo's own class for an auto class makes of its files."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    with only_allowed(source):
        own = get_class_from_dynamic_module(
            source.classes[auto], source.processor, local_files_only=True
        )
        return own.from_pretrained(source.processor, local_files_only=True)


def _is_own(source: ModelFiles, auto: str, file: str) -> bool:
    """Return whether config.json alone names the repo's own class for an auto class."""
    if auto not in source.classes:
        return False
    try:
        named = parse_json(read_bytes(os.path.join(source.processor, file), _CONFIG_LIMIT))
    except (OSError, *JSON_ERRORS):
        return True
    return not (isinstance(named, dict) and named.get("auto_map"))


def _is_file(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))


@contextlib.contextmanager
def _without_videos() -> Iterator[None]:
    """Let transformers make processors without the part for videos."""
    from transformers import ProcessorMixin
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    check = ProcessorMixin.check_argument_for_proper_class

    def checked(self: Any, name: str, value: Any) -> Any:
        return None if value is None and name == "video_processor" else check(self, name, value)

    def nothing(*_: Any, **__: Any) -> None:
        return None

    read = AutoVideoProcessor.__dict__.get("from_pretrained")
    ProcessorMixin.check_argument_for_proper_class = checked
    AutoVideoProcessor.from_pretrained = nothing
    try:
        yield
    finally:
        ProcessorMixin.check_argument_for_proper_class = check
        if read is None:
            del AutoVideoProcessor.from_pretrained
        else:
            AutoVideoProcessor.from_pretrained = read
