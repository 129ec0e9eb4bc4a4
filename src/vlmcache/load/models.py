"""Building models with torch and transformers, which the functions import; nothing else does."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from vlmcache import units
from vlmcache.cache.weights import Precision
from vlmcache.config import CacheLocation
from vlmcache.errors import (
    DamagedWeightsError,
    MissingPackageError,
    NotEnoughMemoryError,
    UnknownArchitectureError,
    UnloadableError,
    UnsupportedPrecisionError,
    UntrustedCodeError,
)
from vlmcache.load import device as devices
from vlmcache.load.conditions import available_memory
from vlmcache.load.reader import PAGE, READERS
from vlmcache.load.report import QUANTIZED, Loader
from vlmcache.load.source import ModelFiles, check_fits, estimate_memory

INSTALL_LOAD = "pip install 'vlmcache[load]'"
INSTALL_VISION = "pip install 'vlmcache[vision]'"
_NAMED_KEYS = 3
_FOR_IMAGES = (
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
_PROCESSORS = (
    *_FOR_IMAGES,
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
)


def remember_use(home: str, location: CacheLocation, source: ModelFiles, what: str) -> None:
    """Note in vlmcache's memory that a model was used."""
    from vlmcache.home.journal import Journal

    if source.repo is not None and source.commit is not None:
        with Journal(home) as memory:
            memory.record_use(location.dir, "model", source.repo, source.commit, what)


def require_packages() -> None:
    """Make sure that torch and transformers are installed, without importing them.

    Raises:
        MissingPackageError: one is not.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"loading models needs {' and '.join(missing)}", INSTALL_LOAD)


_HARMLESS = ("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast")
"""How bitsandbytes' warnings begin that tell nothing: an optional kernel is missing on the CPU, and
LLM.int8 works in float16, as it always does."""


def silence_bitsandbytes() -> None:
    """Keep two warnings of bitsandbytes from the terminal, one of which comes at each matrix."""
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_HARMLESS)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Leave garbage alone for a while: importing makes many objects and hardly any garbage.

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

    It is an auto class where one leads to the class that config.json names, else that class
    itself. Where none is named, image-text-to-text models come first, then language models, then
    whatever has a model at all.

    Raises:
        UnknownArchitectureError: transformers does not know it, and the repo brings no code.
        UntrustedCodeError: the repo brings code, which nobody allowed to run.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = source.model_type
    known = kind in CONFIG_MAPPING_NAMES
    if not known and not source.has_own_code:
        raise UnknownArchitectureError(
            f"{source.model}: transformers {transformers.__version__} knows no architecture"
            f" {kind!r}",
            "pip install --upgrade transformers",
        )
    if not known and not source.trust_remote_code:
        raise UntrustedCodeError(
            f"{source.model} needs Python code of its repo (architecture {kind!r}) to run",
            "read that code, then pass --trust-remote-code, or set trust_remote_code and a full"
            " commit as revision in a config.yaml of your own (for commands, not ./config.yaml)",
        )
    settings = transformers.AutoConfig.from_pretrained(
        source.folder, trust_remote_code=not known, local_files_only=True
    )
    if not known:
        named = getattr(settings, "auto_map", {})
        for name in ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel"):
            if name in named:
                return settings, getattr(transformers, name)
        raise UnknownArchitectureError(f"{source.model}: its code names no model class")
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
                return settings, chosen
        if getattr(getattr(named, "config_class", None), "model_type", None) == kind:
            return settings, named
    return settings, by_task[0][1] if by_task else transformers.AutoModel


def import_for(source: ModelFiles) -> None:
    """Import all that loading a source needs; otherwise that would count as building."""
    settings, _ = choose_class(source)
    silence_bitsandbytes()
    _named_classes(settings)
    if source.precision in QUANTIZED:
        with contextlib.suppress(ImportError):
            importlib.import_module("bitsandbytes")
            importlib.import_module("accelerate")


def _named_classes(settings: Any) -> list[Any]:
    """Return transformers' own class that a configuration names; empty for a class of the repo."""
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
    attention: str | None = None,
    loader: Loader = "plain",
    checked: bool = False,
) -> Any:
    """Return the model built from a source on a device, in evaluation mode.

    On the CPU its weights may still be mapped files that nothing has read: see `touch_all_weights`.
    `checked` says that the device is known to work at the precision: nothing is tried on it.

    Raises:
        UnloadableError: it cannot be; errors of the libraries are left to `explained`.
    """
    where = devices.placement(device, source.device_map)
    chosen = devices.resolve_device(device)
    silence_bitsandbytes()
    if not checked:
        devices.check_precision(chosen, source.precision)
    if where == {"": chosen}:
        free, _ = devices.memory(chosen)
        need = msgspec.structs.replace(estimate_memory(source), overhead=0)
        check_fits(source, need, available_memory() if free is None else free, chosen)
    settings, chosen_class = choose_class(source)
    arguments: dict[str, Any] = {
        "config": settings,
        "local_files_only": True,
        "trust_remote_code": source.trust_remote_code,
        "output_loading_info": True,
    }
    if attention is not None:
        arguments["attn_implementation"] = attention
    if source.precision in QUANTIZED:
        arguments["dtype"] = half_precision(settings)
        arguments["device_map"] = where
        if source.kind != "copy":
            if source.quantized_by is not None:
                raise UnsupportedPrecisionError(
                    f"{source.model} is already quantized ({source.quantized_by})",
                    "--precision fp16 loads it as it is",
                )
            arguments["quantization_config"] = quantization(source.precision, settings)
    else:
        arguments["dtype"] = devices.dtype_of(source.precision)
        if where != {"": devices.CPU}:
            arguments["device_map"] = where
    if loader in ("pinned", "fastsafetensors", "runai"):
        from vlmcache.load import streams

        # transformers takes weights from a folder or from hand, never from both; its auto classes
        # need a folder.
        (known,) = _named_classes(settings) or (None,)
        if known is None:
            raise UnloadableError(
                f"--loader {loader} cannot load {source.model}, whose class is its own",
                "--loader readahead",
            )
        del arguments["trust_remote_code"]
        arguments["state_dict"] = streams.read(loader, source.weights, where)
        with streams.nothing_reserved():
            model, loading = known.from_pretrained(None, **arguments)
    else:
        if not chosen_class.__name__.startswith("Auto"):
            del arguments["trust_remote_code"]
        model, loading = chosen_class.from_pretrained(source.folder, **arguments)
    missing = sorted(loading["missing_keys"])
    if missing:
        named = ", ".join(missing[:_NAMED_KEYS])
        raise DamagedWeightsError(
            f"{source.model}: {len(missing)} weights are not in its files: {named}",
            units.command("verify", source.model, "--repair") if source.repo else None,
        )
    return model.eval()


def model_devices(model: Any) -> list[str]:
    """Return the devices that hold the model's weights."""
    devices_used = {str(tensor.device) for tensor in _tensors(model)}
    return sorted(
        name if ":" in name or name == devices.CPU else f"{name}:0" for name in devices_used
    )


def weights_memory(model: Any) -> int:
    """Return the bytes that the model's weights and buffers take, tied ones counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(model)}.values())


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.parameters()
    yield from model.buffers()


def touch_all_weights(model: Any, threads: int = READERS) -> None:
    """Return when every weight is resident on its device.

    On the CPU each page is touched once; on an accelerator the device is waited for.

    Raises:
        UnloadableError: a weight was never loaded.
    """
    import torch

    resident: dict[int, Any] = {}
    for tensor in _tensors(model):
        if tensor.is_meta:
            raise UnloadableError("a weight was left without content")
        if tensor.device.type == "cpu" and tensor.numel():
            # Tied weights are one piece of memory under two names.
            resident[tensor.data_ptr()] = tensor

    def touch(tensor: Any) -> None:
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        content[::PAGE].sum().item()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(touch, resident.values()))
    devices.synchronize(model_devices(model))


def first_token(model: Any) -> Any:
    """Return what a forward pass gives for a few token ids, with the device done.

    Token ids alone are enough: no image, and so no image library, is needed.
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
    """Generate so many tokens after a prompt of a few token ids, greedily."""
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


def load_processor(source: ModelFiles) -> Any:
    """Return the repo's processor or tokenizer; `None` for a repo without any.

    Raises:
        MissingPackageError: it needs torchvision, which is not installed.
        UnloadableError: it cannot be made.
    """
    if not any(os.path.isfile(os.path.join(source.folder, name)) for name in _PROCESSORS):
        return None
    from transformers import AutoProcessor, AutoTokenizer

    def read(auto_class: Any) -> Any:
        return auto_class.from_pretrained(
            source.folder, trust_remote_code=source.trust_remote_code, local_files_only=True
        )

    try:
        return read(AutoProcessor)
    except (ImportError, OSError, ValueError) as error:
        if not any(os.path.isfile(os.path.join(source.folder, name)) for name in _FOR_IMAGES):
            # A vision model's repo that has but a tokenizer: there can be no processor.
            return read(AutoTokenizer)
        if isinstance(error, ImportError) and "torchvision" in str(error).lower():
            raise MissingPackageError(
                f"the processor of {source.model} needs torchvision", INSTALL_VISION
            ) from None
        raise


@contextlib.contextmanager
def explained(source: ModelFiles) -> Iterator[None]:
    """Turn what torch and transformers raise into errors that say what to do.

    Raises:
        UnloadableError: whatever went wrong inside.
    """
    try:
        yield
    except UnloadableError:
        raise
    except ImportError as error:
        name = error.name or (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingPackageError(
            f"{source.model}: a package is missing: {name}", _install_hint(name)
        ) from error
    except Exception as error:
        raise _explain(source, error) from error


def _install_hint(name: str) -> str:
    if "torchvision" in name:
        return INSTALL_VISION
    root = name.partition(".")[0]
    if root in ("torch", "transformers", "accelerate", "PIL"):
        return INSTALL_LOAD
    return f"pip install {root}" if root.isidentifier() else "install what it names"


def _explain(source: ModelFiles, error: Exception) -> UnloadableError:
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or any(
        sign in words.lower()
        for sign in (
            "out of memory",
            "can't allocate memory",
            "cannot allocate memory",
            "not enough memory",
        )
    ):
        return NotEnoughMemoryError(
            f"{source.model} at {source.precision} does not fit into memory: {words[:200]}",
            "--precision int8 or int4 takes less",
        )
    if type(error).__module__.startswith("safetensors") or type(error).__name__ in (
        "SafetensorError",
        "UnpicklingError",
    ):
        return DamagedWeightsError(
            f"{source.model}: the weights cannot be read: {words[:200]}",
            units.command("verify", source.model, "--repair") if source.repo else None,
        )
    return UnloadableError(
        f"{source.model} cannot be loaded: {type(error).__name__}: {words[:300]}"
    )
