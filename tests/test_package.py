"""What is installed: the wheel, what is in it, and what it says of itself."""

from __future__ import annotations

import configparser
import email
import email.message
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import vlmcache

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vlmcache"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    # The backend itself, without pip, which would ask the network for it.
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    return email.message_from_bytes(wheel.read(in_info(wheel, "METADATA")))


def in_info(wheel: zipfile.ZipFile, name: str) -> str:
    return next(member for member in wheel.namelist() if member.endswith(f".dist-info/{name}"))


def test_what_is_tested_is_what_the_source_holds() -> None:
    """A package that was installed before the last change would be tested in vain."""
    assert files_of(Path(vlmcache.__file__).parent) == files_of(SOURCE)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {
        name.removeprefix("vlmcache/"): wheel.read(name)
        for name in wheel.namelist()
        if ".dist-info/" not in name
    }
    assert packed == files_of(SOURCE)
    assert {"py.typed", "config.yaml"} <= set(packed)


def test_the_default_configuration_is_the_one_to_copy() -> None:
    assert (SOURCE / "config.yaml").read_text() == (ROOT / "config.yaml").read_text()


def test_the_wheel_starts_the_command_and_carries_the_license(wheel: zipfile.ZipFile) -> None:
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(in_info(wheel, "entry_points.txt")).decode())
    assert dict(scripts["console_scripts"]) == {
        "vlmcache": "vlmcache.__main__:main",
        "hf-vlmcache": "vlmcache.__main__:main",
    }
    assert wheel.read(in_info(wheel, "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
    assert "Root-Is-Purelib: true" in wheel.read(in_info(wheel, "WHEEL")).decode()


def test_the_wheel_says_what_it_is_and_what_it_needs(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "vlmcache"
    assert metadata["Version"] == vlmcache.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"load", "plot", "test", "vision"} <= set(metadata.get_all("Provides-Extra", []))
    classifiers = metadata.get_all("Classifier", [])
    assert "Typing :: Typed" in classifiers
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)} <= set(
        classifiers
    )
    assert metadata.get_payload(decode=True) == (ROOT / "README.md").read_bytes()


def test_without_extras_nothing_heavy_is_installed(metadata: email.message.Message) -> None:
    needed = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert any(need.startswith("huggingface-hub") for need in needed)
    heavy = ("torch", "transformers", "accelerate", "bitsandbytes", "matplotlib")
    assert not [need for need in needed if need.startswith(heavy)]


def test_the_workflow_runs_on_each_python_that_the_metadata_names(
    metadata: email.message.Message,
) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    prefix = "Programming Language :: Python :: "
    named = {name.removeprefix(prefix) for name in metadata.get_all("Classifier", [])}
    for job in workflow["jobs"].values():
        assert set(job["strategy"]["matrix"]["python"]) == {"3.10", "3.11", "3.12", "3.13"}
        assert set(job["strategy"]["matrix"]["python"]) <= named


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_uses_actions_at_a_commit_and_tests_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for job in yaml.safe_load(text)["jobs"].values():
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", f"a@{'0' * 40}"))
    assert [name for name in re.findall(r"tests/[\w/.]+", text) if not (ROOT / name).exists()] == []


def test_every_public_name_is_there_and_listed_once() -> None:
    assert sorted(set(vlmcache.__all__)) == sorted(vlmcache.__all__)
    for name in vlmcache.__all__:
        assert getattr(vlmcache, name) is not None
