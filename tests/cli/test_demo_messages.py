import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage, MIMEPart
from functools import cache
from hashlib import sha256
from time import process_time
from unicodedata import name

import pytest

from merganser.demo import DemoMessage, generate_messages

NOW = datetime(2025, 7, 1, 12, 0, tzinfo=UTC)
MAILBOXES = {"INBOX", "Sent", "Drafts", "Junk", "Projects/Kingfisher", "Lists/Python-users"}


@cache
def messages_of_seed(seed: int) -> list[DemoMessage]:
    return list(generate_messages(seed, now=NOW))


def well_formed_messages_of_seed(seed: int) -> list[DemoMessage]:
    return [message for message in messages_of_seed(seed) if not message.is_malformed]


@cache
def parsed_messages_of_seed(seed: int) -> list[EmailMessage]:
    """The well-formed messages, parsed. Tests must not change them."""
    return [parse_message(demo_message) for demo_message in well_formed_messages_of_seed(seed)]


@pytest.fixture
def messages() -> list[DemoMessage]:
    return messages_of_seed(1)


@pytest.fixture
def parsed_messages() -> list[EmailMessage]:
    return parsed_messages_of_seed(1)


def parse_message(demo_message: DemoMessage) -> EmailMessage:
    message = message_from_bytes(demo_message.raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def leaf_parts(message: EmailMessage) -> list[MIMEPart]:
    return [part for part in message.walk() if not part.is_multipart()]


def describe_structure(part: MIMEPart) -> str:
    child_structures = (
        ", ".join(describe_structure(child) for child in part.iter_parts())
        if part.is_multipart()
        else ""
    )
    encoding = part.get("content-transfer-encoding", "")
    return f"{part.get_content_type()} {encoding} [{child_structures}]"


def describe_sizes(part: EmailMessage) -> str:
    return (
        f"{describe_structure(part)} {[len(str(leaf.get_payload())) for leaf in leaf_parts(part)]}"
    )


def test_same_seed_gives_same_messages(messages: list[DemoMessage]) -> None:
    assert list(generate_messages(1, 520, now=NOW)) == messages


def test_other_seed_gives_other_messages(messages: list[DemoMessage]) -> None:
    first = {demo_message.raw for demo_message in messages if not demo_message.is_malformed}
    assert not first & {demo_message.raw for demo_message in messages_of_seed(2)}


@pytest.mark.parametrize("count", [0, 1, 20, 100, 700])
def test_requested_number_of_messages_is_generated(count: int) -> None:
    assert len(list(generate_messages(3, count, now=NOW))) == count


def test_messages_are_generated_in_three_seconds() -> None:
    start = process_time()
    total_bytes = sum(len(demo_message.raw) for demo_message in generate_messages(4, now=NOW))
    assert process_time() - start < 3
    assert 5_000_000 < total_bytes < 40_000_000


def test_messages_are_ordered_within_last_120_days(messages: list[DemoMessage]) -> None:
    count = [demo_message.received_at for demo_message in messages]
    assert count == sorted(count)
    assert NOW - timedelta(days=120) < count[0] < NOW - timedelta(days=100)
    assert NOW - timedelta(minutes=6) < count[-1] < NOW


def test_messages_are_spread_over_mailboxes_and_flags(messages: list[DemoMessage]) -> None:
    counts = Counter(demo_message.mailbox for demo_message in messages)
    assert set(counts) == MAILBOXES
    assert 0.6 < counts["INBOX"] / len(messages) < 0.8
    assert min(counts.values()) >= 4
    assert all(
        demo_message.is_draft == (demo_message.mailbox == "Drafts") for demo_message in messages
    )
    assert 0.7 < sum(demo_message.is_seen for demo_message in messages) / len(messages) < 0.9
    assert sum(demo_message.is_flagged for demo_message in messages) > 10
    assert sum(demo_message.is_answered for demo_message in messages) > 10


def test_messages_have_more_than_sixty_structures(
    messages: list[DemoMessage], parsed_messages: list[EmailMessage]
) -> None:
    assert (
        len({demo_message.shape_name for demo_message in messages if not demo_message.is_malformed})
        >= 60
    )
    trees = {
        re.sub(r"(?:quoted-printable|base64|7bit|8bit) ", "", describe_structure(message))
        for message in parsed_messages
    }
    assert len(trees) >= 60


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_two_messages_share_subject_and_structure(seed: int) -> None:
    result = Counter(
        (str(message["subject"]), describe_sizes(message))
        for message in parsed_messages_of_seed(seed)
    )
    assert [key for key, count in result.items() if count > 1] == []


def test_only_replies_share_a_subject(parsed_messages: list[EmailMessage]) -> None:
    counts = Counter(str(message["subject"]) for message in parsed_messages if message["subject"])
    shared = [subject for subject, count in counts.items() if count > 1]
    assert shared
    assert all(subject.startswith("Re: ") for subject in shared)


def test_bodies_and_header_fields_use_many_charsets(
    messages: list[DemoMessage], parsed_messages: list[EmailMessage]
) -> None:
    body_charsets = {
        str(leaf.get_content_charset())
        for message in parsed_messages
        for leaf in leaf_parts(message)
    }
    headers = b"\n".join(demo_message.raw.partition(b"\r\n\r\n")[0] for demo_message in messages)
    header_charsets = {word.lower() for word in re.findall(rb"=\?([\w-]+)\?[BQ]\?", headers)}
    assert len(body_charsets) >= 25
    assert len(header_charsets) >= 15
    assert len(re.findall(rb"\?B\?", headers)) > 20
    assert len(re.findall(rb"\?Q\?", headers)) > 20


def test_messages_use_many_languages(messages: list[DemoMessage]) -> None:
    languages = Counter(demo_message.language for demo_message in messages)
    assert len(languages) >= 20
    assert sum(count for key, count in languages.items() if key != "en") > 100


def test_text_is_written_in_script_of_its_language(messages: list[DemoMessage]) -> None:
    scripts = {"ru": "CYRILLIC", "el": "GREEK", "he": "HEBREW", "ja": "HIRAGANA", "th": "THAI"}
    for demo_message in messages:
        if demo_message.language in scripts:
            text = str(parse_message(demo_message)["subject"]) + _message_text(demo_message)
            assert any(
                name(character, "").startswith(scripts[demo_message.language]) for character in text
            )


def _message_text(demo_message: DemoMessage) -> str:
    texts = (
        leaf
        for leaf in leaf_parts(parse_message(demo_message))
        if leaf.get_content_maintype() == "text"
    )
    return " ".join(str(leaf.get_content()) for leaf in texts)


def test_replies_refer_to_earlier_messages_of_thread(parsed_messages: list[EmailMessage]) -> None:
    roots: dict[str, str] = {}
    thread_sizes = Counter[str]()
    for message in parsed_messages:
        message_id = str(message["message-id"])
        references = str(message.get("references", "")).split()
        roots[message_id] = references[0] if references else message_id
        if references:
            assert message["in-reply-to"] == references[-1]
            assert all(message_id_of_reference in roots for message_id_of_reference in references)
        thread_sizes[roots[message_id]] += 1
    threads = [size for root, size in thread_sizes.items() if size > 1 and root != "None"]
    assert len(threads) >= 25
    assert min(threads) >= 3
    assert max(threads) <= 9


def test_same_attachments_occur_repeatedly(parsed_messages: list[EmailMessage]) -> None:
    attachment_counts = Counter[tuple[str, int]]()
    for message in parsed_messages:
        for leaf in leaf_parts(message):
            content = leaf.get_payload(decode=True)
            assert isinstance(content, bytes)
            attachment_counts[sha256(content).hexdigest(), len(content)] += 1
    frequent_sizes = [
        size for (_, size), count in attachment_counts.items() if count >= 15 and size > 10_000
    ]
    assert any(50_000 < size < 70_000 for size in frequent_sizes)
    assert any(100_000 < size < 140_000 for size in frequent_sizes)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_well_formed_messages_have_no_defects(seed: int) -> None:
    for demo_message, message in zip(
        well_formed_messages_of_seed(seed), parsed_messages_of_seed(seed), strict=True
    ):
        assert b"\n" not in demo_message.raw.replace(b"\r\n", b"")
        assert max(map(len, demo_message.raw.split(b"\r\n"))) <= 998
        for part in message.walk():
            if not part.is_multipart():
                part.get_payload(decode=True)
            if part.get_content_maintype() == "text":
                part.get_content(errors="strict")
            assert part.defects == [], demo_message.shape_name
            value_defects = [(value, value.defects) for value in part.values() if value.defects]
            # RFC 2047 section 5 forbids encoded words in file names, but they are common.
            assert (
                demo_message.shape_name == "photo-with-encoded-word-name" or value_defects == []
            ), demo_message.shape_name


def test_malformed_messages_have_distinct_shapes(messages: list[DemoMessage]) -> None:
    malformed = [demo_message for demo_message in messages if demo_message.is_malformed]
    assert len(malformed) >= 25
    assert len({demo_message.shape_name for demo_message in malformed}) == len(malformed)
    undetected = [
        demo_message
        for demo_message in malformed
        if demo_message.raw.isascii() and not _parser_defects(demo_message)
    ]
    # The standard library reports no defects in these.
    assert len(undetected) <= 12, [demo_message.shape_name for demo_message in undetected]


def _parser_defects(demo_message: DemoMessage) -> list[object]:
    message = message_from_bytes(demo_message.raw, policy=policy.compat32)
    return [defect for part in message.walk() for defect in part.defects]


def test_few_messages_lack_a_header_field(parsed_messages: list[EmailMessage]) -> None:
    for field in ("subject", "date", "from", "message-id", "to"):
        assert 1 <= sum(message[field] is None for message in parsed_messages) <= 5


def test_list_messages_have_unsubscribe_fields(parsed_messages: list[EmailMessage]) -> None:
    assert sum("list-unsubscribe" in message for message in parsed_messages) > 40
    assert sum("list-unsubscribe-post" in message for message in parsed_messages) > 20
    assert sum("list-id" in message for message in parsed_messages) > 40


def test_html_parts_refer_to_existing_images(parsed_messages: list[EmailMessage]) -> None:
    reference_count = 0
    for message in parsed_messages:
        ids = {leaf["content-id"] for leaf in leaf_parts(message)}
        for leaf in leaf_parts(message):
            if leaf.get_content_type() == "text/html":
                for cid in re.findall(r'src="cid:([^"]+)"', leaf.get_content()):
                    reference_count += 1
                    assert f"<{cid}>" in ids
    assert reference_count > 30


def test_sent_messages_use_given_owner_address() -> None:
    sent = [
        demo_message
        for demo_message in generate_messages(now=NOW, owner_address="me@pond.example")
        if demo_message.mailbox == "Sent"
    ]
    assert sent
    assert {demo_message.envelope_from for demo_message in sent} == {"me@pond.example"}


def test_messages_contain_only_reserved_domains(messages: list[DemoMessage]) -> None:
    reserved = re.compile(rb"(?:^|\.)(?:example\.(?:com|org|net)|example|test)\Z")
    texts = [
        demo_message.raw.replace(b"=\r\n", b"").replace(b"\r\n ", b"") for demo_message in messages
    ]
    domain_pattern = re.compile(rb"(?:[\w.+-]@|https?://)([A-Za-z][\w.-]*\.[a-z]+)\b")
    domains = {domain.lower() for text in texts for domain in domain_pattern.findall(text)}
    assert domains
    assert [domain for domain in domains if not reserved.search(domain)] == []


def test_invitations_are_dated_with_message_and_before_event(
    parsed_messages: list[EmailMessage],
) -> None:
    invitation_count = 0
    for demo_message, message in zip(well_formed_messages_of_seed(1), parsed_messages, strict=True):
        text = b"".join(
            bytes(part.get_payload(decode=True))
            for part in leaf_parts(message)
            if part.get_content_type() == "text/calendar"
        ).decode()
        if text:
            invitation_count += 1
            assert f"DTSTAMP:{demo_message.received_at:%Y%m%dT%H%M%SZ}" in text
            assert (
                re.findall(r"DTSTART:(\w+)", text)[0] > f"{demo_message.received_at:%Y%m%dT%H%M%SZ}"
            )
            assert text.startswith("BEGIN:VCALENDAR\r\n")
    assert invitation_count >= 10


def test_attachment_content_matches_content_type(parsed_messages: list[EmailMessage]) -> None:
    starts = {
        "image/png": b"\x89PNG",
        "image/gif": b"GIF89a",
        "image/jpeg": b"\xff\xd8\xff",
        "application/pdf": b"%PDF-1.4",
        "audio/x-wav": b"RIFF",
        "application/zip": b"PK",
    }
    seen_types = set()
    for message in parsed_messages:
        for leaf in leaf_parts(message):
            content_type = leaf.get_content_type()
            if content_type in starts:
                seen_types.add(content_type)
                assert bytes(leaf.get_payload(decode=True)).startswith(starts[content_type])
    assert seen_types == set(starts)
