"""Who may ask: tokens, the `Host` that a request names, and the web page that it comes from.

A sidecar on loopback is open to the machine's own programs and closed to web pages that the machine's browser shows:
a page's requests carry an `Origin` or `Sec-Fetch-Site` of another site, and a page that lets its own name point to
127.0.0.1 (DNS rebinding) carries that name as `Host`. Anything wider than loopback needs a token.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from runmeter_exporter.http.problems import Problem

logger = logging.getLogger("runmeter.http")

WILDCARDS = frozenset({"", "0.0.0.0", "::", "*"})


class AccessError(ValueError):
    """A configuration that would let in whom nobody meant to let in; its text is one sentence for the operator."""


class Token:
    """A secret that requests must show: a value, or a file that may be rewritten while the server runs.

    A file holds one token a line and every line is good, so that a rotation may overlap: add the new one, move the
    clients, remove the old one. A file that cannot be read, or is empty, leaves the last known tokens in force.
    """

    def __init__(self, value: str | None = None, *, file: str | os.PathLike[str] | None = None) -> None:
        """Raises `AccessError` when there is no token in what was given."""
        if (value is None) == (file is None):
            raise AccessError("a token is given either as a value or as a file")
        self._path = None if file is None else Path(file)
        self._seen: tuple[int, int, int] | None = None
        self._complained = False
        self._lock = threading.Lock()
        self._digests: tuple[bytes, ...] = ()
        if value is not None:
            if not value.strip():
                raise AccessError("the token is empty; unset it to ask for none, or give one (openssl rand -hex 32)")
            self._digests = (_digest(value.strip()),)
        elif not self._reload() or not self._digests:
            raise AccessError(f"no token could be read from {self._path}: it is missing, unreadable or empty")

    def __repr__(self) -> str:
        return f"Token(file={os.fspath(self._path)!r})" if self._path else "Token(…)"

    def accepts(self, shown: str) -> bool:
        """Whether `shown` is a token in force; takes the same time whichever character of it is wrong."""
        if self._path is not None:
            with self._lock:
                self._reload()
        digest, good = _digest(shown), False
        for known in self._digests:
            good |= hmac.compare_digest(known, digest)
        return good

    def _reload(self) -> bool:
        """Read the file again if it changed; False when it cannot be read."""
        assert self._path is not None
        try:
            stat = os.stat(self._path)
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return True
            found = tuple(_digest(line.strip()) for line in self._path.read_text("utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            if not self._complained and self._digests:
                why = type(error).__name__
                logger.warning("token file %s: %s; the last known token stays in force", self._path, why)
            self._complained = True
            return False
        self._complained = False
        self._seen = seen
        self._digests = found or self._digests
        return True


class Access:
    """What one listener asks of a request. Pure but for a token file: the same headers give the same answer."""

    def __init__(
        self, token: Token | str | None = None, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()
    ) -> None:
        """`allowed_hosts`: the host listened on and what the operator added. Loopback is always allowed; `0.0.0.0` or
        `::` allows every address in digits (a name cannot hide behind one); `*.example.org` allows what is below it.
        Pages of `allowed_origins` may read (GET and HEAD), no more."""
        self.token = Token(token) if isinstance(token, str) else token
        hosts = {_bare(host) for host in allowed_hosts}
        self._any_address = bool(hosts & WILDCARDS)
        self._hosts = frozenset(hosts - WILDCARDS)
        self._any_host = "*" in hosts
        self.allowed_origins = frozenset(map(origin_of, allowed_origins))

    def check_host(self, host: str | None, http_1_0: bool = False) -> None:
        """Raises a 421 problem for a `Host` that is not ours; only HTTP/1.0 may leave it out."""
        if host is None:
            if http_1_0:
                return
            raise Problem(400, "The request has no Host header.")
        name = hostname(host)
        if name is None:
            raise Problem(400, "The Host header is not a host name or address with an optional port.")
        if not self.allows_host(name):
            raise Problem(
                421,
                f'This server does not answer to the host name "{name[:128]}". If it is yours, start it with '
                f"--allowed-host {name[:128]} (RUNMETER_ALLOWED_HOST).",
            )

    def allows_host(self, name: str) -> bool:
        """Whether a bare lower-case host name or address is one of ours."""
        if self._any_host or is_loopback(name) or name in self._hosts:
            return True
        if self._any_address and _address(name) is not None:
            return True
        return any(name.endswith(host[1:]) for host in self._hosts if host.startswith("*."))

    def check_origin(self, headers: Mapping[str, str], method: str) -> None:
        """Raises a 403 problem for a request that another site's page made. Following a link to us is no such request:
        the page it came from does not see the answer, and no page may frame it."""
        origin = headers.get("Origin")
        if origin is not None:
            if self._own_origin(origin, headers.get("Host", "")):
                return
            if self.may_read(origin) and method in ("GET", "HEAD"):
                return
            raise Problem(403, "A web page of another origin may not use this server.")
        site = headers.get("Sec-Fetch-Site", "none")
        if site in ("none", "same-origin"):
            return
        if headers.get("Sec-Fetch-Mode") == "navigate" and method in ("GET", "HEAD"):
            return
        raise Problem(403, "A web page of another site may not use this server.")

    def may_read(self, origin: str | None) -> bool:
        """Whether pages of this origin were allowed to read."""
        return origin in self.allowed_origins

    def _own_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        if parts.netloc.lower() == host.lower():
            return True
        # A proxy in front may change Host; the name the operator allowed is then the page's own. Loopback is not
        # taken at its word: another local port is another program.
        name = hostname(parts.netloc)
        return name is not None and not is_loopback(name) and name in self._hosts

    def check_token(self, authorization: str | None) -> None:
        """Raises a 401 problem unless the header shows the token, as Bearer or as the password of Basic."""
        if self.token is None or (authorization and self.token.accepts(_shown(authorization))):
            return
        how = "shows a token that is not in force" if authorization else "is missing"
        raise Problem(
            401,
            f"The Authorization header {how}. Send Bearer with the token, or Basic with it as the password.",
            {"WWW-Authenticate": 'Bearer realm="runmeter"'},
        )


def origin_of(text: str) -> str:
    """An origin as browsers write it. Raises `AccessError` for what is none; no wildcard: each page is named."""
    said = text.strip().removesuffix("/").lower()
    scheme, separator, place = said.partition("://")
    host, colon, port = place.rpartition(":") if re.search(r":[0-9]*$", place) else (place, "", "")
    if scheme not in ("http", "https") or not separator or hostname(place) is None or (colon and not port):
        raise AccessError(
            f"{text!r} is not the origin of a page: write https://HOST or https://HOST:PORT, without a path; "
            "a wildcard or null would let any page read"
        )
    usual = {"http": "80", "https": "443"}[scheme]
    return f"{scheme}://{host}" if port in ("", usual) else f"{scheme}://{host}:{port}"


def require_token(
    listen_host: str, token: Token | str | None, variable: str, allow_unauthenticated: bool = False
) -> None:
    """Raises `AccessError` when others than this machine could reach `listen_host` and would need no token.

    `variable` is the environment variable that would give it (RUNMETER_READ_TOKEN, RUNMETER_INGEST_TOKEN).
    """
    if token is None and not allow_unauthenticated and not is_loopback(_bare(listen_host)):
        raise AccessError(
            f"listening on {listen_host or '0.0.0.0'} would let anybody who reaches it in: set {variable} (or "
            f"{variable}_FILE), listen on 127.0.0.1, or say --allow-unauthenticated"
        )


def is_loopback(host: str) -> bool:
    """Whether the name or address (no port) can only mean this machine; names are not resolved, `localhost` is."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    if address is None:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def hostname(host: str) -> str | None:
    """The name in a Host header, lower-case and without port and brackets; None when it is not one."""
    name, port = host, ""
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or _address(name) is None:
            return None
        port = rest[1:]
    elif ":" in host:
        name, _, port = host.partition(":")
    name = name.lower().rstrip(".")
    if not name or (port and not (port.isascii() and port.isdigit())) or len(name) > 253:
        return None
    if _address(name) is None and not all(c.isascii() and (c.isalnum() or c in "-._") for c in name):
        return None
    return name


def _bare(host: str) -> str:
    return host.strip().lower().removeprefix("[").removesuffix("]")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _shown(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _digest(text: str) -> bytes:
    # Compared as digests so that lengths, too, are equal.
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
