"""An admin's base, read-only, and a user with an unmodified client and a cache of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.kit.bases import FILES, NEWER, Based
from tests.kit.caches import model_files
from tests.kit.disks import NOBODY, as_other_user, common_folder, read_only_view
from tests.kit.hub import LoopbackHub
from vlmcache.cache.base_record import BaseAt, BaseRecord, base_record_path
from vlmcache.cache.tree import CacheTree, StaleError

ONE = "models--org--one"
NEW = b'{"new": true}'


class Users:
    """An admin's cache and a user's folder, below a folder that everybody can enter."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.base = base
        self.home = folder / "user"
        self.home.mkdir()
        self.root = self.home / "hub"
        if os.geteuid() == 0:
            os.chown(self.home, NOBODY, NOBODY)

    def run(
        self, *command: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        known = {"PATH": os.environ["PATH"], "HOME": str(self.home), "HF_HUB_OFFLINE": "1"}
        known |= {"HF_HOME": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"}
        known |= {"HF_HUB_CACHE": str(self.root), **(variables or {})}
        known = {name: value for name, value in known.items() if value}
        return as_other_user(command, environment=known, folder=self.home, timeout=120)

    def vlmcache(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "vlmcache", *arguments, variables=variables)

    def state(self) -> str:
        done = self.vlmcache("status", "org/one", "--json")
        state: str = json.loads(done.stdout)["models"][0]["state"]
        return state


@pytest.fixture
def admin() -> Iterator[Based]:
    with common_folder() as folder:
        based = Based(folder)
        based.base.repo("org/one").revision(model_files())
        based.settle()
        yield based
        assert based.base_now() == based.settled


@pytest.fixture
def users(admin: Based) -> Users:
    found = Users(admin.folder, admin.base.root)
    done = found.vlmcache("attach", str(admin.base.root), "--json")
    assert done.returncode == 0, done.stderr
    return found


LOAD = """
import sys
from huggingface_hub import snapshot_download, try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer
path = snapshot_download("org/one")
assert open(path + "/model.safetensors", "rb").read()
assert try_to_load_from_cache("org/one", "config.json").endswith("config.json")
AutoConfig.from_pretrained("org/one")
AutoTokenizer.from_pretrained("org/one")
"""


def test_an_unmodified_client_of_another_user_loads_offline_what_is_attached(users: Users) -> None:
    pytest.importorskip("transformers")
    done = users.run(sys.executable, "-c", LOAD)
    assert done.returncode == 0, done.stderr
    assert users.state() == "cached"


def test_the_client_fetches_of_a_new_revision_only_what_the_base_does_not_have(
    users: Users,
) -> None:
    with LoopbackHub() as hub:
        files = model_files()
        repo = hub.add_repo("org/one")
        repo.commit(files)
        repo.commit({**files, "new.json": NEW})
        variables = {
            name: value
            for name, value in hub.environment(users.root).items()
            if name.startswith(("HF_", "NO_")) and name not in ("HF_HOME", "HF_HUB_CACHE")
        }
        client = str(Path(sys.executable).parent / "hf")
        before = hub.bytes_sent()
        done = users.run(
            client, "download", "org/one", variables={**variables, "HF_HUB_OFFLINE": ""}
        )
        assert done.returncode == 0, done.stderr
        assert hub.bytes_sent() - before < min(4096, sum(map(len, files.values())) // 2)
        assert hub.bytes_sent("model.safetensors") == 0
        assert hub.bytes_sent("new.json") == len(NEW)
    blobs = users.root / ONE / "blobs"
    assert [path for path in blobs.iterdir() if not path.is_symlink()] != []
    assert users.state() == "cached"
    assert users.vlmcache("detach", "--yes").returncode == 0
    assert [path.is_symlink() for path in blobs.iterdir()] == [False]


EVERY = """
import sys
from vlmcache import Cache
from vlmcache.commands.doctor.bases import check_bases
cache, base = Cache(), sys.argv[1]
for act in (
    lambda: cache.attach(base),
    cache.status,
    lambda: cache.verify(max_age=0),
    lambda: cache.clean(all=True, dry_run=True),
    lambda: cache.backup("saved.tar", "org/one"),
    lambda: cache.remove("org/one"),
    lambda: cache.restore("saved.tar"),
    lambda: cache.attach(base),
    lambda: cache.clean(all=True),
    lambda: cache.attach(base),
    cache.detach,
):
    act().check()
cache.attach(base)
assert not [one for one in check_bases(cache.session) if one.code == "base-writable"]
"""


def test_every_command_of_the_user_leaves_a_base_on_a_read_only_mount_as_it_is(
    admin: Based,
) -> None:
    with read_only_view(admin.base.root) as base:
        users = Users(admin.folder, base)
        done = users.run(sys.executable, "-c", EVERY, str(base))
        assert done.returncode == 0, done.stderr


def test_what_the_user_may_not_read_is_not_linked_and_doctor_names_the_command(
    admin: Based,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    commit = next((admin.base.root / ONE / "snapshots").iterdir())
    (commit / "model.safetensors").resolve().chmod(0o600)
    admin.settled = admin.base_now()
    users = Users(admin.folder, admin.base.root)
    assert users.vlmcache("attach", str(admin.base.root)).returncode == 0
    assert users.state() == "partial"
    shown = json.loads(users.vlmcache("doctor", "--json").stdout)
    (finding,) = [one for one in shown["findings"] if one["code"] == "base-unreadable"]
    assert f"chmod -R a+rX {admin.base.root}" in finding["remedy"]


# Trust: only a record of ours makes a link one into a base.


def test_a_planted_link_without_a_record_is_a_link_out_of_the_cache(tmp_path: Path) -> None:
    based = Based(tmp_path)
    based.fill()
    based.cache.attach(based.base.root)
    os.unlink(base_record_path(str(based.root), ONE))
    assert {finding.code for finding in based.repo().findings} == {"outside-link"}
    assert based.cache.verify(max_age=0).checked == 0
    based.cache.attach(based.base.root)
    assert based.repo().findings == ()
    assert based.cache.verify(max_age=0).checked == len(FILES)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs other users")
def test_the_record_of_another_user_leads_root_only_to_what_everybody_may_read() -> None:
    with common_folder() as folder:
        based = Based(folder)
        based.fill()
        based.cache.attach(based.base.root)
        for path in (based.root, *based.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        assert based.repo().attached_to == (str(based.base.root),)
        assert based.cache.verify(max_age=0).checked == len(FILES)
        based.base.root.chmod(0o700)
        assert based.repo().attached_to == ()
        assert based.cache.verify(max_age=0).checked == 0
        name = next((based.root / ONE / "blobs").iterdir())
        with pytest.raises(StaleError):
            CacheTree(str(based.root)).open_content(str(name))


def test_a_record_leads_to_no_other_place_than_the_blob_of_the_same_name(tmp_path: Path) -> None:
    based = Based(tmp_path)
    based.fill()
    based.fill("org/two", NEWER)
    based.cache.attach(based.base.root)
    blobs = based.root / ONE / "blobs"
    names = sorted(path.name for path in blobs.iterdir())
    base = based.base.root
    for target in (
        f"{base}/{ONE}/blobs/{names[1]}",
        f"{base}/models--org--two/blobs/{names[0]}",
        f"{base}/{ONE}/../{ONE}/blobs/{names[0]}",
        f"{base}/{ONE}/snapshots/x/config.json",
        "/etc/hostname",
    ):
        (blobs / names[0]).unlink()
        (blobs / names[0]).symlink_to(target)
        assert based.repo().blobs[names[0]].base is None, target


def test_a_record_of_another_form_makes_nothing_a_base(tmp_path: Path) -> None:
    based = Based(tmp_path)
    based.fill()
    based.cache.attach(based.base.root)
    path = Path(base_record_path(str(based.root), ONE))
    for content in (b"", b"{", b"[]", b'{"format": "vlmcache.base/1", "bases": 1}', b"\xff"):
        path.write_bytes(content)
        assert based.repo().attached_to == ()
    path.unlink()
    path.mkdir()
    assert based.repo().attached_to == ()


def test_base_holds_only_the_two_places_that_attach_links_to() -> None:
    base = BaseAt("/srv/models")
    store = "/srv/models/blobs/ab/" + "ab" * 32
    assert base.holds(f"/srv/models/{ONE}/blobs/abc", ONE, "abc")
    assert base.holds(store, ONE, "abc")
    assert not base.holds(store.replace("/ab/", "/cd/"), ONE, "abc")
    record = BaseRecord("vlmcache.base/1", (base,))
    assert record.base_of(store, ONE, "abc") == base
    assert record.base_of(f"/srv/model/{ONE}/blobs/abc", ONE, "abc") is None
