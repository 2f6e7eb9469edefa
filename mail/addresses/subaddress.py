"""Labels of subaddresses: `news` in `ada+news@` (RFC 5233)."""

import unicodedata
from collections.abc import Collection


def subaddress_label_or_empty(
    address: str, account_local_part: str, delimiters: Collection[str]
) -> str:
    """Return the label of an address that is delivered to an account, "" if it has none.

    `account_local_part` is normalized, or a pattern with `*`. Delimiters that are part of it don't
    count.
    """
    local_part = unicodedata.normalize("NFC", address).rpartition("@")[0]
    for at, sign in enumerate(local_part):
        if at and sign in delimiters:
            name = local_part[:at].lower().replace(".", "")
            if name == account_local_part or "*" in account_local_part:
                return local_part[at + 1 :]
    return ""
