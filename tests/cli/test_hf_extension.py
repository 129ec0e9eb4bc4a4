"""`hf vlmcache`: the real `hf` starts the command, and docs say what the extension's repo holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Vlmcache

PAGE = Path(__file__).parents[2] / "docs" / "hf-extension.md"
STARTS = """\
#!{python}
from vlmcache.__main__ import main
main()
"""


@pytest.fixture
def hf(vlmcache: Vlmcache, cache: CacheBuilder, tmp_path: Path) -> Vlmcache:
    """The real `hf`, with the extension installed as it does that itself."""
    from huggingface_hub.cli import extensions

    cache.repo("org/good").revision(model_files())
    program = tmp_path / "hf-vlmcache"
    program.write_text(STARTS.format(python=sys.executable))
    program.chmod(0o755)
    folder = Path(vlmcache.environment["HOME"], *extensions.EXTENSIONS_ROOT.parts[1:])
    extensions.ExtensionManifest(
        owner="owner",
        repo="hf-vlmcache",
        repo_id="owner/hf-vlmcache",
        short_name="vlmcache",
        executable_path=str(program),
        type="python",
        installed_at=datetime.now(timezone.utc),
    ).save(folder / "hf-vlmcache")
    environment = vlmcache.environment | {"HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    start = "from huggingface_hub.cli.hf import main; main()"
    return Vlmcache(environment, vlmcache.folder, (sys.executable, "-c", start))


def test_hf_starts_the_command_and_passes_its_answer_and_its_exit_code_on(hf: Vlmcache) -> None:
    done = hf("vlmcache", "status", "org/good", "--json")
    assert (done.code, done.document["schema"]) == (0, "vlmcache.status/1")
    assert done.document["models"][0]["state"] == "cached"
    wrong = hf("vlmcache", "scan")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean 'vlmcache status'?" in wrong.err
    assert hf("vlmcache", "rm", "org/absent", "--yes").code == 7
    assert hf("extensions", "exec", "vlmcache", "--", "--version").out.startswith("vlmcache ")


def test_the_repository_that_the_page_shows_is_a_package_that_needs_ours_and_holds_nothing(
    tmp_path: Path,
) -> None:
    shown = re.findall(
        r"`([\w.]+)`[^`]*:\n\n```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    files = dict(shown)
    assert list(files) == ["pyproject.toml", "manifest.json", "README.md"]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("dist/*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert all(".dist-info/" in name for name in names)
    assert "Requires-Dist: vlmcache" in metadata.splitlines()
    # hf reads both, and shows the first that it finds.
    description = json.loads(files["manifest.json"])["description"]
    assert f"Summary: {description}" in metadata.splitlines()
