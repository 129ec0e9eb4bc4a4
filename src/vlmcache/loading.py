"""`load_model`: what applications call.

The weights are read ahead before torch and transformers are imported, so this imports neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmcache import units
from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.memory import has_accelerator
from vlmcache.config import Session, open_session, own_home
from vlmcache.errors import NotDownloadedError, UnconfirmedError, UnloadableError
from vlmcache.load import class_list, models, processors, quantized
from vlmcache.load.device import CPU
from vlmcache.load.disk import readers_for
from vlmcache.load.explain import explained, require_packages
from vlmcache.load.finder import ModelFinder
from vlmcache.load.options import parse_one_attention, parse_one_precision
from vlmcache.load.reader import ReadAhead
from vlmcache.load.residency import touch_all_weights
from vlmcache.load.source import ModelFiles, check_fits, estimate_memory, read_ahead_limit

if TYPE_CHECKING:
    from vlmcache.commands.pull.values import PlannedModel


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

    A cached model is loaded without the network. A kept quantized copy (`vlmcache quantize`) is
    used automatically. The weights are read ahead while torch and transformers are imported.

    Args:
        key: a key of config.yaml or a repo id, with an optional `@revision`.
        precision: fp32, fp16, bf16, int8 or int4; the configured one if not given, else the type
            that the weights are stored in.
        device: `auto`, `cpu`, `cuda:0`, `xpu`, `mps`.
        trust_remote_code: whether Python code of the repo may run. Without it that is allowed only
            where config.yaml says so and pins a commit.
        attention: sdpa, eager or flash_attention_2; the configured one if not given, else the
            model's own choice. If that needs a package which is not installed, a warning says so.
        config: the config.yaml to use, as with `--config`.
        cache_dir: the hub cache, as with `--cache-dir`.

    Returns:
        The model, and its processor (`None` for a repo without one).

    Raises:
        UnloadableError: the model cannot be loaded with these settings.
        VlmcacheError: the download failed.
        UnknownModelError: the key is neither configured nor a repo id.
    """
    return load_from(
        open_session(config, cache_dir),
        key,
        precision,
        device,
        trust_remote_code=trust_remote_code,
        attention=attention,
    )


def load_from(
    session: Session,
    key: str,
    precision: str | None,
    device: str,
    *,
    trust_remote_code: bool,
    attention: str | None,
) -> tuple[Any, Any]:
    """Do what `load_model` does, for a session that is open."""
    chosen_precision = None if precision is None else parse_one_precision(precision)
    attention = parse_one_attention(attention)

    def find() -> ModelFiles:
        finder = ModelFinder(
            session,
            [key],
            trust_remote_code=trust_remote_code,
            for_application=True,
            attention=attention,
        )
        return finder.find(key, chosen_precision)[1]

    require_packages()
    try:
        source = find()
    except NotDownloadedError:
        # The pull's machinery is imported only where there is something to pull.
        from vlmcache.commands.pull.pull import pull
        from vlmcache.commands.pull.values import PullOptions, needs_text

        def refuse(others: Sequence[PlannedModel]) -> bool:
            raise UnconfirmedError(
                f"{needs_text(others)}, and nothing was fetched", units.command("pull", key)
            )

        pull(session, [key], PullOptions(agree=refuse)).check()
        source = find()
    home, _ = own_home(session.environment)
    chosen = quantized.preferred(home, source)
    try:
        model, processor, notes = _load(chosen, device, home)
    except UnloadableError as error:
        if not quantized.is_the_copys(chosen, error):
            raise
        model, processor, notes = _load(source, device, home)
        quantized.set_aside(chosen, error)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    models.remember_use(home, session.cache, source, "load")
    return model, processor


def _load(source: ModelFiles, device: str, home: str) -> tuple[Any, Any, list[str]]:
    """Return the model of a source, its processor, and notes for the user.

    Args:
        source: the model's files.
        device: as torch names it, or `auto`.
        home: vlmcache's own folder.

    Raises:
        UnloadableError: it cannot be loaded with these settings.
    """
    # torch cannot be asked: it is imported only after the reading has begun.
    on_cpu = device == CPU or (device == "auto" and not has_accelerator())
    need = estimate_memory(source, accelerator=not on_cpu)
    if on_cpu:
        check_fits(source, need.held, available_memory(), CPU)
    readers = readers_for(home, source.weights)
    reading = ReadAhead(source.weights, read_ahead_limit(need), readers)
    notes: list[str] = []
    try:
        with explained(source), models.no_collection(), class_list.kept(home):
            processor = processors.load_processor(source)
            model = models.build_model(source, device, notes=notes)
            reading.wait()
            touch_all_weights(model)
            models.refuse_non_finite(source, model)
    finally:
        reading.halt()
    return model, processor, notes
