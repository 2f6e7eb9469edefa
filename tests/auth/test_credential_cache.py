"""The credential cache: an entry lives for a minute, and changes end it within a second."""

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
from tests.conftest import record_sql
from tests.support.accounts.sign_in_environment import SignInEnvironment

WriteStatement = Update | Delete | Insert
SECOND = 1.0


@dataclass
class OtherProcess:
    """Another process on the same database that receives no wake-ups."""

    sign_in_environment: SignInEnvironment
    statements: list[str]

    async def authenticate(self, secret: str, ip: str = "192.0.2.1") -> Viewer:
        return await authentication.authenticate_request(
            self.sign_in_environment.environment, {"authorization": f"Bearer {secret}"}, ip=ip
        )

    async def use_for_30_seconds(self, secret: str) -> Viewer:
        """Use the credential for 30 s, and check that the viewer comes from the cache then."""
        await self.authenticate(secret)
        self.sign_in_environment.clock.tick(seconds=2)
        await self.authenticate(secret)  # reads the changes before
        self.pop_lookup_count()
        self.sign_in_environment.clock.tick(seconds=28)
        viewer = await self.authenticate(secret)
        assert self.pop_lookup_count() == 0
        return viewer

    def pop_lookup_count(self) -> int:
        """Return the number of credential lookups since the last call."""
        count = sum(
            "digest = " in statement and "SELECT" in statement for statement in self.statements
        )
        del self.statements[:]
        return count


@pytest.fixture
async def other_process(sign_in_environment: SignInEnvironment) -> AsyncIterator[OtherProcess]:
    database = Database(sign_in_environment.environment.database.url)
    environment = replace(sign_in_environment.environment, database=database, wakeups=Wakeups())
    yield OtherProcess(
        replace(sign_in_environment, environment=environment),
        record_sql(database, "INSERT INTO message_steps"),
    )
    await authentication.wait_for_background_tasks(environment)
    await database.close()


async def commit_statement(
    sign_in_environment: SignInEnvironment, statement: WriteStatement
) -> None:
    """Commit a statement without a notice to any process."""
    async with sign_in_environment.environment.write_session() as session:
        await (await session.connection()).execute(statement)


def is_ada(sign_in_environment: SignInEnvironment) -> Any:
    return col(User.id) == sign_in_environment.users["ada"]


async def test_credential_is_looked_up_once_a_minute(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    _, key = await api_keys.create_api_key(sign_in_environment.user_context("ada"), NewApiKey("k"))
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    other_process.pop_lookup_count()
    for _ in range(12):  # 55 s
        for secret in (token, key):
            assert (await other_process.authenticate(secret)).user_id == sign_in_environment.users[
                "ada"
            ]
        sign_in_environment.clock.tick(seconds=5)
    assert other_process.pop_lookup_count() == 2
    for secret in (token, key):
        await other_process.authenticate(secret)
    assert other_process.pop_lookup_count() == 2


async def test_concurrent_requests_share_one_lookup(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    other_process.pop_lookup_count()
    viewers = await asyncio.gather(*(other_process.authenticate(token) for _ in range(20)))
    assert {viewer.user_id for viewer in viewers} == {sign_in_environment.users["ada"]}
    assert other_process.pop_lookup_count() == 1
    sign_in_environment.clock.tick(seconds=2)
    await asyncio.gather(*(other_process.authenticate(token) for _ in range(20)))
    assert len(other_process.statements) == 1  # one statement reads the changes for all requests


ENDING_USER_VALUES: dict[str, Any] = {
    "disabled": {"disabled": True},
    "suspended": {"suspended": True},
    "password or factors changed, or signed out everywhere": {"auth_version": 2},
}


def _user_update(values: dict[str, Any]) -> Callable[[SignInEnvironment], WriteStatement]:
    return lambda sign_in_environment: (
        update(User).where(is_ada(sign_in_environment)).values(**values)
    )


def _token_update(**values: Any) -> Callable[[SignInEnvironment], WriteStatement]:
    return lambda _environment: update(AccessToken).values(**values)


TOKEN_ENDINGS: dict[str, Callable[[SignInEnvironment], WriteStatement]] = {
    **{name: _user_update(values) for name, values in ENDING_USER_VALUES.items()},
    "account deleted": lambda sign_in_environment: (
        update(User)
        .where(is_ada(sign_in_environment))
        .values(disabled=True, deleted_at=sign_in_environment.clock())
    ),
    "account purged": lambda sign_in_environment: delete(User).where(is_ada(sign_in_environment)),
    "token deleted": lambda _environment: delete(AccessToken),
    "token ends sooner": lambda sign_in_environment: update(AccessToken).values(
        expires_at=sign_in_environment.clock()
    ),
    "token has another secret": _token_update(digest="x"),
    "token of an older version": _token_update(auth_version=0),
}


@pytest.mark.parametrize("name", TOKEN_ENDINGS)
async def test_change_that_ends_token_is_seen_within_a_second(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess, name: str
) -> None:
    token = await sign_in_environment.create_token("ada")
    assert (await other_process.use_for_30_seconds(token)).user_id == sign_in_environment.users[
        "ada"
    ]
    await commit_statement(sign_in_environment, TOKEN_ENDINGS[name](sign_in_environment))
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)


KEY_ENDINGS: dict[str, Callable[[SignInEnvironment], WriteStatement]] = {
    **{
        name: _user_update(values)
        for name, values in ENDING_USER_VALUES.items()
        if "version" not in str(values)
    },
    "deleted": lambda _environment: delete(ApiKey),
    "switched off": lambda _environment: update(ApiKey).values(active=False),
    "expires": lambda sign_in_environment: update(ApiKey).values(
        expires_at=sign_in_environment.clock()
    ),
    "other networks": lambda _environment: update(ApiKey).values(allowed_ips=["198.51.100.0/24"]),
    "made by an account that is no administrator": lambda sign_in_environment: update(
        ApiKey
    ).values(made_by=sign_in_environment.users["ada"]),
}


@pytest.mark.parametrize("name", KEY_ENDINGS)
async def test_change_that_ends_api_key_is_seen_within_a_second(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess, name: str
) -> None:
    _, key = await api_keys.create_api_key(sign_in_environment.user_context("ada"), NewApiKey("k"))
    await other_process.use_for_30_seconds(key)
    await commit_statement(sign_in_environment, KEY_ENDINGS[name](sign_in_environment))
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(key)


NARROWING_CHANGES: dict[str, tuple[Callable[[SignInEnvironment], WriteStatement], str, Any]] = {
    "scopes": (lambda _env: update(ApiKey).values(scopes=["MAIL"]), "scopes", {Scope.MAIL}),
    "read only": (lambda _env: update(ApiKey).values(read_only=True), "read_only", True),
    "operations": (
        lambda _env: update(ApiKey).values(operations=["user"]),
        "allowed_operations",
        {"user"},
    ),
    "role of the key": (lambda _env: update(ApiKey).values(role=Role.USER), "role", Role.USER),
    "role of the account": (_user_update({"role": Role.USER}), "role", Role.USER),
    "domain": (lambda _environment: delete(DomainAdmin), "administered_domains", frozenset()),
    "permissions": (_user_update({"admin_permissions": []}), "permissions", frozenset()),
    "domains of the key": (
        lambda _env: update(ApiKey).values(domains=[7]),
        "administered_domains",
        set(),
    ),
}


@pytest.mark.parametrize("name", NARROWING_CHANGES)
async def test_change_that_narrows_key_is_seen_within_a_second(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess, name: str
) -> None:
    change, attribute, expected = NARROWING_CHANGES[name]
    permissions = [AdminPermission.IMPERSONATE]
    await sign_in_environment.change_user(
        "ada", role=Role.DOMAIN_ADMIN, admin_permissions=permissions
    )
    user_id, domain_id = sign_in_environment.users["ada"], sign_in_environment.domain_id
    await commit_statement(
        sign_in_environment, insert(DomainAdmin).values(user_id=user_id, domain_id=domain_id)
    )
    role = Role.DOMAIN_ADMIN
    _, key = await api_keys.create_api_key(
        sign_in_environment.user_context("ada", role), NewApiKey("k", role=role)
    )
    assert getattr(await other_process.use_for_30_seconds(key), attribute) != expected
    await commit_statement(sign_in_environment, change(sign_in_environment))
    sign_in_environment.clock.tick(seconds=SECOND)
    assert getattr(await other_process.authenticate(key), attribute) == expected


async def create_token_with_maker(sign_in_environment: SignInEnvironment, **actor: Any) -> str:
    """Create a token of ada with another account or a key as its maker."""
    token = await sign_in_environment.create_token("ada")
    await commit_statement(sign_in_environment, update(AccessToken).values(**actor))
    return token


@pytest.mark.parametrize("change", [{"role": Role.USER}, {"disabled": True}])
async def test_token_ends_with_the_account_that_made_it(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess, change: dict[str, Any]
) -> None:
    maker_id = await sign_in_environment.add_user("rex", role=Role.ADMIN)
    token = await create_token_with_maker(sign_in_environment, actor_id=maker_id)
    assert (await other_process.use_for_30_seconds(token)).actor_id == maker_id
    await sign_in_environment.change_user("rex", **change)
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)


@pytest.mark.parametrize("ending", ["switched off", "deleted", "expired"])
async def test_token_ends_with_the_key_that_made_it(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess, ending: str
) -> None:
    expires_at = sign_in_environment.clock() + timedelta(seconds=40)
    platform_context = replace(
        sign_in_environment.user_context("ada"),
        viewer=Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})),
    )
    key, _ = await api_keys.create_api_key(
        platform_context, NewApiKey("front end", role=Role.ADMIN, expires_at=expires_at)
    )
    token = await create_token_with_maker(sign_in_environment, actor_key_id=key.id)
    await other_process.use_for_30_seconds(token)
    if ending == "expired":
        sign_in_environment.clock.tick(seconds=10)
    elif ending == "deleted":
        await commit_statement(sign_in_environment, delete(ApiKey))
    else:
        await commit_statement(sign_in_environment, update(ApiKey).values(active=False))
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)


async def test_shorter_token_lifetime_applies_at_once(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other_process.use_for_30_seconds(token)
    options = replace(
        other_process.sign_in_environment.environment.options, tokens_max_age=timedelta(seconds=20)
    )
    changed_environment = replace(other_process.sign_in_environment.environment, options=options)
    with pytest.raises(Unauthenticated):
        await authentication.authenticate_request(
            changed_environment, {"authorization": f"Bearer {token}"}
        )


async def test_new_mailbox_share_is_seen_within_a_second(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    owner_id = await sign_in_environment.add_user("bob")
    async with sign_in_environment.environment.write_session() as session:
        now = sign_in_environment.clock()
        mailbox = Mailbox(
            id=sign_in_environment.environment.new_id(), user_id=owner_id, path="INBOX", guid="g",
            uid_validity=1, created_at=now,
        )  # fmt: skip
        session.add(mailbox)
        mailbox_id = mailbox.id
    token = await sign_in_environment.create_token("ada")
    assert not (await other_process.use_for_30_seconds(token)).share_visibility.has_shared_mailboxes
    share = {
        "mailbox_id": mailbox_id,
        "user_id": sign_in_environment.users["ada"],
        "owner_id": owner_id,
    }
    await commit_statement(
        sign_in_environment, insert(MailboxShare).values(**share, rights=3, since=0)
    )
    sign_in_environment.clock.tick(seconds=SECOND)
    assert (await other_process.authenticate(token)).share_visibility.has_shared_mailboxes


@pytest.mark.parametrize("bus", ["none", "up", "silent"])
async def test_revoked_token_is_refused_within_a_second_in_any_bus_state(
    sign_in_environment: SignInEnvironment, tmp_path: Path, bus: str
) -> None:
    """Uses real clocks. The bus of the first process works; the other process may miss it."""
    now = partial(datetime.now, UTC)
    revoking_environment = replace(
        sign_in_environment.environment, now=now, wakeups=BusWakeups(LocalBus(tmp_path / "bells"))
    )
    database = Database(sign_in_environment.environment.database.url)
    bus_wakeups = Wakeups() if bus == "none" else BusWakeups(LocalBus(tmp_path / "bells"))
    checking_environment = replace(revoking_environment, database=database, wakeups=bus_wakeups)
    credential_cache.follow_drops_of_other_processes(checking_environment)
    joined = asyncio.Event()
    receive_task = asyncio.create_task(bus_wakeups.receive(joined.set)) if bus == "up" else None
    if receive_task:
        await joined.wait()
    checking_process = OtherProcess(
        SignInEnvironment(checking_environment, sign_in_environment.clock),
        record_sql(database, "INSERT INTO message_steps"),
    )
    revoking_process = SignInEnvironment(
        revoking_environment,
        sign_in_environment.clock,
        sign_in_environment.domain_id,
        sign_in_environment.users,
    )
    token = await revoking_process.create_token("ada")
    ctx = Context(revoking_environment, await revoking_process.authenticate(token))
    ends_at = time.monotonic() + 2.5
    while time.monotonic() < ends_at:
        await checking_process.authenticate(token)
        await asyncio.sleep(0.05)
    assert checking_process.pop_lookup_count() <= 2  # the token was cached for longer than a second
    assert await access_tokens.revoke_own_access_tokens(ctx) == 1
    revoked_at, last_accepted_at = time.monotonic(), 0.0
    while time.monotonic() < revoked_at + 30:
        checked_at = time.monotonic()
        if await checking_process.sign_in_environment.is_refused(token):
            break
        last_accepted_at = checked_at
        await asyncio.sleep(0.02)
    assert last_accepted_at - revoked_at <= 1
    if receive_task:
        receive_task.cancel()
        await asyncio.wait([receive_task])
    for environment in (revoking_environment, checking_environment):
        await authentication.wait_for_background_tasks(environment)
        await environment.wakeups.close()
    await database.close()


async def test_clock_set_back_during_read_of_changes_causes_no_loop(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other_process.authenticate(token)
    environment = other_process.sign_in_environment.environment
    sign_in_environment.clock.tick(seconds=2)
    arrived_at = sign_in_environment.clock()
    sign_in_environment.clock.tick(hours=-1)
    async with asyncio.timeout(10):
        assert await credential_cache.read_changes_and_drop_unless_recent(
            environment, cache_of_database(environment.database), arrived_at
        )


async def test_change_during_a_lookup_is_not_missed(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    """The change is committed and read after the lookup has read the old row."""
    token = await sign_in_environment.create_token("ada")
    environment, digest = (
        other_process.sign_in_environment.environment,
        credential_status.secret_digest(token),
    )

    async def load_token() -> Any:
        token_row = await credential_status.load_valid_token(environment, digest=digest)
        await sign_in_environment.change_user("ada", disabled=True)
        cache = cache_of_database(environment.database)
        cache.changes_read_at = None
        await credential_cache.read_changes_and_drop_unless_recent(
            environment, cache, environment.now()
        )
        return token_row

    assert await credential_cache.read_and_cache(environment, digest, load_token)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)


async def test_change_that_is_committed_late_is_not_missed(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    """Other transactions commit in the meantime, and their changes are read."""
    await sign_in_environment.add_user("bob")
    token, second_token = (
        await sign_in_environment.create_token("ada"),
        await sign_in_environment.create_token("bob"),
    )
    await other_process.authenticate(token)
    async with sign_in_environment.environment.write_session() as session:
        await (await session.connection()).execute(
            update(User).where(is_ada(sign_in_environment)).values(disabled=True)
        )
        if (
            sign_in_environment.environment.database.dialect == "postgresql"
        ):  # SQLite has one writer
            await sign_in_environment.change_user("bob", suspended=True)
        sign_in_environment.clock.tick(seconds=SECOND)
        assert await other_process.authenticate(token)
        if sign_in_environment.environment.database.dialect == "postgresql":
            with pytest.raises(Unauthenticated):
                await other_process.authenticate(second_token)
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)


async def test_cache_is_not_trusted_if_changes_are_unreadable(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other_process.authenticate(token)
    rename = text("ALTER TABLE credential_changes RENAME TO away")
    await commit_statement(sign_in_environment, rename)  # type: ignore[arg-type]
    try:
        await other_process.authenticate(token)
        sign_in_environment.clock.tick(seconds=SECOND)
        with pytest.raises((SQLAlchemyError, sqlite3.OperationalError)):
            await other_process.authenticate(token)
    finally:
        rename_back = text("ALTER TABLE away RENAME TO credential_changes")
        await commit_statement(sign_in_environment, rename_back)  # type: ignore[arg-type]
    await other_process.authenticate(token)


@pytest.mark.parametrize("change", [{"number": 1}, {"beat": 3}])
async def test_restore_of_the_database_clears_the_cache(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess, change: dict[str, int]
) -> None:
    row = {"id": ROW_ID, "store": "s", "number": 0, "base": 0, "beat": 5}
    await commit_statement(sign_in_environment, delete(StoreIncarnation))
    await commit_statement(sign_in_environment, insert(StoreIncarnation).values(**row))
    token = await sign_in_environment.create_token("ada")
    for _ in range(2):
        await other_process.authenticate(token)
        sign_in_environment.clock.tick(seconds=2)
    other_process.pop_lookup_count()
    await commit_statement(sign_in_environment, update(StoreIncarnation).values(**change))
    await other_process.authenticate(token)
    assert other_process.pop_lookup_count() == 1


async def test_clock_change_does_not_extend_cached_credential(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other_process.authenticate(token)
    other_process.pop_lookup_count()
    for step in (-3600, 3600):
        sign_in_environment.clock.tick(seconds=step)
        await other_process.authenticate(token)
        assert other_process.pop_lookup_count() == 1
    cache = cache_of_database(other_process.sign_in_environment.environment.database)
    (entry,) = cache.credentials.values()
    # as after a suspend of the machine, which the wall clock does not show
    entry.read_at_boot_ms -= 60_000
    await other_process.authenticate(token)
    assert other_process.pop_lookup_count() == 1


async def test_use_of_cached_token_is_recorded(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada", ttl=timedelta(minutes=1))
    for _ in range(20):  # 100 s: without a recorded use the token would have expired
        await other_process.authenticate(token)
        await authentication.wait_for_background_tasks(
            other_process.sign_in_environment.environment
        )
        sign_in_environment.clock.tick(seconds=5)
    (row,) = await sign_in_environment.environment.database.read(select(core_table(AccessToken)))
    assert sign_in_environment.clock() - row.last_used_at <= timedelta(seconds=20)
    sign_in_environment.clock.tick(seconds=56)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)


async def test_database_has_all_triggers_for_credential_changes(
    sign_in_environment: SignInEnvironment,
) -> None:
    """On SQLite a migration that recreates a table loses its triggers."""
    dialect = sign_in_environment.environment.database.dialect
    trigger_names = {
        words[2] for sql in credential_changes.CREATE_TRIGGERS[dialect]
        if (words := sql.split())[:2] == ["CREATE", "TRIGGER"]
    }  # fmt: skip
    trigger_queries = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname AS name FROM pg_trigger WHERE NOT tgisinternal",
    }
    rows: Any = await sign_in_environment.environment.database.read(text(trigger_queries[dialect]))  # type: ignore[arg-type]
    assert trigger_names <= {row.name for row in rows}


UNWATCHED_COLUMNS = {  # columns whose change ends no credential, or that never change
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
def test_all_columns_that_lookups_read_are_watched(lookup: Any) -> None:
    columns_by_table: dict[str, set[str]] = {}
    for part in iterate(lookup.statement):
        table = getattr(part, "table", None)
        name = getattr(getattr(table, "element", table), "name", None)
        if getattr(part, "__visit_name__", "") == "column" and name:
            columns_by_table.setdefault(name, set()).add(str(vars(part)["name"]))
    assert columns_by_table.keys() <= WATCHED_TABLES.keys()
    for name, columns in columns_by_table.items():
        watched = {*WATCHED_TABLES[name].update_columns, WATCHED_TABLES[name].user_column}
        unwatched = columns - watched - UNWATCHED_COLUMNS[name]
        assert not unwatched or WATCHED_TABLES[name].on_insert, (name, unwatched)
    assert {"users", "domain_admins", "mailbox_shares"} <= columns_by_table.keys()


async def test_only_relevant_changes_are_recorded(sign_in_environment: SignInEnvironment) -> None:
    async def count_changes() -> int:
        (row,) = await sign_in_environment.environment.database.read(
            select(func.count().label("n")).select_from(CredentialChange)
        )
        return int(row.n)

    token = await sign_in_environment.create_token("ada")
    count_before = await count_changes()
    await sign_in_environment.authenticate(token)
    sign_in_environment.clock.tick(hours=2)
    await sign_in_environment.authenticate(token)
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    await sign_in_environment.change_user(
        "ada", used=7, last_login_at=sign_in_environment.clock(), disabled=False, role=Role.USER
    )
    await commit_statement(
        sign_in_environment, update(Domain).values(updated_at=sign_in_environment.clock())
    )
    assert await count_changes() == count_before
    await sign_in_environment.change_user("ada", disabled=True)
    assert await count_changes() == count_before + 1
