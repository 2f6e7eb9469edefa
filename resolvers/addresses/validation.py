"""Validate the text and the columns of addresses."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mail.addresses.address_syntax import LONGEST, STATIC, checked, checked_domain
from mail.text import confusables
from models.addresses.tables import LEARNING, AddressKind
from models.errors import Invalid, Problems
from resolvers import sql_text
from resolvers.users import custom_data
from resolvers.users.validation import camel

NAME = 128  # characters
COMMENT = 1000
MOST = (1 << 31) - 1
EVERYWHERE = "*"  # in place of the domain part: all domains of the platform


def spelled(text: str, *, wildcard: bool, path: Sequence[str] = ("address",)) -> str:
    """Return the text of an address or catch-all as stored. Raises InvalidInput.

    `@domain` means `*@domain`. A catch-all has one `*`: as the whole local part, at its begin
    or end, or in place of the domain.
    """
    text = unicodedata.normalize("NFC", text.strip())
    text = f"*{text}" if text.startswith("@") else text
    local, _, domain = text.rpartition("@")
    if "*" not in text:
        address: str = _at(path, checked, text)
        if "+" in address.rpartition("@")[0]:
            words = "an address has no label: mail to one finds it without"
            raise Invalid(words, constraint="label", path=path)
        _at(path, confusables.refuse_address, address)
        return address
    if not wildcard:
        words = "an address with * takes allowWildcard"
        raise Invalid(words, constraint="wildcard", path=path)
    fixed = local.strip("*")
    ends = local in (fixed, f"{fixed}*", f"*{fixed}") and text.count("*") == 1 and "*" not in fixed
    if not ends or (domain == EVERYWHERE and not fixed) or "+" in fixed or len(text) > LONGEST:
        words = "a pattern is *@domain, *end@domain, begin*@domain or name@*"
        raise Invalid(words, constraint="pattern", path=path)
    if domain != EVERYWHERE:
        domain = _at(path, checked_domain, domain)
        if len(fixed.replace(".", "")) > STATIC:
            words = f"what is fixed of a pattern has at most {STATIC} characters"
            raise Invalid(words, constraint="max", path=path)
    if fixed:
        # dots do not count, so a fixed part may begin or end with one
        inner = fixed.replace(".", "")
        _at(path, checked, f"{inner}@{'x' if domain == EVERYWHERE else domain}")
        _at(path, confusables.refuse_address, f"{fixed}@{domain}")
    return f"{local}@{domain}"


def _at(path: Sequence[str], check: Callable[..., Any], *given: Any) -> Any:
    """Return the result of a check; an InvalidInput that it raises gets this path."""
    try:
        return check(*given)
    except Invalid as refusal:
        refusal.path = list(path)
        raise


def facts(given: Mapping[str, Any], problems: Problems, at: Sequence[str] = ()) -> dict[str, Any]:
    """Return the columns in their stored form.

    Adds an error to `problems` for each invalid value.
    """
    found = {}
    for name, value in given.items():
        with problems.caught():
            check = CHECKS.get(name)
            found[name] = check(value, [*at, word(name)]) if check else value
    return found


def word(name: str) -> str:
    """Return the GraphQL name of a column."""
    return {"forwards_max": "forwards"}.get(name, camel(name))


def consistent(address: Any, problems: Problems, at: Sequence[str] = (), *, learns: bool) -> None:
    """Add an error to `problems` for each combination of columns that is not allowed.

    `spam_filter_learns` is true if a spam filter is configured that can be trained.
    """
    kind, targets = AddressKind(address.kind), list(address.targets)
    with problems.caught():
        if kind in LEARNING and not learns:
            words = "there is no spam filter here that learns"
            raise Invalid(words, constraint="unsupported", path=[*at, "kind"])
    with problems.caught():
        if kind is AddressKind.FORWARD and not targets:
            words = "say where it forwards to"
            raise Invalid(words, constraint="required", path=[*at, "targets"])
        if kind is not AddressKind.FORWARD and targets:
            words = f"only a FORWARD has targets, not a {kind}"
            raise Invalid(words, constraint="exclusive", path=[*at, "targets"])
    with problems.caught():
        if kind is not AddressKind.FORWARD and address.forwards_max is not None:
            words = f"only a FORWARD forwards, not a {kind}"
            raise Invalid(words, constraint="exclusive", path=[*at, "forwards"])
    with problems.caught():
        if address.main and not can_be_main(address):
            words = "a main address is a MAILBOX, without * and without an end"
            raise Invalid(words, constraint="main", path=[*at, "main"])


def can_be_main(address: Any) -> bool:
    """True if the address may be the main address of its user."""
    whole = "*" not in address.local and address.domain_id is not None
    return whole and address.kind == AddressKind.MAILBOX and address.expires_at is None


def _name(text: str | None, path: Sequence[str]) -> str | None:
    found = sql_text.checked(text, most=NAME, path=path)
    if found and not found.isprintable():
        raise Invalid("no control characters", constraint="pattern", path=path)
    return found


def _comment(text: str | None, path: Sequence[str]) -> str | None:
    return sql_text.checked(text, most=COMMENT, path=path)


def _tags(tags: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    return sql_text.labels(tags or (), path=path)


def _many(number: int | None, path: Sequence[str]) -> int | None:
    if number is not None and not 0 <= number <= MOST:
        raise Invalid("0 or more; 0 is no limit", constraint="range", path=path)
    return number


def _switch(value: bool | None, path: Sequence[str]) -> bool:
    if value is None:
        words = "it is either so or not: null says neither"
        raise Invalid(words, constraint="required", path=path)
    return value


CHECKS: Mapping[str, Callable[[Any, Sequence[str]], Any]] = {
    "name": _name,
    "tags": _tags,
    "forwards_max": _many,
    "active": _switch,
    "send_as": _switch,
    "public_comment": _comment,
    "private_comment": _comment,
    "meta_data": custom_data.checked,
    "internal_data": custom_data.checked,
}
