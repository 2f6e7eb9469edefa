"""Restart of a server with another default quota of users."""

from sqlalchemy import select, update
from sqlmodel import col

from mail.consistency import check_consistency
from models.domains.tables import Domain
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.users.tables import User
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.stores.counter_check import load_journal_entries

MIB = 1 << 20


async def restart_and_load_allocated_quota(
    server: MerganserProcess, default_quota: str, *serve_arguments: str
) -> tuple[int, int]:
    """Restart with this default quota; return the allocated quota and the number of users.

    The number of users is that of the domain. Counters must be right.
    """
    server.stop()
    server.extra_settings["USERS_DEFAULT_QUOTA"] = default_quota
    server.serve_arguments = serve_arguments
    server.start()
    async with server.environment() as environment:
        report = await check_consistency(environment)
        assert [finding for finding in report.findings if finding.rule == "quota_allocated"] == []
        columns = col(Domain.quota_allocated), col(Domain.user_count)
        ((allocated, user_count),) = await environment.database.read(select(*columns))
        return allocated, user_count


async def load_domain_update_count(server: MerganserProcess) -> int:
    """Count the journal entries about changed domains."""
    async with server.environment() as environment:
        entries = await load_journal_entries(environment, PLATFORM)
    return sum(event_type is EventType.DOMAIN_UPDATED for event_type, _ in entries)


async def test_allocated_quota_follows_the_default_quota_of_each_start(
    server: MerganserProcess,
) -> None:
    async with server.environment() as environment, environment.write_session() as session:
        own_quota = update(User).where(col(User.username) == "ada").values(quota=1024 * MIB)
        await session.exec(own_quota)  # as much as the default
    for default_quota, arguments, inherited in (
        ("20 MiB", (), 20 * MIB),
        ("3 MiB", ("--workers", "2"), 3 * MIB),
        ("0", (), 0),
        ("5 MiB", (), 5 * MIB),
    ):
        allocated, user_count = await restart_and_load_allocated_quota(
            server, default_quota, *arguments
        )
        assert allocated == 1024 * MIB + (user_count - 1) * inherited
    update_count = await load_domain_update_count(server)
    await restart_and_load_allocated_quota(server, "5 MiB")
    assert await load_domain_update_count(server) == update_count == 4
