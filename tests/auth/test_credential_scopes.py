"""What a right password is good for: scopes, temporary ones, those of programs."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models.auth.application_passwords import AppPassword
from models.auth.security_log import AuthEvent
from models.errors import AuthenticationFailed, Forbidden
from models.store.columns import table_of
from models.users.roles import Scope
from resolvers.auth import app_passwords, authentication
from resolvers.auth.passwords import password_hashes
from resolvers.auth.sign_in import Attempt
from tests.auth.conftest import PASSWORD, TOKEN, Town

PROGRAM, TEMPORARY = "qwkzjvhxpbmfytrn", "Ab3Ab3Ab3Ab3"
IMAP = Attempt(scope=Scope.IMAP, protocol="IMAP")


async def program(town: Town, scopes: list[str], **more: Any) -> int:
    """A password of a program of ada's."""
    key, now = town.world.key(), town.clock()
    row = AppPassword(
        id=key,
        user_id=town.users["ada"],
        description="Phone",
        selector=app_passwords.selector_of(PROGRAM),
        password=await password_hashes.make(town.world, PROGRAM),
        scopes=scopes,
        created_at=now,
        **more,
    )
    async with town.world.write() as session:
        session.add(row)
    return key


async def temporary(town: Town, **more: Any) -> None:
    stored = await password_hashes.make(town.world, TEMPORARY)
    await town.change("ada", temporary_password=stored, **more)


async def events(town: Town) -> list[Any]:
    await authentication.settle(town.world)
    table = table_of(AuthEvent)
    return list(await town.world.database.read(select(table).order_by(table.c.created_at)))


async def test_a_scope_that_is_off_is_told_to_who_knows_the_password(town: Town) -> None:
    await town.change("ada", disabled_scopes=["IMAP"])
    with pytest.raises(Forbidden) as refusal:
        await town.enter("ada", attempt=IMAP)
    assert refusal.value.requires == Scope.IMAP
    with pytest.raises(AuthenticationFailed):
        await town.enter("ada", "wrong", IMAP)
    assert (await town.enter("ada", attempt=Attempt(scope=Scope.POP3))).scope is Scope.POP3


@pytest.mark.parametrize("scope", [Scope.IMAP, Scope.POP3, Scope.SMTP, Scope.SIEVE, Scope.MAIL])
async def test_with_a_factor_programs_need_a_password_of_their_own(
    town: Town, scope: Scope
) -> None:
    await town.change("ada", second_factors=["TOTP"])
    with pytest.raises(Forbidden):
        await town.enter("ada", attempt=Attempt(scope=scope))
    await program(town, [scope.value])
    assert (await town.enter("ada", PROGRAM, Attempt(scope=scope))).scope is scope
    spaced = f" {PROGRAM[:4].upper()} {PROGRAM[4:]}"
    assert (await town.enter("ada", spaced, Attempt(scope=scope))).scope is scope


async def test_a_password_of_a_program_is_for_its_scopes_alone(town: Town) -> None:
    key = await program(town, ["IMAP"], ttl=3600, expires_at=town.clock() + timedelta(hours=1))
    for scope in (Scope.SMTP, Scope.MAIL, Scope.READ, Scope.SETTINGS):
        with pytest.raises(Forbidden):
            await town.enter("ada", PROGRAM, Attempt(scope=scope))
    with pytest.raises(AuthenticationFailed):
        await town.enter("ada", PROGRAM)
    town.clock.tick(minutes=30)
    await town.enter("ada", PROGRAM, IMAP, ip="192.0.2.9")
    (row,) = await town.world.database.read(select(table_of(AppPassword)))
    assert (row.last_used_at, row.last_used_ip) == (town.clock(), "192.0.2.9")
    assert row.expires_at == town.clock() + timedelta(hours=1)
    assert row.last_event_id in {event.id for event in await events(town)}
    town.clock.tick(hours=1)
    with pytest.raises(AuthenticationFailed):
        await town.enter("ada", PROGRAM, IMAP)
    assert key == row.id


async def test_a_temporary_password_works_beside_the_real_one(town: Town) -> None:
    await temporary(town, temporary_until=town.clock() + timedelta(days=1))
    before = (await town.row("ada")).password
    assert not (await town.enter("ada")).require_password_change
    done = await town.enter("ada", TEMPORARY, TOKEN)
    assert (done.require_password_change, bool(done.token)) == (True, True)
    row = await town.row("ada")
    assert (row.require_password_change, row.password) == (True, before)
    assert (await town.enter("ada", PASSWORD)).user.id == row.id
    town.clock.tick(days=1)
    with pytest.raises(AuthenticationFailed):
        await town.enter("ada", TEMPORARY)


async def test_a_temporary_password_is_never_hashed_over_the_real_one(town: Town) -> None:
    old = await password_hashes.make(town.world, PASSWORD)
    outdated = old.replace("t=1", "t=2")  # of other costs: it would be made anew
    await temporary(town)
    await town.change("ada", password=outdated)
    await town.enter("ada", TEMPORARY)
    assert (await town.row("ada")).password == outdated


async def test_before_its_time_a_temporary_password_is_told_so_only_when_right(
    town: Town,
) -> None:
    await temporary(town, temporary_from=town.clock() + timedelta(hours=1))
    with pytest.raises(AuthenticationFailed):
        await town.enter("ada", TEMPORARY[::-1])
    with pytest.raises(Forbidden, match="not valid yet"):
        await town.enter("ada", TEMPORARY)
    town.clock.tick(hours=1)
    assert (await town.enter("ada", TEMPORARY)).require_password_change


async def test_a_temporary_password_opens_no_protocol_and_skips_no_factor(town: Town) -> None:
    await temporary(town)
    with pytest.raises(Forbidden):
        await town.enter("ada", TEMPORARY, IMAP)
    await town.change("ada", second_factors=["TOTP"])
    done = await town.enter("ada", TEMPORARY, TOKEN)
    assert done.require2fa == ["TOTP"]
    assert done.token
    assert (await town.viewer(done.token)).pending_for == town.users["ada"]


async def test_who_has_no_webmail_gets_no_token(town: Town) -> None:
    await town.change("ada", webmail_access=False)
    with pytest.raises(Forbidden):
        await town.enter("ada", attempt=TOKEN)
    assert (await town.enter("ada")).token is None


@pytest.mark.parametrize("password", ["wrong", TEMPORARY[::-1], PROGRAM[::-1]])
@pytest.mark.parametrize("scope", [Scope.MASTER, Scope.IMAP])
async def test_as_much_is_hashed_for_nobody_as_for_whom_it_is_wrong(
    town: Town, password: str, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where processes are asked for: each hash takes one."""
    await program(town, ["ALL"])
    await temporary(town)
    await town.user("bare", password=None)
    await town.user("gone", suspended=True)
    pool, hashes = password_hashes.pool_of(town.world), []
    run = type(pool).run

    async def counted(self: Any, *work: Any) -> Any:
        hashes.append(1)
        return await run(self, *work)

    monkeypatch.setattr(type(pool), "run", counted)
    costs = set()
    for name in ("ada", "bare", "gone", "nobody"):
        hashes.clear()
        with pytest.raises(AuthenticationFailed):
            await town.enter(name, password, Attempt(scope=scope))
        costs.add(len(hashes))
    assert len(costs) == 1


async def test_the_log_tells_what_came_of_it(town: Town) -> None:
    await town.user("bob", suspended=True)
    await town.user("carol", disabled=True)
    await town.enter("ada", attempt=TOKEN)
    for name in ("ada", "bob", "carol", "nobody", "nobody", "x" * 10_000):
        with pytest.raises(AuthenticationFailed):
            await town.enter(name, "wrong")
    found = {(event.user_id, event.result): event for event in await events(town)}
    ada, bob, carol = (town.users[name] for name in ("ada", "bob", "carol"))
    expected = {(ada, "success"), (ada, "fail"), (bob, "suspended"), (carol, "disabled")}
    assert set(found) == {*expected, (None, "fail")}
    assert found[None, "fail"].count == 3  # folded, whatever the name
    assert len(found[None, "fail"].detail["username"]) == 128
    assert {event.ip for event in found.values()} == {"192.0.2.1"}
    assert PASSWORD not in repr(found)
