"""Insert many users as rows, to measure that lists do not become slower."""

from collections.abc import Iterator
from datetime import timedelta
from random import Random
from typing import Any

from sqlalchemy import insert, text
from sqlmodel import SQLModel

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.events.journal import Stream
from models.runtime.environment import World
from models.store.columns import table_of
from models.users.roles import Role
from models.users.search_index import words_of
from models.users.tables import User, UserTag

FIRST = ("ada", "bert", "carl", "dora", "emil", "frida", "gustav", "hedwig", "ivo", "judith")
LAST = ("keller", "lovelace", "meyer", "novak", "okafor", "petrov", "quandt", "rossi", "sato")
TOGETHER = 5000
EVERY_STAFF, EVERY_DISABLED, EVERY_TAGGED = 1000, 1000, 200


async def fill(world: World, many: int, *, domains: int = 20) -> list[int]:
    """Insert users without mailboxes in the domains d0.crowd.example and so on. Returns their IDs.

    The first domain has half of them. Ends with ANALYZE.
    """
    now = world.now()
    places = [world.key() for _ in range(domains)]
    users: dict[int, int] = {world.key(): _domain(n, domains) for n in range(many)}
    counts = [sum(at == place for at in users.values()) for place in range(domains)]
    rows = [
        {
            "id": key,
            "name": f"d{n}.crowd.example",
            "user_count": counts[n],
            "address_count": counts[n],
            "quota_allocated": counts[n] * world.options.default_quota,
            "created_at": now,
            "updated_at": now,
        }
        for n, key in enumerate(places)
    ]
    await _insert(world, Domain, iter(rows))
    await _insert(world, Stream, ({"id": key} for key in (*places, *users)))
    await _insert(world, User, _accounts(world, users, places))
    await _insert(world, Address, _addresses(world, users, places))
    tagged = [key for n, key in enumerate(users) if n % EVERY_TAGGED == 0]
    await _insert(world, UserTag, ({"tag": "vip", "user_id": key} for key in tagged))
    async with world.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    return list(users)


def _domain(number: int, domains: int) -> int:
    """Return the domain of a user: odd users are in the first one."""
    return 0 if number % 2 else number // 2 % domains


def _local(number: int) -> str:
    first = "zoe" if number % EVERY_STAFF == EVERY_STAFF // 2 else FIRST[number % len(FIRST)]
    last = LAST[number // len(FIRST) % len(LAST)]
    return f"{first}.{last}.{number:06}"


def _accounts(world: World, users: dict[int, int], places: list[int]) -> Iterator[dict[str, Any]]:
    chance, now = Random(7), world.now()  # noqa: S311 - the same crowd each time
    for n, (key, place) in enumerate(users.items()):
        local, name = _local(n), " ".join(_local(n).split(".")[:2]).title()
        yield {
            "id": key,
            "username": f"{local}@d{place}.crowd.example",
            "username_key": f"{local.replace('.', '')}@d{place}.crowd.example",
            "name": name,
            "words": words_of(local, name, f"{local}@d{place}.crowd.example"),
            "role": Role.ADMIN if n % EVERY_STAFF == 0 else Role.USER,
            "domain_id": places[place],
            "tenant_id": places[place],
            "disabled": n % EVERY_DISABLED == 0,
            "suspended": n % EVERY_DISABLED == 1,
            "used": chance.randrange(1 << 30),
            "created_at": now + timedelta(seconds=n),
            "updated_at": now,
            "last_login_at": now - timedelta(seconds=chance.randrange(10**7)) if n % 3 else None,
        }


def _addresses(world: World, users: dict[int, int], places: list[int]) -> Iterator[dict[str, Any]]:
    now = world.now()
    for n, (key, place) in enumerate(users.items()):
        yield {
            "id": world.key(),
            "local": _local(n).replace(".", ""),
            "domain_id": places[place],
            "shown": f"{_local(n)}@d{place}.crowd.example",
            "user_id": key,
            "main": True,
            "created_at": now,
            "updated_at": now,
        }


async def _insert(world: World, table: type[SQLModel], rows: Iterator[dict[str, Any]]) -> None:
    """Insert rows with the column defaults, thousands per transaction."""
    known = table_of(table).c
    usual = {
        name: field.get_default(call_default_factory=True)
        for name, field in table.model_fields.items()
        if not field.is_required() and name in known
    }
    given = [{**usual, **row} for row in rows]
    for start in range(0, len(given), TOGETHER):
        part = given[start : start + TOGETHER]
        async with world.write() as session:
            await (await session.connection()).execute(insert(table), part)
