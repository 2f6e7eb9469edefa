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
    InvalidInput,
    RateLimited,
)
from models.users.roles import Scope
from resolvers.auth import authentication
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.hash_workers import BUSY_TEXT
from resolvers.auth.sign_in import SignInRequest
from resolvers.context import Context, Viewer
from tests.support.accounts.sign_in_environment import (
    PASSWORD,
    TOKEN_REQUEST,
    SignInEnvironment,
    fail_sign_ins,
)
from tests.support.stores.row_counts import row_count

MAILBOX = AddressKind.MAILBOX


async def test_a_hash_is_argon2id_and_nobody_has_the_one_of_nobody(
    sign_in_environment: SignInEnvironment,
) -> None:
    stored = await password_hashes.hash_password(sign_in_environment.world, "Grüße")
    assert stored.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert await password_hashes.check_password(
        sign_in_environment.world, stored, "Gru\u0308ße"
    )  # written in another way
    assert not await password_hashes.check_password(sign_in_environment.world, stored, "Grusse")
    assert not await password_hashes.check_password(sign_in_environment.world, None, "Grüße")


@pytest.mark.parametrize("password", ["", "x" * 257, "nul\0", "half \ud800"])
async def test_what_cannot_be_a_password_is_refused(
    sign_in_environment: SignInEnvironment, password: str
) -> None:
    with pytest.raises(InvalidInput):
        await password_hashes.hash_password(sign_in_environment.world, password)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", password)


async def test_too_many_who_wait_are_sent_away(sign_in_environment: SignInEnvironment) -> None:
    stored = PasswordHasher(time_cost=1, memory_cost=8192).hash(PASSWORD)  # some milliseconds
    many = password_hashes.worker_pool(sign_in_environment.world).job_limit.limit + 5
    checks = (
        password_hashes.check_password(sign_in_environment.world, stored, PASSWORD)
        for _ in range(many)
    )
    answers = await asyncio.gather(*checks, return_exceptions=True)
    refused = [type(answer) for answer in answers].count(RateLimited)
    assert 0 < refused <= 5
    assert answers.count(True) == many - refused
    assert await password_hashes.check_password(
        sign_in_environment.world, stored, PASSWORD
    )  # there is place again


async def test_of_too_many_who_sign_in_nothing_is_looked_up(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    with ExitStack() as taken:
        for _ in range(password_hashes.worker_pool(sign_in_environment.world).sign_in_limit.limit):
            taken.enter_context(password_hashes.sign_in_slot(sign_in_environment.world))
        statements.clear()
        for name in ("ada", "nobody"):
            with pytest.raises(RateLimited):
                await sign_in_environment.sign_in(name)
        assert statements == []
    await sign_in_environment.sign_in("ada")  # there is place again


async def test_a_killed_process_costs_no_sign_in(sign_in_environment: SignInEnvironment) -> None:
    stored = sha512_crypt.hash(PASSWORD)  # such hashes are checked in processes
    assert await password_hashes.check_password(sign_in_environment.world, stored, PASSWORD)
    children = multiprocessing.active_children()
    assert children
    for process in children:
        process.kill()
    for _ in range(3):
        assert await password_hashes.check_password(sign_in_environment.world, stored, PASSWORD)


async def test_a_hash_of_other_costs_is_made_anew_at_sign_in(
    sign_in_environment: SignInEnvironment,
) -> None:
    old = PasswordHasher(time_cost=2, memory_cost=64).hash(PASSWORD)
    await sign_in_environment.change_user("ada", password=old)
    await sign_in_environment.sign_in("ada")
    fresh = (await sign_in_environment.load_user_row("ada")).password
    assert fresh.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    await sign_in_environment.sign_in("ada")
    assert (await sign_in_environment.load_user_row("ada")).password == fresh


async def test_a_sign_in_notes_when_and_gives_no_token_unasked(
    sign_in_environment: SignInEnvironment,
) -> None:
    sign_in_environment.clock.tick(hours=3)
    done = await sign_in_environment.sign_in("ada")
    assert (done.user.id, done.scope, done.token) == (
        sign_in_environment.users["ada"],
        Scope.MASTER,
        None,
    )
    assert (
        await sign_in_environment.load_user_row("ada")
    ).last_login_at == sign_in_environment.clock()
    assert await row_count(sign_in_environment.world, AccessToken) == 0


async def test_names_and_addresses_lead_to_the_same_account(
    sign_in_environment: SignInEnvironment,
) -> None:
    now, ada = sign_in_environment.clock(), sign_in_environment.users["ada"]
    async with sign_in_environment.world.write_session() as session:
        for local, kind in (("adal", MAILBOX), ("any*", MAILBOX), ("away", AddressKind.FORWARD)):
            there = Address(
                id=sign_in_environment.world.new_id(),
                local=local,
                shown=local,
                kind=kind,
                domain_id=sign_in_environment.domain_id,
                user_id=ada,
                created_at=now,
                updated_at=now,
            )
            session.add(there)
    for name in ("Ada", "ada.l@example.org", "A.dal+x@EXAMPLE.com"):
        assert (await sign_in_environment.sign_in(name)).user.id == ada
    for name in ("away@example.org", "anybody@example.org", "adal@example.net", "adal", "\0", "@"):
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name)


async def test_unknown_names_and_wrong_passwords_have_one_answer(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("bob", disabled=True)
    await sign_in_environment.add_user("carol", suspended=True)
    await sign_in_environment.add_user("dave", password=None)
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
            await sign_in_environment.sign_in(name, password)
        answers.add(repr(vars(refusal.value)))
    assert len(answers) == 1


async def test_unknown_names_cost_the_same_statements(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    costs = []
    for name in ("ada", "nobody"):
        del statements[:]
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, "wrong")
        costs.append([statement.partition("\n")[0] for statement in statements])
        await authentication.wait_for_background_tasks(
            sign_in_environment.world
        )  # what is noted behind the answer
    assert costs[0] == costs[1]
    assert len(costs[0]) > 3


async def test_only_the_scope_master_gives_a_token(sign_in_environment: SignInEnvironment) -> None:
    done = await sign_in_environment.sign_in(
        "ada", attempt=SignInRequest(scope=Scope.IMAP, protocol="IMAP")
    )
    assert (done.scope, done.token) == (Scope.IMAP, None)
    with pytest.raises(InvalidInput):
        await sign_in_environment.sign_in(
            "ada", attempt=SignInRequest(scope=Scope.IMAP, token=True)
        )


async def test_who_must_change_the_password_is_told(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.change_user("ada", require_password_change=True)
    assert (await sign_in_environment.sign_in("ada")).require_password_change


async def test_a_trial_keeps_no_token_but_counts_its_failures(
    sign_in_environment: SignInEnvironment,
) -> None:
    ctx = Context(sign_in_environment.world, Viewer())
    async with ctx.combined_transaction(commit=False):
        done = await authentication.authenticate(ctx, "ada", PASSWORD, TOKEN_REQUEST)
    assert done.token
    assert await sign_in_environment.is_refused(done.token)
    with pytest.raises(AuthenticationFailed):
        async with ctx.combined_transaction(commit=False):
            await authentication.authenticate(ctx, "ada", "wrong", TOKEN_REQUEST)
    assert (
        await row_count(sign_in_environment.world, Throttle) == 2
    )  # of the account, and of the account and network


@pytest.mark.parametrize("name", ["ada", "nobody", "a.b+c@example.net"])
async def test_twelve_failures_close_a_name_for_the_rest_of_two_minutes(
    sign_in_environment: SignInEnvironment, name: str
) -> None:
    await fail_sign_ins(sign_in_environment, name, 6, ip="192.0.2.1")
    sign_in_environment.clock.tick(seconds=50)
    await fail_sign_ins(sign_in_environment, name, 6, ip="192.0.2.1")
    with pytest.raises(RateLimited) as refusal:
        await sign_in_environment.sign_in(name, ip="192.0.2.1")
    assert refusal.value.retry_after == timedelta(seconds=70)
    sign_in_environment.clock.tick(seconds=70)
    await fail_sign_ins(sign_in_environment, name, 12, ip="192.0.2.1")  # a new window


async def test_what_is_closed_is_not_hashed(sign_in_environment: SignInEnvironment) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12, ip="192.0.2.1")
    await sign_in_environment.change_user("ada", password="none")  # noqa: S106 - who compared with it would break
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="192.0.2.1")


async def test_spellings_of_an_unknown_address_are_one_name(
    sign_in_environment: SignInEnvironment,
) -> None:
    for nth in range(12):
        await fail_sign_ins(
            sign_in_environment, f"A.{'.' * nth}b+{nth}@Example.NET", 1, ip="192.0.2.1"
        )
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ab@example.net", ip="192.0.2.1")


async def test_a_success_forgets_the_failures_of_the_name(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 11, ip="192.0.2.1")
    await sign_in_environment.sign_in("ada", ip="192.0.2.1")
    await fail_sign_ins(sign_in_environment, "ada", 12, ip="192.0.2.1")
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="192.0.2.1")


async def test_a_hundred_failures_close_a_network_for_everybody(
    sign_in_environment: SignInEnvironment,
) -> None:
    for nth in range(100):
        await fail_sign_ins(sign_in_environment, f"name{nth}", 1, ip=f"192.0.2.{nth}")
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="192.0.2.200")
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="::ffff:192.0.2.7")
    assert await sign_in_environment.sign_in("ada", ip="198.51.100.1")
    sign_in_environment.clock.tick(seconds=300)
    assert await sign_in_environment.sign_in("ada", ip="192.0.2.200")


async def test_of_many_guesses_at_once_twelve_are_heard(
    sign_in_environment: SignInEnvironment,
) -> None:
    guesses = (sign_in_environment.sign_in("ada", f"guess {nth}", ip=None) for nth in range(40))
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    heard = [type(answer) for answer in answers].count(AuthenticationFailed)
    limited = [answer for answer in answers if isinstance(answer, RateLimited)]
    assert heard + len(limited) == 40
    unheard = [answer for answer in limited if answer.message == BUSY_TEXT]  # too slow a machine
    assert heard == 12 or (heard < 12 and unheard)
    for nth in range(heard, 12):
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in("ada", f"later guess {nth}", ip=None)
    with pytest.raises(RateLimited, match="too many failures"):
        await sign_in_environment.sign_in("ada", ip=None)  # also with the right one
