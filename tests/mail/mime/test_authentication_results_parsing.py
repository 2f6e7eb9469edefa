"""Authentication-Results are trusted only if no other server can have written them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.mime import facts_from_message_bytes, results_of_trusted_servers_or_none
from mail.mime.authentication_results import method_verdict_or_none

OUR_FIELD = "Authentication-Results: mx.example.org;\r\n\t"
BORDER_RECEIVED = (
    "Received: from far.example by mx.example.org; Tue, 01 Jan 2030 10:00:00 +0000\r\n"
)
INNER_RECEIVED = (
    "Received: from mx.example.org by store.example.org; Tue, 01 Jan 2030 10:00:01 +0000\r\n"
)
REMOTE_RECEIVED = "Received: from laptop by far.example; Tue, 01 Jan 2030 09:59:00 +0000\r\n"
DMARC_RESULT = "dmarc=pass header.from=bank.example\r\n"
MESSAGE_END = "From: a@news.bank.example\r\nSubject: x\r\n\r\nHi\r\n"


def parse_trusted_results(
    header: str, *, hops: int = 1, ids: tuple[str, ...] = ("mx.example.org",)
) -> Any:
    facts = facts_from_message_bytes((header + MESSAGE_END).encode())
    return results_of_trusted_servers_or_none(
        facts.authentication_results, ids, hops, facts.from_[0].address.partition("@")[2]
    )


def test_results_of_border_server_are_returned() -> None:
    text = (
        "spf=pass (ok; really) smtp.mailfrom=bounce@Mail.Bank.example;\r\n"
        "\tdkim=fail header.d=evil.example;\r\n"
        '\tdkim=pass reason="2048; bits" header.d=esp.example header.s=x;\r\n'
        "\tdkim = pass header.i=@bank.example; dmarc=pass (p=reject) header.from=bank.example;\r\n"
        "\tarc=none\r\n"
    )
    parsed = parse_trusted_results(OUR_FIELD + text + BORDER_RECEIVED + REMOTE_RECEIVED)
    results = parsed.pop("results")
    assert results.startswith("mx.example.org;")
    assert "header.i=@bank.example" in results
    assert parsed == {
        "spf": "mail.bank.example",
        "dkim": "bank.example",
        "dmarc": "pass",
        "arc": "none",
    }


def test_topmost_of_several_fields_has_precedence() -> None:
    header = (
        OUR_FIELD
        + "dmarc=fail\r\n"
        + OUR_FIELD
        + "dkim=pass header.d=x.example; dmarc=pass\r\n"
        + BORDER_RECEIVED
    )
    parsed = parse_trusted_results(header)
    assert (parsed["dkim"], parsed["dmarc"]) == ("x.example", "fail")
    assert parsed["results"].count("\n") == 1


@pytest.mark.parametrize(
    "header",
    [
        BORDER_RECEIVED
        + OUR_FIELD
        + DMARC_RESULT,  # below the border: the sender can have written it
        BORDER_RECEIVED + REMOTE_RECEIVED + OUR_FIELD + DMARC_RESULT,
        OUR_FIELD + DMARC_RESULT,  # no Received field of the border server
        "Authentication-Results: mx.far.example; " + DMARC_RESULT + BORDER_RECEIVED,
        "Authentication-Results: MX.example.org.evil.example; " + DMARC_RESULT + BORDER_RECEIVED,
        'Authentication-Results: (mx.example.org;) evil.example; "mx.example.org"; '
        + DMARC_RESULT
        + BORDER_RECEIVED,
        "X-Authentication-Results: mx.example.org; " + DMARC_RESULT + BORDER_RECEIVED,
        "ARC-Authentication-Results: i=1; mx.example.org; " + DMARC_RESULT + BORDER_RECEIVED,
        "Subject: x\r\n x\r\n" + BORDER_RECEIVED,
    ],
)
def test_forgeable_field_is_not_trusted(header: str) -> None:
    assert parse_trusted_results(header) is None


def test_only_configured_authserv_id_is_trusted() -> None:
    assert parse_trusted_results(OUR_FIELD + DMARC_RESULT + BORDER_RECEIVED, ids=()) is None
    assert (
        parse_trusted_results(OUR_FIELD + DMARC_RESULT + BORDER_RECEIVED, ids=("MX.EXAMPLE.org",))[
            "dmarc"
        ]
        == "pass"
    )


def test_border_server_can_be_several_hops_away() -> None:
    header = INNER_RECEIVED + OUR_FIELD + DMARC_RESULT + BORDER_RECEIVED
    assert parse_trusted_results(header) is None
    assert parse_trusted_results(header, hops=2)["dmarc"] == "pass"
    assert (
        parse_trusted_results(
            INNER_RECEIVED + BORDER_RECEIVED + OUR_FIELD + DMARC_RESULT + REMOTE_RECEIVED, hops=2
        )
        is None
    )
    # The message has one hop only.
    assert parse_trusted_results(OUR_FIELD + DMARC_RESULT + BORDER_RECEIVED, hops=2) is None


@pytest.mark.parametrize(
    ("results_text", "expected"),
    [
        ("none", (None, None, None, None)),
        ("spf=softfail smtp.mailfrom=x.example; dmarc=temperror", (None, None, None, None)),
        ("spf=pass smtp.helo=mta.example", ("mta.example", None, None, None)),
        ("spf=pass smtp.mailfrom=a=b@x.example", ("x.example", None, None, None)),
        ('spf=pass smtp.mailfrom="a;dmarc=pass b"@x.example', ("x.example", None, None, None)),
        ("spf=pass (a (n; dmarc=pass) 1\\)) smtp.helo=x.example", ("x.example", None, None, None)),
        ("dkim=pass header.d=<script>", (None, None, None, None)),
        ("DKIM=PASS header.D=X.example; DMARC=Fail", (None, "x.example", "fail", None)),
        ("dkim/1=pass header.d=x.example", (None, "x.example", None, None)),
        ("(never closed; dmarc=pass", (None, None, None, None)),
        ("iprev=pass policy.iprev=192.0.2.1; =; ;; x", (None, None, None, None)),
    ],
)  # fmt: skip
def test_field_syntax_is_parsed(results_text: str, expected: tuple[str | None, ...]) -> None:
    parsed = parse_trusted_results(f"{OUR_FIELD}{results_text}\r\n{BORDER_RECEIVED}")
    assert tuple(parsed[name] for name in ("spf", "dkim", "dmarc", "arc")) == expected


FIELD_FRAGMENTS = [
    "mx.example.org",
    ";",
    "=",
    "(",
    ")",
    '"',
    "\\",
    " ",
    "dkim",
    "pass",
    "header.d",
    "é",
    "@",
]


@given(st.lists(st.sampled_from(FIELD_FRAGMENTS), max_size=60).map("".join))
@settings(max_examples=500)
def test_random_field_does_not_raise(text: str) -> None:
    parse_trusted_results(f"Authentication-Results: {text}\r\n{BORDER_RECEIVED}")


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_comment_with_line_separator_is_no_second_field(separator: str) -> None:
    text = f"mx.example.org; spf=fail (sender x{separator}y; dkim=pass header.d=b.example ;) x=y"
    verdict = method_verdict_or_none(text, "dkim")
    assert verdict is None or verdict.result.value != "PASS"


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ('"good.example"evil.example', "good.example"),
        ('good.example"evil.example"', "good.example"),
        ("good.example(x)evil.example", "good.example"),
        ('"a b"@good.example', "good.example"),
    ],
)
def test_domain_is_not_joined_from_several_tokens(value: str, domain: str) -> None:
    verdict = method_verdict_or_none(f"mx.example.org; spf=pass smtp.mailfrom={value}", "spf")
    assert verdict
    assert verdict.domain == domain
