"""Mailbox paths: encoding, limits, lookalike names and patterns."""

import re
import time
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.mailboxes import paths
from models.errors import InvalidInput

MASK_TEXTS = st.text("aB/%*.é", max_size=12)


@pytest.mark.parametrize(
    "lookalike",
    [
        "\u0399\u039d\u0392\u039f\u03a7",  # Greek capitals
        "\uff29\uff2e\uff22\uff2f\uff38",  # full-width
        "INBOX\u00a0",
        "IN\u200bBOX/Sub",
        "\N{CYRILLIC CAPITAL LETTER TE}rash",
        "Work/S\N{CYRILLIC SMALL LETTER IE}nt",
        "\N{LATIN CAPITAL LETTER C}пам",  # Спам with a Latin first letter
    ],
)
def test_lookalike_of_a_special_use_name_is_refused(lookalike: str) -> None:
    with pytest.raises(InvalidInput) as error:
        paths.validate_path(lookalike, input_path=["newPath"])
    assert (error.value.constraint, error.value.path) == ("LOOKALIKE", ["newPath"])


@pytest.mark.parametrize(
    "name",
    [
        "inbox", "sent", "Спам", "Проект Alpha", "Αρχείο", "受信トレイ", "שלום", "Trash 2",
        "Sent mail", "👩‍👩‍👧", "a b",
    ],
)  # fmt: skip
def test_name_in_any_script_is_accepted(name: str) -> None:
    assert paths.validate_path(name) in (name, "INBOX")


@pytest.mark.parametrize("name", ["A\x00", "A\x85B", "A\u2028B", "A\ud800B", "A\x7f"])
def test_control_character_in_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="control"):
        paths.validate_path(name)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("INBOX", "INBOX"), ("A&B", "A&-B"), ("Entwürfe", "Entw&APw-rfe"), ("~/A b", "~/A b"),
        ("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # example of RFC 3501
        ("👍", "&2D3cTQ-"), ("&é", "&-&AOk-"), ("", ""),
    ],
)  # fmt: skip
def test_path_is_encoded_in_modified_utf7(path: str, expected: str) -> None:
    assert paths.modified_utf7(path) == expected


def decode_modified_utf7(encoded: str) -> str:
    """Decode a path as a mail program does."""

    def decode_group(match: re.Match[str]) -> str:
        base64_text = match[1].replace(",", "/")
        return b64decode(base64_text + "=" * (-len(base64_text) % 4)).decode("utf-16-be") or "&"

    return re.sub("&([^-]*)-", decode_group, encoded)


@given(st.text(st.characters(codec="utf-8")))
def test_modified_utf7_is_decoded_to_the_same_path(path: str) -> None:
    encoded = paths.modified_utf7(path)
    assert (encoded.isascii(), decode_modified_utf7(encoded)) == (True, path)


def matches_exhaustively(pattern: str, path: str) -> bool:
    """Match by trying every length. `*` is any text, and `%` any text without a slash."""
    if not pattern:
        return not path
    if pattern[0] in "*%":
        candidate = path if pattern[0] == "*" else path.partition("/")[0]
        return any(
            matches_exhaustively(pattern[1:], path[end:]) for end in range(len(candidate) + 1)
        )
    return path[:1] == pattern[0] and matches_exhaustively(pattern[1:], path[1:])


@given(MASK_TEXTS, st.text("aB/.é", max_size=12))
def test_mask_pattern_matches_like_the_exhaustive_search(pattern: str, path: str) -> None:
    matches = re.match(paths.patterns_regex_with_atomic_groups([pattern]), path) is not None
    assert matches is matches_exhaustively(paths.canonical_path(pattern), path)


def test_hostile_patterns_are_matched_quickly() -> None:
    level = "a" * paths.MAX_LEVEL_LENGTH
    path = "/".join([level] * paths.MAX_LEVELS)
    patterns = ["*a%a%a%a%b", "*a" * 300 + "b", "%a" * 300, "*/%a%b/*a%b*b", "%/" * 300 + "b"]
    durations = []
    # the shortest run is not disturbed by other work of the process, for example garbage collection
    for _ in range(3):
        started_at = time.process_time()
        assert re.match(paths.patterns_regex_with_atomic_groups(patterns), path) is None
        durations.append(time.process_time() - started_at)
    assert min(durations) < 1


def test_too_many_or_too_long_patterns_are_refused() -> None:
    with pytest.raises(InvalidInput):
        paths.patterns_regex_with_atomic_groups(["x"] * (paths.MAX_PATTERNS + 1))
    with pytest.raises(InvalidInput):
        paths.patterns_regex_with_atomic_groups(["x" * (paths.MAX_PATTERN_LENGTH + 1)])
