"""Queued messages for several recipients on this server, of which one fails."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import product
from typing import Any

import pytest

from mail.delivery import local_delivery, plan_execution
from mail.delivery.script_rejection import RejectedByScript
from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult
from mail.inbound.scan_rejection import SpamRefused
from mail.mime.header_encoding import NamedAddress
from mail.queue import message_body, recipient_leases
from mail.routing.mx_hosts import OutboundSettings
from models.errors import NotFound, OverQuota
from models.queue.tables import DeliveryState
from models.store.outages import StorageUnavailable
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.accounts.user_operations import set_user_columns
from tests.support.case_loop import each_case
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    load_inbox_rows,
    poll_until,
    queue_message,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.stores.counter_check import select_rows
from tests.support.time_limits import HANG_SECONDS

pytestmark = pytest.mark.usefixtures("verify_consistency")

NAMES = ("ada", "bob", "eve")
BOUNCED = DeliveryState.BOUNCED
DEFERRED = DeliveryState.DEFERRED
DELIVERED = DeliveryState.DELIVERED
Inject = Callable[[GraphQLClient, Callable[[], Awaitable[None]]], None]


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Inject:
    """Return a function that runs code in place of the delivery to one user."""
    execute_plan = plan_execution.execute_plan

    def inject_for(user: GraphQLClient, run: Callable[[], Awaitable[None]]) -> None:
        async def execute_or_run(environment: Any, incoming: Any, plan: Any, slot: Any) -> Any:
            if plan.recipient_verdict.recipient.user_id == user.user.id:
                await run()
            return await execute_plan(environment, incoming, plan, slot)

        monkeypatch.setattr(plan_execution, "execute_plan", execute_or_run)

    return inject_for


async def queue_for_all(users: dict[str, GraphQLClient]) -> int:
    """Queue a message for all users in one job, and return the id of its submission."""
    return await queue_message(
        users["ada"], *(NamedAddress(user.address) for user in users.values())
    )


async def claim_job(user: GraphQLClient) -> tuple[DeliveryJob, bytes]:
    """Lease the only job, and return it with its message."""
    claimed = await recipient_leases.release_held_and_claim_due_jobs(
        user.environment, WORKER_LIMITS
    )
    (job,) = claimed.jobs
    return job, await message_body.read_message(user.environment, job)


@pytest.fixture
async def users(ada: GraphQLClient, bob: GraphQLClient) -> dict[str, GraphQLClient]:
    eve = await make_client(ada.environment, ada.http, "eve")
    return dict(zip(NAMES, (ada, bob, eve), strict=True))


DELIVERY_ERRORS: list[tuple[Exception, DeliveryState, str]] = [
    (RuntimeError("no such case"), DEFERRED, "451 4.3.0"),
    (StorageUnavailable("down"), DEFERRED, "451 4.3.0"),
    (OverQuota(used=1, limit=1), DEFERRED, "452 4.2.2"),
    (NotFound("nobody"), BOUNCED, "550 5.1.1"),
    (RejectedByScript("No thanks."), BOUNCED, "550 5.7.1"),
    (SpamRefused("spam"), BOUNCED, "550 5.7.1"),
]


async def test_error_of_one_recipient_is_the_result_of_this_recipient_only(
    users: dict[str, GraphQLClient], inject: Inject
) -> None:
    for case in each_case(product(DELIVERY_ERRORS, NAMES)):
        with case as ((error, state, reply), failing_name):
            await queue_for_all(users)
            job, raw = await claim_job(users["ada"])
            counts = {name: len(await load_inbox_rows(user)) for name, user in users.items()}
            inject(users[failing_name], partial(raise_error, error))
            results = await local_delivery.deliver_to_local_recipients(
                users["ada"].environment, job, raw
            )
            by_name: dict[str, DeliveryResult] = {
                recipient.address.partition("@")[0]: results[recipient.delivery_id]
                for recipient in job.recipients
            }
            failed = by_name.pop(failing_name)
            assert (failed.state, f"{failed.reply_code} {failed.reply_text}"[:9]) == (state, reply)
            assert failed.is_spam_refusal == isinstance(error, SpamRefused)
            assert {result.state for result in by_name.values()} == {DELIVERED}
            for name, user in users.items():
                new_count = len(await load_inbox_rows(user)) - counts[name]
                assert new_count == (name != failing_name)


async def raise_error(error: Exception) -> None:
    raise error


async def test_others_get_the_message_once_although_one_recipient_fails(
    users: dict[str, GraphQLClient], inject: Inject, clock: ManualClock
) -> None:
    environment, errors = users["ada"].environment, [RuntimeError("no such case")]

    async def fail_once() -> None:
        if errors:
            raise errors.pop()

    inject(users["bob"], fail_once)
    key = await queue_for_all(users)
    async with run_queue_worker(environment, OutboundSettings()):
        rows = await wait_until_tried(environment, key)
        assert {name: row.state for name, row in rows.items()} == {
            "ada": DELIVERED, "bob": DEFERRED, "eve": DELIVERED,
        }  # fmt: skip
        clock.tick(days=1, hours=1)  # after the time in which repeats are recognized
        wake_queue_worker(environment)

        async def is_delivered() -> bool:
            return bool(await load_inbox_rows(users["bob"]))

        await poll_until(is_delivered)
    for user in users.values():
        assert len(await load_inbox_rows(user)) == 1


async def test_cancellation_during_a_local_delivery_is_not_a_result(
    users: dict[str, GraphQLClient], inject: Inject
) -> None:
    await queue_for_all(users)
    job, raw = await claim_job(users["ada"])
    has_begun, never = asyncio.Event(), asyncio.Event()

    async def wait_forever() -> None:
        has_begun.set()
        await never.wait()

    inject(users["bob"], wait_forever)
    environment = users["ada"].environment
    task = asyncio.create_task(local_delivery.deliver_to_local_recipients(environment, job, raw))
    await asyncio.wait_for(has_begun.wait(), HANG_SECONDS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, HANG_SECONDS)
    assert await load_inbox_rows(users["bob"]) == []


async def test_cancelled_inner_task_is_not_a_result(
    users: dict[str, GraphQLClient], inject: Inject
) -> None:
    await queue_for_all(users)
    job, raw = await claim_job(users["ada"])

    async def cancel() -> None:
        raise asyncio.CancelledError

    inject(users["bob"], cancel)
    with pytest.raises(asyncio.CancelledError):
        await local_delivery.deliver_to_local_recipients(users["ada"].environment, job, raw)


@pytest.mark.parametrize("is_list", [True, False])
@pytest.mark.parametrize("is_full", [True, False], ids=["full", "script"])
async def test_local_mail_is_stored_later_or_reported_to_its_author(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock, *, is_list: bool, is_full: bool
) -> None:
    environment = ada.environment
    recipients = [ada.address, bob.address]
    if is_list:
        await add_forwarding_address(environment, "list", *recipients)
        recipients = ["list@example.org"]
    if is_full:
        await set_user_columns(bob, quota=1)
    else:
        await put_sieve_script(bob, 'require "reject"; reject "No thanks.";')
    await queue_message(ada, *map(NamedAddress, recipients))

    async def run_until_no_entry_is(*states: str) -> None:
        names = ", ".join(f"'{state}'" for state in states)
        sql = f"SELECT id FROM queue_entries WHERE state IN ({names}) OR lease IS NOT NULL"  # noqa: S608

        async def is_idle() -> bool:
            return not await select_rows(environment, sql)

        wake_queue_worker(environment)
        await poll_until(is_idle)

    async with run_queue_worker(environment, OutboundSettings()):
        await run_until_no_entry_is("PENDING")
        assert await subjects_by_mailbox(environment, bob) == {}
        await set_user_columns(bob, quota=None)
        clock.tick(hours=1)
        await run_until_no_entry_is("PENDING", "DEFERRED")
    subjects = (await subjects_by_mailbox(environment, ada))["INBOX"]
    assert subjects.count("Hello") == 1
    assert len(subjects) == (1 if is_full else 2)  # with the DSN
    stored = {"INBOX": ["Hello"]} if is_full else {}
    assert await subjects_by_mailbox(environment, bob) == stored
