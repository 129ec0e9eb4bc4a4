"""`vlmcache serve` as it is typed: what it says, what it refuses, how it ends."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jsonschema
import pytest

import vlmcache as package
from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Vlmcache, is_failure, run_here
from tests.kit.served import TOKEN, Asking, serving
from tests.kit.tls import authority
from vlmcache.commands.serve import serve
from vlmcache.installing import install_extra


@pytest.fixture
def good(cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch) -> CacheBuilder:
    cache.repo("org/good").revision(model_files())
    cache.repo("org/part").revision(model_files(), downloaded={"config.json"})
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    return cache


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "serve-token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def started(vlmcache: Vlmcache, *words: str) -> tuple[subprocess.Popen[bytes], str]:
    """Return a server that answers, and its address."""
    line = ("serve", "org/good", "--listen", "127.0.0.1:0", "-q", *words)
    process = vlmcache.start(*line)
    assert process.stdout is not None
    return process, process.stdout.readline().decode().strip()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_ends_it_with_its_code_and_one_line(
    good: CacheBuilder, vlmcache: Vlmcache, token_file: Path, number: signal.Signals, code: int
) -> None:
    process, address = started(vlmcache, "--token-file", str(token_file))
    assert Asking(address)("/org/good/resolve/main/config.json").status == 200
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    assert is_failure(err)
    assert b"hint:" not in err


def test_json_is_one_document_at_the_end(
    good: CacheBuilder, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = serve.Server.run

    def run(self: serve.Server) -> package.ServeReport:
        def end() -> None:
            self._uvicorn.is_up.wait(60)
            assert Asking(self.address)("/org/good/resolve/main/config.json").status == 200
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=end).start()
        return plain(self)

    monkeypatch.setattr(serve.Server, "run", run)
    words = ("serve", "org/good", "--listen", "127.0.0.1:0", "--token-file", str(token_file))
    done = run_here(*words, "--json")
    assert (done.code, done.err) == (143, "")
    document = done.document
    assert (document["schema"], document["exit_code"]) == ("vlmcache.serve/1", 143)
    assert (document["ok"], document["errors"][0]["code"]) == (False, "terminated")
    jsonschema.validate(document, run_here("schema", "serve").document)
    assert document["models"][0]["repo"] == "org/good"
    assert (document["files"], document["requests"], document["refused"]) == (1, 1, 0)


def test_rm_and_clean_see_that_a_server_uses_a_model(
    good: CacheBuilder, vlmcache: Vlmcache, token_file: Path
) -> None:
    process, address = started(vlmcache, "--token-file", str(token_file))
    try:
        refused = vlmcache("rm", "org/good", "--yes")
        assert refused.code == 6
        assert "serve" in refused.err + refused.out
        kept = vlmcache("clean", "--max-size", "0", "--yes", "--json")
        assert good.repo("org/good").folder.exists()
        assert kept.code != 0 or "org/good" not in kept.out.replace(str(good.root), "")
        assert vlmcache("rm", "org/good", "--yes", "--force").code == 0
        ask = Asking(address)
        assert ask("/org/good/resolve/main/config.json").status == 404
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_what_is_served_is_named_or_confirmed(good: CacheBuilder, token_file: Path) -> None:
    listen = ("--listen", "127.0.0.1:0")
    for words, code, text in (
        (("--all", *listen), 5, "1 model would be served: there is no terminal"),
        (("--all", *listen, "--json"), 5, None),
        (listen, 2, "--listen needs the models to serve"),
        (("org/good", "--all", *listen), 2, "name models or use --all, not both"),
        (("org/part", *listen), 7, "org/part is partial"),
        (("org/good@v9", *listen), 7, "org/good@v9 is missing"),
        (("nobody",), 7, "no such model"),
        (("org/good", "--listen", "nonsense"), 2, "not an address"),
        (("org/good", "--listen", "127.0.0.1:0", "--allow", "x"), 2, "not a network"),
        (("org/good", "--listen", "127.0.0.1:0", "--limit-rate", "0"), 2, "more than 0"),
        (("org/good", "--listen", "0.0.0.0:0"), 2, "a token is needed"),
        (("org/good", "--listen", "[::]:0"), 2, "a token is needed"),
        (("org/good", "--tls-key", "k"), 2, "belongs to --tls-cert"),
        (("org/good", "--tls-cert", "nowhere.pem"), 2, "cannot be used"),
        (("--include-gated",), 2, "needs the models to serve"),
    ):
        done = run_here("serve", *words)
        assert done.code == code, (words, done.err)
        assert text is None or text in done.err, words


def test_a_question_that_is_answered_with_no_serves_nothing(good: CacheBuilder) -> None:
    asked: list[list[str]] = []

    def no(models: tuple[package.ServeReport, ...]) -> bool:
        asked.append([model.repo for model in models])  # type: ignore[attr-defined]
        raise package.UnconfirmedError("no")

    cache = package.Cache(good.root)
    cache.confirm = no
    with pytest.raises(package.UnconfirmedError):
        cache.serve(listen="127.0.0.1:0", all=True)
    assert asked == [["org/good"]]


def test_an_address_that_is_taken_is_one_line(good: CacheBuilder) -> None:
    with serving(good.root, "org/good") as ask:
        done = run_here("serve", "org/good", "--listen", ask.address.rpartition("/")[2])
    assert (done.code, is_failure(done.err)) == (1, True)
    assert "cannot listen on 127.0.0.1" in done.err


def test_a_missing_package_is_one_line_and_exit_11(
    good: CacheBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else plain(name)
    )
    done = run_here("serve")
    assert (done.code, is_failure(done.err)) == (11, True)
    assert f"hint: {install_extra('serve')}\n" in done.err


def test_neither_help_nor_start_up_imports_what_serving_needs(vlmcache: Vlmcache) -> None:
    program = (
        "import sys\nfrom vlmcache.cli.main import main\n"
        "try:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'uvicorn', 'starlette', 'asyncio'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=vlmcache.environment,
        cwd=vlmcache.folder,
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() == "[]"


def test_the_first_lines_say_where_what_and_what_clients_need(
    good: CacheBuilder, token_file: Path
) -> None:
    server = package.Cache(good.root).serve(
        "org/good", listen="0.0.0.0:0", token_file=token_file, max_connections=10
    )
    with server as running:
        lines = running.start_lines()
    assert lines[0].startswith("Serving 1 model (")
    assert f"HF_ENDPOINT=http://{socket.gethostname()}:" in lines[1]
    assert "HF_TOKEN" in lines[1]
    assert "clear text" in lines[2]
    assert not any(TOKEN in line for line in lines)
    allowing = package.Cache(good.root).serve("org/good", listen="0.0.0.0:0", allow=["10.0.0.0/8"])
    with allowing as running:
        lines = running.start_lines()
    assert f"HF_ENDPOINT=http://{socket.gethostname()}:" in lines[1]
    assert "HF_HUB_DISABLE_IMPLICIT_TOKEN=1, or they send the token of their hub" in lines[1]
    closed = package.Cache(good.root).serve("org/good", listen="127.0.0.1:0")
    with closed as running:
        assert "nobody is sent their files without a token" in running.start_lines()[1]


def test_a_key_with_a_password_is_refused_with_the_command_that_writes_it_without(
    good: CacheBuilder, tmp_path: Path
) -> None:
    authority(tmp_path / "tls")
    key, plain = tmp_path / "tls/server.key", tmp_path / "tls/secret key"
    words = ["openssl", "pkey", "-in", str(key), "-out", str(plain), "-aes256"]
    subprocess.run([*words, "-passout", "pass:sesame"], check=True, capture_output=True)
    tls = ("--tls-cert", str(tmp_path / "tls/server.crt"), "--tls-key", str(plain))
    done = run_here("serve", "org/good", "--listen", "127.0.0.1:0", *tls)
    assert done.code == 2
    assert f"the key in {plain} is encrypted" in done.err
    hint = done.err.partition("without one: ")[2].strip()
    subprocess.run([*shlex.split(hint), "-passin", "pass:sesame"], check=True, capture_output=True)


def test_it_speaks_tls(good: CacheBuilder, token_file: Path, tmp_path: Path) -> None:
    import ssl
    import urllib.request

    made = authority(tmp_path / "tls")
    with package.Cache(good.root).serve(
        "org/good",
        listen="127.0.0.1:0",
        token_file=token_file,
        tls_cert=tmp_path / "tls/server.crt",
        tls_key=tmp_path / "tls/server.key",
    ) as running:
        assert running.address.startswith("https://")
        request = urllib.request.Request(
            f"{running.address}/org/good/resolve/main/config.json",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        trusting = ssl.create_default_context(cafile=str(made.certificate))
        with urllib.request.urlopen(request, context=trusting) as answer:
            assert answer.status == 200
