"""Failed sign-ins block an account for the network they come from, not for its user."""

import base64
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import AuthProtocol, SecurityEvent
from models.errors import AuthenticationFailed, RateLimited
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.roles import Scope
from resolvers.admin import tasks
from resolvers.auth import authentication
from resolvers.auth.sign_in import SignInRequest
from tests.conftest import ManualClock, make_user
from tests.support.accounts.sign_in_environment import SignInEnvironment, fail_sign_ins

ATTACKER_IP, HOME_IPV4, HOME_IPV6 = "203.0.113.5", "198.51.100.7", "2001:db8:1:2::7"
OLD_PHRASE = "the password until now"


def network_ips(count: int) -> list[str]:
    """One IP address in each of this number of networks."""
    return [f"203.{n // 250}.{n % 250}.1" for n in range(count)]


async def test_failures_block_account_only_for_their_network(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12, ip=ATTACKER_IP)
    for ip in (ATTACKER_IP, "203.0.113.77"):
        with pytest.raises(RateLimited):
            await sign_in_environment.sign_in("ada", ip=ip)
    for other_ip in (HOME_IPV4, HOME_IPV6, None):
        assert (
            await sign_in_environment.sign_in("ada", ip=other_ip)
        ).user.id == sign_in_environment.users["ada"]


@pytest.mark.parametrize("home_ip", [HOME_IPV4, HOME_IPV6])
async def test_guesses_from_many_networks_block_unknown_networks(
    sign_in_environment: SignInEnvironment, home_ip: str
) -> None:
    await sign_in_environment.sign_in("ada", ip=home_ip)
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    for ip in network_ips(10):
        await fail_sign_ins(sign_in_environment, "ada", 10, ip=ip)
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="192.0.2.200")
    await sign_in_environment.sign_in("ada", ip=home_ip)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", "wrong", ip=home_ip)
    await sign_in_environment.sign_in("ada", ip=home_ip)
    await fail_sign_ins(sign_in_environment, "ada", 12, ip=home_ip)
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip=home_ip)


async def test_token_use_makes_its_network_known(
    sign_in_environment: SignInEnvironment,
) -> None:
    environment = replace(
        sign_in_environment.environment,
        options=replace(
            sign_in_environment.environment.options, security_log_retention=timedelta()
        ),
    )
    unlogged_environment = SignInEnvironment(
        environment,
        sign_in_environment.clock,
        sign_in_environment.domain_id,
        sign_in_environment.users,
    )
    await unlogged_environment.create_token("ada")  # from 192.0.2.1
    for ip in network_ips(10):
        await fail_sign_ins(unlogged_environment, "ada", 10, ip=ip)
    with pytest.raises(RateLimited):
        await unlogged_environment.sign_in("ada", ip=HOME_IPV4)
    assert await unlogged_environment.sign_in("ada", ip="192.0.2.9")


async def test_failures_of_all_protocols_count_together(
    sign_in_environment: SignInEnvironment,
) -> None:
    for scope, protocol in (
        (Scope.SMTP, AuthProtocol.SMTP),
        (Scope.IMAP, AuthProtocol.IMAP),
        (Scope.FULL, AuthProtocol.API),
    ):
        for _ in range(4):
            attempt = SignInRequest(scope=scope, protocol=protocol)
            with pytest.raises(AuthenticationFailed):
                await sign_in_environment.sign_in("ada", "wrong", attempt, ip=ATTACKER_IP)
    basic = base64.b64encode(b"ada:wrong").decode()
    with pytest.raises(RateLimited):
        await authentication.authenticate_request(
            sign_in_environment.environment, {"authorization": f"Basic {basic}"}, ip=ATTACKER_IP
        )
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in(
            "ada", attempt=SignInRequest(scope=Scope.SMTP), ip=ATTACKER_IP
        )


async def test_user_is_notified_of_guesses_once_a_day(
    environment: Environment, clock: ManualClock
) -> None:
    eve = await make_user(environment, "eve", password=OLD_PHRASE)
    sign_in_environment = SignInEnvironment(environment, clock)

    async def count_notifications() -> tuple[int, int]:
        await authentication.wait_for_background_tasks(environment)
        while await tasks.run_next_task(environment):
            pass
        event_query: Any = select(col(SecurityEvent.count).label("many")).where(
            col(SecurityEvent.user_id) == eve.id,
            col(SecurityEvent.action) == "PASSWORD_GUESSING_DETECTED",
        )
        message_query = select(col(Message.id)).where(
            col(Message.user_id) == eve.id,
            col(Message.subject) == "Someone is trying to guess your password",
        )
        events = [row.many for row in await environment.database.read(event_query)]
        return sum(events), len(await environment.database.read(message_query))

    await fail_sign_ins(sign_in_environment, "eve", 11, ip=ATTACKER_IP)
    assert await count_notifications() == (0, 0)
    await fail_sign_ins(sign_in_environment, "eve", 1, ip=ATTACKER_IP)
    assert await count_notifications() == (1, 1)
    await fail_sign_ins(sign_in_environment, "eve", 12, ip=HOME_IPV4)
    assert await count_notifications() == (2, 1)
    sign_in_environment.clock.tick(days=1, minutes=1)
    await fail_sign_ins(sign_in_environment, "eve", 12, ip=ATTACKER_IP)
    assert (await count_notifications())[1] == 2
