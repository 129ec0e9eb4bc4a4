"""What opens or changes a file goes through the classes that walk descriptors, or says where it is.

Below a cache's root anything can be swapped for a link at any moment; from a folder's descriptor no
name leads out. So each call that opens or changes a file by a path is listed here.
"""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.test_architecture import MODULES

TREES = frozenset({"cache.reading", "cache.tree", "change.tree", "change.removal_tree"})
"""The modules that open and change what is in a cache."""

READS = {
    # What a scan has seen is compared through the trees before anything is done about it.
    "cache.hashing": "files that are no cache's, unless a tree opens them",
    "commands.backup.remote": "a tar stream that the user has named",
    "cache.completeness": "indexes of weights, for the scan",
    "cache.duplicates": "weights that may be copies of each other, for the scan",
    "cache.entries": "folders, for the scan",
    "cache.free_memory": "/proc, /sys",
    "cache.mounts": "/proc",
    "cache.moved": "notes of moves, for the scan",
    "cache.pickles": "weights in pickled form, for the scan",
    "cache.scan_repo": "refs and listings, for the scan",
    "cache.scan_root": "the store's marker and leftovers, for the scan",
    "cache.scan_snapshots": "stubs, for the scan",
    "cache.usage": "/proc",
    "cache.weights": "headers of weights, for the scan",
    "cache.trash": "/proc",
    "change.space": "which blocks of a blob other files share, to say why nothing came back",
    "commands.init.add": "the user's config.yaml",
    "commands.init.init": "the config.yaml that ships with the package",
    "commands.pull.sources": "a tar that the user has named, to see what it is",
    "commands.pull.prepare": "indexes and configs of another revision, to choose files by",
    "commands.doctor.sharing": "/proc",
    "commands.fleet.surveying": "/proc",
    "commands.schedule.timers": "the files of the system's timers, /proc",
    "commands.serve.access": "the file of the token",
    "config_file": "config.yaml",
    "environment": ".env, tokens",
    "hub.settings": "the token",
    "load.device": "/proc",
    "load.disk": "/proc, /sys",
    "load.disturbance": "/proc, /sys",
    "load.pinned": "weights that are loaded",
    "load.processors": "tokenizer_config.json and the like of a model that is loaded",
    "load.saved": "reports that load-test has kept",
    "load.source": "config.json of a model that is loaded",
}
"""Modules that only read, and what."""

ELSEWHERE = {
    "cli.main": "/dev/null",
    "cli.shells": "the folders in which shells look for completion, and their start-up files",
    "commands.backup.places": "the store, a folder outside the cache",
    "commands.fleet.model_finder": "an empty folder of the system's for temporary files",
    "commands.init.write": "the user's configuration folder, or where --config says",
    "commands.backup.backup": "a pipe or device that the user has named",
    "load.class_list": "our own data folder: the names of transformers' classes",
    "home.copies": "our own data folder: quantized copies",
    "home.journal": "our own data folder; of another user's, what root reads",
    "scheduled": "our own data folder: how each schedule went",
    "load.worker": "the system's folder of temporary files",
    "load.quantized": "our own data folder: quantized copies",
    "load.scratch": "folders in which copies and trial models are made",
    "load.synthetic": "a folder of the benchmark's own",
}
"""Modules that write, and the folder outside any cache that they write to."""

BY_DESCRIPTOR = {
    "cache.trash": {"os.open"},
    "change.abilities": {"os.link", "os.open", "os.symlink", "os.unlink"},
    "change.arriving": {"os.utime"},
    "change.partials": {"os.utime"},
    "change.leftovers": {"os.rename", "os.symlink", "os.unlink"},
    "change.trash": {"os.mkdir", "os.rename", "os.rmdir"},
    "change.trash_undo": {"os.rename", "os.utime"},
    "change.locks": {"os.utime"},
    "commands.move.copy": {"os.chown", "os.utime"},
    "commands.move.files": {"os.chmod", "os.chown", "os.utime"},
    "commands.doctor.permissions": {"os.chmod", "os.chown", "os.setxattr"},
}
"""Calls that get a descriptor in place of a path, or a name in a folder that is open."""

_CALLS = {
    "os": (
        "open rename renames replace unlink remove rmdir removedirs mkdir makedirs link symlink "
        "chmod lchmod chown lchown utime truncate mkfifo mknod setxattr removexattr"
    ),
    "shutil": "copyfile copy copy2 copytree copymode copystat rmtree move chown unpack_archive",
    "tempfile": "mkstemp mkdtemp NamedTemporaryFile TemporaryFile TemporaryDirectory",
    "Path": "open touch write_text write_bytes mkdir unlink rename replace chmod symlink_to",
}
_FUNCTIONS = {"open", "open_quietly", "read_bytes"}
_WRITING = {"os", "shutil", "tempfile", "Path"}


def _calls_of(module: str) -> set[str]:
    """Return the names of what a module uses to open or change files by a path."""
    found: set[str] = set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            modes = [given.value for given in node.args[1:2] if isinstance(given, ast.Constant)]
            if node.func.id == "open" and set("wax+") & set(str(*modes)):
                found.add("open to write")
        if isinstance(node, ast.Name) and node.id in _FUNCTIONS:
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Call):
            owner = node.value.func if isinstance(node.value, ast.Call) else node.value
            name = owner.id if isinstance(owner, ast.Name) else ""
            if node.attr in _CALLS.get(name, "").split():
                found.add(f"{name}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module in _WRITING:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found - BY_DESCRIPTOR.get(module, set())


USED = {module: calls for module in MODULES if (calls := _calls_of(module))}


def test_files_of_a_cache_are_opened_and_changed_by_the_trees_alone() -> None:
    known = {*TREES, *READS, *ELSEWHERE}
    assert {module: calls for module, calls in USED.items() if module not in known} == {}
    assert known - USED.keys() == set(), "not needed any more"


def test_what_only_reads_changes_nothing() -> None:
    reading = _FUNCTIONS | {"os.open"}
    assert {module: USED[module] - reading for module in READS if USED[module] - reading} == {}


def test_each_module_is_listed_once() -> None:
    times: dict[str, int] = defaultdict(int)
    for group in (TREES, READS, ELSEWHERE):
        for module in group:
            times[module] += 1
    assert [module for module, count in times.items() if count > 1] == []
