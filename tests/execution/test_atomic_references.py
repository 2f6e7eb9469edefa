"""References inside `@atomic` to objects that another field of the request creates.

Every reference is derived from the schema. Each one is tried with objects that are stored before,
and with objects that the same request creates. Both must have the same result.
"""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

from graphql import (
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLList,
    get_named_type,
    get_nullable_type,
)

from tests.conftest import GraphQLClient
from tests.support.run_scope import RUNS_ALL_TESTS
from tests.support.schema.printed_schema import SDL
from tests.support.schema.sample_inputs import sample_input

# Reference by a name that the client chooses. Ids and guids are only known after the request. USER,
# DOMAIN and so on are replaced by names that are new in each request.
REFERENCES: dict[tuple[str, str], Any] = {
    ("AddressRef", "address"): "USER@DOMAIN",
    ("CertificateRef", "serverName"): "DOMAIN",
    ("DkimDomainRef", "name"): "DOMAIN",
    ("DkimKeyRef", "domain"): {"name": "DOMAIN"},
    ("AliasDomainRef", "alias"): "ALIAS",
    ("DomainRef", "name"): "DOMAIN",
    ("MailboxRef", "path"): "USER-box",
    ("MailboxRef", "specialUse"): "DRAFTS",
    ("MessageRef", "uid"): {"mailbox": {"path": "USER-box"}, "uid": 1},
    ("MessageSelection", "mailbox"): {"path": "USER-box"},
    ("LabelRef", "keyword"): "USER-label",
    ("ForwardingHostRef", "host"): "HOST",
    ("RecipientRewriteRef", "from"): "USER-from@DOMAIN",
    ("ResourceRef", "address"): "USER-room@DOMAIN",
    ("SavedSearchRef", "name"): "USER-search",
    ("TlsPolicyRef", "destination"): "USER-tls.example",
    ("TransportRef", "destination"): "USER-transport.example",
    ("SettingRef", "key"): "undo.window",
    ("SieveScriptRef", "name"): "USER-script",
    ("UserRef", "address"): "USER@DOMAIN",
    ("UserRef", "username"): "USER",
    ("UserSelection", "domains"): [{"name": "DOMAIN"}],
    ("UserSelection", "patterns"): ["USER*"],
    ("UserSelection", "tags"): ["USER-tag"],
    ("UserSelection", "usernames"): ["USER"],
}
# Members that name an object by a value that the database assigns to it, besides `id`.
UNKNOWN_BEFORE = {
    ("MailboxRef", "guid"), ("MailboxRef", "objectId"), ("MessageRef", "emailId"),
    ("MessageSelection", "ids"), ("QueueEntryRef", "queueId"), ("SubmissionRef", "queueId"),
    ("OauthClientRef", "clientId"), ("UserSelection", "ids"),
}  # fmt: skip
QUERY_ONLY = {("KeyValueEntryRef", "name")}  # references that no mutation has
# Only a ROOT can use their mutations: see tests/cluster.
ROOT_ONLY = {("ClusterNodeRef", "address"), ("ClusterNodeRef", "host")}
NO_NAMES = {  # members that narrow a selection
    ("DkimDomainRef", "all"),
    ("MessageSelection", "all"), ("MessageSelection", "filter"), ("MessageSelection", "uids"),
    ("MessageSelection", "users"), ("UserSelection", "all"),
}  # fmt: skip
# Names in plain text: (input, member), and the value of the member.
TEXTS: dict[tuple[str, str], Any] = {
    ("AddressCreateInput", "address"): "USER-more@DOMAIN",
    ("BccRuleCreateInput", "match"): "USER@DOMAIN",
    ("KeyValueDeleteInput", "key"): "USER-key",
    ("KeyValueIncrementInput", "key"): "USER-key",
    ("RecipientRewriteCreateInput", "to"): "USER@DOMAIN",
}
# Additional input of some fields, without which they are refused before they read the reference.
EXTRA_INPUT: dict[str, dict[str, Any]] = {
    "addressCreate": {"address": "USER-other@DOMAIN"},
    "aliasDomainCreate": {"alias": "USER.alias.example"},
    "domainRename": {"newName": "renamed.DOMAIN"},
    "identityCreate": {"name": "Identity"},
    "mailboxRename": {"newPath": "USER-moved"},
    "recipientRewriteCreate": {"from": "USER-rewritten@DOMAIN"},
    "sieveScriptRename": {"newName": "USER-renamed"},
}
ERRORS = "{ errors { code message } }"
ACCOUNT = f"""
  m_domain: domainCreate(input: {{name: "DOMAIN", createDkim: false}}) {ERRORS}
  m_user: userCreate(input: {{username: "USER", address: "USER@DOMAIN", tags: ["USER-tag"],
    passwordDisabled: true}}) {ERRORS}"""
CREATE_FIELDS = {  # fields that create the object of a reference, by the name in the reference
    "ALIAS": f"""
  m_alias: aliasDomainCreate(input: {{alias: "ALIAS", domain: {{name: "DOMAIN"}}}}) {ERRORS}""",
    "USER-box": f"""
  m_theirs: mailboxCreate(input: {{paths: ["USER-box"], users: {{usernames: ["USER"]}}}}) {ERRORS}
  m_mine: mailboxCreate(input: {{paths: ["USER-box"]}}) {ERRORS}
  m_message: draftSave(input: {{mailbox: {{path: "USER-box"}}, set: {{subject: "Mine",
    to: [{{address: "x@y.example"}}]}}}}) {ERRORS}
  m_sent: messageImport(input: {{mailbox: {{path: "USER-box"}}, users: {{usernames: ["USER"]}},
    raw: "From: x@y.example\\nSubject: Theirs\\n\\nHi\\n"}}) {ERRORS}""",
    "HOST": f'm_host: forwardingHostCreate(input: {{hostname: "HOST"}}) {ERRORS}',
    "USER-from": f"""
  m_rewrite: recipientRewriteCreate(input: {{from: "USER-from@DOMAIN", to: "USER@DOMAIN"}})
    {ERRORS}""",
    "USER-room": f"""
  m_room: resourceCreate(input: {{name: "USER-room", kind: LOCATION,
    domain: {{name: "DOMAIN"}}}}) {ERRORS}""",
    "USER-tls": f"""
  m_tls: tlsPolicyCreate(input: {{destination: "USER-tls.example", level: ENCRYPT}}) {ERRORS}""",
    "USER-transport": f"""
  m_transport: transportCreate(input: {{destination: "USER-transport.example",
    nextHop: "hop.example"}}) {ERRORS}""",
    "USER-label": f'm_label: labelCreate(input: {{keyword: "USER-label", name: "Label"}}) {ERRORS}',
    "USER-key": f'm_key: keyValueSet(input: {{key: "USER-key", value: "1"}}) {ERRORS}',
    "DOMAIN": f"""
  m_dkim: dkimKeySet(input: {{domains: [{{name: "DOMAIN"}}], algorithm: ED25519}}) {ERRORS}""",
    "USER-script": f"""
  m_script: sieveScriptSet(input: {{name: "USER-script", content: "keep;"}}) {ERRORS}""",
    "USER-search": f"""
  m_search: savedSearchCreate(input: {{name: "USER-search", query: "x"}}) {ERRORS}""",
}
MUTATION_FIELDS: dict[str, GraphQLField] = SDL.type_map["Mutation"].fields  # type: ignore[attr-defined]  # ty: ignore
MAX_DEPTH = 4


class ReferenceCase(NamedTuple):
    """One reference in the input of a mutation."""

    field: str
    place: tuple[str, ...]  # path of the reference in the input
    value: Any

    @property
    def name(self) -> str:
        return f"{self.field}({'.'.join(self.place)})"


def reference_paths(
    kind: GraphQLInputObjectType, depth: int = 0
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the paths of references in an input, with the values to use there."""
    if depth == MAX_DEPTH:
        return
    for name, member in kind.fields.items():
        if (kind.name, name) in TEXTS:
            yield (name,), TEXTS[kind.name, name]
        inner = get_named_type(member.type)
        if inner is kind:  # `not`, `and` and `or` of a filter hold another filter
            continue
        if not isinstance(inner, GraphQLInputObjectType):
            continue
        is_list = isinstance(get_nullable_type(member.type), GraphQLList)
        for (input_name, member_name), value in REFERENCES.items():
            if input_name == inner.name:
                yield (name,), [{member_name: value}] if is_list else {member_name: value}
        if not is_list and not inner.name.endswith("Ref"):
            for path, value in reference_paths(inner, depth + 1):
                yield (name, *path), value


def input_type(name: str) -> GraphQLInputObjectType:
    kind = get_named_type(MUTATION_FIELDS[name].args["input"].type)
    assert isinstance(kind, GraphQLInputObjectType)
    return kind


def reference_cases() -> Iterator[ReferenceCase]:
    """Yield each reference of each mutation. An input that several mutations share is used once."""
    seen_keys = set[Any]()
    for name in MUTATION_FIELDS:
        for path, value in reference_paths(input_type(name)):
            kind = input_type(name)
            for step in path[:-1]:
                kind = get_named_type(kind.fields[step].type)
            if (key := (kind.name, path[-1], repr(value))) not in seen_keys:
                seen_keys.add(key)
                yield ReferenceCase(name, path, value)


def one_case_per_path(all_cases: list[ReferenceCase]) -> list[ReferenceCase]:
    """Return one case for each path of a reference.

    Successive paths with the same values use different values.
    """
    cases_by_path: dict[tuple[str, tuple[str, ...]], list[ReferenceCase]] = {}
    for case in all_cases:
        cases_by_path.setdefault((case.field, case.place), []).append(case)
    use_counts = Counter[str]()
    chosen = []
    for path_cases in cases_by_path.values():
        kind = repr([case.value for case in path_cases])
        chosen.append(path_cases[use_counts[kind] % len(path_cases)])
        use_counts[kind] += 1
    return chosen


ALL_CASES = list(reference_cases())
CASES = ALL_CASES if RUNS_ALL_TESTS else one_case_per_path(ALL_CASES)


def mutation_input(case: ReferenceCase, names: dict[str, str]) -> dict[str, Any]:
    """Return the input of the mutation with its reference, for these names."""
    sample: dict[str, Any] = sample_input(input_type(case.field))
    sample |= deepcopy(EXTRA_INPUT.get(case.field, {}))
    target: Any = sample
    kind = input_type(case.field)
    for step in case.place[:-1]:
        kind = get_named_type(kind.fields[step].type)
        target = target.setdefault(step, {})
        if kind.is_one_of:
            target.clear()
    target[case.place[-1]] = deepcopy(case.value)
    return replace_names(sample, names)  # type: ignore[no-any-return]


def replace_names(value: Any, names: dict[str, str]) -> Any:
    match value:
        case str():
            for placeholder, name in names.items():
                value = value.replace(placeholder, name)
            return value
        case list():
            return [replace_names(item, names) for item in value]
        case dict():
            return {key: replace_names(item, names) for key, item in value.items()}
    return value


def mutation_parts(case: ReferenceCase) -> tuple[str, str]:
    field = f"tried: {case.field}(input: $input) {{ errors {{ code path message }} }}"
    return f"($input: {MUTATION_FIELDS[case.field].args['input'].type})", field


def error_codes_and_paths(answer: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Return codes and paths of the errors of the tried field and of the request."""
    request_errors = [(error["extensions"]["code"], ()) for error in answer.get("errors") or ()]
    payload = (answer.get("data") or {}).get("tried") or {"errors": []}
    return request_errors + [
        (error["code"], tuple(error["path"] or ())) for error in payload["errors"]
    ]


def test_cases_cover_every_reference_of_the_schema() -> None:
    kinds = {
        name: kind
        for name, kind in SDL.type_map.items()
        if isinstance(kind, GraphQLInputObjectType)
        and (name.endswith("Ref") or name in {"UserSelection", "MessageSelection"})
    }
    members = {
        (name, member) for name, kind in kinds.items() for member in kind.fields if member != "id"
    }
    assert members - UNKNOWN_BEFORE - QUERY_ONLY - ROOT_ONLY - NO_NAMES == set(REFERENCES)
    assert {repr(case.value) for case in CASES} == {repr(case.value) for case in ALL_CASES}
    assert {case.place[-1] for case in CASES} > {"user", "users", "domain", "mailbox", "select"}
    for kind_name, member in TEXTS:
        assert member in SDL.type_map[kind_name].fields  # type: ignore[attr-defined]  # ty: ignore


def create_fields(case: ReferenceCase) -> str:
    """Return the fields that create the object of the reference."""
    value_text = repr(case.value)
    return ACCOUNT + "".join(
        text for placeholder, text in CREATE_FIELDS.items() if placeholder in value_text
    )


STORED_NAMES = {
    "USER": "stored", "DOMAIN": "stored.example", "ALIAS": "alias.example", "HOST": "192.0.2.7",
}  # fmt: skip
NEW_NAMES = {
    "USER": "fresh", "DOMAIN": "fresh.example", "ALIAS": "other.example", "HOST": "192.0.2.8",
}  # fmt: skip


async def stored_and_atomic_answers(
    admin_client: GraphQLClient, case: ReferenceCase
) -> tuple[Any, Any]:
    """Return the answers for stored objects and for objects of the same request.

    Both requests use `validateOnly`, so nothing is stored.
    """
    head, field = mutation_parts(case)
    document = f"mutation {head} {{ {field} }}"
    stored = await admin_client.execute(document, input=mutation_input(case, STORED_NAMES))
    atomic = (
        f"mutation {head} @atomic {{ {replace_names(create_fields(case), NEW_NAMES)} {field} }}"
    )
    return stored, await admin_client.execute(atomic, input=mutation_input(case, NEW_NAMES))


async def test_reference_finds_object_of_the_same_atomic_request(
    admin_client: GraphQLClient,
) -> None:
    create_all = replace_names(ACCOUNT + "".join(CREATE_FIELDS.values()), STORED_NAMES)
    payloads = await admin_client(f"mutation @atomic {{ {create_all} }}")
    errors = [error for payload in payloads.values() for error in payload["errors"]]
    assert not [error for error in errors if error["code"] != "ABORTED"]
    assert not errors
    differences, accepted_count = [], 0
    for case in CASES:
        stored, atomic = await stored_and_atomic_answers(admin_client, case)
        if "can't be part of an @atomic request" in repr(atomic):
            continue
        accepted_count += not error_codes_and_paths(stored)
        if error_codes_and_paths(stored) != error_codes_and_paths(atomic):
            differences.append(
                (
                    case.name,
                    case.value,
                    error_codes_and_paths(stored),
                    error_codes_and_paths(atomic),
                )
            )
    assert not differences
    assert accepted_count > len(CASES) // 4, "most samples are refused: nothing is compared"
