"""Autoreplies of forwarding addresses, stored together with their addresses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from models.addresses.tables import AddressKind
from models.errors import Invalid, Problems
from models.store.columns import Picked
from resolvers.autoreply import validation as autoreply_validation


@dataclass
class Replies:
    """The autoreplies of addresses by address id: stored rows, new rows, changed columns."""

    were: Mapping[int, Picked] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    told: dict[int, list[str]] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)

    @property
    def changed(self) -> set[int]:
        """Ids of the addresses whose autoreply is changed or deleted."""
        return {*self.rows, *self.gone}

    def logged(self, key: int) -> tuple[Any, Any]:
        """Return the admin log values of one autoreply before and after the change."""
        if key in self.gone:
            return {"enabled": self.were[key].enabled}, None
        return autoreply_validation.logged(self.were.get(key), self.rows[key], self.told[key])


def facts(given: Mapping[str, Any], at: Sequence[str]) -> dict[str, Any]:
    """Validate the autoreply columns of an input and return them as stored.

    Raises InvalidInput with all problems if a value is not allowed, nothing is given or
    `addresses` is given.
    """
    problems = Problems()
    found = autoreply_validation.facts(given, problems, at)
    with problems.caught():
        if not given:
            raise Invalid("change at least one thing", constraint="required", path=at)
        if found.get("addresses"):
            words = "an address answers for itself: only an account names addresses"
            raise Invalid(words, constraint="exclusive", path=[*at, "addresses"])
    problems.settle()
    return found


def able(kind: AddressKind, at: Sequence[str]) -> None:
    """Raise InvalidInput unless the kind is FORWARD, the only kind with an autoreply of its own."""
    if kind is not AddressKind.FORWARD:
        words = f"only a FORWARD answers by itself, not a {kind}; an account does by autoreplySet"
        raise Invalid(words, constraint="exclusive", path=at)


def change(
    replies: Replies, key: int, values: Mapping[str, Any], now: datetime, at: Sequence[str]
) -> bool:
    """Set columns of an address' autoreply and return whether it is enabled.

    Raises InvalidInput if the autoreply is enabled without a text.
    """
    was = replies.were.get(key)
    row = autoreply_validation.made({"id": key, "address_id": key}, was, values, now, at)
    names = autoreply_validation.news(was, row)
    if names or was is None:
        replies.rows[key], replies.told[key] = row, names
    return bool(row["enabled"])


def clear(replies: Replies, key: int) -> None:
    """Mark the autoreply of an address for deletion."""
    if key in replies.were:
        replies.gone.append(key)


async def there(session: AsyncSession, rows: Sequence[Picked]) -> Replies:
    """Read the stored autoreplies of the FORWARD addresses among these.

    Runs no statement if no address has the kind FORWARD.
    """
    ids = [row.id for row in rows if row.kind is AddressKind.FORWARD]
    return Replies(await autoreply_validation.there(session, ids) if ids else {})


async def store(session: AsyncSession, replies: Replies) -> None:
    """Write the changed autoreplies and delete the ones marked for deletion."""
    await autoreply_validation.write(session, replies.rows, replies.told)
    if replies.gone:
        await autoreply_validation.forget(session, replies.gone)
