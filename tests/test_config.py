"""Configuration and cache location: each value with its origin, each mistake with its line."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import platformdirs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmcache.config import (
    Config,
    Environment,
    Limits,
    ModelConfig,
    find_model,
    load_config,
    locate_cache,
    name_of,
    names_of_all,
    own_home,
    read_environment,
    shipped_config,
    side_caches,
)
from vlmcache.config_file import SHIPPED, read_config
from vlmcache.environment import user_folder
from vlmcache.errors import ConfigError, UnknownModelError, UsageError
from vlmcache.units import parse_size

REPOSITORY = Path(__file__).parent.parent

APPLICATION = """\
# Konfiguration der Anwendung — 日本語
app: {name: "OCR für alle", debug: false}
server:
  host: 0.0.0.0
  port: 7860
models:
  got_ocr:
    name: "GOT-OCR 2.0 — schnell"
    description: Erkennt Text, Формулы и 表
    model_path: "stepfun-ai/GOT-OCR2_0"
    precision: "fp16"
    device_map: "cuda:0"
    trust_remote_code: true
    max_length: 4096
    ocr_type: format
  qwen_vl_2b: &qwen
    model_path: Qwen/Qwen2-VL-2B-Instruct
    precision: INT8
    device_map: {visual: 0, model: 1, lm_head: 1}
    min_pixels: 200704
    max_pixels: 1003520
    size: "2B"
  qwen_vl_pinned:
    <<: *qwen
    revision: 1.0
prompts: [ "Beschreibe das Bild", ~ ]
logging: {level: INFO, file: ~/log.txt}
"""

LAUGHS = (
    "{a: &a {x: 0}, "
    + ", ".join(
        f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]"
        for before, after in itertools.pairwise("abcdefghijklmnop")
    )
    + "}"
)
"""A few hundred bytes of aliases that would be petabytes if they were written out."""


def environment(folder: Path, **variables: str) -> Environment:
    return read_environment({"HOME": os.environ["HOME"]} | variables, str(folder))


def loaded(folder: Path, text: str | bytes) -> object:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(None, environment(folder))


def test_an_applications_own_file_is_used_unchanged(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(APPLICATION, encoding="utf-8")
    config = load_config(None, environment(tmp_path))
    assert list(config.models) == ["got_ocr", "qwen_vl_2b", "qwen_vl_pinned"]
    got = config.models["got_ocr"]
    assert (got.repo, got.precision, got.trust_remote_code) == (
        "stepfun-ai/GOT-OCR2_0",
        "fp16",
        True,
    )
    assert config.models["qwen_vl_2b"].device_map == {"visual": 0, "model": 1, "lm_head": 1}
    assert not config.warnings


def test_a_merge_key_is_honored_and_a_numeric_tag_stays_as_written(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(APPLICATION, encoding="utf-8")
    pinned = load_config(None, environment(tmp_path)).models["qwen_vl_pinned"]
    assert (pinned.repo, pinned.precision, pinned.revision) == (
        "Qwen/Qwen2-VL-2B-Instruct",
        "int8",
        "1.0",
    )


def test_what_is_null_is_left_to_its_default(tmp_path: Path) -> None:
    fields = "device_map: null, precision: null, revision: null, trust_remote_code: null"
    (tmp_path / "config.yaml").write_text(f"models: {{a: {{repo: org/name, {fields}}}}}")
    model = load_config(None, environment(tmp_path)).models["a"]
    assert model == ModelConfig("a", "org/name")


def test_a_device_map_can_be_the_number_of_a_device(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models: {a: {repo: org/name, device_map: 1}}")
    assert load_config(None, environment(tmp_path)).models["a"].device_map == {"": 1}


@pytest.mark.parametrize("content", [b"models: {}\n# caf\xe9\n", b"models: {}\n# \x01\n"])
def test_a_file_that_is_not_text_is_refused_with_the_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml:2: holds bytes that are not UTF-8"):
        load_config(None, environment(tmp_path))


def test_a_model_path_may_name_a_variant(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models: {a: {model_path: 'org/name-GGUF:Q4_K_M'}}")
    model = load_config(None, environment(tmp_path)).models["a"]
    assert (model.repo, model.variant) == ("org/name-GGUF", "Q4_K_M")


def test_repo_is_accepted_in_place_of_model_path(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models: {a: {repo: org/name}}")
    assert load_config(None, environment(tmp_path)).models["a"].repo == "org/name"


def test_the_shipped_file_is_the_one_at_the_top_of_the_project() -> None:
    shipped = REPOSITORY / "src" / "vlmcache" / "config.yaml"
    assert shipped.read_bytes() == (REPOSITORY / "config.yaml").read_bytes()


def test_the_values_that_ship_are_those_of_the_shipped_file() -> None:
    """`python -m docs.generate config` makes them anew."""
    assert shipped_config() == read_config(SHIPPED, "shipped")


def test_a_command_without_a_file_does_not_wait_for_the_library_that_reads_one(
    tmp_path: Path,
) -> None:
    program = "import sys, vlmcache; vlmcache.Cache(); print('yaml' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("value", [None, "", "/elsewhere"])
@pytest.mark.parametrize("kind", ["cache", "config"])
def test_the_folders_of_the_user_are_those_that_platformdirs_names(
    kind: Literal["cache", "config"], value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"XDG_{kind.upper()}_HOME"
    if value is None:
        monkeypatch.delenv(variable, raising=False)
    else:
        monkeypatch.setenv(variable, value)
    asked = {"cache": platformdirs.user_cache_dir, "config": platformdirs.user_config_dir}
    assert user_folder(kind) == asked[kind]("vlmcache", appauthor=False)


def test_the_shipped_models_state_what_to_expect_of_them() -> None:
    config = shipped_config()
    assert list(config.models) == ["got_ocr", "qwen_vl_2b", "qwen_vl_7b"]
    assert all(model.expected_size and model.expected_memory for model in config.models.values())


def test_without_a_file_or_a_models_section_the_shipped_models_count(tmp_path: Path) -> None:
    assert load_config(None, environment(tmp_path)).source == "shipped"
    (tmp_path / "config.yaml").write_text("vlmcache: {min_free: 2GiB}\n")
    config = load_config(None, environment(tmp_path))
    assert config.limits.min_free == 2 * 1024**3
    assert "qwen_vl_2b" in config.models


def test_the_file_is_searched_in_the_stated_order(tmp_path: Path) -> None:
    user = Path(os.environ["HOME"]) / ".config" / "vlmcache"
    user.mkdir(parents=True)
    (user / "config.yaml").write_text("models: {}")
    assert load_config(None, environment(tmp_path)).source == "user"
    (tmp_path / "config.yaml").write_text("models: {}")
    assert load_config(None, environment(tmp_path)).source == "./config.yaml"
    (tmp_path / "other.yaml").write_text("models: {}")
    named = environment(tmp_path, VLMCACHE_CONFIG="other.yaml")
    assert load_config(None, named).source == "VLMCACHE_CONFIG"
    assert load_config("config.yaml", named).source == "--config"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("models:\n  a:\n    model_path: org/name\n    precision: fp17\n", 4, "models.a.precision"),
        ("models:\n  a:\n    precision: fp16\n", 3, "needs model_path"),
        ("models:\n  a:\n    model_path: ../../etc\n", 3, "not a repo id"),
        ("models:\n  a:\n    model_path: null\n", 3, "models.a.model_path"),
        ("models:\n  a:\n    model_path: [x]\n", 3, "models.a.model_path"),
        ("models:\n  a: org/name\n", 2, "models.a"),
        ("models: [a, b]\n", 1, "models"),
        ("models:\n  a:\n    repo: org/name\n    revision: a..b/../c\n", 4, "models.a.revision"),
        ("models:\n  a:\n    repo: o/n\n    trust_remote_code: maybe\n", 4, "trust_remote_code"),
        ("models:\n  a:\n    repo: o/n\n    device_map: [7]\n", 4, "device_map"),
        (f"models:\n  a:\n    repo: o/n\n    device_map: {LAUGHS}\n", 4, "device_map"),
        ("models:\n  a:\n    repo: o/n\n    device_map: !!python/name:os.x\n", 4, "a.device_map"),
        ("models:\n  a:\n    model_path: 7\n", 3, "models.a.model_path"),
        ("vlmcache:\n  min_free: lots\n", 2, "vlmcache.min_free"),
        ("vlmcache:\n  min_free: 50\n", 2, "vlmcache.min_free: '50' has no unit (50GB? 50MB?)"),
        ("vlmcache:\n  comfortable_free: 5e9\n", 2, "vlmcache.comfortable_free"),
        ("vlmcache:\n  max_size: 200\n", 2, "vlmcache.max_size: '200' has no unit"),
        ("models: {a: {repo: o/n,\n expected_size: 4_430}}\n", 2, "models.a.expected_size: '4430'"),
        ("models: {a: {repo: o/n,\n expected_memory: 55}}\n", 2, "expected_memory: '55' has no"),
        ("vlmcache: 7\n", 1, "vlmcache"),
        ("app: 1\nmodels: {a: {repo: o/n}\n", 3, "not valid YAML"),
        ("a: \t- b\n", 1, "not valid YAML"),
        ("just words", 1, "must be a mapping"),
    ],
)
def test_a_wrong_value_names_file_line_and_key(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config("config.yaml", environment(tmp_path))
    assert caught.value.message.startswith(f"{tmp_path}/config.yaml:{line}: ")
    assert words in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00bad",
        b"models: {a: !!python/object/apply:os.system [true]}",
        b"? [a, b]\n: c",
        b"a: &a [*a]\nmodels: {}",
        b"[" * 20_000,
        b"models: &m\n  <<: *m\n",
        b"date: 2024-05-45",
    ],
)
def test_a_hostile_file_is_read_as_data_or_refused(tmp_path: Path, content: bytes) -> None:
    message = ""
    try:
        loaded(tmp_path, content)
    except ConfigError as error:
        message = error.message
    assert "\n" not in message


def test_a_bomb_of_aliases_does_not_grow(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    loaded(tmp_path, "\n".join([*lines, "models: {}"]))


def test_an_unknown_key_of_ours_is_reported_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("vlmcache:\n  min_fre: 1GB\n")
    (warning,) = load_config(None, environment(tmp_path)).warnings
    assert "min_fre is not known; did you mean min_free?" in warning


@pytest.mark.parametrize("name", ["nowhere.yaml", "."])
def test_a_named_file_that_cannot_be_read_is_a_configuration_error(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match=r"no such file|cannot be read"):
        load_config(name, environment(tmp_path))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_configuration_or_a_configuration_error(
    tmp_path: Path, content: bytes
) -> None:
    try:
        loaded(tmp_path, content)
    except ConfigError:
        return


NOT_OURS = {
    "no section of ours": "app: {name: x}\n",
    "other models": "models: {small: {layers: 3}, large: {layers: 24}}\n",
    "a list of models": "models: [resnet, vit]\n",
    "names only": "models: {a: org/name}\n",
    "words": "just words\n",
    "a list": "- 1\n- 2\n",
    "nothing": "",
}


def write_user_config(text: str) -> Path:
    path = Path(os.environ["HOME"]) / ".config" / "vlmcache" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_working_folders_file_that_is_not_ours_is_one_note_and_the_next_file_counts(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "config.yaml").write_text(NOT_OURS[name])
    shipped = load_config(None, environment(tmp_path))
    assert (shipped.source, len(shipped.warnings)) == ("shipped", 1)
    write_user_config("models: {mine: {repo: org/mine}}\n")
    config = load_config(None, environment(tmp_path))
    assert (config.source, list(config.models)) == ("user", ["mine"])
    (note,) = config.warnings
    assert note.startswith(f"{tmp_path}/config.yaml: not used: ")


@pytest.mark.parametrize(
    "text",
    [
        "models: {a: {layers: 3}, b: {repo: org/name}}",
        "vlmcache: {min_free: lots}",
        "models: {b: {repo: 7}}",
        "models: [a\n",
    ],
)
def test_a_file_of_ours_with_a_mistake_is_not_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml:\d+: "):
        load_config(None, environment(tmp_path))


LIMITS = "models: {}\nvlmcache:\n  max_size: 5GB\n  min_free: 1GB\n"


def test_a_budget_counts_from_the_users_own_files_only(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(LIMITS)
    local = load_config(None, environment(tmp_path))
    assert (local.source, local.limits.max_size, local.limits.min_free) == (
        "./config.yaml",
        None,
        10**9,
    )
    (warning,) = local.warnings
    assert warning.startswith(f"{tmp_path}/config.yaml:3: vlmcache.max_size is ignored")
    assert load_config("config.yaml", environment(tmp_path)).limits.max_size == 5 * 10**9
    named = environment(tmp_path, VLMCACHE_CONFIG="config.yaml")
    assert load_config(None, named).limits.max_size == 5 * 10**9
    (tmp_path / "empty").mkdir()
    user = write_user_config(LIMITS)
    assert load_config(None, environment(tmp_path / "empty")).limits.max_size == 5 * 10**9
    at_home = load_config(None, environment(user.parent))
    assert (at_home.source, at_home.limits.max_size) == ("user", 5 * 10**9)


def test_an_archive_is_the_absolute_path_of_a_folder_and_counts_in_any_working_folder(
    tmp_path: Path,
) -> None:
    user = write_user_config("vlmcache:\n  archive: ~/slow/../hdd\n")
    (tmp_path / "config.yaml").write_text("models: {}\nvlmcache:\n  archive: /elsewhere\n")
    local = load_config(None, environment(tmp_path))
    assert local.source == "./config.yaml"
    assert local.archive == os.path.join(os.path.expanduser("~"), "hdd")
    assert load_config("config.yaml", environment(tmp_path)).archive == "/elsewhere"
    user.write_text("vlmcache:\n  archive: null\n")
    assert load_config(None, environment(tmp_path)).archive is None
    user.write_text("vlmcache:\n  archive: hdd\n")
    with pytest.raises(ConfigError, match=r":2: vlmcache.archive: 'hdd' is not an absolute path"):
        load_config(str(user), environment(tmp_path))


@pytest.mark.parametrize("key", ["max_size: 1MB", "archive: /x", "base: /x", "sources: [/x]"])
def test_each_key_that_leads_elsewhere_or_removes_more_is_shown_and_ignored(
    tmp_path: Path, key: str
) -> None:
    name = key.partition(":")[0]
    (tmp_path / "config.yaml").write_text(f"vlmcache:\n  {key}\n")
    (warning,) = load_config(None, environment(tmp_path)).warnings
    assert f"config.yaml:2: vlmcache.{name} is ignored" in warning


@pytest.mark.parametrize(
    ("local", "own", "most"),
    [("50GB", None, 10), ("1GB", None, 1), ("50GB", "20GB", 20), ("5GB", "20GB", 5)],
)
def test_making_room_aims_at_no_more_than_the_users_own_free_space(
    tmp_path: Path, local: str, own: str | None, most: int
) -> None:
    (tmp_path / "config.yaml").write_text(f"vlmcache: {{min_free: {local}}}\n")
    if own is not None:
        write_user_config(f"vlmcache: {{min_free: {own}}}\n")
    config = load_config(None, environment(tmp_path))
    assert config.limits.min_free == parse_size(local)
    assert config.evict_for == most * 10**9
    named = load_config("config.yaml", environment(tmp_path))
    assert named.evict_for == parse_size(local)


def test_models_of_all_files_on_the_search_path_are_known_with_their_files(tmp_path: Path) -> None:
    user = write_user_config("models: {mine: {repo: org/mine}}")
    (tmp_path / "config.yaml").write_text("models: {local: {repo: org/local}}")
    (tmp_path / "named.yaml").write_text("models: {named: {repo: org/named}}")
    (tmp_path / "option.yaml").write_text("vlmcache: {min_free: 0}")
    named = environment(tmp_path, VLMCACHE_CONFIG="named.yaml")
    config = load_config("option.yaml", named)
    assert [(path, model.repo) for path, model in config.also] == [
        (f"{tmp_path}/named.yaml", "org/named"),
        (f"{tmp_path}/config.yaml", "org/local"),
        (str(user), "org/mine"),
    ]
    assert load_config("config.yaml", environment(tmp_path)).also == (
        (str(user), ModelConfig("mine", "org/mine")),
    )


@pytest.mark.parametrize("broken", ["models: [a\n", "models: {a: {repo: 7}}\n"])
def test_another_file_that_cannot_be_read_is_noted_with_its_line_and_fails_nothing_here(
    tmp_path: Path, broken: str
) -> None:
    user = write_user_config(broken)
    (tmp_path / "config.yaml").write_text("models: {local: {repo: org/local}}")
    config = load_config(None, environment(tmp_path))
    assert list(config.models) == ["local"]
    assert config.unread is not None
    assert config.unread.startswith(f"{user}:")
    assert config.notices[-1].endswith(config.unread)


CHAIN = (
    ("HF_HUB_CACHE", "/one", "/one"),
    ("HUGGINGFACE_HUB_CACHE", "/two", "/two"),
    ("HF_HOME", "/three", "/three/hub"),
    ("XDG_CACHE_HOME", "/four", "/four/huggingface/hub"),
)


@pytest.mark.parametrize("first", range(5))
def test_the_first_source_that_is_set_decides_where_the_cache_is(
    tmp_path: Path, first: int
) -> None:
    variables = {name: value for name, value, _ in CHAIN[first:]}
    location = locate_cache(None, environment(tmp_path, **variables))
    if first == 4:
        expected = (str(Path(os.environ["HOME"]) / ".cache/huggingface/hub"), "default")
    else:
        expected = (CHAIN[first][2], CHAIN[first][0])
    assert (location.dir, location.source) == expected


def test_the_option_comes_before_every_variable_and_empty_ones_count_as_unset(
    tmp_path: Path,
) -> None:
    variables = environment(tmp_path, HF_HUB_CACHE="", HF_HOME="~/hf")
    location = locate_cache(None, variables)
    assert location.dir == str(Path(os.environ["HOME"]) / "hf" / "hub")
    assert locate_cache("here", variables).dir == str(tmp_path / "here")


def test_variables_that_disagree_are_reported(tmp_path: Path) -> None:
    location = locate_cache(None, environment(tmp_path, HF_HUB_CACHE="/one", HF_HOME="/three"))
    assert location.conflicts == ("HF_HOME points to /three/hub, but HF_HUB_CACHE decides: /one",)
    agreed = environment(tmp_path, HF_HUB_CACHE="/three/hub", HF_HOME="/three")
    assert locate_cache(None, agreed).conflicts == ()


def test_a_dotenv_supplies_what_the_environment_does_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# of the application\nexport HF_HUB_CACHE='/from/file'\nHF_HOME=/kept\nSECRET=x\nPATH=y\n"
    )
    found = environment(tmp_path, HF_HOME="/set")
    assert found.get("HF_HOME") == "/set"
    assert found.get("SECRET") is None
    assert found.get("PATH") is None
    location = locate_cache(None, found)
    assert (location.dir, location.source) == ("/from/file", "HF_HUB_CACHE (.env)")


SIDE = ("HF_XET_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN_PATH", "HF_XET_LOG_DEST")


@pytest.mark.parametrize("name", [*SIDE, "VLMCACHE_HOME", "VLMCACHE_CONFIG", "HF_DATASETS_CACHE"])
def test_a_dotenv_sets_no_other_folder_or_file_than_the_hub_cache(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / ".env").write_text(f"{name}=/from/file\n")
    found = environment(tmp_path)
    assert found.get(name) is None
    (sentence,) = found.ignored
    assert sentence.startswith(f"{tmp_path}/.env: {name} is ignored")
    assert environment(tmp_path, **{name: "/set"}).ignored == ()
    assert own_home(found)[1] == "default"


@given(st.dictionaries(st.sampled_from([*SIDE, "HF_HOME", "XDG_CACHE_HOME"]), st.just("/hostile")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_dotenv_moves_a_side_cache(tmp_path: Path, lines: dict[str, str]) -> None:
    (tmp_path / ".env").write_text("".join(f"{name}={path}\n" for name, path in lines.items()))
    for own in ({}, {"HF_HOME": "/own"}, {"HF_XET_CACHE": "/x"}, {"XDG_CACHE_HOME": "/cache"}):
        assert side_caches(environment(tmp_path, **own)) == side_caches(
            environment(tmp_path / "none", **own)
        )


def test_a_dotenv_that_is_not_text_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"HF_HOME=\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"\.env: cannot be read"):
        environment(tmp_path)


def test_our_own_folder_is_named_by_its_variable(tmp_path: Path) -> None:
    assert own_home(environment(tmp_path, VLMCACHE_HOME="/own")) == ("/own", "VLMCACHE_HOME")
    assert own_home(environment(tmp_path))[1] == "default"


def test_a_model_is_found_by_key_repo_id_and_revision() -> None:
    config = shipped_config()
    assert find_model(config, "qwen_vl_2b").repo == "Qwen/Qwen2-VL-2B-Instruct"
    assert find_model(config, "Qwen/Qwen2-VL-2B-Instruct").key == "qwen_vl_2b"
    assert find_model(config, "qwen_vl_2b@refs/pr/1").revision == "refs/pr/1"
    other = find_model(config, "org/other@v1")
    assert (other.key, other.revision, other.configured) == ("org/other", "v1", False)
    assert find_model(config, "gpt2", cached=["gpt2"]).repo == "gpt2"


IDS = st.sampled_from(["gpt2", "GPT2", "org/name", "Org/Name", "org/other", "a/b"])


@given(
    keys=st.dictionaries(IDS | st.sampled_from(["mine", "org/name@main"]), IDS, max_size=4),
    cached=st.sets(IDS, max_size=4),
    typed=IDS,
)
def test_a_key_never_stands_for_another_repo_than_the_cached_one_it_is_spelled_like(
    keys: dict[str, str], cached: set[str], typed: str
) -> None:
    models = {key: ModelConfig(key, repo) for key, repo in keys.items()}
    config = Config("config.yaml", "user", models, Limits())
    alike = {repo for repo in cached if repo.casefold() == typed.casefold()}
    for text in (typed, f"{typed}@main"):
        try:
            found = find_model(config, text, cached)
        except UsageError:
            assert typed not in alike
            assert len(alike) > 1
        except UnknownModelError:
            assert not alike
        else:
            assert (found.repo == typed) if typed in alike else (not alike or found.repo in alike)
    folded = {key.casefold(): repo for key, repo in keys.items()}
    for name, model in zip(names_of_all(config, cached), models.values(), strict=True):
        way_out = folded.get(model.repo.casefold(), model.repo)
        if "@" in name and (name in keys or way_out != model.repo):
            continue  # A key that is spelled like another's way out.
        meant = find_model(config, name, cached)
        # The hub knows no two repos whose ids differ by case only.
        assert meant.repo.casefold() == model.repo.casefold()
        assert meant.revision == model.revision


def test_a_key_that_would_be_read_as_an_option_gives_way_to_the_repo_id() -> None:
    model = ModelConfig("-x", "org/name", "v1")
    config = Config("config.yaml", "user", {"-x": model}, Limits())
    (name,) = names_of_all(config, ())
    assert name == name_of(config, model, ()) == "org/name@v1"
    assert find_model(config, name) == model


@pytest.mark.parametrize("name", ["qwen_2b", "got_orc", "a/b/c", "../x", "", "gpt2", "/etc/passwd"])
def test_an_unknown_model_is_refused_with_the_nearest_keys(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        find_model(shipped_config(), name)
    assert caught.value.exit_code == 7
    if name == "got_orc":
        assert caught.value.hint == "did you mean got_ocr?"


@pytest.mark.parametrize("revision", ["", "..", "a/../b", "-x", "a b", "x\0", "/x", "x.lock"])
def test_a_revision_that_could_leave_its_folder_is_refused(revision: str) -> None:
    with pytest.raises(UsageError):
        find_model(shipped_config(), f"qwen_vl_2b@{revision}")
