"""Texts come back as they were given, with as many line breaks at the end."""

from typing import Any

import pytest

from mail.mime import body_html, body_text, parse_structure
from models.runtime.environment import Environment
from tests.conftest import Client, receive
from tests.support.accounts.user_operations import run
from tests.support.mail_servers.queue_worker import relay, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.message_sources import upload

WORDS = [
    "Hello",
    "Grüße 日本語",
    "x" * 500,
    "first\n\nsecond ",
    "tab\there",
    ".\n..",
    "From me\n.",
    "",
]
ENDS = ["", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", " ", " \n", "\t"]
TEXTS = [word + end for word in WORDS for end in ENDS]
BODY = "query ($id: ID!) { message(by: {id: $id}) { text html } }"
SEND = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  message { id } errors { code path } } }"""
FILE = {"content": "eA==", "filename": "x.bin"}


def plain(text: str) -> str:
    """The text with the line breaks that answers have."""
    return text.replace("\r\n", "\n")


def page(text: str) -> str:
    return f"<p>{text}</p>{text[len(text.rstrip()) :]}"


async def bodies(client: Client, key: str) -> tuple[str, str]:
    found = (await client(BODY, id=key))["message"]
    return found["text"], "".join(found["html"])


@pytest.mark.parametrize("files", [[], [FILE]])
async def test_the_body_of_a_draft_is_what_was_given(ada: Client, files: list[Any]) -> None:
    for text in TEXTS:
        done = await upload(ada, text=text, attachments=files)
        assert done["errors"] == []
        assert (await bodies(ada, done["message"]["id"]))[0] == plain(text), repr(text)
        done = await upload(ada, text=text, html=page(text), attachments=files)
        found = await bodies(ada, done["message"]["id"])
        assert found == (plain(text), plain(page(text))), repr(text)
        done = await upload(ada, html=page(text), attachments=files)
        assert (await bodies(ada, done["message"]["id"]))[1] == plain(page(text)), repr(text)


@pytest.mark.parametrize("given", [{}, {"html": True}, {"attachments": [FILE]}])
async def test_recipients_and_the_copy_in_sent_have_the_same_text(
    ada: Client, world: Environment, given: dict[str, Any]
) -> None:
    copies = []
    async with listening(Server()) as there, working(world, relay(there)):
        for nth, text in enumerate(TEXTS):
            more = {**given, "html": page(text)} if "html" in given else given
            to = [{"address": f"n{nth}@example.net"}]
            done = (await ada(SEND, input={"to": to, "text": text, **more}))["messageSend"]
            assert done["errors"] == []
            copies.append((await bodies(ada, done["message"]["id"]))[0])

        async def come() -> bool:
            return len(there.mails) == len(TEXTS)

        await until(come)
    raws = {mail.to[0].partition("@")[0]: mail.raw for mail in there.mails}
    assert copies == list(map(plain, TEXTS))
    for nth, text in enumerate(TEXTS):
        raw = raws[f"n{nth}"]
        assert body_text(raw, parse_structure(raw)) == plain(text), repr(text)
        if "html" in given:
            assert body_html(raw, parse_structure(raw)) == [plain(page(text))], repr(text)


async def test_other_texts_of_an_account_come_back_unchanged(ada: Client) -> None:
    for text in ("Away", "Away\n", "Away\n\n", "Away\r\n", "Grüße "):
        away = {"enabled": True, "text": text, "html": page(text)}
        done = await run(ada, "autoreplySet", "autoreplies { text html }", set=away)
        assert done["autoreplies"] == [{"text": text, "html": page(text)}]
        script = {"name": "main", "content": f"keep; # {text}"}
        done = await run(ada, "sieveScriptPut", "scripts { content }", **script)
        assert done["scripts"] == [{"content": script["content"]}]


@pytest.mark.parametrize("text", ["Hi", "Hi\n", "Hi\r\n\r\n"])
async def test_a_received_text_has_its_own_line_breaks(ada: Client, text: str) -> None:
    wire = text.replace("\r\n", "\n").replace("\n", "\r\n").encode()
    part = b"--x\r\nContent-Type: text/plain\r\n\r\n" + wire + b"\r\n--x--\r\n"
    raw = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + part
    placed = await receive(ada, raw)
    assert body_text(raw, parse_structure(raw)) == plain(text)
    assert placed.message_id
