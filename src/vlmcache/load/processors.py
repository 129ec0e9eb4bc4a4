"""Making the processor or tokenizer of a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from vlmcache.load.own_code import only_allowed
from vlmcache.load.source import TOKENIZERS, ModelFiles

_FOR_IMAGES = (
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)


def load_processor(source: ModelFiles) -> Any:
    """Return the repo's processor or tokenizer; `None` for a repo without any.

    Without torchvision it is one for images and text: transformers' processors of videos need it.

    Raises:
        UnloadableError: it needs code that nobody allowed to run. Errors of the libraries are left
            to `explained`.
    """
    names = {name for name in (*_FOR_IMAGES, *TOKENIZERS) if _is_file(source.processor, name)}
    if not names:
        return None
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
            # A vision model's repo that has but a tokenizer: there can be no processor.
            return read(AutoTokenizer)
        if not isinstance(error, ImportError) or "torchvision" not in str(error).lower():
            raise
    with _without_videos():
        return read(AutoProcessor)


def _is_file(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))


@contextlib.contextmanager
def _without_videos() -> Iterator[None]:
    """Let transformers make processors that have none for videos."""
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
