"""Sieve scripts at delivery by LMTP: stored messages, flags, duplicates and errors."""

import asyncio
from typing import Any

import pytest

from mail.delivery.listener_backend import LocalBackend
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock, make_client, raw_message
from tests.support.accounts.openpgp_keys import make_public_key
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import message_flags, subjects_by_mailbox
from tests.support.mail.trace_header_lines import TRACE_FIELDS
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.mail_servers.queue_worker import relay_queued_mail
from tests.support.operations.quarantine_operations import set_options
from tests.support.operations.sieve_operations import active_script_error, put_sieve_script
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_headers(client: GraphQLClient, path: str) -> list[str]:
    """Load the header of each message of a mailbox, without the fields added at delivery."""
    answer = await client(
        "query ($path: String!) { mailbox(by: {path: $path}) { messages(first: 9) "
        "{ nodes { headers { name value } } } } }",
        path=path,
    )
    nodes = answer["mailbox"]["messages"]["nodes"]
    for node in nodes:
        first_names = [field["name"].encode() for field in node["headers"][: len(TRACE_FIELDS)]]
        assert first_names == TRACE_FIELDS
    return [
        "\n".join(
            f"{field['name']}: {field['value']}" for field in node["headers"][len(TRACE_FIELDS) :]
        )
        for node in nodes
    ]


async def test_script_stores_in_several_mailboxes_with_flags(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require ["fileinto", "mailbox", "imap4flags", "copy"];\n'
        'fileinto :create :flags ["\\\\Seen", "News"] "Lists/News";\n'
        'fileinto :copy :flags "\\\\Flagged" "inbox";\n'
        'setflag ["\\\\Answered", "\\\\Draft", "\\\\Deleted"];\n'
        'fileinto :create "lists/news";',
    )
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {
        "Lists/News": ["Hello"],
        "INBOX": ["Hello"],
        "lists/news": ["Hello"],
    }
    assert await message_flags(ada, "Lists/News") == [["News", "\\Seen"]]
    assert await message_flags(ada, "INBOX") == [["\\Flagged"]]
    assert await message_flags(ada, "lists/news") == [["\\Answered"]]
    user = await select_rows(
        environment, "SELECT message_count, received FROM users WHERE username = 'ada'"
    )
    assert [tuple(row) for row in user] == [(3, 1)]


async def test_repeated_delivery_runs_script_once(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require ["fileinto", "mailbox", "copy", "duplicate"];\n'
        "if duplicate { discard; stop; }\n"
        'redirect :copy "dave@example.com";\n'
        'fileinto :create "One"; fileinto :create "Two";',
    )
    for _ in range(2):
        assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [
            DELIVERED_REPLY
        ]
    assert await subjects_by_mailbox(environment, ada) == {"One": ["Hello"], "Two": ["Hello"]}
    assert [to for _, to in await queued_envelopes(environment)] == ["dave@example.com"]


async def test_fileinto_missing_mailbox_falls_back_to_inbox(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, 'require "fileinto"; fileinto "Nowhere";')
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Hello"]}
    assert (
        await active_script_error(environment)
        == 'There is no mailbox "Nowhere": the message was stored in INBOX.'
    )


async def test_detail_begins_after_configured_delimiter(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    set_options(environment, addresses_subaddress_delimiters="-")
    await put_sieve_script(
        ada,
        'require ["envelope", "fileinto", "mailbox", "subaddress"];\n'
        'if envelope :detail "to" "news" { fileinto :create "News"; }',
    )
    for local_part in ("ada", "ada-news"):
        replies = await deliver_without_queue_id(
            lmtp_client, raw_message(local_part), f"{local_part}@example.org"
        )
        assert replies == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["ada"], "News": ["ada-news"]}


async def test_specialuse_takes_precedence_over_mailbox_name(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require ["fileinto", "special-use"];\n'
        'if specialuse_exists "\\\\Sent" { fileinto :specialuse "\\\\Trash" "No"; }',
    )
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"Trash": ["Hello"]}


async def test_discarded_message_is_accepted_and_not_stored(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(ada, "discard;")
    assert await deliver_without_queue_id(
        lmtp_client, raw_message("Hello"), ada.address, bob.address
    ) == [DELIVERED_REPLY, DELIVERED_REPLY]
    assert (
        await subjects_by_mailbox(environment, ada),
        await subjects_by_mailbox(environment, bob),
    ) == (
        {},
        {"INBOX": ["Hello"]},
    )


async def test_editheader_applies_to_later_actions(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require ["fileinto", "mailbox", "editheader", "copy"];\n'
        'fileinto :copy :create "Before";\n'
        'deleteheader "Subject"; addheader "Subject" "Grüße"; addheader :last "X-End" "1";\n'
        'redirect :copy "dave@example.com";',
    )
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"Before": ["Hello"], "INBOX": ["Grüße"]}
    (header,) = await load_headers(ada, "INBOX")
    assert header.startswith("Subject: Grüße")
    assert header.endswith("X-End: 1")
    ((_, envelope),) = await relay_queued_mail(environment)
    assert (envelope["Subject"], envelope["X-End"]) == ("Grüße", "1")
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"Before": ["Hello"], "INBOX": ["Grüße"]}


async def test_body_test_reads_large_message(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require ["body", "editheader", "copy"];\n'
        'if body :raw :contains "needle" { addheader "X-Found" "1"; }\n'
        'redirect :copy "dave@example.com";',
    )
    raw = raw_message("Large", body="0123456789\r\n" * 200_000 + "the needle")
    assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    (header,) = await load_headers(ada, "INBOX")
    assert header.startswith("X-Found: 1")
    ((envelope, message),) = await relay_queued_mail(environment)
    assert (message["X-Found"], envelope.raw.count(b"0123456789")) == ("1", 200_000)


async def test_kept_spam_goes_to_junk_and_is_not_redirected(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require ["fileinto", "spamtestplus", "relational", "comparator-i;ascii-numeric",'
        ' "imap4flags", "mailbox"];\n'
        'if header "Subject" "To Dave" { redirect "dave@example.com"; stop; }\n'
        'if allof (header "Subject" "Own", spamtest :percent :value "ge" '
        ':comparator "i;ascii-numeric" "50") { fileinto :create "Maybe"; stop; }\n'
        'keep :flags "Odd";',
    )
    for subject in ("Any", "Own", "To Dave"):
        raw = raw_message(subject, X_Spam_Flag="YES")
        assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {
        "Junk": ["Any", "To Dave"],
        "Maybe": ["Own"],
    }
    assert await message_flags(ada, "Junk") == [[], ["Odd"]]
    assert await queued_envelopes(environment) == []


async def test_message_is_encrypted_per_mailbox_setting(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    key_update = await execute_mutation(
        ada, "userUpdate", set={"openpgpPublicKey": make_public_key("Ada")}
    )
    assert key_update["errors"] == []
    created = await execute_mutation(ada, "mailboxCreate", "mailboxes { path }", paths=["Sealed"])
    assert created["errors"] == []
    arguments = {"mailboxes": [{"path": "Sealed"}], "set": {"encryptMessages": True}}
    assert (await execute_mutation(ada, "mailboxUpdate", "mailboxes { path }", **arguments))[
        "errors"
    ] == []
    await put_sieve_script(
        ada,
        'require ["fileinto", "editheader"]; fileinto "Trash";\n'
        'addheader "X-Mine" "1"; fileinto "Sealed"; keep;',
    )
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    headers = {path: (await load_headers(ada, path))[0] for path in ("Trash", "Sealed", "INBOX")}
    is_encrypted = {path: "multipart/encrypted" in header for path, header in headers.items()}
    assert is_encrypted == {"Trash": False, "Sealed": True, "INBOX": False}
    is_edited = {path: header.startswith("X-Mine: 1") for path, header in headers.items()}
    assert is_edited == {"Trash": False, "Sealed": True, "INBOX": True}


async def test_message_over_quota_is_stored_in_no_mailbox(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada, 'require ["fileinto", "mailbox"]; keep; fileinto :create "A"; fileinto "Trash";'
    )
    raw = raw_message("Hello", body="x" * 1000)
    users, quota = {"usernames": ["ada"]}, {"quota": len(raw) * 2}
    assert (await execute_mutation(root, "userUpdate", users=users, set=quota))["errors"] == []
    assert await deliver_without_queue_id(lmtp_client, raw) == ["452 4.2.2 Mailbox full"]
    assert await subjects_by_mailbox(environment, ada) == {}
    assert await select_rows(environment, "SELECT id FROM mailboxes WHERE path = 'A'") == []
    await put_sieve_script(ada, "keep;")
    assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]


async def test_duplicate_test_discards_second_message(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await put_sieve_script(ada, 'require "duplicate"; if duplicate :seconds 3600 { discard; }')
    first = raw_message("Hello", Message_ID="<a@example.com>")
    other = raw_message("By the list", Message_ID="<a@example.com>")
    for raw in (first, other, first):
        assert await deliver_without_queue_id(lmtp_client, raw) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Hello"]}
    clock.tick(hours=1)
    assert await deliver_without_queue_id(lmtp_client, other) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Hello", "By the list"]}


async def test_duplicate_test_is_safe_for_concurrent_deliveries(
    ada: GraphQLClient, environment: Environment
) -> None:
    await put_sieve_script(ada, 'require "duplicate"; if duplicate { discard; }')
    backend = LocalBackend(environment)
    recipients = [await backend.accept_recipient(ada.address, "")]
    raw_messages = [raw_message(f"Letter {nth}", Message_ID="<a@example.com>") for nth in range(4)]
    results = await asyncio.gather(
        *(backend.deliver(raw, recipients, "carol@example.com") for raw in raw_messages)
    )
    assert not [
        outcome
        for outcomes in results
        for outcome in outcomes
        if isinstance(outcome, BaseException)
    ]
    assert len((await subjects_by_mailbox(environment, ada))["INBOX"]) == 1


async def test_script_includes_script_of_same_user(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(bob, "discard;", name="lists", activate=False)
    await put_sieve_script(
        ada, 'require "fileinto"; fileinto "Trash";', name="lists", activate=False
    )
    await put_sieve_script(ada, 'require "include"; include "lists";')
    assert await deliver_without_queue_id(
        lmtp_client, raw_message("Hello"), ada.address, bob.address
    ) == [DELIVERED_REPLY, DELIVERED_REPLY]
    assert (
        await subjects_by_mailbox(environment, ada),
        await subjects_by_mailbox(environment, bob),
    ) == (
        {"Trash": ["Hello"]},
        {"INBOX": ["Hello"]},
    )


async def test_failing_script_has_no_effect_and_stores_error(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require ["include", "copy"];\nredirect :copy "dave@example.com";\ninclude "gone";',
    )
    for number in range(3):
        assert await deliver_without_queue_id(lmtp_client, raw_message(f"Letter {number}")) == [
            DELIVERED_REPLY
        ]
    assert await subjects_by_mailbox(environment, ada) == {
        "INBOX": ["Letter 0", "Letter 1", "Letter 2"]
    }
    assert await queued_envelopes(environment) == []
    assert (
        await active_script_error(environment)
        == 'line 3, column 1: There is no valid script "gone".'
    )
    changes = await select_rows(
        environment, "SELECT facts FROM changes WHERE type = 'SIEVE_FAILED'"
    )
    assert len(changes) == 1


async def test_script_tests_environment_envelope_and_date(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await put_sieve_script(
        ada,
        'require ["environment", "mailbox", "envelope", "fileinto", "variables", "date"];\n'
        'if allof (environment "name" "Merganser", mailboxexists ["INBOX", "Trash"], '
        'not mailboxexists "Nowhere", envelope "to" "ada+x@example.org", '
        'envelope "from" "carol@example.com", currentdate "year" "2030") '
        '{ fileinto "Trash"; }',
    )
    assert await deliver_without_queue_id(
        lmtp_client, raw_message("Hello"), "ada+x@example.org"
    ) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"Trash": ["Hello"]}


async def test_scripts_of_many_recipients_are_read_together(
    ada: GraphQLClient,
    environment: Environment,
    lmtp_client: SmtpTestClient,
    statements: list[str],
    http: Any,
) -> None:
    text = 'require ["fileinto", "vacation"]; if header "X-No" "1" { vacation "x"; } keep;'
    others = [await make_client(environment, http, f"user{number}") for number in range(19)]
    for client in (ada, *others):
        await put_sieve_script(client, text)
    sql_parts = ("FROM sieve_scripts", "FROM mailboxes JOIN users", "FROM addresses")

    async def count_statements(*recipients: str) -> list[int]:
        await deliver_without_queue_id(lmtp_client, raw_message("To warm"), *recipients)
        await lmtp_client.start_data(*recipients)
        del statements[:]
        lmtp_client.send_bytes(raw_message(f"To {len(recipients)}") + b"\r\n.\r\n")
        assert [(await lmtp_client.read_reply())[: len(DELIVERED_REPLY)] for _ in recipients] == [
            DELIVERED_REPLY
        ] * len(recipients)
        return [sum(sql_part in item for item in statements) for sql_part in sql_parts]

    expected = await count_statements(ada.address)
    assert expected[0] == 1
    assert await count_statements(*(item.address for item in (ada, *others))) == expected


async def test_delivery_without_script_reads_no_script(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, statements: list[str]
) -> None:
    await lmtp_client.start_data(ada.address)
    del statements[:]
    lmtp_client.send_bytes(raw_message("Hello") + b"\r\n.\r\n")
    assert (await lmtp_client.read_reply()).startswith(DELIVERED_REPLY)
    assert not [statement for statement in statements if "sieve" in statement]
