"""Decisions about automatic replies, without a database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail import mime
from mail.autoreply import (
    AutoreplyContent,
    AutoreplyRule,
    AutoreplyTrigger,
    NoReplyReason,
    autoreply_or_reason_for_none,
    sender_without_label_and_batv_tag,
)
from mail.compose.message_draft import MAX_SUBJECT_BYTES
from mail.mime import facts_from_message_bytes
from tests.conftest import raw_message

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AWAY_RULE = AutoreplyRule(enabled=True, text="I am away.", html="<p>I am away.</p>")


def trigger_from_message(raw: bytes | None = None, **changes: Any) -> AutoreplyTrigger:
    """A trigger of a message from Carol to Ada, with some attributes replaced."""
    raw = raw or raw_message("Hello")
    facts = facts_from_message_bytes(raw)
    header = mime.decoded_fields(raw, facts.structure)
    return replace(
        AutoreplyTrigger.from_message(facts, "carol@example.com", "ada@example.org", header),
        **changes,
    )


def decide(rule: AutoreplyRule = AWAY_RULE, **changes: Any) -> AutoreplyContent | NoReplyReason:
    return autoreply_or_reason_for_none(rule, trigger_from_message(**changes), NOW)


def test_message_of_a_person_is_answered() -> None:
    raw = raw_message("Lunch?", Message_ID="<b@x.example>", References="<a@x.example>")
    assert decide(raw=raw) == AutoreplyContent(
        "Auto: Re: Lunch?",
        "I am away.",
        "<p>I am away.</p>",
        "<b@x.example>",
        ["<a@x.example>", "<b@x.example>"],
    )


@pytest.mark.parametrize("fields", [
    {"Auto_Submitted": "auto-generated"},
    {"Auto_Submitted": "Auto-Replied (vacation)"},
    {"Auto_Submitted": "auto-notified; owner-email=x"},
    {"X_Autoreply": "yes"},
    {"X_Autorespond": "away"},
    {"MIME_Version": "1.0",
     "Content_Type": 'multipart/report; report-type=delivery-status; boundary="b"'},
])  # fmt: skip
def test_automatic_message_is_not_answered(fields: dict[str, str]) -> None:
    assert decide(raw=raw_message("x", **fields)) is NoReplyReason.AUTOMATIC_MAIL


@pytest.mark.parametrize("fields", [
    {"List_Id": "<birds.example.com>"},
    {"List_Unsubscribe": "<mailto:x@example.com>"},
    {"List_Post": "NO"},
    {"list_help": "<https://example.com>"},
    {"Precedence": "bulk"},
    {"Precedence": "Junk"},
    {"PRECEDENCE": "list"},
])  # fmt: skip
def test_list_message_is_not_answered(fields: dict[str, str]) -> None:
    assert decide(raw=raw_message("x", **fields)) is NoReplyReason.LIST_MAIL


@pytest.mark.parametrize("value", ["OOF", "DR, RN, AutoReply", "All", "oof,dr"])
def test_suppression_header_is_respected(value: str) -> None:
    raw = raw_message("x", X_Auto_Response_Suppress=value)
    assert decide(raw=raw) is NoReplyReason.SUPPRESSED


@pytest.mark.parametrize("fields", [
    {"Auto_Submitted": "no"},
    {"Auto_Submitted": "No (a person)"},
    {"Precedence": "first-class"},
    {"X_Auto_Response_Suppress": "DR, RN, NRN"},
    {"X_Spam_Flag": "NO"},
    {"X_Spam_Status": "No, score=-1 tests=NONE"},
    {"X_List": "birds"},
])  # fmt: skip
def test_similar_headers_do_not_prevent_a_reply(fields: dict[str, str]) -> None:
    assert isinstance(decide(raw=raw_message("x", **fields)), AutoreplyContent)


@pytest.mark.parametrize("fields", [
    {"X_Spam_Flag": "YES"},
    {"X_Spam_Status": "Yes, score=15.3"},
    {"X_Spam": "Yes"},
])  # fmt: skip
def test_message_with_spam_header_is_not_answered(fields: dict[str, str]) -> None:
    assert decide(raw=raw_message("x", **fields)) is NoReplyReason.SPAM


def test_message_judged_as_spam_is_not_answered() -> None:
    assert decide(is_spam=True) is NoReplyReason.SPAM


@pytest.mark.parametrize(
    "sender", ["", "carol", "@example.com", "a b@example.com", "x@" + "y" * 400]
)
def test_empty_or_invalid_sender_is_not_answered(sender: str) -> None:
    assert decide(envelope_sender=sender) is NoReplyReason.NO_SENDER


@pytest.mark.parametrize("local_part", [
    "MAILER-DAEMON", "no-reply", "noreply", "No.Reply", "do-not-reply", "donotreply", "dont-reply",
    "news-noreply", "noreply-123", "noreply+abc", "owner-birds", "birds-owner", "birds-request",
    "birds-bounces", "birds-bounces+ada=example.org", "bounce", "bounces+77", "bounce-77=x",
    "listserv", "majordomo", "autoreply", "auto-responder",
])  # fmt: skip
def test_automatic_sender_address_is_not_answered(local_part: str) -> None:
    assert decide(envelope_sender=f"{local_part}@example.com") is NoReplyReason.AUTOMATIC_SENDER


@pytest.mark.parametrize(
    "local_part", ["carol", "reply", "norely", "requester", "bouncer", "browner"]
)
def test_personal_sender_address_is_answered(local_part: str) -> None:
    assert isinstance(decide(envelope_sender=f"{local_part}@example.com"), AutoreplyContent)


def test_own_message_is_not_answered() -> None:
    assert decide(is_from_self=True) is NoReplyReason.OWN


def test_blind_copy_is_not_answered() -> None:
    assert decide(is_addressed=False) is NoReplyReason.NOT_ADDRESSED


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (AutoreplyRule(text="x"), NoReplyReason.OFF),
        (
            AutoreplyRule(enabled=True, text="x", starts_at=NOW + timedelta(seconds=1)),
            NoReplyReason.NOT_NOW,
        ),
        (AutoreplyRule(enabled=True, text="x", ends_at=NOW), NoReplyReason.NOT_NOW),
        (AutoreplyRule(enabled=True), NoReplyReason.EMPTY),
        (AutoreplyRule(enabled=True, text=" \n"), NoReplyReason.EMPTY),
        (AutoreplyRule(enabled=True, text="x", addresses=[7]), NoReplyReason.OTHER_ADDRESS),
    ],
)
def test_inapplicable_rule_returns_its_reason(rule: AutoreplyRule, reason: NoReplyReason) -> None:
    assert decide(rule) is reason


@pytest.mark.parametrize("rule", [
    AutoreplyRule(enabled=True, text="x", starts_at=NOW, ends_at=NOW + timedelta(seconds=1)),
    AutoreplyRule(enabled=True, text="x", addresses=[7, 8]),
    AutoreplyRule(enabled=True, html="x"),
])  # fmt: skip
def test_rule_answers_within_its_time_and_for_its_addresses(rule: AutoreplyRule) -> None:
    assert isinstance(decide(rule, address_id=8), AutoreplyContent)


@pytest.mark.parametrize(("rule_subject", "message_subject", "expected"), [
    ("Away", "Lunch?", "Away"),
    ("", "Lunch?", "Auto: Re: Lunch?"),
    ("", "Re: RE : Lunch?", "Auto: Re: Lunch?"),
    ("", "Resolved", "Auto: Re: Resolved"),
    ("", "", "Auto: Re:"),
    ("", "a\x07b\ud800c", "Auto: Re: a b c"),
])  # fmt: skip
def test_reply_subject_is_of_the_rule_or_of_the_message(
    rule_subject: str, message_subject: str, expected: str
) -> None:
    reply = decide(
        AutoreplyRule(enabled=True, text="x", subject=rule_subject), subject=message_subject
    )
    assert isinstance(reply, AutoreplyContent)
    assert reply.subject == expected


@pytest.mark.parametrize(("internal_content", "expected"), [
    ({}, ("out", "<p>out")),
    ({"internal_text": "in"}, ("in", "")),
    ({"internal_html": "<p>in"}, ("", "<p>in")),
    ({"internal_text": "in", "internal_html": ""}, ("in", "")),
])  # fmt: skip
def test_internal_sender_gets_only_the_internal_content(
    internal_content: dict[str, Any], expected: tuple[str, str]
) -> None:
    rule = AutoreplyRule(enabled=True, text="out", html="<p>out", subject="S", **internal_content)
    internal_reply, external_reply = decide(rule, is_internal=True), decide(rule)
    assert isinstance(internal_reply, AutoreplyContent)
    assert isinstance(external_reply, AutoreplyContent)
    assert (internal_reply.subject, internal_reply.text, internal_reply.html) == ("S", *expected)
    assert (external_reply.text, external_reply.html) == ("out", "<p>out")


def test_rule_with_only_internal_content_answers_no_external_sender() -> None:
    rule = AutoreplyRule(enabled=True, internal_text="in", internal_subject="I", subject="S")
    internal_reply = decide(rule, is_internal=True)
    assert isinstance(internal_reply, AutoreplyContent)
    assert internal_reply.subject == "I"
    assert decide(rule) is NoReplyReason.EMPTY


@pytest.mark.parametrize(("first", "second"), [
    ("Carol@Example.COM", "carol@example.com"),
    ("carol+shop@example.com", "carol@example.com"),
    ("carol@xn--bcher-kva.example", "carol@bücher.example"),
    ("prvs=1234abcdef=carol@example.com", "prvs=99fedcba98=carol@example.com"),
])  # fmt: skip
def test_sender_spellings_normalize_to_the_same_address(first: str, second: str) -> None:
    assert (
        sender_without_label_and_batv_tag(first)
        == sender_without_label_and_batv_tag(second)
        is not None
    )


def test_dots_are_significant_in_foreign_addresses() -> None:
    assert sender_without_label_and_batv_tag(
        "c.arol@example.com"
    ) != sender_without_label_and_batv_tag("carol@example.com")


@given(st.text(), st.text(), st.text())
def test_any_sender_and_subject_are_decided(sender: str, to: str, subject: str) -> None:
    decision = autoreply_or_reason_for_none(AWAY_RULE, AutoreplyTrigger(sender, to, subject), NOW)
    if isinstance(decision, AutoreplyContent):
        decision.subject.encode()
        assert len(decision.subject.encode()) < MAX_SUBJECT_BYTES


@given(st.binary(max_size=300))
def test_any_message_bytes_are_decided(raw: bytes) -> None:
    decision = decide(raw=raw)
    assert isinstance(decision, AutoreplyContent | NoReplyReason)
