"""Attacks by documents and their variables. Each is sent several times, never the same text."""

import json
from typing import Any

from tests.support.attacks.attack_runner import Answer, Attack, Siege

BAD, COMPLEX = "400 BAD_USER_INPUT", "400 QUERY_TOO_COMPLEX"
INVALID, UNPARSED = "400 GRAPHQL_VALIDATION_FAILED", "400 GRAPHQL_PARSE_FAILED"
TIMES = 2
IDS = "query ($i: [ID!]!) { nodes(ids: $i) { id } }"
NODE = "query ($i: ID!) { node(id: $i) { id } }"
FIRST = "query ($n: Int) { viewer { user { messages(first: $n) { nodes { id } } } } }"
DEAR = """query ($n: Int!) { viewer { user { messages(first: $n) { nodes {
  thread { messages(first: $n) { nodes { mailbox { messages(first: $n) { nodes { id }
} } } } } } } } } }"""
OF_TYPE = "ofType { " * 90
UNDO = "mutation ($i: UndoInput!) { undo(input: $i) { restoredCount } }"
CHANGED = "mutation ($i: MessageUpdateInput!) { messageUpdate(input: $i) { updatedCount } }"


def many(count: int, text: str) -> str:
    return " ".join(text.replace("{n}", str(n)) for n in range(count))


def spread(count: int, inside: str) -> str:
    """So many fragments beside each other."""
    fragments = many(count, f"fragment f{{n}} on Viewer {{ {inside} }}")
    return f"{{ viewer {{ {many(count, '...f{n}')} }} }} {fragments}"


def chain(levels: int, inside: str, end: str = "role") -> str:
    """A fragment that leads to a fragment that leads to a fragment."""
    links = (
        f"fragment f{n} on Viewer {{ {inside.replace('{next}', f'...f{n + 1}')} }}"
        for n in range(levels)
    )
    return f"{{ viewer {{ ...f0 }} }} {' '.join(links)} fragment f{levels} on Viewer {{ {end} }}"


DOCUMENTS = {
    "fragment bomb of 30 levels": (chain(30, "{next} {next}"), COMPLEX),
    "fragment bomb through inline fragments": (chain(30, "{next} ... { {next} }"), COMPLEX),
    "600 fragments in a chain": (chain(600, "{next}"), COMPLEX),
    "500 fragments in a circle": (
        f"{{ viewer {{ ...f0 }} }} {many(500, 'fragment f{n} on Viewer { ...f{n} }')}",
        INVALID,
    ),
    "38 fragments, each spreads all": (
        "{ viewer { ...f0 } } "
        + many(38, f"fragment f{{n}} on Viewer {{ {' '.join(f'...f{n}' for n in range(38))} }}"),
        INVALID,
    ),
    "circle through fields": (
        "{ viewer { user { ...f } } } fragment f on User { mailboxes { messages { nodes {"
        " thread { messages { nodes { mailbox { ...g } } } } } } } }"
        " fragment g on Mailbox { messages { nodes { mailbox { ...g } } } }",
        INVALID,
    ),
    "300 overlapping fragments": (spread(300, "role scopes readOnly"), COMPLEX),
    "450 fragments of __typename": (spread(450, "__typename"), COMPLEX),
    "250 inline fragments": (
        f"{{ viewer {{ {'... { user { ... { id username } } } ' * 250} }} }}",
        COMPLEX,
    ),
    "1,000 times the same field": (f"{{ viewer {{ {'role ' * 1000} }} }}", COMPLEX),
    "3,000 aliases": (f"{{ viewer {{ {many(3000, 'a{n}: role')} }} }}", UNPARSED),
    "1,600 aliases": (f"{{ viewer {{ {many(1600, 'a{n}: role')} }} }}", COMPLEX),
    "100 guesses of a password": (
        "mutation { "
        + many(100, 'a{n}: authenticate(input: {username: "x", password: "{n}"}) { token }')
        + " }",
        COMPLEX,
    ),
    "600 directives on a field": (f"{{ viewer {{ role {'@skip(if: true) ' * 600} }} }}", COMPLEX),
    "90 unknown directives": (f"{{ viewer {{ role {many(90, '@a{n}')} }} }}", INVALID),
    "selection 150 deep": (f"{{ viewer {'{ user ' * 150} {'}' * 150} }}", COMPLEX),
    "selection 40 deep": (f"{{ viewer {'{ user ' * 40} {{ id }} {'}' * 40} }}", COMPLEX),
    "2,000 brackets": ("{a" * 2000, UNPARSED),
    "list 2,000 deep": (f"{{ nodes(ids: {'[' * 2000}{']' * 2000}) {{ id }} }}", UNPARSED),
    "list 150 deep": (f"{{ nodes(ids: {'[' * 150}{']' * 150}) {{ id }} }}", INVALID),
    "object 90 deep": (
        f"{{ users(filter: {'{a:' * 90}1{'}' * 90}) {{ totalCount }} }}",
        INVALID,
    ),
    "1,500 unknown members of an input": (
        f"{{ users(filter: {{{many(1500, 'role{n}: 1')}}}) {{ totalCount }} }}",
        COMPLEX,
    ),
    "450 unknown members of an input": (
        f"{{ users(filter: {{{many(450, 'role{n}: 1')}}}) {{ totalCount }} }}",
        INVALID,
    ),
    "1,500 unknown arguments": (
        f"{{ viewer {{ user {{ messages({many(1500, 'firs{n}: 1')}) {{ totalCount }} }} }} }}",
        INVALID,
    ),
    "900 unknown fields of 100 letters": (
        f"{{ viewer {{ {many(850, 'x' * 100 + '{n}')} }} }}",
        INVALID,
    ),
    "1,200 variables of one name": (
        f"query ({'$a: Int ' * 1200}) {{ viewer {{ role }} }}",
        INVALID,
    ),
    "600 operations": (many(600, "query q{n} { viewer { role } }"), BAD),
    "20,000 tokens": (f"{{ {'a ' * 20_000} }}", UNPARSED),
    "99,000 commas": ("," * 98_000 + "{ viewer { role } }", "200"),
    "3,000 comments": ("#\n" * 3000 + "{ viewer { role } }", UNPARSED),
    "a document of 900 kB": ("{ viewer { role } }" + " " * 900_000, "413 TOO_LARGE"),
    "a string of 90 kB for an id": (f'{{ node(id: "{"a" * 90_000}") {{ id }} }}', "200 BAD_ID"),
    "an integer of 90,000 digits": (
        f"{{ apiKeys(first: {'9' * 90_000}) {{ totalCount }} }}",
        INVALID,
    ),
    "an exponent of 90,000 digits": (
        f"{{ apiKeys(first: 1e{'9' * 90_000}) {{ totalCount }} }}",
        INVALID,
    ),
    "half a surrogate pair, escaped": ('{ node(id: "\\ud800") { id } }', UNPARSED),
    "beyond Unicode": ('{ node(id: "\\u{110000}") { id } }', UNPARSED),
    "NUL in a string": ('{ node(id: "\\u0000") { id } }', BAD),
    "a letter that grows when lowered": ('{ users(filter: {roles: "İ"}) { totalCount } }', INVALID),
    "introspection 100 deep": (
        f"{{ __schema {{ types {{ fields {{ type {{ {OF_TYPE}name{' }' * 90} }} }} }} }} }}",
        COMPLEX,
    ),
    "introspection that multiplies": (
        "{ __schema { types { fields { type { fields { type { fields { type { name }"
        " } } } } } } } }",
        INVALID,
    ),
    "introspection ten times": (f"{{ {many(11, 'a{n}: __schema { types { name } }')} }}", COMPLEX),
    "a mutation for strangers' ids": (
        'mutation { messageDelete(input: {select: {ids: ["msg_AAAAAAAAAAE"]}}) { __typename } }',
        "200",
    ),
}  # fmt: skip


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


VARIABLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a list 60 deep": (IDS, {"i": nested(58)}, BAD),
    "a list 70 deep": (IDS, {"i": nested(70)}, BAD),
    "50,000 ids": (IDS, {"i": ["msg_AAAAAAAAAAE"] * 50_000}, "200 BAD_USER_INPUT"),
    "9,000 ids": (IDS, {"i": ["msg_AAAAAAAAAAE"] * 9_000}, "200 BAD_USER_INPUT"),
    "60,000 wrong ids": (IDS, {"i": [[1]] * 60_000}, BAD),
    "an id of 900 kB": (NODE, {"i": "m" * 900_000}, "200 BAD_ID"),
    "20,000 unknown members": (UNDO, {"i": {f"a{n}": 1 for n in range(20_000)}}, BAD),
    "20,000 unknown variables": (
        NODE,
        {f"a{n}": 1 for n in range(20_000)} | {"i": "x"},
        "200 BAD_ID",
    ),
    "9,000 wrong members of a list": (
        CHANGED,
        {"i": {"select": {"ids": [{}] * 9_000}, "set": {}}},
        BAD,
    ),
    "pages of pages of pages": (DEAR, {"n": 250}, COMPLEX),
    "a page of a thousand million": (FIRST, {"n": 10**9}, COMPLEX),
    "a page of -1": (FIRST, {"n": -1}, "200 BAD_PAGINATION"),
    "a number of 70 bits": (FIRST, {"n": 2**70}, COMPLEX),
    "NUL in a name": (UNDO, {"i": {"token": "x", "a\0b": 1}}, BAD),
    "a forged id": (NODE, {"i": "msg_AAAAAAAAAAE"}, "200"),
    "an id of SQL": (NODE, {"i": "msg_' OR 1=1; --"}, "200 BAD_ID"),
}  # fmt: skip


def _asking(query: str, variables: dict[str, Any]) -> Any:
    async def run(siege: Siege) -> Answer:
        return await siege.ask(f"{query} #{siege.next()}", **variables)

    return run


def _raw(body: str) -> Any:
    async def run(siege: Siege) -> Answer:
        return await siege.post(body.encode("utf-8", "surrogatepass"), **siege.key)

    return run


def _body(query: str, variables: str) -> str:
    return f'{{"query": {json.dumps(query)}, "variables": {variables}}}'


BODIES = {
    "a number of 400 digits": (_body(FIRST, f'{{"n": {"9" * 400}}}'), BAD),
    "1e999": (_body(FIRST, '{"n": 1e999}'), BAD),
    "NaN": (_body(FIRST, '{"n": NaN}'), BAD),
    "half a surrogate pair": (_body(NODE, '{"i": "\\ud800"}'), BAD),
    "half a surrogate pair in raw bytes": (_body(NODE, '{"i": "\ud800"}'), BAD),
    "a query named twice": (
        '{"query": "{ nope }", "query": "{ viewer { role } }"}',
        "200",
    ),
    "99,999 brackets": (_body(NODE, "[" * 99_999), BAD),
    "999 brackets that are closed": (_body(NODE, f'{{"i": {"[" * 999}{"]" * 999}}}'), BAD),
    "99,999 objects": (_body(NODE, '{"a":' * 99_999), BAD),
    "a batch of a thousand": (f"[{','.join(['{}'] * 1000)}]", BAD),
    "a hash that nobody registered": (
        json.dumps({"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}}),
        "200 PERSISTED_QUERY_NOT_FOUND",
    ),
    "a name of an operation of 100 kB": (
        json.dumps({"query": "{ viewer { role } }", "operationName": "a" * 100_000}),
        BAD,
    ),
    "variables that are a list": (_body(NODE, "[]"), BAD),
    "a query that is a number": ('{"query": 7}', BAD),
    "nothing": ("null", BAD),
}

ATTACKS = [
    *(
        Attack(f"document: {name}", (said,), _asking(query, {}), times=TIMES)
        for name, (query, said) in DOCUMENTS.items()
    ),
    *(
        Attack(f"variables: {name}", (said,), _asking(query, given), times=TIMES)
        for name, (query, given, said) in VARIABLES.items()
    ),
    *(
        Attack(f"body: {name}", (said,), _raw(body), times=TIMES)
        for name, (body, said) in BODIES.items()
    ),
]
