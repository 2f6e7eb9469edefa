"""Validate the fields of connectors."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import idna

from mail.connectors.remote_server import BY_TOKEN, MECHANISMS, PORTS
from mail.mailboxes import paths
from mail.network import outbound_http
from mail.network.outbound_http import check_outside, host_of
from mail.text.bounded_regex import Expression
from models.connectors import Protocol, Security
from models.errors import Invalid
from models.runtime.options import Options
from resolvers import sql_text
from resolvers.connectors import options as connector_options

NAME = 255  # characters
SECRET = 8192  # characters: tokens are long
SCOPE = 1000  # characters
LEAST = timedelta(minutes=4)  # between two runs; more than that
MOST = timedelta(days=30)
AGE = timedelta(days=36_500)
PATIENCE = (timedelta(seconds=1), timedelta(hours=1))
REWRITES = 50
POP3 = frozenset({"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"})

Values = dict[str, Any]


def checked(given: Mapping[str, Any], before: Mapping[str, Any], options: Options) -> Values:
    """Return the given columns in stored form, checked together with the stored ones.

    Raises Invalid.
    """
    values: Values = {}
    for name, value in given.items():
        values[name] = _FIELDS[name](value, options) if name in _FIELDS else value
    whole = {**before, **values}
    if whole["protocol"] not in (Protocol.IMAP, Protocol.POP3):
        raise Invalid("IMAP or POP3", constraint="unsupported", path=["protocol"])
    pop = whole["protocol"] is Protocol.POP3
    values["custom_options"] = connector_options.checked(whole.get("custom_options") or (), pop=pop)
    moved = whole["protocol"], whole["security"]
    if whole.get("port") is None or ("port" not in values and moved != _way(before)):
        values["port"] = PORTS[moved]
    _together(whole, options)
    if not whole.get("name"):
        values["name"] = f"{whole['username']}@{whole['host']}"[:NAME]
    return values


def _way(before: Mapping[str, Any]) -> tuple[Any, Any]:
    return before.get("protocol"), before.get("security")


def _together(whole: Mapping[str, Any], options: Options) -> None:
    """Raise Invalid if fields exclude each other."""
    if whole["security"] is Security.PLAIN and not options.connectors_private:
        text = "without encryption only where MERGANSER_CONNECTORS_PRIVATE is set"
        raise Invalid(text, constraint="security", path=["security"])
    pop = whole["protocol"] is Protocol.POP3
    if pop and whole["mechanism"] not in POP3:
        text = f"POP3 takes {', '.join(sorted(POP3))}"
        raise Invalid(text, constraint="unsupported", path=["authMechanism"])
    if whole.get("oauth") and whole["mechanism"] not in BY_TOKEN:
        text = f"of {' and '.join(sorted(BY_TOKEN))} alone"
        raise Invalid(text, constraint="exclusive", path=["oauth"])
    if pop and whole.get("mirror_deletes"):
        text = "POP3 does not tell what was deleted by whom"
        raise Invalid(text, constraint="unsupported", path=["mirrorDeletes"])
    if whole.get("mirror_deletes") and whole.get("source_retention") is not None:
        text = "what is deleted elsewhere after it came would be deleted here: one of both"
        raise Invalid(text, constraint="exclusive", path=["mirrorDeletes"])


def _host(value: str, options: Options) -> str:
    try:
        host = host_of(value.strip())
    except (idna.IDNAError, UnicodeError):
        host = ""
    if not host or len(host) > NAME or not all(sign.isalnum() or sign in ".-:" for sign in host):
        raise Invalid("the name of a host, or its address", constraint="host", path=["host"])
    check_outside(host, private=options.connectors_private, path=["host"])
    return host


def _port(value: int | None, _options: Options) -> int | None:
    if value is not None and not 0 < value < 1 << 16:
        raise Invalid("1 to 65535", constraint="range", path=["port"])
    return value


def _name(value: str | None, _options: Options) -> str:
    return sql_text.checked(value or "", most=NAME, path=["name"]) or ""


def _username(value: str, _options: Options) -> str:
    if not value or len(value) > NAME or not value.isprintable():
        raise Invalid(f"1 to {NAME} characters", constraint="length", path=["username"])
    return value


def secret(value: str, *path: str) -> str:
    """Return a password or token. Raises Invalid unless it is one line of 1 to 8,192 characters."""
    if not value or len(value) > SECRET or any(sign in value for sign in "\r\n\0"):
        text = f"1 to {SECRET} characters on one line"
        raise Invalid(text, constraint="length", path=path or ["password"])
    return value


def _mechanism(value: str, _options: Options) -> str:
    if value.upper() not in MECHANISMS:
        text = f"one of {', '.join(MECHANISMS)}"
        raise Invalid(text, constraint="unknown", path=["authMechanism"])
    return value.upper()


def _oauth(value: Mapping[str, Any] | None, options: Options) -> dict[str, Any] | None:
    """Return token endpoint, client and scope, without the client secret. Raises Invalid."""
    if value is None:
        return None
    outbound_http.target(
        value["token_url"], private=options.connectors_private, path=["oauth", "tokenUrl"]
    )
    if not options.connectors_private and not value["token_url"].lower().startswith("https://"):
        raise Invalid("https:// only", constraint="url", path=["oauth", "tokenUrl"])
    for name, label in (("client_id", "clientId"), ("scope", "scope")):
        text = value.get(name) or ""
        if len(text) > SCOPE or not text.isprintable() or (name == "client_id" and not text):
            words = f"at most {SCOPE} characters on one line"
            raise Invalid(words, constraint="length", path=["oauth", label])
    return {name: value.get(name) for name in ("token_url", "client_id", "scope")}


def _domain(value: str | None, _options: Options) -> str | None:
    if not value:
        return None
    try:
        return host_of(value.strip())
    except (idna.IDNAError, UnicodeError):
        raise Invalid("no domain", constraint="domain", path=["targetDomain"]) from None


def _seconds(
    path: str, least: timedelta, most: timedelta, *, above: bool = False
) -> Callable[[timedelta | None, Options], int | None]:
    def check(value: timedelta | None, _options: Options) -> int | None:
        if value is None:
            return None
        if not (least < value if above else least <= value) or value > most:
            words = "more than " if above else ""
            text = f"{words}{least} and at most {most}"
            raise Invalid(text, constraint="range", path=[path])
        return int(value.total_seconds())

    return check


def _pattern(value: str | None, _options: Options) -> str | None:
    if not value:
        return None
    _expression(value, ["exclude"])
    return value


def _expression(pattern: str, path: Sequence[str], index: int | None = None) -> None:
    try:
        Expression(pattern, slashes=False)
    except Invalid as problem:
        raise Invalid(
            problem.message, constraint=problem.constraint, path=path, index=index
        ) from None


def _rewrites(value: Sequence[Mapping[str, str]], _options: Options) -> list[dict[str, str]]:
    if len(value) > REWRITES:
        raise Invalid(f"at most {REWRITES}", constraint="max", path=["folderRewrites"])
    for index, one in enumerate(value):
        _expression(one["pattern"], ["folderRewrites", "pattern"], index)
        if len(one["replacement"]) > NAME or not one["replacement"].isprintable():
            text = f"at most {NAME} characters"
            path = ["folderRewrites", "replacement"]
            raise Invalid(text, constraint="length", path=path, index=index)
    return [dict(one) for one in value]


def _folder(value: str | None, _options: Options) -> str | None:
    return paths.checked_path(value, path_in=["targetFolder"]) if value else None


def _rate(value: int, _options: Options) -> int:
    if value < 0:
        raise Invalid("0 or more", constraint="min", path=["maxBytesPerSecond"])
    return value


_FIELDS: dict[str, Callable[[Any, Options], Any]] = {
    "name": _name,
    "host": _host,
    "port": _port,
    "username": _username,
    "mechanism": _mechanism,
    "interval": _seconds("interval", LEAST, MOST, above=True),
    "max_age": _seconds("maxAge", timedelta(minutes=1), AGE),
    "source_retention": _seconds("sourceRetention", timedelta(0), AGE),
    "remote_timeout": _seconds("remoteTimeout", *PATIENCE),
    "local_timeout": _seconds("localTimeout", *PATIENCE),
    "exclude": _pattern,
    "folder_rewrites": _rewrites,
    "target_folder": _folder,
    "max_bytes_per_second": _rate,
    "oauth": _oauth,
    "target_domain": _domain,
}
