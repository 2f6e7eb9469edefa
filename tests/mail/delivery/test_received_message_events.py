"""Each way by which a message gets into a mailbox without a client causes MESSAGE_RECEIVED."""

import ast
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.delivery import quarantine
from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from mail.storage.quota import RECEIVED_KINDS
from models.admin.legal_holds import CopyOrigin, HeldCopy
from models.events.event_types import EventType
from models.runtime.environment import Environment
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, ManualClock, deliver_to, raw_message
from tests.support.accounts.quota_accounts import receive_messages_of_sizes, set_user_limits
from tests.support.accounts.user_operations import execute_mutation, try_create_user
from tests.support.mail.dsn_messages import send_with_dsn_request
from tests.support.mail.forwarding_addresses import add_forwarding_address, set_account_forwarding
from tests.support.mail.invitations import deliver_invitation, meeting, trust_front_server
from tests.support.mail_servers.imap_and_pop3_servers import (
    REMOTE_PASSWORD,
    FakeImapServer,
    FakeRemoteMessage,
    run_remote_server,
)
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import ACCEPTED_REPLIES, send_transaction
from tests.support.mail_servers.queue_worker import poll_until, queue_message, run_queue_worker
from tests.support.operations.autoreply_operations import set_autoreply
from tests.support.operations.connector_operations import (
    add_connector,
    rerun_connector,
    run_connector,
)
from tests.support.operations.quarantine_operations import quarantine_message, set_options
from tests.support.operations.resource_operations import create_resource
from tests.support.operations.rewrite_and_bcc_operations import create_bcc_rule, deliver_incoming
from tests.support.operations.send_operations import MESSAGE_REDIRECT
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")
REPOSITORY = Path(__file__).parents[3]
LAYERS = ("mail", "merganser", "resolvers")
NO_NEXT_HOP = OutboundSettings(parse_next_hop("127.0.0.1:1"))
STORING_TYPES = (EventType.MESSAGE_ADDED, EventType.MESSAGE_RECEIVED)
# These modules define the kinds, or only ask for the kind of their caller.
MODULES_OF_ANY_KIND = {"mail/storage/quota.py", "mail/storage/message_insert.py"}
QUEUE_DELIVERY = "mail/delivery/plan_execution.py RECEIVED"
DSN = "mail/queue/delivery_results.py GENERATED"


@dataclass
class DeliveryStage:
    """ada, who gets messages, and what delivers them."""

    ada: GraphQLClient
    bob: GraphQLClient
    root: GraphQLClient
    clock: ManualClock
    lmtp: SmtpTestClient
    folder: Path
    stream_id: int = 0  # of the user who gets the message
    start: int = 0  # position in the stream before the delivery

    @property
    def environment(self) -> Environment:
        return self.ada.environment

    async def begin(self) -> None:
        """Ignore all earlier events."""
        self.start = await load_stream_position(self.environment, self.stream_id)

    async def storing_events(self) -> list[EventType]:
        """The types of the events of stored messages since the beginning."""
        entries = await load_journal_entries(self.environment, self.stream_id, self.start)
        return [event_type for event_type, _ in entries if event_type in STORING_TYPES]

    async def run_queue(self) -> None:
        """Run a queue worker until the user has got a message."""

        async def has_event() -> bool:
            return bool(await self.storing_events())

        async with run_queue_worker(self.environment, NO_NEXT_HOP):
            await poll_until(has_event)

    async def run_tasks(self) -> None:
        """Run all waiting tasks."""
        while await tasks.run_next_task(self.environment):
            pass


@dataclass(frozen=True)
class DeliveryWay:
    """A way by which a message gets into a mailbox, and the module and kind of its insert."""

    deliver: Callable[[DeliveryStage], Awaitable[None]]
    source: str
    copy_count: int


DELIVERY_WAYS: dict[str, DeliveryWay] = {}
Deliver = Callable[[DeliveryStage], Awaitable[None]]


def delivery_way(source: str, copy_count: int = 1) -> Callable[[Deliver], Deliver]:
    """Add a way to the list, by the words of the function's name."""

    def register(deliver: Deliver) -> Deliver:
        name = deliver.__name__.replace("_", " ")
        DELIVERY_WAYS[name] = DeliveryWay(deliver, source, copy_count)
        return deliver

    return register


@delivery_way(QUEUE_DELIVERY)
async def lmtp_delivery(stage: DeliveryStage) -> None:
    replies = await send_transaction(stage.lmtp, raw_message("Hello"), stage.ada.address)
    assert replies == ACCEPTED_REPLIES


@delivery_way("mail/storage/received_messages.py RECEIVED_COPY", copy_count=2)
async def copies_of_a_script(stage: DeliveryStage) -> None:
    script = 'require ["copy", "fileinto", "mailbox"]; fileinto :copy :create "Copies";'
    await put_sieve_script(stage.ada, script)
    await lmtp_delivery(stage)


@delivery_way("mail/storage/received_messages.py RECEIVED")
async def message_of_the_demo(stage: DeliveryStage) -> None:
    await deliver_to(stage.ada)


@delivery_way(QUEUE_DELIVERY)
async def forward_of_an_address(stage: DeliveryStage) -> None:
    await add_forwarding_address(stage.environment, "list", stage.ada.address)
    await deliver_incoming(stage.environment, "list@example.org")
    await stage.run_queue()


@delivery_way(QUEUE_DELIVERY)
async def forward_of_an_account(stage: DeliveryStage) -> None:
    await set_account_forwarding(stage.bob, stage.ada.address)
    await deliver_incoming(stage.environment, stage.bob.address)
    await stage.run_queue()


@delivery_way(QUEUE_DELIVERY)
async def copy_of_a_bcc_rule(stage: DeliveryStage) -> None:
    await create_bcc_rule(stage.root, stage.bob.address, stage.ada.address)
    await deliver_incoming(stage.environment, stage.bob.address)
    await stage.run_queue()


@delivery_way(QUEUE_DELIVERY)
async def message_of_a_local_user(stage: DeliveryStage) -> None:
    await queue_message(stage.bob, NamedAddress(stage.ada.address))
    await stage.run_queue()


@delivery_way(QUEUE_DELIVERY)
async def mail_merge(stage: DeliveryStage) -> None:
    entry = {"to": [{"address": stage.ada.address}], "values": {"name": "Ada"}}
    payload = await execute_mutation(
        stage.bob, "messageSend", "submissions { id }", text="Dear {{name}}", mailMerge=[entry]
    )
    assert payload["errors"] == []
    await stage.run_queue()


@delivery_way(QUEUE_DELIVERY)
async def redirected_message(stage: DeliveryStage) -> None:
    message_id = (await deliver_to(stage.bob, "Look")).message_id
    reference = {"id": global_ids.encode("Message", message_id)}
    input_fields = {"message": reference, "to": [stage.ada.address]}
    payload = (await stage.bob(MESSAGE_REDIRECT, input=input_fields))["messageRedirect"]
    assert payload["errors"] == []
    await stage.run_queue()


@delivery_way(QUEUE_DELIVERY)
async def autoreply(stage: DeliveryStage) -> None:
    await set_autoreply(stage.bob)
    await deliver_incoming(
        stage.environment,
        stage.bob.address,
        raw=raw_message("Lunch?", To=stage.bob.address),
        sender=stage.ada.address,
    )
    await stage.run_queue()


@delivery_way(QUEUE_DELIVERY)
async def notification_of_a_script(stage: DeliveryStage) -> None:
    await put_sieve_script(stage.bob, f'require "enotify"; notify "mailto:{stage.ada.address}";')
    await deliver_incoming(stage.environment, stage.bob.address)
    await stage.run_queue()


@delivery_way(QUEUE_DELIVERY)
async def answer_of_a_resource(stage: DeliveryStage) -> None:
    trust_front_server(stage.environment)
    room = str((await create_resource(stage.root, bookingLimit=1))["address"])
    invitation = meeting(room, organizer=stage.ada.address)
    await deliver_invitation(stage.environment, replace(invitation, author=stage.ada.address))
    await stage.run_queue()


@delivery_way(DSN)
async def dsn_of_a_failure(stage: DeliveryStage) -> None:
    await queue_message(stage.ada, NamedAddress("nobody@example.org"))
    await stage.begin()  # ada stored the sent copy
    await stage.run_queue()


@delivery_way(DSN)
async def dsn_of_a_success(stage: DeliveryStage) -> None:
    await send_with_dsn_request(stage.ada, NamedAddress(stage.bob.address))
    await stage.begin()  # ada stored the sent copy
    await stage.run_queue()


@delivery_way("mail/delivery/quarantine_release.py RELEASED")
async def release_from_quarantine(stage: DeliveryStage) -> None:
    call = await SAMPLE_CALLS["quarantineRelease"](stage.ada, stage.root)
    assert (await call(stage.ada))["errors"] == []


@delivery_way("resolvers/spam/quarantine_digest.py QUOTA_NOTICE")
async def digest_of_the_quarantine(stage: DeliveryStage) -> None:
    await quarantine_message(stage.ada)
    stage.clock.tick(days=1)
    assert await quarantine.insert_due_notification_tasks(stage.environment) == 1
    await stage.run_tasks()


@delivery_way("resolvers/users/quota/quota_warnings.py QUOTA_NOTICE")
async def warning_about_the_quota(stage: DeliveryStage) -> None:
    await set_user_limits(stage.ada, quota=10_000)
    await receive_messages_of_sizes(stage.ada, 7_500, 600)
    await stage.begin()
    await stage.run_tasks()


@delivery_way("resolvers/users/quota/quota_warnings.py QUOTA_NOTICE")
async def notice_about_a_new_password(stage: DeliveryStage) -> None:
    call = await SAMPLE_CALLS["userPasswordReset"](stage.ada, stage.root)
    assert (await call(stage.root))["errors"] == []
    await stage.run_tasks()


@delivery_way("resolvers/users/creation/welcome_messages.py GENERATED")
async def welcome_message(stage: DeliveryStage) -> None:
    (stage.folder / "1.json").write_text('{"subject": "Welcome"}')
    (stage.folder / "1.txt").write_text("Good that you are here.")
    set_options(stage.environment, welcome_folder=stage.folder)
    _, errors = await try_create_user(stage.root, username="eve")
    assert errors == []
    query = "SELECT id FROM users WHERE username = 'eve'"
    ((stage.stream_id,),) = await select_rows(stage.environment, query)
    stage.start = 0


async def fetch_new_message(stage: DeliveryStage) -> None:
    """Fetch a message that came after the first run of a connector."""
    async with run_remote_server(FakeImapServer()) as remote:
        account = DovecotAccount(stage.folder, {"imap": remote.port})
        connector_id = await add_connector(stage.ada, account, password=REMOTE_PASSWORD)
        await run_connector(stage.environment, connector_id)
        date = stage.clock().strftime('"%d-%b-%Y %H:%M:%S +0000"').encode()
        remote.messages[1] = FakeRemoteMessage(raw_message("New"), date=date)
        run = await rerun_connector(stage.environment, connector_id)
        assert run.imported_count == 1, run.log


@delivery_way("resolvers/connectors/message_storage.py FETCHED")
async def new_mail_of_a_connector(stage: DeliveryStage) -> None:
    await fetch_new_message(stage)


@delivery_way("mail/delivery/plan_execution.py FETCHED")
async def new_mail_of_a_connector_after_a_script(stage: DeliveryStage) -> None:
    await put_sieve_script(stage.ada, "keep;")
    await fetch_new_message(stage)


@pytest.fixture
def stage(  # noqa: PLR0913, PLR0917 - fixtures
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    clock: ManualClock,
    lmtp_client: SmtpTestClient,
    tmp_path: Path,
) -> DeliveryStage:
    return DeliveryStage(ada, bob, root, clock, lmtp_client, tmp_path, ada.user.id)


@pytest.mark.parametrize("name", DELIVERY_WAYS)
async def test_delivered_message_causes_message_received(name: str, stage: DeliveryStage) -> None:
    way = DELIVERY_WAYS[name]
    await stage.begin()
    await way.deliver(stage)
    assert await stage.storing_events() == [EventType.MESSAGE_RECEIVED] * way.copy_count


def kinds_by_module() -> Iterator[str]:
    """Yield each module with each kind of received messages that it inserts."""
    for layer in LAYERS:
        for path in (REPOSITORY / layer).rglob("*.py"):
            module = str(path.relative_to(REPOSITORY))
            source = path.read_text(encoding="utf-8")
            if module in MODULES_OF_ANY_KIND or "InsertKind" not in source:
                continue
            for node in ast.walk(ast.parse(source)):
                match node:
                    case ast.Attribute(ast.Name("InsertKind"), kind) if kind in received_names():
                        yield f"{module} {kind}"


def received_names() -> set[str]:
    return {kind.name for kind in RECEIVED_KINDS}


def test_each_module_that_inserts_received_messages_is_tested() -> None:
    assert set(kinds_by_module()) == {way.source for way in DELIVERY_WAYS.values()}


async def test_message_of_a_client_causes_message_added(stage: DeliveryStage) -> None:
    input_fields = {"mailbox": {"path": "INBOX"}, "raw": raw_message("Imported").decode()}
    await stage.begin()
    assert (await MutationCall("messageImport", input_fields)(stage.ada))["errors"] == []
    await queue_message(stage.ada)  # stores the sent copy
    assert await stage.storing_events() == [EventType.MESSAGE_ADDED] * 2


async def test_legal_hold_has_a_dsn_as_received(stage: DeliveryStage) -> None:
    call = await SAMPLE_CALLS["legalHoldCreate"](stage.ada, stage.root)
    assert (await call(stage.root))["errors"] == []
    await stage.run_tasks()
    await dsn_of_a_failure(stage)
    statement = select(col(HeldCopy.origin)).order_by(col(HeldCopy.id))
    origins = [row.origin for row in await stage.environment.database.read(statement)]
    assert origins == [CopyOrigin.SENT, CopyOrigin.RECEIVED]
