"""Queries by SCIM: filters, orders, pages and the number of statements."""

from typing import Any

import pytest
from scim2_models import ScimFilter

from resolvers.scim.filters import MAX_COMPARISONS, MAX_FILTER_BYTES
from resolvers.scim.resources import TOLERANT_POLICY, AccountResource
from tests.support.case_loop import each_case
from tests.support.scim.scim_client import ScimTestClient

PEOPLE: dict[str, dict[str, Any]] = {
    "anna": {
        "displayName": "Anna Berg",
        "externalId": "E1",
        "name": {"givenName": "Anna", "familyName": "Berg"},
        "preferredLanguage": "de",
    },
    "ben": {
        "displayName": "Ben 100%_ \\ Ångström",
        "externalId": "e1",
        "active": False,
        "emails": [
            {"value": "ben@example.org", "primary": True, "type": "home"},
            {"value": "benjamin@example.org", "type": "work"},
        ],
    },
    "carla": {"name": {"formatted": "Carla O'Neil", "familyName": "O'Neil"}},
    "dora": {},
}

FILTERS = [
    'userName eq "anna@example.org"',
    'userName eq "ANNA@EXAMPLE.ORG"',
    'userName ne "anna@example.org"',
    'userName co "ar"',
    'userName sw "b"',
    'userName ew "example.org"',
    'userName gt "ben@example.org"',
    'userName le "ben@example.org"',
    'urn:ietf:params:scim:schemas:core:2.0:User:userName sw "c"',
    "displayName pr",
    "not (displayName pr)",
    'displayName eq "anna berg"',
    'displayName ne "anna berg"',
    'displayName co "%_"',
    'displayName co "\\\\"',
    'displayName co "100% "',
    'displayName sw "_"',
    'externalId eq "E1"',
    'externalId eq "e1"',
    'externalId ne "E1"',
    "externalId pr",
    "externalId eq null",
    "externalId ne null",
    'name.familyName eq "o\'neil"',
    "name.givenName pr",
    "active eq true",
    "active eq false",
    "active ne true",
    'preferredLanguage eq "DE"',
    'emails.value eq "benjamin@example.org"',
    'emails eq "benjamin@example.org"',
    'emails co "jam"',
    'emails[type eq "work"]',
    'emails[type eq "home" and value co "ben@"]',
    'emails[type eq "work" and value sw "ben@"]',
    'emails[not (type eq "work")]',
    "emails[primary eq true]",
    'emails[type eq "work"].value eq "benjamin@example.org"',
    'userName sw "a" or userName sw "b" and active eq true',
    '(userName sw "a" or userName sw "b") and active eq true',
    'not (userName sw "a") and not (active eq false)',
    'roles.value eq "user"',
    'roles[value eq "ADMIN"]',
    'meta.created ge "2029-12-31T23:00:00-01:00"',
    'meta.created lt "2030-01-01T00:00:00Z"',
    'userName eq "nobody"',
    'userName eq "anna@example.org" or externalId eq "e1"',
    'externalId eq "E1" or emails eq "benjamin@example.org" or userName eq "nobody"',
    '(userName eq "anna@example.org" or emails eq "ben@example.org") and active eq true',
    'userName eq "anna@example.org" or (externalId eq "e1" and displayName sw "ben")',
    'userName eq "anna@example.org" or displayName pr',
    'not (userName eq "anna@example.org" or externalId eq "e1")',
    'userName eq "carla@example.org" or active eq false',
    "active eq true or active eq false",
    "not (active eq true)",
    "active eq true and displayName pr",
    'emails[value eq "ben@example.org" or value eq "carla@example.org"]',
    'meta.lastModified gt "2029-12-31T23:59:59Z"',
    'meta.lastModified gt "2030-01-02T00:00:00Z"',
    'meta.lastModified le "2030-01-02T00:00:00Z" and active eq true',
    'not (meta.lastModified lt "2030-01-02T00:00:00Z")',
    'meta.lastModified ne "2030-01-02T00:00:00Z"',
    'meta.lastModified lt "2029-01-01T00:00:00Z" or userName eq "dora@example.org"',
]


@pytest.fixture
async def people(scim: ScimTestClient, other_scim: ScimTestClient) -> dict[str, Any]:
    """The accounts of `PEOPLE` by name, besides one of another domain."""
    body = {"userName": "anna@other.example", "displayName": "Anna Berg", "externalId": "E1"}
    await other_scim.send("POST", "/Users", body, status=201)
    return {name: await scim.create_user(name, **values) for name, values in PEOPLE.items()}


async def test_filters_select_the_same_accounts_as_the_library(
    scim: ScimTestClient, people: dict[str, Any]
) -> None:
    """The evaluation of scim2-models in memory is the reference for the SQL."""
    resources = {
        name: AccountResource.model_validate(item, scim_policy=TOLERANT_POLICY)
        for name, item in people.items()
    }
    differences = {}
    for text in FILTERS:
        reference: Any = ScimFilter[AccountResource](text)
        expected = {name for name, item in resources.items() if reference.match(item)}
        page = await scim.send("GET", "/Users", filter=text)
        found = {item["userName"].partition("@")[0] for item in page["Resources"]}
        assert page["totalResults"] == len(found)
        if found != expected:
            differences[text] = (found, expected)
    assert differences == {}


async def test_filter_by_id_and_group(scim: ScimTestClient, people: dict[str, Any]) -> None:
    anna, ben = people["anna"], people["ben"]
    group = await scim.create_group("Staff", [anna["id"], ben["id"]])
    for text, names in (
        (f'id eq "{anna["id"]}"', ["anna"]),
        (f'id ne "{anna["id"]}"', ["ben", "carla", "dora"]),
        ('id eq "usr_none"', []),
        (f'groups.value eq "{group["id"]}"', ["anna", "ben"]),
        ('groups[display eq "staff"]', ["anna", "ben"]),
        ("not (groups pr)", ["carla", "dora"]),
    ):
        page = await scim.send("GET", "/Users", filter=text)
        assert [item["userName"].partition("@")[0] for item in page["Resources"]] == names, text


async def test_orders(scim: ScimTestClient, people: dict[str, Any]) -> None:
    assert people
    for sort_by, expected in (
        ("userName", "anna ben carla dora"),
        ("displayName", "anna ben carla dora"),
        ("externalId", "anna ben carla dora"),
        ("name.familyName", "anna carla ben dora"),
        ("active", "ben anna carla dora"),
        ("emails.value", "anna ben carla dora"),
        ("meta.created", "anna ben carla dora"),
        ("urn:ietf:params:scim:schemas:core:2.0:User:userName", "anna ben carla dora"),
    ):
        names = {}
        for order in ("ascending", "descending"):
            page = await scim.send("GET", "/Users", sortBy=sort_by, sortOrder=order)
            items = [item["userName"].partition("@")[0] for item in page["Resources"]]
            names[order] = " ".join(items)
        reverse = " ".join(reversed(expected.split()))
        assert names == {"ascending": expected, "descending": reverse}, sort_by


async def test_pages(scim: ScimTestClient, people: dict[str, Any]) -> None:
    assert people
    for parameters, names, start in (
        ({"startIndex": 1, "count": 2}, ["anna", "ben"], 1),
        ({"startIndex": 3, "count": 2}, ["carla", "dora"], 3),
        ({"startIndex": 4, "count": 9}, ["dora"], 4),
        ({"startIndex": 5, "count": 2}, [], 5),
        ({"startIndex": -3, "count": 1}, ["anna"], 1),
        ({"startIndex": 0, "count": 1}, ["anna"], 1),
        ({"count": 0}, [], 1),
        ({"count": -1}, [], 1),
        ({"count": 100_000}, ["anna", "ben", "carla", "dora"], 1),
        ({"startIndex": 10**30}, None, 1),
        ({"startIndex": 2**53}, [], 2**53),
    ):
        if names is None:
            assert (await scim.error("GET", "/Users", **parameters)) == (400, "invalidValue")
            continue
        for page in (
            await scim.send("GET", "/Users", **parameters),
            await scim.send("POST", "/Users/.search", parameters),
        ):
            assert [item["userName"].partition("@")[0] for item in page["Resources"]] == names
            assert page["totalResults"] == 4
            assert (page["startIndex"], page["itemsPerPage"]) == (start, len(names))


async def test_search_of_all_resources(scim: ScimTestClient, people: dict[str, Any]) -> None:
    assert people
    groups = [await scim.create_group(name) for name in ("one", "two", "three")]
    everything = await scim.send("POST", "/.search", {"count": 250})
    ids = [item["id"] for item in everything["Resources"]]
    assert set(ids) == {item["id"] for item in [*people.values(), *groups]}
    paged = []
    for start in range(1, 9, 2):
        page = await scim.send("POST", "/.search", {"startIndex": start, "count": 2})
        assert page["totalResults"] == 7
        paged += [item["id"] for item in page["Resources"]]
    assert paged == ids
    search = {"filter": 'displayName sw "t"', "attributes": ["displayName"]}
    found = await scim.send("POST", "/.search", search)
    assert [set(item) for item in found["Resources"]] == [{"schemas", "id", "displayName"}] * 2


async def test_search_of_all_resources_treats_attributes_of_other_types_as_absent(
    scim: ScimTestClient, people: dict[str, Any]
) -> None:
    group = await scim.create_group("Staff", [people["anna"]["id"]])
    user_name = "urn:ietf:params:scim:schemas:core:2.0:User:userName"
    everybody = [*sorted(people), "Staff"]
    for text, names in (
        ('userName eq "anna@example.org"', ["anna"]),
        (f'{user_name} eq "anna@example.org"', ["anna"]),
        ('userName eq "anna@example.org" or displayName eq "staff"', ["anna", "Staff"]),
        ('emails[type eq "home"]', ["ben"]),
        ("active eq false", ["ben"]),
        ("not (userName pr)", ["Staff"]),
        ('userName ne "anna@example.org"', ["ben", "carla", "dora", "Staff"]),
        ("userName eq null", ["Staff"]),
        (f'members.value eq "{people["anna"]["id"]}"', ["Staff"]),
        ("members pr", ["Staff"]),
        (f'groups.value eq "{group["id"]}"', ["anna"]),
        ('meta.resourceType eq "Group"', ["Staff"]),
        ('meta.resourceType eq "User"', sorted(people)),
        ('meta.resourceType eq "User" or meta.resourceType eq "Group"', everybody),
    ):
        page = await scim.send("POST", "/.search", {"filter": text, "sortBy": "userName"})
        found = [
            item.get("userName", item.get("displayName")).partition("@")[0]
            for item in page["Resources"]
        ]
        assert (found, page["totalResults"]) == (names, len(names)), text
    for body in ({"filter": "nothing pr"}, {"filter": "members.nothing eq 1", "sortBy": "x"}):
        assert (await scim.error("POST", "/.search", body))[0] == 400
    # the names of a SearchRequest have no case (RFC 7643, section 2.1)
    page = await scim.send("POST", "/.search", {"Filter": "active pr", "COUNT": 1})
    assert (page["totalResults"], page["itemsPerPage"]) == (4, 1)


async def test_statement_count_does_not_depend_on_the_page(
    scim: ScimTestClient, statements: list[str]
) -> None:
    counts: dict[tuple[str, int], int] = {}
    for size in (1, 20):
        while (await scim.send("GET", "/Users", count=0))["totalResults"] < size:
            number = len(counts) * 100 + (await scim.send("GET", "/Users", count=0))["totalResults"]
            emails = [{"value": f"u{number}@example.org"}, {"value": f"v{number}@example.org"}]
            user = await scim.create_user(f"u{number}", emails=emails)
            await scim.create_group(f"g{number}", [user["id"]])
        for path in ("/Users", "/Groups"):
            await scim.send("GET", path)
            del statements[:]
            page = await scim.send("GET", path)
            assert len(page["Resources"]) == size
            counts[path, size] = len(statements)
    assert counts["/Users", 1] == counts["/Users", 20] <= 5
    assert counts["/Groups", 1] == counts["/Groups", 20] <= 3


WRONG_FILTERS: list[str] = [
    "(" * 1000 + "userName pr" + ")" * 1000,
    "not (" * 1000 + "userName pr" + ")" * 1000,
    "emails[" + "not (" * 500 + "value pr" + ")" * 500 + "]",
    " or ".join(["id pr"] * (MAX_COMPARISONS + 1)),
    "userName eq " + '"' + "a" * MAX_FILTER_BYTES + '"',
    "userName",
    "userName eq",
    'userName eq "a" and',
    "(userName pr",
    'userName xx "a"',
    "userName eq a",
    "userName eq 1",
    "userName sw null",
    'userName eq "\\u0000"',
    'externalId eq "\\ud800"',
    "active eq 1",
    'active co "t"',
    "active gt true",
    'meta.created gt "yesterday"',
    'meta.created co "2030"',
    'id sw "usr"',
    'password eq "violet"',
    'password sw "v"',
    "password pr",
    "title pr",
    "username.value pr",
    "emails.display pr",
    "emails[type]",
    'emails[value[type eq "x"]]',
    'userName[value eq "a"]',
    'urn:ietf:params:scim:schemas:core:2.0:Group:userName eq "a"',
    " ",
]


async def test_wrong_filter_is_refused(scim: ScimTestClient) -> None:
    for case in each_case(WRONG_FILTERS):
        with case as text:
            assert await scim.error("POST", "/Users/.search", {"filter": text}) == (
                400,
                "invalidFilter",
            )
            assert await scim.error("GET", "/Users", filter=text) == (400, "invalidFilter")


async def test_nested_filter_of_groups_is_refused(scim: ScimTestClient) -> None:
    for text in (
        "(" * 1000 + "displayName pr" + ")" * 1000,
        "not (" * 1000 + "displayName pr" + ")" * 1000,
        "members[" + "not (" * 500 + "value pr" + ")" * 500 + "]",
    ):
        for method, path in (("GET", "/Groups"), ("POST", "/Groups/.search"), ("POST", "/.search")):
            query = {"filter": text}
            request = {"body": query} if method == "POST" else query
            assert await scim.error(method, path, **request) == (400, "invalidFilter")


async def test_nested_filter_within_the_limits_is_answered(scim: ScimTestClient) -> None:
    await scim.create_user("anna")
    for text in (
        "(" * 31 + "userName pr" + ")" * 31,
        "not (" * 30 + "userName pr" + ")" * 30,
        " or ".join(["userName pr"] * MAX_COMPARISONS),
        " and ".join(['not (emails[type eq "x"])'] * MAX_COMPARISONS),
    ):
        page = await scim.send("POST", "/Users/.search", {"filter": text})
        assert page["totalResults"] == 1
