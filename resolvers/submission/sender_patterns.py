"""Match and validate the patterns of senders that an account may use beside its own addresses.

A pattern is an address, a domain, `*` for any sender, or has one `*` at either end.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence

from sqlalchemy import select, union_all
from sqlmodel import col

from mail.addresses.address_syntax import checked_domain, normal_domain
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Forbidden, Invalid
from models.users.roles import Role
from models.users.tables import User
from resolvers.context import Context

LONGEST = 128  # characters
_ODD = re.compile(r"[\s\x00-\x1f\x7f\ud800-\udfff,;<>\"]")


def checked_pattern(text: str, path: Sequence[str], index: int) -> str:
    """Return the pattern in the form that is stored and compared. Raises Invalid if it is none."""
    pattern = _folded(text.strip().removeprefix("@"))
    inner = pattern[1:] if pattern.startswith("*") else pattern.removesuffix("*")
    fits = 0 < len(pattern) <= LONGEST and not _ODD.search(pattern) and "*" not in inner
    if fits and pattern == inner:  # an address, or a domain
        local, at, domain = pattern.rpartition("@")
        fits = bool(local) or not at
        try:
            checked_domain(domain)
        except Invalid:
            fits = False
    if not fits or pattern.count("@") > 1:
        words = f"an address, a domain, or one * at either end; at most {LONGEST} characters"
        raise Invalid(words, constraint="pattern", path=path, index=index)
    return pattern


def permitted(patterns: Collection[str], address: str) -> bool:
    """True if a stored pattern matches the address."""
    if not patterns:
        return False
    address = _folded(address)
    domain = address.rpartition("@")[2]
    for pattern in patterns:
        if pattern.startswith("*"):
            fits = address.endswith(pattern[1:])
        elif pattern.endswith("*"):
            fits = address.startswith(pattern[:-1])
        else:
            fits = pattern == (address if "@" in pattern else domain)
        if fits:
            return True
    return False


def _folded(text: str) -> str:
    """Return the text in lower case with its domain in Unicode."""
    text = unicodedata.normalize("NFC", text.lower())
    local, at, domain = text.rpartition("@")
    return text if "*" in domain or not domain else f"{local}{at}{normal_domain(domain)}"


async def reach(ctx: Context, patterns: Sequence[str], path: Sequence[str]) -> None:
    """Raise Forbidden if the viewer may not let an account send as these patterns.

    No pattern may match an address of an account that the viewer may not administer. A pattern of
    a DOMAIN_ADMIN has a whole domain, which the viewer administers or which is not hosted here.
    """
    if not patterns:
        return
    if not ctx.viewer.role.includes(Role.ADMIN):
        await _check_domains(ctx, patterns, path)
    await _check_above(ctx, patterns, path)


async def _check_domains(ctx: Context, patterns: Sequence[str], path: Sequence[str]) -> None:
    """Raise Forbidden if a pattern is not in one of the domains that the viewer administers."""
    names = [_domain(pattern) for pattern in patterns]
    asked = union_all(
        select(col(Domain.name).label("name"), col(Domain.id).label("id")),
        select(col(DomainAlias.alias), col(DomainAlias.domain_id)),
    ).subquery()
    known = select(asked.c.name, asked.c.id).where(asked.c.name.in_([n for n in names if n]))
    foreign = {row.name for row in await ctx.read(known) if row.id not in ctx.viewer.administers}
    for name in names:
        if name is None or name in foreign:
            words = "only an ADMIN lets somebody send in the name of other domains here"
            raise Forbidden(words, requires=Role.ADMIN, path=path)


async def _check_above(ctx: Context, patterns: Sequence[str], path: Sequence[str]) -> None:
    """Raise Forbidden if a pattern matches an address of an account above the viewer."""
    viewer = ctx.viewer
    above = [role for role in Role if not viewer.role.administers(role) and role is not Role.PUBLIC]
    asked = (
        select(col(Address.shown), col(User.role))
        .join(User, col(User.id) == col(Address.user_id))
        .where(col(User.role).in_(above), col(User.id) != viewer.user_id)
    )
    for row in await ctx.read(asked) if above else ():
        for index, pattern in enumerate(patterns):
            if permitted([pattern], row.shown):
                text = "an address of an account above yours fits this pattern"
                raise Forbidden(text, requires=row.role, path=[*path, str(index)])


def _domain(pattern: str) -> str | None:
    """Return the domain of all addresses that match, or None if there can be several."""
    domain = pattern.rpartition("@")[2]
    return None if "*" in domain else domain


def whole(patterns: Collection[str]) -> list[str]:
    """Return the patterns that are one address each, in order."""
    return [each for each in patterns if "*" not in each and each.rpartition("@")[0]]
