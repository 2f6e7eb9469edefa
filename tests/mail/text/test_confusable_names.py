"""Addresses and domains that look like others are refused."""

import pytest

from mail.text import confusables
from models.errors import InvalidInput


@pytest.mark.parametrize(
    "address",
    [
        "ada@example.org", "jürgen@bücher.example", "анна@пример.example", "1@2.example", "", "@",
        "ελένη@παράδειγμα.example", "さくらtanaka@例え.example", "김ada@example.org",
        "أحمد@example.org", "o'neil+x@example.org", "анна.ada@example.org", "データ@example.org",
    ],
)  # fmt: skip
def test_address_of_one_script_is_accepted(address: str) -> None:
    confusables.refuse_confusable_address(address)
    confusables.refuse_confusable_domain(address.rpartition("@")[2])


@pytest.mark.parametrize(
    "address",
    [
        "\N{CYRILLIC SMALL LETTER A}da@example.org",
        "ada@ex\N{CYRILLIC SMALL LETTER A}mple.org",
        "\u0441\u043e\u0441\u043e@example.org",  # all Cyrillic, looks like coco
        "ada@\N{GREEK SMALL LETTER OMICRON}.example",
        "\N{FULLWIDTH LATIN SMALL LETTER A}da@example.org",
        "\N{LATIN SMALL LIGATURE FI}@example.org",
        "ada\N{CIRCLED DIGIT ONE}@example.org",
        "\N{CYRILLIC SMALL LETTER ZHE}\N{GREEK SMALL LETTER LAMDA}@example.org",
    ],
)
def test_confusable_address_is_refused(address: str) -> None:
    def check_address() -> None:
        confusables.refuse_confusable_address(address, path="alias")
        confusables.refuse_confusable_domain(address.rpartition("@")[2], path="alias")

    with pytest.raises(InvalidInput) as raised:
        check_address()
    assert (raised.value.constraint, raised.value.path) == ("LOOKALIKE", ["alias"])
