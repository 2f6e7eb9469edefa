"""Orders and filters of the lists of credentials, accounts, domains, addresses and their rules."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.addresses.rewrites import BccRule, RecipientRewrite
from models.auth.credentials import ApiKey
from models.domains.tables import Domain
from tests.conftest import GraphQLClient, ManualClock
from tests.support.lists.list_rows import ROWS_PER_LIST, add_list_rows, add_rows
from tests.support.operations.address_operations import create_address

ADA = 'user(by: {username: "ada"}) { %s }'
EXAMPLE_ORG = 'domain(by: {name: "example.org"}) { %s }'


@dataclass(frozen=True)
class SortedList:
    """A list with an order: the selection around it, and the field of each sort key."""

    parent_selection: str
    field: str
    sort_fields: dict[str, str]

    def document(self, arguments: str) -> str:
        """Return a query of a page of the list."""
        sort_fields = " ".join(self.sort_fields.values())
        page = f"""page: {self.field}({arguments}) {{ totalCount nodes {{ id {sort_fields} }}
          edges {{ cursor }} }}"""
        return "{ " + self.parent_selection.replace("%s", page) + " }"

    async def load(self, client: GraphQLClient, arguments: str) -> Any:
        """Load a page of the list."""
        data = await client(self.document(arguments))
        return data["page"] if "page" in data else next(iter(data.values()))["page"]


CREATED_AT, LOCAL_PART = {"CREATED_AT": "createdAt"}, {"LOCAL_PART": "localPart"}
SORTED_LISTS = (
    SortedList("%s", "apiKeys", CREATED_AT),
    SortedList("%s", "securityLog", CREATED_AT),
    SortedList(ADA, "securityLog", CREATED_AT),
    SortedList(ADA, "appPasswords", CREATED_AT),
    SortedList("%s", "deletedUsers", {"DELETED_AT": "deletedAt"}),
    SortedList("%s", "dkimKeys", {"DOMAIN": "domain"}),
    SortedList("%s", "aliasDomains", {"ALIAS": "alias"}),
    SortedList(EXAMPLE_ORG, "aliases", {"ALIAS": "alias"}),
    SortedList(EXAMPLE_ORG, "addresses", LOCAL_PART),
    SortedList(EXAMPLE_ORG, "users", {"USERNAME": "username"}),
    SortedList(EXAMPLE_ORG, "admins", {"USERNAME": "username"}),
    SortedList(ADA, "addresses", LOCAL_PART | CREATED_AT),
    SortedList(ADA, "temporaryAddresses", LOCAL_PART | CREATED_AT),
    SortedList(ADA, "identities", {"ADDRESS": "address"}),
    SortedList("%s", "bccRules", CREATED_AT),
    SortedList("%s", "recipientRewrites", CREATED_AT),
)


async def test_each_list_has_pages_in_both_directions(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    await add_list_rows(ada, bob, clock)
    for sorted_list in SORTED_LISTS:
        for key, sort_field in sorted_list.sort_fields.items():
            message = f"{sorted_list.field} {key}"
            pages = {}
            for direction in ("ASC", "DESC"):
                order = f"orderBy: {key}_{direction}"
                pages[direction] = page = await sorted_list.load(root, f"{order}, first: 250")
                ids = [node["id"] for node in page["nodes"]]
                cursors = [edge["cursor"] for edge in page["edges"]]
                assert page["totalCount"] == len(ids) >= ROWS_PER_LIST - 2, message
                for arguments, expected in (
                    (f'first: 2, after: "{cursors[1]}"', ids[2:4]),
                    (f'last: 2, before: "{cursors[-2]}"', ids[-4:-2]),
                ):
                    page = await sorted_list.load(root, f"{order}, {arguments}")
                    assert [node["id"] for node in page["nodes"]] == expected, message
            values = [node[sort_field].partition("@")[0] for node in pages["ASC"]["nodes"]]
            assert values == sorted(values), message
            assert pages["DESC"]["nodes"] == pages["ASC"]["nodes"][::-1], message
            cursor = pages["ASC"]["edges"][0]["cursor"]
            document = sorted_list.document(f'orderBy: {key}_DESC, first: 2, after: "{cursor}"')
            answer = await root.execute(document)
            assert answer["errors"][0]["extensions"]["code"] == "BAD_CURSOR", message
            answer = await bob.execute(sorted_list.document(f"orderBy: {key}_ASC, first: 250"))
            own_ids = {node["id"] for node in pages["ASC"]["nodes"]}
            if sorted_list.field != "apiKeys":  # bob sees the key of his requests
                assert not own_ids.intersection(_texts(answer["data"])), message


def _texts(data: Any) -> set[str]:
    """Return the texts in a response."""
    return set(json.dumps(data).split('"'))


async def _domain_ids(client: GraphQLClient) -> list[int]:
    rows = await client.environment.database.read(select(col(Domain.id)).order_by(col(Domain.name)))
    return [row.id for row in rows]


async def _add_rows_to_filter(root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient) -> None:
    environment, user_ids = root.environment, [ada.user.id, bob.user.id]
    await add_rows(environment, Domain, 1, name="z.example")
    await add_rows(
        environment,
        ApiKey,
        4,
        name=lambda n: f"Härte {n % 2}",
        user_id=lambda n: [*user_ids, None, None][n],
    )
    domain_ids = await _domain_ids(root)
    await add_rows(
        environment,
        BccRule,
        3,
        local=lambda n: ["", "press", "sales"][n],
        domain_id=lambda n: domain_ids[n % 2],
        bcc_to=lambda n: f"archive{n}@far.example",
    )
    await add_rows(
        environment,
        RecipientRewrite,
        2,
        local=lambda n: f"old{n}",
        domain="left.example",
        target=lambda n: f"New{n}@right.example",
    )
    for name, tags in (("red", ["Red"]), ("blue", ["blue"])):
        await create_address(root, f"{name}@example.org", user={"username": "ada"}, tags=tags)


FILTERED_LISTS: dict[str, tuple[SortedList, dict[str, list[str]]]] = {
    "apiKeys": (
        SortedList("%s", "apiKeys", {"": "name"}),
        {
            'query: "HARTE 1"': ["Härte 1", "Härte 1"],
            'query: "harte 1", user: {username: "bob"}': ["Härte 1"],
            'query: "harte", user: {username: "ada"}': ["Härte 0"],
            'user: {username: "nobody"}': [],
            'query: "%"': [],
        },
    ),
    "bccRules": (
        SortedList("%s", "bccRules", {"": "bccTo"}),
        {
            'query: "PRESS@z.ex"': ["archive1@far.example"],
            'query: "@example.org"': ["archive0@far.example", "archive2@far.example"],
            'query: "Archive2"': ["archive2@far.example"],
            'domain: {name: "Z.example"}': ["archive1@far.example"],
            'domain: {name: "z.example"}, query: "sales"': [],
            'domain: {name: "nowhere.example"}': [],
        },
    ),
    "recipientRewrites": (
        SortedList("%s", "recipientRewrites", {"": "to"}),
        {
            'query: "OLD1@left"': ["New1@right.example"],
            'query: "new0@"': ["New0@right.example"],
            'query: "example"': ["New0@right.example", "New1@right.example"],
            'query: "old0@right"': [],
        },
    ),
    "User.addresses": (
        SortedList(ADA, "addresses", {"": "localPart"}),
        {
            'query: "RED@"': ["red"],
            'tags: ["red", "BLUE"]': ["blue", "red"],
            'requiredTags: ["red", "blue"]': [],
            'domain: {name: "example.org"}, temporary: false': ["ada", "blue", "red"],
            'query: "bob"': [],
        },
    ),
}


@pytest.mark.parametrize("list_name", FILTERED_LISTS)
async def test_each_filter_narrows_its_list(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, list_name: str
) -> None:
    await _add_rows_to_filter(root, ada, bob)
    sorted_list, values_by_filter = FILTERED_LISTS[list_name]
    for conditions, expected in values_by_filter.items():
        page = await sorted_list.load(root, f"filter: {{{conditions}}}")
        assert [node[sorted_list.sort_fields[""]] for node in page["nodes"]] == expected, conditions
        assert page["totalCount"] == len(expected)
    everything = await sorted_list.load(root, "filter: null")
    assert everything["totalCount"] == (await sorted_list.load(root, "first: 250"))["totalCount"]
    cursor = everything["edges"][0]["cursor"]
    for arguments, code in (
        (f'filter: {{query: "x"}}, after: "{cursor}"', "BAD_CURSOR"),
        (f'filter: {{query: "{1001 * "x"}"}}', "BAD_USER_INPUT"),
    ):
        answer = await root.execute(sorted_list.document(arguments))
        assert answer["errors"][0]["extensions"]["code"] == code


async def test_addresses_of_a_user_refuse_a_filter_by_user(ada: GraphQLClient) -> None:
    arguments = 'filter: {user: {username: "ada"}}'
    answer = await ada.execute(SortedList(ADA, "addresses", LOCAL_PART).document(arguments))
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_api_keys_of_others_are_not_found_by_a_filter(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await add_rows(ada.environment, ApiKey, 2, name="secret", user_id=ada.user.id)
    for conditions in ('{query: "secret"}', '{query: "secret", user: {username: "ada"}}'):
        document = f"{{ apiKeys(filter: {conditions}) {{ totalCount nodes {{ id }} }} }}"
        assert (await bob(document))["apiKeys"] == {"totalCount": 0, "nodes": []}
        assert (await ada(document))["apiKeys"]["totalCount"] == 2
