"""Validate the columns of resources and choose their addresses."""

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlmodel import col

from mail.text.transliteration import ascii_slug_or_empty
from models.addresses.tables import Address
from models.errors import Conflict, InvalidInput
from models.resources.tables import BookingPolicy, ResourceKind
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.context import Context

MAX_NAME_LENGTH = 128  # characters
MAX_BOOKING_LIMIT = 1000  # bookings at the same time
_MAX_LOCAL_PART_LENGTH = 48  # characters that are made from the name
_MAX_NUMBER = 1000  # behind a local part that is taken
# that people expect an administrator behind (RFC 2142, section 3 to 5)
_RESERVED_LOCAL_PARTS = frozenset(("abuse", "hostmaster", "mailer-daemon", "postmaster"))


def validate_resource_name(name: str | None, path: Sequence[str]) -> str:
    """Return the name of a resource, trimmed. Raises InvalidInput if it is empty or too long."""
    trimmed = sql_text.validated_trimmed_text(name, max_length=MAX_NAME_LENGTH, path=path)
    if not trimmed:
        raise InvalidInput(
            "The name must not be empty.", constraint=ValidationConstraint.REQUIRED, path=path
        )
    if not trimmed.isprintable():
        raise InvalidInput(
            "The name must not contain control characters.",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )
    return trimmed


def validate_booking_limit(policy: BookingPolicy, limit: int | None, path: Sequence[str]) -> None:
    """Raise InvalidInput if the limit does not fit the policy, or is out of range."""
    if policy is not BookingPolicy.LIMITED:
        if limit is not None:
            raise InvalidInput(
                "A booking limit requires the policy LIMITED.",
                constraint=ValidationConstraint.EXCLUSIVE,
                path=path,
            )
        return
    if limit is None:
        raise InvalidInput(
            "The policy LIMITED requires a booking limit.",
            constraint=ValidationConstraint.REQUIRED,
            path=path,
        )
    if not 1 <= limit <= MAX_BOOKING_LIMIT:
        raise InvalidInput(
            f"The booking limit must be from 1 to {MAX_BOOKING_LIMIT:,}.",
            constraint=ValidationConstraint.MIN if limit < 1 else ValidationConstraint.MAX,
            path=path,
        )


async def find_free_local_part_or_raise_conflict(
    ctx: Context, domain_id: int, domain_name: str, name: str, kind: ResourceKind
) -> str:
    """Return a local part made from the name that no address or user of the domain has.

    Appends a number if the local part is taken. The transaction must hold the lock on the stream
    of the domain. Raises Conflict if 1,000 numbers are taken.
    """
    plain = ascii_slug_or_empty(name, max_length=_MAX_LOCAL_PART_LENGTH) or kind.lower()
    for first in range(1, _MAX_NUMBER, 100):
        candidates = [
            plain if number == 1 else f"{plain}-{number}" for number in range(first, first + 100)
        ]
        used_local_parts = await _taken_local_parts(ctx, domain_id, domain_name, candidates)
        for candidate in candidates:
            if candidate not in used_local_parts:
                return candidate
    raise Conflict(f"The addresses made from {plain} are all taken.", path=["name"])


async def _taken_local_parts(
    ctx: Context, domain_id: int, domain_name: str, local_parts: Collection[str]
) -> set[str]:
    """Return which of these local parts are taken in a domain or in all domains, or reserved."""
    addresses = select(col(Address.local)).where(
        col(Address.local).in_(local_parts),
        (col(Address.domain_id) == domain_id) | col(Address.domain_id).is_(None),
    )
    keys = {f"{local_part}@{domain_name}": local_part for local_part in local_parts}
    users = select(col(User.username_key)).where(col(User.username_key).in_(keys))
    return {
        *_RESERVED_LOCAL_PARTS.intersection(local_parts),
        *(row.local for row in await ctx.read(addresses)),
        *(keys[row.username_key] for row in await ctx.read(users)),
    }
