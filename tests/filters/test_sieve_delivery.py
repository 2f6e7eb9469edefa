"""Mail that comes in by LMTP is run through the script of its account."""

import asyncio
import email
import re
from email.message import EmailMessage
from email.policy import default
from typing import Any

import pytest

from mail.delivery.listener_backend import Household
from mail.maintenance.housekeeping import tidy
from mail.mime.header_encoding import Named
from models.runtime.environment import World
from tests.conftest import Client, Clock, make_client, raw_message
from tests.support.accounts.openpgp_keys import key_of
from tests.support.accounts.user_operations import run
from tests.support.mail.trace_header_lines import FIELDS
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import relay, send, settled, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.sieve_operations import put
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("examined")

DONE = "250 2.0.0 Delivered"
_QUEUED = re.compile(r"(?<=Delivered) as [0-9a-f]{20}\Z")


async def hand(
    neighbour: Neighbour, raw: bytes, *to: str, sender: str = "carol@example.com"
) -> list[str]:
    """Deliver a message; the reply for each recipient, without the name it is queued by."""
    to = to or ("ada@example.org",)
    await neighbour.begin(*to, sender=sender)
    neighbour.send(raw + b"\r\n.\r\n")
    return [_QUEUED.sub("", await neighbour.hear()) for _ in to]


async def folders(world: World, client: Client) -> dict[str, list[str]]:
    """The subjects of what lies in each folder, by its path."""
    sql = (
        "SELECT b.path, m.subject, m.user_id FROM messages m "
        "JOIN mailboxes b ON b.id = m.mailbox_id ORDER BY m.id"
    )
    found: dict[str, list[str]] = {}
    for path, subject, owner in await rows(world, sql):
        if owner == client.user.id:
            found.setdefault(path, []).append(subject)
    return found


async def flags(client: Client, path: str = "INBOX") -> list[list[str]]:
    found = await client(
        "query ($path: String!) { mailbox(by: {path: $path}) { messages(first: 9) "
        "{ nodes { flags } } } }",
        path=path,
    )
    return [sorted(node["flags"]) for node in found["mailbox"]["messages"]["nodes"]]


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


async def queued(world: World) -> list[tuple[str, str]]:
    """Sender and recipient of what is in the queue."""
    sql = (
        "SELECT s.envelope_from, d.recipient FROM deliveries d "
        "JOIN submissions s ON s.id = d.submission_id ORDER BY d.id"
    )
    return [(row[0], row[1]) for row in await rows(world, sql)]


async def error(world: World) -> Any:
    found = await rows(world, "SELECT last_error FROM sieve_scripts WHERE active")
    return found[0][0]


async def sent(world: World, many: int = 1) -> list[tuple[Any, EmailMessage]]:
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
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["fileinto", "mailbox", "imap4flags", "copy"];\n'
        'fileinto :create :flags ["\\\\Seen", "News"] "Lists/News";\n'
        'fileinto :copy :flags "\\\\Flagged" "inbox";\n'
        'setflag ["\\\\Answered", "\\\\Draft", "\\\\Deleted"];\n'
        'fileinto :create "lists/news";',
    )
    assert await hand(neighbour, raw_message("Hello")) == [DONE]
    assert await folders(world, ada) == {
        "Lists/News": ["Hello"],
        "INBOX": ["Hello"],
        "lists/news": ["Hello"],
    }
    assert await flags(ada, "Lists/News") == [["News", "\\Seen"]]
    assert await flags(ada, "INBOX") == [["\\Flagged"]]
    assert await flags(ada, "lists/news") == [["\\Answered"]]
    user = await rows(world, "SELECT message_count, received FROM users WHERE username = 'ada'")
    assert [tuple(row) for row in user] == [(3, 1)]


async def test_a_repeat_after_a_lost_reply_is_known(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["fileinto", "mailbox", "copy", "duplicate"];\n'
        "if duplicate { discard; stop; }\n"
        'redirect :copy "dave@example.com";\n'
        'fileinto :create "One"; fileinto :create "Two";',
    )
    for _ in range(2):
        assert await hand(neighbour, raw_message("Hello")) == [DONE]
    assert await folders(world, ada) == {"One": ["Hello"], "Two": ["Hello"]}
    assert [to for _, to in await queued(world)] == ["dave@example.com"]


async def test_a_folder_that_is_not_there_is_inbox(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(ada, 'require "fileinto"; fileinto "Nowhere";')
    assert await hand(neighbour, raw_message("Hello")) == [DONE]
    assert await folders(world, ada) == {"INBOX": ["Hello"]}
    assert await error(world) == 'there is no mailbox "Nowhere": the message went to INBOX'


async def test_a_special_folder_goes_before_its_name(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["fileinto", "special-use"];\n'
        'if specialuse_exists "\\\\Sent" { fileinto :specialuse "\\\\Trash" "No"; }',
    )
    assert await hand(neighbour, raw_message("Hello")) == [DONE]
    assert await folders(world, ada) == {"Trash": ["Hello"]}


async def test_what_is_thrown_away_is_taken_and_not_stored(
    ada: Client, bob: Client, world: World, neighbour: Neighbour
) -> None:
    await put(ada, "discard;")
    assert await hand(neighbour, raw_message("Hello"), ada.address, bob.address) == [DONE, DONE]
    assert (await folders(world, ada), await folders(world, bob)) == ({}, {"INBOX": ["Hello"]})


async def test_the_header_is_as_it_was_edited_up_to_there(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["fileinto", "mailbox", "editheader", "copy"];\n'
        'fileinto :copy :create "Before";\n'
        'deleteheader "Subject"; addheader "Subject" "Grüße"; addheader :last "X-End" "1";\n'
        'redirect :copy "dave@example.com";',
    )
    assert await hand(neighbour, raw_message("Hello")) == [DONE]
    assert await folders(world, ada) == {"Before": ["Hello"], "INBOX": ["Grüße"]}
    (head,) = await raws(ada, "INBOX")
    assert head.startswith("Subject: Grüße")
    assert head.endswith("X-End: 1")
    ((_, mail),) = await sent(world)
    assert (mail["Subject"], mail["X-End"]) == ("Grüße", "1")
    assert await hand(neighbour, raw_message("Hello")) == [DONE]
    assert await folders(world, ada) == {"Before": ["Hello"], "INBOX": ["Grüße"]}


async def test_a_large_message_is_read_where_it_lies(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["body", "editheader", "copy"];\n'
        'if body :raw :contains "needle" { addheader "X-Found" "1"; }\n'
        'redirect :copy "dave@example.com";',
    )
    raw = raw_message("Large", body="0123456789\r\n" * 200_000 + "the needle")
    assert await hand(neighbour, raw) == [DONE]
    (head,) = await raws(ada, "INBOX")
    assert head.startswith("X-Found: 1")
    ((mail, said),) = await sent(world)
    assert (said["X-Found"], mail.raw.count(b"0123456789")) == ("1", 200_000)


async def test_spam_that_is_kept_goes_to_junk_and_nowhere_else(
    ada: Client, world: World, neighbour: Neighbour
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
        assert await hand(neighbour, raw) == [DONE]
    assert await folders(world, ada) == {"Junk": ["Any", "To Dave"], "Maybe": ["Own"]}
    assert await flags(ada, "Junk") == [[], ["Odd"]]
    assert await queued(world) == []


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
    assert await hand(neighbour, raw_message("Hello")) == [DONE]
    found = {path: (await raws(ada, path))[0] for path in ("Trash", "Sealed", "INBOX")}
    sealed = {path: "multipart/encrypted" in head for path, head in found.items()}
    assert sealed == {"Trash": False, "Sealed": True, "INBOX": False}
    mine = {path: head.startswith("X-Mine: 1") for path, head in found.items()}
    assert mine == {"Trash": False, "Sealed": True, "INBOX": True}


async def test_what_does_not_fit_everywhere_is_stored_nowhere(
    ada: Client, root: Client, world: World, neighbour: Neighbour
) -> None:
    await put(ada, 'require ["fileinto", "mailbox"]; keep; fileinto :create "A"; fileinto "Trash";')
    raw = raw_message("Hello", body="x" * 1000)
    whose, few = {"usernames": ["ada"]}, {"quota": len(raw) * 2}
    assert (await run(root, "userUpdate", users=whose, set=few))["errors"] == []
    assert await hand(neighbour, raw) == ["452 4.2.2 Mailbox full"]
    assert await folders(world, ada) == {}
    assert await rows(world, "SELECT id FROM mailboxes WHERE path = 'A'") == []
    await put(ada, "keep;")
    assert await hand(neighbour, raw) == [DONE]


# ---------------------------------------------------------------- refusing, sending on, answering


async def test_a_refusal_is_the_answer_to_its_sender(
    ada: Client, bob: Client, world: World, neighbour: Neighbour
) -> None:
    await put(ada, 'require "ereject"; ereject "Nein,\r\n danke\u00a0- é";')
    replies = await hand(neighbour, raw_message("Hello"), ada.address, bob.address)
    assert replies == ["550 5.7.1 Nein, danke - ?", DONE]
    assert (await folders(world, ada), await folders(world, bob)) == ({}, {"INBOX": ["Hello"]})


async def test_a_refusal_is_reported_to_somebody_here(
    ada: Client, bob: Client, world: World
) -> None:
    await put(ada, 'require "reject"; reject "No, thanks";')
    key = await send(bob, Named(ada.address))
    async with listening(Server()) as there, working(world, relay(there)):
        found = await settled(world, key)

        async def reported() -> bool:
            return "INBOX" in await folders(world, bob)

        await until(reported)
    assert (found["ada"].last_code, found["ada"].state) == (550, "BOUNCED")
    assert "No, thanks" in found["ada"].last_response
    assert await folders(world, ada) == {}


async def test_it_is_sent_on_with_a_sender_that_finds_back(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(ada, 'redirect "dave@example.com";')
    assert await hand(neighbour, raw_message("Hello")) == [DONE]
    assert await folders(world, ada) == {}
    ((mail, said),) = await sent(world)
    assert mail.sender.startswith("SRS0=")
    assert mail.sender.endswith("@example.org")
    assert (mail.to, said["Subject"]) == (["dave@example.com"], "Hello")
    assert said["Delivered-To"] == "ada@example.org"


async def test_what_cannot_be_sent_on_is_kept(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(ada, 'redirect "dave@example.com";')
    raw = b"Delivered-To: ada@example.org\r\n" + raw_message("Hello")
    assert await hand(neighbour, raw) == [DONE]
    assert await folders(world, ada) == {"INBOX": ["Hello"]}
    assert await error(world) == "not sent on to dave@example.com: the mail goes in circles"
    assert await queued(world) == []


async def test_a_vacation_is_answered_once_to_each_sender(
    ada: Client, world: World, neighbour: Neighbour, clock: Clock
) -> None:
    await put(
        ada,
        'require ["vacation", "fcc", "mailbox"];\n'
        'vacation :days 3 :subject "Away" :from "Ada L <ada@example.org>" '
        ':fcc "Answers" :create "I am away.";',
    )
    for number, sender in enumerate(["carol@example.com", "Carol+x@example.com", "d@example.net"]):
        assert await hand(neighbour, raw_message(f"Letter {number}"), sender=sender) == [DONE]
    assert await queued(world) == [("", "carol@example.com"), ("", "d@example.net")]
    found = await folders(world, ada)
    assert found["Answers"] == ["Away", "Away"]
    assert found["INBOX"] == ["Letter 0", "Letter 1", "Letter 2"]
    clock.tick(days=3)
    assert await hand(neighbour, raw_message("Letter 4")) == [DONE]
    assert len(await queued(world)) == 3
    clock.tick(days=4)
    await tidy(world)
    assert await rows(world, "SELECT key FROM sieve_memories") == []


async def test_an_answer_is_what_the_standards_ask_for(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require "vacation"; vacation :mime :from "eve@example.net" text:\r\n'
        "Content-Type: text/html; charset=utf-8\r\nX-Mine: no\r\n\r\n<p>Grüße</p>\r\n.\r\n;",
    )
    assert await hand(neighbour, raw_message("Hello", Message_ID="<a@example.com>")) == [DONE]
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
    ada: Client, world: World, neighbour: Neighbour, header: dict[str, str]
) -> None:
    await put(ada, 'require "vacation"; vacation "I am away.";')
    assert await hand(neighbour, raw_message("Hello", **header)) == [DONE]
    assert await queued(world) == []


async def test_somebody_is_notified_by_mail(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require "enotify";\n'
        'notify :importance "1" :message "News of Carol" '
        '"mailto:dave@example.com?body=Look&X-Tag=1&Received=no";',
    )
    for _ in range(2):
        assert await hand(neighbour, raw_message("Hello")) == [DONE]
    assert await hand(neighbour, raw_message("Robot", Auto_Submitted="auto-replied")) == [DONE]
    ((mail, said),) = await sent(world)
    assert (mail.sender, mail.to) == ("<>", ["dave@example.com"])
    assert (said["Subject"], said["X-Tag"], said["Importance"]) == ("News of Carol", "1", "high")
    assert said["Auto-Submitted"] == 'auto-notified; owner-email="ada@example.org"'
    assert said["Received"] is None
    assert said.get_content().strip() == "Look"
    assert await folders(world, ada) == {"INBOX": ["Hello", "Robot"]}


# ---------------------------------------------------------------- what is known


async def test_the_same_does_not_come_twice(
    ada: Client, world: World, neighbour: Neighbour, clock: Clock
) -> None:
    await put(ada, 'require "duplicate"; if duplicate :seconds 3600 { discard; }')
    first = raw_message("Hello", Message_ID="<a@example.com>")
    other = raw_message("By the list", Message_ID="<a@example.com>")
    for raw in (first, other, first):
        assert await hand(neighbour, raw) == [DONE]
    assert await folders(world, ada) == {"INBOX": ["Hello"]}
    clock.tick(hours=1)
    assert await hand(neighbour, other) == [DONE]
    assert await folders(world, ada) == {"INBOX": ["Hello", "By the list"]}


async def test_two_at_once_do_not_both_come_for_the_first_time(ada: Client, world: World) -> None:
    await put(ada, 'require "duplicate"; if duplicate { discard; }')
    house = Household(world)
    taken = [await house.accept(ada.address, "")]
    letters = [raw_message(f"Letter {nth}", Message_ID="<a@example.com>") for nth in range(4)]
    done = await asyncio.gather(
        *(house.deliver(raw, taken, "carol@example.com") for raw in letters)
    )
    assert not [one for outcomes in done for one in outcomes if isinstance(one, BaseException)]
    assert len((await folders(world, ada))["INBOX"]) == 1


async def test_scripts_include_each_other(
    ada: Client, bob: Client, world: World, neighbour: Neighbour
) -> None:
    await put(bob, "discard;", name="lists", activate=False)
    await put(ada, 'require "fileinto"; fileinto "Trash";', name="lists", activate=False)
    await put(ada, 'require "include"; include "lists";')
    assert await hand(neighbour, raw_message("Hello"), ada.address, bob.address) == [DONE, DONE]
    assert (await folders(world, ada), await folders(world, bob)) == (
        {"Trash": ["Hello"]},
        {"INBOX": ["Hello"]},
    )


async def test_a_script_that_fails_has_done_nothing_and_says_why(
    ada: Client, world: World, neighbour: Neighbour
) -> None:
    await put(
        ada,
        'require ["include", "copy"];\nredirect :copy "dave@example.com";\ninclude "gone";',
    )
    for number in range(3):
        assert await hand(neighbour, raw_message(f"Letter {number}")) == [DONE]
    assert await folders(world, ada) == {"INBOX": ["Letter 0", "Letter 1", "Letter 2"]}
    assert await queued(world) == []
    assert await error(world) == 'line 3, column 1: there is no script "gone" that compiles'
    told = await rows(world, "SELECT facts FROM changes WHERE kind = 'SIEVE_CHANGED'")
    assert sum("failed" in str(row[0]) for row in told) == 1


async def test_what_scripts_may_know(ada: Client, world: World, neighbour: Neighbour) -> None:
    await put(
        ada,
        'require ["environment", "mailbox", "envelope", "fileinto", "variables", "date"];\n'
        'if allof (environment "name" "Merganser", mailboxexists ["INBOX", "Trash"], '
        'not mailboxexists "Nowhere", envelope "to" "ada+x@example.org", '
        'envelope "from" "carol@example.com", currentdate "year" "2030") '
        '{ fileinto "Trash"; }',
    )
    assert await hand(neighbour, raw_message("Hello"), "ada+x@example.org") == [DONE]
    assert await folders(world, ada) == {"Trash": ["Hello"]}


async def test_many_scripts_are_looked_up_together(
    ada: Client, world: World, neighbour: Neighbour, statements: list[str], http: Any
) -> None:
    text = 'require ["fileinto", "vacation"]; if header "X-No" "1" { vacation "x"; } keep;'
    others = [await make_client(world, http, f"user{number}") for number in range(19)]
    for client in (ada, *others):
        await put(client, text)
    sought = ("FROM sieve_scripts", "FROM mailboxes JOIN users", "FROM addresses")

    async def cost(*to: str) -> list[int]:
        await hand(neighbour, raw_message("To warm"), *to)
        await neighbour.begin(*to)
        del statements[:]
        neighbour.send(raw_message(f"To {len(to)}") + b"\r\n.\r\n")
        assert [(await neighbour.hear())[: len(DONE)] for _ in to] == [DONE] * len(to)
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
    assert (await neighbour.hear()).startswith(DONE)
    assert not [each for each in statements if "sieve" in each]
