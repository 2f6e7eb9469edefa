"""Each subscription of the schema whose results come from stored events, with a way to cause one.

`write` causes one event and returns its label; `labels` are the labels of the events in a result.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from graph.types import global_ids
from models.admin.tasks import Task, TaskKind
from models.connectors import ConnectorRun
from models.events.event_types import EventType
from models.runtime import leases
from models.submission.compose_requests import ComposeListener
from resolvers.connectors import mutations as connector_mutations
from tests.conftest import GraphQLClient, client_context
from tests.support.accounts.connector_exports import FULL_CONNECTOR
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.accounts.user_operations import execute_mutation, try_create_user
from tests.support.mail_servers.queue_worker import queue_message
from tests.support.operations.domain_operations import NO_DOMAIN_LIMITS, create_domain
from tests.support.operations.mailbox_operations import append_unread_messages
from tests.support.operations.push_receivers import deliver_to_mailbox
from tests.support.operations.send_operations import send_outgoing_message
from tests.support.queue.queue_entry_operations import load_queue_id

SAVED_SEARCH_CREATE = """mutation { savedSearchCreate(input: {name: "All", query: "in:Searched"}) {
  errors { message } } }"""
BATCH = """{ cursor events { type ... on MailboxChange { path } ... on MessageChange { message {
  subject } } ... on UserChange { node { ... on User { username } } } } }"""
# These send samples of the processes and log entries, which are no events of the journal.
WITHOUT_STORED_EVENTS = frozenset({"health", "logs", "metrics"})


@dataclass
class SubscriptionAccounts:
    """The accounts of the cases, and the objects that they follow."""

    ada: GraphQLClient
    admin: GraphQLClient
    task_id: int = 0
    connector_id: int = 0
    run_id: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # of events by field

    def next_number(self, name: str) -> int:
        """The number of the next event of a field, from 1."""
        self.counts[name] = self.counts.get(name, 0) + 1
        return self.counts[name]


@dataclass(frozen=True)
class SubscriptionCase:
    """A subscription, how to cause an event of it, and how to recognize the event."""

    field: str
    selection: str
    write: Callable[[SubscriptionAccounts], Awaitable[str]]
    labels: Callable[[Any], list[str]]
    arguments: Callable[[SubscriptionAccounts], str] = lambda _accounts: ""
    after_type: str = ""  # GraphQL type of `after`; empty: it has none
    after_value: Callable[[Any], Any] = lambda result: result["cursor"]
    is_of_admin: bool = False
    has_state: bool = False  # a result replaces earlier ones, which can be left out

    def client(self, accounts: SubscriptionAccounts) -> GraphQLClient:
        """The account that subscribes."""
        return accounts.admin if self.is_of_admin else accounts.ada

    def document(self, accounts: SubscriptionAccounts) -> str:
        """The text of the subscription."""
        arguments = [self.arguments(accounts)]
        if self.after_type:
            arguments.append("after: $after")
        text = ", ".join(filter(None, arguments))
        head = f"subscription ($after: {self.after_type})" if self.after_type else "subscription"
        return f"{head} {{ {self.field}{f'({text})' if text else ''} {self.selection} }}"


async def prepare_subscription_accounts(
    ada: GraphQLClient, admin: GraphQLClient
) -> SubscriptionAccounts:
    """Create what the cases follow: mailboxes, a saved search, domains, a task and a run."""
    environment = ada.environment
    accounts = SubscriptionAccounts(ada, admin)
    await run_mailbox_mutation(ada, "mailboxCreate", paths=["Followed", "Counted", "Searched"])
    assert (await ada(SAVED_SEARCH_CREATE))["savedSearchCreate"]["errors"] == []
    for name in ("a.test", "b.test"):
        await create_domain(admin, name, **NO_DOMAIN_LIMITS)
    accounts.connector_id = await connector_mutations.create_connector(
        client_context(ada), None, {**FULL_CONNECTOR, "active": False}, "secret"
    )
    accounts.task_id, accounts.run_id = environment.new_id(), environment.new_id()
    holder = await leases.ensure_process_registered(environment)
    now = environment.now()
    async with environment.write_session(ada.user.id) as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=ada.user.id, holder=holder))
        session.add(
            Task(
                id=accounts.task_id,
                kind=TaskKind.MESSAGE_UPDATE,
                user_id=ada.user.id,
                not_before=now.replace(year=now.year + 1),
                created_at=now,
            )
        )
        session.add(
            ConnectorRun(
                id=accounts.run_id,
                user_id=ada.user.id,
                connector_id=accounts.connector_id,
                created_at=now,
            )
        )
    return accounts


async def _create_mailbox(accounts: SubscriptionAccounts) -> str:
    name = f"M{accounts.next_number('changes')}"
    await run_mailbox_mutation(accounts.ada, "mailboxCreate", paths=[name])
    return name


def _append_to(path: str) -> Callable[[SubscriptionAccounts], Awaitable[str]]:
    """Return a function that stores a message in a mailbox; its label is the number of messages."""

    async def append(accounts: SubscriptionAccounts) -> str:
        number = accounts.next_number(path)
        await append_unread_messages(accounts.ada, path, str(number))
        return str(number)

    return append


async def _deliver(accounts: SubscriptionAccounts) -> str:
    subject = f"N{accounts.next_number('notifications')}"
    await deliver_to_mailbox(accounts.ada, subject)
    return subject


def _create_user_of(domain: str) -> Callable[[SubscriptionAccounts], Awaitable[str]]:
    """Return a function that creates a user; its label is the username."""

    async def create_user(accounts: SubscriptionAccounts) -> str:
        address = f"u{accounts.next_number(domain)}@{domain}"
        _, errors = await try_create_user(accounts.admin, address=address)
        assert errors == []
        return address

    return create_user


async def _request_compose(accounts: SubscriptionAccounts) -> str:
    subject = f"C{accounts.next_number('compose')}"
    answer = await execute_mutation(
        accounts.ada, "composeRequestCreate", "deliveredCount", subject=subject
    )
    assert answer["errors"] == []
    return subject


async def _send(accounts: SubscriptionAccounts) -> str:
    sent = await send_outgoing_message(accounts.ada)
    assert sent.submission
    return global_ids.encode("Submission", sent.submission.id)


async def _queue(accounts: SubscriptionAccounts) -> str:
    submission_id = await queue_message(accounts.admin)
    return await load_queue_id(accounts.admin.environment, submission_id)


async def _advance_task(accounts: SubscriptionAccounts) -> str:
    number = accounts.next_number("task")
    environment = accounts.ada.environment
    async with environment.write_session(accounts.ada.user.id) as session:
        task = await session.get(Task, accounts.task_id)
        assert task
        task.done_count = number
        await client_context(accounts.ada).record_change(
            session, accounts.ada.user.id, EventType.TASK_UPDATED, [accounts.task_id]
        )
    return str(number)


async def _advance_run(accounts: SubscriptionAccounts) -> str:
    number = accounts.next_number("run")
    environment = accounts.ada.environment
    async with environment.write_session(accounts.ada.user.id) as session:
        run = await session.get(ConnectorRun, accounts.run_id)
        assert run
        run.seen_count = number
        await client_context(accounts.ada).record_change(
            session, accounts.ada.user.id, EventType.CONNECTOR_UPDATED, [accounts.connector_id]
        )
    return str(number)


def _usernames(batch: Any) -> list[str]:
    created = [event for event in batch["events"] if event["type"] == "USER_CREATED"]
    return [event["node"]["username"] for event in created]


CASES = (
    SubscriptionCase(
        "changes",
        BATCH,
        _create_mailbox,
        lambda batch: [
            event["path"] for event in batch["events"] if event["type"] == "MAILBOX_CREATED"
        ],
        after_type="Cursor",
    ),
    SubscriptionCase(
        "mailboxChanges",
        BATCH,
        _append_to("Followed"),
        lambda batch: [
            event["message"]["subject"]
            for event in batch["events"]
            if event["type"] == "MESSAGE_ADDED"
        ],
        lambda _accounts: 'mailbox: {path: "Followed"}',
        after_type="Cursor",
    ),
    SubscriptionCase(
        "notifications",
        "{ text cursor }",
        _deliver,
        lambda notification: [notification["text"]],
        after_type="Cursor",
    ),
    SubscriptionCase(
        "userChanges",
        BATCH,
        _create_user_of("a.test"),
        _usernames,
        lambda _accounts: 'filter: {domain: {name: "a.test"}}',
        after_type="Cursor",
        is_of_admin=True,
    ),
    SubscriptionCase(
        "domainChanges",
        BATCH,
        _create_user_of("b.test"),
        _usernames,
        lambda _accounts: 'domain: {name: "b.test"}',
        after_type="Cursor",
        is_of_admin=True,
    ),
    SubscriptionCase(
        "composeRequested",
        "{ id subject }",
        _request_compose,
        lambda request: [request["subject"]],
        after_type="ComposeRequestRef",
        after_value=lambda request: {"id": request["id"]},
    ),
    SubscriptionCase("submissionProgress", "{ id }", _send, lambda submission: [submission["id"]]),
    SubscriptionCase(
        "queueEntryChanged",
        "{ queueId sender }",
        _queue,
        lambda entry: [entry["queueId"]] if entry["sender"] == "over@example.org" else [],
        is_of_admin=True,
    ),
    SubscriptionCase(
        "mailboxCounters",
        "{ path messageCount }",
        _append_to("Counted"),
        lambda mailboxes: [
            str(mailbox["messageCount"]) for mailbox in mailboxes if mailbox["path"] == "Counted"
        ],
        has_state=True,
    ),
    SubscriptionCase(
        "savedSearchCounters",
        "{ messageCount }",
        _append_to("Searched"),
        lambda search: [str(search["messageCount"])],
        lambda _accounts: 'savedSearch: {name: "All"}',
        has_state=True,
    ),
    SubscriptionCase(
        "taskProgress",
        "{ doneCount }",
        _advance_task,
        lambda task: [str(task["doneCount"])],
        lambda accounts: f'task: {{id: "{global_ids.encode("Task", accounts.task_id)}"}}',
        has_state=True,
    ),
    SubscriptionCase(
        "connectorRunProgress",
        "{ seenCount }",
        _advance_run,
        lambda run: [str(run["seenCount"])],
        lambda accounts: (
            f'connectorRun: {{id: "{global_ids.encode("ConnectorRun", accounts.run_id)}"}}'
        ),
        has_state=True,
    ),
)
