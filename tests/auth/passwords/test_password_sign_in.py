"""Names and passwords: who gets in, and who has to wait."""

import asyncio
import multiprocessing
from contextlib import ExitStack
from datetime import timedelta

import pytest
from argon2 import PasswordHasher
from passlib.hash import sha512_crypt

from models.addresses.tables import Address, AddressKind
from models.auth.credentials import AccessToken, Throttle
from models.errors import (
    AuthenticationFailed,
    Invalid,
    RateLimited,
)
from models.users.roles import Scope
from resolvers.auth import authentication
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.hash_workers import BUSY
from resolvers.auth.sign_in import Attempt
from resolvers.context import Context, Viewer
from tests.auth.conftest import PASSWORD, TOKEN, Town, count, fail

MAILBOX = AddressKind.MAILBOX


async def test_a_hash_is_argon2id_and_nobody_has_the_one_of_nobody(town: Town) -> None:
    stored = await password_hashes.make(town.world, "Grüße")
    assert stored.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert await password_hashes.check(town.world, stored, "Gru\u0308ße")  # written in another way
    assert not await password_hashes.check(town.world, stored, "Grusse")
    assert not await password_hashes.check(town.world, None, "Grüße")


@pytest.mark.parametrize("password", ["", "x" * 257, "nul\0", "half \ud800"])
async def test_what_cannot_be_a_password_is_refused(town: Town, password: str) -> None:
    with pytest.raises(Invalid):
        await password_hashes.make(town.world, password)
    with pytest.raises(AuthenticationFailed):
        await town.enter("ada", password)


async def test_too_many_who_wait_are_sent_away(town: Town) -> None:
    stored = PasswordHasher(time_cost=1, memory_cost=8192).hash(PASSWORD)  # some milliseconds
    many = password_hashes.pool_of(town.world).waiting.most + 5
    checks = (password_hashes.check(town.world, stored, PASSWORD) for _ in range(many))
    answers = await asyncio.gather(*checks, return_exceptions=True)
    refused = [type(answer) for answer in answers].count(RateLimited)
    assert 0 < refused <= 5
    assert answers.count(True) == many - refused
    assert await password_hashes.check(town.world, stored, PASSWORD)  # there is place again


async def test_of_too_many_who_sign_in_nothing_is_looked_up(
    town: Town, statements: list[str]
) -> None:
    with ExitStack() as taken:
        for _ in range(password_hashes.pool_of(town.world).signing_in.most):
            taken.enter_context(password_hashes.admitted(town.world))
        statements.clear()
        for name in ("ada", "nobody"):
            with pytest.raises(RateLimited):
                await town.enter(name)
        assert statements == []
    await town.enter("ada")  # there is place again


async def test_a_killed_process_costs_no_sign_in(town: Town) -> None:
    stored = sha512_crypt.hash(PASSWORD)  # such hashes are checked in processes
    assert await password_hashes.check(town.world, stored, PASSWORD)
    children = multiprocessing.active_children()
    assert children
    for process in children:
        process.kill()
    for _ in range(3):
        assert await password_hashes.check(town.world, stored, PASSWORD)


async def test_a_hash_of_other_costs_is_made_anew_at_sign_in(town: Town) -> None:
    old = PasswordHasher(time_cost=2, memory_cost=64).hash(PASSWORD)
    await town.change("ada", password=old)
    await town.enter("ada")
    fresh = (await town.row("ada")).password
    assert fresh.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    await town.enter("ada")
    assert (await town.row("ada")).password == fresh


async def test_a_sign_in_notes_when_and_gives_no_token_unasked(town: Town) -> None:
    town.clock.tick(hours=3)
    done = await town.enter("ada")
    assert (done.user.id, done.scope, done.token) == (town.users["ada"], Scope.MASTER, None)
    assert (await town.row("ada")).last_login_at == town.clock()
    assert await count(town, AccessToken) == 0


async def test_names_and_addresses_lead_to_the_same_account(town: Town) -> None:
    now, ada = town.clock(), town.users["ada"]
    async with town.world.write() as session:
        for local, kind in (("adal", MAILBOX), ("any*", MAILBOX), ("away", AddressKind.FORWARD)):
            there = Address(
                id=town.world.key(),
                local=local,
                shown=local,
                kind=kind,
                domain_id=town.domain_id,
                user_id=ada,
                created_at=now,
                updated_at=now,
            )
            session.add(there)
    for name in ("Ada", "ada.l@example.org", "A.dal+x@EXAMPLE.com"):
        assert (await town.enter(name)).user.id == ada
    for name in ("away@example.org", "anybody@example.org", "adal@example.net", "adal", "\0", "@"):
        with pytest.raises(AuthenticationFailed):
            await town.enter(name)


async def test_unknown_names_and_wrong_passwords_have_one_answer(town: Town) -> None:
    await town.user("bob", disabled=True)
    await town.user("carol", suspended=True)
    await town.user("dave", password=None)
    answers = set()
    for name, password in (
        ("nobody", PASSWORD),
        ("ada", "wrong"),
        ("bob", PASSWORD),
        ("carol", PASSWORD),
        ("dave", PASSWORD),
        ("n" * 5000, PASSWORD),
    ):
        with pytest.raises(AuthenticationFailed) as refusal:
            await town.enter(name, password)
        answers.add(repr(vars(refusal.value)))
    assert len(answers) == 1


async def test_unknown_names_cost_the_same_statements(town: Town, statements: list[str]) -> None:
    costs = []
    for name in ("ada", "nobody"):
        del statements[:]
        with pytest.raises(AuthenticationFailed):
            await town.enter(name, "wrong")
        costs.append([statement.partition("\n")[0] for statement in statements])
        await authentication.settle(town.world)  # what is noted behind the answer
    assert costs[0] == costs[1]
    assert len(costs[0]) > 3


async def test_only_the_scope_master_gives_a_token(town: Town) -> None:
    done = await town.enter("ada", attempt=Attempt(scope=Scope.IMAP, protocol="IMAP"))
    assert (done.scope, done.token) == (Scope.IMAP, None)
    with pytest.raises(Invalid):
        await town.enter("ada", attempt=Attempt(scope=Scope.IMAP, token=True))


async def test_who_must_change_the_password_is_told(town: Town) -> None:
    await town.change("ada", require_password_change=True)
    assert (await town.enter("ada")).require_password_change


async def test_a_trial_keeps_no_token_but_counts_its_failures(town: Town) -> None:
    ctx = Context(town.world, Viewer())
    async with ctx.together(keep=False):
        done = await authentication.authenticate(ctx, "ada", PASSWORD, TOKEN)
    assert done.token
    assert await town.refused(done.token)
    with pytest.raises(AuthenticationFailed):
        async with ctx.together(keep=False):
            await authentication.authenticate(ctx, "ada", "wrong", TOKEN)
    assert await count(town, Throttle) == 2  # of the account, and of the account and network


@pytest.mark.parametrize("name", ["ada", "nobody", "a.b+c@example.net"])
async def test_twelve_failures_close_a_name_for_the_rest_of_two_minutes(
    town: Town, name: str
) -> None:
    await fail(town, name, 6, ip="192.0.2.1")
    town.clock.tick(seconds=50)
    await fail(town, name, 6, ip="192.0.2.1")
    with pytest.raises(RateLimited) as refusal:
        await town.enter(name, ip="192.0.2.1")
    assert refusal.value.retry_after == timedelta(seconds=70)
    town.clock.tick(seconds=70)
    await fail(town, name, 12, ip="192.0.2.1")  # a new window


async def test_what_is_closed_is_not_hashed(town: Town) -> None:
    await fail(town, "ada", 12, ip="192.0.2.1")
    await town.change("ada", password="none")  # noqa: S106 - who compared with it would break
    with pytest.raises(RateLimited):
        await town.enter("ada", ip="192.0.2.1")


async def test_spellings_of_an_unknown_address_are_one_name(town: Town) -> None:
    for nth in range(12):
        await fail(town, f"A.{'.' * nth}b+{nth}@Example.NET", 1, ip="192.0.2.1")
    with pytest.raises(RateLimited):
        await town.enter("ab@example.net", ip="192.0.2.1")


async def test_a_success_forgets_the_failures_of_the_name(town: Town) -> None:
    await fail(town, "ada", 11, ip="192.0.2.1")
    await town.enter("ada", ip="192.0.2.1")
    await fail(town, "ada", 12, ip="192.0.2.1")
    with pytest.raises(RateLimited):
        await town.enter("ada", ip="192.0.2.1")


async def test_a_hundred_failures_close_a_network_for_everybody(town: Town) -> None:
    for nth in range(100):
        await fail(town, f"name{nth}", 1, ip=f"192.0.2.{nth}")
    with pytest.raises(RateLimited):
        await town.enter("ada", ip="192.0.2.200")
    with pytest.raises(RateLimited):
        await town.enter("ada", ip="::ffff:192.0.2.7")
    assert await town.enter("ada", ip="198.51.100.1")
    town.clock.tick(seconds=300)
    assert await town.enter("ada", ip="192.0.2.200")


async def test_of_many_guesses_at_once_twelve_are_heard(town: Town) -> None:
    guesses = (town.enter("ada", f"guess {nth}", ip=None) for nth in range(40))
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    heard = [type(answer) for answer in answers].count(AuthenticationFailed)
    limited = [answer for answer in answers if isinstance(answer, RateLimited)]
    assert heard + len(limited) == 40
    unheard = [answer for answer in limited if answer.message == BUSY]  # too slow a machine
    assert heard == 12 or (heard < 12 and unheard)
    for nth in range(heard, 12):
        with pytest.raises(AuthenticationFailed):
            await town.enter("ada", f"later guess {nth}", ip=None)
    with pytest.raises(RateLimited, match="too many failures"):
        await town.enter("ada", ip=None)  # also with the right one
