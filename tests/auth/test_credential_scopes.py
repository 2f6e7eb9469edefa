"""What a right password is good for: scopes, temporary ones, those of programs."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models.auth.application_passwords import ApplicationPassword
from models.auth.security_log import SecurityEvent
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
IMAP = SignInRequest(scope=Scope.IMAP, protocol="IMAP")


async def temporary(sign_in_environment: SignInEnvironment, **more: Any) -> None:
    stored = await password_hashes.hash_password(sign_in_environment.world, TEMPORARY)
    await sign_in_environment.change_user("ada", temporary_password=stored, **more)


async def events(sign_in_environment: SignInEnvironment) -> list[Any]:
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    table = core_table(SecurityEvent)
    return list(
        await sign_in_environment.world.database.read(select(table).order_by(table.c.created_at))
    )


async def test_a_scope_that_is_off_is_told_to_who_knows_the_password(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", disabled_scopes=["IMAP"])
    with pytest.raises(Forbidden) as refusal:
        await sign_in_environment.sign_in("ada", attempt=IMAP)
    assert refusal.value.requires == Scope.IMAP
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", "wrong", IMAP)
    assert (
        await sign_in_environment.sign_in("ada", attempt=SignInRequest(scope=Scope.POP3))
    ).scope is Scope.POP3


@pytest.mark.parametrize("scope", [Scope.IMAP, Scope.POP3, Scope.SMTP, Scope.SIEVE, Scope.MAIL])
async def test_with_a_factor_programs_need_a_password_of_their_own(
    sign_in_environment: SignInEnvironment, scope: Scope
) -> None:
    await sign_in_environment.change_user("ada", second_factors=["TOTP"])
    with pytest.raises(Forbidden):
        await sign_in_environment.sign_in("ada", attempt=SignInRequest(scope=scope))
    await add_app_password(sign_in_environment, [scope.value])
    assert (
        await sign_in_environment.sign_in("ada", APP_PASSWORD, SignInRequest(scope=scope))
    ).scope is scope
    spaced = f" {APP_PASSWORD[:4].upper()} {APP_PASSWORD[4:]}"
    assert (
        await sign_in_environment.sign_in("ada", spaced, SignInRequest(scope=scope))
    ).scope is scope


async def test_a_password_of_a_program_is_for_its_scopes_alone(
    sign_in_environment: SignInEnvironment,
) -> None:
    key = await add_app_password(
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
    await sign_in_environment.sign_in("ada", APP_PASSWORD, IMAP, ip="192.0.2.9")
    (row,) = await sign_in_environment.world.database.read(select(core_table(ApplicationPassword)))
    assert (row.last_used_at, row.last_used_ip) == (sign_in_environment.clock(), "192.0.2.9")
    assert row.expires_at == sign_in_environment.clock() + timedelta(hours=1)
    assert row.last_event_id in {event.id for event in await events(sign_in_environment)}
    sign_in_environment.clock.tick(hours=1)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", APP_PASSWORD, IMAP)
    assert key == row.id


async def test_a_temporary_password_works_beside_the_real_one(
    sign_in_environment: SignInEnvironment,
) -> None:
    await temporary(
        sign_in_environment, temporary_until=sign_in_environment.clock() + timedelta(days=1)
    )
    before = (await sign_in_environment.load_user_row("ada")).password
    assert not (await sign_in_environment.sign_in("ada")).require_password_change
    done = await sign_in_environment.sign_in("ada", TEMPORARY, TOKEN_REQUEST)
    assert (done.require_password_change, bool(done.token)) == (True, True)
    row = await sign_in_environment.load_user_row("ada")
    assert (row.require_password_change, row.password) == (True, before)
    assert (await sign_in_environment.sign_in("ada", PASSWORD)).user.id == row.id
    sign_in_environment.clock.tick(days=1)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", TEMPORARY)


async def test_a_temporary_password_is_never_hashed_over_the_real_one(
    sign_in_environment: SignInEnvironment,
) -> None:
    old = await password_hashes.hash_password(sign_in_environment.world, PASSWORD)
    outdated = old.replace("t=1", "t=2")  # of other costs: it would be made anew
    await temporary(sign_in_environment)
    await sign_in_environment.change_user("ada", password=outdated)
    await sign_in_environment.sign_in("ada", TEMPORARY)
    assert (await sign_in_environment.load_user_row("ada")).password == outdated


async def test_before_its_time_a_temporary_password_is_told_so_only_when_right(
    sign_in_environment: SignInEnvironment,
) -> None:
    await temporary(
        sign_in_environment, temporary_from=sign_in_environment.clock() + timedelta(hours=1)
    )
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", TEMPORARY[::-1])
    with pytest.raises(Forbidden, match="not valid yet"):
        await sign_in_environment.sign_in("ada", TEMPORARY)
    sign_in_environment.clock.tick(hours=1)
    assert (await sign_in_environment.sign_in("ada", TEMPORARY)).require_password_change


async def test_a_temporary_password_opens_no_protocol_and_skips_no_factor(
    sign_in_environment: SignInEnvironment,
) -> None:
    await temporary(sign_in_environment)
    with pytest.raises(Forbidden):
        await sign_in_environment.sign_in("ada", TEMPORARY, IMAP)
    await sign_in_environment.change_user("ada", second_factors=["TOTP"])
    done = await sign_in_environment.sign_in("ada", TEMPORARY, TOKEN_REQUEST)
    assert done.require2fa == ["TOTP"]
    assert done.token
    assert (
        await sign_in_environment.authenticate(done.token)
    ).pending_user_id == sign_in_environment.users["ada"]


async def test_who_has_no_webmail_gets_no_token(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.change_user("ada", webmail_access=False)
    with pytest.raises(Forbidden):
        await sign_in_environment.sign_in("ada", attempt=TOKEN_REQUEST)
    assert (await sign_in_environment.sign_in("ada")).token is None


@pytest.mark.parametrize("password", ["wrong", TEMPORARY[::-1], APP_PASSWORD[::-1]])
@pytest.mark.parametrize("scope", [Scope.MASTER, Scope.IMAP])
async def test_as_much_is_hashed_for_nobody_as_for_whom_it_is_wrong(
    sign_in_environment: SignInEnvironment,
    password: str,
    scope: Scope,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted where processes are asked for: each hash takes one."""
    await add_app_password(sign_in_environment, ["ALL"])
    await temporary(sign_in_environment)
    await sign_in_environment.add_user("bare", password=None)
    await sign_in_environment.add_user("gone", suspended=True)
    pool, hashes = password_hashes.worker_pool(sign_in_environment.world), []
    run = type(pool).run

    async def counted(self: Any, *work: Any) -> Any:
        hashes.append(1)
        return await run(self, *work)

    monkeypatch.setattr(type(pool), "run", counted)
    costs = set()
    for name in ("ada", "bare", "gone", "nobody"):
        hashes.clear()
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, password, SignInRequest(scope=scope))
        costs.add(len(hashes))
    assert len(costs) == 1


async def test_the_log_tells_what_came_of_it(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.add_user("bob", suspended=True)
    await sign_in_environment.add_user("carol", disabled=True)
    await sign_in_environment.sign_in("ada", attempt=TOKEN_REQUEST)
    for name in ("ada", "bob", "carol", "nobody", "nobody", "x" * 10_000):
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, "wrong")
    found = {(event.user_id, event.result): event for event in await events(sign_in_environment)}
    ada, bob, carol = (sign_in_environment.users[name] for name in ("ada", "bob", "carol"))
    expected = {(ada, "success"), (ada, "fail"), (bob, "suspended"), (carol, "disabled")}
    assert set(found) == {*expected, (None, "fail")}
    assert found[None, "fail"].count == 3  # folded, whatever the name
    assert len(found[None, "fail"].detail["username"]) == 128
    assert {event.ip for event in found.values()} == {"192.0.2.1"}
    assert PASSWORD not in repr(found)
