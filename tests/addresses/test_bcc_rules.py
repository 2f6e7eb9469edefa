"""BCC rules: management, copies of received and sent messages, and rights."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.delivery import recipient_rewrites
from mail.delivery.listener_backend import LocalBackend
from mail.mime.header_encoding import NamedAddress
from models.addresses.rewrites import BccDirection
from models.errors import NotFound
from models.events.event_types import SUBMISSION_EVENT_TYPES, EventType
from models.events.journal import PLATFORM, Change
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from models.users.rule_makers import RuleSubject
from resolvers.submission import mutations as submission_mutations
from tests.conftest import GraphQLClient, client_context, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.domain_operations import (
    DOMAIN_ALIAS_CREATE,
    DOMAIN_DELETE,
    create_domain,
    error_summary,
    run_mutation,
)
from tests.support.operations.id_references import id_refs
from tests.support.operations.rewrite_and_bcc_operations import (
    BCC_RULE_CREATE,
    BCC_RULE_DELETE,
    BCC_RULE_UPDATE,
    BCC_RULES_QUERY,
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

ARCHIVE = "archive@far.example"
NODE = "query ($id: ID!) { node(id: $id) { ... on BccRule { match } } }"
SUBMISSIONS = """{ viewer { user { submissions { totalCount nodes {
  id state recipients { recipient } } } } } }"""


async def test_bcc_rule_is_created_updated_listed_and_deleted(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await run_mutation(
        root, DOMAIN_ALIAS_CREATE, alias="also.example", domain={"name": "example.org"}
    )
    answer, errors = await run_mutation(
        root, BCC_RULE_CREATE, match=" Ad.A@also.example", bccTo="Archive@far.example",
        direction="SENDER",
    )  # fmt: skip
    assert errors == []
    created_rule = answer["bccRule"]
    expected = ("ada@example.org", "Archive@far.example", "SENDER", {"name": "example.org"}, True)
    fields = ("match", "bccTo", "direction", "domain", "active")
    assert tuple(created_rule[name] for name in fields) == expected
    assert (await root(NODE, id=created_rule["id"])) == {"node": {"match": "ada@example.org"}}
    arguments = {"match": "@example.org", "direction": "RECIPIENT", "active": False}
    answer, errors = await run_mutation(
        root, BCC_RULE_UPDATE, bccRules=[{"id": created_rule["id"]}], set=arguments
    )
    assert errors == []
    assert {name: answer["bccRules"][0][name] for name in arguments} == arguments
    assert (await root(BCC_RULES_QUERY))["bccRules"]["nodes"] == answer["bccRules"]
    answer, errors = await run_mutation(
        root, BCC_RULE_DELETE, bccRules=[{"id": created_rule["id"]}]
    )
    assert (answer["deletedIds"], errors) == ([created_rule["id"]], [])
    assert (await root(BCC_RULES_QUERY))["bccRules"]["totalCount"] == 0
    assert (await root(NODE, id=created_rule["id"])) == {"node": None}
    assert await load_copy_recipients(ada.environment) == []


@pytest.mark.usefixtures("ada")
async def test_list_is_paged_with_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    statement_counts: set[int] = set()
    rule_ids: list[str] = []
    for _ in range(2):
        for n in range(1 if not rule_ids else 19):
            rule_ids.append(
                await create_bcc_rule(root, f"a{n}x{len(rule_ids)}@example.org", ARCHIVE)
            )
        del statements[:]
        page = (await root(BCC_RULES_QUERY, first=50))["bccRules"]
        statement_counts.add(len(statements))
        assert [node["id"] for node in page["nodes"]] == rule_ids
    assert len(statement_counts) == 1
    seen: list[str] = []
    after = None
    while len(seen) < len(rule_ids):
        page = (await root(BCC_RULES_QUERY, first=7, after=after))["bccRules"]
        seen += [node["id"] for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
    assert seen == rule_ids
    page = (await root(BCC_RULES_QUERY, last=3))["bccRules"]
    assert [node["id"] for node in page["nodes"]] == rule_ids[-3:]


INVALID_RULES: list[tuple[str, str, tuple[Any, ...]]] = [
    ("example.org", ARCHIVE, ("VALIDATION", ["match"], None, "ADDRESS")),
    ("a+b@example.org", ARCHIVE, ("VALIDATION", ["match"], None, "PATTERN")),
    ("*@example.org", ARCHIVE, ("VALIDATION", ["match"], None, "PATTERN")),
    ("@far.example", ARCHIVE, ("NOT_FOUND", ["match"], None, "far.example")),
    ("@example.org", "@far.example", ("VALIDATION", ["bccTo"], None, "ADDRESS")),
    ("@example.org", "x" * 400, ("VALIDATION", ["bccTo"], None, "ADDRESS")),
    ("ada@example.org", "A.da@example.org", ("VALIDATION", ["bccTo"], None, "SELF")),
    ("ada@also.example", "ada@example.org", ("VALIDATION", ["bccTo"], None, "SELF")),
    ("T.aken@also.example", ARCHIVE, ("CONFLICT", ["match"], None, None)),
]


@pytest.mark.usefixtures("ada")
async def test_invalid_rule_is_refused_by_field_and_rule(
    root: GraphQLClient, environment: Environment
) -> None:
    await run_mutation(
        root, DOMAIN_ALIAS_CREATE, alias="also.example", domain={"name": "example.org"}
    )
    first_id = await create_bcc_rule(root, "taken@example.org", ARCHIVE)
    second_id = await create_bcc_rule(root, "taken@example.org", ARCHIVE, "SENDER")
    third_id = await create_bcc_rule(root, "@example.org", ARCHIVE)
    before = await select_rows(environment, "SELECT * FROM bcc_rules")
    for match, bcc_to, expected_error in INVALID_RULES:
        arguments = {"match": match, "bccTo": bcc_to, "direction": "RECIPIENT"}
        _, errors = await run_mutation(root, BCC_RULE_CREATE, **arguments)
        assert error_summary(errors) == expected_error, (match, bcc_to)
    missing_id = global_ids.encode("BccRule", environment.new_id())
    changes: list[tuple[list[str], dict[str, Any], tuple[Any, ...]]] = [
        ([second_id], {"direction": "RECIPIENT"}, ("CONFLICT", ["set", "match"], None, None)),
        ([first_id, second_id], {"direction": "SENDER"},
         ("CONFLICT", ["set", "match"], None, None)),
        ([first_id, third_id], {"match": "x@example.org"},
         ("CONFLICT", ["set", "match"], None, None)),
        ([third_id, first_id], {"bccTo": "taken@example.org"},
         ("VALIDATION", ["set", "bccTo"], None, "SELF")),
        ([first_id, missing_id], {"active": False}, ("NOT_FOUND", ["bccRules"], 1, str)),
        ([first_id], {}, ("VALIDATION", ["set"], None, "REQUIRED")),
        ([], {"active": True}, ("VALIDATION", ["bccRules"], None, "REQUIRED")),
    ]  # fmt: skip
    for ids, patch, expected in changes:
        _, errors = await run_mutation(root, BCC_RULE_UPDATE, bccRules=id_refs(ids), set=patch)
        assert error_summary(errors)[:3] == expected[:3], (ids, patch)
        assert expected[3] in (str, error_summary(errors)[3])
    _, errors = await run_mutation(
        root, BCC_RULE_DELETE, bccRules=[{"id": first_id}, {"id": missing_id}]
    )
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["bccRules"], 1)
    assert await select_rows(environment, "SELECT * FROM bcc_rules") == before


async def test_rules_in_one_update_do_not_conflict_with_each_other(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    rule_ids = [await create_bcc_rule(root, f"{name}@example.org", ada.address) for name in "xyz"]
    answer, errors = await run_mutation(
        root,
        BCC_RULE_UPDATE,
        bccRules=id_refs(rule_ids),
        set={"direction": "SENDER", "bccTo": ARCHIVE},
    )
    assert errors == []
    assert [bcc_rule["id"] for bcc_rule in answer["bccRules"]] == rule_ids
    assert {bcc_rule["direction"] for bcc_rule in answer["bccRules"]} == {"SENDER"}


async def test_received_message_is_copied_by_recipient_rules(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await run_mutation(
        root, DOMAIN_ALIAS_CREATE, alias="also.example", domain={"name": "example.org"}
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


async def test_bcc_rule_matches_the_rewritten_recipient(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_recipient_rewrite(root, "@old.example", "@example.org")
    await create_bcc_rule(root, ada.address, ARCHIVE)
    await deliver_incoming(environment, "ada@old.example")
    assert await load_copy_recipients(environment) == [(ARCHIVE, "carol@example.com")]


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
        makers_by_address = {
            f"a{n}@example.org": [RuleSubject(0, Role.USER)] for n in range(recipient_count)
        }
        targets = await recipient_rewrites.find_bcc_targets(
            environment, BccDirection.RECIPIENT, makers_by_address, [ada.address]
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
    await create_bcc_rule(
        root, "@example.org", "carol@example.net", "SENDER"
    )  # already a recipient
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
    states = await select_rows(environment, "SELECT DISTINCT state, next_at FROM deliveries")
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


async def test_domain_admin_manages_rules_of_own_domains_only(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "far.example")
    await run_mutation(
        root, DOMAIN_ALIAS_CREATE, alias="also.example", domain={"name": "example.org"}
    )
    other_rule_id = await create_bcc_rule(root, "@far.example", "x@else.example")
    domain_rule_id = await create_bcc_rule(root, "@example.org", ARCHIVE)
    admin = await make_domain_admin(environment, root.http, "dora", [AdminPermission.BCC_RULES])
    page = (await admin(BCC_RULES_QUERY))["bccRules"]
    assert (page["totalCount"], [node["id"] for node in page["nodes"]]) == (1, [domain_rule_id])
    assert await admin(NODE, id=other_rule_id) == {"node": None}
    own_rule_id = await create_bcc_rule(admin, "ada@also.example", ARCHIVE, "SENDER")
    before = await select_rows(environment, "SELECT * FROM bcc_rules")
    arguments = {"bccTo": ARCHIVE, "direction": "SENDER"}
    _, errors = await run_mutation(admin, BCC_RULE_CREATE, match="x@far.example", **arguments)
    assert error_summary(errors) == ("NOT_FOUND", ["match"], None, "far.example")
    _, errors = await run_mutation(
        admin, BCC_RULE_UPDATE, bccRules=[{"id": own_rule_id}], set={"match": "x@far.example"}
    )
    assert error_summary(errors) == ("NOT_FOUND", ["set", "match"], None, "far.example")
    for document, extra in ((BCC_RULE_UPDATE, {"set": {"active": False}}), (BCC_RULE_DELETE, {})):
        _, errors = await run_mutation(
            admin, document, bccRules=[{"id": own_rule_id}, {"id": other_rule_id}], **extra
        )
        assert error_summary(errors)[:3] == ("NOT_FOUND", ["bccRules"], 1)
    assert await select_rows(environment, "SELECT * FROM bcc_rules") == before
    for document, extra in ((BCC_RULE_UPDATE, {"set": {"active": False}}), (BCC_RULE_DELETE, {})):
        _, errors = await run_mutation(
            admin, document, bccRules=[{"id": own_rule_id}, {"id": domain_rule_id}], **extra
        )
        assert errors == []

    admin_without_permission = await make_domain_admin(
        environment, root.http, "dan", [AdminPermission.DOMAIN_ALIASES]
    )
    for client in (ada, admin_without_permission):
        assert (await client.execute(BCC_RULES_QUERY))["errors"][0]["extensions"][
            "code"
        ] == "FORBIDDEN"
        assert await client(NODE, id=other_rule_id) == {"node": None}
        attempts: list[tuple[str, dict[str, Any]]] = [
            (BCC_RULE_CREATE, {"match": "@example.org", **arguments}),
            (BCC_RULE_UPDATE, {"bccRules": [{"id": other_rule_id}], "set": {"active": False}}),
            (BCC_RULE_DELETE, {"bccRules": [{"id": other_rule_id}]}),
        ]
        for document, fields in attempts:
            _, errors = await run_mutation(client, document, **fields)
            assert [error["code"] for error in errors] == ["FORBIDDEN"]


async def test_domain_admin_without_permission_cannot_read_a_rule_by_id(
    root: GraphQLClient, environment: Environment
) -> None:
    admin = await make_domain_admin(environment, root.http, "dan", [])
    rule_id = await create_bcc_rule(root, "@example.org", ARCHIVE)
    assert await admin(NODE, id=rule_id) == {"node": None}


async def test_rule_changes_are_journaled_and_deleted_with_the_domain(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    domain_id = ada.user.domain_id
    assert domain_id is not None
    positions = {key: await load_stream_position(environment, key) for key in (domain_id, PLATFORM)}
    key = await create_bcc_rule(root, "@example.org", ARCHIVE)
    await run_mutation(root, BCC_RULE_UPDATE, bccRules=[{"id": key}], set={"active": False})
    await run_mutation(root, BCC_RULE_DELETE, bccRules=[{"id": key}])
    for stream in (domain_id, PLATFORM):
        expected_changes = [(EventType.DOMAIN_UPDATED, [domain_id])] * 3
        assert (
            await load_journal_entries(environment, stream, positions[stream]) == expected_changes
        )
    await create_domain(root, "brief.example")
    await create_bcc_rule(root, "@brief.example", ARCHIVE)
    _, errors = await run_mutation(root, DOMAIN_DELETE, domains=[{"name": "brief.example"}])
    assert errors == []
    assert await select_rows(environment, "SELECT id FROM bcc_rules") == []


async def test_number_of_rules_is_limited(
    root: GraphQLClient, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.addresses.bcc_rules.MAX_RULES_PER_DOMAIN", 1)
    await create_bcc_rule(root, "@example.org", ARCHIVE)
    arguments = {"match": ada.address, "bccTo": ARCHIVE, "direction": "SENDER"}
    _, errors = await run_mutation(root, BCC_RULE_CREATE, **arguments)
    assert (errors[0]["code"], errors[0]["limit"], errors[0]["used"]) == ("LIMIT_REACHED", 1, 1)
