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
from models.auth.credential_changes import WATCHED_TABLES, CredentialChange
from models.auth.credentials import AccessToken, ApiKey
from models.domains.tables import Domain
from models.errors import Unauthenticated
from models.events.bus.local_bus import LocalBus
from models.events.incarnation import ROW_ID, StoreIncarnation
from models.events.wakeups import BusWakeups, Wakeups
from models.mailboxes.shares import MailboxShare
from models.mailboxes.tables import Mailbox
from models.store.columns import core_table
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
from resolvers.auth.api_keys import NewApiKey
from resolvers.auth.credential_cache import cache_of_database
from resolvers.context import Context, Viewer
from tests.conftest import heard
from tests.support.accounts.sign_in_environment import SignInEnvironment

Change = Update | Delete | Insert
SECOND = 1.0


@dataclass
class Process:
    """Another process of the same store, which hears of nothing but the store."""

    sign_in_environment: SignInEnvironment
    statements: list[str]

    async def viewer(self, secret: str, ip: str = "192.0.2.1") -> Viewer:
        return await authentication.authenticate_request(
            self.sign_in_environment.world, {"authorization": f"Bearer {secret}"}, ip=ip
        )

    async def remember(self, secret: str) -> Viewer:
        """Let 30 s pass in which the credential is in use, and looked up no more."""
        await self.viewer(secret)
        self.sign_in_environment.clock.tick(seconds=2)
        await self.viewer(secret)  # what changed before is read
        self.lookups()
        self.sign_in_environment.clock.tick(seconds=28)
        viewer = await self.viewer(secret)
        assert self.lookups() == 0
        return viewer

    def lookups(self) -> int:
        """How many credentials were looked up since the last call."""
        many = sum("digest = " in sent and "SELECT" in sent for sent in self.statements)
        del self.statements[:]
        return many


@pytest.fixture
async def other(sign_in_environment: SignInEnvironment) -> AsyncIterator[Process]:
    database = Database(sign_in_environment.world.database.url)
    world = replace(sign_in_environment.world, database=database, wakeups=Wakeups())
    yield Process(
        replace(sign_in_environment, world=world), heard(database, "INSERT INTO message_steps")
    )
    await authentication.wait_for_background_tasks(world)
    await database.close()


async def commit(sign_in_environment: SignInEnvironment, change: Change) -> None:
    """Change the store past all code that tells anybody."""
    async with sign_in_environment.world.write_session() as session:
        await (await session.connection()).execute(change)


def of_ada(sign_in_environment: SignInEnvironment) -> Any:
    return col(User.id) == sign_in_environment.users["ada"]


async def test_a_credential_is_looked_up_once_a_minute(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    token = await sign_in_environment.create_token("ada")
    _, key = await api_keys.create_api_key(sign_in_environment.user_context("ada"), NewApiKey("k"))
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    other.lookups()
    for _ in range(12):  # 55 s
        for secret in (token, key):
            assert (await other.viewer(secret)).user_id == sign_in_environment.users["ada"]
        sign_in_environment.clock.tick(seconds=5)
    assert other.lookups() == 2
    for secret in (token, key):
        await other.viewer(secret)
    assert other.lookups() == 2


async def test_many_who_come_at_once_are_one_lookup(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    token = await sign_in_environment.create_token("ada")
    other.lookups()
    seen = await asyncio.gather(*(other.viewer(token) for _ in range(20)))
    assert {viewer.user_id for viewer in seen} == {sign_in_environment.users["ada"]}
    assert other.lookups() == 1
    sign_in_environment.clock.tick(seconds=2)
    await asyncio.gather(*(other.viewer(token) for _ in range(20)))
    assert len(other.statements) == 1  # what changed, read once for all


USERS: dict[str, Any] = {
    "disabled": {"disabled": True},
    "suspended": {"suspended": True},
    "password or factors changed, or signed out everywhere": {"auth_version": 2},
}


def _users(values: dict[str, Any]) -> Callable[[SignInEnvironment], Change]:
    return lambda sign_in_environment: (
        update(User).where(of_ada(sign_in_environment)).values(**values)
    )


def _tokens(**values: Any) -> Callable[[SignInEnvironment], Change]:
    return lambda _town: update(AccessToken).values(**values)


ENDS: dict[str, Callable[[SignInEnvironment], Change]] = {
    **{name: _users(values) for name, values in USERS.items()},
    "account deleted": lambda sign_in_environment: (
        update(User)
        .where(of_ada(sign_in_environment))
        .values(disabled=True, deleted_at=sign_in_environment.clock())
    ),
    "account purged": lambda sign_in_environment: delete(User).where(of_ada(sign_in_environment)),
    "token deleted": lambda _town: delete(AccessToken),
    "token ends sooner": lambda sign_in_environment: update(AccessToken).values(
        expires_at=sign_in_environment.clock()
    ),
    "token has another secret": _tokens(digest="x"),
    "token of an older version": _tokens(auth_version=0),
}


@pytest.mark.parametrize("name", ENDS)
async def test_what_ends_a_token_is_heard(
    sign_in_environment: SignInEnvironment, other: Process, name: str
) -> None:
    token = await sign_in_environment.create_token("ada")
    assert (await other.remember(token)).user_id == sign_in_environment.users["ada"]
    await commit(sign_in_environment, ENDS[name](sign_in_environment))
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


KEYS: dict[str, Callable[[SignInEnvironment], Change]] = {
    **{name: _users(values) for name, values in USERS.items() if "version" not in str(values)},
    "deleted": lambda _town: delete(ApiKey),
    "switched off": lambda _town: update(ApiKey).values(active=False),
    "expires": lambda sign_in_environment: update(ApiKey).values(
        expires_at=sign_in_environment.clock()
    ),
    "other networks": lambda _town: update(ApiKey).values(allowed_ips=["198.51.100.0/24"]),
    "made by an account that is no administrator": lambda sign_in_environment: update(
        ApiKey
    ).values(made_by=sign_in_environment.users["ada"]),
}


@pytest.mark.parametrize("name", KEYS)
async def test_what_ends_a_key_is_heard(
    sign_in_environment: SignInEnvironment, other: Process, name: str
) -> None:
    _, key = await api_keys.create_api_key(sign_in_environment.user_context("ada"), NewApiKey("k"))
    await other.remember(key)
    await commit(sign_in_environment, KEYS[name](sign_in_environment))
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(key)


RIGHTS: dict[str, tuple[Callable[[SignInEnvironment], Change], str, Any]] = {
    "scopes": (lambda _t: update(ApiKey).values(scopes=["MAIL"]), "scopes", {Scope.MAIL}),
    "read only": (lambda _t: update(ApiKey).values(read_only=True), "read_only", True),
    "operations": (
        lambda _t: update(ApiKey).values(operations=["user"]),
        "allowed_operations",
        {"user"},
    ),
    "role of the key": (lambda _t: update(ApiKey).values(role=Role.USER), "role", Role.USER),
    "role of the account": (_users({"role": Role.USER}), "role", Role.USER),
    "domain": (lambda _town: delete(DomainAdmin), "administered_domains", frozenset()),
    "permissions": (_users({"admin_permissions": []}), "permissions", frozenset()),
    "domains of the key": (
        lambda _t: update(ApiKey).values(domains=[7]),
        "administered_domains",
        set(),
    ),
}


@pytest.mark.parametrize("name", RIGHTS)
async def test_what_narrows_a_credential_is_heard(
    sign_in_environment: SignInEnvironment, other: Process, name: str
) -> None:
    change, attribute, after = RIGHTS[name]
    permissions = [AdminPermission.LOGIN_AS]
    await sign_in_environment.change_user(
        "ada", role=Role.DOMAIN_ADMIN, admin_permissions=permissions
    )
    ada, domain = sign_in_environment.users["ada"], sign_in_environment.domain_id
    await commit(sign_in_environment, insert(DomainAdmin).values(user_id=ada, domain_id=domain))
    admin = Role.DOMAIN_ADMIN
    _, key = await api_keys.create_api_key(
        sign_in_environment.user_context("ada", admin), NewApiKey("k", role=admin)
    )
    assert getattr(await other.remember(key), attribute) != after
    await commit(sign_in_environment, change(sign_in_environment))
    sign_in_environment.clock.tick(seconds=SECOND)
    assert getattr(await other.viewer(key), attribute) == after


async def acting_token(sign_in_environment: SignInEnvironment, **actor: Any) -> str:
    """A token of ada's, which another account or a key has made."""
    token = await sign_in_environment.create_token("ada")
    await commit(sign_in_environment, update(AccessToken).values(**actor))
    return token


@pytest.mark.parametrize("change", [{"role": Role.USER}, {"disabled": True}])
async def test_a_credential_ends_with_its_maker(
    sign_in_environment: SignInEnvironment, other: Process, change: dict[str, Any]
) -> None:
    rex = await sign_in_environment.add_user("rex", role=Role.ADMIN)
    token = await acting_token(sign_in_environment, actor_id=rex)
    assert (await other.remember(token)).actor_id == rex
    await sign_in_environment.change_user("rex", **change)
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


@pytest.mark.parametrize("end", ["switched off", "deleted", "expired"])
async def test_a_credential_ends_with_the_key_that_made_it(
    sign_in_environment: SignInEnvironment, other: Process, end: str
) -> None:
    expires_at = sign_in_environment.clock() + timedelta(seconds=40)
    platform = replace(
        sign_in_environment.user_context("ada"),
        viewer=Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})),
    )
    key, _ = await api_keys.create_api_key(
        platform, NewApiKey("front end", role=Role.ADMIN, expires_at=expires_at)
    )
    token = await acting_token(sign_in_environment, actor_key_id=key.id)
    await other.remember(token)
    if end == "expired":
        sign_in_environment.clock.tick(seconds=10)
    elif end == "deleted":
        await commit(sign_in_environment, delete(ApiKey))
    else:
        await commit(sign_in_environment, update(ApiKey).values(active=False))
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


async def test_a_shorter_life_of_tokens_is_in_force_at_once(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other.remember(token)
    options = replace(other.sign_in_environment.world.options, token_life=timedelta(seconds=20))
    shorter = replace(other.sign_in_environment.world, options=options)
    with pytest.raises(Unauthenticated):
        await authentication.authenticate_request(shorter, {"authorization": f"Bearer {token}"})


async def test_what_is_shared_is_heard(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    bob = await sign_in_environment.add_user("bob")
    async with sign_in_environment.world.write_session() as session:
        now = sign_in_environment.clock()
        box = Mailbox(
            id=sign_in_environment.world.new_id(), user_id=bob, path="INBOX", guid="g",
            uid_validity=1, created_at=now,
        )  # fmt: skip
        session.add(box)
        box_id = box.id
    token = await sign_in_environment.create_token("ada")
    assert not (await other.remember(token)).share_visibility.has_shared_mailboxes
    share = {"mailbox_id": box_id, "user_id": sign_in_environment.users["ada"], "owner_id": bob}
    await commit(sign_in_environment, insert(MailboxShare).values(**share, rights=3, since=0))
    sign_in_environment.clock.tick(seconds=SECOND)
    assert (await other.viewer(token)).share_visibility.has_shared_mailboxes


@pytest.mark.parametrize("bus", ["none", "up", "silent"])
async def test_what_ends_is_refused_within_a_second_whatever_the_bus_does(
    sign_in_environment: SignInEnvironment, tmp_path: Path, bus: str
) -> None:
    """By real clocks. The bus of the first process works, the other one may not hear it."""
    now = partial(datetime.now, UTC)
    mine = replace(
        sign_in_environment.world, now=now, wakeups=BusWakeups(LocalBus(tmp_path / "bells"))
    )
    database = Database(sign_in_environment.world.database.url)
    bells = Wakeups() if bus == "none" else BusWakeups(LocalBus(tmp_path / "bells"))
    theirs = replace(mine, database=database, wakeups=bells)
    credential_cache.follow_drops(theirs)
    joined = asyncio.Event()
    hearing = asyncio.create_task(bells.receive(joined.set)) if bus == "up" else None
    if hearing:
        await joined.wait()
    there = Process(
        SignInEnvironment(theirs, sign_in_environment.clock),
        heard(database, "INSERT INTO message_steps"),
    )
    here = SignInEnvironment(
        mine, sign_in_environment.clock, sign_in_environment.domain_id, sign_in_environment.users
    )
    token = await here.create_token("ada")
    ctx = Context(mine, await here.authenticate(token))
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        await there.viewer(token)
        await asyncio.sleep(0.05)
    assert there.lookups() <= 2  # it was remembered for longer than a second
    assert await access_tokens.revoke_access_tokens(ctx) == 1
    revoked_at, last = time.monotonic(), 0.0
    while time.monotonic() < revoked_at + 30:
        began = time.monotonic()
        if await there.sign_in_environment.is_refused(token):
            break
        last = began
        await asyncio.sleep(0.02)
    assert last - revoked_at <= 1
    if hearing:
        hearing.cancel()
        await asyncio.wait([hearing])
    for world in (mine, theirs):
        await authentication.wait_for_background_tasks(world)
        await world.wakeups.close()
    await database.close()


async def test_a_clock_that_is_set_back_while_changes_are_read_is_no_circle(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other.viewer(token)
    world = other.sign_in_environment.world
    sign_in_environment.clock.tick(seconds=2)
    arrived = sign_in_environment.clock()
    sign_in_environment.clock.tick(hours=-1)
    async with asyncio.timeout(10):
        assert await credential_cache.apply_credential_changes(
            world, cache_of_database(world.database), arrived
        )


async def test_a_change_while_it_is_read_is_not_missed(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    """The lookup has read the old row; the change is committed, and read, before it ends."""
    token = await sign_in_environment.create_token("ada")
    world, digest = other.sign_in_environment.world, credential_status.secret_digest(token)

    async def read() -> Any:
        found = await credential_status.load_token(world, digest=digest)
        await sign_in_environment.change_user("ada", disabled=True)
        memory = cache_of_database(world.database)
        memory.changes_read_at = None
        await credential_cache.apply_credential_changes(world, memory, world.now())
        return found

    assert await credential_cache.read_and_cache(world, digest, read)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


async def test_a_change_that_is_committed_late_is_not_missed(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    """Others commit meanwhile, and their changes are read."""
    await sign_in_environment.add_user("bob")
    token, second = (
        await sign_in_environment.create_token("ada"),
        await sign_in_environment.create_token("bob"),
    )
    await other.viewer(token)
    async with sign_in_environment.world.write_session() as session:
        await (await session.connection()).execute(
            update(User).where(of_ada(sign_in_environment)).values(disabled=True)
        )
        if sign_in_environment.world.database.dialect == "postgresql":  # SQLite has one writer
            await sign_in_environment.change_user("bob", suspended=True)
        sign_in_environment.clock.tick(seconds=SECOND)
        assert await other.viewer(token)
        if sign_in_environment.world.database.dialect == "postgresql":
            with pytest.raises(Unauthenticated):
                await other.viewer(second)
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


async def test_without_news_of_the_store_nothing_old_is_trusted(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other.viewer(token)
    await commit(sign_in_environment, text("ALTER TABLE credential_changes RENAME TO away"))  # type: ignore[arg-type]
    try:
        await other.viewer(token)
        sign_in_environment.clock.tick(seconds=SECOND)
        with pytest.raises((SQLAlchemyError, sqlite3.OperationalError)):
            await other.viewer(token)
    finally:
        await commit(sign_in_environment, text("ALTER TABLE away RENAME TO credential_changes"))  # type: ignore[arg-type]
    await other.viewer(token)


@pytest.mark.parametrize("change", [{"number": 1}, {"beat": 3}])
async def test_after_a_restore_of_the_store_nothing_is_remembered(
    sign_in_environment: SignInEnvironment, other: Process, change: dict[str, int]
) -> None:
    row = {"id": ROW_ID, "store": "s", "number": 0, "base": 0, "beat": 5}
    await commit(sign_in_environment, delete(StoreIncarnation))
    await commit(sign_in_environment, insert(StoreIncarnation).values(**row))
    token = await sign_in_environment.create_token("ada")
    for _ in range(2):
        await other.viewer(token)
        sign_in_environment.clock.tick(seconds=2)
    other.lookups()
    await commit(sign_in_environment, update(StoreIncarnation).values(**change))
    await other.viewer(token)
    assert other.lookups() == 1


async def test_a_clock_that_is_set_lets_nothing_live_longer(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other.viewer(token)
    other.lookups()
    for step in (-3600, 3600):
        sign_in_environment.clock.tick(seconds=step)
        await other.viewer(token)
        assert other.lookups() == 1
    memory = cache_of_database(other.sign_in_environment.world.database)
    (entry,) = memory.credentials.values()
    entry.read_at_boot_ms -= 60_000  # as if the machine had slept: no clock of the day shows that
    await other.viewer(token)
    assert other.lookups() == 1


async def test_uses_are_noted_while_it_is_remembered(
    sign_in_environment: SignInEnvironment, other: Process
) -> None:
    token = await sign_in_environment.create_token("ada", ttl=timedelta(minutes=1))
    for _ in range(20):  # 100 s: without a note of its use it would have ended
        await other.viewer(token)
        await authentication.wait_for_background_tasks(other.sign_in_environment.world)
        sign_in_environment.clock.tick(seconds=5)
    (row,) = await sign_in_environment.world.database.read(select(core_table(AccessToken)))
    assert sign_in_environment.clock() - row.last_used_at <= timedelta(seconds=20)
    sign_in_environment.clock.tick(seconds=56)
    with pytest.raises(Unauthenticated):
        await other.viewer(token)


async def test_the_store_has_a_trigger_for_each_change(
    sign_in_environment: SignInEnvironment,
) -> None:
    """A migration that makes a table anew on SQLite loses its triggers."""
    dialect = sign_in_environment.world.database.dialect
    names = {
        words[2] for sql in credential_changes.CREATE_TRIGGERS[dialect]
        if (words := sql.split())[:2] == ["CREATE", "TRIGGER"]
    }  # fmt: skip
    there = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname AS name FROM pg_trigger WHERE NOT tgisinternal",
    }
    rows: Any = await sign_in_environment.world.database.read(text(there[dialect]))  # type: ignore[arg-type]
    assert names <= {row.name for row in rows}


FIXED = {  # columns that no change ends a credential by, or that never change
    "access_tokens": {"id", "protocol", "ip", "last_used_at", "expires_at"},
    "api_keys": {"id", "name", "created_at", "last_used_at", "last_used_ip", "maker"},
    "users": {"id"},
    "domain_admins": set[str](),
    "mailbox_shares": set[str](),
}


@pytest.mark.parametrize(
    "lookup",
    [credential_status.token_lookup_sql("digest"), credential_status.api_key_lookup_sql("digest")],
)
def test_every_column_that_a_lookup_reads_is_watched(lookup: Any) -> None:
    read: dict[str, set[str]] = {}
    for part in iterate(lookup.statement):
        table = getattr(part, "table", None)
        name = getattr(getattr(table, "element", table), "name", None)
        if getattr(part, "__visit_name__", "") == "column" and name:
            read.setdefault(name, set()).add(str(vars(part)["name"]))
    assert read.keys() <= WATCHED_TABLES.keys()
    for name, columns in read.items():
        watched = {*WATCHED_TABLES[name].update_columns, WATCHED_TABLES[name].user_column}
        unwatched = columns - watched - FIXED[name]
        assert not unwatched or WATCHED_TABLES[name].on_insert, (name, unwatched)
    assert {"users", "domain_admins", "mailbox_shares"} <= read.keys()


async def test_only_changes_that_count_are_noted(sign_in_environment: SignInEnvironment) -> None:
    async def noted() -> int:
        (row,) = await sign_in_environment.world.database.read(
            select(func.count().label("n")).select_from(CredentialChange)
        )
        return int(row.n)

    token = await sign_in_environment.create_token("ada")
    before = await noted()
    await sign_in_environment.authenticate(token)
    sign_in_environment.clock.tick(hours=2)
    await sign_in_environment.authenticate(token)
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    await sign_in_environment.change_user(
        "ada", used=7, last_login_at=sign_in_environment.clock(), disabled=False, role=Role.USER
    )
    await commit(sign_in_environment, update(Domain).values(updated_at=sign_in_environment.clock()))
    assert await noted() == before
    await sign_in_environment.change_user("ada", disabled=True)
    assert await noted() == before + 1
