"""The label of an address: what stands behind the name in `ada+news@`."""

import unicodedata
from collections.abc import Collection


def label_of(address: str, local: str, delimiters: Collection[str]) -> str:
    """The label in an address whose mail an address with this local part takes; "": none.

    `local` is in normal form, or a pattern. Its own signs are no delimiters.
    """
    written = unicodedata.normalize("NFC", address).rpartition("@")[0]
    for at, sign in enumerate(written):
        if at and sign in delimiters:
            name = written[:at].lower().replace(".", "")
            if name == local or "*" in local:
                return written[at + 1 :]
    return ""
