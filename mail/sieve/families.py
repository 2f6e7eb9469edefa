"""Which commands, tests and extensions there are."""

from mail.sieve import (
    annotations,
    asking,
    attachments,
    base,
    bodies,
    dates,
    duplicates,
    editing,
    filing,
    flags,
    including,
    mimeparts,
    notifying,
    refusing,
    surroundings,
    vacation,
    variables,
)

COMMANDS = {
    one.name: one
    for family in (
        asking,
        base,
        editing,
        filing,
        flags,
        including,
        mimeparts,
        notifying,
        refusing,
        vacation,
        variables,
    )
    for one in family.COMMANDS
}
TESTS = {
    one.name: one
    for family in (
        annotations,
        asking,
        attachments,
        base,
        bodies,
        dates,
        duplicates,
        filing,
        flags,
        notifying,
        surroundings,
        variables,
    )
    for one in family.TESTS
}
EXTENSIONS = (
    "body",
    "comparator-i;ascii-casemap",
    "comparator-i;ascii-numeric",
    "comparator-i;octet",
    "comparator-vnd.merganser.plain",
    "copy",
    "date",
    "duplicate",
    "editheader",
    "encoded-character",
    "enotify",
    "envelope",
    "environment",
    "ereject",
    "extracttext",
    "fcc",
    "fileinto",
    "foreverypart",
    "ihave",
    "imap4flags",
    "include",
    "index",
    "mailbox",
    "mboxmetadata",
    "mime",
    "regex",
    "reject",
    "relational",
    "servermetadata",
    "spamtest",
    "spamtestplus",
    "special-use",
    "subaddress",
    "vacation",
    "vacation-seconds",
    "variables",
    "virustest",
    "vnd.merganser.attachments",
)
IMPLIED = {"vacation-seconds": "vacation", "spamtestplus": "spamtest"}
ALWAYS = frozenset({"comparator-i;octet", "comparator-i;ascii-casemap"})
