"""Mail that comes in by LMTP is run through the script of its account."""

import asyncio
import email
from email.message import EmailMessage
from email.policy import default
from typing import Any

import pytest

from mail.delivery.listener_backend import LocalBackend
from mail.maintenance.housekeeping import run_round
from mail.mime.header_encoding import NamedAddress
from models.runtime.environment import Environment
from tests.conftest import Client, Clock, make_client, raw_message
from tests.support.accounts.openpgp_keys import key_of
from tests.support.accounts.user_operations import run
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import message_flags, subjects_by_mailbox
from tests.support.mail.trace_header_lines import FIELDS
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.mail_servers.queue_worker import relay, send, settled, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.sieve_operations import active_script_error, put
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("examined")


async def raws(client: Client, path: str) -> list[str]:
    """The headers of what lies in a folder, without what a delivery puts before them."""
    found = await client(
        "query ($path: String!) { mailbox(by: {path: $path}) { messages(first: 9) "
        "{ nodes { headers { key value } } } } }",
        path=path,
    )
    nodes = found["mailbox"]["messages"]["nodes"]
    for node in nodes:
        top = [one["key"].encode() for one in node["headers"][: len(FIELDS)]]
        assert top == FIELDS
    return [
        "\n".join(f"{one['key']}: {one['value']}" for one in node["headers"][len(FIELDS) :])
        for node in nodes
    ]


async def sent(world: Environment, many: int = 1) -> list[tuple[Any, EmailMessage]]:
    """What a server of another domain takes: envelope and message."""
    async with listening(Server()) as there, working(world, relay(there)):

        async def come() -> bool:
            return len(there.mails) >= many

        await until(come)
        for row in await rows(world, "SELECT DISTINCT submission_id FROM deliveries"):
            await settled(world, row[0])
        return [(mail, parsed(mail.raw)) for mail in there.mails]


def parsed(raw: bytes) -> EmailMessage:
    made = email.message_from_bytes(raw, policy=default)
    assert isinstance(made, EmailMessage)
    return made


# ---------------------------------------------------------------- storing


async def test_it_goes_into_several_folders_with_flags(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["fileinto", "mailbox", "imap4flags", "copy"];\n'
        'fileinto :create :flags ["\\\\Seen", "News"] "Lists/News";\n'
        'fileinto :copy :flags "\\\\Flagged" "inbox";\n'
        'setflag ["\\\\Answered", "\\\\Draft", "\\\\Deleted"];\n'
        'fileinto :create "lists/news";',
    )
    assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {
        "Lists/News": ["Hello"],
        "INBOX": ["Hello"],
        "lists/news": ["Hello"],
    }
    assert await message_flags(ada, "Lists/News") == [["News", "\\Seen"]]
    assert await message_flags(ada, "INBOX") == [["\\Flagged"]]
    assert await message_flags(ada, "lists/news") == [["\\Answered"]]
    user = await rows(world, "SELECT message_count, received FROM users WHERE username = 'ada'")
    assert [tuple(row) for row in user] == [(3, 1)]


async def test_a_repeat_after_a_lost_reply_is_known(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["fileinto", "mailbox", "copy", "duplicate"];\n'
        "if duplicate { discard; stop; }\n"
        'redirect :copy "dave@example.com";\n'
        'fileinto :create "One"; fileinto :create "Two";',
    )
    for _ in range(2):
        assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"One": ["Hello"], "Two": ["Hello"]}
    assert [to for _, to in await queued_envelopes(world)] == ["dave@example.com"]


async def test_a_folder_that_is_not_there_is_inbox(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(ada, 'require "fileinto"; fileinto "Nowhere";')
    assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["Hello"]}
    assert (
        await active_script_error(world)
        == 'there is no mailbox "Nowhere": the message went to INBOX'
    )


async def test_a_special_folder_goes_before_its_name(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["fileinto", "special-use"];\n'
        'if specialuse_exists "\\\\Sent" { fileinto :specialuse "\\\\Trash" "No"; }',
    )
    assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"Trash": ["Hello"]}


async def test_what_is_thrown_away_is_taken_and_not_stored(
    ada: Client, bob: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(ada, "discard;")
    assert await deliver_without_queue_id(
        neighbour, raw_message("Hello"), ada.address, bob.address
    ) == [DELIVERED_REPLY, DELIVERED_REPLY]
    assert (await subjects_by_mailbox(world, ada), await subjects_by_mailbox(world, bob)) == (
        {},
        {"INBOX": ["Hello"]},
    )


async def test_the_header_is_as_it_was_edited_up_to_there(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["fileinto", "mailbox", "editheader", "copy"];\n'
        'fileinto :copy :create "Before";\n'
        'deleteheader "Subject"; addheader "Subject" "Grüße"; addheader :last "X-End" "1";\n'
        'redirect :copy "dave@example.com";',
    )
    assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"Before": ["Hello"], "INBOX": ["Grüße"]}
    (head,) = await raws(ada, "INBOX")
    assert head.startswith("Subject: Grüße")
    assert head.endswith("X-End: 1")
    ((_, mail),) = await sent(world)
    assert (mail["Subject"], mail["X-End"]) == ("Grüße", "1")
    assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"Before": ["Hello"], "INBOX": ["Grüße"]}


async def test_a_large_message_is_read_where_it_lies(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["body", "editheader", "copy"];\n'
        'if body :raw :contains "needle" { addheader "X-Found" "1"; }\n'
        'redirect :copy "dave@example.com";',
    )
    raw = raw_message("Large", body="0123456789\r\n" * 200_000 + "the needle")
    assert await deliver_without_queue_id(neighbour, raw) == [DELIVERED_REPLY]
    (head,) = await raws(ada, "INBOX")
    assert head.startswith("X-Found: 1")
    ((mail, said),) = await sent(world)
    assert (said["X-Found"], mail.raw.count(b"0123456789")) == ("1", 200_000)


async def test_spam_that_is_kept_goes_to_junk_and_nowhere_else(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
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
        assert await deliver_without_queue_id(neighbour, raw) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"Junk": ["Any", "To Dave"], "Maybe": ["Own"]}
    assert await message_flags(ada, "Junk") == [[], ["Odd"]]
    assert await queued_envelopes(world) == []


async def test_each_folder_has_it_encrypted_as_it_asks(ada: Client, neighbour: Neighbour) -> None:
    key = await run(ada, "userUpdate", set={"pubKey": key_of("Ada")})
    assert key["errors"] == []
    made = await run(ada, "mailboxCreate", "mailboxes { path }", paths=["Sealed"])
    assert made["errors"] == []
    given = {"mailboxes": [{"path": "Sealed"}], "set": {"encryptMessages": True}}
    assert (await run(ada, "mailboxUpdate", "mailboxes { path }", **given))["errors"] == []
    await put(
        ada,
        'require ["fileinto", "editheader"]; fileinto "Trash";\n'
        'addheader "X-Mine" "1"; fileinto "Sealed"; keep;',
    )
    assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    found = {path: (await raws(ada, path))[0] for path in ("Trash", "Sealed", "INBOX")}
    sealed = {path: "multipart/encrypted" in head for path, head in found.items()}
    assert sealed == {"Trash": False, "Sealed": True, "INBOX": False}
    mine = {path: head.startswith("X-Mine: 1") for path, head in found.items()}
    assert mine == {"Trash": False, "Sealed": True, "INBOX": True}


async def test_what_does_not_fit_everywhere_is_stored_nowhere(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(ada, 'require ["fileinto", "mailbox"]; keep; fileinto :create "A"; fileinto "Trash";')
    raw = raw_message("Hello", body="x" * 1000)
    whose, few = {"usernames": ["ada"]}, {"quota": len(raw) * 2}
    assert (await run(root, "userUpdate", users=whose, set=few))["errors"] == []
    assert await deliver_without_queue_id(neighbour, raw) == ["452 4.2.2 Mailbox full"]
    assert await subjects_by_mailbox(world, ada) == {}
    assert await rows(world, "SELECT id FROM mailboxes WHERE path = 'A'") == []
    await put(ada, "keep;")
    assert await deliver_without_queue_id(neighbour, raw) == [DELIVERED_REPLY]


# ---------------------------------------------------------------- refusing, sending on, answering


async def test_a_refusal_is_the_answer_to_its_sender(
    ada: Client, bob: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(ada, 'require "ereject"; ereject "Nein,\r\n danke\u00a0- é";')
    replies = await deliver_without_queue_id(
        neighbour, raw_message("Hello"), ada.address, bob.address
    )
    assert replies == ["550 5.7.1 Nein, danke - ?", DELIVERED_REPLY]
    assert (await subjects_by_mailbox(world, ada), await subjects_by_mailbox(world, bob)) == (
        {},
        {"INBOX": ["Hello"]},
    )


async def test_a_refusal_is_reported_to_somebody_here(
    ada: Client, bob: Client, world: Environment
) -> None:
    await put(ada, 'require "reject"; reject "No, thanks";')
    key = await send(bob, NamedAddress(ada.address))
    async with listening(Server()) as there, working(world, relay(there)):
        found = await settled(world, key)

        async def reported() -> bool:
            return "INBOX" in await subjects_by_mailbox(world, bob)

        await until(reported)
    assert (found["ada"].last_code, found["ada"].state) == (550, "BOUNCED")
    assert "No, thanks" in found["ada"].last_response
    assert await subjects_by_mailbox(world, ada) == {}


async def test_it_is_sent_on_with_a_sender_that_finds_back(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(ada, 'redirect "dave@example.com";')
    assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {}
    ((mail, said),) = await sent(world)
    assert mail.sender.startswith("SRS0=")
    assert mail.sender.endswith("@example.org")
    assert (mail.to, said["Subject"]) == (["dave@example.com"], "Hello")
    assert said["Delivered-To"] == "ada@example.org"


async def test_what_cannot_be_sent_on_is_kept(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(ada, 'redirect "dave@example.com";')
    raw = b"Delivered-To: ada@example.org\r\n" + raw_message("Hello")
    assert await deliver_without_queue_id(neighbour, raw) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["Hello"]}
    assert (
        await active_script_error(world)
        == "not sent on to dave@example.com: the mail goes in circles"
    )
    assert await queued_envelopes(world) == []


async def test_a_vacation_is_answered_once_to_each_sender(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await put(
        ada,
        'require ["vacation", "fcc", "mailbox"];\n'
        'vacation :days 3 :subject "Away" :from "Ada L <ada@example.org>" '
        ':fcc "Answers" :create "I am away.";',
    )
    for number, sender in enumerate(["carol@example.com", "Carol+x@example.com", "d@example.net"]):
        assert await deliver_without_queue_id(
            neighbour, raw_message(f"Letter {number}"), sender=sender
        ) == [DELIVERED_REPLY]
    assert await queued_envelopes(world) == [("", "carol@example.com"), ("", "d@example.net")]
    found = await subjects_by_mailbox(world, ada)
    assert found["Answers"] == ["Away", "Away"]
    assert found["INBOX"] == ["Letter 0", "Letter 1", "Letter 2"]
    clock.tick(days=3)
    assert await deliver_without_queue_id(neighbour, raw_message("Letter 4")) == [DELIVERED_REPLY]
    assert len(await queued_envelopes(world)) == 3
    clock.tick(days=4)
    await run_round(world)
    assert await rows(world, "SELECT key FROM sieve_memories") == []


async def test_an_answer_is_what_the_standards_ask_for(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require "vacation"; vacation :mime :from "eve@example.net" text:\r\n'
        "Content-Type: text/html; charset=utf-8\r\nX-Mine: no\r\n\r\n<p>Grüße</p>\r\n.\r\n;",
    )
    assert await deliver_without_queue_id(
        neighbour, raw_message("Hello", Message_ID="<a@example.com>")
    ) == [DELIVERED_REPLY]
    ((mail, said),) = await sent(world)
    assert (mail.sender, mail.to) == ("<>", ["carol@example.com"])
    assert said["From"] == "ada@example.org"  # not hers: she may not send as somebody else
    assert said["Subject"] == "Auto: Hello"
    assert (said["Auto-Submitted"], said["In-Reply-To"]) == ("auto-replied", "<a@example.com>")
    assert (said.get_content_type(), said["X-Mine"]) == ("text/html", None)
    assert said.get_content().strip() == "<p>Grüße</p>"


@pytest.mark.parametrize(
    "header",
    [{"X_Autoreply": "yes"}, {"X_Spam_Flag": "YES"}, {"List_Id": "<x.example.com>"},
     {"Auto_Submitted": "auto-generated"}, {"To": "others@example.net"}],
)  # fmt: skip
async def test_machines_lists_and_spam_are_not_answered(
    ada: Client, world: Environment, neighbour: Neighbour, header: dict[str, str]
) -> None:
    await put(ada, 'require "vacation"; vacation "I am away.";')
    assert await deliver_without_queue_id(neighbour, raw_message("Hello", **header)) == [
        DELIVERED_REPLY
    ]
    assert await queued_envelopes(world) == []


async def test_somebody_is_notified_by_mail(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require "enotify";\n'
        'notify :importance "1" :message "News of Carol" '
        '"mailto:dave@example.com?body=Look&X-Tag=1&Received=no";',
    )
    for _ in range(2):
        assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await deliver_without_queue_id(
        neighbour, raw_message("Robot", Auto_Submitted="auto-replied")
    ) == [DELIVERED_REPLY]
    ((mail, said),) = await sent(world)
    assert (mail.sender, mail.to) == ("<>", ["dave@example.com"])
    assert (said["Subject"], said["X-Tag"], said["Importance"]) == ("News of Carol", "1", "high")
    assert said["Auto-Submitted"] == 'auto-notified; owner-email="ada@example.org"'
    assert said["Received"] is None
    assert said.get_content().strip() == "Look"
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["Hello", "Robot"]}


# ---------------------------------------------------------------- what is known


async def test_the_same_does_not_come_twice(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await put(ada, 'require "duplicate"; if duplicate :seconds 3600 { discard; }')
    first = raw_message("Hello", Message_ID="<a@example.com>")
    other = raw_message("By the list", Message_ID="<a@example.com>")
    for raw in (first, other, first):
        assert await deliver_without_queue_id(neighbour, raw) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["Hello"]}
    clock.tick(hours=1)
    assert await deliver_without_queue_id(neighbour, other) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["Hello", "By the list"]}


async def test_two_at_once_do_not_both_come_for_the_first_time(
    ada: Client, world: Environment
) -> None:
    await put(ada, 'require "duplicate"; if duplicate { discard; }')
    house = LocalBackend(world)
    taken = [await house.accept_recipient(ada.address, "")]
    letters = [raw_message(f"Letter {nth}", Message_ID="<a@example.com>") for nth in range(4)]
    done = await asyncio.gather(
        *(house.deliver(raw, taken, "carol@example.com") for raw in letters)
    )
    assert not [one for outcomes in done for one in outcomes if isinstance(one, BaseException)]
    assert len((await subjects_by_mailbox(world, ada))["INBOX"]) == 1


async def test_scripts_include_each_other(
    ada: Client, bob: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(bob, "discard;", name="lists", activate=False)
    await put(ada, 'require "fileinto"; fileinto "Trash";', name="lists", activate=False)
    await put(ada, 'require "include"; include "lists";')
    assert await deliver_without_queue_id(
        neighbour, raw_message("Hello"), ada.address, bob.address
    ) == [DELIVERED_REPLY, DELIVERED_REPLY]
    assert (await subjects_by_mailbox(world, ada), await subjects_by_mailbox(world, bob)) == (
        {"Trash": ["Hello"]},
        {"INBOX": ["Hello"]},
    )


async def test_a_script_that_fails_has_done_nothing_and_says_why(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["include", "copy"];\nredirect :copy "dave@example.com";\ninclude "gone";',
    )
    for number in range(3):
        assert await deliver_without_queue_id(neighbour, raw_message(f"Letter {number}")) == [
            DELIVERED_REPLY
        ]
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["Letter 0", "Letter 1", "Letter 2"]}
    assert await queued_envelopes(world) == []
    assert (
        await active_script_error(world)
        == 'line 3, column 1: there is no script "gone" that compiles'
    )
    told = await rows(world, "SELECT facts FROM changes WHERE kind = 'SIEVE_CHANGED'")
    assert sum("failed" in str(row[0]) for row in told) == 1


async def test_what_scripts_may_know(ada: Client, world: Environment, neighbour: Neighbour) -> None:
    await put(
        ada,
        'require ["environment", "mailbox", "envelope", "fileinto", "variables", "date"];\n'
        'if allof (environment "name" "Merganser", mailboxexists ["INBOX", "Trash"], '
        'not mailboxexists "Nowhere", envelope "to" "ada+x@example.org", '
        'envelope "from" "carol@example.com", currentdate "year" "2030") '
        '{ fileinto "Trash"; }',
    )
    assert await deliver_without_queue_id(neighbour, raw_message("Hello"), "ada+x@example.org") == [
        DELIVERED_REPLY
    ]
    assert await subjects_by_mailbox(world, ada) == {"Trash": ["Hello"]}


async def test_many_scripts_are_looked_up_together(
    ada: Client, world: Environment, neighbour: Neighbour, statements: list[str], http: Any
) -> None:
    text = 'require ["fileinto", "vacation"]; if header "X-No" "1" { vacation "x"; } keep;'
    others = [await make_client(world, http, f"user{number}") for number in range(19)]
    for client in (ada, *others):
        await put(client, text)
    sought = ("FROM sieve_scripts", "FROM mailboxes JOIN users", "FROM addresses")

    async def cost(*to: str) -> list[int]:
        await deliver_without_queue_id(neighbour, raw_message("To warm"), *to)
        await neighbour.begin(*to)
        del statements[:]
        neighbour.send(raw_message(f"To {len(to)}") + b"\r\n.\r\n")
        assert [(await neighbour.hear())[: len(DELIVERED_REPLY)] for _ in to] == [
            DELIVERED_REPLY
        ] * len(to)
        return [sum(where in each for each in statements) for where in sought]

    one = await cost(ada.address)
    assert one[0] == 1
    assert await cost(*(each.address for each in (ada, *others))) == one


async def test_nobody_without_a_script_is_asked_about_one(
    ada: Client, neighbour: Neighbour, statements: list[str]
) -> None:
    await neighbour.begin(ada.address)
    del statements[:]
    neighbour.send(raw_message("Hello") + b"\r\n.\r\n")
    assert (await neighbour.hear()).startswith(DELIVERED_REPLY)
    assert not [each for each in statements if "sieve" in each]
