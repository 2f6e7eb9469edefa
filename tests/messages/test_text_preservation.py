"""Test that texts are stored unchanged, with all line breaks at the end."""

from typing import Any

import pytest

from mail.mime import body_html_parts, body_text, parse_structure
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail_servers.queue_worker import poll_until, relay_settings, run_queue_worker
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.message_sources import save_draft
from tests.support.run_scope import RUNS_ALL_TESTS

TEXT_STARTS = [
    "Hello",
    "Grüße 日本語",
    "x" * 500,
    "first\n\nsecond ",
    "tab\there",
    ".\n..",
    "From me\n.",
    "",
]
TEXT_ENDS = ["", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", " ", " \n", "\t"]
TEXTS = [word + end for word in TEXT_STARTS for end in TEXT_ENDS]
TEXT_INTERVAL = 4  # one of four texts in succession has each start and each end
BODY_QUERY = "query ($id: ID!) { message(by: {id: $id}) { text html } }"
MESSAGE_SEND = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  messages { id } errors { code path } } }"""
ATTACHMENT = {"content": "eA==", "filename": "x.bin"}


def texts_from(offset: int) -> list[str]:
    """Every fourth text from this offset, or all with `ALL_TESTS`."""
    return TEXTS if RUNS_ALL_TESTS else TEXTS[offset::TEXT_INTERVAL]


def with_lf_line_ends(text: str) -> str:
    """Return the text with the line ends of GraphQL responses."""
    return text.replace("\r\n", "\n")


def html_page(text: str) -> str:
    return f"<p>{text}</p>{text[len(text.rstrip()) :]}"


async def load_bodies(client: GraphQLClient, message_id: str) -> tuple[str, str]:
    message = (await client(BODY_QUERY, id=message_id))["message"]
    return message["text"], message["html"] or ""


@pytest.mark.parametrize(("files", "offset"), [([], 0), ([ATTACHMENT], 1)])
async def test_draft_body_is_unchanged(ada: GraphQLClient, files: list[Any], offset: int) -> None:
    for text in texts_from(offset):
        answer = await save_draft(ada, text=text, addAttachments=files)
        assert answer["errors"] == []
        assert (await load_bodies(ada, answer["message"]["id"]))[0] == with_lf_line_ends(text), (
            repr(text)
        )
        answer = await save_draft(ada, text=text, html=html_page(text), addAttachments=files)
        stored = await load_bodies(ada, answer["message"]["id"])
        assert stored == (with_lf_line_ends(text), with_lf_line_ends(html_page(text))), repr(text)
        patches: list[dict[str, Any]] = [
            {"subject": "x"},
            {"bcc": []},
            {"addAttachments": [ATTACHMENT]},
        ]
        for patch in patches:
            draft = {"id": answer["message"]["id"]}
            assert (await save_draft(ada, draft=draft, **patch))["errors"] == []
            assert await load_bodies(ada, draft["id"]) == stored, repr(text)
        answer = await save_draft(ada, html=html_page(text), addAttachments=files)
        assert (await load_bodies(ada, answer["message"]["id"]))[1] == with_lf_line_ends(
            html_page(text)
        ), repr(text)


@pytest.mark.parametrize(
    ("arguments", "offset"), [({}, 0), ({"html": True}, 1), ({"attachments": [ATTACHMENT]}, 2)]
)
async def test_sent_text_is_the_same_for_recipients_and_sent_copy(
    ada: GraphQLClient, environment: Environment, arguments: dict[str, Any], offset: int
) -> None:
    texts, copies = texts_from(offset), []
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        for nth, text in enumerate(texts):
            body_fields = (
                {**arguments, "html": html_page(text)} if "html" in arguments else arguments
            )
            to = [{"address": f"n{nth}@example.net"}]
            answer = (await ada(MESSAGE_SEND, input={"to": to, "text": text, **body_fields}))[
                "messageSend"
            ]
            assert answer["errors"] == []
            copies.append((await load_bodies(ada, answer["messages"][0]["id"]))[0])

        async def has_received_all() -> bool:
            return len(server.messages) == len(texts)

        await poll_until(has_received_all)
    raws = {
        received_mail.to[0].partition("@")[0]: received_mail.raw
        for received_mail in server.messages
    }
    assert copies == list(map(with_lf_line_ends, texts))
    for nth, text in enumerate(texts):
        raw = raws[f"n{nth}"]
        assert body_text(raw, parse_structure(raw)) == with_lf_line_ends(text), repr(text)
        if "html" in arguments:
            assert body_html_parts(raw, parse_structure(raw)) == [
                with_lf_line_ends(html_page(text))
            ], repr(text)


async def test_autoreply_and_script_texts_are_unchanged(ada: GraphQLClient) -> None:
    for text in ("Away", "Away\n", "Away\n\n", "Away\r\n", "Grüße "):
        autoreply = {"enabled": True, "text": text, "html": html_page(text)}
        answer = await execute_mutation(
            ada, "autoreplySet", "autoreplies { text html }", set=autoreply
        )
        assert answer["autoreplies"] == [{"text": text, "html": html_page(text)}]
        script = {"name": "main", "content": f"keep; # {text}"}
        answer = await execute_mutation(ada, "sieveScriptSet", "sieveScripts { content }", **script)
        assert answer["sieveScripts"] == [{"content": script["content"]}]


@pytest.mark.parametrize("text", ["Hi", "Hi\n", "Hi\r\n\r\n"])
async def test_received_text_keeps_its_line_breaks(ada: GraphQLClient, text: str) -> None:
    crlf_text = text.replace("\r\n", "\n").replace("\n", "\r\n").encode()
    part = b"--x\r\nContent-Type: text/plain\r\n\r\n" + crlf_text + b"\r\n--x--\r\n"
    raw = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + part
    inserted = await deliver_to(ada, raw)
    assert body_text(raw, parse_structure(raw)) == with_lf_line_ends(text)
    assert inserted.message_id
