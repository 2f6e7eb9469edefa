"""Create many users: all or none of a list, or as many as possible of a part of a file."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from sqlalchemy.exc import IntegrityError

from models.errors import Conflict, Invalid, Problems, Refused, Several
from models.users.tables import User
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation import insert
from resolvers.users.creation.create import CheckedUser, NewUser
from resolvers.users.creation.insert import NotAdmitted, PreparedUser

MOST = 250  # of one call
PASSWORDS = 20  # passwords to hash in one call: each takes a part of a second
HASHED_AT_ONCE = 4
PATH = "users"


async def create(
    ctx: Context, news: Sequence[NewUser], known: Mapping[int, Refused] | None = None
) -> list[User]:
    """Create all of these users in one transaction, in this order.

    Raises Several with all errors: each has the index of its user. `known` are errors found before,
    by index.
    """
    known = known or {}
    rest = {nth: new for nth, new in enumerate(news) if nth not in known}
    accounts, refused = await check(ctx, rest, {})
    refused |= _each(known)
    prepared = {nth: one.prepared for nth, one in accounts.items()}
    refused |= _each(await insert.check(ctx, prepared))
    _settle(refused)
    prepared = await complete(ctx, accounts)
    try:
        await insert.store(
            ctx, prepared, mutation="usersCreate", within=lambda nth: [PATH, str(nth)]
        )
    except NotAdmitted as found:
        _settle(_each(found.refusals))
    except IntegrityError as clash:  # a concurrent request took it
        raise Conflict("a user name was taken meanwhile", path=[PATH]) from clash
    return [one.user for one in prepared.values()]


async def check(
    ctx: Context, news: Mapping[int, NewUser], problems: Mapping[int, Problems]
) -> tuple[dict[int, CheckedUser], dict[int, list[Refused]]]:
    """Validate the fields of each user.

    Returns the valid users, and the errors of the others, by key.
    """
    accounts, refused = dict[int, CheckedUser](), dict[int, list[Refused]]()
    for key, new in news.items():
        warned = len(ctx.warnings)
        try:
            accounts[key] = await creation_create.check(ctx, new, problems.get(key, Problems()))
        except Refused as refusal:
            refused[key] = refusal.each
        for one in ctx.warnings[warned:]:
            one.path[:0] = [PATH, str(key)]
    return accounts, refused


async def complete(ctx: Context, accounts: Mapping[int, CheckedUser]) -> dict[int, PreparedUser]:
    """Hash the passwords of checked users, a few at a time; return them in the same order."""
    done, keys = dict[int, PreparedUser](), list(accounts)
    for start in range(0, len(keys), HASHED_AT_ONCE):
        part = keys[start : start + HASHED_AT_ONCE]
        made = await asyncio.gather(*(creation_create.complete(ctx, accounts[key]) for key in part))
        done |= zip(part, made, strict=True)
    return done


class GivenUser(Protocol):
    """The fields of a new user that count towards the limits of a call."""

    password: str | None
    hashed_password: bool


def check_count(news: Sequence[GivenUser]) -> None:
    """Raise Invalid for too many users, or too many passwords to hash, in one call."""
    if not 0 < len(news) <= MOST:
        raise Invalid(f"1 to {MOST} accounts", constraint="max", path=[PATH])
    hashed = sum(bool(new.password) and not new.hashed_password for new in news)
    if hashed > PASSWORDS:
        text = f"at most {PASSWORDS} accounts with a password that is not hashed"
        raise Invalid(text, constraint="max", path=[PATH])


def _each(refusals: Mapping[int, Refused]) -> dict[int, list[Refused]]:
    return {key: refusal.each for key, refusal in refusals.items()}


def _settle(refused: Mapping[int, Sequence[Refused]]) -> None:
    """Raise the errors in the order of the users, with paths inside the list."""
    found = []
    for nth, refusals in sorted(refused.items()):
        for one in refusals:
            inner = [] if one.index is None else [str(one.index)]
            one.path, one.index = [PATH, str(nth), *one.path, *inner], nth
            found.append(one)
    if found:
        raise found[0] if len(found) == 1 else Several(found)
