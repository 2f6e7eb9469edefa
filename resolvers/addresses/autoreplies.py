"""What addresses that forward answer by themselves: set and cleared with the addresses."""

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
    """What addresses answer, by id: as it is, as it is to be, and which columns differ."""

    were: Mapping[int, Picked] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    told: dict[int, list[str]] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)

    @property
    def changed(self) -> set[int]:
        """Addresses that answer something else now."""
        return {*self.rows, *self.gone}

    def logged(self, key: int) -> tuple[Any, Any]:
        """What the log has of an address, before and after; words only as others."""
        if key in self.gone:
            return {"enabled": self.were[key].enabled}, None
        return autoreply_validation.logged(self.were.get(key), self.rows[key], self.told[key])


def facts(given: Mapping[str, Any], at: Sequence[str]) -> dict[str, Any]:
    """What an address is to answer, by column, as it is stored; raises all that cannot be."""
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
    """Invalid where addresses of this kind answer nothing."""
    if kind is not AddressKind.FORWARD:
        words = f"only a FORWARD answers by itself, not a {kind}; an account does by autoreplySet"
        raise Invalid(words, constraint="exclusive", path=at)


def change(
    replies: Replies, key: int, values: Mapping[str, Any], now: datetime, at: Sequence[str]
) -> bool:
    """Have an address answer so; whether that is switched on. Invalid where it says nothing."""
    was = replies.were.get(key)
    row = autoreply_validation.made({"id": key, "address_id": key}, was, values, now, at)
    names = autoreply_validation.news(was, row)
    if names or was is None:
        replies.rows[key], replies.told[key] = row, names
    return bool(row["enabled"])


def clear(replies: Replies, key: int) -> None:
    """Have an address answer nothing."""
    if key in replies.were:
        replies.gone.append(key)


async def there(session: AsyncSession, rows: Sequence[Picked]) -> Replies:
    """What these addresses answer as it is; no statement where they are all accounts'."""
    ids = [row.id for row in rows if row.kind is AddressKind.FORWARD]
    return Replies(await autoreply_validation.there(session, ids) if ids else {})


async def store(session: AsyncSession, replies: Replies) -> None:
    """Store what is another now."""
    await autoreply_validation.write(session, replies.rows, replies.told)
    if replies.gone:
        await autoreply_validation.forget(session, replies.gone)
