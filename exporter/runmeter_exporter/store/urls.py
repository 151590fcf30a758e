"""Database URLs: read and checked before anything is opened, and shown without their secrets.

A URL that would open another place than it seems to name, or a parameter that nobody knows, is refused with one line.
Messages name parameters and never repeat what may be a piece of a password. Neither SQLAlchemy nor psycopg is needed
here: an agent shows its URL without importing them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes

from runmeter_exporter.store import StoreError

FORMS = "sqlite:///FILE, postgresql://USER@HOST/NAME or memory://"
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")
_ESCAPED = {"%25": "%", "%3F": "?", "%23": "#"}
"""What a SQLite URL escapes; anything else in it means itself."""
_POSTGRES = re.compile(
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?(?P<hosts>[^@/?#]*)(?:/(?P<database>[^@?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST = re.compile(r"(?P<host>\[[^\]]*\]|/.*|[^:]*:[^:]*:.*|[^:]*)(?::(?P<port>[^:]*))?", re.DOTALL)
_SECRET = re.compile("(?:ssl)?password|oauth_client_secret|scram_(?:client|server)_key")
_PLAIN = re.compile(
    "(?:(?:host|hostaddr|port|dbname|user|service|passfile|connect_timeout|application_name|options|keepalives\\w*|"
    "tcp_user_timeout|client_encoding|target_session_attrs|load_balance_hosts|prepare_threshold|channel_binding|"
    "require_?\\w+|gss\\w+|krb\\w+|ssl(?!password)\\w+)=[^&]*(?:&|$))+"
)
"""Parameters that may be shown; what has another name may be a piece of a password that was not encoded."""


class PostgresPlace(NamedTuple):
    """What a PostgreSQL URL says: libpq's keywords, and after how many executions a statement is prepared."""

    keywords: dict[str, str | int]
    prepare_threshold: int | None
    """None: never. `PREPARE_UNSAID` where the URL leaves it open."""


PREPARE_UNSAID = -1


def scheme_of(url: str) -> tuple[str, str]:
    """(kind, driver) of a URL, as ("postgresql", "psycopg"); StoreError for what is no URL."""
    scheme, there, _ = url.partition("://")
    kind, _, driver = scheme.partition("+")
    if not there or not re.fullmatch(r"\w+", kind):
        raise StoreError(f"the database URL is none; write {FORMS}")
    return kind, driver


def sqlite_url(path: str | os.PathLike[str]) -> str:
    """The URL of a SQLite file with this name."""
    name = os.fspath(path)
    return "sqlite:///" + re.sub("%(?=[0-9A-Fa-f]{2})|[?#]", lambda found: quote(found[0], safe=""), name)


def sqlite_path(url: str) -> str:
    """The file that a SQLite URL names; StoreError for one that names none, or might name two."""
    rest = url.partition("://")[2]
    if not rest.startswith("/"):
        raise StoreError(
            "a SQLite URL has three slashes before a relative file name and four before an absolute one; "
            f"write {FORMS}"
        )
    name, asked, parameters = rest[1:].partition("?")
    if asked:
        raise StoreError(
            f"the SQLite URL has something after its ? ({parameters[:40]!r}), and runmeter takes no parameters there; "
            "a ? in a file's name is written %3F"
        )
    for escape in _ESCAPE.findall(name):
        if escape.upper() not in _ESCAPED:
            raise StoreError(
                f"the SQLite URL has {escape}, which may stand for itself or for a character; write the character "
                f"itself, or %25{escape[1:]} for a file whose name holds {escape}"
            )
    path = _ESCAPE.sub(lambda found: _ESCAPED[found[0].upper()], name)
    if path in ("", ":memory:"):
        raise StoreError("SQLite in memory is another database for each connection; use memory:// or a file")
    if "\0" in path:
        raise StoreError("the SQLite URL has a NUL character, which no file's name can hold")
    return path


def postgres_place(url: str, known: Collection[str]) -> PostgresPlace:
    """A PostgreSQL URL as libpq's keywords, of which `known` are; StoreError naming what is wrong.

    Several hosts are written as libpq does (`HOST:PORT,HOST:PORT`) or as SQLAlchemy does (`?host=HOST:PORT` for each).
    """
    found = _POSTGRES.fullmatch(url.partition("://")[2])
    if found is None:
        raise StoreError(
            "the PostgreSQL URL cannot be read: in a user's name or a password write @ as %40, / as %2F, ? as %3F, "
            "# as %23, : as %3A and % as %25"
        )
    keywords: dict[str, str | int] = {}
    for name, part in (("user", "user"), ("password", "password"), ("dbname", "database")):
        if found[part]:
            keywords[name] = _decoded(found[part], name)
    hosts = [_decoded(host, "host") for host in found["hosts"].split(",")] if found["hosts"] else []
    query = found["query"] or ""
    try:
        asked, threshold = _parameters(query, known, keywords)
    except StoreError:
        if "@" not in query and not _SECRET.search(unquote(query)):
            raise
        # Perhaps a piece of a password that was not encoded: nothing of it may be repeated.
        raise StoreError(
            "the PostgreSQL URL's parameters cannot all be read; in a password write ? as %3F, & as %26 and @ as %40"
        ) from None
    if hosts or asked:
        _place(keywords, asked or hosts)
    return PostgresPlace(keywords, threshold)


def shown(url: str) -> str:
    """A database URL as people may see it: without a password, and printable."""
    scheme, there, rest = url.partition("://")
    if there and not scheme.startswith("sqlite"):
        place, asked, query = rest.partition("?")
        found = _POSTGRES.fullmatch(place)
        if found is None or ("@" in query and found["user"] is None and not _PLAIN.fullmatch(query)):
            # No reader will take it; whatever it is, nothing before its last @ is said.
            place, asked, query = re.sub(r"^([^:/@]*):.*@", r"\1:***@", rest, flags=re.DOTALL).partition("?")
        elif found["password"] is not None:
            place = f"{found['user']}:***@{place[found.end('password') + 1 :]}"
        rest = place + asked + "&".join(map(_masked, query.split("&")))
    return (scheme + there + rest).encode("utf-8", "backslashreplace").decode()


def _masked(parameter: str) -> str:
    if not parameter or _PLAIN.fullmatch(parameter):
        return parameter
    name = parameter.partition("=")[0]
    return f"{name}=***" if _SECRET.fullmatch(unquote(name)) else "***"


def _parameters(query: str, known: Collection[str], keywords: dict[str, str | int]) -> tuple[list[str], int | None]:
    """Its hosts and threshold; all other parameters become keywords."""
    hosts: list[str] = []
    threshold: int | None = PREPARE_UNSAID
    seen: set[str] = set()
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "host":
            hosts += value.split(",")
            continue
        if name in seen:
            raise StoreError(f"the PostgreSQL URL has the parameter {name[:40]} twice")
        seen.add(name)
        if name == "prepare_threshold":
            threshold = _threshold(value)
        elif name in known:
            keywords[name] = _RULES.get(name, _text)(name, value)
        else:
            raise StoreError(
                f"the PostgreSQL URL has a parameter that neither libpq nor runmeter knows: {name[:40]!r}; those of "
                "libpq (sslmode, connect_timeout, application_name, options, target_session_attrs, …) and "
                "prepare_threshold may stand there"
            )
    return hosts, threshold


def _decoded(text: str, what: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise StoreError(f"the PostgreSQL URL's {what} is percent-encoded, but not in UTF-8") from None


def _place(keywords: dict[str, str | int], places: list[str]) -> None:
    """Hosts and ports as libpq takes them: two lists of one length."""
    hosts, ports = [], []
    for place in places:
        found = _HOST.fullmatch(place)
        port = "" if found is None else found["port"] or ""
        if found is None or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
            raise StoreError(
                "the PostgreSQL URL's hosts cannot be read: HOST, HOST:PORT or [IPV6]:PORT, several with commas, and "
                "ports from 1 to 65535; in a password before them write / as %2F, ? as %3F, # as %23 and @ as %40"
            )
        hosts.append(found["host"].strip("[]"))
        ports.append(port)
    if any(hosts):
        keywords["host"] = ",".join(hosts)
    if any(ports):
        keywords["port"] = ",".join(ports)


def _threshold(value: str) -> int | None:
    if value.lower() in ("none", "off", "never") or value == "0":
        return None
    if not value.isdecimal():
        raise StoreError(
            f"prepare_threshold={value[:40]} in the PostgreSQL URL is no number of executions; none or 0 prepares no "
            "statement, 5 prepares each at its fifth execution"
        )
    return int(value)


def _number(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) > 2**31 - 1:
        raise StoreError(f"{name}={value[:40]} in the PostgreSQL URL is no whole number")
    return int(value)


def _text(name: str, value: str) -> str:
    if "\0" in value:
        raise StoreError(f"{name} in the PostgreSQL URL has a NUL character")
    return value


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def check(name: str, value: str) -> str:
        if value not in choices:
            raise StoreError(f"{name}={value[:40]} in the PostgreSQL URL is none of {', '.join(choices)}")
        return value

    return check


_RULES: dict[str, Callable[[str, str], str | int]] = {
    **dict.fromkeys(
        ("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
         "tcp_user_timeout"),
        _number,
    ),
    "sslmode": _one_of("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": _one_of("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": _one_of("disable", "random"),
}  # fmt: skip
"""libpq finds these only when it connects, and an agent would take that for a database that is away."""
