"""Rules for descriptions of the schema, as a command for `make check`.

`python -m tests.support.schema.description_rules` prints the descriptions that break a rule.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping

from graphql import (
    GraphQLArgument,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLSchema,
    get_named_type,
)

from graph.types.descriptions.input_examples import EXAMPLES_BY_SCALAR
from tests.support.schema.naming_rules import iter_describable
from tests.support.schema.printed_schema import SDL

ROOT_TYPES = ("Query", "Mutation", "Subscription")
# Sentences that graph/types/requirement_texts.py appends.
REQUIREMENT = re.compile(
    r" ?((Requires|A (USER|DOMAIN_ADMIN|USER or DOMAIN_ADMIN) also needs|Requires no credential"
    r"|Cost:|Errors:)[^.]*"
    r"|Other users require the scope [A-Z]+"
    r"|[^.]*FORBIDDEN for an administrator who acts as the user \(`userImpersonate`\)"
    r"|[^.]* can (also )?use this (query|mutation|subscription|field)( only)? for [^.]*)\."
)
# A description that begins so depends on another one, which the sorted schema moves away.
FRAGMENT_START = re.compile(
    r"(And|Or|Of|To|By|Whose|Who|Which|Where|Whether|Also|Then|What|How|If absent|Nothing)\b"
)
# A description that needs the neighbour which names the thing.
NEIGHBOUR_REFERENCE = re.compile(
    r"(Estimated )?([Ss]ize|Number|Duration|Bytes) (of|that) (these|those)\b"
)
# What an author noted for other texts, such as "(Same sentence for `blobCopy`.)".
AUTHORS_NOTE = re.compile(r"[—–]|\b[Ss]ame sentences?\b|\([Ss]ame for\b|\b[Ll]ikewise:")  # noqa: RUF001
UNCLEAR_PHRASES = (
    "whoever", "of ours", "stand", "stands", "by itself", "letter", "letters", "told", "tell of",
    "tells of", "elsewhere", "nothing given", "the viewer's", "those there", "afresh", "anew",
    "such as are", "one's own", "in the house",
)  # fmt: skip
UNCLEAR_WORDS = re.compile(
    rf"\b(nothing|null|absent|empty) = |\b({'|'.join(UNCLEAR_PHRASES)})\b", re.IGNORECASE
)
ROOT_VERB = re.compile(r"[A-Z][a-z]+s\b")
WORD = re.compile(r"[a-z0-9]+")
# The last but for the requirements, as graph/types/descriptions/input_examples.py appends it.
EXAMPLE = re.compile(r" ?Example: `([^`]+)`\.$")
SCALARS_WITH_FORMAT = {*EXAMPLES_BY_SCALAR, "Duration"}
# String arguments and input fields that take any text, or a value that another field returned.
SELF_EVIDENT_NAMES = frozenset(
    [
        "after",
        "anyRecipient",
        "bcc",
        "before",
        "body",
        "ca",
        "cc",
        "cert",
        "clientId",
        "clientSecret",
        "comment",
        "contains",
        "content",
        "correlationId",
        "description",
        "existingPassword",
        "from",
        "html",
        "internalHtml",
        "internalSubject",
        "internalText",
        "issuer",
        "key",
        "label",
        "name",
        "newName",
        "openpgpPublicKey",
        "passphrase",
        "password",
        "prefix",
        "privateComment",
        "privateKey",
        "publicComment",
        "query",
        "queueId",
        "raw",
        "reason",
        "secret",
        "sessionId",
        "signatureHtml",
        "signatureText",
        "subject",
        "text",
        "title",
        "to",
        "toOrCc",
        "token",
        "value",
    ]
)
# Fields of interfaces and short objects whose name and type say all.
SELF_EVIDENT_FIELDS = frozenset(
    [
        "Change.type",
        "ContactSuggestion.address",
        "LegalHoldAccess.at",
        "LimitChange.type",
        "MailboxChange.type",
        "MessageChange.type",
        "ResyncChange.type",
        "SubmissionChange.type",
        "UserChange.type",
    ]
)
# Fields and arguments whose text fits every type that they have.
NAMES_WITH_SHARED_TEXT = frozenset({"by", "edge", "filter", "mailbox", "node", "orderBy"})
FILLER_WORDS = frozenset({"a", "an", "the", "of", "this", "is", "its", "it"})


def words_of(text: str) -> set[str]:
    """The words of a name or a text, in lower case and without plural."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).replace("_", " ").lower()
    return {word.removesuffix("s") for word in WORD.findall(spaced)} - FILLER_WORDS


def broken_rules(coordinate: str, text: str, member_type: str = "") -> Iterator[str]:
    """Yield the rules that a description breaks. `text` has no sentences about requirements.

    `member_type` is the name of the type of a field, argument or input field.
    """
    type_name, _, field_name = coordinate.partition(".")
    if FRAGMENT_START.match(text):
        yield "begins as a fragment"
    if NEIGHBOUR_REFERENCE.match(text):
        yield "refers to another description"
    if AUTHORS_NOTE.search(text):
        yield "contains a note for authors"
    if word := UNCLEAR_WORDS.search(text):
        yield f"contains {word[0]!r}"
    if field_name and coordinate not in SELF_EVIDENT_FIELDS:
        if words_of(text) <= words_of(coordinate):
            yield "only repeats the name"
        elif words_of(text) <= words_of(coordinate) | words_of(member_type):
            yield "only repeats the name and the type"
    is_root_field = type_name in ROOT_TYPES and field_name and "(" not in field_name
    if is_root_field and not ROOT_VERB.match(text):
        yield "does not begin with a verb"


def iter_inputs(
    schema: GraphQLSchema,
) -> Iterator[tuple[str, str, GraphQLArgument | GraphQLInputField]]:
    """Yield coordinate, name and definition of each argument and input field."""
    for kind in schema.type_map.values():
        for field_name, field in getattr(kind, "fields", {}).items():
            if isinstance(kind, GraphQLInputObjectType):
                yield f"{kind.name}.{field_name}", field_name, field
            for name, argument in getattr(field, "args", {}).items():
                yield f"{kind.name}.{field_name}({name}:)", name, argument


def example_or_none(description: str | None) -> str | None:
    """Return the literal of the example value at the end of a description."""
    match = EXAMPLE.search(REQUIREMENT.sub("", description or "").strip())
    return match[1] if match else None


def inputs_without_example(schema: GraphQLSchema) -> Iterator[str]:
    """Yield the coordinates of values whose form isn't obvious and that have no example."""
    for coordinate, name, member in iter_inputs(schema):
        scalar = get_named_type(member.type).name
        has_form = scalar == "String" and name not in SELF_EVIDENT_NAMES
        if (has_form or scalar in SCALARS_WITH_FORMAT) and not example_or_none(member.description):
            yield coordinate


def shared_texts(texts: Mapping[str, str], types: Mapping[str, str]) -> Iterator[str]:
    """Yield the coordinates of descriptions that fields of different names or types share.

    `types` are the names of the types of fields, arguments and input fields.
    """
    coordinates_by_text = defaultdict[str, list[str]](list)
    for coordinate, text in texts.items():
        if "." in coordinate:
            coordinates_by_text[text].append(coordinate)
    for coordinates in coordinates_by_text.values():
        names = {
            re.split(r"[.(]", coordinate)[-1].rstrip(":)").removesuffix("s")
            for coordinate in coordinates
        }
        type_names = {types.get(coordinate, "") for coordinate in coordinates}
        if len(names) > 1 or (len(type_names) > 1 and not names <= NAMES_WITH_SHARED_TEXT):
            yield from coordinates


def unclear_descriptions(schema: GraphQLSchema) -> dict[str, list[str]]:
    """The broken rules of the descriptions that break one, by coordinate."""
    texts = {
        coordinate: EXAMPLE.sub("", REQUIREMENT.sub("", value.description or "").strip())
        for coordinate, value in iter_describable(schema)
        if value.description
    }
    result = defaultdict[str, list[str]](list)
    types = {
        coordinate: get_named_type(value.type).name if hasattr(value, "type") else ""
        for coordinate, value in iter_describable(schema)
    }
    for coordinate, text in texts.items():
        for rule in broken_rules(coordinate, text, types[coordinate]):
            result[coordinate].append(rule)
    for coordinate in shared_texts(texts, types):
        result[coordinate].append("is shared by fields of different names or types")
    for coordinate in inputs_without_example(schema):
        result[coordinate].append("has no example of a value")
    return dict(result)


def main() -> None:
    """Print the descriptions that break a rule. Exits with an error if there are any."""
    found = unclear_descriptions(SDL)
    for coordinate, rules in sorted(found.items()):
        sys.stdout.write(f"{coordinate}: the description {', '.join(rules)}\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
