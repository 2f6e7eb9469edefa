"""Lists of messages, what narrows them, and what is in one."""

import base64
from typing import Any

import pytest

from graph.types import global_ids
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.mailboxes.loaders import MailboxSelector, NewMailboxes, create_mailboxes
from resolvers.messages import upload
from resolvers.messages.upload import NewMessage
from tests.conftest import Client, Clock, context, make_client, make_key, raw_message, receive
from tests.support.mail import multipart_message
from tests.support.operations.message_pages import PAGE, found, page, subjects
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("counted")


# pages


async def test_pages_meet_both_ways_while_mail_arrives(ada: Client, clock: Clock) -> None:
    for n in range(7):
        await receive(ada, str(n))
        clock.tick(seconds=n % 2)  # two each arrive at the same instant
    seen, at = "", {"hasNextPage": True, "endCursor": None}
    while at["hasNextPage"]:
        answer = await page(ada, first=2, after=at["endCursor"])
        seen, at = seen + subjects(answer), answer["pageInfo"]
        clock.tick(seconds=1)
        await receive(ada, "new" + seen)
    assert seen == "6543210"
    last = await page(ada, last=3)
    info = last["pageInfo"]
    assert (subjects(last), info["hasPreviousPage"], info["hasNextPage"]) == ("210", True, False)
    assert subjects(await page(ada, last=3, before=info["startCursor"])) == "543"
    rising = await page(ada, first=3, orderBy="RECEIVED_ASC")
    assert subjects(rising) == "012"
    after = rising["pageInfo"]["endCursor"]
    assert subjects(await page(ada, first=2, after=after, orderBy="RECEIVED_ASC")) == "34"
    assert subjects(await page(ada, last=2, before=after, orderBy="RECEIVED_ASC")) == "01"
    assert (await page(ada, first=0))["nodes"] == []


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        ({"first": 251}, "BAD_PAGINATION"),
        ({"first": 1, "last": 1}, "BAD_PAGINATION"),
        ({"last": 1, "after": "x"}, "BAD_PAGINATION"),
        ({"first": 1, "after": "bm9uc2Vuc2U"}, "BAD_CURSOR"),
        ({"first": 1, "after": "mine", "filter": {"seen": True}}, "BAD_CURSOR"),
        ({"first": 1, "after": "mine", "orderBy": "RECEIVED_ASC"}, "BAD_CURSOR"),
    ],
)
async def test_a_page_that_is_none_says_so_in_a_code(
    ada: Client, ask: dict[str, Any], code: str
) -> None:
    await receive(ada)
    mine = (await page(ada))["pageInfo"]["endCursor"]
    answer = await ada.raw(PAGE, **{k: mine if v == "mine" else v for k, v in ask.items()})
    assert answer["errors"][0]["extensions"] == {"code": code}


async def test_a_moving_bound_keeps_its_cursors(ada: Client, clock: Clock) -> None:
    for n in range(3):
        await receive(ada, str(n))
        clock.tick(seconds=1)
    condition = {"receivedSince": {"ago": "P1D"}}
    first = await page(ada, first=2, filter=condition or None)
    clock.tick(seconds=1)
    rest = await page(ada, first=2, filter=condition, after=first["pageInfo"]["endCursor"])
    assert subjects(first) + subjects(rest) == "210"


async def test_the_count_of_a_folder_is_its_counter(ada: Client, statements: list[str]) -> None:
    for n in range(3):
        await receive(ada, str(n))
    del statements[:]
    document = "{ viewer { user { mailboxes { messages(first: 0) { totalCount } } } } }"
    boxes = (await ada(document))["viewer"]["user"]["mailboxes"]
    assert [box["messages"]["totalCount"] for box in boxes] == [3, 0, 0, 0, 0]
    assert not any("count(" in statement for statement in statements)


async def test_a_list_reads_the_columns_asked_for(ada: Client, statements: list[str]) -> None:
    await receive(ada)
    del statements[:]
    await ada("{ viewer { user { messages { nodes { subject } } } } }")
    (read,) = [sent for sent in statements if "FROM messages" in sent]
    assert "messages.subject" in read
    assert "from_address" not in read
    assert "structure" not in read


async def test_two_pages_of_one_folder_in_one_query(ada: Client, clock: Clock) -> None:
    for n in range(5):
        clock.tick(seconds=1)
        await receive(ada, str(n))
    both = await ada(
        """{ viewer { user { mailbox(by: {specialUse: INBOX}) {
            a: messages(first: 1) { edges { node { subject } } }
            b: messages(last: 2) { nodes { subject seen } }
            c: messages(first: 2, orderBy: RECEIVED_ASC) { nodes { subject } } } } } }"""
    )
    box = both["viewer"]["user"]["mailbox"]
    assert [edge["node"]["subject"] for edge in box["a"]["edges"]] == ["4"]
    assert (subjects(box["b"]), subjects(box["c"])) == ("10", "01")


# links


MANY = """{ viewer { user { mailboxes { path user { username } parent { path }
  messages(first: 5) { totalCount nodes { subject flags attachments { filename }
    mailbox { path } user { username }
    thread { subject messageCount unseenCount lastReceivedAt participants { address }
      mailboxes { path } messages(first: 3) { totalCount nodes { subject mailbox { path } } } } } }
  unseen: messages(filter: {seen: false, subject: "e"}) {
    totalCount nodes { subject text } } } } } }"""


async def test_a_list_costs_the_same_however_long(ada: Client, statements: list[str]) -> None:
    async def cost() -> int:
        del statements[:]
        await ada(MANY)
        return len([sent for sent in statements if "api_keys" not in sent])

    async def put(path: str, many: int) -> None:
        for n in range(many):
            raw = raw_message(f"{path} {n} e", body=str(n)).decode()
            await upload.store_message(
                context(ada), NewMessage(MailboxSelector(path=path), raw, is_seen=False)
            )

    await create_mailboxes(context(ada), NewMailboxes(["Box/in it"]))
    await put("Box", 1)
    one = await cost()
    await create_mailboxes(context(ada), NewMailboxes([f"Box/{n}" for n in range(20)]))
    for n in range(20):
        await put(f"Box/{n}", 1)
    await put("Box", 19)
    assert await cost() == one


async def test_another_users_mail_looks_like_none(ada: Client, bob: Client) -> None:
    key = (await receive(ada)).message_id
    ((thread, uid, box),) = await rows(
        ada.world, "SELECT thread_id, uid, mailbox_id FROM messages WHERE id = :key", key=key
    )
    document = """query ($ref: MessageRef!, $id: ID!, $thread: ID!) {
        message(by: $ref) { subject } node(id: $id) { id } thread(id: $thread) { subject } }"""
    message, its = global_ids.encode("Message", key), global_ids.encode("Thread", thread)
    refs: list[dict[str, Any]] = [
        {"id": message},
        {"guid": f"{key:032X}"},
        {"uid": {"mailbox": {"id": global_ids.encode("Mailbox", box)}, "uid": uid}},
    ]
    for ref in refs:
        given_ = {"ref": ref, "id": message, "thread": its}
        mine = await ada(document, **given_)
        assert (mine["message"], mine["thread"]) == ({"subject": "Hello"}, {"subject": "Hello"})
        seen = await bob(document, **given_)
        assert seen == {"message": None, "node": None, "thread": None}


@pytest.mark.parametrize(
    "ref",
    [
        {"guid": "0" * 31 + "7"},
        {"guid": "f" * 32},
        {"uid": {"mailbox": {"path": "INBOX"}, "uid": 99}},
        {"uid": {"mailbox": {"path": "INBOX"}, "uid": -1}},
        {"uid": {"mailbox": {"path": "Nowhere"}, "uid": 1}},
    ],
)
async def test_a_message_that_is_not_there_is_null(ada: Client, ref: dict[str, Any]) -> None:
    document = "query ($ref: MessageRef!) { message(by: $ref) { subject } }"
    assert await ada(document, ref=ref) == {"message": None}


@pytest.mark.parametrize("wrong", [{"guid": "x"}, {"guid": "g" * 32}, {"id": "msg_nonsense"}])
async def test_a_made_up_reference_is_refused(ada: Client, wrong: dict[str, Any]) -> None:
    answer = await ada.raw("query ($ref: MessageRef!) { message(by: $ref) { id } }", ref=wrong)
    assert answer["errors"][0]["extensions"] == {"code": "BAD_ID"}


async def test_several_objects_come_in_the_order_asked_for(
    ada: Client, statements: list[str]
) -> None:
    keys = [(await receive(ada, str(n))).message_id for n in range(3)]
    asked = [global_ids.encode("Message", key) for key in (keys[2], 7, keys[0], keys[2])]
    asked.insert(1, global_ids.encode("Mailbox", (await ada.box()).id))
    document = """query ($ids: [ID!]!) { nodes(ids: $ids) { __typename
        ... on Message { subject } ... on Mailbox { path } } }"""
    del statements[:]
    assert (await ada(document, ids=asked))["nodes"] == [
        {"__typename": "Message", "subject": "2"},
        {"__typename": "Mailbox", "path": "INBOX"},
        None,
        {"__typename": "Message", "subject": "0"},
        {"__typename": "Message", "subject": "2"},
    ]
    assert len([sent for sent in statements if "api_keys" not in sent]) == 2


# one message


SEEN = "query ($id: ID!) { message(by: {id: $id}, markAsSeen: true) { seen flags modseq } }"


async def test_reading_marks_as_seen_only_when_asked(ada: Client) -> None:
    placed = await receive(ada)
    key = global_ids.encode("Message", placed.message_id)
    plain = await ada("query ($id: ID!) { message(by: {id: $id}) { seen text } }", id=key)
    assert plain["message"]["seen"] is False
    for _ in range(2):
        read = (await ada(SEEN, id=key))["message"]
        assert read == {"seen": True, "flags": ["\\Seen"], "modseq": placed.modseq + 1}
    assert (await ada.box()).unseen == 0


async def test_a_credential_for_reading_marks_nothing(ada: Client, world: Environment) -> None:
    key = global_ids.encode("Message", (await receive(ada)).message_id)
    for name, more in (
        ("only", {"read_only": True, "scopes": [Scope.MASTER]}),
        ("scope", {"scopes": [Scope.MAIL_READ]}),
    ):
        secret = await make_key(world, name, user_id=ada.user.id, role=Role.USER, **more)
        answer = await Client(ada.http, world, ada.user, secret).raw(SEEN, id=key)
        assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
    assert (await ada.box()).unseen == 1


WHOLE = """query ($id: ID!) { message(by: {id: $id}) {
  text html headersText header(name: "x-twice") headers { key value }
  source(maxBytes: 16777216) bodyPart(section: "HEADER") contentType { value params }
  structure { section contentType { value } parts { section contentType { value } filename
    parts { section contentType { value } } } }
  hasAttachments attachmentCount attachments { filename contentType size sizeKb part related cid }
  from { name address } to { name address } size intro list { listId }
  envelope { from rcpt { value } }
  sourceUrl encrypted metaData guid } }"""


async def test_all_there_is_in_a_message(ada: Client) -> None:
    placed = await receive(ada, multipart_message.RICH)
    message = (await ada(WHOLE, id=global_ids.encode("Message", placed.message_id)))["message"]
    assert message["text"] == multipart_message.TEXT
    (html,) = message["html"]
    assert "evil" not in html
    assert "far.example" not in html
    assert message["header"] == ["one", "zwölf"]
    assert message["headersText"] == message["bodyPart"]
    assert base64.b64decode(message["source"]) == multipart_message.RICH
    assert message["contentType"] == {
        "value": "multipart/mixed", "params": {"boundary": "out"},
    }  # fmt: skip
    parts = message["structure"]["parts"]
    assert [part["section"] for part in parts] == [str(n) for n in range(1, 10)]
    assert [part["contentType"]["value"] for part in parts[0]["parts"]] == [
        "text/plain", "text/html",
    ]  # fmt: skip
    assert message["attachmentCount"] == len(message["attachments"]) == 8
    large = message["attachments"][0]
    assert (large["filename"], large["size"], large["sizeKb"]) == ("large.pdf", 3 << 20, 3072)
    assert message["from"] == {"name": "Carol", "address": "carol@example.com"}
    assert (message["size"], message["list"]) == (len(multipart_message.RICH), None)
    rcpt = [{"value": "ada@example.org"}]
    assert message["envelope"] == {"from": "carol@example.com", "rcpt": rcpt}
    assert message["guid"] == f"{placed.message_id:032x}"


async def test_mail_of_two_accounts_is_never_mixed(
    ada: Client, world: Environment, clock: Clock
) -> None:
    dora = await make_client(world, ada.http, "dora")
    for n in range(3):
        await receive(ada, f"ada {n}")
        await receive(dora, f"dora {n}")
        clock.tick(seconds=1)
    assert await found(ada) == ["ada 0", "ada 1", "ada 2"]
    assert await found(dora, query="dora") == ["dora 0", "dora 1", "dora 2"]
    assert await found(ada, **{"or": [{"query": "dora"}, {"subject": "dora"}]}) == []
    mailbox = {"id": global_ids.encode("Mailbox", (await dora.box()).id)}
    assert await found(ada, mailbox=mailbox) == []
    assert await found(ada, mailbox=mailbox, uids="1:*") == []


async def test_the_envelope_has_recipients_as_given_and_as_compared(ada: Client) -> None:
    letter = await received_messages.read_message(raw_message("Pond news"))
    to = await address_resolution.load_recipient(ada.world, "A.da+news@Example.org")
    placed = await received_messages.store_for_recipient(ada.world, letter, to, "carol@example.com")
    key = global_ids.encode("Message", placed.message_id)
    document = """query ($id: ID!) { message(by: {id: $id}) {
        envelope { from rcpt { value formatted } } } }"""
    assert (await ada(document, id=key))["message"]["envelope"] == {
        "from": "carol@example.com",
        "rcpt": [{"value": "A.da+news@Example.org", "formatted": "ada@example.org"}],
    }
