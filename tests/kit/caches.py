"""Hub caches on disk, complete and damaged, as the real client would have left them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import stat
import struct
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from tests.kit.contents import Content, StoredFile, commit_id, store_all

Kind = Literal["model", "dataset", "space"]
Link = Literal["symlink", "copy", "move", "hardlink"]
Entry = tuple[str, int, int, str]

CACHEDIR_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by huggingface_hub.\n"
    "# For information about cache directory tags, see:\n"
    "#\thttps://bford.info/cachedir/\n"
)
SHARED_MARKER = ".huggingface-shared-blobs"
NOWHERE = "0" * 40


class CacheBuilder:
    """A hub cache under `root`, made as needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        (root / "CACHEDIR.TAG").write_text(CACHEDIR_TAG)

    def repo(self, repo_id: str, kind: Kind = "model") -> CachedRepo:
        """Return a repo of the cache; nothing is written before its first revision."""
        return CachedRepo(self, repo_id, kind)

    @property
    def shared_store(self) -> Path:
        """The folder of blobs that several repos share."""
        return self.root / "blobs"

    def shared_blob(self, xet_hash: str) -> Path:
        """Return where the store keeps a blob."""
        return self.shared_store / xet_hash[:2] / xet_hash

    def stray_file(self, name: str = "notes.txt", data: bytes = b"not of the hub\n") -> Path:
        """Put a file into the cache root that is not the hub's."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def unmarked_shared_store(self, data: bytes = b"whose?") -> Path:
        """Make a folder like the shared store but without its marker; return the blob in it."""
        path = self.shared_blob(hashlib.sha256(data).hexdigest())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        (self.shared_store / SHARED_MARKER).unlink(missing_ok=True)
        return path

    def _share(self, blob: Path, xet_hash: str) -> None:
        """Move a blob to the shared store and leave a link, as a download through Xet does."""
        self.shared_store.mkdir(exist_ok=True)
        marker = self.shared_store / SHARED_MARKER
        if not marker.exists():
            marker.write_text("1\n")
            marker.chmod(0o444)
        target = self.shared_blob(xet_hash)
        target.parent.mkdir(exist_ok=True)
        lock = target.with_name(f"{xet_hash}.lock")
        lock.touch()
        lock.chmod(0o666)
        manifest = target.with_name(f"{xet_hash}.refs")
        with manifest.open("a") as file:
            file.write(f"{blob.relative_to(self.root).as_posix()}\n")
        manifest.chmod(0o666)
        if target.exists():
            blob.unlink()
        else:
            blob.chmod(0o444)
            blob.rename(target)
        blob.symlink_to(os.path.relpath(target, blob.parent))


class CachedRepo:
    """One repo of a cache; damage falls on the latest revision unless a commit is given."""

    def __init__(self, cache: CacheBuilder, repo_id: str, kind: Kind) -> None:
        self.cache = cache
        self.id = repo_id
        self.kind = kind
        name = "--".join([f"{kind}s", *repo_id.split("/")])
        self.folder = cache.root / name
        self.blobs = self.folder / "blobs"
        self.snapshots = self.folder / "snapshots"
        self.refs = self.folder / "refs"
        self.trees = self.folder / "trees"
        self.locks = cache.root / ".locks" / name
        self.revisions: dict[str, dict[str, StoredFile]] = {}

    def revision(
        self,
        files: Mapping[str, Content],
        refs: Iterable[str] = ("main",),
        *,
        tree: bool = True,
        link: Link = "symlink",
        shared: Collection[str] = (),
        lfs: Collection[str] | None = None,
        xet: Mapping[str, str] | None = None,
        downloaded: Collection[str] | None = None,
        commit: str | None = None,
    ) -> str:
        """Write a revision as `snapshot_download` leaves it and return its commit.

        `link` says how a snapshot holds its files: as links to blobs, as copies next to blobs,
        moved there with no blob left (the client without symlinks), or as hard links. Files named
        in `shared` live in the shared store. With `downloaded` only those files are there, as after
        a download with a pattern or an interrupted one. Without `tree` it is an older client's.
        """
        hashes = dict(xet or {})
        for name in shared:
            hashes.setdefault(name, hashlib.sha256(f"xet {name} of {self.id}".encode()).hexdigest())
        with tempfile.TemporaryDirectory() as scratch:
            stored = store_all(files, Path(scratch), lfs=lfs, xet=hashes)
            commit = commit or commit_id(stored)
            self.revisions[commit] = stored
            for name in stored if downloaded is None else downloaded:
                self._place(stored[name], commit, link, name in shared)
        (self.snapshots / commit).mkdir(parents=True, exist_ok=True)
        for ref in refs:
            self.ref(ref, commit)
        if tree:
            self.write_tree(commit)
        return commit

    def _place(self, file: StoredFile, commit: str, link: Link, shared: bool) -> None:
        blob = self.blobs / file.etag
        pointer = self.snapshots / commit / file.name
        for folder in (self.blobs, pointer.parent, self.locks):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock_file(file.etag)
        if not os.path.lexists(blob):
            if isinstance(file.data, bytes):
                blob.write_bytes(file.data)
            else:
                shutil.copyfile(file.data, blob)
            if shared and file.xet_hash is not None:
                self.cache._share(blob, file.xet_hash)
        if link == "symlink":
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        elif link == "copy":
            shutil.copyfile(blob, pointer)
        elif link == "move":
            shutil.move(blob, pointer)
        else:
            os.link(blob, pointer)

    def _lock_file(self, etag: str) -> Path:
        self.locks.mkdir(parents=True, exist_ok=True)
        path = self.locks / f"{etag}.lock"
        path.touch()
        path.chmod(0o664)
        return path

    def ref(self, name: str, commit: str) -> Path:
        """Let a ref name a commit, even if there is no snapshot of it."""
        path = self.refs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
        return path

    def write_tree(self, commit: str) -> Path:
        """Write the listing of a revision with the sizes and hashes of its files."""
        entries: dict[str, dict[str, Any]] = {}
        for name, file in self.revisions[commit].items():
            entry: dict[str, Any] = {"size": file.size, "blob_id": file.git_oid}
            if file.lfs_sha256 is not None:
                entry |= {"lfs_sha256": file.lfs_sha256, "lfs_size": file.size}
            if file.xet_hash is not None:
                entry["xet_hash"] = file.xet_hash
            entries[name] = entry
        self.trees.mkdir(parents=True, exist_ok=True)
        path = self.trees / f"{commit}.json"
        path.write_text(json.dumps({"format_version": 1, "files": entries}, indent=1))
        # The client writes it through a temporary file that only its owner may read.
        path.chmod(0o600)
        return path

    def no_exist(self, name: str, commit: str | None = None) -> Path:
        """Note that the hub has no such file in a revision."""
        path = self.folder / ".no_exist" / (commit or self.latest) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    @property
    def latest(self) -> str:
        """The commit of the revision written last."""
        return list(self.revisions)[-1]

    def file(self, name: str, commit: str | None = None) -> StoredFile:
        """Return what the hub knows of a file."""
        return self.revisions[commit or self.latest][name]

    def blob(self, name: str, commit: str | None = None) -> Path:
        """Return the blob of a file, as the repo holds it."""
        return self.blobs / self.file(name, commit).etag

    def pointer(self, name: str, commit: str | None = None) -> Path:
        """Return the path of a file in a snapshot."""
        return self.snapshots / (commit or self.latest) / name

    # Damage to single files.

    def dangling_link(self, name: str, commit: str | None = None) -> Path:
        """Let a snapshot's link lead to a blob that never existed; the right blob stays."""
        path = self.pointer(name, commit)
        path.unlink()
        path.symlink_to(os.path.relpath(self.blobs / NOWHERE, path.parent))
        return path

    def missing_blob(self, name: str, commit: str | None = None) -> Path:
        """Remove a blob that a snapshot links to."""
        path = self.blob(name, commit)
        path.unlink()
        return path

    def truncated_blob(self, name: str, keep: int | None = None, commit: str | None = None) -> Path:
        """Cut a blob to half its size, or to `keep` bytes."""
        path = self.blob(name, commit)
        with _writable(path.resolve()) as file:
            file.truncate(self.file(name, commit).size // 2 if keep is None else keep)
        return path

    def empty_blob(self, name: str, commit: str | None = None) -> Path:
        """Cut a blob to nothing."""
        return self.truncated_blob(name, 0, commit)

    def flipped_bit(self, name: str, at: int = 0, commit: str | None = None) -> Path:
        """Change one bit of a blob and nothing else: size and modification time stay."""
        path = self.blob(name, commit).resolve()
        before = path.stat()
        with _writable(path) as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return path

    # Damage to refs.

    def ref_to_missing_commit(self, ref: str = "main") -> Path:
        """Let a ref name a commit of which there is no snapshot."""
        return self.ref(ref, "d" * 40)

    def ref_with_newline(self, ref: str = "main") -> Path:
        """End a ref with a newline, as an editor or `echo` would."""
        return self.ref(ref, f"{self.latest}\n")

    def ref_folder(self, ref: str = "main") -> Path:
        """Put a folder where the file of a ref should be."""
        path = self.refs / ref
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)
        return path

    def unreadable_ref(self, ref: str = "main") -> Path:
        """Take all permissions from a ref; root reads it nevertheless."""
        path = self.refs / ref
        path.chmod(0)
        return path

    # Damage to snapshots.

    def missing_snapshots(self) -> Path:
        """Remove the folder of snapshots with all that is in it."""
        shutil.rmtree(self.snapshots)
        return self.snapshots

    def empty_snapshot(self, commit: str = "e" * 40) -> Path:
        """Make a snapshot without files, or empty an existing one."""
        path = self.snapshots / commit
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        return path

    def link_loop(self, name: str = "loop.json", commit: str | None = None) -> Path:
        """Add two links to a snapshot that lead to each other."""
        first = self.pointer(name, commit)
        second = first.with_name(f"{first.name}.back")
        first.symlink_to(second.name)
        second.symlink_to(first.name)
        return first

    def non_utf8_name(self, commit: str | None = None) -> Path:
        """Add a link to a snapshot whose name is not valid UTF-8."""
        path = self.pointer(os.fsdecode(b"caf\xe9.json"), commit)
        blob = self.orphan_blob(b"coffee")
        path.symlink_to(os.path.relpath(blob, path.parent))
        return path

    def leaving_link(self, target: Path, name: str = "outside", commit: str | None = None) -> Path:
        """Add a link to a snapshot that leads out of the cache, to a file or a folder."""
        path = self.pointer(name, commit)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return path

    def snapshot_link(self, target: Path | None = None, commit: str = "f" * 40) -> Path:
        """Add a snapshot that is itself a link, to the latest one by default."""
        path = self.snapshots / commit
        path.symlink_to(self.latest if target is None else target)
        return path

    # Waste and strangers.

    def orphan_blob(self, data: bytes = b"nobody links here", age: float = 7200) -> Path:
        """Add a blob that no snapshot links to, written `age` seconds ago."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        path = self.blobs / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        when = time.time() - age
        os.utime(path, (when, when))
        return path

    def partial(
        self,
        etag: str | None = None,
        *,
        size: int = 1000,
        age: float = 0,
        old_style: bool = False,
        sparse: bool = False,
        number: int = 0,
        data: bytes | None = None,
        suffix: str | None = None,
    ) -> Path:
        """Leave an unfinished download of `size` bytes, last written `age` seconds ago.

        The old style has no random part in its name; with a suffix it is another program's. A
        sparse one has the size but no bytes on disk. With `data` it holds exactly those bytes.
        """
        self.blobs.mkdir(parents=True, exist_ok=True)
        etag = etag or hashlib.sha256(b"unfinished").hexdigest()
        unique = "" if old_style else f".{number:08x}"
        path = self.blobs / f"{etag}{suffix or f'{unique}.incomplete'}"
        with path.open("wb") as file:
            if sparse:
                file.truncate(size)
            else:
                file.write(b"\x5a" * size if data is None else data)
        when = time.time() - age
        os.utime(path, (when, when))
        return path

    def stray_file(
        self, where: Literal["repo", "snapshots", "blobs", "refs"] = "repo", name: str = "notes.txt"
    ) -> Path:
        """Put a file that is not the hub's into a folder of the repo."""
        folder = self.folder if where == "repo" else self.folder / where
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(b"not of the hub\n")
        return path

    def leftover_locks(self, count: int = 1) -> list[Path]:
        """Leave lock files of blobs that do not exist."""
        etags = [hashlib.sha256(b"lock %d" % number).hexdigest() for number in range(count)]
        return [self._lock_file(etag) for etag in etags]

    def bad_tree(
        self, text: str = '{"format_version": 1, "files"', commit: str | None = None
    ) -> Path:
        """Write something else in place of a revision's listing."""
        self.trees.mkdir(parents=True, exist_ok=True)
        path = self.trees / f"{commit or self.latest}.json"
        path.write_text(text)
        return path

    # Folders in the wrong place or closed.

    def unreadable_folder(self, name: str = "blobs") -> Path:
        """Take all permissions from a folder of the repo; root reads it nevertheless."""
        path = self.folder / name
        path.chmod(0)
        return path

    def moved_elsewhere(self, place: Path) -> Path:
        """Move the repo's folder to another place and leave a link to it."""
        place.mkdir(parents=True, exist_ok=True)
        target = place / self.folder.name
        shutil.move(self.folder, target)
        self.folder.symlink_to(target)
        return target


def _writable(path: Path) -> io.FileIO:
    """Open for change in place, shared blobs included, which are read-only."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | stat.S_IWUSR)
    try:
        return io.FileIO(path, "r+")
    finally:
        path.chmod(mode)


# Contents of models.

ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "got_ocr2": "GotOcr2ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}
HIDDEN = 32
VOCABULARY = 64
LAYER = HIDDEN * HIDDEN + HIDDEN
SMALLEST = 2 * VOCABULARY * HIDDEN + HIDDEN + LAYER


def model_files(
    parameters: int = 20_000,
    shards: int = 1,
    kind: str = "qwen2_vl",
    second_format: bool = False,
) -> dict[str, bytes]:
    """Return the files of a small vision-language model with exactly so many float16 weights."""
    layers, tensors = _tensors(parameters)
    files = {
        "README.md": b"---\nlicense: apache-2.0\npipeline_tag: image-text-to-text\n---\n# Model\n",
        "config.json": _json(_configuration(kind, layers)),
        "generation_config.json": _json({"bos_token_id": 0, "eos_token_id": 1}),
        "preprocessor_config.json": _json(
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "patch_size": 14,
                "min_pixels": 3136,
                "max_pixels": 12845056,
            }
        ),
        "chat_template.json": _json({"chat_template": "{{ messages[0]['content'] }}"}),
        **_tokenizer(),
        **_weights(tensors, shards),
    }
    if second_format:
        shaped = {name: (_shape(name, data), data) for name, data in tensors.items()}
        files["pytorch_model.bin"] = torch_weights(shaped)
    return dict(sorted(files.items()))


def safetensors(tensors: Mapping[str, tuple[list[int], bytes]]) -> bytes:
    """Return a valid safetensors file of float16 tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    # The format wants the data aligned to eight bytes, by spaces after the header.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values())


def _tensors(parameters: int) -> tuple[int, dict[str, bytes]]:
    if parameters < SMALLEST:
        raise ValueError(f"a model needs at least {SMALLEST} parameters")
    layers, rest = divmod(parameters - SMALLEST, LAYER)
    layers += 1
    pattern = struct.pack("<251e", *((number - 125) / 1000 for number in range(251)))

    def values(count: int, start: int) -> bytes:
        shifted = pattern[2 * start :] + pattern[: 2 * start]
        return (shifted * (count // 251 + 1))[: 2 * count]

    tensors = {"model.embed_tokens.weight": values(VOCABULARY * HIDDEN, 0)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = values(HIDDEN, layer % 251)
        tensors[f"{prefix}.self_attn.q_proj.weight"] = values(HIDDEN * HIDDEN, layer % 251)
    tensors["model.norm.weight"] = values(HIDDEN, 7)
    tensors["lm_head.weight"] = values(VOCABULARY * HIDDEN, 11)
    if rest:
        tensors["visual.patch_embed.proj.weight"] = values(rest, 13)
    return layers, tensors


def _shape(name: str, data: bytes) -> list[int]:
    count = len(data) // 2
    matrix = "embed_tokens" in name or "q_proj" in name or "lm_head" in name
    return [count // HIDDEN, HIDDEN] if matrix else [count]


def _weights(tensors: Mapping[str, bytes], shards: int) -> dict[str, bytes]:
    shaped = {name: (_shape(name, data), data) for name, data in tensors.items()}
    if shards == 1:
        return {"model.safetensors": safetensors(shaped)}
    names = list(shaped)
    files: dict[str, bytes] = {}
    places: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        held = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        files[file] = safetensors({name: shaped[name] for name in held})
        places |= dict.fromkeys(held, file)
    total = sum(map(len, tensors.values()))
    files["model.safetensors.index.json"] = _json(
        {"metadata": {"total_size": total}, "weight_map": places}
    )
    return files


def _configuration(kind: str, layers: int) -> dict[str, Any]:
    camel = "".join(part.capitalize() for part in kind.split("_"))
    return {
        "architectures": [ARCHITECTURES.get(kind, f"{camel}ForConditionalGeneration")],
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "torch_dtype": "float16",
        "transformers_version": "4.41.2",
        "vision_config": {"depth": 1, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "num_heads": 2},
    }


def _tokenizer() -> dict[str, bytes]:
    words = {chr(33 + number): number for number in range(VOCABULARY)}
    return {
        "merges.txt": b"#version: 0.2\n",
        "tokenizer.json": _json(
            {
                "version": "1.0",
                "added_tokens": [],
                "model": {"type": "BPE", "vocab": words, "merges": []},
            }
        ),
        "tokenizer_config.json": _json({"tokenizer_class": "Qwen2Tokenizer"}),
        "vocab.json": _json(words),
    }


def torch_weights(tensors: Mapping[str, tuple[list[int], bytes]]) -> bytes:
    """Return what `torch.save` writes for a dict of float16 tensors, without PyTorch.

    As there, names that are given the same bytes object are tied: they share a storage.
    """
    keys: dict[int, int] = {}
    code = [b"\x80\x02}("]
    for name, (shape, data) in tensors.items():
        key = keys.setdefault(id(data), len(keys))
        strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
        storage = _text_op("storage") + b"ctorch\nHalfStorage\n" + _text_op(str(key))
        storage = b"(" + storage + _text_op("cpu") + _number_op(len(data) // 2) + b"tQ"
        sizes = b"".join(b"(" + b"".join(map(_number_op, row)) + b"t" for row in (shape, strides))
        code.append(_text_op(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage)
        code.append(_number_op(0) + sizes + b"\x89ccollections\nOrderedDict\n)RtR")
    parts = {"data.pkl": b"".join(code) + b"u.", "version": b"3\n"}
    parts |= {f"data/{keys[id(data)]}": data for _, data in tensors.values()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, part in parts.items():
            # ZipInfo carries a fixed date, so that the bytes never differ.
            archive.writestr(zipfile.ZipInfo(f"pytorch_model/{name}"), part)
    return packed.getvalue()


def _text_op(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _number_op(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


# What is on disk.


def du_allocated(path: Path) -> int:
    """Return the bytes on disk, as `du` counts them."""
    return _du("-s", "-B1", path)


def du_apparent(path: Path) -> int:
    """Return the bytes of content and folders, as `du` counts them."""
    return _du("-sb", path)


def _du(*arguments: str | Path) -> int:
    result = subprocess.run(["du", *arguments], capture_output=True, text=True, check=True)
    return int(result.stdout.split()[0])


def fingerprint(path: Path) -> dict[str, Entry]:
    """Describe all below a folder as relative path -> kind, mode, size, and hash or link target.

    Links are not followed. The size of a folder is given as 0, since it is the filesystem's affair.
    What may not be read has "unreadable" for a hash.
    """
    found: dict[str, Entry] = {}
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            below = list(folder.iterdir())
        except PermissionError:
            kind, mode, size, _ = _entry(folder)
            found[os.path.relpath(folder, path)] = kind, mode, size, "unreadable"
            continue
        for entry in below:
            name = os.path.relpath(entry, path)
            found[name] = _entry(entry)
            if found[name][0] == "folder":
                folders.append(entry)
    return dict(sorted(found.items()))


def _entry(path: Path) -> Entry:
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return "link", mode, status.st_size, os.readlink(path)
    if stat.S_ISDIR(status.st_mode):
        return "folder", mode, 0, ""
    if not stat.S_ISREG(status.st_mode):
        return "other", mode, status.st_size, ""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except PermissionError:
        return "file", mode, status.st_size, "unreadable"
    return "file", mode, status.st_size, digest.hexdigest()
