"""Correct mail reads as the standard library reads it; and its own test mail, too."""

import email
import importlib.util
from collections.abc import Iterator
from email.headerregistry import Address
from email.message import EmailMessage, Message
from email.policy import SMTP
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.mime import decoded_content, parse_structure, read_facts, walk_parts
from mail.mime.header_parameters import safe_filename
from tests.support.run_scope import CI

WORDS = st.text(
    st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]) | st.just(" "),
    min_size=1,
    max_size=40,
).map(lambda text: " ".join(text.split()) or "x")
# "=?" in plain text is where the library and we, and everyone, may differ.
PLAIN_WORDS = WORDS.filter(lambda text: "=?" not in text)
LOCAL = st.from_regex(r"[a-z0-9]{1,9}(\.[a-z0-9]{1,9})?", fullmatch=True)
# One in each header: between two the library sometimes encodes the comma.
PEOPLE = st.lists(st.tuples(PLAIN_WORDS, LOCAL), min_size=3, max_size=3)
FILES = st.lists(st.tuples(PLAIN_WORDS, st.binary(max_size=300)), max_size=3)


def built(
    subject: str, people: list[tuple[str, str]], text: str, files: list[tuple[str, bytes]]
) -> bytes:
    message = EmailMessage(SMTP)
    message["Subject"] = subject
    for header, (name, local) in zip(("From", "To", "Cc"), people, strict=True):
        message[header] = Address(name, local, "example.com")
    message.set_content(text + "\n")
    message.add_alternative(f"<p>{text}</p>\n", subtype="html")
    for name, body in files:
        message.add_attachment(body, maintype="application", subtype="x-thing", filename=name)
    return message.as_bytes()


@given(PLAIN_WORDS, PEOPLE, WORDS, FILES)
@settings(max_examples=300, deadline=None)
def test_mail_of_the_standard_library_reads_as_it_was_written(
    subject: str, people: list[tuple[str, str]], text: str, files: list[tuple[str, bytes]]
) -> None:
    raw = built(subject, people, text, files)
    theirs = email.message_from_bytes(raw, policy=SMTP)
    found = read_facts(raw)
    # As it was written: the library puts blanks between encoded words when it reads names.
    assert found.subject == subject
    assert [(each.name, each.address) for each in (*found.from_, *found.to, *found.cc)] == [
        (name, f"{local}@example.com") for name, local in people
    ]
    assert [each.filename for each in found.attachments] == [
        safe_filename(part.get_filename() or "") for part in theirs.iter_attachments()
    ]
    assert [
        decoded_content(raw, part) for part in walk_parts(found.structure) if not part.parts
    ] == [part.get_payload(decode=True) for part in theirs.walk() if not part.is_multipart()]
    assert [each.size for each in found.attachments] == [len(body) for _, body in files]


def python_mail() -> Iterator[Path]:
    """Find the e-mail test data of this Python; Debian has it in libpython3.11-testsuite."""
    spec = importlib.util.find_spec("test") and importlib.util.find_spec("test.test_email")
    for folder in (spec and spec.submodule_search_locations) or []:
        yield from sorted(Path(folder, "data").glob("msg_*.txt"))


# One boundary for inner and outer multiparts: the library loses parts there, we do not.
WE_READ_MORE = {"msg_15.txt": 5, "msg_39.txt": 12}


def test_the_mail_that_python_is_tested_with_is_there() -> None:
    if not list(python_mail()) and not CI:
        pytest.skip("this Python came without its tests")
    assert len(list(python_mail())) > 40


@pytest.mark.parametrize("path", list(python_mail()), ids=lambda path: path.name)
def test_the_mail_that_python_is_tested_with_has_the_same_parts(path: Path) -> None:
    raw = path.read_bytes()
    ours = list(walk_parts(parse_structure(raw)))
    if path.name in WE_READ_MORE:
        assert len(ours) == WE_READ_MORE[path.name]
        return
    theirs = list(their_parts(email.message_from_bytes(raw)))
    assert [part.content_type for part in ours] == [part.get_content_type() for part in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert (
            our.filename == safe_filename(their.get_filename() or "")
            or our.content_type == "message/external-body"
        )
        if our.content_type.partition("/")[0] not in ("multipart", "message"):
            assert decoded_content(raw, our) == their.get_payload(decode=True)


def their_parts(message: Message) -> Iterator[Message]:
    """Walk as the library does, but not into the kinds of message that hold none."""
    yield message
    if (
        message.get_content_maintype() == "multipart"
        or message.get_content_type() == "message/rfc822"
    ):
        payload = message.get_payload()
        for part in payload if isinstance(payload, list) else []:
            assert isinstance(part, Message)
            yield from their_parts(part)
