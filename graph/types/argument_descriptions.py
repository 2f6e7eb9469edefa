"""Descriptions of arguments and root types that are the same for all fields."""

from collections.abc import Iterable

from graphql import (
    GraphQLDirective,
    GraphQLEnumType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
)

from graph.types.enum_descriptions import VALUE_DESCRIPTIONS

ROOT_TYPE_DESCRIPTIONS = {
    "Query": "Operations that read data.",
    "Mutation": "Operations that change data. The fields of a request run one after another, each "
    "in its own transaction. With `@atomic` all fields run in one transaction.",
    "Subscription": "Operations that stream events.",
}
ARGUMENT_DESCRIPTIONS = {
    "action": "Returns only rules with this action.",
    "queueId": "Queue ID that the `250` reply to the message named, or `QueueEntry.queueId`.",
    "messageId": "Message-ID (RFC 5322), with or without angle brackets.",
    "sender": "Sender of the message. Default: sender rules are not checked.",
    "allowWildcard": "Finds the address that receives mail for the given one: also a catch-all, "
    "and the address without its label.",
    "after": "Returns items after this cursor (`pageInfo.endCursor` of the previous page). Not "
    "allowed with `last`.",
    "debounce": "Least time between two batches, at most PT1M. Default: PT0.05S. The first batch "
    "is sent at once.",
    "before": "Returns items before this cursor (`pageInfo.startCursor` of the next page). "
    "Requires `last`.",
    "by": "Object to return.",
    "expand": "Template with `%{user}`, `%{local}`, `%{domain}` and `%%`, at most 1,000 "
    "characters. The filled-in text is returned under the key `expand`.",
    "fields": "Keys to return. Default: all. An empty list returns nothing.",
    "check": "Looks up each record in DNS. Without the look-up, each `state` is UNKNOWN.",
    "filter": "Returns only items that meet all conditions of the filter. Default: all items.",
    "first": "Returns at most this number of items from the beginning of the list, 0 to 250. "
    "Default: 20.",
    "id": "Global ID of the object.",
    "submission": "Submission to follow. Default: all submissions of the signed-in user.",
    "ids": "Global IDs of the objects, at most 250.",
    "input": "Values and options of the mutation.",
    "types": "Types of events to return, at most 100. Default: all. An empty list returns nothing.",
    "last": "Returns at most this number of items from the end of the list, 0 to 250. Not allowed "
    "with `first`.",
    "mailboxes": "Mailboxes whose events are returned, at most 100. Default: all. An empty list "
    "returns nothing.",
    "markAsSeen": r"Sets the flag \Seen of the message.",
    "maxBytes": "Returns at most this number of bytes, 1 to 16,777,216.",
    "offset": "Number of bytes to skip.",
    "orderBy": "Sort order of the list.",
    "prependPrefix": "Returns names with the prefix `/private` or `/shared`.",
    "section": "Section of the message in IMAP notation (RFC 9051), such as `1.2` or `TEXT`.",
    "patterns": "Returns only mailboxes whose path matches one of these patterns: `*` matches any "
    "characters, `%` any characters except `/`. At most 20 patterns of 1,000 characters. Default: "
    "all mailboxes.",
    "specialUse": "Returns only mailboxes with a special use (RFC 6154).",
    "subscribed": "True returns only subscribed mailboxes, false only the others. Default: both.",
    "users": "Users whose objects are returned. Default: the signed-in user.",
    "showAll": "Includes application passwords that expire when they are not used.",
    "service": "Service that reads the settings: `api`, `imap`, `lmtp`, `pop3` or `smtp`. Default: "
    "settings of all services.",
    "showHidden": "Includes hidden mailboxes.",
    "states": "Returns only submissions in one of these states. Default: all.",
    "task": "Task to follow.",
    "user": "User whose data is returned. Default: the signed-in user.",
    "userdbOnly": "Returns only settings of the user, without mailboxes and limits.",
}
DIRECTIVE_ARGUMENT_DESCRIPTIONS = {
    "auth": {
        "adminPermission": "Permission that a DOMAIN_ADMIN also needs.",
        "role": "Lowest role that can use the field.",
        "scope": "Scope that the credential needs.",
        "userPermission": "Permission that a USER also needs.",
    },
    "cost": {
        "perItem": "True if the cost is charged for each returned object instead of once.",
        "weight": "Cost of the field. Default: 1.",
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
                    argument.description = argument.description or ARGUMENT_DESCRIPTIONS.get(name)
    set_directive_argument_descriptions(schema.directives)


def set_directive_argument_descriptions(directives: Iterable[GraphQLDirective]) -> None:
    """Set the descriptions of directive arguments without one."""
    for directive in directives:
        for name, argument in directive.args.items():
            argument.description = argument.description or DIRECTIVE_ARGUMENT_DESCRIPTIONS.get(
                directive.name, {}
            ).get(name)
