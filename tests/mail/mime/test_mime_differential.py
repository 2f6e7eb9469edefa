"""Correct messages, and the test messages of Python, are parsed like by the standard library."""

import email
import importlib.util
from collections.abc import Iterator
from email.headerregistry import Address
from email.message import EmailMessage, Message
from email.policy import SMTP
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mail.mime import decoded_content, facts_from_message_bytes, parse_structure, walk_parts
from mail.mime.header_parameters import safe_filename_or_none
from tests.support.run_scope import CI, RUNS_ALL_TESTS

UNICODE_TEXTS = st.text(
    st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]) | st.just(" "),
    min_size=1,
    max_size=40,
).map(lambda text: " ".join(text.split()) or "x")
# Parsers differ in how they read "=?" in plain text.
TEXTS_WITHOUT_ENCODED_WORDS = UNICODE_TEXTS.filter(lambda text: "=?" not in text)
LOCAL_PARTS = st.from_regex(r"[a-z0-9]{1,9}(\.[a-z0-9]{1,9})?", fullmatch=True)
# One address in each header field. The library sometimes encodes the comma between two.
NAMED_ADDRESSES = st.lists(
    st.tuples(TEXTS_WITHOUT_ENCODED_WORDS, LOCAL_PARTS), min_size=3, max_size=3
)
ATTACHMENTS = st.lists(st.tuples(TEXTS_WITHOUT_ENCODED_WORDS, st.binary(max_size=300)), max_size=3)


def build_message(
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


@given(TEXTS_WITHOUT_ENCODED_WORDS, NAMED_ADDRESSES, UNICODE_TEXTS, ATTACHMENTS)
@example("0", [("0", "0")] * 3, "0", [("<>", b""), ("<a>", b"")])
@settings(max_examples=300 if RUNS_ALL_TESTS else 150)
def test_message_of_standard_library_is_parsed_as_written(
    subject: str, people: list[tuple[str, str]], text: str, files: list[tuple[str, bytes]]
) -> None:
    raw = build_message(subject, people, text, files)
    parsed = email.message_from_bytes(raw, policy=SMTP)
    facts = facts_from_message_bytes(raw)
    # Names are compared with the input: the library adds blanks between encoded words, and removes
    # angle brackets around a filename.
    assert facts.subject == subject
    assert [
        (address.name, address.address) for address in (*facts.from_, *facts.to, *facts.cc)
    ] == [(name, f"{local}@example.com") for name, local in people]
    assert [attachment.filename for attachment in facts.attachments] == [
        safe_filename_or_none(name) for name, _ in files
    ]
    assert [
        decoded_content(raw, part) for part in walk_parts(facts.structure) if not part.parts
    ] == [part.get_payload(decode=True) for part in parsed.walk() if not part.is_multipart()]
    assert [attachment.size for attachment in facts.attachments] == [len(body) for _, body in files]


def python_test_messages() -> Iterator[Path]:
    """Yield the e-mail test files of Python. Debian has them in libpython3.11-testsuite."""
    spec = importlib.util.find_spec("test") and importlib.util.find_spec("test.test_email")
    for folder in (spec and spec.submodule_search_locations) or []:
        yield from sorted(Path(folder, "data").glob("msg_*.txt"))


# Part counts of files with one boundary for nested multiparts. The library loses parts there.
PARTS_ONLY_WE_FIND = {"msg_15.txt": 5, "msg_39.txt": 12}


def test_messages_of_python_test_suite_are_installed() -> None:
    if not list(python_test_messages()) and not CI:
        pytest.skip("this Python came without its tests")
    assert len(list(python_test_messages())) > 40


@pytest.mark.parametrize("path", list(python_test_messages()), ids=lambda path: path.name)
def test_parts_match_standard_library(path: Path) -> None:
    raw = path.read_bytes()
    our_parts = list(walk_parts(parse_structure(raw)))
    if path.name in PARTS_ONLY_WE_FIND:
        assert len(our_parts) == PARTS_ONLY_WE_FIND[path.name]
        return
    library_parts = list(walk_library_parts(email.message_from_bytes(raw)))
    assert [part.content_type for part in our_parts] == [
        part.get_content_type() for part in library_parts
    ]
    for our_part, library_part in zip(our_parts, library_parts, strict=True):
        assert (
            our_part.filename == safe_filename_or_none(library_part.get_filename() or "")
            or our_part.content_type == "message/external-body"
        )
        if our_part.content_type.partition("/")[0] not in ("multipart", "message"):
            assert decoded_content(raw, our_part) == library_part.get_payload(decode=True)


def walk_library_parts(message: Message) -> Iterator[Message]:
    """Walk the parts like the library, but don't enter message types other than message/rfc822."""
    yield message
    if (
        message.get_content_maintype() == "multipart"
        or message.get_content_type() == "message/rfc822"
    ):
        payload = message.get_payload()
        for part in payload if isinstance(payload, list) else []:
            assert isinstance(part, Message)
            yield from walk_library_parts(part)
