"""A hub's address and its user: what every request needs to know.

The session, its proxies and its headers are huggingface_hub's own.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.config import Environment, side_caches
from vlmcache.errors import OfflineError, UsageError
from vlmcache.hub import library as clients
from vlmcache.hub import settings


class Library(NamedTuple):
    """huggingface_hub's session, and the HTTP library that it belongs to: httpx or httpx2."""

    session: Any
    http: Any
    headers: dict[str, str]
    answer_timeout: float
    data_timeout: float

    @property
    def secret(self) -> str:
        """The token that is sent, or an empty string."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        return headers.get("authorization", "").partition(" ")[2]


class Account:
    """A hub's address, and the token that is sent to it.

    Args:
        environment: the variables to use; those of a `.env` are passed on to huggingface_hub,
            which reads its variables when it is imported.
        token: used instead of the one that huggingface_hub finds. A hub that a `.env` names gets
            only the token of the same `.env`.

    Raises:
        UsageError: what was given as a token cannot be one. What the environment says is judged
            when the first request is made: without one, it does not matter.
    """

    def __init__(self, environment: Environment, token: str | None = None) -> None:
        self.environment = environment
        self.endpoint = settings.endpoint_of(environment)
        self.token: str | Literal[False] | None = None if token is None else _checked(token)
        if token is None and self.named_by_folder:
            # The working folder may be anybody's, so its hub does not get the user's token.
            given = environment.get("HF_TOKEN") if "HF_TOKEN" in environment.from_file else None
            self.token = given.strip() if given else False
        log.hide(self.token or "")

    @property
    def named_by_folder(self) -> bool:
        """Whether a `.env` chose the hub, and chose another than the usual one."""
        chosen = "HF_ENDPOINT" in self.environment.from_file
        return chosen and self.endpoint != settings.DEFAULT_ENDPOINT

    @property
    def offline(self) -> bool:
        """Whether the network is switched off."""
        return self.environment.offline_by is not None

    def check_online(self) -> None:
        """Make sure that the network is not switched off.

        Raises:
            OfflineError: it is switched off.
        """
        if self.offline:
            raise OfflineError(
                f"{self.environment.offline_by} is set: {self.name} is not contacted",
                "unset it to download",
            )

    @cached_property
    def library(self) -> Library:
        """What is used of huggingface_hub, which is imported when the first request is made.

        Raises:
            SettingError: it cannot be built as the environment asks.
        """
        return settings.built(self.environment, self._build)

    def _build(self) -> Library:
        if "HF_HOME" in self.environment.from_file:
            # It moves the cache of models, but the side caches stay where the process has them.
            for variable, name in (("HF_XET_CACHE", "xet"), ("HF_MODULES_CACHE", "modules")):
                os.environ.setdefault(variable, side_caches(self.environment)[name])
        for variable in self.environment.from_file:
            os.environ[variable] = self.environment.variables[variable]
        headers = clients.headers(self.token)
        library = Library(*clients.session(), headers, *clients.timeouts())
        # Also a token that huggingface_hub finds is kept out of messages.
        log.hide(library.secret)
        return library

    @property
    def headers(self) -> dict[str, str]:
        """What is sent to the hub itself with every request, the token included."""
        return self.library.headers

    @property
    def how_to_log_in(self) -> str:
        """What to do to get access."""
        if self.named_by_folder:
            return "give --token: a .env names this hub, so your own token is not sent to it"
        if self.endpoint != settings.DEFAULT_ENDPOINT:
            return f"set HF_TOKEN to a token of {self.name}"
        return "log in: 'hf auth login', HF_TOKEN or --token"

    @property
    def how_to_renew(self) -> str:
        """What to do if the hub does not accept the token."""
        if self.endpoint != settings.DEFAULT_ENDPOINT:
            return self.how_to_log_in
        return (
            "make a new one at https://huggingface.co/settings/tokens, then use 'hf auth login', "
            "HF_TOKEN or --token"
        )

    @property
    def name(self) -> str:
        """The hub's address for people, without a password that it may carry."""
        parts = settings.address(self.endpoint)
        if parts is None:
            return log.address_without_login(self.endpoint)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def within(self, address: str) -> str:
        """Return the address of a next page, at the hub's own origin whatever the address says.

        A mirror can pass on the links of the hub behind it.
        """
        own, parts = urlsplit(self.endpoint), urlsplit(urljoin(self.endpoint + "/", address))
        path = parts.path if parts.path.startswith(own.path + "/") else own.path + parts.path
        return parts._replace(scheme=own.scheme, netloc=own.netloc, path=path).geturl()

    def api(self, repo: str, *parts: str, query: str = "") -> str:
        """Return the address of a question to the API about a repo, given by its name."""
        kind, repo_id = layout.split_name(repo)
        path = "/".join(quote(part, safe="") for part in parts)
        address = f"{self.endpoint}/api/{kind}s/{quote(repo_id)}/{path}"
        return address + (f"?{query}" if query else "")

    def file_address(self, repo: str, commit: str, file: str) -> str:
        """Return the address of a file of a repo, given by its name."""
        return f"{self.endpoint}/{quote(repo)}/resolve/{commit}/{quote(file)}"


def _checked(token: str) -> str:
    """Return a token without the white space that files and pasting leave around it.

    Raises:
        UsageError: it cannot be a token; the message does not repeat it.
    """
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise UsageError(
            "the token is empty or holds characters that no token has",
            "give it as https://huggingface.co/settings/tokens shows it",
        )
    return token
