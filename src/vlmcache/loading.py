"""`load_model`: what applications call.

The weights are read ahead before torch and transformers are imported, so this imports neither.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vlmcache.config import load_config, locate_cache, own_home, parse_precision, read_environment
from vlmcache.errors import NotDownloadedError, UsageError
from vlmcache.load import models, quantized
from vlmcache.load.reader import ReadAhead
from vlmcache.load.source import find_source, read_tensors


def load_model(
    key: str,
    precision: str | None = None,
    device: str = "auto",
    *,
    trust_remote_code: bool = False,
    attention: str | None = None,
    config: str | None = None,
    cache_dir: str | None = None,
) -> tuple[Any, Any]:
    """Load a model and its processor, every weight on the device; download it if not cached.

    A cached model is loaded without the network. A kept quantised copy (`vlmcache quantize`) is
    used by itself. The weights are read ahead while torch and transformers are imported.

    Args:
        key: a key of config.yaml or a repo id, with an optional `@revision`.
        precision: fp32, fp16, bf16, int8 or int4; the configured one if not given.
        device: `auto`, `cpu`, `cuda:0`, `xpu`, `mps`.
        trust_remote_code: whether Python code of the repo may run. Without it that is allowed only
            where config.yaml says so and pins a commit.
        attention: transformers' `attn_implementation`; its own choice if not given.
        config: the config.yaml to use, as with `--config`.
        cache_dir: the hub cache, as with `--cache-dir`.

    Returns:
        The model, and its processor (`None` for a repo without any).

    Raises:
        UnloadableError: the model cannot be loaded so; the message and the hint say why.
        VlmcacheError: the download failed.
        UnknownModelError: the key is neither configured nor a repo id.
    """
    environment = read_environment()
    settings = load_config(config, environment)
    location = locate_cache(cache_dir, environment)
    try:
        wanted = parse_precision(precision) if precision is not None else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    find = partial(
        find_source,
        settings,
        location,
        key,
        wanted,
        trust_remote_code=trust_remote_code,
        for_application=True,
    )
    models.require_packages()
    try:
        _, source = find()
    except NotDownloadedError:
        # The pull's machinery is imported only where there is something to pull.
        from vlmcache.commands.pull.pull import pull

        pull(settings, location, environment, [key])
        _, source = find()
    home, _ = own_home(environment)
    snapshot = source
    source = quantized.preferred(home, source)
    reading = ReadAhead(source.weights).start()
    try:
        read_tensors(source)
        with models.explained(source), models.no_collection():
            processor = models.load_processor(snapshot)
            model = models.build(source, device, attention=attention)
            reading.wait()
            models.settle(model)
    finally:
        reading.halt()
    models.remember_use(home, location, source, "load")
    return model, processor
