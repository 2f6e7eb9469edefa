"""Query.statistics: stored steps of 5 minutes and one hour, gaps, domains, roles and bad input."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select
from sqlmodel import col

from mail.maintenance import housekeeping
from models.domains.tables import Domain
from models.metrics.tables import LONG_STEP, SHORT_STEP, StatisticStep
from models.metrics.usage_recorder import PLATFORM_ID, UsageCaller
from models.runtime.environment import Environment
from models.store.keyset_pages import EPOCH
from resolvers.metrics.statistics_writer import StatisticSampler, add_increments_to_stored_steps
from resolvers.metrics.usage_settlement import step_start_of
from tests.conftest import GraphQLClient, ManualClock, make_client, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.platform.metric_operations import (
    STATISTICS,
    other_process,
    read_series,
)
from tests.support.stores.query_plans import record_query_plans
from tests.support.stores.recorded_statements import record_sql

START = datetime(2030, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def seconds_of(at: datetime) -> int:
    return (at - EPOCH) // timedelta(seconds=1)


async def domain_id_of(environment: Environment, name: str = "example.org") -> int:
    rows = await environment.database.read(select(col(Domain.id)).where(col(Domain.name) == name))
    domain_id: int = rows[0].id
    return domain_id


async def write_step(environment: Environment) -> None:
    """Write what was counted in the current step."""
    await add_increments_to_stored_steps(environment, step_start_of(environment))


async def insert_steps(
    environment: Environment, step_seconds: int, starts: list[int], **values: int
) -> None:
    """Insert steps of the platform with these values, and zeros."""
    zeros = {
        column.name: 0
        for column in StatisticStep.__table__.columns  # type: ignore[attr-defined]
        if not column.nullable
    }
    rows = [
        {**zeros, "step_seconds": step_seconds, "started_at": start, "domain_id": 0, **values}
        for start in starts
    ]
    await environment.run_transaction(
        lambda transaction: transaction.connection.execute(insert(StatisticStep), rows)
    )


async def test_counts_are_in_the_step_in_which_they_were_counted(
    environment: Environment, clock: ManualClock, root: GraphQLClient
) -> None:
    for count in (1, 2, 0, 4):
        for _ in range(count):
            environment.usage.count_sent_message(None, 1000)
        await write_step(environment)
        clock.tick(minutes=5)
    for _ in range(5):
        environment.usage.count_sent_message(None, 1000)  # not yet written
    series = await read_series(root, "MESSAGES_OUT", "BYTES_OUT", from_time=START, step="PT5M")
    assert series["MESSAGES_OUT"] == [1, 2, 0, 4]  # the next step begins now
    clock.tick(seconds=1)
    series = await read_series(root, "MESSAGES_OUT", "BYTES_OUT", from_time=START, step="PT5M")
    assert series == {
        "MESSAGES_OUT": [1, 2, 0, 4, 5],
        "BYTES_OUT": [1000, 2000, 0, 4000, 5000],
    }
    assert await read_series(root, "MESSAGES_OUT", from_time=START, step="PT10M") == {
        "MESSAGES_OUT": [3, 4, 5]
    }
    assert await read_series(root, "MESSAGES_OUT", from_time=START) == {"MESSAGES_OUT": [12]}
    assert await read_series(root, "MESSAGES_OUT", from_time=START, step="P1D") == {
        "MESSAGES_OUT": [12]
    }


async def test_step_without_a_server_is_null(
    environment: Environment, clock: ManualClock, root: GraphQLClient
) -> None:
    await write_step(environment)
    clock.tick(minutes=15)
    await write_step(environment)
    clock.tick(minutes=4)
    series = await read_series(
        root, "SIGN_INS", "API_LATENCY_P50", "STORAGE",
        from_time=START - 5 * MINUTE, before=(START + 30 * MINUTE).isoformat(), step="PT5M",
    )  # fmt: skip
    assert series["SIGN_INS"] == [None, 0, None, None, 0, None, None]
    assert series["STORAGE"] == [None] * 7
    assert series["API_LATENCY_P50"][0] is None


async def test_all_processes_add_to_the_same_step(
    environment: Environment, root: GraphQLClient, ada: GraphQLClient
) -> None:
    domain = {"name": "example.org"}
    async with other_process(environment) as other:
        for process, count in ((environment, 3), (other, 4)):
            for _ in range(count):
                process.usage.count_sent_message(ada.user.id, 10)
                process.usage.count_api_operation(
                    "x", UsageCaller(ada.user.id), 0.02, has_failed=False
                )
        names = ("MESSAGES_OUT", "API_OPERATIONS")
        to = (START + 5 * MINUTE).isoformat()
        for _ in range(2):  # first from the memory of both processes, then from the store
            for place, expected in (({}, 7), ({"domain": domain}, 7)):
                series = await read_series(
                    root, *names, from_time=START, before=to, step="PT5M", **place
                )
                assert series["MESSAGES_OUT"] == [expected]
                operations = series["API_OPERATIONS"][0]
                assert operations is not None
                assert operations >= expected
            await write_step(environment)
            await write_step(other)
        latency = await read_series(
            root, "API_LATENCY_P50", "API_LATENCY_P95",
            from_time=START, before=to, step="PT5M", domain=domain,
        )  # fmt: skip
    assert all(0.01 <= (points[0] or 0) <= 0.025 for points in latency.values())


async def test_failed_write_keeps_the_increments(
    environment: Environment, root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.usage.count_sent_message(None, 10)
    with monkeypatch.context() as patch:
        patch.setattr(type(environment), "run_transaction", fail_transaction)
        with pytest.raises(OSError, match="disk"):
            await write_step(environment)
    await write_step(environment)
    await write_step(environment)
    series = await read_series(
        root, "MESSAGES_OUT", from_time=START, before=(START + MINUTE).isoformat(), step="PT5M"
    )
    assert series["MESSAGES_OUT"] == [1]


async def fail_transaction(*_: Any) -> None:
    raise OSError("disk")


async def test_samples_show_storage_active_users_and_queue(
    environment: Environment, clock: ManualClock, ada: GraphQLClient, root: GraphQLClient
) -> None:
    sampler, domain = StatisticSampler(), {"name": "example.org"}
    await ada("{ viewer { role } }")
    clock.tick(minutes=1)
    await write_step(environment)
    await sampler.sample_and_write(environment, step_start_of(environment))
    for _ in range(3):
        clock.tick(minutes=5)
        await write_step(environment)
        await sampler.sample_and_write(environment, step_start_of(environment))
    names = ("STORAGE", "ACTIVE_USERS", "QUEUE_LENGTH")
    for place in ({}, {"domain": domain}):
        series = await read_series(root, *names, from_time=START, step="PT5M", **place)
        assert series["QUEUE_LENGTH"] == [0] * 4
        assert series["STORAGE"] == [0] * 4
        assert series["ACTIVE_USERS"] == [1] * 4  # a minute of the test's clock is no time
    rows = await environment.database.read(
        select(col(StatisticStep.domain_id), col(StatisticStep.step_seconds)).where(
            col(StatisticStep.active_users).is_not(None)
        )
    )
    steps = [row.step_seconds for row in rows if row.domain_id != PLATFORM_ID]
    assert sorted(steps) == [SHORT_STEP, LONG_STEP]  # later values are the same


async def test_highest_sample_of_a_step_counts(
    environment: Environment, clock: ManualClock, ada: GraphQLClient, root: GraphQLClient
) -> None:
    sampler, domain = StatisticSampler(), {"name": "example.org"}
    expected: list[float] = []
    for used_values in ((5, 9, 7), (7, 7, 7), (3, 2, 1)):
        for used in used_values:
            async with environment.write_session(ada.user.id) as session:
                user = await session.get_one(type(ada.user), ada.user.id)
                user.used = used
            await sampler.sample_and_write(environment, step_start_of(environment))
            clock.tick(minutes=1)
        await add_increments_to_stored_steps(environment, step_start_of(environment))
        clock.tick(minutes=2)
        expected.append(max(used_values))
    for place in ({}, {"domain": domain}):
        series = await read_series(root, "STORAGE", from_time=START, step="PT5M", **place)
        assert series["STORAGE"] == expected
        series = await read_series(root, "STORAGE", from_time=START, step="PT1H", **place)
        assert series["STORAGE"] == [max(expected)]
    later = START + 10 * MINUTE
    series = await read_series(root, "STORAGE", from_time=later, step="PT5M", domain=domain)
    assert series["STORAGE"] == expected[2:]


async def test_domain_admin_sees_only_own_domains(
    environment: Environment, http: httpx.AsyncClient, ada: GraphQLClient, root: GraphQLClient
) -> None:
    await root(
        """mutation ($input: UserCreateInput!) { userCreate(input: $input) { errors { code } } }""",
        input={"username": "zoe", "address": "zoe@example.net", "passwordDisabled": True},
    )
    admin = await make_domain_admin(environment, http, "dora")
    environment.usage.count_sent_message(ada.user.id, 10)
    other_domain = await domain_id_of(environment, "example.net")
    environment.usage.count_received_message(UsageCaller(7), other_domain, 10)
    names = ["MESSAGES_IN", "MESSAGES_OUT"]
    times = {"since": START.isoformat(), "before": (START + MINUTE).isoformat()}
    variables: dict[str, Any] = {"names": names, **times}
    own = await admin(STATISTICS, **variables, domain={"name": "EXAMPLE.org"})
    assert [series["points"] for series in own["statistics"]["series"]] == [[0], [1]]
    for domain in ({"name": "example.net"}, {"name": "example.com"}, {"id": "x"}, None):
        response = await admin.execute(STATISTICS, **variables, domain=domain)
        assert response["data"] == {"statistics": None}, domain
    foreign, unknown = [
        (await admin.execute(STATISTICS, **variables, domain={"name": name}))["errors"]
        for name in ("example.net", "example.com")
    ]
    assert foreign[0]["extensions"] == unknown[0]["extensions"]
    response = await admin.execute(STATISTICS, **variables)
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    for client in (ada, await make_client(environment, http, "eve")):
        response = await client.execute(STATISTICS, **variables, domain={"name": "example.org"})
        assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    seen = await root(STATISTICS, **variables, domain={"name": "example.net"})
    assert [series["points"] for series in seen["statistics"]["series"]] == [[1], [0]]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"names": []}, "From 1 to 20 names are required."),
        ({"names": ["SIGN_INS"] * 2}, "Each name is allowed once."),
        ({"names": ["SIGN_INS"] * 21}, "From 1 to 20 names are required."),
        ({"before": START.isoformat()}, "Must be earlier than `before`."),
        ({"before": (START - MINUTE).isoformat()}, "Must be earlier than `before`."),
        ({"step": "PT1M"}, "Must be a multiple of PT5M"),
        ({"step": "PT7M"}, "Must be a multiple of PT5M"),
        ({"step": "PT0S"}, "Must be a multiple of PT5M"),
        ({"step": "PT300.5S"}, ""),
        ({"step": "P401D"}, "Must be a multiple of PT5M"),
        ({"step": "PT90M"}, "Above PT1H, must be a multiple of PT1H."),
        ({"before": (START + 2001 * timedelta(hours=1)).isoformat()}, "A series has at most 2,000"),
        ({"since": "0001-01-01T00:00:00Z"}, "A series has at most 2,000 points"),
    ],
)
async def test_bad_arguments_are_refused(
    admin_client: GraphQLClient, variables: Mapping[str, Any], message: str
) -> None:
    all_variables = {"names": ["SIGN_INS"], "since": START.isoformat(),
                     "before": (START + MINUTE).isoformat(), **variables}  # fmt: skip
    response = await admin_client.execute(STATISTICS, **all_variables)
    assert not response.get("data") or response["data"] == {"statistics": None}
    (error,) = response["errors"]
    assert error["extensions"]["code"] in ("BAD_USER_INPUT", "BAD_VARIABLES")
    assert message in error["message"]


async def test_extreme_times_have_no_values(admin_client: GraphQLClient) -> None:
    for from_time, to in (
        (datetime(9999, 12, 1, tzinfo=UTC), "9999-12-31T23:00:00Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-02-01T00:00:00Z"),
    ):
        series = await read_series(admin_client, "SIGN_INS", from_time=from_time, before=to)
        assert set(series["SIGN_INS"]) == {None}


async def test_times_are_rounded_to_whole_steps(admin_client: GraphQLClient) -> None:
    statistics = (
        await admin_client(
            STATISTICS,
            names=["SIGN_INS"],
            step="PT1H",
            before="2030-01-01T03:00:01+01:00",
            since="2030-01-01T00:59:59Z",
        )
    )["statistics"]
    assert statistics["startsAt"] == "2030-01-01T00:00:00Z"
    assert statistics["endsAt"] == "2030-01-01T03:00:00Z"
    assert statistics["step"] == "PT3600S"
    assert len(statistics["series"][0]["points"]) == 3


async def test_year_of_hours_is_read_fast_and_by_the_primary_key(
    environment: Environment, root: GraphQLClient
) -> None:
    hours = [seconds_of(START) - hour * LONG_STEP for hour in range(400 * 24)]
    await insert_steps(environment, LONG_STEP, hours, sign_ins=1)
    await environment.database.refresh_planner_statistics()
    from_time = START - timedelta(days=399)
    names = ("SIGN_INS", "MESSAGES_IN", "API_LATENCY_P95", "STORAGE", "VIRUSES", "BYTES_OUT")
    arguments: dict[str, Any] = {"from_time": from_time, "before": START.isoformat(), "step": "P1D"}
    with record_query_plans(environment) as recorder:
        reading = read_series(root, *names, **arguments)
        plan = await recorder.explain_select(reading, "statistic_steps")
    series = await read_series(root, *names, **arguments)
    assert series["SIGN_INS"][1:] == [24] * 398
    started_at = time.process_time()
    await read_series(root, *names, **arguments)
    assert time.process_time() - started_at < 1.0  # 0.03 s on an idle machine
    assert "SCAN statistic_steps" not in plan
    assert "Seq Scan" not in plan
    assert "pk_statistic_steps" in plan or "sqlite_autoindex_statistic_steps_1" in plan


async def test_number_of_statements_is_constant(
    environment: Environment, clock: ManualClock, root: GraphQLClient
) -> None:
    counts = []
    await read_series(root, "SIGN_INS", from_time=START - MINUTE)
    for step_count in (1, 20):
        for _ in range(step_count):
            await write_step(environment)
            clock.tick(minutes=5)
        statements = record_sql(environment.database)
        names = ("SIGN_INS", "STORAGE", "API_LATENCY_P95", "MESSAGES_IN")[:step_count]
        await read_series(root, *names, from_time=START, step="PT5M")
        counts.append(len([text for text in statements if "statistic" in text]))
    assert counts == [1, 1]


async def test_old_steps_and_steps_of_deleted_domains_are_deleted(
    environment: Environment,
) -> None:
    await make_user(environment, "ada")
    domain_id = await domain_id_of(environment)
    now = seconds_of(environment.now())
    for step, days in ((SHORT_STEP, 14), (LONG_STEP, 400)):
        limit = now - days * 86_400
        for key in (PLATFORM_ID, domain_id, 999):
            await insert_steps(environment, step, [limit - step, limit, now], domain_id=key)
    result = await housekeeping.run_housekeeping_round(environment)
    assert result.statistics == 2 * (1 + 1 + 3)
    rows = await environment.database.read(
        select(col(StatisticStep.domain_id), col(StatisticStep.started_at))
    )
    assert len(rows) == 8
    assert {row.domain_id for row in rows} == {PLATFORM_ID, domain_id}
    assert (await housekeeping.run_housekeeping_round(environment)).statistics == 0
