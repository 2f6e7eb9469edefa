"""Validate the targets of forwarding addresses: mail addresses, relays and webhooks."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import idna
from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import checked, normal
from mail.network import outbound_http
from mail.recipients.forward_targets import HIDDEN
from models.domains.tables import DomainAlias
from models.errors import Invalid, Problems
from resolvers.context import Context

MOST = 100  # targets of an address
LONGEST = 2048  # characters
RELAYS = ("smtp", "smtps")
SECRET = f":{HIDDEN}@"


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets in the form shown to users, and relay URLs with password by their shown form."""

    shown: Sequence[str] = ()
    relays: Mapping[str, str] = field(default_factory=dict)


def checked_targets(
    ctx: Context, texts: Sequence[str], known: Mapping[str, str], path: Sequence[str]
) -> Targets:
    """Validate targets and return them in their stored form, each once.

    A relay URL with the hidden password keeps the password of `known_relays`. Raises
    InvalidInput with the index of each target that is not allowed.
    """
    if len(texts) > MOST:
        raise Invalid(f"at most {MOST} targets", constraint="max", path=path)
    problems, found, relays = Problems(), dict[str, str](), dict[str, str]()
    for index, text in enumerate(texts):
        with problems.caught():
            try:
                shown, secret = _checked(ctx, text.strip(), known, path)
            except Invalid as refusal:
                refusal.path, refusal.index = list(path), index
                raise
            found.setdefault(shown.casefold(), shown)
            if secret and found[shown.casefold()] == shown:
                relays[shown] = secret
    problems.settle()
    return Targets(list(found.values()), relays)


def _checked(
    ctx: Context, text: str, known: Mapping[str, str], path: Sequence[str]
) -> tuple[str, str | None]:
    """Return a target as shown, and with its password if it is a relay that has one.

    Raises InvalidInput if the target is not allowed.
    """
    if len(text) > LONGEST or not text.isprintable():
        words = f"at most {LONGEST} printable characters"
        raise Invalid(words, constraint="length", path=path)
    scheme, colon, _ = text.partition("://")
    if not colon:
        if "*" in text:
            raise Invalid("a target is one address", constraint="pattern", path=path)
        return checked(text), None
    private = ctx.world.options.forwards_private
    if scheme.lower() in outbound_http.PORTS:
        outbound_http.target(text, private=private, path=path)
        return text, None
    if SECRET in text and text in known:
        return text, known[text]
    return _relay(text, private=private, path=path)


def _relay(text: str, *, private: bool, path: Sequence[str]) -> tuple[str, str | None]:
    """Return a relay URL as shown, and with its password if it has one.

    Raises InvalidInput if the URL is not allowed.
    """
    try:
        parts = urlsplit(text)
        port, host = parts.port, outbound_http.host_of(parts.hostname or "")
        user, password = (unquote(part or "") for part in (parts.username, parts.password))
    except (ValueError, idna.IDNAError):
        raise Invalid("not the address of a relay", constraint="url", path=path) from None
    if parts.scheme not in RELAYS or not host or parts.path.strip("/") or not host.isprintable():
        words = "an address, smtp://host, smtps://host, http:// or https://"
        raise Invalid(words, constraint="url", path=path)
    if parts.query or parts.fragment or port == 0 or " " in text:
        raise Invalid("a relay is a host and a port", constraint="url", path=path)
    if bool(user) != bool(password) or not (user + password).isprintable():
        raise Invalid("a relay has user and password, or none", constraint="url", path=path)
    if password == HIDDEN:
        words = "the password of a relay is shown so, and is given as it is"
        raise Invalid(words, constraint="secret", path=path)
    outbound_http.check_outside(host, private=private, path=path)
    where = f"[{host}]" if ":" in host else host
    where = where if port is None else f"{where}:{port}"
    if not user:
        return f"{parts.scheme}://{where}", None
    named = f"{parts.scheme}://{quote(user, safe='')}"
    return f"{named}{SECRET}{where}", f"{named}:{quote(password, safe='')}@{where}"


async def names_of(ctx: Context, domain_ids: Collection[int | None]) -> dict[int, set[str]]:
    """Load the names of the alias domains of these domains, by domain id."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    keys = {key for key in domain_ids if key}
    asked = select(col(DomainAlias.domain_id), col(DomainAlias.alias))
    for row in await ctx.read(asked.where(col(DomainAlias.domain_id).in_(keys))) if keys else ():
        found[row.domain_id].add(row.alias)
    return found


def refuse_itself(address: Any, names: Mapping[int, set[str]], path: Sequence[str]) -> None:
    """Raise InvalidInput if an address forwards to itself under any name of its domain."""
    local, name = normal(address.shown)
    known = {name, *names.get(address.domain_id, ())}
    for index, target in enumerate(address.targets):
        to = normal(target)
        if "://" not in target and to.local == local and to.domain in known:
            words = "an address does not forward to itself"
            raise Invalid(words, constraint="self", path=path, index=index)
