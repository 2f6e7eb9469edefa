"""Resolution of the host names in the allow list and the deny list, every five minutes."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import col

from mail.addresses.address_syntax import ascii_domain
from mail.network.dns_resolver import query_dns_records_or_none
from mail.throttling.ban_changes import (
    increment_and_lock_change_counter,
    refresh_refused_networks_from_database,
)
from models.events.journal import PLATFORM
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.worker_stop import (
    is_worker_stopping,
    sleep_until_worker_stops,
    wait_for_event_or_worker_stop,
)
from models.store.columns import insert_with_conflict
from models.throttling.networks import parse_ip_network_or_none
from models.throttling.policy import MAX_ADDRESSES_PER_HOST
from models.throttling.tables import BanListHost, BanPolicy, host_values

log = logging.getLogger(__name__)

HostAnswers = Mapping[str, list[str] | str]  # by host: its addresses, or the problem

RESOLVE_INTERVAL = timedelta(minutes=5)
POLL_SECONDS = 5.0  # between checks for names that are due
MIN_POLL_SECONDS = 0.33  # between checks that wake-ups cause
QUERY_TIMEOUT = 5.0  # seconds
MAX_QUERIES = 10  # at once
NO_RESPONSE = "DNS does not respond."
NO_ADDRESS = "The host has no address."
TOO_MANY_ADDRESSES = f"The host has more than {MAX_ADDRESSES_PER_HOST} addresses."


def host_names(entries: Collection[str]) -> set[str]:
    """Return the entries of a list that are host names."""
    return {entry for entry in entries if parse_ip_network_or_none(entry) is None}


async def resolve_list_hosts_until_worker_stops(environment: Environment) -> None:
    """Resolve the host names of both lists when they are due, until cancelled or stopped.

    A change of the policy triggers it at once.
    """
    with environment.wakeups.follow([PLATFORM]) as wakeup:
        while not is_worker_stopping():
            wakeup.clear()
            try:
                await resolve_due_hosts(environment)
            except Exception:  # keep running: the next attempt can succeed
                log.exception("Could not resolve the host names of ban lists")
            await sleep_until_worker_stops(MIN_POLL_SECONDS)
            await wait_for_event_or_worker_stop(wakeup, POLL_SECONDS)


async def resolve_due_hosts(environment: Environment) -> None:
    """Resolve host names that are new or were last queried five minutes ago.

    A failed query keeps the last answer. Rows of names that are in no list are deleted.
    """
    await refresh_refused_networks_from_database(environment)
    policy = environment.refused_networks.policy
    names = host_names({*policy.allowlist, *policy.denylist})
    checked_at: Any = select(col(BanListHost.name), col(BanListHost.checked_at))
    times = {row.name: row.checked_at for row in await environment.database.read(checked_at)}
    now = environment.now()
    due_names = [
        name for name in sorted(names) if name not in times or times[name] + RESOLVE_INTERVAL <= now
    ]
    if not due_names and names.issuperset(times):
        return
    answers = await query_hosts(environment, due_names)
    # locks the stream that changes of the policy lock
    await environment.run_transaction(
        partial(store_answers_and_delete_unlisted_hosts, answers=answers), PLATFORM
    )
    await refresh_refused_networks_from_database(environment)


async def query_hosts(
    environment: Environment, names: Sequence[str], *, total_timeout: float | None = None
) -> HostAnswers:
    """Query the addresses of hosts, at most `MAX_QUERIES` at once.

    Without the hosts whose answers did not come within `total_timeout` seconds.
    """
    slots = asyncio.Semaphore(MAX_QUERIES)
    tasks = {
        name: asyncio.create_task(_query_host_addresses_or_problem(environment, name, slots))
        for name in names
    }
    if not tasks:
        return {}
    try:
        await asyncio.wait(tasks.values(), timeout=total_timeout)
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.wait(tasks.values())
    return {name: task.result() for name, task in tasks.items() if not task.cancelled()}


async def _query_host_addresses_or_problem(
    environment: Environment, name: str, slots: asyncio.Semaphore
) -> list[str] | str:
    """Return the addresses of a host in order, or the problem as a sentence."""
    async with slots:
        answers = [
            await query_dns_records_or_none(
                environment.options.dns_resolver,
                ascii_domain(name),
                kind,
                QUERY_TIMEOUT,
            )
            for kind in ("A", "AAAA")
        ]
    if None in answers:
        return NO_RESPONSE
    addresses = {str(record.address) for answer in answers for record in answer or ()}
    if len(addresses) > MAX_ADDRESSES_PER_HOST:
        return TOO_MANY_ADDRESSES
    usable = [text for text in addresses if not _is_own_or_no_host(text)]
    return sorted(usable) or NO_ADDRESS


def _is_own_or_no_host(address: str) -> bool:
    """True for addresses that are no single other host: loopback, unspecified, multicast."""
    parsed = ip_address(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast


def store_answers_and_delete_unlisted_hosts(
    transaction: DatabaseTransaction, *, answers: HostAnswers
) -> None:
    """Store the answers of names that are in a list, and delete the rows of other names.

    The stored policy of this transaction counts: it can have changed since the query. Counts a
    change if the addresses of a name differ.
    """
    connection, now = transaction.connection, transaction.environment.now()
    lists: Any = select(col(BanPolicy.allowlist), col(BanPolicy.denylist))
    row = connection.execute(lists).first()
    listed_names = host_names({*row.allowlist, *row.denylist}) if row else set()
    answers = {name: answer for name, answer in answers.items() if name in listed_names}
    former: Any = select(col(BanListHost.name), col(BanListHost.addresses))
    former_addresses = {row.name: row.addresses for row in connection.execute(former)}
    unlisted_names = sorted(former_addresses.keys() - listed_names)
    if any(
        not isinstance(answer, str) and answer != former_addresses.get(name)
        for name, answer in answers.items()
    ) or any(former_addresses.get(name) for name in unlisted_names):
        increment_and_lock_change_counter(transaction)
    for name, answer in answers.items():
        if isinstance(answer, str):
            values = host_values(name, [], now) | {"resolved_at": None, "problem": answer}
            changed = {"checked_at": now, "problem": answer}
            log.warning("Host name of a ban list not resolved", extra={"host": name})
        else:
            values = host_values(name, answer, now)
            changed = {key: value for key, value in values.items() if key != "name"}
        insert = insert_with_conflict(connection.dialect.name, BanListHost).values(values)
        connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=changed))
    if unlisted_names:
        connection.execute(delete(BanListHost).where(col(BanListHost.name).in_(unlisted_names)))
