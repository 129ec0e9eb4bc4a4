"""Building models with torch and transformers, which the functions import; nothing else does."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from typing import Any

from vlmcache import units
from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.weights import Precision
from vlmcache.config import CacheLocation
from vlmcache.errors import (
    DamagedWeightsError,
    MissingPackageError,
    UnknownArchitectureError,
    UnloadableError,
    UnsupportedPrecisionError,
)
from vlmcache.home.journal import Journal
from vlmcache.installing import install_package
from vlmcache.load import device as devices
from vlmcache.load import streams
from vlmcache.load.explain import install
from vlmcache.load.own_code import only_allowed, own_model_class, own_settings, untrusted_code
from vlmcache.load.report import QUANTIZED, Loader
from vlmcache.load.shapes import wrong_shape
from vlmcache.load.source import ModelFiles, check_fits, estimate_memory, read_tensors

_NAMED_KEYS = 3
_WIDER = {"BF16": "bf16", "F32": "fp32", "F64": "fp32"}
"""Stored types -> the precision that holds their values where fp16 cannot."""


_HARMLESS = ("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast")
"""The beginnings of bitsandbytes' warnings that say nothing: an optional kernel is missing on the
CPU, and LLM.int8 works in float16, as it always does."""


def remember_use(home: str, location: CacheLocation, source: ModelFiles, what: str) -> None:
    """Note in the journal that a model was used.

    Args:
        home: vlmcache's own folder.
        location: the hub cache.
        source: the model; nothing is noted of one that is from no repo.
        what: what used it, such as `load`.
    """
    if source.repo is not None and source.commit is not None:
        with Journal(home) as journal:
            journal.record_use(location.dir, ("model", source.repo, source.commit), what)


def silence_bitsandbytes() -> None:
    """Keep two warnings of bitsandbytes from the terminal, one of which comes for each matrix."""
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_HARMLESS)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage inside: importing makes many objects and hardly any garbage.

    Searching them again and again takes about a tenth of the time that the imports take.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def choose_class(source: ModelFiles) -> tuple[Any, Any]:
    """Return the model's configuration object, and the class that loads it.

    Where code of the repo is allowed and has classes, both are that code's. Otherwise it is an auto
    class where one leads to the class that config.json names, else that class itself. Where none is
    named, image-text-to-text models come first, then language models, then whatever has a model.

    Raises:
        UnknownArchitectureError: transformers does not know it, and the repo brings no code.
        UntrustedCodeError: the repo brings code, and nobody has allowed that to run.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    known = source.model_type in CONFIG_MAPPING_NAMES
    if not known and not source.classes:
        raise UnknownArchitectureError(
            f"{source.model}: transformers {transformers.__version__} knows no architecture"
            f" {source.model_type!r}",
            install_package("--upgrade", "transformers"),
        )
    if not known and not source.trust_remote_code:
        raise untrusted_code(source)
    with only_allowed(source):
        settings = _settings(source)
    own = own_model_class(source, settings.architectures) if source.trust_remote_code else None
    if own is not None:
        auto_class = getattr(transformers, own[0], transformers.AutoModelForImageTextToText)
        settings.auto_map = source.classes | {auto_class.__name__: own[1]}
        return settings, auto_class
    if not known:
        raise UnknownArchitectureError(f"{source.model}: its code names no model class")
    return settings, _known_class(source.model_type, settings)


def _settings(source: ModelFiles) -> Any:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if source.trust_remote_code and "AutoConfig" in source.classes:
        return own_settings(source)
    if source.model_type not in CONFIG_MAPPING:
        raise UnknownArchitectureError(f"{source.model}: its code names no configuration class")
    try:
        settings = transformers.AutoConfig.from_pretrained(
            source.folder, trust_remote_code=False, local_files_only=True
        )
    except TypeError:
        # It cannot read an `auto_map` that is null or names null, which stands for none.
        settings = CONFIG_MAPPING[source.model_type].from_pretrained(source.folder)
    vars(settings).pop("auto_map", None)
    return settings


def _known_class(kind: str, settings: Any) -> Any:
    """Return the class of transformers that loads a model of a known architecture."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    by_task = [
        (names[kind], getattr(transformers, chosen))
        for names, chosen in (
            (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "AutoModelForImageTextToText"),
            (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "AutoModelForCausalLM"),
            (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "AutoModelForSeq2SeqLM"),
            (auto.MODEL_MAPPING_NAMES, "AutoModel"),
        )
        if kind in names
    ]
    for named in _named_classes(settings):
        for leads_to, chosen in by_task:
            if named.__name__ in ([leads_to] if isinstance(leads_to, str) else leads_to):
                return chosen
        if getattr(getattr(named, "config_class", None), "model_type", None) == kind:
            return named
    return by_task[0][1] if by_task else transformers.AutoModel


def import_for(source: ModelFiles) -> None:
    """Import all that loading a source needs, so that building the model does not include it."""
    settings, _ = choose_class(source)
    silence_bitsandbytes()
    _named_classes(settings)
    if source.precision in QUANTIZED:
        with contextlib.suppress(ImportError):
            importlib.import_module("bitsandbytes")
            importlib.import_module("accelerate")


def _named_classes(settings: Any) -> list[Any]:
    """Return transformers' own class that a configuration names, as a list of one or none."""
    import transformers

    names = getattr(settings, "architectures", None) or ()
    return [getattr(transformers, name) for name in names[:1] if hasattr(transformers, name)]


def half_precision(settings: Any) -> Any:
    """Return the dtype of what is not quantized: the stored one if it is a half, else bfloat16."""
    import torch

    for part in (settings, getattr(settings, "text_config", None)):
        stored = getattr(part, "dtype", None)
        if stored in (torch.float16, torch.bfloat16):
            return stored
    return torch.bfloat16


def quantization(precision: Precision, settings: Any) -> Any:
    """Return transformers' quantization settings: LLM.int8 for int8, nf4 for int4."""
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=half_precision(settings),
    )


def build_model(
    source: ModelFiles,
    device: str,
    *,
    loader: Loader = "plain",
    notes: list[str] | None = None,
    checked: bool = False,
) -> Any:
    """Return the model built from a source on a device, in evaluation mode.

    On the CPU its weights may still be mapped files that nothing has read: see `touch_all_weights`.

    Args:
        source: the model's files.
        device: as torch names it, or `auto`.
        loader: what reads the weights.
        notes: a list to which notes for the user are added, on a model that loads nevertheless.
        checked: whether the device is known to work at the precision; else it is tried.

    Raises:
        UnloadableError: it cannot be built; errors of the libraries are left to `explained`.
    """
    where = devices.placement(device, source.device_map)
    chosen = devices.resolve_device(device)
    silence_bitsandbytes()
    if not checked:
        devices.check_precision(chosen, source.precision)
    if source.adapter is not None and importlib.util.find_spec("peft") is None:
        raise MissingPackageError(
            f"{source.model} is an adapter (PEFT), and loading it needs peft", install("peft")
        )
    if where == {"": chosen}:
        free, _ = devices.memory(chosen)
        need = estimate_memory(source, accelerator=chosen != devices.CPU).held
        check_fits(source, need, available_memory() if free is None else free, chosen)
    settings, chosen_class = choose_class(source)
    notes = [] if notes is None else notes
    arguments: dict[str, Any] = {
        "config": settings,
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "attn_implementation": _attention(source, settings, notes),
    }
    arguments |= _precision_arguments(source, settings, where)
    with only_allowed(source):
        if loader in streams.STREAMING:
            # transformers takes either a folder or tensors, and its auto classes need a folder.
            (known,) = _named_classes(settings) or (None,)
            if known is None or getattr(settings, "auto_map", None):
                raise UnloadableError(
                    f"--loader {loader} cannot load {source.model}, whose class is its own",
                    "--loader readahead",
                )
            of_model = [path for path in source.weights if os.path.dirname(path) != source.adapter]
            arguments["state_dict"] = streams.read_weights(loader, of_model, where)
            with streams.nothing_reserved():
                model, loading = known.from_pretrained(None, **arguments)
        else:
            if chosen_class.__name__.startswith("Auto"):
                arguments["trust_remote_code"] = source.trust_remote_code
            model, loading = chosen_class.from_pretrained(source.folder, **arguments)
        _check_loading(source, model, loading, notes)
        if source.adapter is not None:
            model.load_adapter(source.adapter)
    return model.eval()


def _precision_arguments(
    source: ModelFiles, settings: Any, where: str | dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that decide the precision and the device."""
    if source.precision in QUANTIZED:
        arguments = {"dtype": half_precision(settings), "device_map": where}
        if source.kind != "copy":
            if source.quantized_by is not None:
                raise UnsupportedPrecisionError(
                    f"{source.model} is already quantized ({source.quantized_by})",
                    "it loads as it is, without --precision",
                )
            arguments["quantization_config"] = quantization(source.precision, settings)
        return arguments
    dtype = "auto" if source.as_stored else devices.dtype_of(source.precision)
    return {"dtype": dtype} | ({} if where == {"": devices.CPU} else {"device_map": where})


def _attention(source: ModelFiles, settings: Any, notes: list[str]) -> str | None:
    """Return what transformers is to compute attention with; `None` is its own choice.

    Raises:
        MissingPackageError: the user asked for it, and its package is not installed.
    """
    from transformers.utils import is_flash_attn_2_available, is_kernels_available

    parts = [settings, *(getattr(settings, name, None) for name in settings.sub_configs)]
    asked = [str(getattr(part, "_attn_implementation", None)) for part in parts]
    flash = next((name for name in [source.attention or "", *asked] if "flash" in name), None)
    if flash is None or is_flash_attn_2_available() or is_kernels_available():
        return source.attention
    if flash == source.attention:
        raise MissingPackageError(
            f"{source.model}: {flash} needs flash-attn, which is not installed or finds no GPU",
            "--attention sdpa",
        )
    settings._attn_implementation = None  # noqa: SLF001 - it has no other name
    if source.attention is None:
        notes.append(
            f"{source.model}: config.json asks for {flash}, which is not available here;"
            " transformers' default computes attention"
        )
    return source.attention


def _check_loading(source: ModelFiles, model: Any, loading: Any, notes: list[str]) -> None:
    """Make sure that the files hold the model, but for a head or a pooler, which is noted.

    Raises:
        UnloadableError: shapes differ.
        DamagedWeightsError: more is missing, or a quantized weight does not fit its layer.
        UntrustedCodeError: the repo has code for a model of its own, and nobody has allowed that.
    """
    missing = sorted(loading["missing_keys"])
    lost = [name for name in missing if not _is_made_anew(model, name)]
    shapes = sorted(loading["mismatched_keys"])
    if (lost or shapes) and source.classes and not source.trust_remote_code:
        raise untrusted_code(source)
    for name, stored, expected in shapes:
        raise UnloadableError(
            f"{source.model}: {name} has the shape {list(stored)} in its files, and"
            f" {list(expected)} by config.json"
        )
    if lost:
        raise DamagedWeightsError(
            f"{source.model}: {len(lost)} weights are not in its files:"
            f" {', '.join(lost[:_NAMED_KEYS])}",
            source.repair,
        )
    wrong = wrong_shape(model)
    if wrong is not None:
        raise DamagedWeightsError(f"{source.model}: {wrong}")
    if missing:
        notes.append(
            f"{source.model}: its files hold no weights for {', '.join(missing[:_NAMED_KEYS])}"
            f"{units.and_more(len(missing) - _NAMED_KEYS)}, which are random"
        )


def _is_made_anew(model: Any, name: str) -> bool:
    """Return whether a weight is of a head or a pooler, which many repos leave out."""
    prefix = model.base_model_prefix
    if prefix and hasattr(model, prefix) and not name.startswith(f"{prefix}."):
        return True
    head = model.get_output_embeddings()
    heads = [] if head is None else [id(weight) for weight in head.parameters()]
    return "pooler" in name or id(dict(model.named_parameters()).get(name)) in heads


def refuse_non_finite(source: ModelFiles, model: Any) -> None:
    """Make sure that weights which were stored in another type survived becoming fp16.

    fp16 ends at 65504; a greater weight of bf16 becomes infinite, and what is computed NaN. Only
    the files show the types of their weights: config.json may name fp16 where they are bf16.
    LLM.int8 quantizes what was fp16 before, and its scales (SCB) are infinite then.

    Raises:
        UnsupportedPrecisionError: one did not.
    """
    import torch

    stored = {tensor.dtype for tensor in read_tensors(source).values()}
    if stored == {"F16"} or source.quantized_by is not None:
        return
    wider = next((wide for dtype, wide in _WIDER.items() if dtype in stored), "bf16")
    for name, weight in model.named_parameters():
        scales = getattr(weight, "SCB", None)
        values = weight.detach() if scales is None else scales
        if (scales is None and weight.dtype != torch.float16) or not values.numel():
            continue
        # The least and the greatest value of a tensor are NaN if any is.
        if not torch.isfinite(torch.stack(torch.aminmax(values))).all():
            raise UnsupportedPrecisionError(
                f"{source.model}: {name} holds values that {source.precision} cannot",
                f"--precision {wider}",
            )


def first_token(model: Any) -> Any:
    """Return what a forward pass gives for a few token ids, when the device is done.

    Token ids are enough: neither an image nor an image library is needed.
    """
    import torch

    embedding = model.get_input_embeddings()
    ids = torch.tensor([[1, 2, 3, 4]], device=embedding.weight.device)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        arguments["decoder_input_ids"] = ids[:, :1]
    with torch.inference_mode():
        answer = model(**arguments)
    result = getattr(answer, "logits", None)
    if result is None:
        result = answer[0]
    result[..., -1, :].argmax(-1).tolist()
    return result


def more_tokens(model: Any, count: int) -> None:
    """Generate a number of tokens greedily, after a prompt of a few token ids."""
    import torch

    ids = torch.tensor([[1, 2, 3, 4]], device=model.get_input_embeddings().weight.device)
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )
