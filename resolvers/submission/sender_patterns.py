"""Match and validate the patterns of senders that an account may use beside its own addresses.

A pattern is an address, a domain, `*` for any sender, or has one `*` at either end.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normalize_and_validate_domain, normalized_domain
from models.addresses.tables import Address
from models.errors import Forbidden, InvalidInput
from models.users.roles import Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders

MAX_PATTERN_LENGTH = 128  # characters
_FORBIDDEN_CHARACTERS = re.compile(r"[\s\x00-\x1f\x7f\ud800-\udfff,;<>\"]")


def validated_sender_pattern(text: str, path: Sequence[str], index: int) -> str:
    """Return the pattern in the form that is stored and compared.

    Raises InvalidInput if it is none.
    """
    pattern = _normalize_address(text.strip().removeprefix("@"))
    inner = pattern[1:] if pattern.startswith("*") else pattern.removesuffix("*")
    is_valid = (
        0 < len(pattern) <= MAX_PATTERN_LENGTH
        and not _FORBIDDEN_CHARACTERS.search(pattern)
        and "*" not in inner
    )
    if is_valid and pattern == inner:  # an address, or a domain
        local, at, domain = pattern.rpartition("@")
        is_valid = bool(local) or not at
        try:
            normalize_and_validate_domain(domain)
        except InvalidInput:
            is_valid = False
    if not is_valid or pattern.count("@") > 1:
        error_text = (
            "Must be an address, a domain, or a pattern with one * at either end, of "
            f"at most {MAX_PATTERN_LENGTH} characters."
        )
        raise InvalidInput(
            error_text, constraint=ValidationConstraint.PATTERN, path=path, index=index
        )
    return pattern


def matches_sender_pattern(patterns: Collection[str], address: str) -> bool:
    """True if a stored pattern matches the address."""
    if not patterns:
        return False
    address = _normalize_address(address)
    domain = address.rpartition("@")[2]
    for pattern in patterns:
        if pattern.startswith("*"):
            is_match = address.endswith(pattern[1:])
        elif pattern.endswith("*"):
            is_match = address.startswith(pattern[:-1])
        else:
            is_match = pattern == (address if "@" in pattern else domain)
        if is_match:
            return True
    return False


def _normalize_address(text: str) -> str:
    """Return the text in lower case with its domain in Unicode."""
    text = unicodedata.normalize("NFC", text.lower())
    local, at, domain = text.rpartition("@")
    return text if "*" in domain or not domain else f"{local}{at}{normalized_domain(domain)}"


async def require_rights_for_patterns(
    ctx: Context, patterns: Sequence[str], path: Sequence[str]
) -> None:
    """Raise Forbidden if the viewer may not let an account send as these patterns.

    No pattern may match an address of an account that the viewer may not administer. A pattern of
    a DOMAIN_ADMIN has a whole domain, which the viewer administers or which is not hosted here.
    """
    if not patterns:
        return
    if not ctx.viewer.role.includes(Role.ADMIN):
        await _forbid_patterns_of_others_hosted_domains(ctx, patterns, path)
    await _forbid_patterns_of_higher_accounts(ctx, patterns, path)


async def _forbid_patterns_of_others_hosted_domains(
    ctx: Context, patterns: Sequence[str], path: Sequence[str]
) -> None:
    """Raise Forbidden if a pattern is not in one of the domains that the viewer administers."""
    pattern_domains = [_domain_of_pattern(pattern) for pattern in patterns]
    foreign_domains = await domain_loaders.load_names_of_others_domains(
        ctx, [name for name in pattern_domains if name]
    )
    for index, name in enumerate(pattern_domains):
        if name is None or name in foreign_domains:
            error_text = (
                "Requires the role ADMIN: the pattern matches addresses of other "
                "domains of this server."
            )
            raise Forbidden(error_text, requires=Role.ADMIN, path=path, index=index)


async def _forbid_patterns_of_higher_accounts(
    ctx: Context, patterns: Sequence[str], path: Sequence[str]
) -> None:
    """Raise Forbidden if a pattern matches an address of an account above the viewer."""
    viewer = ctx.viewer
    higher_roles = [
        role for role in Role if not viewer.role.administers(role) and role is not Role.PUBLIC
    ]
    statement = (
        select(col(Address.display_address), col(User.role))
        .join(User, col(User.id) == col(Address.user_id))
        .where(col(User.role).in_(higher_roles), col(User.id) != viewer.user_id)
    )
    for row in await ctx.read(statement) if higher_roles else ():
        for index, pattern in enumerate(patterns):
            if matches_sender_pattern([pattern], row.display_address):
                text = (
                    "The pattern matches an address of an account with a higher role than "
                    "the caller."
                )
                raise Forbidden(text, requires=row.role, path=[*path, str(index)])


def _domain_of_pattern(pattern: str) -> str | None:
    """Return the domain of all addresses that match, or None if there can be several."""
    domain = pattern.rpartition("@")[2]
    return None if "*" in domain else domain


def whole_addresses(patterns: Collection[str]) -> list[str]:
    """Return the patterns that are one address each, in order."""
    return [pattern for pattern in patterns if "*" not in pattern and pattern.rpartition("@")[0]]
