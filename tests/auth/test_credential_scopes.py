"""The scopes of account passwords, temporary passwords and application passwords."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models.auth.application_passwords import ApplicationPassword
from models.auth.security_log import AuthProtocol, SecurityEvent
from models.errors import AuthenticationFailed, Forbidden
from models.store.columns import core_table
from models.users.roles import Scope
from resolvers.auth import authentication
from resolvers.auth.passwords import password_hashes
from resolvers.auth.sign_in import SignInRequest
from tests.support.accounts.sign_in_environment import (
    APP_PASSWORD,
    PASSWORD,
    TOKEN_REQUEST,
    SignInEnvironment,
    add_app_password,
)

TEMPORARY = "Ab3Ab3Ab3Ab3"
IMAP_REQUEST = SignInRequest(scope=Scope.IMAP, protocol=AuthProtocol.IMAP)


async def set_temporary_password(sign_in_environment: SignInEnvironment, **extra: Any) -> None:
    stored = await password_hashes.hash_password(sign_in_environment.environment, TEMPORARY)
    await sign_in_environment.change_user("ada", temporary_password=stored, **extra)


async def load_events(sign_in_environment: SignInEnvironment) -> list[Any]:
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    table = core_table(SecurityEvent)
    return list(
        await sign_in_environment.environment.database.read(
            select(table).order_by(table.c.created_at)
        )
    )


async def test_disabled_scope_is_reported_only_with_correct_password(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", disabled_scopes=["IMAP"])
    with pytest.raises(Forbidden) as refusal:
        await sign_in_environment.sign_in("ada", attempt=IMAP_REQUEST)
    assert refusal.value.requires == Scope.IMAP
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", "wrong", IMAP_REQUEST)
    assert (
        await sign_in_environment.sign_in("ada", attempt=SignInRequest(scope=Scope.POP3))
    ).scope is Scope.POP3


@pytest.mark.parametrize("scope", [Scope.IMAP, Scope.POP3, Scope.SMTP, Scope.SIEVE, Scope.MAIL])
async def test_protocols_need_app_password_if_a_factor_is_on(
    sign_in_environment: SignInEnvironment, scope: Scope
) -> None:
    await sign_in_environment.change_user("ada", second_factors=["TOTP"])
    with pytest.raises(Forbidden):
        await sign_in_environment.sign_in("ada", attempt=SignInRequest(scope=scope))
    await add_app_password(sign_in_environment, [scope.value])
    assert (
        await sign_in_environment.sign_in("ada", APP_PASSWORD, SignInRequest(scope=scope))
    ).scope is scope
    spaced_password = f" {APP_PASSWORD[:4].upper()} {APP_PASSWORD[4:]}"
    assert (
        await sign_in_environment.sign_in("ada", spaced_password, SignInRequest(scope=scope))
    ).scope is scope


async def test_app_password_is_limited_to_its_scopes(
    sign_in_environment: SignInEnvironment,
) -> None:
    app_password_id = await add_app_password(
        sign_in_environment,
        ["IMAP"],
        ttl=3600,
        expires_at=sign_in_environment.clock() + timedelta(hours=1),
    )
    for scope in (Scope.SMTP, Scope.MAIL, Scope.READ, Scope.SETTINGS):
        with pytest.raises(Forbidden):
            await sign_in_environment.sign_in("ada", APP_PASSWORD, SignInRequest(scope=scope))
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", APP_PASSWORD)
    sign_in_environment.clock.tick(minutes=30)
    await sign_in_environment.sign_in("ada", APP_PASSWORD, IMAP_REQUEST, ip="192.0.2.9")
    (row,) = await sign_in_environment.environment.database.read(
        select(core_table(ApplicationPassword))
    )
    assert (row.last_used_at, row.last_used_ip) == (sign_in_environment.clock(), "192.0.2.9")
    assert row.expires_at == sign_in_environment.clock() + timedelta(hours=1)
    assert row.last_event_id in {event.id for event in await load_events(sign_in_environment)}
    sign_in_environment.clock.tick(hours=1)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", APP_PASSWORD, IMAP_REQUEST)
    assert app_password_id == row.id


async def test_temporary_password_works_beside_the_regular_one(
    sign_in_environment: SignInEnvironment,
) -> None:
    await set_temporary_password(
        sign_in_environment, temporary_until=sign_in_environment.clock() + timedelta(days=1)
    )
    hash_before = (await sign_in_environment.load_user_row("ada")).password
    assert not (await sign_in_environment.sign_in("ada")).password_change_required
    authenticated = await sign_in_environment.sign_in("ada", TEMPORARY, TOKEN_REQUEST)
    assert (authenticated.password_change_required, bool(authenticated.token)) == (True, True)
    row = await sign_in_environment.load_user_row("ada")
    assert (row.password_change_required, row.password) == (True, hash_before)
    assert (await sign_in_environment.sign_in("ada", PASSWORD)).user.id == row.id
    sign_in_environment.clock.tick(days=1)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", TEMPORARY)


async def test_temporary_password_does_not_replace_regular_hash(
    sign_in_environment: SignInEnvironment,
) -> None:
    current_hash = await password_hashes.hash_password(sign_in_environment.environment, PASSWORD)
    # of other cost, so that a sign-in would replace it
    outdated_hash = current_hash.replace("t=1", "t=2")
    await set_temporary_password(sign_in_environment)
    await sign_in_environment.change_user("ada", password=outdated_hash)
    await sign_in_environment.sign_in("ada", TEMPORARY)
    assert (await sign_in_environment.load_user_row("ada")).password == outdated_hash


async def test_early_temporary_password_is_reported_only_if_correct(
    sign_in_environment: SignInEnvironment,
) -> None:
    await set_temporary_password(
        sign_in_environment, temporary_from=sign_in_environment.clock() + timedelta(hours=1)
    )
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", TEMPORARY[::-1])
    with pytest.raises(Forbidden, match="not valid yet"):
        await sign_in_environment.sign_in("ada", TEMPORARY)
    sign_in_environment.clock.tick(hours=1)
    assert (await sign_in_environment.sign_in("ada", TEMPORARY)).password_change_required


async def test_temporary_password_is_refused_by_imap_and_needs_factor(
    sign_in_environment: SignInEnvironment,
) -> None:
    await set_temporary_password(sign_in_environment)
    with pytest.raises(Forbidden):
        await sign_in_environment.sign_in("ada", TEMPORARY, IMAP_REQUEST)
    await sign_in_environment.change_user("ada", second_factors=["TOTP"])
    authenticated = await sign_in_environment.sign_in("ada", TEMPORARY, TOKEN_REQUEST)
    assert authenticated.required_two_factor_methods == ["TOTP"]
    assert authenticated.token
    assert (
        await sign_in_environment.authenticate(authenticated.token)
    ).pending_user_id == sign_in_environment.users["ada"]


async def test_user_without_webmail_access_gets_no_token(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", webmail_access=False)
    with pytest.raises(Forbidden):
        await sign_in_environment.sign_in("ada", attempt=TOKEN_REQUEST)
    assert (await sign_in_environment.sign_in("ada")).token is None


@pytest.mark.parametrize("password", ["wrong", TEMPORARY[::-1], APP_PASSWORD[::-1]])
@pytest.mark.parametrize("scope", [Scope.FULL, Scope.IMAP])
async def test_failed_sign_ins_run_equal_hashes_for_all_usernames(
    sign_in_environment: SignInEnvironment,
    password: str,
    scope: Scope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counts the jobs of the worker pool: each hash is one job."""
    await add_app_password(sign_in_environment, ["ALL"])
    await set_temporary_password(sign_in_environment)
    await sign_in_environment.add_user("bare", password=None)
    await sign_in_environment.add_user("gone", suspended=True)
    pool, hashes = password_hashes.worker_pool(sign_in_environment.environment), []
    original_run = type(pool).run_job

    async def count_and_run(self: Any, *job: Any) -> Any:
        hashes.append(1)
        return await original_run(self, *job)

    monkeypatch.setattr(type(pool), "run_job", count_and_run)
    hash_counts = set()
    for name in ("ada", "bare", "gone", "nobody"):
        hashes.clear()
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, password, SignInRequest(scope=scope))
        hash_counts.add(len(hashes))
    assert len(hash_counts) == 1


async def test_security_log_has_the_result_of_each_sign_in(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("bob", suspended=True)
    await sign_in_environment.add_user("carol", active=False)
    await sign_in_environment.sign_in("ada", attempt=TOKEN_REQUEST)
    for name in ("ada", "bob", "carol", "nobody", "nobody", "x" * 10_000):
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, "wrong")
    events_by_result = {
        (event.user_id, event.result): event for event in await load_events(sign_in_environment)
    }
    ada, bob, carol = (sign_in_environment.users[name] for name in ("ada", "bob", "carol"))
    expected = {(ada, "SUCCESS"), (ada, "FAILURE"), (bob, "SUSPENDED"), (carol, "DISABLED")}
    assert set(events_by_result) == {*expected, (None, "FAILURE")}
    assert events_by_result[None, "FAILURE"].count == 3  # one row for all unknown usernames
    assert len(events_by_result[None, "FAILURE"].detail["username"]) == 128
    assert {event.ip for event in events_by_result.values()} == {"192.0.2.1"}
    assert PASSWORD not in repr(events_by_result)
