"""The statements of SCIM requests, and their points in the rate budget."""

from typing import Any

import pytest
from sqlalchemy import update

from graph.http.admission_control import AdmissionControl
from graph.http.rate_budgets import PointRates, budget_capacity
from graph.scim.service import (
    ACCOUNT_POINTS,
    MEMBER_POINTS,
    PASSWORD_POINTS,
    READ_POINTS,
    WRITE_POINTS,
)
from models.domains.tables import Domain
from tests.support.scim.scim_client import ScimTestClient, patch_body, replace_value

MAX_STATEMENTS_PER_USER = 32
PASSWORD = {"password": "violet-otter-93-lamp"}


@pytest.fixture
def charges(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The points that are charged, one entry for each request or part of one."""
    charged: list[int] = []
    charge_viewer = AdmissionControl.charge_viewer

    def record_and_charge(admission: AdmissionControl, ctx: Any, points: int) -> None:
        charged.append(points)
        charge_viewer(admission, ctx, points)

    monkeypatch.setattr(AdmissionControl, "charge_viewer", record_and_charge)
    return charged


async def test_creation_of_a_user_has_a_constant_number_of_statements(
    scim: ScimTestClient, statements: list[str]
) -> None:
    counts = set()
    for number in range(10):
        del statements[:]
        await scim.create_user(f"u{number}", externalId=f"e{number}", name={"givenName": "U"})
        counts.add(len(statements))
    assert len(counts) <= 2  # the first request also records the use of the key
    assert max(counts) <= MAX_STATEMENTS_PER_USER


def test_rate_budget_allows_a_thousand_creations() -> None:
    assert budget_capacity(PointRates().users) >= 1000 * WRITE_POINTS


async def test_cost_of_a_page_follows_its_accounts(
    scim: ScimTestClient, charges: list[int]
) -> None:
    for number in range(5):
        await scim.create_user(f"u{number}")
    await scim.create_group("Staff")
    requests: list[tuple[str, dict[str, Any], int]] = [
        ("/Users", {}, 5 * ACCOUNT_POINTS),
        ("/Users", {"count": 2}, 2 * ACCOUNT_POINTS),
        ("/Users", {"count": 0}, 0),
        ("/Users", {"filter": 'userName eq "u1@example.org"'}, ACCOUNT_POINTS),
        ("/Users", {"filter": 'userName eq "nobody@example.org"'}, 0),
        ("/Groups", {}, ACCOUNT_POINTS),
    ]
    for path, params, points in requests:
        del charges[:]
        await scim.send("GET", path, **params)
        assert sum(charges) == READ_POINTS + points, (path, params)
    del charges[:]
    await scim.send("POST", "/.search", {"count": 6})
    assert sum(charges) == READ_POINTS + 6 * ACCOUNT_POINTS


NAME, ADDRESS = 'userName eq "none"', 'emails.value eq "none@example.org"'
LATER = 'meta.lastModified gt "2130-01-01T00:00:00Z"'
POINTS_OF_FILTERS = {  # for 1,000 accounts
    'displayName eq "x"': 100,
    'userName sw "x"': 100,
    f"not ({NAME})": 100,
    f'{NAME} or displayName eq "x"': 100,
    'emails[type eq "home"]': 100,
    'emails[value eq "none" or value eq "nobody"]': 100,
    f'{NAME} and displayName eq "x"': 0,
    f"{NAME} or {ADDRESS}": 0,
    f"{NAME} or {ADDRESS} or {LATER}": 0,
    f"({NAME} or {ADDRESS}) and active eq false": 0,
    f"not ({NAME} or {ADDRESS})": 100,
    f'{NAME} or externalId sw "x"': 100,
    f"{NAME} or active eq false": 100,
    f"{NAME} and active eq false": 0,
    f"{NAME} and {ADDRESS}": 0,
    'emails[type eq "work" and value eq "none@example.org"]': 0,
    'emails[type eq "work"].value eq "none@example.org"': 0,
    'externalId eq "none"': 0,
    "active eq false": 10,
    "not (active eq true)": 10,
    'active eq false and displayName eq "x"': 100,
    LATER: 0,
    f"{LATER} and active eq true": 0,
    LATER.replace("gt", "ne"): 100,
    LATER.replace("lastModified", "created"): 100,
}


async def test_comparison_of_all_accounts_is_charged(
    scim: ScimTestClient, charges: list[int]
) -> None:
    user = await scim.create_user("alice", externalId="x")
    async with scim.environment.write_session() as session:  # as if the domain had more accounts
        await (await session.connection()).execute(update(Domain).values(user_count=1000))
    requests: list[tuple[dict[str, Any], int]] = [
        *(({"filter": text}, points) for text, points in POINTS_OF_FILTERS.items()),
        ({"filter": "active eq false", "sortBy": "displayName"}, 100),
        ({"sortBy": "displayName", "count": 0}, 100),
        ({"filter": f'id eq "{user["id"]}"', "count": 0, "sortBy": "displayName"}, 0),
        ({"count": 0}, 0),
        ({"sortBy": "id", "count": 0}, 0),
    ]
    for params, points in requests:
        del charges[:]
        page = await scim.send("GET", "/Users", **params)
        found = len(page.get("Resources", [])) * ACCOUNT_POINTS
        assert sum(charges) == READ_POINTS + points + found, params


async def test_matches_of_an_index_are_charged(
    scim: ScimTestClient, charges: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.scim.queries.ACCOUNTS_PER_SCAN_POINT", 1)
    for number in range(5):
        await scim.create_user(f"u{number}")
    del charges[:]
    text = 'meta.lastModified gt "2020-01-01T00:00:00Z"'
    await scim.send("GET", "/Users", filter=text, count=0)
    assert sum(charges) == READ_POINTS + 5


async def test_cost_of_a_group_follows_its_members(
    scim: ScimTestClient, charges: list[int]
) -> None:
    members = [(await scim.create_user(f"u{number}"))["id"] for number in range(6)]
    del charges[:]
    group = await scim.create_group("Staff", members[:4])
    assert sum(charges) == WRITE_POINTS + (4 + 4) * MEMBER_POINTS
    path = f"/Groups/{group['id']}"
    add_member = {"op": "add", "path": "members", "value": [{"value": members[4]}]}
    remove_all = {"op": "remove", "path": "members"}
    rename = replace_value("displayName", "x")
    requests: list[tuple[dict[str, Any], dict[str, Any], int]] = [
        (add_member, {}, 1),
        (add_member, {}, 0),
        (rename, {"attributes": "members"}, 5),
        (rename, {"excludedAttributes": "members"}, 0),
        (remove_all, {}, 5),
    ]
    for operation, params, member_count in requests:
        del charges[:]
        response = await scim.request("PATCH", path, patch_body(operation), **params)
        assert response.status_code in (200, 204)
        assert sum(charges) == WRITE_POINTS + member_count * MEMBER_POINTS, (operation, params)
    del charges[:]
    body = {"displayName": "x", "members": [{"value": key} for key in members[:3]]}
    await scim.send("PUT", path, body)
    assert sum(charges) == WRITE_POINTS + (3 + 3) * MEMBER_POINTS
    del charges[:]
    await scim.send("GET", path)
    assert sum(charges) == READ_POINTS + 3 * MEMBER_POINTS


async def test_new_passwords_are_charged(scim: ScimTestClient, charges: list[int]) -> None:
    created = await scim.create_user("alice", **PASSWORD)
    assert sum(charges) == WRITE_POINTS + PASSWORD_POINTS
    path = f"/Users/{created['id']}"
    replacement = {"userName": "alice@example.org", **PASSWORD}
    patches: list[dict[str, Any]] = [
        {"op": "add", "value": PASSWORD},
        replace_value("Password", PASSWORD["password"]),
    ]
    for method, body in (("PUT", replacement), *(("PATCH", patch_body(item)) for item in patches)):
        del charges[:]
        await scim.send(method, path, body)
        assert sum(charges) == WRITE_POINTS + PASSWORD_POINTS
    del charges[:]
    await scim.patch(path, replace_value("displayName", "password"))
    assert sum(charges) == WRITE_POINTS


async def test_change_that_can_not_be_paid_changes_nothing(
    scim: ScimTestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await scim.create_user("alice")
    group = await scim.create_group("Staff")
    path = f"/Groups/{group['id']}"
    operation = {"op": "add", "path": "members", "value": [{"value": user["id"]}]}
    monkeypatch.setattr("graph.scim.service.MEMBER_POINTS", 120_000)
    remove = {"op": "remove", "path": "members"}
    statuses = [
        (await scim.request("PATCH", path, patch_body(item))).status_code
        for item in (operation, remove, operation)
    ]
    assert statuses == [204, 204, 429]
    monkeypatch.undo()
    assert "members" not in await scim.send("GET", path)


async def test_query_has_a_time_limit(
    scim: ScimTestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.scim.queries.QUERY_SECONDS", 0.0)
    for path in ("/Users", "/Groups"):
        assert await scim.error("GET", path) == (400, "tooMany")
