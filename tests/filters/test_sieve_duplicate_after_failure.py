"""`duplicate` records an ID only together with the actions of the script (RFC 7352, section 3)."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from models.runtime.environment import Environment
from models.users.tables import Usage, User
from tests.conftest import GraphQLClient, raw_message
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.operations.filter_operations import add_filter, list_filters
from tests.support.operations.quarantine_operations import deliver_message_to
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")
DAVE, ERIN = "dave@far.example", "erin@far.example"
FULL_REPLY = "452 4.2.2 Mailbox full"
DISCARD_DUPLICATES = (
    'require ["duplicate", "fileinto", "mailbox", "reject", "include"];\n'
    "if duplicate { discard; stop; }\n"
)
REDIRECT, KEEP, FILE = f'redirect "{DAVE}";\n', "keep;\n", 'fileinto :create "A";\n'
IN_INBOX, IN_A = {"INBOX": ["Hello"]}, {"A": ["Hello"]}


@dataclass(frozen=True)
class ScriptCase:
    """The actions of a script with the mailboxes and redirect targets of one message."""

    actions: str
    mailboxes: dict[str, list[str]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()


def hello(way: str = "") -> bytes:
    """The same message, with other bytes for each way. So it is no repeat of a delivery."""
    return raw_message("Hello", X_Way=way)


async def set_limits(
    environment: Environment, client: GraphQLClient, *, is_full: bool, forwards_reached: bool
) -> None:
    """Fill the mailbox or free it, and use up the forwards of the day or none."""
    async with environment.write_session(client.user.id) as session:
        of_user = col(User.id) == client.user.id
        values: dict[str, Any] = {
            "quota": 10 if is_full else None,
            "forwards_per_day": 1 if forwards_reached else None,
        }
        await session.exec(update(User).where(of_user).values(values))
        if not forwards_reached:
            await session.exec(delete(Usage).where(col(Usage.user_id) == client.user.id))


async def remembered_ids(environment: Environment) -> int:
    return len(await select_rows(environment, "SELECT key FROM sieve_memories"))


@pytest.mark.parametrize(
    "case",
    [
        ScriptCase(REDIRECT, {}, (DAVE,)),
        ScriptCase(f'{REDIRECT}redirect "{ERIN}";', {}, (DAVE, ERIN)),
        ScriptCase(KEEP, IN_INBOX),
        ScriptCase(FILE, IN_A),
        ScriptCase(REDIRECT + KEEP, IN_INBOX, (DAVE,)),
        ScriptCase(KEEP + REDIRECT, IN_INBOX, (DAVE,)),
        ScriptCase(FILE + REDIRECT, IN_A, (DAVE,)),
    ],
)
@pytest.mark.parametrize("is_loop", [False, True])
async def test_message_is_no_duplicate_after_all_its_actions_failed(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, case: ScriptCase, *, is_loop: bool
) -> None:
    environment = ada.environment
    await put_sieve_script(ada, REDIRECT)
    assert await deliver_without_queue_id(lmtp_client, raw_message("Before")) == [DELIVERED_REPLY]
    await put_sieve_script(ada, DISCARD_DUPLICATES + case.actions)
    await set_limits(environment, ada, is_full=True, forwards_reached=not is_loop)
    failing = raw_message("Hello", Delivered_To=ada.address) if is_loop else hello()
    assert await deliver_without_queue_id(lmtp_client, failing) == [FULL_REPLY]
    assert await remembered_ids(environment) == 0
    assert await subjects_by_mailbox(environment, ada) == {}
    await set_limits(environment, ada, is_full=False, forwards_reached=False)
    for way in ("queue", "later"):
        assert await deliver_without_queue_id(lmtp_client, hello(way)) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == case.mailboxes
    assert [to for _, to in await queued_envelopes(environment)] == [DAVE, *case.targets]


async def test_refused_redirect_keeps_message_and_records_its_id(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, f'{DISCARD_DUPLICATES}{REDIRECT}redirect "{ERIN}";')
    await set_limits(environment, ada, is_full=False, forwards_reached=True)
    for way in ("", "list"):
        assert await deliver_without_queue_id(lmtp_client, hello(way)) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == IN_INBOX
    assert [to for _, to in await queued_envelopes(environment)] == [DAVE]


@pytest.mark.parametrize(
    "case",
    [
        ScriptCase(REDIRECT, {}, (DAVE,)),
        ScriptCase(FILE + REDIRECT, IN_A, (DAVE,)),
        ScriptCase(FILE, IN_A),
    ],
)
@pytest.mark.parametrize("failing_commit", [1, 2])
async def test_message_is_no_duplicate_after_interruption(
    ada: GraphQLClient, environment: Environment, case: ScriptCase, failing_commit: int
) -> None:
    reached_count = 0

    def fail(fault_point: str) -> None:
        nonlocal reached_count
        reached_count += fault_point == "commit"
        if reached_count == failing_commit:
            raise ConnectionResetError

    await put_sieve_script(ada, DISCARD_DUPLICATES + case.actions)
    await deliver_message_to(replace(environment, reach_fault_point=fail), ada, raw=hello())
    await deliver_message_to(environment, ada, raw=hello("queue"))
    assert await subjects_by_mailbox(environment, ada) == case.mailboxes
    assert [to for _, to in await queued_envelopes(environment)] == [*case.targets]


async def test_rejected_message_and_failed_script_record_no_id(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, f'{DISCARD_DUPLICATES}reject "No";')
    for way in ("", "list"):
        replies = await deliver_without_queue_id(lmtp_client, hello(way))
        assert replies == ["550 5.7.1 No"]
    await put_sieve_script(ada, f'{DISCARD_DUPLICATES}{FILE}include "gone";')
    for way in ("third", "fourth"):
        assert await deliver_without_queue_id(lmtp_client, hello(way)) == [DELIVERED_REPLY]
    assert await remembered_ids(environment) == 0
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Hello", "Hello"]}


async def test_discarded_message_records_its_id(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, 'require "duplicate"; if not duplicate { discard; }')
    for way in ("", "list"):
        assert await deliver_without_queue_id(lmtp_client, hello(way)) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == IN_INBOX


async def test_filters_count_a_message_only_if_it_is_delivered(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await add_filter(ada, {}, {"delete": True, "forwardTo": [DAVE]})
    raw = raw_message("Hello", Delivered_To=ada.address)
    await set_limits(environment, ada, is_full=True, forwards_reached=False)
    assert await deliver_without_queue_id(lmtp_client, raw) == [FULL_REPLY]
    assert (await list_filters(ada))["nodes"][0]["matchCount"] == 0
    await set_limits(environment, ada, is_full=False, forwards_reached=False)
    assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    assert (await list_filters(ada))["nodes"][0]["matchCount"] == 1
    assert await subjects_by_mailbox(environment, ada) == IN_INBOX
