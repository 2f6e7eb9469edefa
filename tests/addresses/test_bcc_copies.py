"""Copies of received and sent messages by BCC rules."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.addresses.address_syntax import normalized_address
from mail.delivery import recipient_rewrites
from mail.delivery.listener_backend import LocalBackend
from mail.delivery.recipient_rewrites import CopiedAddress
from mail.mime.header_encoding import NamedAddress
from models.addresses.rewrites import BccDirection
from models.errors import NotFound
from models.events.event_types import SUBMISSION_EVENT_TYPES
from models.events.journal import PLATFORM, Change
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.users.roles import Role
from models.users.rule_makers import RuleSubject
from resolvers.submission import mutations as submission_mutations
from tests.conftest import GraphQLClient, ManualClock, client_context, make_client, raw_message
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.address_operations import create_address
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    create_domain,
    run_mutation,
)
from tests.support.operations.quarantine_operations import (
    QUARANTINE_RELEASE_ERRORS,
    quarantine_message,
    set_options,
)
from tests.support.operations.rewrite_and_bcc_operations import (
    ARCHIVE,
    BCC_RULE_UPDATE,
    create_bcc_rule,
    create_recipient_rewrite,
    deliver_incoming,
    load_copy_recipients,
)
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    load_stream_position,
    select_rows,
)

SUBMISSIONS = """{ viewer { user { submissions { totalCount nodes {
  id state recipients { recipient } } } } } }"""


async def test_received_message_is_copied_by_recipient_rules(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="also.example", domain={"name": "example.org"}
    )
    await create_bcc_rule(root, "ada@example.org", ARCHIVE)
    await create_bcc_rule(root, "@example.org", "all@far.example")
    disabled_id = await create_bcc_rule(root, "bob@example.org", "off@far.example")
    await run_mutation(root, BCC_RULE_UPDATE, bccRules=[{"id": disabled_id}], set={"active": False})
    await create_bcc_rule(root, "@example.org", "sent@far.example", "SENDER")
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await deliver_incoming(environment, bob.address)
        await poll_until(lambda: has_recipient_count(smtp_server, 1))
        await deliver_incoming(
            environment, "A.da+x@also.example", bob.address, raw=raw_message("Both"), sender=""
        )
        await poll_until(lambda: has_recipient_count(smtp_server, 3))
    assert sorted((mail.sender, mail.to) for mail in smtp_server.messages) == [
        ("<>", ["all@far.example"]),
        ("<>", [ARCHIVE]),
        ("carol@example.com", ["all@far.example"]),
    ]
    first_copy = smtp_server.messages[0].raw
    assert first_copy.startswith(b"X-Merganser-Copy: ")
    assert first_copy.partition(b"\r\n")[2].rstrip() == raw_message("Hello").rstrip()
    assert [len(await load_inbox_rows(client)) for client in (ada, bob)] == [1, 2]
    await assert_store_consistent(environment)


async def platform_submission_states(environment: Environment) -> list[tuple[int, str]]:
    """Return submission ID and state of the platform's events, each pair once."""
    statement = select(col(Change.ids), col(Change.facts)).where(
        col(Change.stream_id) == PLATFORM, col(Change.type).in_(SUBMISSION_EVENT_TYPES)
    )
    changes = await environment.database.read(statement.order_by(col(Change.last)))
    return list(dict.fromkeys((row.ids[0], row.facts["state"]) for row in changes))


async def has_recipient_count(smtp_server: FakeSmtpServer, count: int) -> bool:
    return sum(len(mail.to) for mail in smtp_server.messages) == count


async def test_copy_to_a_local_account_is_stored_in_its_inbox(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await create_bcc_rule(root, "ada@example.org", "bob@example.org")
    await create_bcc_rule(root, "bob@example.org", ARCHIVE)  # copies are not copied again
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await deliver_incoming(environment, ada.address)

        async def is_copy_stored() -> bool:
            return len(await load_inbox_rows(bob)) == 1

        await poll_until(is_copy_stored)
    assert await load_copy_recipients(environment) == [("bob@example.org", "carol@example.com")]
    assert (await load_inbox_rows(bob))[0].envelope_from == "carol@example.com"
    assert smtp_server.messages == []


async def test_returned_copy_is_not_copied_again(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_bcc_rule(root, "@example.org", ARCHIVE)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await deliver_incoming(environment, ada.address)
        await poll_until(lambda: has_recipient_count(smtp_server, 1))
    returned_copy = smtp_server.messages[0].raw
    await deliver_incoming(environment, ada.address, raw=returned_copy)
    assert len(await load_copy_recipients(environment)) == 1
    forged = b"X-Merganser-Copy: " + b"0" * 64 + b"\r\n" + raw_message("Hello")
    reused = returned_copy.partition(b"\r\n")[0] + b"\r\n" + raw_message("Other")
    for expected_count, raw in enumerate((forged, reused), 2):
        await deliver_incoming(environment, ada.address, raw=raw)
        assert len(await load_copy_recipients(environment)) == expected_count


async def test_recipients_get_no_copy_and_each_address_gets_one(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await create_bcc_rule(root, "@example.org", "bob@example.org")
    await deliver_incoming(environment, ada.address, bob.address)
    assert await load_copy_recipients(environment) == []
    await create_bcc_rule(root, "ada@example.org", ARCHIVE)
    await create_bcc_rule(root, "bob@example.org", "ARCHIVE@Far.example")
    await deliver_incoming(environment, ada.address, bob.address, raw=raw_message("Second"))
    assert await load_copy_recipients(environment) == [(ARCHIVE, "carol@example.com")]


async def test_message_in_several_transactions_is_copied_once(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    await create_bcc_rule(root, "@example.org", ARCHIVE)
    for addresses in ([ada.address], [ada.address, bob.address], [bob.address]):
        await deliver_incoming(environment, *addresses)
        assert await load_copy_recipients(environment) == [(ARCHIVE, "carol@example.com")]
    await deliver_incoming(environment, ada.address, sender="dave@example.com")
    clock.tick(days=1, seconds=1)  # after the time in which repeats are recognized
    await deliver_incoming(environment, ada.address)
    assert len(await load_copy_recipients(environment)) == 3


async def test_bcc_rule_matches_the_rewritten_recipient(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_recipient_rewrite(root, "@old.example", "@example.org")
    await create_bcc_rule(root, ada.address, ARCHIVE)
    await deliver_incoming(environment, "ada@old.example")
    assert await load_copy_recipients(environment) == [(ARCHIVE, "carol@example.com")]


PATTERN_ADDRESS = "ada+news@example.org"
# for each case: the delimiters, the recipient, and whether the rule copies the message
SUBADDRESSES: list[tuple[str, str, bool]] = [
    ("-", "ada-news@example.org", True),
    ("-", "ada-own@example.org", False),  # an address of its own
    ("+-", "a.da-news@example.org", True),
    ("_", "ada_e\u0301@example.org", True),
    ("-", "ada-@example.org", True),
    ("-", '"ada-x y"@example.org', True),
    # received by a pattern, which would receive the other addresses too
    ("-", PATTERN_ADDRESS, False),
]


async def test_bcc_rule_applies_to_subaddresses_with_configured_delimiters(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await create_address(root, "ada-own@example.org", user={"username": "ada"})
    await create_bcc_rule(root, ada.address, ARCHIVE)
    for case in each_case(SUBADDRESSES):
        with case as (delimiters, address, is_copied):
            set_options(ada.environment, addresses_subaddress_delimiters=delimiters)
            if address == PATTERN_ADDRESS:
                await create_address(
                    root, "*@example.org", user={"username": "ada"}, allowWildcard=True
                )
            copies = await load_copy_recipients(ada.environment)
            await deliver_incoming(ada.environment, address, raw=raw_message(body=address))
            copies += [(ARCHIVE, "carol@example.com")] if is_copied else []
            assert await load_copy_recipients(ada.environment) == copies


async def test_bcc_rule_of_an_address_with_a_delimiter_applies_to_mail_of_a_pattern(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    set_options(ada.environment, addresses_subaddress_delimiters="-")
    await create_address(root, "*@example.org", user={"username": "ada"}, allowWildcard=True)
    await create_bcc_rule(root, "anna-maria@example.org", ARCHIVE)
    await deliver_incoming(ada.environment, "anna-maria@example.org")
    assert await load_copy_recipients(ada.environment) == [(ARCHIVE, "carol@example.com")]


async def test_rules_of_both_addresses_of_an_account_are_applied(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await create_address(root, "ada.own@example.org", user={"username": "ada"})
    await create_bcc_rule(root, ada.address, ARCHIVE)
    await create_bcc_rule(root, "adaown@example.org", "own@far.example")
    await deliver_incoming(ada.environment, "adaown@example.org", ada.address)
    copies = await load_copy_recipients(ada.environment)
    assert [recipient for recipient, _ in copies] == [ARCHIVE, "own@far.example"]


async def test_copy_that_returns_with_another_label_is_not_copied_again(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    set_options(ada.environment, addresses_subaddress_delimiters="-")
    await create_bcc_rule(root, ada.address, ARCHIVE)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(ada.environment, relay_settings(smtp_server)),
    ):
        await deliver_incoming(ada.environment, "ada-news@example.org")
        await poll_until(lambda: has_recipient_count(smtp_server, 1))
    count = len(await load_copy_recipients(ada.environment))
    await deliver_incoming(ada.environment, "ada-old@example.org", raw=smtp_server.messages[0].raw)
    assert len(await load_copy_recipients(ada.environment)) == count


async def test_released_message_is_copied_by_the_rule_of_the_address_without_label(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    set_options(ada.environment, addresses_subaddress_delimiters="-")
    await create_bcc_rule(root, ada.address, ARCHIVE)
    item_id = await quarantine_message(ada, address="ada-news@example.org")
    _, errors = await run_mutation(
        root, QUARANTINE_RELEASE_ERRORS, quarantineItems=[{"id": item_id}]
    )
    assert errors == []
    copies = await load_copy_recipients(ada.environment)
    assert [recipient for recipient, _ in copies] == [ARCHIVE]


async def test_sent_message_is_copied_by_the_rule_of_the_sender_without_label(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    set_options(ada.environment, addresses_subaddress_delimiters="-")
    await create_address(root, "ada-own@example.org", user={"username": "ada"})
    await create_bcc_rule(root, ada.address, ARCHIVE, "SENDER")
    envelopes = [(f"ada{label}@example.org", ["carol@example.com"]) for label in ("", "-x", "-own")]
    assert await recipient_rewrites.find_bcc_addresses_per_envelope(
        ada.environment, ada.user.id, envelopes
    ) == [[ARCHIVE], [ARCHIVE], []]


async def test_refused_message_is_not_copied_and_unused_rules_are_free(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    async def count_statements(subject: str) -> int:
        recipient = await LocalBackend(environment).accept_recipient(ada.address, "")
        del statements[:]
        await LocalBackend(environment).deliver(
            raw_message(subject), [recipient], "carol@example.com"
        )
        return len(statements)

    base_count = await count_statements("Bare")
    await create_bcc_rule(root, "@example.org", ARCHIVE, "SENDER")
    assert await count_statements("Another") == base_count
    await create_bcc_rule(root, "other@example.org", ARCHIVE)
    assert await count_statements("Third") == base_count + 1
    await create_bcc_rule(root, "@example.org", "all@far.example")
    with pytest.raises(NotFound):
        await LocalBackend(environment).accept_recipient("nobody@example.org", "")
    assert await load_copy_recipients(environment) == []


async def test_rules_of_all_recipients_are_read_in_one_statement(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    for n in range(20):
        await create_bcc_rule(root, f"a{n}@example.org", f"copy{n}@far.example")
    for recipient_count in (1, 20):
        del statements[:]
        addresses = [f"a{n}@example.org" for n in range(recipient_count)]
        targets = await recipient_rewrites.find_bcc_targets(
            environment,
            BccDirection.RECIPIENT,
            {
                address: CopiedAddress([RuleSubject(0, Role.USER)], [normalized_address(address)])
                for address in addresses
            },
            [ada.address],
        )
        assert len(statements) == 1
        assert [(target.address, target.original_address) for target in targets] == [
            (f"copy{n}@far.example", f"a{n}@example.org") for n in range(recipient_count)
        ]


async def test_large_message_is_copied_completely(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await create_bcc_rule(root, "@example.org", ARCHIVE)
    raw = raw_message("Large", body="line\r\n" * 100_000)
    spool_file = tmp_path / "large"
    spool_file.write_bytes(raw)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        recipient = await LocalBackend(environment).accept_recipient(ada.address, "")
        await LocalBackend(environment).deliver(spool_file, [recipient], "carol@example.com")
        await poll_until(lambda: has_recipient_count(smtp_server, 1))
    assert smtp_server.messages[0].raw.partition(b"\r\n")[2].rstrip() == raw.rstrip()


async def test_delivery_fails_temporarily_if_copy_cannot_be_queued(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_bcc_rule(root, "@example.org", ARCHIVE)
    commits = []

    def fail_second_commit(fault_point: str) -> None:
        if fault_point == "commit":
            commits.append(fault_point)
        if len(commits) > 1:
            raise OSError(fault_point)

    with pytest.raises(OSError, match="commit"):
        await deliver_incoming(
            replace(environment, reach_fault_point=fail_second_commit), ada.address
        )
    assert (len(await load_inbox_rows(ada)), await load_copy_recipients(environment)) == (1, [])
    await deliver_incoming(environment, ada.address)
    assert (len(await load_inbox_rows(ada)), len(await load_copy_recipients(environment))) == (1, 1)


async def test_sent_message_is_copied_without_notice_to_the_sender(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_bcc_rule(root, "ada@example.org", ARCHIVE, "SENDER")
    # already a recipient
    await create_bcc_rule(root, "@example.org", "carol@example.net", "SENDER")
    position = await load_stream_position(environment, ada.user.id)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        submission_id = await queue_message(
            ada, NamedAddress("carol@example.net"), bcc=[NamedAddress("eve@example.net")]
        )
        await wait_until_tried(environment, submission_id)
        await poll_until(lambda: has_recipient_count(smtp_server, 3))

        async def are_all_sent() -> bool:
            return (
                await select_rows(environment, "SELECT 1 FROM submissions WHERE state <> 'SENT'")
                == []
            )

        await poll_until(are_all_sent)
    mails_by_recipients = {tuple(mail.to): mail for mail in smtp_server.messages}
    copy = mails_by_recipients[(ARCHIVE,)]
    assert copy.sender == ada.address
    assert b"Bcc" not in copy.raw
    assert copy.raw == mails_by_recipients["carol@example.net", "eve@example.net"].raw
    page = (await ada(SUBMISSIONS))["viewer"]["user"]["submissions"]
    (submission,) = page["nodes"]
    assert (page["totalCount"], submission["state"]) == (1, "SENT")
    assert [recipient["recipient"] for recipient in submission["recipients"]] == [
        "carol@example.net",
        "eve@example.net",
    ]
    changed_ids = [
        ids
        for kind, ids in await load_journal_entries(environment, ada.user.id, position)
        if kind in SUBMISSION_EVENT_TYPES
    ]
    assert {changed_id for ids in changed_ids for changed_id in ids} == {submission_id}
    ((copy_id,),) = await select_rows(
        environment, "SELECT id FROM submissions WHERE copy_of = :key", key=submission_id
    )
    assert await platform_submission_states(environment) == [(copy_id, "QUEUED"), (copy_id, "SENT")]
    node = "query ($id: ID!) { node(id: $id) { id } }"
    assert await ada(node, id=global_ids.encode("Submission", copy_id)) == {"node": None}
    with pytest.raises(NotFound):
        await submission_mutations.cancel_submissions(client_context(ada), [copy_id])
    await assert_store_consistent(environment)


async def test_copy_uses_no_rate_limit_and_its_failure_is_not_reported(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_bcc_rule(root, "@example.org", ARCHIVE, "SENDER")
    async with (
        run_smtp_server(FakeSmtpServer({"archive": "550 5.1.1 No"})) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        submission_id = await queue_message(ada, NamedAddress("carol@example.net"))
        await wait_until_tried(environment, submission_id)

        async def has_copy_failed() -> bool:
            states = await select_rows(
                environment, "SELECT state FROM submissions WHERE copy_of = :k", k=submission_id
            )
            return states == [("FAILED",)]

        await poll_until(has_copy_failed)
    assert await load_inbox_rows(ada) == []
    page = (await ada(SUBMISSIONS))["viewer"]["user"]["submissions"]
    assert [node["state"] for node in page["nodes"]] == ["SENT"]
    assert await select_rows(environment, "SELECT used FROM usages") == [(1,)]


async def test_cancelled_submission_cancels_its_copies(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_bcc_rule(root, "@example.org", ARCHIVE, "SENDER")
    submission_id = await queue_message(ada, undo_window=timedelta(minutes=5))
    statement = "SELECT state, copy_of IS NULL FROM submissions"
    assert {row[0] for row in await select_rows(environment, statement)} == {"UNDOABLE"}
    await submission_mutations.cancel_submissions(client_context(ada), [submission_id])
    assert {row[0] for row in await select_rows(environment, statement)} == {"CANCELLED"}
    copies = await select_rows(
        environment, "SELECT id FROM submissions WHERE copy_of = :key", key=submission_id
    )
    expected_states = [(copies[0][0], "UNDOABLE"), (copies[0][0], "CANCELLED")]
    assert await platform_submission_states(environment) == expected_states
    states = await select_rows(environment, "SELECT DISTINCT state, next_at FROM queue_entries")
    assert states == [(DeliveryState.CANCELLED, None)]
    await assert_store_consistent(environment)


async def test_mail_between_local_accounts_is_copied_once(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "second.example")
    eve = await make_client(environment, root.http, "eve")
    await create_bcc_rule(root, "@example.org", ARCHIVE)
    await create_bcc_rule(root, "@example.org", ARCHIVE, "SENDER")
    await create_bcc_rule(root, "bob@example.org", eve.address)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        submission_id = await queue_message(
            ada, NamedAddress(bob.address), NamedAddress("carol@example.net")
        )
        await wait_until_tried(environment, submission_id)

        async def are_copies_delivered() -> bool:
            return len(await load_inbox_rows(eve)) == 1 and await has_recipient_count(
                smtp_server, 2
            )

        await poll_until(are_copies_delivered)
    assert await load_copy_recipients(environment) == [
        (ARCHIVE, ada.address),
        (eve.address, ada.address),
    ]
    assert len(await load_inbox_rows(bob)) == 1
    assert sorted(recipient for mail in smtp_server.messages for recipient in mail.to) == [
        ARCHIVE,
        "carol@example.net",
    ]
