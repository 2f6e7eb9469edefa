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
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import Role
from models.users.search_index import search_text
from models.users.tables import User, UserTag

FIRST_NAMES = ("ada", "bert", "carl", "dora", "emil", "frida", "gustav", "hedwig", "ivo", "judith")
LAST_NAMES = ("keller", "lovelace", "meyer", "novak", "okafor", "petrov", "quandt", "rossi", "sato")
ROWS_PER_INSERT = 5000
ADMIN_INTERVAL, INACTIVE_INTERVAL, TAGGED_INTERVAL = 1000, 1000, 200


async def insert_users(
    environment: Environment, user_count: int, *, domain_count: int = 20
) -> list[int]:
    """Insert users without mailboxes in the domains d0.crowd.example and so on. Returns their IDs.

    The first domain has half of them. Ends with ANALYZE.
    """
    now = environment.now()
    domain_ids = [environment.new_id() for _ in range(domain_count)]
    users: dict[int, int] = {
        environment.new_id(): _domain_index(n, domain_count) for n in range(user_count)
    }
    counts = [
        sum(at == domain_index for at in users.values()) for domain_index in range(domain_count)
    ]
    rows = [
        {
            "id": key,
            "name": f"d{n}.crowd.example",
            "user_count": counts[n],
            "address_count": counts[n],
            "quota_allocated": counts[n] * environment.options.users_default_quota,
            "created_at": now,
            "updated_at": now,
        }
        for n, key in enumerate(domain_ids)
    ]
    await insert_rows(environment, Domain, iter(rows))
    await insert_rows(environment, Stream, ({"id": key} for key in (*domain_ids, *users)))
    await insert_rows(environment, User, _user_rows(environment, users, domain_ids))
    await insert_rows(environment, Address, _address_rows(environment, users, domain_ids))
    tagged = [key for n, key in enumerate(users) if n % TAGGED_INTERVAL == 0]
    await insert_rows(environment, UserTag, ({"tag": "vip", "user_id": key} for key in tagged))
    async with environment.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    return list(users)


def _domain_index(number: int, domain_count: int) -> int:
    """Return the domain of a user: odd users are in the first one."""
    return 0 if number % 2 else number // 2 % domain_count


def _local_part(number: int) -> str:
    first = (
        "zoe"
        if number % ADMIN_INTERVAL == ADMIN_INTERVAL // 2
        else FIRST_NAMES[number % len(FIRST_NAMES)]
    )
    last = LAST_NAMES[number // len(FIRST_NAMES) % len(LAST_NAMES)]
    return f"{first}.{last}.{number:06}"


def _user_rows(
    environment: Environment, domain_index_by_user: dict[int, int], domain_ids: list[int]
) -> Iterator[dict[str, Any]]:
    chance, now = Random(7), environment.now()  # noqa: S311 - the same crowd each time
    for n, (key, domain_index) in enumerate(domain_index_by_user.items()):
        local, name = _local_part(n), " ".join(_local_part(n).split(".")[:2]).title()
        yield {
            "id": key,
            "username": f"{local}@d{domain_index}.crowd.example",
            "username_key": f"{local.replace('.', '')}@d{domain_index}.crowd.example",
            "name": name,
            "words": search_text(local, name, f"{local}@d{domain_index}.crowd.example"),
            "role": Role.ADMIN if n % ADMIN_INTERVAL == 0 else Role.USER,
            "domain_id": domain_ids[domain_index],
            "tenant_id": domain_ids[domain_index],
            "active": n % INACTIVE_INTERVAL != 0,
            "suspended": n % INACTIVE_INTERVAL == 1,
            "used": chance.randrange(1 << 30),
            "created_at": now + timedelta(seconds=n),
            "updated_at": now,
            "last_login_at": now - timedelta(seconds=chance.randrange(10**7)) if n % 3 else None,
        }


def _address_rows(
    environment: Environment, domain_index_by_user: dict[int, int], domain_ids: list[int]
) -> Iterator[dict[str, Any]]:
    now = environment.now()
    for n, (key, domain_index) in enumerate(domain_index_by_user.items()):
        yield {
            "id": environment.new_id(),
            "local": _local_part(n).replace(".", ""),
            "domain_id": domain_ids[domain_index],
            "display_address": f"{_local_part(n)}@d{domain_index}.crowd.example",
            "user_id": key,
            "main": True,
            "created_at": now,
            "updated_at": now,
        }


async def insert_rows(
    environment: Environment, table: type[SQLModel], rows: Iterator[dict[str, Any]]
) -> None:
    """Insert rows with the column defaults, thousands per transaction."""
    columns = core_table(table).c
    usual = {
        name: field.get_default(call_default_factory=True)
        for name, field in table.model_fields.items()
        if not field.is_required() and name in columns
    }
    given = [{**usual, **row} for row in rows]
    for start in range(0, len(given), ROWS_PER_INSERT):
        part = given[start : start + ROWS_PER_INSERT]
        async with environment.write_session() as session:
            await (await session.connection()).execute(insert(table), part)
