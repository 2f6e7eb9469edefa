import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage, MIMEPart
from hashlib import sha256
from time import process_time
from unicodedata import name

import pytest

from merganser.demo import DemoMessage, generate_messages

NOW = datetime(2025, 7, 1, 12, 0, tzinfo=UTC)
MAILBOXES = {"INBOX", "Sent", "Drafts", "Junk", "Projects/Kingfisher", "Lists/Python-users"}


@pytest.fixture(scope="module")
def bag() -> list[DemoMessage]:
    return list(generate_messages(now=NOW))


@pytest.fixture(scope="module")
def parsed(bag: list[DemoMessage]) -> list[EmailMessage]:
    return [read(letter) for letter in bag if not letter.is_malformed]


def read(letter: DemoMessage) -> EmailMessage:
    message = message_from_bytes(letter.raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def leaves(message: EmailMessage) -> list[MIMEPart]:
    return [part for part in message.walk() if not part.is_multipart()]


def shape(part: MIMEPart) -> str:
    inside = ", ".join(shape(each) for each in part.iter_parts()) if part.is_multipart() else ""
    encoding = part.get("content-transfer-encoding", "")
    return f"{part.get_content_type()} {encoding} [{inside}]"


def sizes(part: EmailMessage) -> str:
    return f"{shape(part)} {[len(str(leaf.get_payload())) for leaf in leaves(part)]}"


def test_the_same_seed_gives_the_same_bytes(bag: list[DemoMessage]) -> None:
    assert list(generate_messages(1, 520, now=NOW)) == bag


def test_another_seed_gives_other_letters(bag: list[DemoMessage]) -> None:
    first = {letter.raw for letter in bag if not letter.is_malformed}
    assert not first & {letter.raw for letter in generate_messages(2, now=NOW)}


@pytest.mark.parametrize("count", [0, 1, 20, 100, 700])
def test_as_many_letters_come_as_are_asked_for(count: int) -> None:
    assert len(list(generate_messages(3, count, now=NOW))) == count


def test_all_letters_are_made_in_three_seconds() -> None:
    start = process_time()
    weight = sum(len(letter.raw) for letter in generate_messages(4, now=NOW))
    assert process_time() - start < 3
    assert 5_000_000 < weight < 40_000_000


def test_letters_arrive_in_order_during_the_last_120_days(bag: list[DemoMessage]) -> None:
    times = [letter.received_at for letter in bag]
    assert times == sorted(times)
    assert NOW - timedelta(days=120) < times[0] < NOW - timedelta(days=100)
    assert NOW - timedelta(minutes=6) < times[-1] < NOW


def test_letters_lie_in_the_mailboxes_of_a_busy_account(bag: list[DemoMessage]) -> None:
    counts = Counter(letter.mailbox for letter in bag)
    assert set(counts) == MAILBOXES
    assert 0.6 < counts["INBOX"] / len(bag) < 0.8
    assert min(counts.values()) >= 4
    assert all(letter.is_draft == (letter.mailbox == "Drafts") for letter in bag)
    assert 0.7 < sum(letter.is_seen for letter in bag) / len(bag) < 0.9
    assert sum(letter.is_flagged for letter in bag) > 10
    assert sum(letter.is_answered for letter in bag) > 10


def test_there_are_more_than_sixty_structures(
    bag: list[DemoMessage], parsed: list[EmailMessage]
) -> None:
    assert len({letter.shape_name for letter in bag if not letter.is_malformed}) >= 60
    trees = {re.sub(r"(?:quoted-printable|base64|7bit|8bit) ", "", shape(m)) for m in parsed}
    assert len(trees) >= 60


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_two_letters_are_alike_in_subject_and_structure(seed: int) -> None:
    found = Counter(
        (str(message["subject"]), sizes(message))
        for message in (
            read(letter) for letter in generate_messages(seed, now=NOW) if not letter.is_malformed
        )
    )
    assert [key for key, times in found.items() if times > 1] == []


def test_only_answers_share_a_subject(parsed: list[EmailMessage]) -> None:
    counts = Counter(str(message["subject"]) for message in parsed if message["subject"])
    shared = [subject for subject, times in counts.items() if times > 1]
    assert shared
    assert all(subject.startswith("Re: ") for subject in shared)


def test_bodies_and_fields_use_many_charsets(
    bag: list[DemoMessage], parsed: list[EmailMessage]
) -> None:
    bodies = {str(leaf.get_content_charset()) for message in parsed for leaf in leaves(message)}
    heads = b"\n".join(letter.raw.partition(b"\r\n\r\n")[0] for letter in bag)
    words = {word.lower() for word in re.findall(rb"=\?([\w-]+)\?[BQ]\?", heads)}
    assert len(bodies) >= 25
    assert len(words) >= 15
    assert len(re.findall(rb"\?B\?", heads)) > 20
    assert len(re.findall(rb"\?Q\?", heads)) > 20


def test_letters_are_in_many_languages(bag: list[DemoMessage]) -> None:
    languages = Counter(letter.language for letter in bag)
    assert len(languages) >= 20
    assert sum(times for key, times in languages.items() if key != "en") > 100


def test_a_text_says_which_language_it_is_in(bag: list[DemoMessage]) -> None:
    scripts = {"ru": "CYRILLIC", "el": "GREEK", "he": "HEBREW", "ja": "HIRAGANA", "th": "THAI"}
    for letter in bag:
        if letter.language in scripts:
            said = str(read(letter)["subject"]) + _said(letter)
            assert any(name(each, "").startswith(scripts[letter.language]) for each in said)


def _said(letter: DemoMessage) -> str:
    texts = (leaf for leaf in leaves(read(letter)) if leaf.get_content_maintype() == "text")
    return " ".join(str(leaf.get_content()) for leaf in texts)


def test_conversations_hold_together(parsed: list[EmailMessage]) -> None:
    roots: dict[str, str] = {}
    names = Counter[str]()
    for message in parsed:
        own = str(message["message-id"])
        references = str(message.get("references", "")).split()
        roots[own] = references[0] if references else own
        if references:
            assert message["in-reply-to"] == references[-1]
            assert all(each in roots for each in references)
        names[roots[own]] += 1
    threads = [size for root, size in names.items() if size > 1 and root != "None"]
    assert len(threads) >= 25
    assert min(threads) >= 3
    assert max(threads) <= 9


def test_the_same_files_come_again_and_again(parsed: list[EmailMessage]) -> None:
    found = Counter[tuple[str, int]]()
    for message in parsed:
        for leaf in leaves(message):
            content = leaf.get_payload(decode=True)
            assert isinstance(content, bytes)
            found[sha256(content).hexdigest(), len(content)] += 1
    often = [size for (_, size), times in found.items() if times >= 15 and size > 10_000]
    assert any(50_000 < size < 70_000 for size in often)
    assert any(100_000 < size < 140_000 for size in often)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_letters_that_are_not_broken_have_no_defects(seed: int) -> None:
    for letter in generate_messages(seed, now=NOW):
        if letter.is_malformed:
            continue
        assert b"\n" not in letter.raw.replace(b"\r\n", b"")
        assert max(map(len, letter.raw.split(b"\r\n"))) <= 998
        message = read(letter)
        for part in message.walk():
            if not part.is_multipart():
                part.get_payload(decode=True)
            if part.get_content_maintype() == "text":
                part.get_content(errors="strict")
            assert part.defects == [], letter.shape_name
            faults = [(value, value.defects) for value in part.values() if value.defects]
            # Encoded words in file names are forbidden (RFC 2047 section 5), and everywhere.
            assert letter.shape_name == "worded-name" or faults == [], letter.shape_name


def test_broken_letters_are_broken_each_in_its_own_way(bag: list[DemoMessage]) -> None:
    broken = [letter for letter in bag if letter.is_malformed]
    assert len(broken) >= 25
    assert len({letter.shape_name for letter in broken}) == len(broken)
    faultless = [letter for letter in broken if letter.raw.isascii() and not _faults(letter)]
    # The standard library does not mind these.
    assert len(faultless) <= 12, [letter.shape_name for letter in faultless]


def _faults(letter: DemoMessage) -> list[object]:
    message = message_from_bytes(letter.raw, policy=policy.compat32)
    return [defect for part in message.walk() for defect in part.defects]


def test_some_letters_lack_a_field(parsed: list[EmailMessage]) -> None:
    for field in ("subject", "date", "from", "message-id", "to"):
        assert 1 <= sum(message[field] is None for message in parsed) <= 5


def test_lists_and_newsletters_can_be_left(parsed: list[EmailMessage]) -> None:
    assert sum("list-unsubscribe" in message for message in parsed) > 40
    assert sum("list-unsubscribe-post" in message for message in parsed) > 20
    assert sum("list-id" in message for message in parsed) > 40


def test_pages_find_the_pictures_they_name(parsed: list[EmailMessage]) -> None:
    named = 0
    for message in parsed:
        ids = {leaf["content-id"] for leaf in leaves(message)}
        for leaf in leaves(message):
            if leaf.get_content_type() == "text/html":
                for cid in re.findall(r'src="cid:([^"]+)"', leaf.get_content()):
                    named += 1
                    assert f"<{cid}>" in ids
    assert named > 30


def test_the_owner_writes_under_the_address_that_is_asked_for() -> None:
    sent = [
        each
        for each in generate_messages(now=NOW, owner_address="me@pond.example")
        if each.mailbox == "Sent"
    ]
    assert sent
    assert {each.envelope_from for each in sent} == {"me@pond.example"}


def test_only_reserved_domains_are_named(bag: list[DemoMessage]) -> None:
    reserved = re.compile(rb"(?:^|\.)(?:example\.(?:com|org|net)|example|test)\Z")
    texts = [each.raw.replace(b"=\r\n", b"").replace(b"\r\n ", b"") for each in bag]
    written = re.compile(rb"(?:[\w.+-]@|https?://)([A-Za-z][\w.-]*\.[a-z]+)\b")
    domains = {domain.lower() for text in texts for domain in written.findall(text)}
    assert domains
    assert [domain for domain in domains if not reserved.search(domain)] == []


def test_invitations_are_written_before_the_event_and_with_the_letter(
    bag: list[DemoMessage],
) -> None:
    found = 0
    for letter in bag:
        text = b"".join(
            bytes(part.get_payload(decode=True))
            for part in leaves(read(letter))
            if not letter.is_malformed and part.get_content_type() == "text/calendar"
        ).decode()
        if text:
            found += 1
            assert f"DTSTAMP:{letter.received_at:%Y%m%dT%H%M%SZ}" in text
            assert re.findall(r"DTSTART:(\w+)", text)[0] > f"{letter.received_at:%Y%m%dT%H%M%SZ}"
            assert text.startswith("BEGIN:VCALENDAR\r\n")
    assert found >= 10


def test_pictures_and_documents_are_what_they_say(parsed: list[EmailMessage]) -> None:
    starts = {
        "image/png": b"\x89PNG",
        "image/gif": b"GIF89a",
        "image/jpeg": b"\xff\xd8\xff",
        "application/pdf": b"%PDF-1.4",
        "audio/x-wav": b"RIFF",
        "application/zip": b"PK",
    }
    seen = set()
    for message in parsed:
        for leaf in leaves(message):
            kind = leaf.get_content_type()
            if kind in starts:
                seen.add(kind)
                assert bytes(leaf.get_payload(decode=True)).startswith(starts[kind])
    assert seen == set(starts)
