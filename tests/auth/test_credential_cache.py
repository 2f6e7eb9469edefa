"""Credentials are remembered for a minute, and what ends them is heard within a second."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Delete, Insert, Update, delete, func, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.visitors import iterate
from sqlmodel import col

from models.auth import credential_changes
from models.auth.credential_changes import WATCHED, CredentialChange
from models.auth.credentials import AccessToken, ApiKey
from models.domains.tables import Domain
from models.errors import Unauthenticated
from models.events.bus.local_bus import LocalBus
from models.events.incarnation import ROW, StoreIncarnation
from models.events.wakeups import Shared, Wakeups
from models.mailboxes.shares import MailboxShare
from models.mailboxes.tables import Mailbox
from models.store.columns import table_of
from models.store.database import Database
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin, User
from resolvers.auth import (
    access_tokens,
    api_keys,
    authentication,
    credential_cache,
    credential_status,
)
from resolvers.auth.api_keys import NewKey
from resolvers.auth.credential_cache import memory_of
from resolvers.context import Context, Viewer
from tests.auth.conftest import Town
from tests.conftest import heard

Change = Update | Delete | Insert
SECOND = 1.0


@dataclass
class Process:
    """Another process of the same store, which hears of nothing but the store."""

    town: Town
    statements: list[str]

    async def viewer(self, secret: str, ip: str = "192.0.2.1") -> Viewer:
        return await authentication.sign_in(
            self.town.world, {"authorization": f"Bearer {secret}"}, ip=ip
        )

    async def remember(self, secret: str) -> Viewer:
        """Let 30 s pass in which the credential is in use, and looked up no more."""
        await self.viewer(secret)
        self.town.clock.tick(seconds=2)
        await self.viewer(secret)  # what changed before is read
        self.lookups()
        self.town.clock.tick(seconds=28)
        viewer = await self.viewer(secret)
        assert self.lookups() == 0
        return viewer

    def lookups(self) -> int:
        """How many credentials were looked up since the last call."""
        many = sum("digest = " in sent and "SELECT" in sent for sent in self.statements)
        del self.statements[:]
        return many


@pytest.fixture
async def other(town: Town) -> AsyncIterator[Process]:
    database = Database(town.world.database.url)
    world = replace(town.world, database=database, wakeups=Wakeups())
    yield Process(replace(town, world=world), heard(database, "INSERT INTO message_steps"))
    await authentication.settle(world)
    await database.close()


async def commit(town: Town, change: Change) -> None:
    """Change the store past all code that tells anybody."""
    async with town.world.write() as session:
        await (await session.connection()).execute(change)


def of_ada(town: Town) -> Any:
    return col(User.id) == town.users["ada"]


async def test_a_credential_is_looked_up_once_a_minute(town: Town, other: Process) -> None:
    token = await town.token("ada")
    _, key = await api_keys.create_key(town.by("ada"), NewKey("k"))
    await authentication.settle(town.world)
    other.lookups()
    for _ in range(12):  # 55 s
        for secret in (token, key):
            assert (await other.viewer(secret)).user_id == town.users["ada"]
        town.clock.tick(seconds=5)
    assert other.lookups() == 2
    for secret in (token, key):
        await other.viewer(secret)
    assert other.lookups() == 2


async def test_many_who_come_at_once_are_one_lookup(town: Town, other: Process) -> None:
    token = await town.token("ada")
    other.lookups()
    seen = await asyncio.gather(*(other.viewer(token) for _ in range(20)))
    assert {viewer.user_id for viewer in seen} == {town.users["ada"]}
    assert other.lookups() == 1
    town.clock.tick(seconds=2)
    await asyncio.gather(*(other.viewer(token) for _ in range(20)))
    assert len(other.statements) == 1  # what changed, read once for all


USERS: dict[str, Any] = {
    "disabled": {"disabled": True},
    "suspended": {"suspended": True},
    "password or factors changed, or signed out everywhere": {"auth_version": 2},
}


def _users(values: dict[str, Any]) -> Callable[[Town], Change]:
    return lambda town: update(User).where(of_ada(town)).values(**values)


def _tokens(**values: Any) -> Callable[[Town], Change]:
    return lambda _town: update(AccessToken).values(**values)


ENDS: dict[str, Callable[[Town], Change]] = {
    **{name: _users(values) for name, values in USERS.items()},
    "account deleted": lambda town: (
        update(User).where(of_ada(town)).values(disabled=True, deleted_at=town.clock())
    ),
    "account purged": lambda town: delete(User).where(of_ada(town)),
    "token deleted": lambda _town: delete(AccessToken),
    "token ends sooner": lambda town: update(AccessToken).values(expires_at=town.clock()),
    "token has another secret": _tokens(digest="x"),
    "token of an older version": _tokens(auth_version=0),
}


@pytest.mark.parametrize("name", ENDS)
async def test_what_ends_a_token_is_heard(town: Town, other: Process, name: str) -> None:
    token = await town.token("ada")
    assert (await other.remember(token)).user_id == town.users["ada"]
    await commit(town, ENDS[name](town))
    town.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


KEYS: dict[str, Callable[[Town], Change]] = {
    **{name: _users(values) for name, values in USERS.items() if "version" not in str(values)},
    "deleted": lambda _town: delete(ApiKey),
    "switched off": lambda _town: update(ApiKey).values(active=False),
    "expires": lambda town: update(ApiKey).values(expires_at=town.clock()),
    "other networks": lambda _town: update(ApiKey).values(allowed_ips=["198.51.100.0/24"]),
    "made by an account that is no administrator": lambda town: update(ApiKey).values(
        made_by=town.users["ada"]
    ),
}


@pytest.mark.parametrize("name", KEYS)
async def test_what_ends_a_key_is_heard(town: Town, other: Process, name: str) -> None:
    _, key = await api_keys.create_key(town.by("ada"), NewKey("k"))
    await other.remember(key)
    await commit(town, KEYS[name](town))
    town.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(key)


RIGHTS: dict[str, tuple[Callable[[Town], Change], str, Any]] = {
    "scopes": (lambda _t: update(ApiKey).values(scopes=["MAIL"]), "scopes", {Scope.MAIL}),
    "read only": (lambda _t: update(ApiKey).values(read_only=True), "read_only", True),
    "operations": (lambda _t: update(ApiKey).values(operations=["user"]), "operations", {"user"}),
    "role of the key": (lambda _t: update(ApiKey).values(role=Role.USER), "role", Role.USER),
    "role of the account": (_users({"role": Role.USER}), "role", Role.USER),
    "domain": (lambda _town: delete(DomainAdmin), "administers", frozenset()),
    "permissions": (_users({"admin_permissions": []}), "permissions", frozenset()),
    "domains of the key": (lambda _t: update(ApiKey).values(domains=[7]), "administers", set()),
}


@pytest.mark.parametrize("name", RIGHTS)
async def test_what_narrows_a_credential_is_heard(town: Town, other: Process, name: str) -> None:
    change, attribute, after = RIGHTS[name]
    permissions = [AdminPermission.LOGIN_AS]
    await town.change("ada", role=Role.DOMAIN_ADMIN, admin_permissions=permissions)
    ada, domain = town.users["ada"], town.domain_id
    await commit(town, insert(DomainAdmin).values(user_id=ada, domain_id=domain))
    admin = Role.DOMAIN_ADMIN
    _, key = await api_keys.create_key(town.by("ada", admin), NewKey("k", role=admin))
    assert getattr(await other.remember(key), attribute) != after
    await commit(town, change(town))
    town.clock.tick(seconds=SECOND)
    assert getattr(await other.viewer(key), attribute) == after


async def acting_token(town: Town, **actor: Any) -> str:
    """A token of ada's, which another account or a key has made."""
    token = await town.token("ada")
    await commit(town, update(AccessToken).values(**actor))
    return token


@pytest.mark.parametrize("change", [{"role": Role.USER}, {"disabled": True}])
async def test_a_credential_ends_with_its_maker(
    town: Town, other: Process, change: dict[str, Any]
) -> None:
    rex = await town.user("rex", role=Role.ADMIN)
    token = await acting_token(town, actor_id=rex)
    assert (await other.remember(token)).actor_id == rex
    await town.change("rex", **change)
    town.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


@pytest.mark.parametrize("end", ["switched off", "deleted", "expired"])
async def test_a_credential_ends_with_the_key_that_made_it(
    town: Town, other: Process, end: str
) -> None:
    expires_at = town.clock() + timedelta(seconds=40)
    platform = replace(
        town.by("ada"), viewer=Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER}))
    )
    key, _ = await api_keys.create_key(
        platform, NewKey("front end", role=Role.ADMIN, expires_at=expires_at)
    )
    token = await acting_token(town, actor_key_id=key.id)
    await other.remember(token)
    if end == "expired":
        town.clock.tick(seconds=10)
    elif end == "deleted":
        await commit(town, delete(ApiKey))
    else:
        await commit(town, update(ApiKey).values(active=False))
    town.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


async def test_a_shorter_life_of_tokens_is_in_force_at_once(town: Town, other: Process) -> None:
    token = await town.token("ada")
    await other.remember(token)
    options = replace(other.town.world.options, token_life=timedelta(seconds=20))
    shorter = replace(other.town.world, options=options)
    with pytest.raises(Unauthenticated):
        await authentication.sign_in(shorter, {"authorization": f"Bearer {token}"})


async def test_what_is_shared_is_heard(town: Town, other: Process) -> None:
    bob = await town.user("bob")
    async with town.world.write() as session:
        now = town.clock()
        box = Mailbox(
            id=town.world.key(), user_id=bob, path="INBOX", guid="g", uid_validity=1,
            created_at=now,
        )  # fmt: skip
        session.add(box)
        box_id = box.id
    token = await town.token("ada")
    assert not (await other.remember(token)).reach.shared
    share = {"mailbox_id": box_id, "user_id": town.users["ada"], "owner_id": bob}
    await commit(town, insert(MailboxShare).values(**share, rights=3, since=0))
    town.clock.tick(seconds=SECOND)
    assert (await other.viewer(token)).reach.shared


@pytest.mark.parametrize("bus", ["none", "up", "silent"])
async def test_what_ends_is_refused_within_a_second_whatever_the_bus_does(
    town: Town, tmp_path: Path, bus: str
) -> None:
    """By real clocks. The bus of the first process works, the other one may not hear it."""
    now = partial(datetime.now, UTC)
    mine = replace(town.world, now=now, wakeups=Shared(LocalBus(tmp_path / "bells")))
    database = Database(town.world.database.url)
    bells = Wakeups() if bus == "none" else Shared(LocalBus(tmp_path / "bells"))
    theirs = replace(mine, database=database, wakeups=bells)
    credential_cache.guard(theirs)
    joined = asyncio.Event()
    hearing = asyncio.create_task(bells.hear(joined.set)) if bus == "up" else None
    if hearing:
        await joined.wait()
    there = Process(Town(theirs, town.clock), heard(database, "INSERT INTO message_steps"))
    here = Town(mine, town.clock, town.domain_id, town.users)
    token = await here.token("ada")
    ctx = Context(mine, await here.viewer(token))
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        await there.viewer(token)
        await asyncio.sleep(0.05)
    assert there.lookups() <= 2  # it was remembered for longer than a second
    assert await access_tokens.revoke(ctx) == 1
    revoked_at, last = time.monotonic(), 0.0
    while time.monotonic() < revoked_at + 30:
        began = time.monotonic()
        if await there.town.refused(token):
            break
        last = began
        await asyncio.sleep(0.02)
    assert last - revoked_at <= 1
    if hearing:
        hearing.cancel()
        await asyncio.wait([hearing])
    for world in (mine, theirs):
        await authentication.settle(world)
        await world.wakeups.close()
    await database.close()


async def test_a_clock_that_is_set_back_while_changes_are_read_is_no_circle(
    town: Town, other: Process
) -> None:
    token = await town.token("ada")
    await other.viewer(token)
    world = other.town.world
    town.clock.tick(seconds=2)
    arrived = town.clock()
    town.clock.tick(hours=-1)
    async with asyncio.timeout(10):
        assert await credential_cache.read_changes(world, memory_of(world.database), arrived)


async def test_a_change_while_it_is_read_is_not_missed(town: Town, other: Process) -> None:
    """The lookup has read the old row; the change is committed, and read, before it ends."""
    token = await town.token("ada")
    world, digest = other.town.world, credential_status.digest_of(token)

    async def read() -> Any:
        found = await credential_status.token(world, digest=digest)
        await town.change("ada", disabled=True)
        memory = memory_of(world.database)
        memory.certain_at = None
        await credential_cache.read_changes(world, memory, world.now())
        return found

    assert await credential_cache.look_up(world, digest, read)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


async def test_a_change_that_is_committed_late_is_not_missed(town: Town, other: Process) -> None:
    """Others commit meanwhile, and their changes are read."""
    await town.user("bob")
    token, second = await town.token("ada"), await town.token("bob")
    await other.viewer(token)
    async with town.world.write() as session:
        await (await session.connection()).execute(
            update(User).where(of_ada(town)).values(disabled=True)
        )
        if town.world.database.dialect == "postgresql":  # SQLite has one writer
            await town.change("bob", suspended=True)
        town.clock.tick(seconds=SECOND)
        assert await other.viewer(token)
        if town.world.database.dialect == "postgresql":
            with pytest.raises(Unauthenticated):
                await other.viewer(second)
    town.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


async def test_without_news_of_the_store_nothing_old_is_trusted(town: Town, other: Process) -> None:
    token = await town.token("ada")
    await other.viewer(token)
    await commit(town, text("ALTER TABLE credential_changes RENAME TO away"))  # type: ignore[arg-type]
    try:
        await other.viewer(token)
        town.clock.tick(seconds=SECOND)
        with pytest.raises((SQLAlchemyError, sqlite3.OperationalError)):
            await other.viewer(token)
    finally:
        await commit(town, text("ALTER TABLE away RENAME TO credential_changes"))  # type: ignore[arg-type]
    await other.viewer(token)


@pytest.mark.parametrize("change", [{"number": 1}, {"beat": 3}])
async def test_after_a_restore_of_the_store_nothing_is_remembered(
    town: Town, other: Process, change: dict[str, int]
) -> None:
    row = {"id": ROW, "store": "s", "number": 0, "base": 0, "beat": 5}
    await commit(town, delete(StoreIncarnation))
    await commit(town, insert(StoreIncarnation).values(**row))
    token = await town.token("ada")
    for _ in range(2):
        await other.viewer(token)
        town.clock.tick(seconds=2)
    other.lookups()
    await commit(town, update(StoreIncarnation).values(**change))
    await other.viewer(token)
    assert other.lookups() == 1


async def test_a_clock_that_is_set_lets_nothing_live_longer(town: Town, other: Process) -> None:
    token = await town.token("ada")
    await other.viewer(token)
    other.lookups()
    for step in (-3600, 3600):
        town.clock.tick(seconds=step)
        await other.viewer(token)
        assert other.lookups() == 1
    memory = memory_of(other.town.world.database)
    (entry,) = memory.known.values()
    entry.read_at -= 60_000  # as if the machine had slept: no clock of the day shows that
    await other.viewer(token)
    assert other.lookups() == 1


async def test_uses_are_noted_while_it_is_remembered(town: Town, other: Process) -> None:
    token = await town.token("ada", ttl=timedelta(minutes=1))
    for _ in range(20):  # 100 s: without a note of its use it would have ended
        await other.viewer(token)
        await authentication.settle(other.town.world)
        town.clock.tick(seconds=5)
    (row,) = await town.world.database.read(select(table_of(AccessToken)))
    assert town.clock() - row.last_used_at <= timedelta(seconds=20)
    town.clock.tick(seconds=56)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


async def test_the_store_has_a_trigger_for_each_change(town: Town) -> None:
    """A migration that makes a table anew on SQLite loses its triggers."""
    dialect = town.world.database.dialect
    names = {
        words[2] for sql in credential_changes.CREATE[dialect]
        if (words := sql.split())[:2] == ["CREATE", "TRIGGER"]
    }  # fmt: skip
    there = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname AS name FROM pg_trigger WHERE NOT tgisinternal",
    }
    rows: Any = await town.world.database.read(text(there[dialect]))  # type: ignore[arg-type]
    assert names <= {row.name for row in rows}


FIXED = {  # columns that no change ends a credential by, or that never change
    "access_tokens": {"id", "protocol", "ip", "last_used_at", "expires_at"},
    "api_keys": {"id", "name", "created_at", "last_used_at", "last_used_ip", "maker"},
    "users": {"id"},
    "domain_admins": set[str](),
    "mailbox_shares": set[str](),
}


@pytest.mark.parametrize(
    "lookup", [credential_status.token_lookup("digest"), credential_status.key_lookup("digest")]
)
def test_every_column_that_a_lookup_reads_is_watched(lookup: Any) -> None:
    read: dict[str, set[str]] = {}
    for part in iterate(lookup.made):
        table = getattr(part, "table", None)
        name = getattr(getattr(table, "element", table), "name", None)
        if getattr(part, "__visit_name__", "") == "column" and name:
            read.setdefault(name, set()).add(str(vars(part)["name"]))
    assert read.keys() <= WATCHED.keys()
    for name, columns in read.items():
        watched = {*WATCHED[name].updated, WATCHED[name].owner}
        unwatched = columns - watched - FIXED[name]
        assert not unwatched or WATCHED[name].inserted, (name, unwatched)
    assert {"users", "domain_admins", "mailbox_shares"} <= read.keys()


async def test_only_changes_that_count_are_noted(town: Town) -> None:
    async def noted() -> int:
        (row,) = await town.world.database.read(
            select(func.count().label("n")).select_from(CredentialChange)
        )
        return int(row.n)

    token = await town.token("ada")
    before = await noted()
    await town.viewer(token)
    town.clock.tick(hours=2)
    await town.viewer(token)
    await authentication.settle(town.world)
    await town.change("ada", used=7, last_login_at=town.clock(), disabled=False, role=Role.USER)
    await commit(town, update(Domain).values(updated_at=town.clock()))
    assert await noted() == before
    await town.change("ada", disabled=True)
    assert await noted() == before + 1
