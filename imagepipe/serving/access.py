"""Callers, host names and web pages that ``imagepipe serve`` and ``imagepipe dashboard`` answer; their certificate."""

import base64
import binascii
import hmac
import ipaddress
import re
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from imagepipe.base.errors import ConfigError
from imagepipe.serving.credentials import check_certificate, find_exposed, read_token

_OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]|\*", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s*]+|\*", re.IGNORECASE)
_HOST_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]*)?")
_MAX_QUOTED = 200  # characters of a header
_READING = ("GET", "HEAD", "OPTIONS")
_OWN_HEADERS = ("Inference-Header-Content-Length", "X-Request-Id")  # of requests and answers
_OTHER_SITES = ("cross-site", "same-site")  # same-site: another host of the same domain


@dataclass(frozen=True)
class Access:
    """Callers, host names and web pages that a server answers, and its certificate. By default all, without TLS.

    Attributes:
        token: callers have to send it with each request; None if they need not.
        certificate: file in PEM with the server's certificate; None for HTTP without TLS.
        key: file in PEM with the certificate's private key.
        hosts: names of the server, ``*.example.com`` for all below one. Empty for this machine's own names if it is
            only reached from here, and for any name otherwise.
        origins: web pages of these origins (``https://app.example.com``) may ask, ``*`` for all.
    """

    token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()

    @property
    def scheme(self) -> str:
        """``https`` or ``http``."""
        return "https" if self.certificate else "http"


EVERYBODY = Access()
"""The default."""


def read_access(
    token_file: Path | None, certificate: Path | None, key: Path | None, hosts: Sequence[str], origins: Sequence[str]
) -> Access:
    """Reads and checks what a user gave.

    Args:
        token_file: a file with the token.
        certificate: see ``Access``; the others likewise.
        key: see ``Access``; by default the certificate's file.
        hosts: see ``Access``.
        origins: see ``Access``.

    Raises:
        ConfigError: if a file can't be used, or a name is none.
    """
    if key and not certificate:
        raise ConfigError(f"--key {key} needs the certificate of this key: --certificate FILE")
    if certificate:
        key = key or certificate
        check_certificate(certificate, key)
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"--allow-host {host}: expected a name such as models.example.com, no scheme, no port")
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"--allow-origin {origin}: expected an origin such as https://app.example.com, no path")
    token = read_token(token_file) if token_file else None
    return Access(token, certificate, key, tuple(hosts), tuple(origin.lower() for origin in origins))


def list_risks(access: Access, host: str, token_file: Path | None) -> list[str]:
    """Returns a line per risk that a user should know of.

    Args:
        access: the callers that the server answers.
        host: the address that it listens on.
        token_file: the file that the token is from.
    """
    risks = list(find_exposed(token_file, access.key))
    if not access.token and not is_loopback(host):
        risks.append(f"everybody who reaches {host or 'this machine'} is answered: there is no --token-file")
    return risks


def is_loopback(host: str) -> bool:
    """Returns whether a server that listens on an address is reached from this machine only."""
    addresses = _find_addresses(host)
    return bool(addresses) and all(address.is_loopback for address in addresses)


def _find_addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Returns the addresses of a name, or an address itself; none if there is no such host."""
    try:
        return [ipaddress.ip_address(address[4][0]) for address in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):  # which is reported when it can't be listened on
        return []


def may_read(method: str, path: str, open_paths: Collection[str]) -> bool:
    """Returns whether a request needs no token: what is sent to an open path does, as a prediction may be there."""
    return method in ("GET", "HEAD") and path in open_paths


class Guard:
    """Answers instead of an application if the host, the web page or the caller may not ask it."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        host: str,
        open_paths: Collection[str] = (),
        login: Literal["Bearer", "Basic"] = "Bearer",
    ):
        """Wraps an application.

        Args:
            app: the application.
            access: the callers that it answers.
            host: the address that it listens on, or its name, as the user gave it.
            open_paths: paths that everybody may read: health probes have no token, and the pod's address for a host.
            login: how a caller is asked for the token. By ``Basic`` a browser asks its user for it as a password, and
                then sends it with each request, so that a site with changing requests must not do this.
        """
        self._app, self._access, self._open, self._login = app, access, frozenset(open_paths), login
        guarded: ASGIApp = self._check_caller
        if access.origins:
            guarded = CORSMiddleware(
                guarded,
                allow_origins=access.origins,
                allow_methods=("GET", "HEAD", "POST"),
                allow_headers=("Authorization", "Content-Encoding", *_OWN_HEADERS),
                expose_headers=("Retry-After", "WWW-Authenticate", *_OWN_HEADERS),
            )
        addresses = _find_addresses(host)
        own = [*_OWN_NAMES, host, *(f"[{x}]" if x.version == 6 else str(x) for x in addresses)]
        hosts = [*own, *access.hosts] if access.hosts or is_loopback(host) else ["*"]
        self._hosts = [name.lower() for name in hosts]
        self._guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http" or may_read(scope["method"], scope["path"], self._open):
            await self._app(scope, receive, send)
        elif not self._has_name(host := Headers(scope=scope).get("host", "")):
            message = f"this server doesn't answer to the name {host[:_MAX_QUOTED]!a} (--allow-host)"
            await _build_refusal(scope, "unknown_host", message, 400)(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)

    def _has_name(self, host: str) -> bool:
        """Returns whether the server has the name that a header gives it."""
        if "*" in self._hosts:
            return True
        match = _HOST_HEADER.fullmatch(host.lower())
        return match is not None and any(
            match[1].endswith(name[1:]) if name.startswith("*.") else match[1] == name for name in self._hosts
        )

    async def _check_caller(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        answering = self._app
        if self._is_foreign(scope["method"], headers):
            origin = headers.get("origin", "")[:_MAX_QUOTED].lower()
            message = f"pages of {origin!a} may not ask this server (--allow-origin)"
            answering = _build_refusal(scope, "foreign_page", message, 403)
        elif reason := find_refusal(self._access, headers, self._login):
            asked = {"WWW-Authenticate": f'{self._login} realm="imagepipe"'}
            answering = _build_refusal(scope, "unauthenticated", reason, 401, asked)
        await answering(scope, receive, send)

    def _is_foreign(self, method: str, headers: Headers) -> bool:
        """Returns whether a web page of another site sends it by its reader's browser, even if it can read no answer.

        Browsers tell it by Sec-Fetch-Site (https://www.w3.org/TR/fetch-metadata), but only to https:// and to this
        machine; with other requests that are not reading, the origin of the page is not the host that is asked.
        """
        origin, site = headers.get("origin", "").lower(), headers.get("sec-fetch-site")
        is_other = bool(origin) and origin.partition("://")[2] != headers.get("host", "").lower()
        is_foreign = method not in _READING and (site in _OTHER_SITES if site else is_other)
        return is_foreign and {origin, "*"}.isdisjoint(self._access.origins)


def _build_refusal(
    scope: Scope, reason: str, message: str, status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Returns the answer to a request that is refused, and leaves the reason for who counts."""
    scope.setdefault("state", {})["refusal"] = reason
    return JSONResponse({"error": message}, status, headers)


def find_refusal(access: Access, headers: Mapping[str, str], login: Literal["Bearer", "Basic"]) -> str | None:
    """Returns why a caller who sends these headers (names in small letters) may not ask; None if it may."""
    if not access.token:
        return None
    shown = _read_credentials(headers, login)
    if shown is not None and hmac.compare_digest(shown, access.token.encode()):  # in constant time
        return None
    return "a token is needed: Authorization: Bearer TOKEN" if shown is None else "the token is wrong"


def _read_credentials(headers: Mapping[str, str], login: str) -> bytes | None:
    """Returns the token that a caller shows; None if there is none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    credentials = credentials.strip()
    if scheme.lower() == "bearer":
        return credentials.encode()
    if scheme.lower() == "basic" and login == "Basic":
        try:
            return base64.b64decode(credentials, validate=True).partition(b":")[2]  # after the user's name
        except (binascii.Error, ValueError):
            return None
    return None
