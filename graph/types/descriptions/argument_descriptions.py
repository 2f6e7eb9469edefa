"""Descriptions of arguments and root types that are the same for all fields."""

import re
from collections.abc import Iterable

from graphql import (
    GraphQLArgument,
    GraphQLDirective,
    GraphQLEnumType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    is_required_argument,
)

from graph.types.descriptions.enum_descriptions import VALUE_DESCRIPTIONS

DEFAULT_SENTENCE = re.compile(r" Default: [^.]+\.")
ROOT_TYPE_DESCRIPTIONS = {
    "Query": "Operations that read data.",
    "Mutation": "Operations that change data. The fields of a request run one after another, each "
    "in its "
    "own transaction. With `@atomic` all fields run in one transaction. Expected errors are in "
    "the field `errors` of each payload. The description of a field lists its own error codes. "
    "Every field can also return the following codes. VALIDATION: a value of the input is not "
    "allowed. NOT_FOUND: an object does not exist, or the caller can't see it. FORBIDDEN: the "
    "credential lacks a role, scope or permission. FORBIDDEN_OPERATION: no credential allows "
    "the operation. DAMAGED: stored bytes that the field needs are lost or damaged. ABORTED: "
    "another field of the `@atomic` request failed. UNAVAILABLE: concurrent requests changed "
    "the same objects; retry. CONFLICT: the `idempotencyKey` was used with another input, or "
    "its first request is in progress.",
    "Subscription": "Operations that stream events.",
}
ARGUMENT_DESCRIPTIONS = {
    "action": "Returns only rules with this action.",
    "queueId": "Queue ID that the `250` reply to the message named, or `QueueEntry.queueId`.",
    "messageIdHeader": "Message-ID (RFC 5322), with or without angle brackets.",
    "sender": "Sender of the message. Default: sender rules are not checked.",
    "allowWildcard": (
        "True returns the active, unexpired address that would receive mail for the given one, "
        "also a pattern such as `*@example.org`. Ignored with an ID."
    ),
    "after": "Returns items after this cursor (`pageInfo.endCursor` of the previous page). Not "
    "allowed with `last`.",
    "debounce": "Least time between two batches, at most PT1M. Default: PT0.05S. The first batch "
    "is sent at once, and so is a batch after one with `hasMore`.",
    "before": (
        "Returns items before this cursor (`pageInfo.startCursor` of the page that follows these "
        "items). Requires `last`, else the error is BAD_PAGINATION."
    ),
    "by": "Reference to the object that is returned.",
    "expand": (
        "Template with `%{user}`, `%{local}`, `%{domain}` and `%%`, at most 1,000 characters. "
        "`%{user}` is the username, `%{local}` and `%{domain}` are the parts of the main address "
        "or else of the username. The filled-in text is returned as the setting `expand`. Another "
        "variable is the error VALIDATION. Default: no setting `expand` is returned."
    ),
    "fields": (
        "Keys of the settings to return. An unknown key is ignored. Default: all. An empty list "
        "returns no setting except `expand`. The setting `expand` is always returned if the "
        "argument `expand` is given."
    ),
    "check": "Looks up each record in DNS. Without the look-up, each `state` is UNKNOWN. "
    "FORBIDDEN_OPERATION in an @atomic mutation.",
    "filter": "Returns only items that meet all conditions of the filter. Default: all items.",
    "first": (
        "Returns at most this number of items, 0 to 250; more is the error BAD_PAGINATION. They "
        "are the first items of the list, or the first after the cursor `after`. Default: 20, "
        "unless `last` is given."
    ),
    "id": "Global ID of the object.",
    "submission": "Submission to follow. Default: all submissions of the signed-in user.",
    "ids": "Global IDs of the objects, at most 250.",
    "types": "Types of events to return, at most 100. A ResyncChange is returned in any case. "
    "Default: all types. An empty list returns no other event.",
    "last": (
        "Returns at most this number of items from the end of the list, in the order of the list, "
        "0 to 250; more is the error BAD_PAGINATION. Not allowed with `first`."
    ),
    "mailboxes": "Returns only events of these mailboxes and of their messages, at most 100 "
    "mailboxes. A ResyncChange is returned in any case. Default: all events. An empty "
    "list returns no other event.",
    "markAsSeen": r"Sets the flag \Seen of the message.",
    "maxBytes": "Returns at most this number of bytes, 1 to 16,777,216.",
    "offset": "Number of bytes to skip.",
    "orderBy": "Order in which the items of the list are returned.",
    "prependPrefix": "Returns names with the prefix `/private` or `/shared`.",
    "section": "Section number of a MIME part in IMAP notation (RFC 9051), such as `1.2`, or "
    "`TEXT` for the body of the whole message. For HEADER, MIME and a missing part the result "
    "is null.",
    "users": "Users whose objects are returned. Default: the signed-in user.",
    "service": "Service that reads the settings: `api`, `imap`, `lmtp`, `pop3` or `smtp`. Default: "
    "settings of all services.",
    "states": "Returns only submissions in one of these states. Default: all.",
    "task": "Task to follow.",
    "user": "User whose data is returned. Default: the signed-in user.",
    "userdbOnly": "True leaves out mailboxes, the password policy, the retention and all limits "
    "except the storage quota.",
}
DIRECTIVE_ARGUMENT_DESCRIPTIONS = {
    "auth": {
        "adminPermission": "Permission that a DOMAIN_ADMIN also needs.",
        "role": "Lowest role that can use the field.",
        "scope": "Scope that the credential needs.",
        "userPermission": "Permission that a USER also needs.",
    },
    "cost": {
        "defaultPageSize": "Number of items that are charged for a connection if neither `first` "
        "nor `last` is given. Default: 20.",
        "perItem": "True if the cost is charged for each returned object instead of once.",
        "weight": "Cost of the field in points, about 10 microseconds of work each. Default: 1.",
    },
}


def set_missing_descriptions(schema: GraphQLSchema) -> None:
    """Set the descriptions of all arguments, enum values and root types without one."""
    for kind in schema.type_map.values():
        if kind.name.startswith("__"):
            continue
        if kind.name in ROOT_TYPE_DESCRIPTIONS:
            kind.description = ROOT_TYPE_DESCRIPTIONS[kind.name]
        if isinstance(kind, GraphQLEnumType):
            for name, value in kind.values.items():
                value.description = value.description or VALUE_DESCRIPTIONS.get(kind.name, {}).get(
                    name
                )
        if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for field in kind.fields.values():
                for name, argument in field.args.items():
                    argument.description = argument.description or _argument_text(name, argument)
    set_directive_argument_descriptions(schema.directives)


def _argument_text(name: str, argument: GraphQLArgument) -> str | None:
    """Return the shared description of an argument, with the default order of a list.

    A required argument has no default.
    """
    text = ARGUMENT_DESCRIPTIONS.get(name)
    if text and is_required_argument(argument):
        return DEFAULT_SENTENCE.sub("", text)
    if name == "orderBy" and isinstance(argument.default_value, str):
        return f"{text} Default: {argument.default_value}."
    return text


def set_directive_argument_descriptions(directives: Iterable[GraphQLDirective]) -> None:
    """Set the descriptions of directive arguments without one."""
    for directive in directives:
        for name, argument in directive.args.items():
            argument.description = argument.description or DIRECTIVE_ARGUMENT_DESCRIPTIONS.get(
                directive.name, {}
            ).get(name)
