"""The memory that models take, estimated and measured.

    python -m benchmarks.memory [CASE …] [--folder FOLDER] [--device DEVICE] [--write]

Makes a synthetic model of at least 1 GB of weights for each case, one at a time, estimates its
memory, loads it in a fresh process, and prints the table of both; `--write` puts it into
docs/memory.md. The measured memory is what the process takes in addition to what it took just
before the model was built: anonymous memory, the resident pages of mapped files with its weights,
and the device's memory. Memory that was freed and that the C library keeps is given back first.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.pages import measured_part, written

PAGE = Path("docs/memory.md")

_QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
_QWEN_OF_4: dict[str, Any] = _QWEN | {"num_hidden_layers": 4}
_QWEN_OF_6: dict[str, Any] = _QWEN | {"num_hidden_layers": 6}
"""More layers, so that the weights are 1 GB with fewer bytes per number too."""
_MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
}
_T5: dict[str, Any] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 32128,
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 6,
    "num_decoder_layers": 6,
    "num_heads": 32,
    "decoder_start_token_id": 0,
}
_BLIP: dict[str, Any] = {
    "model_type": "blip-2",
    "architectures": ["Blip2ForConditionalGeneration"],
    "vision_config": {"num_hidden_layers": 8},
    "qformer_config": {},
    "text_config": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "word_embed_proj_dim": 2048,
    },
}
_GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 20,
    "layer_types": ["sliding_attention", "full_attention"],
}


class Case(NamedTuple):
    """One model, how its weights are stored, and at which precision it is loaded."""

    config: dict[str, Any]
    stored: str
    precision: str

    @property
    def architecture(self) -> str:
        """The name of the architecture."""
        return str(self.config["model_type"])


CASES = {
    "fp32": Case(_QWEN, "fp32", "fp32"),
    "bf16": Case(_QWEN, "bf16", "bf16"),
    "fp16": Case(_QWEN, "fp16", "fp16"),
    "bf16-fp16": Case(_QWEN, "bf16", "fp16"),
    "bf16-fp32": Case(_QWEN, "bf16", "fp32"),
    "fp32-bf16": Case(_QWEN, "fp32", "bf16"),
    "int8": Case(_QWEN, "bf16", "int8"),
    "int4": Case(_QWEN, "bf16", "int4"),
    "fp32-int8": Case(_QWEN, "fp32", "int8"),
    "bin-bf16": Case(_QWEN, "bf16 .bin", "bf16"),
    "bin-fp32": Case(_QWEN, "bf16 .bin", "fp32"),
    "bin-int8": Case(_QWEN, "bf16 .bin", "int8"),
    "bnb-int8": Case(_QWEN_OF_4, "bnb int8", "bf16"),
    "bnb-int4": Case(_QWEN_OF_6, "bnb int4", "bf16"),
    "fp8": Case(_QWEN_OF_4, "fp8", "bf16"),
    "mxfp4": Case(_GPT_OSS, "mxfp4", "bf16"),
    "moe-bf16": Case(_MIXTRAL, "bf16", "bf16"),
    "moe-int8": Case(_MIXTRAL, "bf16", "int8"),
    "t5-bf16": Case(_T5, "bf16", "bf16"),
    "t5-fp16": Case(_T5, "fp16", "fp16"),
    "t5-int8": Case(_T5, "bf16", "int8"),
    "blip-bf16": Case(_BLIP, "bf16", "bf16"),
    "blip-fp16": Case(_BLIP, "fp16", "fp16"),
    "blip-int4": Case(_BLIP, "bf16", "int4"),
}
"""Name -> case."""

NOT_MEASURED = {
    "AWQ": "its kernels (autoawq, gptqmodel) are not installed and need a GPU",
    "GPTQ": "its kernels (gptqmodel) are not installed and need a GPU",
    "fp8 as it is": "it needs a GPU; on the CPU transformers loads it as bf16, which is measured",
    "mxfp4 as it is": "it needs the kernels package and triton; without them transformers loads it"
    " as bf16, which is measured",
}


def make(case: Case, folder: str) -> None:
    """Write a model of a case. Runs in a process of its own: it imports torch."""
    import torch
    import transformers

    writers: dict[str, Callable[[Any], None]] = {
        "fp8": lambda model: _write_fp8(model, folder),
        "mxfp4": lambda model: _write_mxfp4(model, folder),
    }
    kind, _, ending = case.stored.partition(" ")
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(kind, torch.bfloat16)
    settings = transformers.AutoConfig.for_model(**case.config)
    torch.set_default_dtype(dtype)
    with torch.device("meta"):
        model = getattr(transformers, case.config["architectures"][0])(settings)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    for tensor in model.state_dict().values():
        tensor.fill_(0.01)
    model.config.dtype = dtype
    if kind == "bnb":
        plain = f"{folder}/plain"
        model.save_pretrained(plain)
        del model
        bits = transformers.BitsAndBytesConfig(
            load_in_8bit=ending == "int8", load_in_4bit=ending == "int4"
        )
        quantized = getattr(transformers, case.config["architectures"][0]).from_pretrained(
            plain, dtype=dtype, device_map="cpu", quantization_config=bits
        )
        quantized.save_pretrained(folder)
    elif kind in writers:
        writers[kind](model)
    elif ending == ".bin":
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), f"{folder}/pytorch_model.bin")
    else:
        model.save_pretrained(folder, save_original_format=True)


def _write(folder: str, tensors: dict[str, Any], model: Any, quantization: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    content = json.loads(model.config.to_json_string(use_diff=False))
    content["quantization_config"] = quantization
    Path(folder, "config.json").write_text(json.dumps(content))


def _write_fp8(model: Any, folder: str) -> None:
    import torch

    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("proj.weight"):
            rows, columns = tensor.shape
            tensors[name] = tensor.to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.ones(-(-rows // 128), -(-columns // 128))
        else:
            tensors[name] = tensor
    quantization = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    _write(folder, tensors, model, quantization)


def _write_mxfp4(model: Any, folder: str) -> None:
    import torch

    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inner, outer = tensor.shape
            tensors[f"{name}_blocks"] = torch.full(
                (experts, outer, inner // 32, 16), 34, dtype=torch.uint8
            )
            tensors[f"{name}_scales"] = torch.full(
                (experts, outer, inner // 32), 127, dtype=torch.uint8
            )
        else:
            tensors[name] = tensor
    _write(folder, tensors, model, {"quant_method": "mxfp4"})


def measure(folder: str, precision: Any, device: str) -> dict[str, dict[str, int]]:
    """Return the bytes that a model is estimated to take, and takes. Runs in a fresh process."""
    from vlmcache.load import models, residency
    from vlmcache.load.source import estimate_memory, read_source

    source = read_source(folder, model="m", precision=precision)
    need = estimate_memory(source, accelerator=device != "cpu")
    models.import_for(source)
    before = _taken(None, device)
    model = models.build_model(source, device)
    residency.touch_all_weights(model)
    after = _taken(model, device)
    return {
        "estimated": {
            "anonymous": need.anonymous,
            "mapped": need.mapped,
            "device": need.device,
        },
        "measured": {name: after[name] - before[name] for name in after},
    }


def _taken(model: Any, device: str) -> dict[str, int]:
    """Return the bytes of this process: anonymous, mapped ones of weights, and the device's."""
    import ctypes
    import gc

    import torch

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    ranges = [] if model is None else list(_ranges(model))
    taken = {"anonymous": 0, "mapped": 0, "device": 0}
    page = os.sysconf("SC_PAGESIZE")
    with open("/proc/self/pagemap", "rb") as pagemap:
        for line in Path("/proc/self/smaps").read_text().splitlines():
            name, *fields = line.split(maxsplit=5)
            if name == "Anonymous:":
                taken["anonymous"] += int(fields[0]) * 1024
            elif "-" in name and not name.endswith(":") and len(fields) == 5:
                first, last = (int(end, 16) for end in name.split("-"))
                for begin, end in ranges:
                    if first <= begin < last:
                        pagemap.seek(begin // page * 8)
                        entries = array.array(
                            "Q", pagemap.read((-(-end // page) - begin // page) * 8)
                        )
                        # Bit 63: present. Bit 61: of a file.
                        present = sum(entry >> 61 & 5 == 5 for entry in entries)
                        taken["mapped"] += present * page
    if device != "cpu":
        taken["device"] = torch.cuda.memory_allocated(device)
    return taken


def _ranges(model: Any) -> Iterator[tuple[int, int]]:
    """Yield the ranges of this process's memory with the weights, tied ones once."""
    seen = set()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes


def _child(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.stderr.write(done.stderr[-3000:])
        done.check_returncode()
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None


def row(name: str, sizes: dict[str, dict[str, int]]) -> str:
    """Return a row of the table."""
    case = CASES[name]
    estimated, measured = sizes["estimated"], sizes["measured"]
    expected, actual = sum(estimated.values()), sum(measured.values())
    cells = [case.architecture, case.stored, case.precision]
    for part in ("anonymous", "mapped", "device"):
        cells += [_size(estimated[part]), _size(measured[part])]
    return "| " + " | ".join([*cells, f"{expected / actual - 1:+.1%}"]) + " |"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f}" if abs(count) >= 5_000_000 else "0"


def write(rows: list[str]) -> None:
    """Put rows of the table into the page, in place of those of the same cases."""
    page = PAGE.read_text(encoding="utf-8")
    _, earlier, _ = measured_part(page)
    by_case = {_case_of(line): line for line in [*earlier.splitlines(), *rows]}
    cases = [(case.architecture, case.stored, case.precision) for case in CASES.values()]
    table = [by_case[case] for case in cases if case in by_case]
    missing = [f"| {name} | {why} |" for name, why in NOT_MEASURED.items()]
    lines = [*HEAD, *table, "", "Not measured:", "", "| format | why |", "|---|---|", *missing]
    PAGE.write_text(written(page, "\n".join(lines)), encoding="utf-8")


def _case_of(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.split("|")[1:4])


_COLUMNS = "model, stored, loaded as, anonymous: estimate, measured, mapped: estimate, measured"
HEAD = (
    "| " + _COLUMNS.replace(", ", " | ") + " | device: estimate | measured | sum |",
    "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
)


def main() -> None:
    """Measure the cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--folder", help="folder to make the models in")
    parser.add_argument("--device", default="cpu", help="device to load them on: cpu or cuda:0")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    case = CASES[given.cases[0]]
    if given.make:
        make(case, given.make)
        return
    if given.measure:
        print(json.dumps(measure(given.measure, case.precision, given.device)))
        return
    rows = []
    for name in given.cases:
        with tempfile.TemporaryDirectory(prefix="memory-", dir=given.folder) as folder:
            _child(name, "--make", folder)
            rows.append(row(name, _child(name, "--measure", folder, "--device", given.device)))
        print(rows[-1], flush=True)
    if given.write:
        write(rows)


if __name__ == "__main__":
    main()
