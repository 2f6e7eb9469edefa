"""Which commands, tests and extensions there are."""

from mail.sieve import (
    asking,
    base,
    bodies,
    filing,
    flags,
    refusing,
    vacation,
    variables,
)

COMMANDS = {
    one.name: one
    for family in (asking, base, filing, flags, refusing, vacation, variables)
    for one in family.COMMANDS
}
TESTS = {
    one.name: one
    for family in (asking, base, bodies, filing, flags, variables)
    for one in family.TESTS
}
EXTENSIONS = (
    "body",
    "comparator-i;ascii-casemap",
    "comparator-i;ascii-numeric",
    "comparator-i;octet",
    "copy",
    "encoded-character",
    "envelope",
    "ereject",
    "fileinto",
    "ihave",
    "imap4flags",
    "mailbox",
    "reject",
    "relational",
    "subaddress",
    "vacation",
    "vacation-seconds",
    "variables",
)
IMPLIED = {"vacation-seconds": "vacation", "spamtestplus": "spamtest"}
ALWAYS = frozenset({"comparator-i;octet", "comparator-i;ascii-casemap"})
