"""What servers found out is believed where nobody else can have written it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.mime import read_facts, trusted_results

OURS = "Authentication-Results: mx.example.org;\r\n\t"
BORDER = "Received: from far.example by mx.example.org; Tue, 01 Jan 2030 10:00:00 +0000\r\n"
INNER = "Received: from mx.example.org by store.example.org; Tue, 01 Jan 2030 10:00:01 +0000\r\n"
FAR = "Received: from laptop by far.example; Tue, 01 Jan 2030 09:59:00 +0000\r\n"
FINE = "dmarc=pass header.from=bank.example\r\n"
REST = "From: a@news.bank.example\r\nSubject: x\r\n\r\nHi\r\n"


def verdict(head: str, *, hops: int = 1, ids: tuple[str, ...] = ("mx.example.org",)) -> Any:
    found = read_facts((head + REST).encode())
    return trusted_results(
        found.authentication_results, ids, hops, found.from_[0].address.partition("@")[2]
    )


def test_what_the_border_found_out_is_told() -> None:
    text = (
        "spf=pass (ok; really) smtp.mailfrom=bounce@Mail.Bank.example;\r\n"
        "\tdkim=fail header.d=evil.example;\r\n"
        '\tdkim=pass reason="2048; bits" header.d=esp.example header.s=x;\r\n'
        "\tdkim = pass header.i=@bank.example; dmarc=pass (p=reject) header.from=bank.example;\r\n"
        "\tarc=none\r\n"
    )
    found = verdict(OURS + text + BORDER + FAR)
    results = found.pop("results")
    assert results.startswith("mx.example.org;")
    assert "header.i=@bank.example" in results
    assert found == {
        "spf": "mail.bank.example",
        "dkim": "bank.example",
        "dmarc": "pass",
        "arc": "none",
    }


def test_several_fields_are_read_as_one_and_the_topmost_counts() -> None:
    head = OURS + "dmarc=fail\r\n" + OURS + "dkim=pass header.d=x.example; dmarc=pass\r\n" + BORDER
    found = verdict(head)
    assert (found["dkim"], found["dmarc"]) == ("x.example", "fail")
    assert found["results"].count("\n") == 1


@pytest.mark.parametrize(
    "head",
    [
        BORDER + OURS + FINE,  # right below the border: whoever sent it may have written it
        BORDER + FAR + OURS + FINE,
        OURS + FINE,  # no border at all
        "Authentication-Results: mx.far.example; " + FINE + BORDER,
        "Authentication-Results: MX.example.org.evil.example; " + FINE + BORDER,
        'Authentication-Results: (mx.example.org;) evil.example; "mx.example.org"; '
        + FINE
        + BORDER,
        "X-Authentication-Results: mx.example.org; " + FINE + BORDER,
        "ARC-Authentication-Results: i=1; mx.example.org; " + FINE + BORDER,
        "Subject: x\r\n x\r\n" + BORDER,
    ],
)
def test_what_others_can_have_written_is_not_believed(head: str) -> None:
    assert verdict(head) is None


def test_nobody_is_believed_unless_named() -> None:
    assert verdict(OURS + FINE + BORDER, ids=()) is None
    assert verdict(OURS + FINE + BORDER, ids=("MX.EXAMPLE.org",))["dmarc"] == "pass"


def test_the_border_may_lie_behind_servers_of_ones_own() -> None:
    head = INNER + OURS + FINE + BORDER
    assert verdict(head) is None
    assert verdict(head, hops=2)["dmarc"] == "pass"
    assert verdict(INNER + BORDER + OURS + FINE + FAR, hops=2) is None
    assert verdict(OURS + FINE + BORDER, hops=2) is None  # it did not come that way


@pytest.mark.parametrize(
    ("said", "expected"),
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
def test_all_that_servers_write_is_read(said: str, expected: tuple[str | None, ...]) -> None:
    found = verdict(f"{OURS}{said}\r\n{BORDER}")
    assert tuple(found[name] for name in ("spf", "dkim", "dmarc", "arc")) == expected


PIECES = [
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


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
@settings(max_examples=500, deadline=None)
def test_whatever_is_written_is_read(text: str) -> None:
    verdict(f"Authentication-Results: {text}\r\n{BORDER}")
