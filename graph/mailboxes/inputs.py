"""Inputs of mutations on mailboxes."""

import strawberry
from strawberry import UNSET

from graph.types.errors import Options, attribute_field
from graph.types.references import (
    MailboxRef,
    UserSelection,
)
from graph.types.scalars import Duration
from models.mailboxes.tables import SpecialUse

USERS_DESCRIPTION = "Users whose own mailboxes are changed. Default: the signed-in user."


@strawberry.input(description="Input of mailboxCreate.")
class MailboxCreateInput(Options):
    users: UserSelection | None = attribute_field(
        "Users who get the mailboxes. Not allowed with `parent`. Default: the signed-in user.",
        default=UNSET,
    )
    paths: list[str] = attribute_field(
        "Paths of the new mailboxes in Unicode, with `/` between levels: at least one, each once. "
        "With `parent` they are relative to that mailbox. A full path has at most 128 levels, each "
        "of 1 to 512 characters. A level is refused if it looks like INBOX or the name of a "
        "special-use mailbox, but has other characters, such as Cyrillic ones. Missing parents are "
        "created too: visible, subscribed and with inherited retention. The other fields of this "
        "input apply only to the mailboxes of `paths`."
    )
    parent: MailboxRef | None = attribute_field(
        "Mailbox that `paths` begin below. A mailbox of another user must be named by its ID, and "
        "the signed-in user needs the right CREATE there. The new mailboxes then get the shares "
        "of `parent`, while `specialUse` and `encryptMessages` are FORBIDDEN_OPERATION. Not "
        "allowed with `users`. Default: the top level.",
        default=UNSET,
    )
    hidden: bool = attribute_field(
        "True: lists and totals omit the new mailboxes unless `showHidden` is true, and they "
        "can't be renamed or deleted. Default: false.",
        default=False,
    )
    retention: strawberry.Maybe[Duration | None] = attribute_field(
        "Time from the addition of a message to its deletion: 1 second to 36,500 days. A deleted "
        "message can be restored for 25 days by default. Null: messages are kept for ever. "
        "Default: inherited from the account."
    )
    subscribe: bool = attribute_field(
        "True subscribes the users to the new mailboxes. False: a user is subscribed "
        "only to a path with an earlier subscription. Default: true.",
        default=True,
    )
    encrypt_messages: bool = attribute_field(
        "True encrypts messages that are delivered, imported or sent into the new mailboxes, "
        "except drafts and messages that are moved there. Each user needs an OpenPGP key. "
        "Default: false.",
        default=False,
    )
    object_id: str | None = attribute_field(
        "MAILBOXID of the new mailbox (RFC 8474): 32 hexadecimal digits in lower case. Allowed "
        "with one path and one user. If another mailbox of the user has it: CONFLICT. "
        "Default: a random one.",
        default=UNSET,
    )
    special_use: SpecialUse | None = attribute_field(
        "Special use of the new mailbox (RFC 6154), allowed with one path. Another mailbox of the "
        "user with this special use is a CONFLICT. Default: none.",
        default=UNSET,
    )


@strawberry.input(description="Input of mailboxRename.")
class MailboxRenameInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    mailbox: MailboxRef = attribute_field(
        "Mailbox to rename. Each selected user must own such a mailbox: one that another user "
        "shares is NOT_FOUND."
    )
    new_path: str = attribute_field(
        "New full path in Unicode, with `/` between levels. A level that only looks like INBOX or "
        "a special mailbox is refused. Missing parents are created. A path below the mailbox "
        "itself is refused, that of another mailbox is a CONFLICT, and the present path changes "
        "nothing."
    )
    rename_subscriptions: bool = attribute_field(
        "True turns subscriptions to the old paths into subscriptions to the new ones; false "
        "keeps the subscriptions to the old paths. A user can have at most 1,500 subscriptions to "
        "paths without a mailbox (by default). Default: true.",
        default=True,
    )


@strawberry.input(description="Input of mailboxDelete.")
class MailboxDeleteInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose mailboxes are deleted. Default: the signed-in user.",
        default=UNSET,
    )
    mailboxes: list[MailboxRef] = attribute_field(
        "Mailboxes to delete, 1 to 1,000 by default. Each selected user must own all of them: one "
        "that another user shares is NOT_FOUND."
    )
    require_empty: bool = attribute_field(
        "True deletes only mailboxes without messages: if one has messages, the error is "
        "CONFLICT and none is deleted. Default: false.",
        default=False,
    )
    recursive: bool = attribute_field(
        "True also deletes all mailboxes below. If false, a mailbox with others below it that "
        "are not in `mailboxes` is a CONFLICT. Default: false.",
        default=False,
    )
    unsubscribe: bool = attribute_field(
        "True also ends the subscriptions to the deleted mailboxes. False is refused with "
        "LIMIT_REACHED if the user would have more than 1,500 subscriptions (by default) to paths "
        "without a mailbox. Default: true.",
        default=True,
    )
