"""How the files of providers are reached: GDAL's options, signatures, keys from the environment.

Rows are chosen by the address of a file, so that items of any origin are read the same way. Options
travel with each read; nothing global is set, and no secret is put into a graph: keys and tokens are
looked up where a file is read.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import requests

__all__ = [
    "ACCESS",
    "Access",
    "BlobSigner",
    "Signer",
    "find_access",
    "hide_secrets_in_logs",
    "without_secrets",
]

Signer = Callable[[str], str]
"""Turns an address into one that may be read now."""

_TOKEN_TIMEOUT_S = 30
_TOKEN_MARGIN_S = 300
_NOT_THEIRS = (400, 404)
"""What the token service answers for an account that it does not know."""
# What reading Cloud-Optimized GeoTIFFs needs: no listing of folders (10 requests fewer for each
# file), the header of a large one in one request, ranges over one connection.
_HTTP: Mapping[str, str] = MappingProxyType(
    {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
        "GDAL_HTTP_VERSION": "2TLS",
    }
)


@dataclass(frozen=True)
class BlobSigner:
    """Signs addresses of a provider's blob storage with tokens that it hands out.

    A token is kept until five minutes before it ends, one for each container and process.

    Parameters
    ----------
    endpoint : str
        Address of the service; it answers at ``endpoint/token/account/container``.
    key_variable : str
        Environment variable of a subscription key, sent along where it is set.
    endpoint_variable : str
        Environment variable of an address that takes the place of ``endpoint/token``.
    """

    endpoint: str
    key_variable: str = ""
    endpoint_variable: str = ""

    def __call__(self, href: str) -> str:
        """Return an address with a valid token, or its own as long as that is good.

        Raises
        ------
        OSError
            If the service gives none.
        """
        bare, _, query = href.partition("?")
        # A signature of somebody else's is good until it is refused.
        if "sig=" in query and href not in _REFUSED:
            return href
        account, container = _container(href)
        token = self._token(account, container)
        return f"{bare}?{token}" if token else href

    def renew(self, href: str) -> None:
        """Forget the token of an address, if it is still the one that the address bears."""
        key = (self.endpoint, *_container(href))
        with _TOKEN_LOCK:
            known = _TOKENS.get(key)
            if known and known[0] and href.endswith(known[0]):
                del _TOKENS[key]
            else:
                _REFUSED.add(href)

    def _token(self, account: str, container: str) -> str:
        key = (self.endpoint, account, container)
        # One request, however many threads need the token at once.
        with _TOKEN_LOCK:
            token, end = _TOKENS.get(key, ("", 0.0))
            if time.time() > end - _TOKEN_MARGIN_S:
                token, end = self._ask(account, container)
                _TOKENS[key] = (token, end)
            return token

    def _ask(self, account: str, container: str) -> tuple[str, float]:
        headers = {}
        if self.key_variable and (secret := os.environ.get(self.key_variable)):
            headers["Ocp-Apim-Subscription-Key"] = secret
        base = os.environ.get(self.endpoint_variable) if self.endpoint_variable else None
        url = f"{(base or f'{self.endpoint}/token').rstrip('/')}/{account}/{container}"
        answer = requests.get(url, headers=headers, timeout=_TOKEN_TIMEOUT_S)
        if answer.status_code in _NOT_THEIRS:
            return "", math.inf
        answer.raise_for_status()
        document = answer.json()
        end = datetime.fromisoformat(document["msft:expiry"]).replace(tzinfo=UTC)
        return document["token"], end.timestamp()


_TOKENS: dict[tuple[str, str, str], tuple[str, float]] = {}
_REFUSED: set[str] = set()
"""Addresses with a signature of their own that was refused."""
_TOKEN_LOCK = threading.Lock()


def _container(href: str) -> tuple[str, str]:
    parts = urlsplit(href)
    return parts.netloc.partition(".")[0], parts.path.lstrip("/").partition("/")[0]


@dataclass(frozen=True)
class Access:
    """How files under some addresses are read.

    Attributes
    ----------
    pattern : str
        Regular expression that the start of an address matches.
    options : mapping of str to str
        GDAL's configuration options, none of them secret.
    signer : BlobSigner or None
        Signs addresses before they are read.
    needs : tuple of str
        Environment variables of keys that GDAL reads by itself.
    token_variable : str
        Environment variable of a bearer token, used with an item's alternate address over https
        where the keys are not set.
    """

    pattern: str
    options: Mapping[str, str] = field(default_factory=dict)
    signer: BlobSigner | None = None
    needs: tuple[str, ...] = ()
    token_variable: str = ""

    def choose(self, href: str, alternate: str | None) -> tuple[str, dict[str, str]]:
        """Return the address to read and GDAL's options, by the keys that this process has.

        Raises
        ------
        PermissionError
            If the files need keys, and there are none in the environment.
        """
        options = {**_HTTP, **self.options}
        if self.needs and not _has_keys(self.needs):
            token = os.environ.get(self.token_variable) if self.token_variable else None
            if token is None or alternate is None:
                other = f", or {self.token_variable}" if self.token_variable else ""
                raise PermissionError(
                    f"its provider asks for keys: set {' and '.join(self.needs)}{other} in the "
                    "environment of every process that reads"
                )
            return alternate, options | {"GDAL_HTTP_HEADERS": f"Authorization: Bearer {token}"}
        return href, options


def _has_keys(needs: tuple[str, ...]) -> bool:
    """Whether GDAL can find keys by itself: in the environment, a profile, or a role."""
    if all(os.environ.get(name) for name in needs) or any(map(os.environ.get, _OTHER_KEYS)):
        return True
    return Path.home().joinpath(".aws", "credentials").is_file()


_OTHER_KEYS = (
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)  # fmt: skip
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

ACCESS: tuple[Access, ...] = (
    Access(
        r"s3://sentinel-s[12]-l1c/|s3://sentinel-s2-l2a/",
        {"AWS_REQUEST_PAYER": "requester", "AWS_REGION": "eu-central-1"},
        needs=_AWS_KEYS,
    ),
    Access(
        r"s3://copernicus-dem-[39]0m/",
        {"AWS_NO_SIGN_REQUEST": "YES", "AWS_REGION": "eu-central-1"},
    ),
    Access(
        r"s3://sentinel-cogs/|s3://e84-earth-search-sentinel-data/|s3://sentinel-s1-rtc-indigo/",
        {"AWS_NO_SIGN_REQUEST": "YES", "AWS_REGION": "us-west-2"},
    ),
    Access(
        r"s3://eodata/",
        {
            "AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_HTTPS": "YES",
        },
        needs=_AWS_KEYS,
        token_variable="CDSE_TOKEN",
    ),
    Access(
        r"https://[a-z0-9]+\.blob\.core\.windows\.net/",
        signer=BlobSigner(
            "https://planetarycomputer.microsoft.com/api/sas/v1",
            "PC_SDK_SUBSCRIPTION_KEY",
            "PC_SDK_SAS_URL",
        ),
    ),
    Access(r""),
)
"""The first row whose pattern fits an address is taken; the last one fits all."""


def find_access(href: str) -> Access:
    """Return how a file is read."""
    return next(row for row in ACCESS if re.match(row.pattern, href))


_SECRETS = (
    (r"\?[\w.~-]+=[^\s'\",]*", "?…"),
    (r"(?i)\b(sig|signature|x-amz-[a-z-]+|awsaccesskeyid|(?:access_)?token|api_?key)=[^\s&'\",]+",
     r"\1=…"),
    (r"(?i)\b(bearer|basic) [\w.~+/=-]+", r"\1 …"),
    (r"(?i)(ocp-apim-subscription-key['\"]?: *['\"]?)[^\s'\",]+", r"\1…"),
    (r"://[^\s/@:'\"]+:[^\s/@'\"]+@", "://…@"),
)  # fmt: skip


def without_secrets(message: Any) -> str:
    """Return a message without the signatures, tokens and passwords of the addresses in it."""
    text = str(message)
    for pattern, replacement in _SECRETS:
        text = re.sub(pattern, replacement, text)
    return text


class _SecretFilter(logging.Filter):
    """Takes secrets out of what libraries log: GDAL's messages hold the address that was read."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (told := without_secrets(message)) != message:
            record.msg, record.args = told, ()
        return True


_FILTER = _SecretFilter()


def hide_secrets_in_logs() -> None:
    """Take secrets out of the logs of rasterio and urllib3, in this process.

    A filter counts for its own logger only, so that each of a library's loggers gets it.
    """
    _filter_loggers(len(logging.root.manager.loggerDict))


@functools.lru_cache(maxsize=1)
def _filter_loggers(known: int) -> None:
    """Filter the loggers that there are, of which `known` is the number: once until there are more."""
    for name in [*_LOGGERS, *logging.root.manager.loggerDict]:
        if name.partition(".")[0] in ("rasterio", "urllib3", "fiona"):
            logging.getLogger(name).addFilter(_FILTER)


_LOGGERS = ("rasterio", "rasterio._env", "rasterio._err", "urllib3.connectionpool")
