"""Tiny repositories of each library, made by the library itself when the tests run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Files = dict[str, bytes]
Maker = Callable[[Path], Mapping[str, Files]]

_WORDS = ["a", "b", "c", "d", "hello", "world"]


@dataclass(frozen=True)
class Case:
    """Repositories, and what a program does with the first of them."""

    make: Maker
    """Makes repo id -> file name -> content, in a scratch folder."""
    load: str
    """Python that loads offline and sets `answer`, equal for equal models."""
    needs: tuple[str, ...]
    """The libraries that it takes."""


def files_of(folder: Path) -> Files:
    """Return the files below a folder, named as in a repo."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", *_WORDS]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template="{{ messages[0].content }}",
    ).save_pretrained(folder)


def _text_model(folder: Path, *, seed: int = 0, shard: str = "5GB", tokenizer: bool = True) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    if tokenizer:
        _tokenizer(folder)


def _as_torch_files(folder: Path, *, shards: int) -> None:
    """Turn model.safetensors into what older versions of transformers saved."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(weights, folder / "pytorch_model.bin")
        return
    names = sorted(weights)
    where: dict[str, str] = {}
    for number in range(shards):
        shard = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = {name: weights[name] for name in names[number::shards]}
        torch.save(part, folder / shard)
        where |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def single_text(scratch: Path) -> Mapping[str, Files]:
    """Make one model of one file."""
    _text_model(scratch)
    return {"org/model": files_of(scratch)}


def sharded_text(scratch: Path) -> Mapping[str, Files]:
    """Make one model in several safetensors files."""
    _text_model(scratch, shard="20KB")
    return {"org/model": files_of(scratch)}


def torch_single(scratch: Path) -> Mapping[str, Files]:
    """Make one model as pytorch_model.bin, next to a LoRA in a folder."""
    _text_model(scratch)
    _as_torch_files(scratch, shards=1)
    lora = _lora(scratch.parent / "lora", "org/model")
    return {"org/model": files_of(scratch) | {f"lora/{name}": lora[name] for name in lora}}


def torch_sharded(scratch: Path) -> Mapping[str, Files]:
    """Make one model as several .bin files and their index."""
    _text_model(scratch)
    _as_torch_files(scratch, shards=3)
    return {"org/model": files_of(scratch)}


def two_formats(scratch: Path) -> Mapping[str, Files]:
    """Make a model with safetensors, the same as .bin files, and shards without an index."""
    _text_model(scratch)
    single = (scratch / "model.safetensors").read_bytes()
    _as_torch_files(scratch, shards=2)
    files = files_of(scratch)
    return {"org/model": files | {"model.safetensors": single}}


def variant_only(scratch: Path) -> Mapping[str, Files]:
    """Make a model whose only weights are a variant."""
    _text_model(scratch)
    (scratch / "model.safetensors").rename(scratch / "model.fp16.safetensors")
    return {"org/model": files_of(scratch)}


def chat_templates(scratch: Path) -> Mapping[str, Files]:
    """Make a model with further chat templates."""
    _text_model(scratch)
    folder = scratch / "additional_chat_templates"
    folder.mkdir()
    (folder / "tools.jinja").write_text("{{ tools }}")
    return {"org/model": files_of(scratch)}


def _lora(folder: Path, base: str) -> Files:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2ForCausalLM

    plain = folder.parent / "plain"
    _text_model(plain)
    torch.manual_seed(3)
    model = Qwen2ForCausalLM.from_pretrained(plain)
    model.name_or_path = base
    config = LoraConfig(
        r=2, target_modules=["q_proj"], base_model_name_or_path=base, init_lora_weights=False
    )
    get_peft_model(model, config).save_pretrained(folder)
    files = files_of(folder)
    settings = json.loads(files["adapter_config.json"])
    settings["base_model_name_or_path"] = base
    files["adapter_config.json"] = json.dumps(settings).encode()
    return files


def adapter(scratch: Path) -> Mapping[str, Files]:
    """Make a PEFT adapter and the base model that it names."""
    base = scratch / "base"
    _text_model(base)
    return {"org/model": _lora(scratch / "lora", "org/base"), "org/base": files_of(base)}


def adapter_with_tokenizer(scratch: Path) -> Mapping[str, Files]:
    """Make an adapter with a tokenizer of its own, for which transformers asks for config.json."""
    repos = adapter(scratch)
    words = {name: repos["org/base"][name] for name in ("tokenizer.json", "tokenizer_config.json")}
    return {**repos, "org/model": {**repos["org/model"], **words}}


_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from .helpers import SIZE

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(SIZE, SIZE)
        self.post_init()
    def _init_weights(self, module):
        pass
"""


def _own_code(scratch: Path, *, prefix: str) -> Files:
    import torch
    from safetensors.torch import save

    torch.manual_seed(5)
    config = {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {
            "AutoConfig": f"{prefix}modeling_own.OwnConfig",
            "AutoModel": f"{prefix}modeling_own.OwnModel",
        },
    }
    weights = {"layer.weight": torch.randn(8, 8), "layer.bias": torch.randn(8)}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(weights, {"format": "pt"}),
    }


_OWN_FILES = {"modeling_own.py": _CODE.encode(), "helpers.py": b"SIZE = 8\n"}


def own_code(scratch: Path) -> Mapping[str, Files]:
    """Make a model with its own code, and a script that nothing imports."""
    script = {"train_own.py": b"print(1)\n"}
    return {"org/model": _own_code(scratch, prefix="") | _OWN_FILES | script}


def code_elsewhere(scratch: Path) -> Mapping[str, Files]:
    """Make a model whose code is in another repo."""
    return {"org/model": _own_code(scratch, prefix="org/code--"), "org/code": dict(_OWN_FILES)}


def sentence_transformer(scratch: Path) -> Mapping[str, Files]:
    """Make a sentence-transformers model with pooling and a dense layer of its own weights."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    _text_model(scratch / "words")
    torch.manual_seed(7)
    words = Transformer(str(scratch / "words"))
    pooling = Pooling(words.get_word_embedding_dimension(), "mean")
    dense = Dense(words.get_word_embedding_dimension(), 16)
    SentenceTransformer(modules=[words, pooling, dense], device="cpu").save(str(scratch / "made"))
    return {"org/model": files_of(scratch / "made")}


def pipeline(scratch: Path) -> Mapping[str, Files]:
    """Make a pipeline of diffusers."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(9)
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=32,
            max_position_embeddings=16,
            projection_dim=8,
        )
    )
    words = scratch / "words"
    words.mkdir(parents=True)
    names = ["<|startoftext|>", "<|endoftext|>", *"abcd", *(f"{x}</w>" for x in "abcd"), "ab</w>"]
    (words / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}))
    (words / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=CLIPTokenizer.from_pretrained(str(words)),
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(scratch / "made")
    return {"org/model": files_of(scratch / "made")}


def pipeline_with_twins(scratch: Path) -> Mapping[str, Files]:
    """Make a pipeline with what real ones carry in addition: fp16 twins, .bin, single files."""
    (files,) = pipeline(scratch).values()
    for name, content in list(files.items()):
        stem, _, ending = name.rpartition(".")
        if ending == "safetensors":
            files[f"{stem}.fp16.{ending}"] = content[:-1] + b"1"
            torch_stem = stem.replace("/model", "/pytorch_model")
            files[f"{torch_stem}.bin"] = content[::-1]
    return {"org/model": files | {"v1-5-pruned.safetensors": b"x" * 5000}}


def vae_only(scratch: Path) -> Mapping[str, Files]:
    """Make one part of a pipeline as a repo of its own."""
    (files,) = pipeline(scratch).values()
    return {
        "org/model": {
            name.removeprefix("vae/"): content
            for name, content in files.items()
            if name.startswith("vae/")
        }
    }


def whisper(scratch: Path) -> Mapping[str, Files]:
    """Make a model that CTranslate2 runs (faster-whisper)."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, models
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperForConditionalGeneration,
    )

    torch.manual_seed(11)
    config = WhisperConfig(
        vocab_size=64,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.alignment_heads = [[0, 0]]
    model.generation_config.lang_to_id = {"<|en|>": 5}
    model.generation_config.no_timestamps_token_id = 6
    model.save_pretrained(scratch / "plain")
    names = ["<unk>", "<s>", "</s>", "<|startoftranscript|>", "a", "<|en|>", "<|notimestamps|>"]
    names += ["<|transcribe|>", "<|translate|>", "<|nospeech|>", "<|startofprev|>"]
    tokenizer = Tokenizer(
        models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>")
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(
        scratch / "plain"
    )
    (scratch / "plain" / "preprocessor_config.json").write_text("{}")
    copied = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(scratch / "plain"), copy_files=copied).convert(str(scratch / "made"))
    return {"org/model": files_of(scratch / "made")}


_TEXT_MODEL = """
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("org/model"{more})
tokenizer = AutoTokenizer.from_pretrained("org/model")
answer = [summed(model), tokenizer("hello world a")["input_ids"], bool(tokenizer.chat_template)]
"""
_TEXT = _TEXT_MODEL.format(more="")

_PIPELINE = """
from diffusers import DiffusionPipeline
made = DiffusionPipeline.from_pretrained("org/model")
answer = [
    {name: summed(part) for name, part in made.components.items() if hasattr(part, "parameters")},
    type(made.scheduler).__name__,
    made.tokenizer("ab c")["input_ids"],
]
"""

_PLAIN = ("torch", "transformers")
CASES: dict[str, Case] = {
    "one file": Case(single_text, _TEXT, _PLAIN),
    "sharded": Case(sharded_text, _TEXT, _PLAIN),
    "bin next to a LoRA": Case(torch_single, _TEXT, (*_PLAIN, "peft")),
    "sharded bin": Case(torch_sharded, _TEXT, _PLAIN),
    "two formats": Case(two_formats, _TEXT, _PLAIN),
    "variant only": Case(variant_only, _TEXT_MODEL.format(more=", variant='fp16'"), _PLAIN),
    "chat templates": Case(
        chat_templates, _TEXT + "answer.append(sorted(tokenizer.chat_template or ()))", _PLAIN
    ),
    "adapter": Case(
        adapter,
        """
from peft import AutoPeftModelForCausalLM
answer = summed(AutoPeftModelForCausalLM.from_pretrained("org/model"))
""",
        (*_PLAIN, "peft"),
    ),
    "adapter with a tokenizer": Case(adapter_with_tokenizer, _TEXT, (*_PLAIN, "peft")),
    "own code": Case(
        own_code,
        """
from transformers import AutoModel
answer = summed(AutoModel.from_pretrained("org/model", trust_remote_code=True))
""",
        _PLAIN,
    ),
    "code of another repo": Case(
        code_elsewhere,
        """
from transformers import AutoModel
answer = summed(AutoModel.from_pretrained("org/model", trust_remote_code=True))
""",
        _PLAIN,
    ),
    "sentence-transformers": Case(
        sentence_transformer,
        """
from sentence_transformers import SentenceTransformer
answer = SentenceTransformer("org/model", device="cpu").encode(["hello world"]).tolist()
""",
        (*_PLAIN, "sentence_transformers"),
    ),
    "pipeline": Case(pipeline, _PIPELINE, (*_PLAIN, "diffusers")),
    "pipeline with twins": Case(pipeline_with_twins, _PIPELINE, (*_PLAIN, "diffusers")),
    "one part of a pipeline": Case(
        vae_only,
        """
from diffusers import AutoencoderKL
answer = summed(AutoencoderKL.from_pretrained("org/model"))
""",
        (*_PLAIN, "diffusers"),
    ),
    "faster-whisper": Case(
        whisper,
        """
from faster_whisper import WhisperModel
made = WhisperModel("org/model", device="cpu", compute_type="float32")
answer = [made.model.is_multilingual, made.hf_tokenizer.get_vocab_size()]
""",
        (*_PLAIN, "faster_whisper", "ctranslate2"),
    ),
}
"""What is tried, by a name for people."""


def main(name: str, destination: Path) -> None:
    """Write the repositories of a case into folders: `<destination>/<org>/<name>/…`."""
    scratch = destination / "scratch" / "model"
    scratch.mkdir(parents=True)
    for repo, files in CASES[name].make(scratch).items():
        for file, content in files.items():
            path = destination / repo / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
