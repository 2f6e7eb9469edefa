"""Wrong passwords: how long one waits, and what it costs everybody else."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from mail.maintenance.housekeeping import run_round
from mail.network import ip_networks
from models.auth.credentials import Throttle
from models.errors import AuthenticationFailed, RateLimited
from models.runtime.environment import Environment
from models.store.columns import core_table
from resolvers.auth import authentication
from resolvers.auth.passwords import password_hashes
from resolvers.auth.throttles import FailureLimit, ThrottleCounts
from tests.conftest import Clock
from tests.support.accounts.sign_in_environment import SignInEnvironment, fail_sign_ins
from tests.support.stores.row_counts import row_count

MINUTE = timedelta(minutes=1)


async def waits(
    sign_in_environment: SignInEnvironment, name: str = "ada", ip: str | None = None
) -> timedelta:
    with pytest.raises(RateLimited) as refusal:
        await sign_in_environment.sign_in(name, ip=ip)
    return refusal.value.retry_after


async def test_each_window_that_is_used_up_makes_the_next_wait_longer(
    sign_in_environment: SignInEnvironment,
) -> None:
    seen = []
    for _ in range(8):
        await fail_sign_ins(sign_in_environment, "ada", 12)
        seen.append(await waits(sign_in_environment))
        sign_in_environment.clock.tick(seconds=seen[-1].total_seconds())
    assert [wait / MINUTE for wait in seen] == [2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_success_or_a_day_of_peace_begins_afresh(
    sign_in_environment: SignInEnvironment,
) -> None:
    for _ in range(3):
        await fail_sign_ins(sign_in_environment, "ada", 12)
        sign_in_environment.clock.tick(seconds=(await waits(sign_in_environment)).total_seconds())
    await sign_in_environment.sign_in("ada", ip=None)
    await fail_sign_ins(sign_in_environment, "ada", 12)
    assert await waits(sign_in_environment) == 2 * MINUTE
    sign_in_environment.clock.tick(days=1, minutes=2)
    await run_round(sign_in_environment.world)
    assert await row_count(sign_in_environment.world, Throttle) == 0
    await fail_sign_ins(sign_in_environment, "ada", 12)
    assert await waits(sign_in_environment) == 2 * MINUTE


async def test_housekeeping_forgives_nothing_that_still_counts(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12)
    sign_in_environment.clock.tick(minutes=2)
    await run_round(sign_in_environment.world)
    await fail_sign_ins(sign_in_environment, "ada", 12)
    assert await waits(sign_in_environment) == 4 * MINUTE


async def test_a_window_that_is_not_used_up_ends_the_row(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12)
    sign_in_environment.clock.tick(minutes=2)
    await fail_sign_ins(sign_in_environment, "ada", 5)
    sign_in_environment.clock.tick(minutes=2)
    await fail_sign_ins(sign_in_environment, "ada", 12)
    assert await waits(sign_in_environment) == 2 * MINUTE


async def test_what_is_counted_is_seen_by_all_processes_and_after_a_start(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12)
    other = SignInEnvironment(
        replace(sign_in_environment.world),
        sign_in_environment.clock,
        sign_in_environment.domain_id,
        sign_in_environment.users,
    )
    assert await waits(other) == 2 * MINUTE
    rows = await sign_in_environment.world.database.read(select(core_table(Throttle)))
    assert sorted((row.failures, row.times) for row in rows) == [(12, 0), (12, 1)]


async def test_a_failure_costs_as_few_statements_of_a_name_that_nobody_has(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    costs = []
    for name in ("ada", "ada@example.com", "nobody", "nobody@example.org", "nobody@nowhere"):
        await fail_sign_ins(sign_in_environment, name, 1)
        await authentication.wait_for_background_tasks(sign_in_environment.world)
        del statements[:]
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, "wrong")
        before = [sent for sent in statements if "auth_events" not in sent]  # those come behind
        costs.append(len([sent for sent in before if not sent.startswith(("SELECT 1", "COMMIT"))]))
        await authentication.wait_for_background_tasks(sign_in_environment.world)
    assert costs == [4] * 5  # who, and how often; held, counted


async def test_networks_that_are_allowed_are_never_closed_but_accounts_are(
    world: Environment, sign_in_environment: SignInEnvironment
) -> None:
    options = replace(world.options, login_allow=("192.0.2.0/24",), network_failures=3)
    here = SignInEnvironment(
        replace(world, options=options),
        sign_in_environment.clock,
        sign_in_environment.domain_id,
        sign_in_environment.users,
    )
    for nth in range(5):
        await fail_sign_ins(here, f"name{nth}", 1, ip="192.0.2.1")
    assert await here.sign_in("ada", ip="::ffff:192.0.2.2")
    await fail_sign_ins(here, "ada", 12, ip="192.0.2.1")
    await waits(here, ip="192.0.2.1")
    for nth in range(3):
        await fail_sign_ins(here, f"name{nth}", 1, ip="198.51.100.1")
    await waits(here, "nobody", ip="198.51.100.7")


def test_networks_of_both_kinds_are_told_apart() -> None:
    assert ip_networks.network_of_address("192.0.2.77") == "192.0.2.0/24"
    assert ip_networks.network_of_address("2001:db8:1:2:3::4%eth0") == "2001:db8:1:2::/64"
    for odd in (None, "", "unix:", "x" * 10_000, "\ud800"):
        assert ip_networks.network_of_address(odd) is None
        assert ip_networks.is_in_networks(odd, ("0.0.0.0/0", "::/0")) is False


def test_no_wait_is_longer_than_the_longest(clock: Clock) -> None:
    limit = FailureLimit(1, MINUTE, timedelta(minutes=5))
    row = Throttle(key="x", failures=1, times=10**6, until=clock())
    counts = limit.count_failure(row, clock())  # type: ignore[arg-type]
    assert counts == ThrottleCounts(1, 10**6 + 1, clock() + 5 * MINUTE)


async def test_names_of_any_length_and_kind_are_counted(
    sign_in_environment: SignInEnvironment,
) -> None:
    for name in ("x" * 10_000, "\0", "\ud800", "a@" + "b" * 9_000, "", "\uff41da@\uff45xample.org"):
        await fail_sign_ins(sign_in_environment, name, 12)
        await waits(sign_in_environment, name)


async def test_memory_says_how_many_are_hashed_at_once(world: Environment) -> None:
    def processes(memory: int, each: int) -> int:
        options = replace(world.options, login_memory=memory, argon2_memory=each)
        pool = password_hashes.worker_pool(replace(world, options=options))
        return pool.thread_queue.size + pool.process_queue.size

    assert processes(1 << 30, 64 << 10) >= 2
    assert processes(128 << 20, 64 << 10) == 2
    assert processes(0, 64 << 10) == 2


async def test_of_many_at_once_in_one_network_no_more_are_heard_than_may_be(
    sign_in_environment: SignInEnvironment,
) -> None:
    world = replace(
        sign_in_environment.world,
        options=replace(sign_in_environment.world.options, network_failures=12),
    )
    here = SignInEnvironment(
        world, sign_in_environment.clock, sign_in_environment.domain_id, sign_in_environment.users
    )
    guesses = (here.sign_in(f"name{nth}", "wrong", ip="192.0.2.1") for nth in range(45))
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert sum(type(answer).__name__ == "AuthenticationFailed" for answer in answers) == 12
    assert sum(isinstance(answer, RateLimited) for answer in answers) == 33
