"""Changes that end or narrow a cached credential are seen by other processes within a second."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.sql.visitors import iterate

from models.auth import credential_changes
from models.auth.credential_changes import WATCHED_TABLES, CredentialChange
from models.auth.credentials import AccessToken, ApiKey
from models.domains.tables import Domain
from models.errors import Unauthenticated
from models.mailboxes.shares import MailboxShare
from models.mailboxes.tables import Mailbox
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin, User
from resolvers.auth import authentication, credential_status
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.viewer import Viewer
from tests.support.accounts.credential_check_process import (
    OtherProcess,
    WriteStatement,
    commit_statement,
    is_ada,
)
from tests.support.accounts.sign_in_environment import SignInEnvironment

SECOND = 1.0


ENDING_USER_VALUES: dict[str, Any] = {
    "inactive": {"active": False},
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
        .values(active=False, deleted_at=sign_in_environment.clock())
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
    "domains that its user does not administer": lambda _environment: update(ApiKey).values(
        domains=[7]
    ),
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
    _, key = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k")
    )
    viewer = await other_process.use_for_30_seconds(key)
    await commit_statement(sign_in_environment, KEY_ENDINGS[name](sign_in_environment))
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(key)
    # open connections with the key end, too
    environment = sign_in_environment.environment
    assert await authentication.record_use_and_return_has_ended_or_changed(environment, viewer)


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
        lambda env: update(ApiKey).values(domains=[env.domain_id]),
        "user_id",
        0,
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
    _, key = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada", role), NewApiKey("k", role=role)
    )
    viewer = await other_process.use_for_30_seconds(key)
    assert getattr(viewer, attribute) != expected
    await commit_statement(sign_in_environment, change(sign_in_environment))
    sign_in_environment.clock.tick(seconds=SECOND)
    assert getattr(await other_process.authenticate(key), attribute) == expected
    environment = sign_in_environment.environment
    assert await authentication.record_use_and_return_has_ended_or_changed(environment, viewer)


async def create_token_with_maker(sign_in_environment: SignInEnvironment, **actor: Any) -> str:
    """Create a token of ada with another account or a key as its maker."""
    token = await sign_in_environment.create_token("ada")
    await commit_statement(sign_in_environment, update(AccessToken).values(**actor))
    return token


@pytest.mark.parametrize("change", [{"role": Role.USER}, {"active": False}])
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
    key, _ = await api_key_mutations.create_api_key(
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
            id=sign_in_environment.environment.new_id(), user_id=owner_id, path="INBOX",
            object_id="g",
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


async def test_database_has_all_triggers_for_credential_changes(
    sign_in_environment: SignInEnvironment,
) -> None:
    """On SQLite a migration that recreates a table loses its triggers."""
    dialect = sign_in_environment.environment.database.dialect
    trigger_names = {
        words[2] for sql in credential_changes.create_triggers_sql(dialect)
        if (words := sql.split())[:2] == ["CREATE", "TRIGGER"]
    }  # fmt: skip
    trigger_queries = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname AS name FROM pg_trigger WHERE NOT tgisinternal",
    }
    rows: Any = await sign_in_environment.environment.database.read(text(trigger_queries[dialect]))  # type: ignore[arg-type]
    assert trigger_names <= {row.name for row in rows}


UNWATCHED_COLUMNS = {  # columns whose change ends no credential, or that never change
    "access_tokens": {"id", "protocol", "ip", "last_used_at", "expires_at", "oauth_family_id"},
    "api_keys": {
        "id", "name", "created_at", "last_used_at", "last_used_ip", "maker", "creator_id",
    },
    "users": {"id"},
    "domain_admins": set[str](),
    "identity_links": set[str](),
    "mailbox_shares": set[str](),
}  # fmt: skip


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
        "ada", used=7, last_login_at=sign_in_environment.clock(), active=True, role=Role.USER
    )
    await commit_statement(
        sign_in_environment, update(Domain).values(updated_at=sign_in_environment.clock())
    )
    assert await count_changes() == count_before
    await sign_in_environment.change_user("ada", active=False)
    assert await count_changes() == count_before + 1
