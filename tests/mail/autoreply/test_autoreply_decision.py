"""What is answered by itself, and what never is: decided without a store."""

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
    decide_reply,
    normalized_sender,
)
from mail.compose.message_builder import MAX_SUBJECT_BYTES
from mail.mime import read_facts
from tests.conftest import raw_message

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AWAY = AutoreplyRule(enabled=True, text="I am away.", html="<p>I am away.</p>")


def came(raw: bytes | None = None, **more: Any) -> AutoreplyTrigger:
    """A message from carol to ada, with these facts beside it."""
    raw = raw or raw_message("Hello")
    read = read_facts(raw)
    header = mime.decoded_fields(raw, read.structure)
    return replace(
        AutoreplyTrigger.from_message(read, "carol@example.com", "ada@example.org", header), **more
    )


def of(rule: AutoreplyRule = AWAY, **more: Any) -> AutoreplyContent | NoReplyReason:
    return decide_reply(rule, came(**more), NOW)


def test_a_letter_of_a_person_is_answered() -> None:
    raw = raw_message("Lunch?", Message_ID="<b@x.example>", References="<a@x.example>")
    assert of(raw=raw) == AutoreplyContent(
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
def test_what_no_person_wrote_is_not_answered(fields: dict[str, str]) -> None:
    assert of(raw=raw_message("x", **fields)) is NoReplyReason.AUTOMATIC_MAIL


@pytest.mark.parametrize("fields", [
    {"List_Id": "<birds.example.com>"},
    {"List_Unsubscribe": "<mailto:x@example.com>"},
    {"List_Post": "NO"},
    {"list_help": "<https://example.com>"},
    {"Precedence": "bulk"},
    {"Precedence": "Junk"},
    {"PRECEDENCE": "list"},
])  # fmt: skip
def test_what_goes_to_many_is_not_answered(fields: dict[str, str]) -> None:
    assert of(raw=raw_message("x", **fields)) is NoReplyReason.LIST_MAIL


@pytest.mark.parametrize("value", ["OOF", "DR, RN, AutoReply", "All", "oof,dr"])
def test_who_asks_for_no_answer_has_none(value: str) -> None:
    raw = raw_message("x", X_Auto_Response_Suppress=value)
    assert of(raw=raw) is NoReplyReason.SUPPRESSED


@pytest.mark.parametrize("fields", [
    {"Auto_Submitted": "no"},
    {"Auto_Submitted": "No (a person)"},
    {"Precedence": "first-class"},
    {"X_Auto_Response_Suppress": "DR, RN, NRN"},
    {"X_Spam_Flag": "NO"},
    {"X_Spam_Status": "No, score=-1 tests=NONE"},
    {"X_List": "birds"},
])  # fmt: skip
def test_what_only_looks_so_is_answered(fields: dict[str, str]) -> None:
    assert isinstance(of(raw=raw_message("x", **fields)), AutoreplyContent)


@pytest.mark.parametrize("fields", [
    {"X_Spam_Flag": "YES"},
    {"X_Spam_Status": "Yes, score=15.3"},
    {"X_Spam": "Yes"},
])  # fmt: skip
def test_spam_is_not_answered(fields: dict[str, str]) -> None:
    assert of(raw=raw_message("x", **fields)) is NoReplyReason.SPAM


def test_what_was_found_to_be_spam_is_not_answered() -> None:
    assert of(is_spam=True) is NoReplyReason.SPAM


@pytest.mark.parametrize(
    "sender", ["", "carol", "@example.com", "a b@example.com", "x@" + "y" * 400]
)
def test_nobody_is_not_answered(sender: str) -> None:
    assert of(envelope_sender=sender) is NoReplyReason.NO_SENDER


@pytest.mark.parametrize("local", [
    "MAILER-DAEMON", "no-reply", "noreply", "No.Reply", "do-not-reply", "donotreply", "dont-reply",
    "news-noreply", "noreply-123", "noreply+abc", "owner-birds", "birds-owner", "birds-request",
    "birds-bounces", "birds-bounces+ada=example.org", "bounce", "bounces+77", "bounce-77=x",
    "listserv", "majordomo", "autoreply", "auto-responder",
])  # fmt: skip
def test_addresses_of_programs_are_not_answered(local: str) -> None:
    assert of(envelope_sender=f"{local}@example.com") is NoReplyReason.AUTOMATIC_SENDER


@pytest.mark.parametrize("local", ["carol", "reply", "norely", "requester", "bouncer", "browner"])
def test_addresses_of_people_are_answered(local: str) -> None:
    assert isinstance(of(envelope_sender=f"{local}@example.com"), AutoreplyContent)


def test_the_own_mail_is_not_answered() -> None:
    assert of(is_from_self=True) is NoReplyReason.OWN


def test_blind_copies_are_not_answered() -> None:
    assert of(is_addressed=False) is NoReplyReason.NOT_ADDRESSED


@pytest.mark.parametrize(
    ("rule", "silence"),
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
def test_a_rule_says_when_it_holds(rule: AutoreplyRule, silence: NoReplyReason) -> None:
    assert of(rule) is silence


@pytest.mark.parametrize("rule", [
    AutoreplyRule(enabled=True, text="x", starts_at=NOW, ends_at=NOW + timedelta(seconds=1)),
    AutoreplyRule(enabled=True, text="x", addresses=[7, 8]),
    AutoreplyRule(enabled=True, html="x"),
])  # fmt: skip
def test_at_its_time_and_for_its_addresses_it_answers(rule: AutoreplyRule) -> None:
    assert isinstance(of(rule, address_id=8), AutoreplyContent)


@pytest.mark.parametrize(("own", "original", "subject"), [
    ("Away", "Lunch?", "Away"),
    ("", "Lunch?", "Auto: Re: Lunch?"),
    ("", "Re: RE : Lunch?", "Auto: Re: Lunch?"),
    ("", "Resolved", "Auto: Re: Resolved"),
    ("", "", "Auto: Re:"),
    ("", "a\x07b\ud800c", "Auto: Re: a b c"),
])  # fmt: skip
def test_the_subject_is_the_own_or_made_of_the_original(
    own: str, original: str, subject: str
) -> None:
    reply = of(AutoreplyRule(enabled=True, text="x", subject=own), subject=original)
    assert isinstance(reply, AutoreplyContent)
    assert reply.subject == subject


@pytest.mark.parametrize(("internal", "said"), [
    ({}, ("out", "<p>out")),
    ({"internal_text": "in"}, ("in", "")),
    ({"internal_html": "<p>in"}, ("", "<p>in")),
    ({"internal_text": "in", "internal_html": ""}, ("in", "")),
])  # fmt: skip
def test_colleagues_hear_something_else_and_no_half_of_the_other(
    internal: dict[str, Any], said: tuple[str, str]
) -> None:
    rule = AutoreplyRule(enabled=True, text="out", html="<p>out", subject="S", **internal)
    inside, outside = of(rule, is_internal=True), of(rule)
    assert isinstance(inside, AutoreplyContent)
    assert isinstance(outside, AutoreplyContent)
    assert (inside.subject, inside.text, inside.html) == ("S", *said)
    assert (outside.text, outside.html) == ("out", "<p>out")


def test_only_colleagues_may_be_answered() -> None:
    rule = AutoreplyRule(enabled=True, internal_text="in", internal_subject="I", subject="S")
    inside = of(rule, is_internal=True)
    assert isinstance(inside, AutoreplyContent)
    assert inside.subject == "I"
    assert of(rule) is NoReplyReason.EMPTY


@pytest.mark.parametrize(("one", "other"), [
    ("Carol@Example.COM", "carol@example.com"),
    ("carol+shop@example.com", "carol@example.com"),
    ("carol@xn--bcher-kva.example", "carol@bücher.example"),
    ("prvs=1234abcdef=carol@example.com", "prvs=99fedcba98=carol@example.com"),
])  # fmt: skip
def test_a_sender_is_known_in_any_spelling(one: str, other: str) -> None:
    assert normalized_sender(one) == normalized_sender(other) is not None


def test_dots_make_another_sender_where_we_do_not_know_better() -> None:
    assert normalized_sender("c.arol@example.com") != normalized_sender("carol@example.com")


@given(st.text(), st.text(), st.text())
def test_whatever_comes_is_decided(sender: str, to: str, subject: str) -> None:
    said = decide_reply(AWAY, AutoreplyTrigger(sender, to, subject), NOW)
    if isinstance(said, AutoreplyContent):
        said.subject.encode()
        assert len(said.subject.encode()) < MAX_SUBJECT_BYTES


@given(st.binary(max_size=300))
def test_whatever_the_bytes_they_are_decided(raw: bytes) -> None:
    said = of(raw=raw)
    assert isinstance(said, AutoreplyContent | NoReplyReason)
