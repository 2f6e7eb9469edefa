"""All commands, tests and extensions by name."""

from mail.sieve.extensions import (
    attachments,
    body,
    core_commands,
    date,
    duplicate,
    editheader,
    enotify,
    environment,
    ihave,
    imap4flags,
    include,
    mailboxes,
    metadata,
    mime,
    reject,
    vacation,
    variables,
)

COMMANDS = {
    command.name: command
    for family in (
        ihave,
        core_commands,
        editheader,
        mailboxes,
        imap4flags,
        include,
        mime,
        enotify,
        reject,
        vacation,
        variables,
    )
    for command in family.COMMANDS
}
TESTS = {
    test.name: test
    for family in (
        metadata,
        ihave,
        attachments,
        core_commands,
        body,
        date,
        duplicate,
        mailboxes,
        imap4flags,
        enotify,
        environment,
        variables,
    )
    for test in family.TESTS
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
IMPLIED_EXTENSIONS = {"vacation-seconds": "vacation", "spamtestplus": "spamtest"}
ALWAYS_ENABLED = frozenset({"comparator-i;octet", "comparator-i;ascii-casemap"})
