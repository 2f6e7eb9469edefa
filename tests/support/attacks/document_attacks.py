"""Attacks by documents and variables. Each is sent several times with a different text."""

import json
from typing import Any

from tests.support.attacks.attack_runner import AttackedServer, RawHttpResponse, ServerAttack

BAD_INPUT, TOO_COMPLEX = "400 BAD_USER_INPUT", "400 QUERY_TOO_COMPLEX"
INVALID, PARSE_FAILED = "400 GRAPHQL_VALIDATION_FAILED", "400 GRAPHQL_PARSE_FAILED"
REPEATS = 2
NODES_QUERY = "query ($i: [ID!]!) { nodes(ids: $i) { id } }"
NODE_QUERY = "query ($i: ID!) { node(id: $i) { id } }"
MESSAGES_QUERY = "query ($n: Int) { viewer { user { messages(first: $n) { nodes { id } } } } }"
NESTED_PAGES_QUERY = """query ($n: Int!) { viewer { user { messages(first: $n) { nodes {
  thread { messages(first: $n) { nodes { mailbox { messages(first: $n) { nodes { id }
} } } } } } } } } }"""
NESTED_OF_TYPE = "ofType { " * 90
UNDO_MUTATION = "mutation ($i: UndoInput!) { undo(input: $i) { restoredCount } }"
MESSAGE_UPDATE_MUTATION = (
    "mutation ($i: MessageUpdateInput!) { messageUpdate(input: $i) { updatedCount } }"
)


def repeat(count: int, text: str) -> str:
    return " ".join(text.replace("{n}", str(n)) for n in range(count))


def spread_fragments(count: int, selection: str) -> str:
    """A document that spreads `count` fragments in the same selection set."""
    fragments = repeat(count, f"fragment f{{n}} on Viewer {{ {selection} }}")
    return f"{{ viewer {{ {repeat(count, '...f{n}')} }} }} {fragments}"


def fragment_chain(levels: int, selection: str, last: str = "role") -> str:
    """A document with a chain of fragments; each fragment spreads the next."""
    links = (
        f"fragment f{n} on Viewer {{ {selection.replace('{next}', f'...f{n + 1}')} }}"
        for n in range(levels)
    )
    return f"{{ viewer {{ ...f0 }} }} {' '.join(links)} fragment f{levels} on Viewer {{ {last} }}"


DOCUMENTS = {
    "30 levels of fragments that double": (fragment_chain(30, "{next} {next}"), TOO_COMPLEX),
    "inline fragments that double": (
        fragment_chain(30, "{next} ... { {next} }"),
        TOO_COMPLEX,
    ),
    "600 fragments in a chain": (fragment_chain(600, "{next}"), TOO_COMPLEX),
    "a cycle of 500 fragments": (
        f"{{ viewer {{ ...f0 }} }} {repeat(500, 'fragment f{n} on Viewer { ...f{n} }')}",
        INVALID,
    ),
    "38 fragments that spread all of them": (
        "{ viewer { ...f0 } } "
        + repeat(38, f"fragment f{{n}} on Viewer {{ {' '.join(f'...f{n}' for n in range(38))} }}"),
        INVALID,
    ),
    "a fragment cycle through fields": (
        "{ viewer { user { ...f } } } fragment f on User { mailboxes { nodes { messages { nodes {"
        " thread { messages { nodes { mailbox { ...g } } } } } } } } }"
        " fragment g on Mailbox { messages { nodes { mailbox { ...g } } } }",
        INVALID,
    ),
    "300 overlapping fragments": (spread_fragments(300, "role scopes readOnly"), TOO_COMPLEX),
    "450 fragments of __typename": (spread_fragments(450, "__typename"), TOO_COMPLEX),
    "250 inline fragments": (
        f"{{ viewer {{ {'... { user { ... { id username } } } ' * 250} }} }}",
        TOO_COMPLEX,
    ),
    "1,000 times the same field": (f"{{ viewer {{ {'role ' * 1000} }} }}", TOO_COMPLEX),
    "3,000 aliases": (f"{{ viewer {{ {repeat(3000, 'a{n}: role')} }} }}", PARSE_FAILED),
    "1,600 aliases": (f"{{ viewer {{ {repeat(1600, 'a{n}: role')} }} }}", TOO_COMPLEX),
    "100 sign-ins with different passwords": (
        "mutation { "
        + repeat(100, 'a{n}: authenticate(input: {username: "x", password: "{n}"}) { token }')
        + " }",
        TOO_COMPLEX,
    ),
    "600 directives on a field": (
        f"{{ viewer {{ role {'@skip(if: true) ' * 600} }} }}",
        TOO_COMPLEX,
    ),
    "90 unknown directives": (f"{{ viewer {{ role {repeat(90, '@a{n}')} }} }}", INVALID),
    "selection set with 150 levels": (f"{{ viewer {'{ user ' * 150} {'}' * 150} }}", TOO_COMPLEX),
    "selection set with 40 levels": (
        f"{{ viewer {'{ user ' * 40} {{ id }} {'}' * 40} }}",
        TOO_COMPLEX,
    ),
    "2,000 opening brackets": ("{a" * 2000, PARSE_FAILED),
    "list with 2,000 levels": (
        f"{{ nodes(ids: {'[' * 2000}{']' * 2000}) {{ id }} }}",
        PARSE_FAILED,
    ),
    "list with 150 levels": (f"{{ nodes(ids: {'[' * 150}{']' * 150}) {{ id }} }}", INVALID),
    "object with 90 levels": (
        f"{{ users(filter: {'{a:' * 90}1{'}' * 90}) {{ totalCount }} }}",
        INVALID,
    ),
    "1,500 unknown input fields": (
        f"{{ users(filter: {{{repeat(1500, 'role{n}: 1')}}}) {{ totalCount }} }}",
        TOO_COMPLEX,
    ),
    "450 unknown input fields": (
        f"{{ users(filter: {{{repeat(450, 'role{n}: 1')}}}) {{ totalCount }} }}",
        INVALID,
    ),
    "1,500 unknown arguments": (
        f"{{ viewer {{ user {{ messages({repeat(1500, 'firs{n}: 1')}) {{ totalCount }} }} }} }}",
        INVALID,
    ),
    "900 unknown fields of 100 characters": (
        f"{{ viewer {{ {repeat(850, 'x' * 100 + '{n}')} }} }}",
        INVALID,
    ),
    "1,200 variables with the same name": (
        f"query ({'$a: Int ' * 1200}) {{ viewer {{ role }} }}",
        INVALID,
    ),
    "600 operations": (repeat(600, "query q{n} { viewer { role } }"), BAD_INPUT),
    "20,000 tokens": (f"{{ {'a ' * 20_000} }}", PARSE_FAILED),
    "99,000 commas": ("," * 98_000 + "{ viewer { role } }", "200"),
    "3,000 comments": ("#\n" * 3000 + "{ viewer { role } }", PARSE_FAILED),
    "a document of 900 kB": ("{ viewer { role } }" + " " * 900_000, "413 TOO_LARGE"),
    "an ID of 90 kB": (f'{{ node(id: "{"a" * 90_000}") {{ id }} }}', "200 BAD_ID"),
    "an integer of 90,000 digits": (
        f"{{ apiKeys(first: {'9' * 90_000}) {{ totalCount }} }}",
        INVALID,
    ),
    "an exponent of 90,000 digits": (
        f"{{ apiKeys(first: 1e{'9' * 90_000}) {{ totalCount }} }}",
        INVALID,
    ),
    "half of a surrogate pair, escaped": ('{ node(id: "\\ud800") { id } }', PARSE_FAILED),
    "a code point beyond Unicode": ('{ node(id: "\\u{110000}") { id } }', PARSE_FAILED),
    "NUL in a string": ('{ node(id: "\\u0000") { id } }', BAD_INPUT),
    "a character that becomes longer in lower case": (
        '{ users(filter: {roles: "İ"}) { totalCount } }',
        INVALID,
    ),
    "introspection with 100 levels": (
        f"{{ __schema {{ types {{ fields {{ type {{ {NESTED_OF_TYPE}name{' }' * 90} }} }} }} }} }}",
        TOO_COMPLEX,
    ),
    "introspection through nested lists": (
        "{ __schema { types { fields { type { fields { type { fields { type { name }"
        " } } } } } } } }",
        INVALID,
    ),
    "introspection ten times in one document": (
        f"{{ {repeat(11, 'a{n}: __schema { types { name } }')} }}",
        TOO_COMPLEX,
    ),
    "a mutation with IDs of other users": (
        'mutation { messageDelete(input: {select: {ids: ["msg_AAAAAAAAAAE"]}}) { __typename } }',
        "200",
    ),
}  # fmt: skip


def nested_list(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


VARIABLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a list with 60 levels": (NODES_QUERY, {"i": nested_list(58)}, BAD_INPUT),
    "a list with 70 levels": (NODES_QUERY, {"i": nested_list(70)}, BAD_INPUT),
    "50,000 IDs": (NODES_QUERY, {"i": ["msg_AAAAAAAAAAE"] * 50_000}, "200 BAD_USER_INPUT"),
    "9,000 IDs": (NODES_QUERY, {"i": ["msg_AAAAAAAAAAE"] * 9_000}, "200 BAD_USER_INPUT"),
    "30,000 invalid IDs": (NODES_QUERY, {"i": [[1]] * 30_000}, BAD_INPUT),
    # The size of the arguments is charged before their values are checked.
    "60,000 invalid IDs": (NODES_QUERY, {"i": [[1]] * 60_000}, TOO_COMPLEX),
    "an ID of 900 kB": (NODE_QUERY, {"i": "m" * 900_000}, "200 BAD_ID"),
    "20,000 unknown input fields": (
        UNDO_MUTATION,
        {"i": {f"a{n}": 1 for n in range(20_000)}},
        BAD_INPUT,
    ),
    "20,000 unknown variables": (
        NODE_QUERY,
        {f"a{n}": 1 for n in range(20_000)} | {"i": "x"},
        "200 BAD_ID",
    ),
    "9,000 invalid list items": (
        MESSAGE_UPDATE_MUTATION,
        {"i": {"select": {"ids": [{}] * 9_000}, "set": {}}},
        BAD_INPUT,
    ),
    "nested lists with large pages": (NESTED_PAGES_QUERY, {"n": 250}, TOO_COMPLEX),
    "a page of 1,000,000,000": (MESSAGES_QUERY, {"n": 10**9}, TOO_COMPLEX),
    "a page of -1": (MESSAGES_QUERY, {"n": -1}, "200 BAD_PAGINATION"),
    "a number of 70 bits": (MESSAGES_QUERY, {"n": 2**70}, TOO_COMPLEX),
    "NUL in a name": (UNDO_MUTATION, {"i": {"token": "x", "a\0b": 1}}, BAD_INPUT),
    "a forged ID": (NODE_QUERY, {"i": "msg_AAAAAAAAAAE"}, "200"),
    "an ID with SQL": (NODE_QUERY, {"i": "msg_' OR 1=1; --"}, "200 BAD_ID"),
}  # fmt: skip


def _query_attack(query: str, variables: dict[str, Any]) -> Any:
    async def run(target: AttackedServer) -> RawHttpResponse:
        return await target.post_document(f"{query} #{target.next_number()}", **variables)

    return run


def _body_attack(body: str) -> Any:
    async def run(target: AttackedServer) -> RawHttpResponse:
        return await target.post(body.encode("utf-8", "surrogatepass"), **target.user_headers)

    return run


def _request_body(query: str, variables: str) -> str:
    return f'{{"query": {json.dumps(query)}, "variables": {variables}}}'


BODIES = {
    "a number of 400 digits": (_request_body(MESSAGES_QUERY, f'{{"n": {"9" * 400}}}'), BAD_INPUT),
    "1e999": (_request_body(MESSAGES_QUERY, '{"n": 1e999}'), BAD_INPUT),
    "NaN": (_request_body(MESSAGES_QUERY, '{"n": NaN}'), BAD_INPUT),
    "half of a surrogate pair": (_request_body(NODE_QUERY, '{"i": "\\ud800"}'), BAD_INPUT),
    "half of a surrogate pair in raw bytes": (
        _request_body(NODE_QUERY, '{"i": "\ud800"}'),
        BAD_INPUT,
    ),
    "the member query twice": (
        '{"query": "{ nope }", "query": "{ viewer { role } }"}',
        "200",
    ),
    "99,999 opening brackets": (_request_body(NODE_QUERY, "[" * 99_999), BAD_INPUT),
    "999 nested brackets": (
        _request_body(NODE_QUERY, f'{{"i": {"[" * 999}{"]" * 999}}}'),
        BAD_INPUT,
    ),
    "99,999 opening braces": (_request_body(NODE_QUERY, '{"a":' * 99_999), BAD_INPUT),
    "a batch of 1,000": (f"[{','.join(['{}'] * 1000)}]", BAD_INPUT),
    "an unknown document hash": (
        json.dumps({"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}}),
        "200 PERSISTED_QUERY_NOT_FOUND",
    ),
    "an operation name of 100 kB": (
        json.dumps({"query": "{ viewer { role } }", "operationName": "a" * 100_000}),
        BAD_INPUT,
    ),
    "a list as variables": (_request_body(NODE_QUERY, "[]"), BAD_INPUT),
    "a number as query": ('{"query": 7}', BAD_INPUT),
    "an empty body": ("null", BAD_INPUT),
}

ATTACKS = [
    *(
        ServerAttack(
            f"document: {name}", (expected,), _query_attack(query, {}), repeat_count=REPEATS
        )
        for name, (query, expected) in DOCUMENTS.items()
    ),
    *(
        ServerAttack(
            f"variables: {name}", (expected,), _query_attack(query, variables), repeat_count=REPEATS
        )
        for name, (query, variables, expected) in VARIABLES.items()
    ),
    *(
        ServerAttack(f"body: {name}", (expected,), _body_attack(body), repeat_count=REPEATS)
        for name, (body, expected) in BODIES.items()
    ),
]
