"""Results that a killed process has in its file, and not in the database."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult
from mail.mime.header_encoding import NamedAddress
from mail.outbound import accepted_results
from mail.outbound.accepted_results import AcceptedResults, record_accepted_results
from mail.outbound.worker import run_until_stopped
from mail.queue import recipient_leases
from models.runtime import leases
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    load_queue_entries,
    queue_message,
    relay_settings,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.stores.other_processes import deregister_as_dead
from tests.support.time_limits import HANG_SECONDS

RECIPIENTS = [NamedAddress("carol@example.net"), NamedAddress("dave@example.net")]
ACCEPTED = DeliveryResult(State.RELAYED, 250, "2.0.0 Taken", "there", "TLSv1.3")


class SimulatedKill(BaseException):
    """The simulated end of the process."""


@pytest.fixture
def results_path(tmp_path: Path) -> Path:
    return tmp_path / accepted_results.FILE_NAME


async def run_worker_until_kill(
    environment: Environment, server: FakeSmtpServer, results_path: Path
) -> None:
    """Run a queue worker until another server has accepted a message, and no longer."""
    killed = asyncio.Event()

    def kill_before_the_commit(fault_point: str) -> None:
        if fault_point == "sent":
            killed.set()
            raise SimulatedKill

    dying = replace(environment, reach_fault_point=kill_before_the_commit)
    task = asyncio.create_task(
        run_until_stopped(
            dying,
            relay_settings(server),
            stop=asyncio.Event(),
            limits=WORKER_LIMITS,
            accepted_results_path=results_path,
        )
    )
    await asyncio.wait_for(killed.wait(), HANG_SECONDS)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def is_present(path: Path) -> bool:
    return path.exists()


async def claimed_jobs(environment: Environment) -> Sequence[DeliveryJob]:
    claimed = await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    return claimed.jobs


@pytest.mark.usefixtures("verify_consistency")
async def test_message_accepted_before_a_kill_is_not_sent_again(
    ada: GraphQLClient, environment: Environment, results_path: Path
) -> None:
    key = await queue_message(ada, *RECIPIENTS)
    async with (
        leases.keep_process_registered(environment),
        run_smtp_server(FakeSmtpServer()) as server,
    ):
        await run_worker_until_kill(environment, server, results_path)
        entries = await load_queue_entries(environment, key)
        assert {entry.state for entry in entries.values()} == {State.PENDING}
        await record_accepted_results(environment, results_path)
        assert not is_present(results_path)
        entries = await load_queue_entries(environment, key)
        assert {(entry.state, entry.lease, entry.last_code) for entry in entries.values()} == {
            (State.RELAYED, None, 250)
        }
        await deregister_as_dead(environment)
        assert await claimed_jobs(environment) == []
        assert len(server.messages) == 1
        assert len(server.messages[0].to) == len(RECIPIENTS)


async def test_result_of_an_ended_lease_is_ignored(
    ada: GraphQLClient, environment: Environment, results_path: Path
) -> None:
    key = await queue_message(ada, *RECIPIENTS)
    (job,) = await claimed_jobs(environment)
    ids = [recipient.delivery_id for recipient in job.recipients]
    results = AcceptedResults(results_path)
    results.add(job.lease, dict.fromkeys(ids, ACCEPTED))
    results.close()
    await deregister_as_dead(environment)
    await claimed_jobs(environment)
    await record_accepted_results(environment, results_path)
    entries = await load_queue_entries(environment, key)
    assert {entry.state for entry in entries.values()} == {State.PENDING}


async def test_file_of_a_running_process_is_left_alone(
    ada: GraphQLClient, environment: Environment, results_path: Path
) -> None:
    key = await queue_message(ada, *RECIPIENTS)
    (job,) = await claimed_jobs(environment)
    results = AcceptedResults(results_path)
    results.add(job.lease, dict.fromkeys([job.recipients[0].delivery_id], ACCEPTED))
    await record_accepted_results(environment, results_path)
    second = AcceptedResults(results_path)  # of a server with the same folder
    second.add(job.lease, dict.fromkeys([job.recipients[1].delivery_id], ACCEPTED))
    second.close()
    results.close()
    with results_path.open("ab") as file:
        file.write(b"[1, [[2, ")  # cut by a full disk
    await record_accepted_results(environment, results_path)
    states = [entry.state for entry in (await load_queue_entries(environment, key)).values()]
    assert sorted(states) == [State.PENDING, State.RELAYED]


def test_file_keeps_only_results_that_are_not_recorded(results_path: Path) -> None:
    results = AcceptedResults(results_path)
    refused = DeliveryResult.from_refusal(550, "5.1.1 Nobody")
    results.add(1, {1: refused, 2: replace(ACCEPTED, reply_text="kept")})
    for number in range(3, 8000):
        results.add(number, {number: ACCEPTED})
        results.remove({number: ACCEPTED})
    content = results_path.read_bytes()
    assert len(content) <= accepted_results.MAX_FILE_BYTES + 1000
    assert b"kept" in content
    assert b"Nobody" not in content
    results.remove({2: ACCEPTED})
    results.close()
    assert not results_path.exists()
