"""Inputs of filters and their conversion to the stored form."""

from collections.abc import Sequence
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.selection_input import MessageSelection
from graph.notifications.references import WebhookRef
from graph.types.access_grants import GIVES_ACCESS
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput, RestrictionsInput
from graph.types.object_references import ObjectRef, id_from_ref
from graph.types.references import (
    MailboxRef,
    UserRef,
    load_visible_user,
    mailbox_selector_from_ref,
    mailbox_selectors_from_refs,
    value_or_none,
)
from graph.types.scalars import ByteSize, Upload, validate_custom_data
from mail.filters.filter_compiler import MAX_DEPTH
from models.errors import InvalidInput
from models.users.list_formats import UserFileFormat
from models.validation_constraints import ValidationConstraint
from resolvers.filters.bulk_create import MAX_FILTERS
from resolvers.filters.loaders import FilterListConditions
from resolvers.filters.validation import MAX_COPIES

UNKNOWN_USER_ID = 0
FLAG_ACTIONS = {"seen": "seen", "flag": "flag", "delete": "delete", "spam": "spam", "stop": "stop"}
LIST_ACTIONS = {
    "forward_to": "forwardTo", "keywords": "keywords", "remove_keywords": "removeKeywords",
}  # fmt: skip
SIMPLE_TESTS = {
    "from_": "from", "to_or_cc": "to", "subject": "subject", "list_id": "listId", "text": "text",
    "has_attachment": "hasAttachment", "larger": "larger", "smaller": "smaller", "query": "query",
}  # fmt: skip


@strawberry.input(one_of=True, description="Reference to one filter.")
class FilterRef(ObjectRef):
    pass


@strawberry.input(description="Test of one header field.")
class HeaderTestInput:
    name: str = attribute_field(
        "Name of the tested header field without the colon, at most 128 characters."
    )
    value: str | None = attribute_field(
        "Text that the value contains, ignoring case, with 1 to 255 characters. Default: the "
        "field only has to exist.",
        default=UNSET,
    )


@strawberry.input(
    description="Test of a text with a POSIX extended regular expression, ignoring case."
)
class RegexTestInput:
    name: str | None = attribute_field(
        "Name of the tested header field. Default: the text parts of the body are tested.",
        default=UNSET,
    )
    pattern: str = attribute_field(
        "Regular expression of 1 to 200 characters. If it takes too many steps, the filter does "
        "not match."
    )


@strawberry.input(
    description=(
        "Tests of a filter. A message matches if all tests hold; without tests every message "
        "matches. Each text has 1 to 255 characters and matches a part of the value, ignoring "
        "case. Runs of white space count as one space. Groups are nested at most 5 levels deep, "
        "and an empty group is an error. A filter has at most 100 parts: each query counts as one, "
        "also this one, and each test and group in it. In an update, null removes a test."
    )
)
class FilterQueryInput(RestrictionsInput):
    restriction_fields = frozenset({"all", "any", "not_"})
    from_: str | None = attribute_field(
        "Text that the header field From or Sender contains. Default: no such test.",
        name="from",
        default=UNSET,
    )
    to_or_cc: str | None = attribute_field(
        "Text that the header field To or Cc contains. Default: no such test.", default=UNSET
    )
    subject: str | None = attribute_field(
        "Text that the subject contains. Default: no such test.", default=UNSET
    )
    list_id: str | None = attribute_field(
        "Text that the header field List-Id (RFC 2919) contains. Default: no such test.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        "Text that a text part of the body contains. HTML is tested without its tags. Default: no "
        "such test.",
        default=UNSET,
    )
    has_attachment: bool | None = attribute_field(
        "True matches messages with an attachment, false messages without one. Default: no such "
        "test.",
        default=UNSET,
    )
    larger: ByteSize | None = attribute_field(
        "Size in bytes that the message must exceed, at least 1. Default: no such test.",
        default=UNSET,
    )
    smaller: ByteSize | None = attribute_field(
        "Size in bytes that the message must stay below, at least 1. Default: no such test.",
        default=UNSET,
    )
    header: HeaderTestInput | None = attribute_field(
        "Test of one header field, given by its name. Default: no such test.", default=UNSET
    )
    regex: RegexTestInput | None = attribute_field(
        "Test of a header field or of the body with a regular expression. Default: no such test.",
        default=UNSET,
    )
    query: str | None = attribute_field(
        "Search text in the language of `messages(query:)`, such as `from:ann (subject:bill OR "
        "larger:5M)`. A word matches a part of Subject, From, To, Cc or the body. Each term "
        "counts as a test. Terms that are not known at delivery, such as `mailbox:`, `keyword:` "
        "or `is:seen`, are an error.",
        default=UNSET,
    )
    all: list["FilterQueryInput"] | None = attribute_field(
        "Queries that must all match. Default: no such test.", default=UNSET
    )
    any: list["FilterQueryInput"] | None = attribute_field(
        "Queries of which at least one must match. Default: no such test.", default=UNSET
    )
    not_: list["FilterQueryInput"] | None = attribute_field(
        "Queries of which none may match. Default: no such test.", name="not", default=UNSET
    )

    def to_validated_stored_query(
        self, error_path: Sequence[str], depth: int = 0
    ) -> dict[str, Any]:
        """Return the tests in their stored form.

        Absent fields are left out; null removes a test. Raises InvalidInput if the groups are
        nested too deep.
        """
        if depth > MAX_DEPTH:
            message = f"Groups (all, any, not) are nested at most {MAX_DEPTH} levels deep."
            raise InvalidInput(message, constraint=ValidationConstraint.DEPTH, path=error_path)
        tests = {
            stored_name: value
            for name, stored_name in SIMPLE_TESTS.items()
            if (value := getattr(self, name)) is not UNSET
        }
        if self.header is not UNSET:
            header = self.header
            tests["header"] = header and {"key": header.name, "value": value_or_none(header.value)}
        if self.regex is not UNSET:
            regex = self.regex
            tests["regex"] = regex and {"key": value_or_none(regex.name), "pattern": regex.pattern}
        for stored_name, queries in (("all", self.all), ("any", self.any), ("not", self.not_)):
            if queries is not UNSET:
                tests[stored_name] = [
                    header.to_validated_stored_query(error_path, depth + 1)
                    for header in queries or ()
                ]
        return tests


@strawberry.input(
    description="Reply of a filter to the sender of a message. Text, HTML or both are required."
)
class FilterReplyInput:
    subject: str | None = attribute_field(
        "Subject of the reply, at most 512 bytes. Default: the subject of the original message.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        "Body of the reply as plain text, at most 16 KiB. Default: none.", default=UNSET
    )
    html: str | None = attribute_field(
        "Body of the reply as HTML, at most 16 KiB. Default: none.", default=UNSET
    )


@strawberry.input(
    description=(
        "Actions of a filter on a matching message. An omitted action leaves the decision to other "
        "filters. Of `seen`, `flag`, `delete`, `spam` and `mailbox`, the first matching filter "
        "that has the action decides. In an update, null or an empty list removes an action. A "
        "filter must have at least one action."
    )
)
class FilterActionInput:
    seen: bool | None = attribute_field(
        "True sets the flag \\Seen. False keeps filters that run later from setting it. "
        "Default: other filters decide.",
        default=UNSET,
    )
    flag: bool | None = attribute_field(
        "True sets the flag \\Flagged. False keeps filters that run later from setting it. "
        "Default: other filters decide.",
        default=UNSET,
    )
    delete: bool | None = attribute_field(
        "True discards the message instead of storing it, so that `copyTo` stores no "
        "copies; forwards, replies and webhooks still run. False keeps filters that run "
        "later from discarding it. Default: other filters "
        "decide.",
        default=UNSET,
    )
    spam: bool | None = attribute_field(
        "True stores the message in Junk, unless the spam level of the user is 100. False keeps "
        "it out of Junk and the quarantine, whatever its spam score, unless it has a virus. A "
        "message that is refused for its score stays refused. Default: other filters or the spam "
        "verdict decide.",
        default=UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox of the filter's owner that the message is stored in. One with the special use "
        "SNOOZED or SCHEDULED is refused. NOT_FOUND if the caller can't see it: a DOMAIN_ADMIN "
        "sees those of other users only with the permission IMPERSONATE. Spam is stored in Junk "
        "instead, unless `spam` is false. Default: other filters or the Sieve script decide, "
        "otherwise INBOX, or Junk for spam.",
        default=UNSET,
    )
    copy_to: list[MailboxRef] | None = attribute_field(
        "Mailboxes of the filter's owner that get an additional copy, at most 10. Those with the "
        "special use SNOOZED or SCHEDULED are refused, and those that the caller can't see are "
        "NOT_FOUND. Each copy counts for the quota. Default: none.",
        default=UNSET,
    )
    forward_to: list[str] | None = attribute_field(
        "Addresses, `smtp://` or `smtps://` relays, and `http://` or `https://` URLs that get a "
        "copy, at most 4. An address of the filter's owner is an error, and by default a host in "
        "a private network. Spam is stored instead of forwarded, even if `delete` is true. A "
        "relay given with the password `***` keeps its stored password. Default: none.",
        default=UNSET,
        metadata=GIVES_ACCESS,
    )
    keywords: list[str] | None = attribute_field(
        "Keywords (RFC 9051) that are added to the message, at most 32. Default: none.",
        default=UNSET,
    )
    remove_keywords: list[str] | None = attribute_field(
        "Keywords (RFC 9051) that the message does not get, even if another filter or a script "
        "adds them, at most 32. Default: none.",
        default=UNSET,
    )
    reply: FilterReplyInput | None = attribute_field(
        "Reply to the sender. If several filters match, only the first reply is sent. It requires "
        "that To or Cc has an address of the user, and is suppressed for the same reasons as an "
        "autoreply. A sender gets it at most once in the interval of the setting "
        "`autoreply.interval`. Default: none.",
        default=UNSET,
    )
    webhook: WebhookRef | None = attribute_field(
        "Webhook that gets a FILTER_MATCHED event with the ID and size of the message. The ID is "
        "null if the message is not stored. The webhook must belong to the owner of the filter, "
        "else NOT_FOUND. Default: none.",
        default=UNSET,
        metadata=GIVES_ACCESS,
    )
    stop: bool | None = attribute_field(
        "True runs no filter after this one if it matches. The active Sieve script still runs. "
        "Default: false.",
        default=UNSET,
    )

    def to_validated_stored_action(self, *error_path: str) -> dict[str, Any]:
        """Return the actions in their stored form.

        Absent fields are left out; null removes an action. `error_path` is the path of the input,
        for errors. Raises InvalidInput if an ID is not valid or there are too many mailboxes.
        """
        actions: dict[str, Any] = {
            stored_name: value
            for name, stored_name in {**FLAG_ACTIONS, **LIST_ACTIONS}.items()
            if (value := getattr(self, name)) is not UNSET
        }
        if self.mailbox is not UNSET:
            actions["mailbox"] = self.mailbox and mailbox_selector_from_ref(
                self.mailbox, path=[*error_path, "mailbox"]
            )
        if self.copy_to is not UNSET:
            mailboxes = self.copy_to or ()
            if len(mailboxes) > MAX_COPIES:
                message = f"At most {MAX_COPIES} mailboxes are allowed."
                raise InvalidInput(
                    message, constraint=ValidationConstraint.MAX, path=[*error_path, "copyTo"]
                )
            actions["copyTo"] = mailbox_selectors_from_refs(mailboxes, path=[*error_path, "copyTo"])
        if self.reply is not UNSET:
            reply = self.reply
            actions["reply"] = reply and {
                "subject": value_or_none(reply.subject),
                "text": value_or_none(reply.text),
                "html": value_or_none(reply.html),
            }
        if self.webhook is not UNSET:
            ref = self.webhook
            actions["webhook"] = ref and id_from_ref(ref, *error_path, "webhook")
        return actions


@strawberry.input(
    description="Filter that filtersCreate creates. It has the fields of FilterCreateInput except "
    "`options`, which is given once for all filters, in FiltersCreateInput."
)
class NewFilterInput:
    user: UserRef | None = attribute_field(
        "Owner of the filter. Default: the signed-in user.", default=UNSET
    )
    name: str | None = attribute_field(
        "Name of the filter, at most 255 characters. Default: empty.", default=UNSET
    )
    query: FilterQueryInput = attribute_field(
        "Tests that a message must pass. Without a test every message matches."
    )
    action: FilterActionInput = attribute_field("Actions on a matching message, at least one.")
    active: bool | None = attribute_field(
        "True runs the filter on received messages. Default, and with null: true.", default=True
    )
    position: int | None = attribute_field(
        "Position in the run order, a 32-bit integer. The lowest runs first, equal ones by age. "
        "Default: after the last filter.",
        default=UNSET,
    )
    metadata: JSON | None = attribute_field(
        "JSON object that clients store with the filter, at most 64 KiB by default. Default: none.",
        default=UNSET,
    )

    def to_column_values(self) -> dict[str, Any]:
        """Return the values that the input sets, by column. Raises InvalidInput."""
        return _filter_column_values_from_input(self, ())


@strawberry.input(description="Input of filterCreate.")
class FilterCreateInput(Options, NewFilterInput):
    pass


@strawberry.input(description="Input of filtersCreate.")
class FiltersCreateInput(Options):
    filters: list[NewFilterInput] = attribute_field(f"Filters to create, 1 to {MAX_FILTERS}.")


@strawberry.input(description="Input of filtersCreateFromFile.")
class FiltersCreateFromFileInput(Options):
    file: Upload = attribute_field(
        "Uploaded UTF-8 file. The task consumes the upload. Its fields have the names of "
        "`NewFilterInput`; `user`, `query` and `action` are required. `user` has the username or "
        "an address of the owner. `query` and `action` are JSON objects, in CSV too. In `action`, "
        "mailboxes are given by path, and `webhook` is not allowed. JSON Lines has an object in "
        "each line. CSV has the field names in its first line.",
        metadata=GIVES_ACCESS,
    )
    format: UserFileFormat | None = attribute_field(
        "Format of the file. Default: JSON_LINES if the file begins with a brace, else CSV.",
        default=UNSET,
    )


@strawberry.input(
    description="Changes to filters. An omitted field is unchanged. At least one field is required."
)
class FilterPatch:
    name: str | None = attribute_field(
        "Name of the filters, at most 255 characters. Null: empty.", default=UNSET
    )
    query: FilterQueryInput | None = attribute_field(
        "Tests to set. A test that is null is removed, an omitted test is unchanged. Without "
        "tests every message matches. Null instead of the object changes nothing.",
        default=UNSET,
    )
    action: FilterActionInput | None = attribute_field(
        "Actions to set. An action that is null is removed, an omitted action is unchanged. Null "
        "instead of the object changes nothing.",
        default=UNSET,
    )
    active: bool | None = attribute_field(
        "True runs the filters on received messages, false stops that. Null changes nothing.",
        default=UNSET,
    )
    position: int | None = attribute_field(
        "Position in the run order, a 32-bit integer. The lowest runs first, equal ones "
        "by age. Null changes nothing.",
        default=UNSET,
    )
    metadata: JSON | None = attribute_field(
        "JSON object that clients store with the filters, at most 64 KiB by default. "
        "Null removes it.",
        default=UNSET,
    )

    def to_column_values(self) -> dict[str, Any]:
        """Return the values that the input sets, by column. Raises InvalidInput."""
        return _filter_column_values_from_input(self, ("set",))


def _filter_column_values_from_input(
    filter_input: NewFilterInput | FilterPatch, error_path: Sequence[str]
) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out."""
    values: dict[str, Any] = {
        name: value
        for name in ("name", "active", "position")
        if (value := getattr(filter_input, name)) is not UNSET
    }
    if filter_input.query:
        values["query"] = filter_input.query.to_validated_stored_query([*error_path, "query"])
    if filter_input.action:
        values["action"] = filter_input.action.to_validated_stored_action(*error_path, "action")
    if filter_input.metadata is not UNSET:
        values["public_metadata"] = validate_custom_data(filter_input.metadata, "metadata")
    return values


@strawberry.input(description="Input of filterUpdate.")
class FilterUpdateInput(Options):
    filters: list[FilterRef] = attribute_field(
        "Filters to change, 1 to 1,000. The setting `bulk.maxItems` changes this limit."
    )
    set: FilterPatch = attribute_field(
        "Values to change, the same for all filters. At least one value is required."
    )


@strawberry.input(description="Input of filterDelete.")
class FilterDeleteInput(Options):
    filters: list[FilterRef] = attribute_field(
        "Filters to delete, 1 to 1,000. The setting `bulk.maxItems` changes this limit."
    )


@strawberry.input(description="Input of filterApply.")
class FilterApplyInput(Options):
    filters: list[FilterRef] = attribute_field(
        "Filters of the signed-in user to run, 1 to 100. Inactive ones run too. They run in the "
        "order of `Filter.position`, not of the list."
    )
    select: MessageSelection = attribute_field(
        "Stored messages of the signed-in user that the filters run on. The field `users` is not "
        "allowed in it."
    )


@strawberry.input(description="Conditions on filters. All of them must hold.")
class FilterFilter(ConditionsInput):
    name: str | None = attribute_field(
        "Returns only filters with this text in the name. Case and accents are ignored. At most "
        "1,000 characters.",
        default=UNSET,
    )
    active: bool | None = attribute_field(
        "True returns only active filters, false only the others.", default=UNSET
    )
    forward: str | None = attribute_field(
        "Returns only filters with this text in a target of `forwardTo`. Case and accents are "
        "ignored. At most 1,000 characters.",
        default=UNSET,
    )
    user: UserRef | None = attribute_field(
        "Returns only filters of this user. A user that does not exist has none, and is no error. "
        "`User.filters` refuses this condition.",
        default=UNSET,
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> FilterListConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no filter.
        """
        user = await load_visible_user(info, self.user) if self.user else None
        return FilterListConditions(
            target_part=self.forward or None,
            user_id=(user.id if user else UNKNOWN_USER_ID) if self.user else None,
            name_part=self.name or None,
            active=value_or_none(self.active),
        )
