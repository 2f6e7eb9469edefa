"""Query plans of SCIM lists: an index finds the accounts, also before statistics exist."""

import httpx
import pytest
from sqlalchemy import Connection, select
from sqlmodel import col

from bench.scenarios.operations.scim_lists import indexed_lists, insert_directory
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.store.sqlite.planner_statistics import STATEMENTS
from tests.support.scim.scim_client import make_scim_client
from tests.support.stores.query_plans import record_query_plans

USER_COUNT = 3000
LARGE_TABLES = ("users", "addresses", "scim_group_members")


async def test_lists_by_index_read_no_whole_table(
    http: httpx.AsyncClient, environment: Environment
) -> None:
    sample = await insert_directory(environment, USER_COUNT)
    (domain,) = await environment.database.read(select(col(Domain.id)))
    scim = await make_scim_client(http, environment, domain.id)
    scans = {}
    with record_query_plans(environment) as recorder:
        for name, (path, parameters) in indexed_lists(sample, USER_COUNT).items():
            plans = await recorder.explain_statements(
                scim.send("GET", path, **parameters), lambda sent: sent.startswith("SELECT")
            )
            assert plans
            # PostgreSQL reads all of the small table of SCIM attributes for a page of 100
            tables = (*LARGE_TABLES, "scim_users") if name == "externalId eq" else LARGE_TABLES
            found = [f"{scan} {table}" for table in tables for scan in ("SCAN", "Seq Scan on")]
            scans[name] = [scan for scan in found if any(scan in plan for plan in plans)]
    # PostgreSQL reads the rows of a small table instead of an index with the same columns
    most_of_all = {"deep page", "deep page, descending", "by id, deep", "active eq true"}
    assert {name: found for name, found in scans.items() if found and name not in most_of_all} == {}


async def test_filters_by_index_read_no_other_accounts_of_the_domain(
    http: httpx.AsyncClient, environment: Environment
) -> None:
    sample = await insert_directory(environment, USER_COUNT)
    (domain,) = await environment.database.read(select(col(Domain.id)))
    scim = await make_scim_client(http, environment, domain.id)
    lists = {
        name: parameters
        for name, (path, parameters) in indexed_lists(sample, USER_COUNT).items()
        if path == "/Users" and "filter" in parameters and name != "active eq true"
    }
    assert len(lists) > 10
    faults = {}
    with record_query_plans(environment) as recorder:
        for name, parameters in lists.items():
            plans = await recorder.explain_statements(
                scim.send("GET", "/Users", **parameters),
                lambda sent: sent.startswith("SELECT") and "users.domain_id" in sent,
            )
            lines = [line.strip() for plan in plans for line in plan.splitlines()]
            assert lines
            faults[name] = [line for line in lines if is_search_of_domain(line)]
    assert {name: found for name, found in faults.items() if found} == {}


def is_search_of_domain(line: str) -> bool:
    """True if a line of a plan reads the rows of all users of a domain."""
    is_sqlite_search = "(domain_id=?)" in line and "COVERING" not in line
    return is_sqlite_search or line == "Index Cond: (domain_id = ?)"


async def test_filters_of_groups_use_indexes(
    http: httpx.AsyncClient, environment: Environment
) -> None:
    sample = await insert_directory(environment, USER_COUNT, members_per_group=1)
    (domain,) = await environment.database.read(select(col(Domain.id)))
    scim = await make_scim_client(http, environment, domain.id)
    member = f'"{sample.user_id}"'
    with record_query_plans(environment) as recorder:
        for text, index in (
            ('displayName eq "GROUP 7"', "scim_groups_by_name"),
            ('externalId eq "g7"', "scim_groups_by_external_id"),
            (f"members eq {member}", "ix_scim_group_members_user_id"),
            (f"members.value eq {member}", "ix_scim_group_members_user_id"),
            (f"members[value eq {member}]", "ix_scim_group_members_user_id"),
            ('displayName eq "group 7" or externalId eq "g8"', "scim_groups_by_name"),
        ):
            plans = await recorder.explain_statements(
                scim.send("GET", "/Groups", filter=text, excludedAttributes="members"),
                lambda sent: "FROM scim_groups" in sent,
            )
            assert plans
            for plan in plans:
                assert index in plan, (text, plan)
                assert "SCAN scim_groups" not in plan, (text, plan)
                assert "Seq Scan on scim_groups" not in plan, (text, plan)
                assert "(domain_id=?)" not in plan, (text, plan)


async def test_sqlite_needs_no_statistics(
    http: httpx.AsyncClient, environment: Environment
) -> None:
    """SQLite then assumes that each key of an index has few rows, such as that of a domain."""
    if environment.database.dialect != "sqlite":
        pytest.skip("PostgreSQL always has statistics")
    await insert_directory(environment, 300)
    await environment.database.run_transaction(_forget_statistics)
    (domain,) = await environment.database.read(select(col(Domain.id)))
    scim = await make_scim_client(http, environment, domain.id)
    with record_query_plans(environment) as recorder:
        for path in ("/Users", "/Groups"):
            plans = await recorder.explain_statements(
                scim.send("GET", path), lambda sent: "_id IN (?, ?" in sent
            )
            assert plans
            for plan in plans:
                assert "SCAN" not in plan, plan
                assert "MULTI-INDEX OR" not in plan, plan
                assert "(domain_id=?)" not in plan, plan


def _forget_statistics(connection: Connection) -> None:
    """Delete the statistics, and make all connections read that there are none."""
    connection.exec_driver_sql("DELETE FROM sqlite_stat1")
    for statement in STATEMENTS[STATEMENTS.index("ANALYZE") + 2 :]:
        connection.exec_driver_sql(statement)
