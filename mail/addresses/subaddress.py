"""Labels of subaddresses: `news` in `ada+news@` (RFC 5233)."""

import unicodedata
from collections.abc import Collection


def subaddress_label(address: str, account_local_part: str, delimiters: Collection[str]) -> str:
    """Return the label of an address that is delivered to an account, "" if it has none.

    `account_local_part` is normalized, or a pattern with `*`. Delimiters that are part of it don't
    count.
    """
    written = unicodedata.normalize("NFC", address).rpartition("@")[0]
    for at, sign in enumerate(written):
        if at and sign in delimiters:
            name = written[:at].lower().replace(".", "")
            if name == account_local_part or "*" in account_local_part:
                return written[at + 1 :]
    return ""
