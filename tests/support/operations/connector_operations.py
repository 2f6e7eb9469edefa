"""Connectors of tests: storing, running and reading them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.network.outbound_http import NetworkPolicy
from models.connectors import Connector, ConnectorProtocol, ConnectorRun, ConnectorSecurity
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import UserPermission
from resolvers.connectors import credentials
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from resolvers.context import Context
from tests.conftest import GraphQLClient, client_context
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount, run_dovecot

USER_NUMBERS = iter(range(1_000_000))
INBOX, JUNK = SpecialUse.INBOX, SpecialUse.JUNK
RETENTION = {"source_retention": 0}
SERVER_FIELDS = (
    "protocol", "host", "port", "security", "authMechanism", "username", "password", "oauth",
)  # fmt: skip


@pytest.fixture(scope="session")
def shared_dovecot() -> Iterator[DovecotAccount]:
    """A Dovecot server for all tests of a process."""
    with TemporaryDirectory() as name:  # Dovecot's user can't enter pytest's folder
        folder = Path(name)
        folder.chmod(0o755)
        with run_dovecot(folder / "dovecot") as account:
            yield account


@pytest.fixture
def dovecot_account(shared_dovecot: DovecotAccount) -> DovecotAccount:
    """A new account on the Dovecot server."""
    return shared_dovecot.for_user(f"ada{next(USER_NUMBERS)}")


def with_server(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an input, with those of the connection in `server`."""
    server = {name: value for name, value in fields.items() if name in SERVER_FIELDS}
    other_fields = {name: value for name, value in fields.items() if name not in SERVER_FIELDS}
    return {**other_fields, "server": server}


async def add_connector(client: GraphQLClient, account: DovecotAccount, **values: Any) -> int:
    """Store a connector that is due, and return its id."""
    environment, connector_id = client.environment, client.environment.new_id()
    protocol = values.get("protocol", ConnectorProtocol.IMAP)
    secret = {"password": values.pop("password", PASSWORD)}
    row = Connector(**{
        "id": connector_id,
        "user_id": client.user.id,
        "name": "far",
        "protocol": protocol,
        "host": "127.0.0.1",
        "port": account.ports["imap" if protocol is ConnectorProtocol.IMAP else "pop3"],
        "security": ConnectorSecurity.NONE,
        "auth_mechanism": "PLAIN",
        "username": account.user,
        "secret": credentials.encrypt_secret(environment, connector_id, secret),
        "remote_timeout": 10,
        "created_at": environment.now(),
        "next_run_at": environment.now(),
        **values,
    })  # fmt: skip
    async with environment.write_session() as session:
        session.add(row)
    return connector_id


async def run_connector(environment: Environment, connector_id: int) -> Any:
    """Run the due connectors and return the newest run of this one."""
    worker = ConnectorWorker(environment, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    for task in list(worker.running):
        await task
    return await load_newest_run(environment, connector_id)


async def load_newest_run(environment: Environment, connector_id: int) -> Any:
    """Read the newest run of a connector."""
    statement = select(*select_columns(ConnectorRun)).where(
        col(ConnectorRun.connector_id) == connector_id
    )
    return (await environment.database.read(statement.order_by(col(ConnectorRun.id).desc())))[0]


async def rerun_connector(environment: Environment, connector_id: int, **values: Any) -> Any:
    """Run a connector again, with these columns changed."""
    await update_connector_row(environment, connector_id, next_run_at=environment.now(), **values)
    return await run_connector(environment, connector_id)


async def update_connector_row(environment: Environment, connector_id: int, **values: Any) -> None:
    """Change columns of a connector."""
    async with environment.write_session() as session:
        statement = update(Connector).where(col(Connector.id) == connector_id)
        await (await session.connection()).execute(statement.values(values))


async def load_connector_row(environment: Environment, connector_id: int) -> Any:
    """Read the row of a connector."""
    statement = select(*select_columns(Connector)).where(col(Connector.id) == connector_id)
    return (await environment.database.read(statement))[0]


async def load_subjects_by_mailbox(environment: Environment) -> dict[str, list[str]]:
    """Read the subjects of messages by mailbox, in the order of delivery."""
    statement = (
        select(col(Mailbox.path), col(Message.subject))
        .join(Message, col(Message.mailbox_id) == col(Mailbox.id))
        .where(col(Message.deleted_at).is_(None))
    )
    subjects: dict[str, list[str]] = {}
    for row in await environment.database.read(statement.order_by(col(Message.id))):
        subjects.setdefault(row.path, []).append(row.subject)
    return subjects


async def load_message_row(environment: Environment, subject: str) -> Any:
    """Read the row of the only message with this subject."""
    statement = select(*select_columns(Message)).where(col(Message.subject) == subject)
    (row,) = await environment.database.read(statement)
    return row


async def request_trial_run(environment: Environment, user_id: int, connector_id: int) -> None:
    """Make the next run of a connector a trial run."""
    run_id = environment.new_id()
    async with environment.write_session() as session:
        session.add(
            ConnectorRun(
                id=run_id,
                connector_id=connector_id,
                user_id=user_id,
                dry_run=True,
                created_at=environment.now(),
            )
        )
    await update_connector_row(
        environment, connector_id, run_id=run_id, next_run_at=environment.now()
    )


def context_with_connector_permission(client: GraphQLClient) -> Context:
    """The context of an operation of a user that can have connectors."""
    operation_context = client_context(client)
    permissions = frozenset({UserPermission.CONNECTORS})
    return replace(
        operation_context, viewer=replace(operation_context.viewer, permissions=permissions)
    )


class ProcessKilled(BaseException):
    """The process ends at this point."""


def fault_at_nth_pass(times: int, place: str = "fetched") -> Callable[[str], None]:
    """A fault handler that ends the process when a fault point is passed for the nth time."""
    passes_left = [times]

    def fault(reached_place: str) -> None:
        if reached_place == place:
            passes_left[0] -= 1
            if not passes_left[0]:
                raise ProcessKilled

    return fault


async def run_connectors_until_killed(
    environment: Environment, times: int, place: str = "fetched"
) -> None:
    """Start the due connector runs, whose process ends at the nth pass of a fault point."""
    object.__setattr__(environment, "reach_fault_point", fault_at_nth_pass(times, place))
    worker = ConnectorWorker(environment, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    for task in list(worker.running):
        with pytest.raises(ProcessKilled):
            await task
    object.__setattr__(environment, "reach_fault_point", lambda _: None)
