"""The addresses whose rules, such as rewrites and BCC rules, apply to a mail address."""

from collections.abc import Sequence

from mail.addresses.address_syntax import (
    NormalizedAddress,
    folded_parts,
    undotted_local_parts_to_look_up,
)


def rule_addresses(
    address: str, delimiters: str, receiving_local_part: str | None
) -> tuple[NormalizedAddress, ...]:
    """Return the normalized addresses whose rules apply to mail for an address, best first.

    `receiving_local_part` is that of the address record that receives the mail, and can be a
    pattern. None: no record does.
    """
    local, domain = folded_parts(address)
    local_parts = undotted_local_parts_to_look_up(local, delimiters)
    return tuple(
        NormalizedAddress(local_part, domain)
        for local_part in local_parts_of_rules(local_parts, receiving_local_part)
    )


def local_parts_of_rules(
    local_parts: Sequence[str], receiving_local_part: str | None
) -> Sequence[str]:
    """Return those of the looked-up local parts whose rules apply, best first.

    The one without label does not count if the whole one is an address of its own.
    """
    return local_parts[:1] if receiving_local_part == local_parts[0] else local_parts
