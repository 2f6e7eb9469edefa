"""Sign-ins with username and password, and the limits on failures."""

import asyncio
import multiprocessing
from contextlib import ExitStack
from datetime import timedelta

import pytest
from argon2 import PasswordHasher
from passlib.hash import sha512_crypt

from mail.throttling.ban_changes import refresh_refused_networks_from_database
from merganser.commands.users import user_operations
from models.addresses.tables import Address, AddressKind
from models.auth.credentials import AccessToken, Throttle
from models.auth.security_log import AuthProtocol
from models.errors import (
    AuthenticationFailed,
    InvalidInput,
    RateLimited,
)
from models.users.roles import Scope
from resolvers.auth import authentication
from resolvers.auth.passwords import hash_workers, password_hashes
from resolvers.auth.passwords.hash_workers import BUSY_TEXT
from resolvers.auth.sign_in import SignInRequest
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.support.accounts.sign_in_environment import (
    PASSWORD,
    TOKEN_REQUEST,
    SignInEnvironment,
    fail_sign_ins,
)
from tests.support.stores.row_counts import count_rows

MAILBOX = AddressKind.MAILBOX


async def test_password_hash_is_argon2id_of_normalized_text(
    sign_in_environment: SignInEnvironment,
) -> None:
    stored = await password_hashes.hash_password(sign_in_environment.environment, "Grüße")
    assert stored.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert await password_hashes.check_password(
        sign_in_environment.environment, stored, "Gru\u0308ße"
    )  # decomposed characters
    assert not await password_hashes.check_password(
        sign_in_environment.environment, stored, "Grusse"
    )
    assert not await password_hashes.check_password(sign_in_environment.environment, None, "Grüße")


@pytest.mark.parametrize("password", ["", "x" * 257, "nul\0", "half \ud800"])
async def test_invalid_password_text_is_refused(
    sign_in_environment: SignInEnvironment, password: str
) -> None:
    with pytest.raises(InvalidInput):
        await password_hashes.hash_password(sign_in_environment.environment, password)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", password)


async def test_password_checks_over_queue_limit_are_refused(
    sign_in_environment: SignInEnvironment,
) -> None:
    # a check takes some milliseconds
    stored = PasswordHasher(time_cost=1, memory_cost=8192).hash(PASSWORD)
    check_count = password_hashes.worker_pool(sign_in_environment.environment).job_limit.limit + 5
    checks = (
        password_hashes.check_password(sign_in_environment.environment, stored, PASSWORD)
        for _ in range(check_count)
    )
    answers = await asyncio.gather(*checks, return_exceptions=True)
    refused_count = [type(answer) for answer in answers].count(RateLimited)
    assert 0 < refused_count <= 5
    assert answers.count(True) == check_count - refused_count
    # the queue has room again
    assert await password_hashes.check_password(sign_in_environment.environment, stored, PASSWORD)


async def test_commands_wait_while_hash_workers_are_busy(
    sign_in_environment: SignInEnvironment,
) -> None:
    environment = sign_in_environment.environment
    job_limit = password_hashes.worker_pool(environment).job_limit
    new_password = "a goat on a green hill"  # noqa: S105 - a test's
    with ExitStack() as slots:
        for _ in range(job_limit.limit):
            slots.enter_context(job_limit.slot_or_raise_rate_limited())
        change = asyncio.create_task(
            user_operations.change_password(environment, "ada", new_password)
        )
        await asyncio.wait([change], timeout=0.5)
        assert not change.done()
    await change
    assert (await sign_in_environment.sign_in("ada", new_password)).user.username == "ada"


async def test_sign_in_over_slot_limit_runs_no_statement(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    with ExitStack() as slots:
        for _ in range(
            password_hashes.worker_pool(sign_in_environment.environment).sign_in_limit.limit
        ):
            slots.enter_context(password_hashes.sign_in_slot(sign_in_environment.environment))
        statements.clear()
        for name in ("ada", "nobody"):
            with pytest.raises(RateLimited):
                await sign_in_environment.sign_in(name)
        assert statements == []
    await sign_in_environment.sign_in("ada")  # a slot is free again


async def test_password_check_survives_killed_worker_process(
    sign_in_environment: SignInEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_workers, "MAX_EXPECTED_WAIT", 120.0)  # a process starts slowly
    monkeypatch.setattr(hash_workers, "HASH_TIMEOUT", 120.0)
    stored = sha512_crypt.hash(PASSWORD)  # helper processes check hashes of this kind
    assert await password_hashes.check_password(sign_in_environment.environment, stored, PASSWORD)
    children = multiprocessing.active_children()
    assert children
    for process in children:
        process.kill()
    for _ in range(3):
        assert await password_hashes.check_password(
            sign_in_environment.environment, stored, PASSWORD
        )


async def test_sign_in_replaces_hash_of_other_cost(
    sign_in_environment: SignInEnvironment,
) -> None:
    old_hash = PasswordHasher(time_cost=2, memory_cost=64).hash(PASSWORD)
    await sign_in_environment.change_user("ada", password=old_hash)
    await sign_in_environment.sign_in("ada")
    new_hash = (await sign_in_environment.load_user_row("ada")).password
    assert new_hash.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    await sign_in_environment.sign_in("ada")
    assert (await sign_in_environment.load_user_row("ada")).password == new_hash


async def test_sign_in_sets_last_login_and_creates_no_token(
    sign_in_environment: SignInEnvironment,
) -> None:
    sign_in_environment.clock.tick(hours=3)
    authenticated = await sign_in_environment.sign_in("ada")
    assert (authenticated.user.id, authenticated.scope, authenticated.token) == (
        sign_in_environment.users["ada"],
        Scope.FULL,
        None,
    )
    assert (
        await sign_in_environment.load_user_row("ada")
    ).last_login_at == sign_in_environment.clock()
    assert await count_rows(sign_in_environment.environment, AccessToken) == 0


async def test_username_and_addresses_sign_in_the_same_user(
    sign_in_environment: SignInEnvironment,
) -> None:
    now, ada = sign_in_environment.clock(), sign_in_environment.users["ada"]
    async with sign_in_environment.environment.write_session() as session:
        for local_part, kind in (
            ("adal", MAILBOX),
            ("any*", MAILBOX),
            ("away", AddressKind.FORWARD),
        ):
            address = Address(
                id=sign_in_environment.environment.new_id(),
                local=local_part,
                display_address=local_part,
                kind=kind,
                domain_id=sign_in_environment.domain_id,
                user_id=ada,
                created_at=now,
                updated_at=now,
            )
            session.add(address)
    for name in ("Ada", "ada.l@example.org", "A.dal+x@EXAMPLE.com"):
        assert (await sign_in_environment.sign_in(name)).user.id == ada
    for name in ("away@example.org", "anybody@example.org", "adal@example.net", "adal", "\0", "@"):
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name)


async def test_all_failed_sign_ins_have_the_same_error(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("bob", active=False)
    await sign_in_environment.add_user("carol", suspended=True)
    await sign_in_environment.add_user("dave", password=None)
    errors = set()
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
        errors.add(repr(vars(refusal.value)))
    assert len(errors) == 1


async def test_unknown_username_runs_the_same_statements(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    statement_lists = []
    # as at the start of a process
    await refresh_refused_networks_from_database(sign_in_environment.environment)
    for name in ("ada", "nobody"):
        del statements[:]
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, "wrong")
        statement_lists.append([statement.partition("\n")[0] for statement in statements])
        # entries that are written after the response
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
    assert statement_lists[0] == statement_lists[1]
    assert len(statement_lists[0]) > 3


async def test_only_scope_master_creates_a_token(sign_in_environment: SignInEnvironment) -> None:
    authenticated = await sign_in_environment.sign_in(
        "ada", attempt=SignInRequest(scope=Scope.IMAP, protocol=AuthProtocol.IMAP)
    )
    assert (authenticated.scope, authenticated.token) == (Scope.IMAP, None)
    with pytest.raises(ValueError, match="FULL"):
        SignInRequest(scope=Scope.IMAP, token=True)


async def test_sign_in_reports_required_password_change(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", password_change_required=True)
    assert (await sign_in_environment.sign_in("ada")).password_change_required


async def test_rolled_back_sign_in_keeps_no_token_but_counts_failures(
    sign_in_environment: SignInEnvironment,
) -> None:
    ctx = Context(sign_in_environment.environment, Viewer())
    async with ctx.combined_transaction(commit=False):
        authenticated = await authentication.authenticate_user_by_password(
            ctx, "ada", PASSWORD, TOKEN_REQUEST
        )
    assert authenticated.token
    assert await sign_in_environment.is_refused(authenticated.token)
    with pytest.raises(AuthenticationFailed):
        async with ctx.combined_transaction(commit=False):
            await authentication.authenticate_user_by_password(ctx, "ada", "wrong", TOKEN_REQUEST)
    # per account, and per account and network
    assert await count_rows(sign_in_environment.environment, Throttle) == 2


@pytest.mark.parametrize("name", ["ada", "nobody", "a.b+c@example.net"])
async def test_twelve_failures_block_username_for_two_minutes(
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


async def test_blocked_sign_in_compares_no_hash(sign_in_environment: SignInEnvironment) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12, ip="192.0.2.1")
    # a comparison with "none" would raise
    await sign_in_environment.change_user("ada", password="none")  # noqa: S106
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="192.0.2.1")


async def test_spellings_of_unknown_address_share_one_throttle(
    sign_in_environment: SignInEnvironment,
) -> None:
    for number in range(12):
        await fail_sign_ins(
            sign_in_environment, f"A.{'.' * number}b+{number}@Example.NET", 1, ip="192.0.2.1"
        )
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ab@example.net", ip="192.0.2.1")


async def test_successful_sign_in_resets_failures_of_username(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 11, ip="192.0.2.1")
    await sign_in_environment.sign_in("ada", ip="192.0.2.1")
    await fail_sign_ins(sign_in_environment, "ada", 12, ip="192.0.2.1")
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="192.0.2.1")


async def test_hundred_failures_block_network_for_all_users(
    sign_in_environment: SignInEnvironment,
) -> None:
    for number in range(100):
        await fail_sign_ins(sign_in_environment, f"name{number}", 1, ip=f"192.0.2.{number}")
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="192.0.2.200")
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="::ffff:192.0.2.7")
    assert await sign_in_environment.sign_in("ada", ip="198.51.100.1")
    sign_in_environment.clock.tick(seconds=300)
    assert await sign_in_environment.sign_in("ada", ip="192.0.2.200")


async def test_twelve_of_many_concurrent_guesses_are_checked(
    sign_in_environment: SignInEnvironment,
) -> None:
    guesses = (
        sign_in_environment.sign_in("ada", f"guess {number}", ip=None) for number in range(40)
    )
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    checked_count = [type(answer) for answer in answers].count(AuthenticationFailed)
    limited = [answer for answer in answers if isinstance(answer, RateLimited)]
    assert checked_count + len(limited) == 40
    # the machine is too slow
    busy_errors = [answer for answer in limited if answer.message == BUSY_TEXT]
    assert checked_count == 12 or (checked_count < 12 and busy_errors)
    for number in range(checked_count, 12):
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in("ada", f"later guess {number}", ip=None)
    with pytest.raises(RateLimited, match="Too many failed attempts"):
        await sign_in_environment.sign_in("ada", ip=None)  # the correct password is refused too
