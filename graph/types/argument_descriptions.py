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
    "Query": "What can be read.",
    "Mutation": "What can be changed. Fields run one after another, each a unit of its own; "
    "@atomic makes one of all.",
    "Subscription": "What can be followed.",
}
ARGUMENT_DESCRIPTIONS = {
    "action": "Only rules that say this.",
    "actor": "Only what this user did.",
    "address": "Any spelling, with or without a label.",
    "queueId": "Of a message that came in, or is on its way out.",
    "messageId": "Message-ID, with or without angle brackets.",
    "sender": "Who would send it; then rules about senders count.",
    "allowWildcard": "As mail is delivered: also by pattern, and without a label.",
    "after": "Behind this cursor; of a subscription: what came later, nothing given = from now.",
    "debounce": "Least time between two batches; the first goes at once.",
    "before": "Ahead of this cursor, with last.",
    "altNames": "Look in all their names, and for a wildcard that covers the query.",
    "by": "Which one.",
    "exact": "Only the entry whose key is the prefix.",
    "expand": "A template such as %{user}, with %{local} and %{domain} too; it comes as expand.",
    "fields": "Keys to return. Default: all. An empty list returns nothing.",
    "check": "Look up what DNS says now.",
    "filter": "Only those for which all of this holds.",
    "first": "How many from the beginning, at most 250; 20 where neither first nor last is given.",
    "id": "Global id.",
    "submission": "The submission. Default: all submissions of the viewer.",
    "ids": "Global ids, at most 250.",
    "input": "All that the mutation takes.",
    "key": "Key of the setting.",
    "types": "Types of events to return. Default: all. An empty list returns nothing.",
    "last": "How many from the end, at most 250.",
    "mailboxes": "Mailboxes whose events to return. Default: all. An empty list returns nothing.",
    "markAsSeen": r"Set \Seen, as reading it in a mail program does.",
    "mutation": "Only this mutation.",
    "maxBytes": "Cut after so many bytes.",
    "name": "Name of the header field, in any case.",
    "noValue": "Keys alone: each value is null.",
    "offset": "Where to begin, in bytes, counted from 0.",
    "orderBy": "Order of the list.",
    "prefix": "How keys begin; one that ends with a slash is a level, and nothing is the first.",
    "query": "Partial match.",
    "recurse": "The levels below too.",
    "remoteImages": "Let images from elsewhere in: their servers learn that it is read.",
    "sanitize": "Without scripts, forms and what else is dangerous in a page.",
    "section": "IMAP section, such as 1.2, HEADER or 2.MIME.",
    "shared": "Of those that everybody may read.",
    "since": "From then on.",
    "patterns": "Only paths that fit one: * is anything, % anything within a level.",
    "prependPrefix": "Names with /private or /shared before them.",
    "specialUse": "Only folders with a role.",
    "subscribed": "Only folders that are, or are not.",
    "users": "Whose. Default: the signed-in user.",
    "showAll": "Also those that end after a time unused.",
    "service": "One of api, imap, lmtp, pop3 and smtp.",
    "showHidden": "Also folders that are hidden.",
    "store": "Named store.",
    "states": "Only in one of these states.",
    "targetId": "Only what was done to this.",
    "until": "Earlier than this.",
    "task": "The background task.",
    "user": "Whose; nothing given = the viewer's.",
    "userdbOnly": "Only what is of the account itself.",
}
DIRECTIVE_ARGUMENT_DESCRIPTIONS = {
    "auth": {
        "adminPermission": "What a DOMAIN_ADMIN must have been given as well.",
        "role": "The least role.",
        "scope": "What the credential must be good for.",
        "userPermission": "What a USER must have been given as well.",
    },
    "cost": {
        "perItem": "Paid for each object that comes, not once.",
        "weight": "What the field itself costs.",
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
