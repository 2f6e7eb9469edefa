"""Events of every subscription, written while it starts and before it resumes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from graph.schema import schema
from models.store.database import Database
from resolvers.auth.credential_cache import cache_of_database
from tests.conftest import GraphQLClient
from tests.support.clients.case_followers import (
    assert_last_received_once,
    received_labels,
    subscribe,
    write_until_received,
)
from tests.support.operations.subscription_cases import (
    CASES,
    WITHOUT_STORED_EVENTS,
    SubscriptionAccounts,
    SubscriptionCase,
    prepare_subscription_accounts,
)
from tests.support.servers.live_server import LiveServer, wait_until

EACH_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.field)
WITH_AFTER = pytest.mark.parametrize(
    "case", [case for case in CASES if case.after_type], ids=lambda case: case.field
)
READS_WITH_EVENT = 10  # of a start


@pytest.fixture
async def accounts(ada: GraphQLClient, admin_client: GraphQLClient) -> SubscriptionAccounts:
    return await prepare_subscription_accounts(ada, admin_client)


class EventsBetweenReads:
    """Writes an event of a case before each of the next reads of a database."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[str] = []
        self._write: Callable[[], Awaitable[str]] | None = None
        self._is_writing = False
        self._credentials = cache_of_database(database)
        for name in ("read", "read_prepared", "run_select_steps"):
            monkeypatch.setattr(database, name, self._write_before(getattr(database, name)))

    def start(self, case: SubscriptionCase, accounts: SubscriptionAccounts) -> None:
        """Write before the next READS_WITH_EVENT reads."""
        self._write = lambda: case.write(accounts)

    @property
    def is_finished(self) -> bool:
        """True if all events have been written."""
        return len(self.written) == READS_WITH_EVENT

    def _write_before(self, read: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def write_and_read(*arguments: Any, **options: Any) -> Any:
            is_allowed = not self._is_writing and not self._is_shared_by_sign_ins()
            if self._write and is_allowed and not self.is_finished:
                self._is_writing = True
                self.written.append(await self._write())
                self._is_writing = False
            return await read(*arguments, **options)

        return write_and_read

    def _is_shared_by_sign_ins(self) -> bool:
        """True in a task that the request of a write would wait for, so that neither would end."""
        shared_tasks = {lookup.task for lookup in self._credentials.lookups.values()}
        return asyncio.current_task() in {self._credentials.reading_changes, *shared_tasks}


@pytest.fixture
def events_between_reads(database: Database, monkeypatch: pytest.MonkeyPatch) -> EventsBetweenReads:
    return EventsBetweenReads(database, monkeypatch)


def test_every_subscription_has_a_case() -> None:
    subscription_type = schema._schema.subscription_type  # noqa: SLF001 - strawberry has no other way
    assert subscription_type
    cased_fields = {case.field for case in CASES}
    assert cased_fields | WITHOUT_STORED_EVENTS == subscription_type.fields.keys()
    with_after = {case.field for case in CASES if case.after_type}
    assert with_after == {
        name for name, field in subscription_type.fields.items() if "after" in field.args
    }


@EACH_CASE
async def test_events_during_the_start_come_once(
    live_server: LiveServer,
    accounts: SubscriptionAccounts,
    events_between_reads: EventsBetweenReads,
    case: SubscriptionCase,
) -> None:
    events_between_reads.start(case, accounts)
    follower = await subscribe(live_server, case, accounts)
    await wait_until(lambda: events_between_reads.is_finished)
    written = await write_until_received(case, accounts, follower)
    written = [*events_between_reads.written, *written]
    assert_last_received_once(case, received_labels(case, follower), written)
    await follower.unsubscribe()


@WITH_AFTER
async def test_resumed_subscription_gets_each_missed_event_once(
    live_server: LiveServer,
    accounts: SubscriptionAccounts,
    events_between_reads: EventsBetweenReads,
    case: SubscriptionCase,
) -> None:
    first = await subscribe(live_server, case, accounts)
    written = await write_until_received(case, accounts, first)
    await first.unsubscribe()
    seen = received_labels(case, first)
    missed = [await case.write(accounts) for _ in range(2)]
    events_between_reads.start(case, accounts)
    after = case.after_value(first.results[-1])
    resumed = await subscribe(live_server, case, accounts, after)
    await wait_until(lambda: events_between_reads.is_finished)
    last = await case.write(accounts)
    await wait_until(lambda: last in received_labels(case, resumed))
    missed += [*events_between_reads.written, last]
    assert received_labels(case, resumed) == missed
    assert_last_received_once(case, [*seen, *missed], [*written, *missed])
    await resumed.unsubscribe()
