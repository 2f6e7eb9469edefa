"""Validate and store autoreplies of users and addresses."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.autoreply import Rule
from models.autoreply import Autoreply, AutoreplySender
from models.errors import Invalid, Problems
from models.store.columns import Picked, insert_or, picked, table_of
from resolvers.users.validation import camel

NAME = 128  # characters
SUBJECT = 2 << 10  # bytes
TEXT = 128 << 10
HOUR, LONGEST = timedelta(hours=1), timedelta(days=366)
RULE = tuple(field.name for field in fields(Rule))
PLAIN = tuple(name for name in RULE if name != "addresses")
FACTS = (*RULE, "interval")
# A change of these begins another absence: all senders get a reply again.
ABSENCE = frozenset(RULE) - {"enabled", "name", "addresses"}
WORDS = frozenset(name for name in RULE if name.endswith(("text", "html", "subject")))
HIDDEN = WORDS | {"addresses"}  # the admin log has only that they changed
_ODD = re.compile("[\0\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def facts(given: Mapping[str, Any], problems: Problems, at: Sequence[str]) -> dict[str, Any]:
    """Return the columns in their stored form. Adds an error to `problems` for each invalid one."""
    found = dict[str, Any]()
    for name, value in given.items():
        path = [*at, camel(name)]
        with problems.caught():
            found[name] = _value(name, value, path)
    begin, end = found.get("starts_at"), found.get("ends_at")
    with problems.caught():
        _check_times(begin, end, at)
    return found


def _value(name: str, value: Any, path: Sequence[str]) -> Any:
    if name == "interval":
        return None if value is None else _seconds(value, path)
    if name == "addresses":
        return list(value or ())
    if name not in WORDS and name != "name":
        return value
    if value is None:
        return None if name == "name" or name.startswith("internal") else ""
    if name == "name":
        if len(value) > NAME or _CONTROLS.search(value):
            text = f"at most {NAME} characters, and no control characters"
            raise Invalid(text, constraint="pattern", path=path)
        return value.strip() or None
    line = name.endswith("subject")
    if (_CONTROLS if line else _ODD).search(value):
        text = "one line, without control characters" if line else "text has no NUL"
        raise Invalid(text, constraint="pattern", path=path)
    most = SUBJECT if line else TEXT
    if len(value.encode()) > most:
        raise Invalid(f"at most {most} bytes", constraint="max", path=path)
    return value.strip() if line else value


def _seconds(interval: timedelta, path: Sequence[str]) -> int:
    if not HOUR <= interval <= LONGEST:
        raise Invalid("from an hour to 366 days", constraint="range", path=path)
    return int(interval.total_seconds())


def _check_times(begin: datetime | None, end: datetime | None, at: Sequence[str]) -> None:
    if begin and end and end <= begin:
        text = "it ends before it begins"
        raise Invalid(text, constraint="range", path=[*at, "endsAt"])


async def there(session: AsyncSession, ids: Collection[int]) -> dict[int, Picked]:
    """Load the stored autoreplies with these ids, by id."""
    asked = select(*picked(Autoreply)).where(col(Autoreply.id).in_(ids))
    found = (await (await session.connection()).execute(asked)).all()
    return {row.id: row for row in found}


def made(
    whose: Mapping[str, Any],
    before: Picked | None,
    values: Mapping[str, Any],
    now: datetime,
    at: Sequence[str],
) -> dict[str, Any]:
    """Return the row to store. `ids` holds its id and that of the user or the address.

    Raises InvalidInput if the autoreply is enabled without text or ends before it starts.
    """
    new: dict[str, Any] = {
        **{name: getattr(Rule(), name) for name in RULE},
        "user_id": None,
        "address_id": None,
        **whose,
        "interval": None,
        "addresses": [],
        "created_at": now,
    }
    if before is not None:
        new |= before._asdict()
    new |= values
    _check_times(new["starts_at"], new["ends_at"], at)
    words = (new[name] for name in WORDS if not name.endswith("subject"))
    if new["enabled"] and not any(text and text.strip() for text in words):
        text = "there is nothing to answer: give text or html"
        raise Invalid(text, constraint="required", path=[*at, "text"])
    return new | {"updated_at": now}


def news(before: Picked | None, row: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns that differ from the stored row."""
    if before is None:
        return [name for name in FACTS if row[name] not in (None, "", False, [])]
    return [name for name in FACTS if row[name] != getattr(before, name)]


def begins(names: Sequence[str], row: Mapping[str, Any]) -> bool:
    """True if the change begins a new absence, in which every sender gets a reply again."""
    return bool(ABSENCE.intersection(names)) or ("enabled" in names and row["enabled"])


async def write(
    session: AsyncSession, rows: Mapping[int, Mapping[str, Any]], told: Mapping[int, Sequence[str]]
) -> None:
    """Store rows, and forget the answered senders of those that begin a new absence.

    The number of statements is constant.
    """
    if not rows:
        return
    connection = await session.connection()
    new = insert_or(connection.dialect.name, Autoreply)
    fresh = {
        column.name: new.excluded[column.name]
        for column in table_of(Autoreply).c
        if not (column.primary_key or column.name == "created_at")
    }
    put = new.on_conflict_do_update(index_elements=["id"], set_=fresh)
    await connection.execute(put, [dict(row) for row in rows.values()])
    anew = [key for key, row in rows.items() if begins(told[key], row)]
    if anew:
        theirs = col(AutoreplySender.autoreply_id).in_(anew)
        await connection.execute(delete(AutoreplySender).where(theirs))


async def forget(session: AsyncSession, ids: Collection[int]) -> None:
    """Delete the autoreplies with these ids."""
    gone = delete(Autoreply).where(col(Autoreply.id).in_(ids))
    await (await session.connection()).execute(gone)


def logged(
    was: Picked | None, new: Mapping[str, Any], told: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the admin log values before and after a change. Texts are replaced by an ellipsis."""

    def plain(value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else value

    names = [name for name in told if name not in HIDDEN]
    before = {name: plain(getattr(was, name, None)) for name in names}
    after = {name: plain(new[name]) for name in names}
    return before, after | {name: "…" for name in told if name in HIDDEN}
