"""The throttle of failed sign-ins: waiting times, stored counters and statements."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from mail.maintenance.housekeeping import run_housekeeping_round
from mail.network import ip_networks
from mail.throttling.ban_changes import refresh_refused_networks_from_database
from models.auth.credentials import Throttle
from models.errors import AuthenticationFailed, RateLimited
from models.runtime.environment import Environment
from models.store.columns import core_table
from resolvers.auth import authentication
from resolvers.auth.passwords import hash_workers, password_hashes
from resolvers.auth.throttles import FailureLimit, ThrottleCounts
from tests.conftest import ManualClock
from tests.support.accounts.sign_in_environment import SignInEnvironment, fail_sign_ins
from tests.support.stores.row_counts import count_rows
from tests.support.time_limits import HANG_SECONDS

MINUTE = timedelta(minutes=1)


async def expect_rate_limit(
    sign_in_environment: SignInEnvironment, name: str = "ada", ip: str | None = None
) -> timedelta:
    with pytest.raises(RateLimited) as refusal:
        await sign_in_environment.sign_in(name, ip=ip)
    return refusal.value.retry_after


async def test_wait_doubles_with_each_exhausted_window(
    sign_in_environment: SignInEnvironment,
) -> None:
    delays = []
    for _ in range(8):
        await fail_sign_ins(sign_in_environment, "ada", 12)
        delays.append(await expect_rate_limit(sign_in_environment))
        sign_in_environment.clock.tick(seconds=delays[-1].total_seconds())
    assert [delay / MINUTE for delay in delays] == [2, 4, 8, 16, 32, 60, 60, 60]


async def test_success_or_day_without_failures_resets_wait(
    sign_in_environment: SignInEnvironment,
) -> None:
    for _ in range(3):
        await fail_sign_ins(sign_in_environment, "ada", 12)
        sign_in_environment.clock.tick(
            seconds=(await expect_rate_limit(sign_in_environment)).total_seconds()
        )
    await sign_in_environment.sign_in("ada", ip=None)
    await fail_sign_ins(sign_in_environment, "ada", 12)
    assert await expect_rate_limit(sign_in_environment) == 2 * MINUTE
    sign_in_environment.clock.tick(days=1, minutes=2)
    await run_housekeeping_round(sign_in_environment.environment)
    assert await count_rows(sign_in_environment.environment, Throttle) == 0
    await fail_sign_ins(sign_in_environment, "ada", 12)
    assert await expect_rate_limit(sign_in_environment) == 2 * MINUTE


async def test_housekeeping_keeps_active_throttles(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12)
    sign_in_environment.clock.tick(minutes=2)
    await run_housekeeping_round(sign_in_environment.environment)
    await fail_sign_ins(sign_in_environment, "ada", 12)
    assert await expect_rate_limit(sign_in_environment) == 4 * MINUTE


async def test_window_with_few_failures_resets_wait(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12)
    sign_in_environment.clock.tick(minutes=2)
    await fail_sign_ins(sign_in_environment, "ada", 5)
    sign_in_environment.clock.tick(minutes=2)
    await fail_sign_ins(sign_in_environment, "ada", 12)
    assert await expect_rate_limit(sign_in_environment) == 2 * MINUTE


async def test_throttle_is_shared_between_processes(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12)
    other_environment = SignInEnvironment(
        replace(sign_in_environment.environment),
        sign_in_environment.clock,
        sign_in_environment.domain_id,
        sign_in_environment.users,
    )
    assert await expect_rate_limit(other_environment) == 2 * MINUTE
    rows = await sign_in_environment.environment.database.read(select(core_table(Throttle)))
    assert sorted((row.failures, row.times) for row in rows) == [(12, 0), (12, 1)]


async def test_failed_sign_in_of_any_name_runs_five_statements(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    statement_counts = []
    # as at the start of a process
    await refresh_refused_networks_from_database(sign_in_environment.environment)
    for name in ("ada", "ada@example.com", "nobody", "nobody@example.org", "nobody@nowhere"):
        await fail_sign_ins(sign_in_environment, name, 1)
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
        del statements[:]
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, "wrong")
        # the security log is written later
        immediate_statements = [
            statement for statement in statements if "security_events" not in statement
        ]
        statement_counts.append(
            len(
                [
                    statement
                    for statement in immediate_statements
                    if not statement.startswith(("SELECT 1", "COMMIT"))
                ]
            )
        )
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
    # user, failure count, failures of the network, lock, increment
    assert statement_counts == [5] * 5


async def test_allowed_network_is_never_blocked_but_account_is(
    environment: Environment, sign_in_environment: SignInEnvironment
) -> None:
    options = replace(
        environment.options,
        sign_in_exempt_networks=("192.0.2.0/24",),
        sign_in_max_failures_per_network=3,
    )
    allowing_environment = SignInEnvironment(
        replace(environment, options=options),
        sign_in_environment.clock,
        sign_in_environment.domain_id,
        sign_in_environment.users,
    )
    for number in range(5):
        await fail_sign_ins(allowing_environment, f"name{number}", 1, ip="192.0.2.1")
    assert await allowing_environment.sign_in("ada", ip="::ffff:192.0.2.2")
    await fail_sign_ins(allowing_environment, "ada", 12, ip="192.0.2.1")
    await expect_rate_limit(allowing_environment, ip="192.0.2.1")
    for number in range(3):
        await fail_sign_ins(allowing_environment, f"name{number}", 1, ip="198.51.100.1")
    await expect_rate_limit(allowing_environment, "nobody", ip="198.51.100.7")


def test_network_for_limits_is_ipv4_24_or_ipv6_64() -> None:
    assert ip_networks.network_for_limits("192.0.2.77") == "192.0.2.0/24"
    assert ip_networks.network_for_limits("2001:db8:1:2:3::4%eth0") == "2001:db8:1:2::/64"
    for invalid_ip in (None, "", "unix:", "x" * 10_000, "\ud800"):
        assert ip_networks.network_for_limits(invalid_ip) is None
        assert ip_networks.is_in_networks(invalid_ip, ("0.0.0.0/0", "::/0")) is False


def test_wait_never_exceeds_maximum(clock: ManualClock) -> None:
    limit = FailureLimit(1, MINUTE, timedelta(minutes=5))
    row = Throttle(id=1, key="x", failures=1, times=10**6, until=clock())
    counts = limit.counts_after_failure(row, clock())  # type: ignore[arg-type]
    assert counts == ThrottleCounts(1, 10**6 + 1, clock() + 5 * MINUTE, clock())


async def test_failures_of_any_username_text_are_counted(
    sign_in_environment: SignInEnvironment,
) -> None:
    for name in ("x" * 10_000, "\0", "\ud800", "a@" + "b" * 9_000, "", "\uff41da@\uff45xample.org"):
        await fail_sign_ins(sign_in_environment, name, 12)
        await expect_rate_limit(sign_in_environment, name)


async def test_login_memory_limits_concurrent_hashes(environment: Environment) -> None:
    def worker_count(memory: int, hash_memory: int) -> int:
        options = replace(
            environment.options, password_hashing_memory=memory, argon2_memory_cost=hash_memory
        )
        pool = password_hashes.worker_pool(replace(environment, options=options))
        return pool.thread_queue.size + pool.process_queue.size

    assert worker_count(1 << 30, 64 << 10) >= 2
    assert worker_count(128 << 20, 64 << 10) == 2
    assert worker_count(0, 64 << 10) == 2


async def test_concurrent_guesses_of_one_network_are_limited(
    sign_in_environment: SignInEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on a busy machine, hashes are slow: then some guesses would be refused for their wait
    monkeypatch.setattr(hash_workers, "MAX_EXPECTED_WAIT", HANG_SECONDS)
    environment = replace(
        sign_in_environment.environment,
        options=replace(
            sign_in_environment.environment.options, sign_in_max_failures_per_network=12
        ),
    )
    limited_environment = SignInEnvironment(
        environment,
        sign_in_environment.clock,
        sign_in_environment.domain_id,
        sign_in_environment.users,
    )
    guesses = (
        limited_environment.sign_in(f"name{number}", "wrong", ip="192.0.2.1")
        for number in range(45)
    )
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert sum(type(answer).__name__ == "AuthenticationFailed" for answer in answers) == 12
    assert sum(isinstance(answer, RateLimited) for answer in answers) == 33
