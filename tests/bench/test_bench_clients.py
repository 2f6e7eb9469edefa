"""Tests of the benchmark of client documents: it measures each document in correct accounts."""

from pathlib import Path

from sqlalchemy import func, select
from sqlmodel import col

from bench import clients
from bench.servers.compared_servers import DatabaseKind
from bench.servers.merganser_process import use_launcher
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Environment
from tests.support.servers.forked_process import fork_subprocess

STORED_MESSAGE_COUNT = (
    select(func.count()).where(col(Message.mailbox_id) == col(Mailbox.id)).scalar_subquery()
)
COUNTER_QUERY = select(
    col(Mailbox.path), col(Mailbox.message_count), STORED_MESSAGE_COUNT.label("held")
)


async def test_each_document_is_measured_in_each_account(tmp_path: Path) -> None:
    with use_launcher(fork_subprocess):
        lines = await clients.measure_client_documents(
            DatabaseKind.SQLITE, tmp_path, message_counts=(1000, 2000), seconds=0.1
        )
    assert [line.name for line in lines] == [
        f"{message_count} messages: {name}"
        for message_count in ("1,000", "2,000")
        for name in clients.DOCUMENTS
    ]
    assert all(line.merganser.count for line in lines)


async def test_copied_accounts_have_correct_counters(environment: Environment) -> None:
    (account,) = await clients.create_accounts(environment, [3000], 1)
    await clients.analyze(environment)
    assert account.message_count == 3000
    rows = await environment.database.read(COUNTER_QUERY)
    assert {row.message_count for row in rows if row.path == "INBOX"} == {1801, 121}
    assert all(row.message_count == row.held for row in rows)
