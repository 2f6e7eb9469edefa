"""References inside `@atomic`: a field finds what another field of the same request has made.

Every reference is derived from the schema. Each is tried twice: to objects that are stored before,
and to objects that the same request makes. Both must answer the same.
"""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
from graphql import (
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLList,
    get_named_type,
    get_nullable_type,
)

from tests.conftest import Client
from tests.support.run_scope import ALL
from tests.support.schema.printed_schema import SDL
from tests.support.schema.sample_inputs import sample_input

# Reference by a name that the client chooses. Ids and guids are only known after the request.
# USER, DOMAIN and so on stand for names that are new in each request.
REFERENCES: dict[tuple[str, str], Any] = {
    ("AddressRef", "address"): "USER@DOMAIN",
    ("CertificateRef", "serverName"): "DOMAIN",
    ("DkimKeyRef", "domain"): "DOMAIN",
    ("DomainAliasRef", "alias"): "ALIAS",
    ("DomainRef", "name"): "DOMAIN",
    ("MailboxRef", "path"): "USER-box",
    ("MailboxRef", "specialUse"): "DRAFTS",
    ("MessageRef", "uid"): {"mailbox": {"path": "USER-box"}, "uid": 1},
    ("MessageSelection", "mailbox"): {"path": "USER-box"},
    ("UserRef", "address"): "USER@DOMAIN",
    ("UserRef", "username"): "USER",
    ("UserSelection", "domains"): ["DOMAIN"],
    ("UserSelection", "masks"): ["USER*"],
    ("UserSelection", "tags"): ["USER-tag"],
    ("UserSelection", "usernames"): ["USER"],
}
UNKNOWN_BEFORE = {  # members that name an object by what the store assigned to it
    ("AddressRef", "id"), ("CertificateRef", "id"), ("DkimKeyRef", "id"), ("DomainAliasRef", "id"),
    ("DomainRef", "id"), ("MailboxRef", "id"), ("MailboxRef", "guid"), ("MessageRef", "id"),
    ("MessageRef", "guid"), ("MessageSelection", "ids"), ("SubmissionRef", "id"),
    ("SubmissionRef", "queueId"), ("UserRef", "id"), ("UserSelection", "ids"),
}  # fmt: skip
NO_NAMES = {  # members that narrow a selection
    ("MessageSelection", "all"), ("MessageSelection", "filter"), ("MessageSelection", "uids"),
    ("MessageSelection", "users"), ("UserSelection", "all"),
}  # fmt: skip
# Names in plain text: (input, member), and the value there.
TEXTS: dict[tuple[str, str], Any] = {
    ("AddressCreateInput", "address"): "USER-more@DOMAIN",
    ("BccRuleCreateInput", "match"): "USER@DOMAIN",
    ("DkimKeyCopyInput", "from"): "DOMAIN",
    ("DkimKeyRotateInput", "domains"): ["DOMAIN"],
    ("DkimKeySetInput", "domains"): ["DOMAIN"],
    ("DomainAliasCreateInput", "domain"): "DOMAIN",
    ("DomainRenameInput", "oldDomain"): "DOMAIN",
    ("KeyValueDeleteInput", "key"): "USER-key",
    ("KeyValueIncrementInput", "key"): "USER-key",
    ("LabelSetInput", "keyword"): "USER-label",
    ("MailboxSubscribeInput", "paths"): ["USER-box"],
    ("RateLimitFilter", "domains"): ["DOMAIN"],
    ("RecipientRewriteCreateInput", "to"): "USER@DOMAIN",
    ("SavedSearchSetInput", "name"): "USER-search",
    ("SieveScriptActivateInput", "name"): "USER-script",
    ("SieveScriptDeleteInput", "names"): ["USER-script"],
    ("SieveScriptRenameInput", "name"): "USER-script",
}
# What some fields need beside their sample, so that they come as far as their reference.
BESIDE: dict[str, dict[str, Any]] = {
    "addressCreate": {"address": "USER-other@DOMAIN"},
    "domainAliasCreate": {"alias": "USER.alias.example"},
    "domainRename": {"newDomain": "renamed.DOMAIN"},
    "identityCreate": {"name": "Identity"},
    "mailboxRename": {"newPath": "USER-moved"},
    "recipientRewriteCreate": {"from": "USER-rewritten@DOMAIN"},
    "sieveScriptRename": {"newName": "USER-renamed"},
}
E = "{ errors { code message } }"
ACCOUNT = f"""
  m_domain: domainCreate(input: {{name: "DOMAIN"}}) {E}
  m_user: userCreate(input: {{username: "USER", address: "USER@DOMAIN", tags: ["USER-tag"],
    passwordDisabled: true}}) {E}"""
MADE = {  # what is made for a reference, by the name that it holds
    "ALIAS": f'm_alias: domainAliasCreate(input: {{alias: "ALIAS", domain: "DOMAIN"}}) {E}',
    "USER-box": f"""
  m_theirs: mailboxCreate(input: {{paths: ["USER-box"], users: {{usernames: ["USER"]}}}}) {E}
  m_mine: mailboxCreate(input: {{paths: ["USER-box"]}}) {E}
  m_message: messageUpload(input: {{mailbox: {{path: "USER-box"}}, subject: "Mine",
    to: [{{address: "x@y.example"}}]}}) {E}
  m_sent: messageUpload(input: {{mailbox: {{path: "USER-box"}}, users: {{usernames: ["USER"]}},
    raw: "From: x@y.example\\nSubject: Theirs\\n\\nHi\\n"}}) {E}""",
    "USER-label": f'm_label: labelSet(input: {{keyword: "USER-label", name: "Label"}}) {E}',
    "USER-key": f'm_key: keyValueSet(input: {{key: "USER-key", value: "1"}}) {E}',
    "DOMAIN": f'm_dkim: dkimKeySet(input: {{domains: ["DOMAIN"], algorithm: ED25519}}) {E}',
    "USER-script": f"""
  m_script: sieveScriptPut(input: {{name: "USER-script", content: "keep;"}}) {E}""",
    "USER-search": f'm_search: savedSearchSet(input: {{name: "USER-search", query: "x"}}) {E}',
}
FIELDS: dict[str, GraphQLField] = SDL.type_map["Mutation"].fields  # type: ignore[attr-defined]  # ty: ignore
DEPTH = 4
PARTS = 4


class Case(NamedTuple):
    """One reference in the input of a mutation."""

    field: str
    place: tuple[str, ...]  # of the reference in the input
    value: Any

    @property
    def name(self) -> str:
        return f"{self.field}({'.'.join(self.place)})"


def references(
    kind: GraphQLInputObjectType, depth: int = 0
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The places of references in an input, and the values that they take there."""
    if depth == DEPTH:
        return
    for name, member in kind.fields.items():
        if (kind.name, name) in TEXTS:
            yield (name,), TEXTS[kind.name, name]
        inner = get_named_type(member.type)
        if inner is kind:  # `not`, `and` and `or` of a filter hold another filter
            continue
        if not isinstance(inner, GraphQLInputObjectType):
            continue
        many = isinstance(get_nullable_type(member.type), GraphQLList)
        for (known, by), value in REFERENCES.items():
            if known == inner.name:
                yield (name,), [{by: value}] if many else {by: value}
        if not many and not inner.name.endswith("Ref"):
            for place, value in references(inner, depth + 1):
                yield (name, *place), value


def input_of(name: str) -> GraphQLInputObjectType:
    kind = get_named_type(FIELDS[name].args["input"].type)
    assert isinstance(kind, GraphQLInputObjectType)
    return kind


def cases() -> Iterator[Case]:
    """Each reference of each mutation; those in an input that several share, once."""
    seen = set[Any]()
    for name in FIELDS:
        for place, value in references(input_of(name)):
            kind = input_of(name)
            for step in place[:-1]:
                kind = get_named_type(kind.fields[step].type)
            if (key := (kind.name, place[-1], repr(value))) not in seen:
                seen.add(key)
                yield Case(name, place, value)


def varied(every: list[Case]) -> list[Case]:
    """One value for each place of a reference, each time the next one of those that fit there."""
    places: dict[tuple[str, tuple[str, ...]], list[Case]] = {}
    for case in every:
        places.setdefault((case.field, case.place), []).append(case)
    turns = Counter[str]()
    chosen = []
    for fitting in places.values():
        kind = repr([case.value for case in fitting])
        chosen.append(fitting[turns[kind] % len(fitting)])
        turns[kind] += 1
    return chosen


EVERY = list(cases())
CASES = EVERY if ALL else varied(EVERY)


def given(case: Case, names: dict[str, str]) -> dict[str, Any]:
    """The input of the mutation with its reference, and with these names."""
    made: dict[str, Any] = sample_input(input_of(case.field))
    made |= deepcopy(BESIDE.get(case.field, {}))
    inside: Any = made
    kind = input_of(case.field)
    for step in case.place[:-1]:
        kind = get_named_type(kind.fields[step].type)
        inside = inside.setdefault(step, {})
        if kind.is_one_of:
            inside.clear()
    inside[case.place[-1]] = deepcopy(case.value)
    return renamed(made, names)  # type: ignore[no-any-return]


def renamed(value: Any, names: dict[str, str]) -> Any:
    match value:
        case str():
            for mark, name in names.items():
                value = value.replace(mark, name)
            return value
        case list():
            return [renamed(each, names) for each in value]
        case dict():
            return {key: renamed(each, names) for key, each in value.items()}
    return value


def asked(case: Case) -> tuple[str, str]:
    field = f"tried: {case.field}(input: $input) {{ errors {{ code path message }} }}"
    return f"($input: {FIELDS[case.field].args['input'].type})", field


def verdict(answer: Any) -> list[tuple[str, tuple[str, ...]]]:
    """The codes and paths of what a field refuses, and the errors of the request."""
    whole = [(error["extensions"]["code"], ()) for error in answer.get("errors") or ()]
    tried = (answer.get("data") or {}).get("tried") or {"errors": []}
    return whole + [(one["code"], tuple(one["path"] or ())) for one in tried["errors"]]


def test_every_reference_is_known() -> None:
    kinds = {
        name: kind
        for name, kind in SDL.type_map.items()
        if isinstance(kind, GraphQLInputObjectType)
        and (name.endswith("Ref") or name in {"UserSelection", "MessageSelection"})
    }
    there = {(name, member) for name, kind in kinds.items() for member in kind.fields}
    assert there - UNKNOWN_BEFORE - NO_NAMES == set(REFERENCES)
    assert {repr(case.value) for case in CASES} == {repr(case.value) for case in EVERY}
    assert {case.place[-1] for case in CASES} > {"user", "users", "domain", "mailbox", "select"}
    for kind_name, member in TEXTS:
        assert member in SDL.type_map[kind_name].fields  # type: ignore[attr-defined]  # ty: ignore


def prepared(case: Case) -> str:
    """The fields that make what the reference names."""
    held = repr(case.value)
    return ACCOUNT + "".join(text for mark, text in MADE.items() if mark in held)


STORED = {"USER": "stored", "DOMAIN": "stored.example", "ALIAS": "alias.example"}
MADE_NOW = {"USER": "fresh", "DOMAIN": "fresh.example", "ALIAS": "other.example"}


async def answers(over: Client, case: Case) -> tuple[Any, Any]:
    """What the field answers about stored objects, and about those of its own request.

    The field is only tried (`validateOnly`), and so is its request: nothing is stored.
    """
    head, field = asked(case)
    alone = f"mutation {head} {{ {field} }}"
    stored = await over.raw(alone, input=given(case, STORED))
    atomic = f"mutation {head} @atomic {{ {renamed(prepared(case), MADE_NOW)} {field} }}"
    return stored, await over.raw(atomic, input=given(case, MADE_NOW))


@pytest.mark.parametrize("part", range(PARTS))
async def test_a_field_finds_what_the_same_request_has_made(over: Client, part: int) -> None:
    everything = renamed(ACCOUNT + "".join(MADE.values()), STORED)
    made = await over(f"mutation @atomic {{ {everything} }}")
    refused = [error for payload in made.values() for error in payload["errors"]]
    assert not [error for error in refused if error["code"] != "ABORTED"]
    assert not refused
    wrong, done = [], 0
    for case in CASES[part::PARTS]:
        stored, together = await answers(over, case)
        if "takes no part in @atomic" in repr(together):
            continue
        done += not verdict(stored)
        if verdict(stored) != verdict(together):
            wrong.append((case.name, case.value, verdict(stored), verdict(together)))
    assert not wrong
    assert done > len(CASES) // PARTS // 4, "most samples are refused: nothing is compared"
