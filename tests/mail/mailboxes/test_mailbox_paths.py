"""Paths of folders: spelling, limits, names that pass for others, and masks."""

import re
import time
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mail.mailboxes import paths
from models.errors import InvalidInput

SIGNS = some.text("aB/%*.é", max_size=12)


@pytest.mark.parametrize(
    "wrong",
    [
        "\u0399\u039d\u0392\u039f\u03a7",  # of Greek capitals
        "\uff29\uff2e\uff22\uff2f\uff38",  # full-width
        "INBOX\u00a0",
        "IN\u200bBOX/Sub",
        "\N{CYRILLIC CAPITAL LETTER TE}rash",
        "Work/S\N{CYRILLIC SMALL LETTER IE}nt",
        "\N{LATIN CAPITAL LETTER C}пам",  # Спам, but for its first letter
    ],
)
def test_a_name_that_passes_for_that_of_a_special_folder_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        paths.validate_path(wrong, input_path=["newPath"])
    assert (refused.value.constraint, refused.value.path) == ("lookalike", ["newPath"])


@pytest.mark.parametrize(
    "fine",
    [
        "inbox", "sent", "Спам", "Проект Alpha", "Αρχείο", "受信トレイ", "שלום", "Trash 2",
        "Sent mail", "👩‍👩‍👧", "a b",
    ],
)  # fmt: skip
def test_other_names_may_be_of_any_script(fine: str) -> None:
    assert paths.validate_path(fine) in (fine, "INBOX")


@pytest.mark.parametrize("odd", ["A\x00", "A\x85B", "A\u2028B", "A\ud800B", "A\x7f"])
def test_what_ends_a_line_or_is_no_character_is_refused(odd: str) -> None:
    with pytest.raises(InvalidInput, match="control"):
        paths.validate_path(odd)


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("INBOX", "INBOX"), ("A&B", "A&-B"), ("Entwürfe", "Entw&APw-rfe"), ("~/A b", "~/A b"),
        ("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # of RFC 3501 itself
        ("👍", "&2D3cTQ-"), ("&é", "&-&AOk-"), ("", ""),
    ],
)  # fmt: skip
def test_imap_writes_paths_in_ascii(path: str, written: str) -> None:
    assert paths.modified_utf7(path) == written


def read(written: str) -> str:
    """The way back, as a mail program goes it."""

    def shifted(found: re.Match[str]) -> str:
        packed = found[1].replace(",", "/")
        return b64decode(packed + "=" * (-len(packed) % 4)).decode("utf-16-be") or "&"

    return re.sub("&([^-]*)-", shifted, written)


@given(some.text(some.characters(codec="utf-8")))
def test_what_imap_writes_is_read_again(path: str) -> None:
    written = paths.modified_utf7(path)
    assert (written.isascii(), read(written)) == (True, path)


def fits(mask: str, path: str) -> bool:
    """By trying everything: * is anything, % anything without a slash."""
    if not mask:
        return not path
    if mask[0] in "*%":
        most = path if mask[0] == "*" else path.partition("/")[0]
        return any(fits(mask[1:], path[end:]) for end in range(len(most) + 1))
    return path[:1] == mask[0] and fits(mask[1:], path[1:])


@given(SIGNS, some.text("aB/.é", max_size=12))
def test_a_mask_fits_what_it_says(mask: str, path: str) -> None:
    found = re.match(paths.masks_pattern([mask]), path) is not None
    assert found is fits(paths.canonical_path(mask), path)


def test_no_mask_takes_long() -> None:
    level = "a" * paths.MAX_LEVEL_LENGTH
    path = "/".join([level] * paths.MAX_LEVELS)
    masks = ["*a%a%a%a%b", "*a" * 300 + "b", "%a" * 300, "*/%a%b/*a%b*b", "%/" * 300 + "b"]
    took = []
    for _ in range(3):  # what else the process does now and then, such as tidying its memory
        begun = time.process_time()
        assert re.match(paths.masks_pattern(masks), path) is None
        took.append(time.process_time() - begun)
    assert min(took) < 1


def test_masks_have_limits() -> None:
    with pytest.raises(InvalidInput):
        paths.masks_pattern(["x"] * (paths.MAX_MASKS + 1))
    with pytest.raises(InvalidInput):
        paths.masks_pattern(["x" * (paths.MAX_MASK_LENGTH + 1)])
