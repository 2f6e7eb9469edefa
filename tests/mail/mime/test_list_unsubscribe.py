"""URLs of List-Unsubscribe (RFC 2369) and one-click unsubscription (RFC 8058)."""

from typing import Any

import pytest

from graph.messages.envelope_types import mailing_list_from_json_or_none
from mail.mime import facts_from_message_bytes
from mail.storage.message_columns import content_and_reset_state_columns
from mail.storage.received_messages import parse_storable_message

URL = "https://list.example/leave"
POST_FIELD = b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
PASSED = "mx.example.org; dkim=pass header.d=list.example header.s=s1"


def message(value: str, *, is_one_click: bool = False, signature: str = "") -> bytes:
    header = f"List-Unsubscribe: {value}\r\n".encode()
    if signature:
        header += f"DKIM-Signature: {signature}\r\n".encode()
    return header + (POST_FIELD if is_one_click else b"") + b"Subject: x\r\n\r\nx\r\n"


async def is_one_click(raw: bytes, results: str | None) -> bool:
    stored: dict[str, Any] = content_and_reset_state_columns(await parse_storable_message(raw))
    authentication = None if results is None else {"results": results}
    shown = mailing_list_from_json_or_none(stored["mailing_list"], authentication)
    assert shown is not None
    return shown.unsubscribe_one_click


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("<mailto:u@list.example?subject=leave>,\t\r\n\t<https://list.example/leave?user=robin&\r\n"
         " list=news>", "https://list.example/leave?user=robin&list=news"),
        ("<mailto:u@list.example?body=https://elsewhere.example/x>, <https://list.example/leave>",
         URL),
        ("<http://list.example/leave>", "http://list.example/leave"),
        ("https://list.example/leave, mailto:u@list.example", URL),
        ("<u@list.example>, (comment) <https://list.example/a,b>", "https://list.example/a,b"),
        ("(see <https://other.example>) <HTTPS://list.example/leave>",
         "HTTPS://list.example/leave"),
        ("<http://list.example/a>, <https://list.example/b>", "http://list.example/a"),
        ("<mailto:u@list.example>", None),
        ("<https:/list.example>", None),
        ("", None),
    ],
)  # fmt: skip
def test_url_is_read_from_angle_brackets(value: str, url: str | None) -> None:
    facts = facts_from_message_bytes(message(value))
    assert (facts.list_unsubscribe_url, facts.one_click) == (url, False)


def test_one_click_prefers_the_https_url() -> None:
    raw = message(f"<http://list.example/a>, <{URL}>", is_one_click=True)
    facts = facts_from_message_bytes(raw)
    assert (facts.list_unsubscribe_url, facts.one_click) == (URL, True)
    facts = facts_from_message_bytes(message("<http://list.example/a>", is_one_click=True))
    assert (facts.list_unsubscribe_url, facts.one_click) == ("http://list.example/a", False)


@pytest.mark.parametrize(
    ("signed_fields", "results", "expected"),
    [
        ("From:List-Unsubscribe:List-Unsubscribe-Post", PASSED, True),
        ("from : list-unsubscribe :\r\n list-unsubscribe-post", PASSED, True),
        ("From:List-Unsubscribe", PASSED, False),
        ("From:List-Unsubscribe:List-Unsubscribe-Post", PASSED.replace("pass", "fail"), False),
        ("From:List-Unsubscribe:List-Unsubscribe-Post", PASSED.replace("s1", "s2"), False),
        ("From:List-Unsubscribe:List-Unsubscribe-Post",
         PASSED.replace("d=list.", "d=other."), False),
        ("From:List-Unsubscribe:List-Unsubscribe-Post", None, False),
    ],
)  # fmt: skip
async def test_one_click_needs_a_valid_signature_of_both_fields(
    signed_fields: str, results: str | None, *, expected: bool
) -> None:
    signature = f"v=1; a=rsa-sha256; d=List.example; s=s1;\r\n h={signed_fields}; bh=x; b=y"
    raw = message(f"<{URL}>", is_one_click=True, signature=signature)
    assert await is_one_click(raw, results) is expected


def test_one_click_of_messages_without_stored_signers() -> None:
    stored = {"id": None, "unsubscribe": f"<{URL}>", "url": URL, "one_click": True}
    for mailing_list, results, expected in (
        (stored, PASSED, True),
        (stored, "mx.example.org; dkim=none", False),
        ({**stored, "url": "http://list.example/a"}, PASSED, False),
    ):
        shown = mailing_list_from_json_or_none(mailing_list, {"results": results})
        assert shown is not None
        assert shown.unsubscribe_one_click is expected
