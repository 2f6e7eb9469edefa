"""Large messages: what is made of their files is what would be made of their bytes."""

import hashlib
import os
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mail.authentication import add_results_header, body_canonicalization
from mail.authentication.arc import ArcChain
from mail.authentication.body_canonicalization import (
    relaxed_body,
    relaxed_chunks,
    simple_body,
    simple_chunks,
    with_crlf,
)
from mail.authentication.dkim import AuthResult, SignedMessage
from mail.authentication.dmarc import DmarcResult
from mail.authentication.header_fields import MAX_HEADER_SIZE
from mail.authentication.results import AuthenticationFindings
from mail.compose.message_builder import without_bcc
from mail.outbound import wire_format
from mail.outbound.wire_format import WireMessage

PIECES = [b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b"\t", b" \t ", b"a", b"-", b"\0\xff", b"ab cd"]
TEXTS = some.lists(some.sampled_from(PIECES), max_size=40).map(b"".join)
NOTHING = AuthenticationFindings(None, [], DmarcResult(AuthResult.NONE), ArcChain())


@given(TEXTS, some.lists(some.integers(0, 60), max_size=8))
def test_forms_made_in_steps_are_those_of_the_whole(body: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(body)]
    steps = [body[at:to] for at, to in pairwise(places)]
    assert b"".join(steps) == body
    assert b"".join(relaxed_chunks(steps)) == relaxed_body(with_crlf(body))
    assert b"".join(simple_chunks(steps)) == simple_body(with_crlf(body))


@pytest.mark.parametrize("one", [b"\r\n", b"\n", b" ", b"\r", b" \r\n", b"\t\n", b"x \r\n"])
def test_endless_blanks_take_no_memory(one: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_canonicalization, "READ_SIZE", 1000)
    body = one * 20_000 + b"end"
    for whole in (body, body + one * 5000):
        steps = [whole[at : at + 777] for at in range(0, len(whole), 777)]
        for form, slow in ((relaxed_chunks, relaxed_body), (simple_chunks, simple_body)):
            made = list(form(steps))
            assert b"".join(made) == slow(with_crlf(whole))
            assert max(map(len, made)) <= 2 * 1000


@given(TEXTS, TEXTS, some.booleans())
def test_a_file_is_the_message_that_its_bytes_are(head: bytes, body: bytes, named: bool) -> None:
    raw = (b"From: a@b.example\r\nX: " if named else b"") + head + b"\r\n\r\n" + body
    with TemporaryDirectory() as folder:
        path = Path(folder) / "incoming-1"
        path.write_bytes(raw)
        of_bytes, of_file = SignedMessage.from_bytes(raw), SignedMessage.from_file(path)
        assert (of_file.fields, of_file.is_well_formed) == (
            of_bytes.fields,
            of_bytes.is_well_formed,
        )
        if of_bytes.is_well_formed:
            for form in ("relaxed", "simple"):
                assert of_file.body_hash(form) == of_bytes.body_hash(form)


@pytest.mark.parametrize(
    "size", [MAX_HEADER_SIZE - 1, MAX_HEADER_SIZE, MAX_HEADER_SIZE + 1, MAX_HEADER_SIZE + 5]
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_headers_of_the_greatest_size(tmp_path: Path, size: int, end: bytes) -> None:
    line = b"X: " + b"x" * 995 + b"\r\n"
    head = (line * (size // len(line) + 1))[: size - 2] + b"\r\n"
    raw = head.replace(b"\r\nX\r\n", b"\r\nX:\r\n") + end + b"body\r\n"
    (tmp_path / "incoming-1").write_bytes(raw)
    of_bytes, of_file = (
        SignedMessage.from_bytes(raw),
        SignedMessage.from_file(tmp_path / "incoming-1"),
    )
    assert (
        of_file.is_well_formed
        == of_bytes.is_well_formed
        == (raw.index(b"body") - len(end) <= MAX_HEADER_SIZE)
    )
    assert of_file.fields == of_bytes.fields
    if of_bytes.is_well_formed:
        assert of_file.body_hash("simple") == of_bytes.body_hash("simple")


LINES = [
    b"Authentication-Results: front; spf=pass\r\n", b"authentication-results \t: FRONT\r\n",
    b"Authentication-Results:\r\n", b" front; dkim=pass\r\n", b"\tmore\r\n", b"X: y\r\n",
    b"Authentication-Results: else; spf=pass\n", b"Authentication-Results\r\n", b"\r", b"x\r",
    b"Authentication-Results: front", b"", b"\r\n", b"\n", b"body\r\n",
]  # fmt: skip


@given(some.lists(some.sampled_from(LINES), max_size=12).map(b"".join))
async def test_a_file_is_stamped_as_bytes_are(raw: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "incoming-1"
        path.write_bytes(raw)
        whole, came = await add_results_header(raw, NOTHING, "mx.example", ["front"])
        place, as_file = await add_results_header(path, NOTHING, "mx.example", ["front"])
        assert (place, as_file) == (path, came)
        assert came == hashlib.sha256(raw).hexdigest()
        assert path.read_bytes() == whole
        assert os.listdir(folder) == ["incoming-1"]  # noqa: PTH208 - what there is


async def test_results_without_an_end_are_believed_of_nobody(tmp_path: Path) -> None:
    path = tmp_path / "incoming-1"
    path.write_bytes(b"Authentication-Results: else;\r\n" + b" \r\n" * 400_000 + b"X: y\r\n\r\nz")
    await add_results_header(path, NOTHING, "mx.example", [])
    assert path.read_bytes() == NOTHING.to_header_field("mx.example") + b"X: y\r\n\r\nz"


@given(TEXTS, some.lists(some.integers(0, 60), max_size=8), some.booleans())
async def test_what_flows_out_is_what_would_be_sent_at_once(
    text: bytes, cuts: list[int], long: bool
) -> None:
    raw = b"Bcc: eve@x.example\r\n\tmore\r\nTo: a\r\n" + text + b"." * 9 * long + text
    places = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]

    async def opened() -> AsyncGenerator[bytes]:
        for at, to in pairwise(places):
            yield raw[at:to]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire_format, "MAX_BUFFERED_LINE", 5)  # bytes
        patch.setattr(wire_format, "PIECE_PAUSE", 0)
        made, whole = (
            await WireMessage.from_stream("", opened),
            WireMessage.from_bytes("", without_bcc(raw)),
        )
        pieces = [piece async for piece in made.iter_pieces()]
    assert b"".join(pieces) == whole.data
    assert (len(made.data), made.has_8bit, made.has_utf8_header) == (
        len(whole.data),
        whole.has_8bit,
        whole.has_utf8_header,
    )
    assert whole.data.startswith(made.header_bytes)
    for before, after in pairwise(pieces):
        assert before.endswith(b"\r\n") or not after.startswith(b".")
