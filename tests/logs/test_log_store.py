"""The log store: limits of age and size, floods, full disks, unsafe text, several writers."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy

from merganser.server.observability.log_store import LogStoreHandler, component_of_logger
from models.logs.entries import (
    MAX_FIELDS_SIZE,
    LogComponent,
    LogConditions,
    LogLevel,
    NewLogEntry,
    storable_entry,
)
from models.logs.levels import parse_levels
from models.logs.postgres_store import TABLE_NAME, _select_entries
from models.logs.recorder import LOST_ENTRIES, MAX_WAITING, LogRecorder
from models.logs.sqlite_store import SqliteLogStore
from models.logs.store import LogLimits, LogPageKey, LogStore, LogStoreFull
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.operations.platform.setting_operations import SETTING_SET
from tests.support.stores.log_stores import list_logs, log_messages, new_entry, new_log_store

START = datetime(2030, 1, 1, tzinfo=UTC)
FILE_COUNT, WRITER_COUNT = 20, 4  # of the test of simultaneous beginnings
LIMITS = LogLimits(timedelta(days=8), 1 << 30, START)
LITERALS = {"literal_binds": True}  # of a compiled statement
UNSAFE_TEXTS = ["\x1b[2J\x1b]0;title\x07", "a\nb\r\tc\0d", "\ud800 half", "\u202e reversed",
                "\x9b31m", "\ue000d1"]  # fmt: skip


def entries_of(count: int, at: datetime = START, text: str = "entry") -> list[Any]:
    return [
        storable_entry(
            NewLogEntry(at, LogComponent.MTA, LogLevel.INFO, "program", f"{text} {number}")
        )
        for number in range(count)
    ]


class BlockedStore:
    """A log store that waits in each write for `may_write`."""

    def __init__(self) -> None:
        self.may_write = threading.Event()

    def write_entries_unless_full(self, *_: Any) -> None:
        self.may_write.wait(10)

    def close_writer(self) -> None:
        pass

    async def close(self) -> None:
        pass


def make_sqlite_store(folder: Path) -> SqliteLogStore:
    return SqliteLogStore(folder / "logs.sqlite3", folder / "mail.db")


async def read_messages(store: SqliteLogStore, **conditions: Any) -> list[str]:
    rows = await store.read_rows(LogConditions(**conditions), LogPageKey(10_000))
    return [row.message for row in rows]


async def test_segments_beyond_the_retention_are_dropped(tmp_path: Path) -> None:
    store = make_sqlite_store(tmp_path)
    for day in range(30):
        limits = LogLimits(timedelta(days=8), 1 << 30, START + timedelta(days=day))
        store.write_entries_unless_full(entries_of(5, limits.now, f"day{day}"), limits)
    days = {message.split()[0] for message in await read_messages(store)}
    assert days == {f"day{day}" for day in range(20, 30)}  # and up to one eighth more
    assert await read_messages(store, words=("day19",)) == []
    store.close_writer()
    await store.close()


async def test_file_stays_within_its_size(tmp_path: Path) -> None:
    store = make_sqlite_store(tmp_path)
    limits = LogLimits(timedelta(days=8), 4 << 20, START)
    for number in range(40):
        store.write_entries_unless_full(
            entries_of(500, START, f"batch{number} {'x' * 200}"), limits
        )
    size = (tmp_path / "logs.sqlite3").stat().st_size
    assert size < 1.3 * limits.max_size
    messages = await read_messages(store)
    assert messages[0].startswith("batch39")
    assert len(messages) > 2000
    assert (tmp_path / "logs.sqlite3").stat().st_mode & 0o077 == 0
    store.close_writer()
    await store.close()


async def test_two_processes_write_to_one_file_in_the_order_of_ids(tmp_path: Path) -> None:
    stores = [make_sqlite_store(tmp_path) for _ in range(2)]

    def write_batches(store: SqliteLogStore, name: str) -> None:
        for _ in range(20):
            store.write_entries_unless_full(entries_of(50, START, name), LIMITS)
        store.close_writer()

    threads = [
        threading.Thread(target=write_batches, args=(store, f"writer{number}"))
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    rows = await stores[0].read_rows(LogConditions(), LogPageKey(10_000, is_descending=False))
    assert len(rows) == 2 * 20 * 50
    assert [row.id for row in rows] == sorted({row.id for row in rows})
    for store in stores:
        await store.close()


async def test_processes_that_begin_the_file_at_the_same_time_lose_no_entry(
    tmp_path: Path,
) -> None:
    for number in range(FILE_COUNT):
        folder = tmp_path / str(number)
        folder.mkdir()
        stores = [make_sqlite_store(folder) for _ in range(WRITER_COUNT)]
        barrier = threading.Barrier(WRITER_COUNT)

        def write_first_batch(store: SqliteLogStore, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            store.write_entries_unless_full(entries_of(1, START, "first"), LIMITS)
            store.close_writer()

        async with asyncio.TaskGroup() as group:
            for store in stores:
                group.create_task(asyncio.to_thread(write_first_batch, store))
        assert await read_messages(stores[0]) == ["first 0"] * WRITER_COUNT
        for store in stores:
            await store.close()


def locks_of_this_process(path: Path) -> list[str]:
    """The POSIX locks on a file that the kernel lists: kinds and ranges."""
    inode = f":{path.stat().st_ino}"
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sorted(
        " ".join((kind, first, last))
        for _, family, _, kind, pid, file, first, last in (lock for lock in locks if len(lock) == 8)
        if (family, pid) == ("POSIX", str(os.getpid())) and file.endswith(inode)
    )


async def test_locks_of_sqlite_remain_when_the_file_is_synced_or_opened_again(
    tmp_path: Path,
) -> None:
    store, other_store = make_sqlite_store(tmp_path), make_sqlite_store(tmp_path)
    store.write_entries_unless_full(entries_of(1), LIMITS)
    locks = locks_of_this_process(store.path)
    assert locks
    store.sync_to_disk()
    assert locks_of_this_process(store.path) == locks
    other_store.write_entries_unless_full(entries_of(1), LIMITS)
    assert locks_of_this_process(store.path) == locks
    for each in (store, other_store):
        each.close_writer()
        await each.close()


async def test_clock_behind_keeps_the_order_and_the_filter_by_time(tmp_path: Path) -> None:
    store = make_sqlite_store(tmp_path)
    late, early = START + timedelta(minutes=10), START
    store.write_entries_unless_full(entries_of(1, late, "fast clock"), LIMITS)
    store.write_entries_unless_full(entries_of(1, early, "slow clock"), LIMITS)
    assert await read_messages(store) == ["slow clock 0", "fast clock 0"]
    before = START + timedelta(minutes=5)
    assert await read_messages(store, before=before) == ["slow clock 0"]
    assert await read_messages(store, since=before) == ["fast clock 0"]
    store.close_writer()
    await store.close()


async def test_writing_postgres_store_drops_old_days(
    log_environment: Environment, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if log_environment.database.dialect != "postgresql":
        pytest.skip("SQLite has segments")
    store = new_log_store(log_environment.database, request.getfixturevalue("postgres"), tmp_path)

    def write_days() -> None:
        for day in range(5):
            now = START + timedelta(days=day)
            vars(store)["_next_check_at"] = -1e9  # check at each write
            limits = LogLimits(timedelta(days=2), 1 << 30, now)
            store.write_entries_unless_full(entries_of(3, now, f"day{day}"), limits)
        store.close_writer()

    await asyncio.to_thread(write_days)
    rows = await store.read_rows(LogConditions(), LogPageKey(100))
    assert {row.message.split()[0] for row in rows} == {"day2", "day3", "day4"}


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_postgres_compares_columns_before_it_looks_for_frequent_tokens(
    request: pytest.FixtureRequest, log_environment: Environment, tmp_path: Path
) -> None:
    database = log_environment.database
    store = new_log_store(database, request.getfixturevalue("postgres"), tmp_path)
    components, levels = (LogComponent.SPAM, LogComponent.MTA), (LogLevel.INFO, LogLevel.ERROR)
    entries = [
        storable_entry(
            NewLogEntry(
                START, components[number % 2], levels[number // 2 % 2], "program", f"sent {number}"
            )
        )
        for number in range(2000)
    ]
    await asyncio.to_thread(store.write_entries_unless_full, entries, LIMITS)
    await asyncio.to_thread(store.close_writer)
    async with database.engine.begin() as connection:
        await connection.execute(sqlalchemy.text(f"ANALYZE {TABLE_NAME}"))
    conditions = LogConditions((LogComponent.SPAM,), LogLevel.ERROR, words=("sent",))
    rows = await store.read_rows(conditions, LogPageKey(101))
    assert [row.message for row in rows] == [f"sent {number}" for number in range(1998, 1594, -4)]
    statement = _select_entries(conditions, LogPageKey(101), sqlalchemy.column("message"))
    explain = f"EXPLAIN {statement.compile(database.engine.sync_engine, compile_kwargs=LITERALS)}"
    plan = "\n".join(row[0] for row in await database.read(cast("Any", sqlalchemy.text(explain))))
    assert "Index Scan Backward" in plan, plan
    assert plan.index("component = 'SPAM'") < plan.index("level >= 3") < plan.index("tokens @>")


async def test_full_postgres_store_loses_counted_entries_until_there_is_room(
    log_environment: Environment, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if log_environment.database.dialect != "postgresql":
        pytest.skip("SQLite drops a segment")
    store = new_log_store(log_environment.database, request.getfixturevalue("postgres"), tmp_path)

    def write_at_each_size() -> None:
        for message, days, max_size in (
            ("first", 0, 1), ("lost", 0, 1), ("room", 0, 1 << 30), ("next", 1, 1 << 30),
            ("lost", 1, 1), ("tomorrow", 2, 1),
        ):  # fmt: skip
            now = START + timedelta(days=days)
            vars(store)["_next_check_at"] = -1e9  # check at each write
            limits = LogLimits(timedelta(days=9), max_size, now)
            if message == "lost":
                with pytest.raises(LogStoreFull):
                    store.write_entries_unless_full(entries_of(3, now, message), limits)
            else:
                store.write_entries_unless_full(entries_of(3, now, message), limits)
        store.close_writer()

    await asyncio.to_thread(write_at_each_size)
    rows = await store.read_rows(LogConditions(), LogPageKey(100))
    assert {row.message.split()[0] for row in rows} == {"tomorrow"}


async def test_failed_drop_of_old_days_loses_no_entries(
    log_environment: Environment, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if log_environment.database.dialect != "postgresql":
        pytest.skip("SQLite drops segments in the transaction of the entries")
    postgres = request.getfixturevalue("postgres")
    store = new_log_store(log_environment.database, postgres, tmp_path)
    late = START + timedelta(days=9)
    await asyncio.to_thread(store.write_entries_unless_full, entries_of(1, START, "old"), LIMITS)
    vars(store)["_next_check_at"] = -1e9
    async with log_environment.database.engine.begin() as reader:
        # its lock lasts until the end of the transaction, and the drop waits for it
        await reader.execute(sqlalchemy.text("SELECT count(*) FROM log_entries"))
        limits = LogLimits(timedelta(days=2), 1 << 30, late)
        await asyncio.to_thread(
            store.write_entries_unless_full, entries_of(1, START, "new"), limits
        )
    await asyncio.to_thread(store.close_writer)
    rows = await store.read_rows(LogConditions(), LogPageKey(100))
    assert [row.message for row in rows] == ["new 0", "old 0"]


async def test_waiting_entries_have_bounded_bytes() -> None:
    store = BlockedStore()
    recorder = LogRecorder(cast(LogStore, store))
    recorder.start(lambda: "DEBUG", lambda: LIMITS)
    before = LOST_ENTRIES.value("queue full")
    for _ in range(1000):
        fields = {"recipients": ["r" * 100] * 100}
        recorder.enqueue_or_drop_entry(
            NewLogEntry(START, LogComponent.MTA, LogLevel.INFO, "p", "m" * 1000, fields)
        )
    assert 600 < LOST_ENTRIES.value("queue full") - before < 900
    store.may_write.set()
    await recorder.flush_within_timeout()
    assert vars(recorder)["_waiting_size"] == 0
    await recorder.stop()


async def test_flood_loses_counted_entries_and_never_waits(log_environment: Environment) -> None:
    before = LOST_ENTRIES.value("queue full")
    cpu_before = time.process_time()
    count = MAX_WAITING * 5
    for number in range(count):
        log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, f"flood {number}"))
    assert time.process_time() - cpu_before < 10
    await log_environment.logs.flush_within_timeout()
    store = log_environment.logs.store
    assert store is not None
    lost = LOST_ENTRIES.value("queue full") - before
    last_id, stored = 0, 0
    while rows := await store.read_rows(
        LogConditions(words=("flood",)), LogPageKey(5000, is_descending=False, above_id=last_id)
    ):
        last_id, stored = rows[-1].id, stored + len(rows)
    assert stored + lost == count, (stored, lost, LOST_ENTRIES.family().points)
    assert stored >= MAX_WAITING


FULL_DISK_PROGRAM = """
import asyncio, json, resource, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from models.logs.entries import LogComponent, LogConditions, LogLevel, NewLogEntry
from models.logs.recorder import LOST_ENTRIES, LogRecorder
from models.logs.sqlite_store import SqliteLogStore
from models.logs.store import LogLimits, LogPageKey

async def main(folder):
    store = SqliteLogStore(folder / "logs.sqlite3", folder / "mail.db")
    recorder = LogRecorder(store)
    now = datetime.now(UTC)
    recorder.start(lambda: "DEBUG", lambda: LogLimits(timedelta(days=8), 1 << 30, now))
    def record(text):
        recorder.enqueue_or_drop_entry(NewLogEntry(now, LogComponent.MTA, LogLevel.INFO, "p", text))
    record("before")
    await recorder.flush_within_timeout()
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for number in range(3000):
        record(f"full {number} " + "x" * 500)
    await recorder.flush_within_timeout()
    lost = LOST_ENTRIES.value("store failed")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    record("after")
    await recorder.flush_within_timeout()
    rows = await store.read_rows(LogConditions(), LogPageKey(5))
    await recorder.stop()
    print(json.dumps({"lost": lost, "messages": [row.message[:6] for row in rows]}))

asyncio.run(main(Path(sys.argv[1])))
"""


def test_full_disk_loses_entries_and_the_store_recovers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK_PROGRAM, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["lost"] >= 1000
    assert result["messages"][0] == "after"
    assert result["messages"][-1] == "before"
    assert "Log entries are lost" in done.stderr


async def test_unsafe_text_is_stored_as_visible_escapes(
    log_environment: Environment, root: GraphQLClient
) -> None:
    for number, case in enumerate(each_case(UNSAFE_TEXTS)):
        with case as text:
            entry = new_entry(
                log_environment,
                f"unsafe{number} {text}",
                program=f"p{text}",
                queue_id=f"q{text}",
                message_id=f"<{text}>",
                correlation_id=text,
                fields={f"name{text}": [text, {"inner": text}], "number": 1 << 70, "bytes": b"\xff",
                        "float": float("nan")},
            )  # fmt: skip
            log_environment.logs.enqueue_or_drop_entry(entry)
            (node,) = await list_logs(root, filter={"query": f"unsafe{number}"})
            stored = json.dumps(node, ensure_ascii=False)
            assert stored.isprintable()
            assert "\x1b" not in stored
            assert text not in stored
            assert node["fields"]["number"] == hex(1 << 70)


def test_entries_have_bounded_size() -> None:
    nested: Any = "x" * 100_000
    for _ in range(50):
        nested = [nested, nested]
    fields = {f"field{number}": nested for number in range(1000)}
    entry = storable_entry(
        NewLogEntry(START, LogComponent.MTA, LogLevel.INFO, "p" * 9999, "m" * 99_999, fields)
    )
    assert len(entry.row.fields) <= MAX_FIELDS_SIZE
    assert sum(map(len, entry.tokens)) < 20_000
    assert len("".join(map(str, entry.row))) < 20_000


def test_entry_above_its_size_keeps_short_fields_and_parts_of_lists() -> None:
    fields: dict[str, Any] = {
        "type": "verdict", "score": 7.5, "subject": "é" * 400, "sender": "ada@example.org",
        "symbols": [["SYMBOL", 1.5, "x" * 400]] * 100, "recipients": ["bob@example.org"] * 100,
    }  # fmt: skip
    entry = NewLogEntry(START, LogComponent.SPAM, LogLevel.INFO, "p", "m", fields)
    row = storable_entry(entry).row
    stored = json.loads(row.fields)
    assert len(row.fields.encode()) <= MAX_FIELDS_SIZE
    symbols = stored.pop("symbols")
    assert symbols == fields["symbols"][: len(symbols)]
    assert len(symbols) > 10
    assert stored == {name: value for name, value in fields.items() if name != "symbols"}


async def test_handler_records_without_a_lock(log_environment: Environment) -> None:
    handler = LogStoreHandler(log_environment)
    record = logging.makeLogRecord({"name": "mail.x", "msg": "unlocked", "levelno": logging.INFO})
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(logging.Handler, "handle")  # which needs `lock` since Python 3.13
        assert handler.handle(record)
    await log_environment.logs.flush_within_timeout()
    store = log_environment.logs.store
    assert store is not None
    assert len(await store.read_rows(LogConditions(words=("unlocked",)), LogPageKey(9))) == 1


def test_levels_of_components() -> None:
    levels = parse_levels("INFO API=WARNING SPAM=OFF")
    assert levels[LogComponent.MTA] == LogLevel.INFO.rank
    assert levels[LogComponent.API] == LogLevel.WARNING.rank
    assert levels[LogComponent.SPAM] > LogLevel.ERROR.rank
    for text in ("", "LOUD", "INFO MTA", "INFO NOPE=INFO", "INFO MTA=", "info"):
        with pytest.raises(ValueError, match=r"level|component"):
            parse_levels(text)


@pytest.mark.usefixtures("log_environment")
async def test_levels_are_effective_at_once(root: GraphQLClient) -> None:
    logger = logging.getLogger("mail.smtp.session")
    for value, message in (("OFF", "hidden"), ("DEBUG", "shown")):
        payload = await root(SETTING_SET, key="logs.levels", value=value)
        assert payload["settingSet"]["errors"] == []
        logger.debug(message)
    assert await log_messages(root, components=["MTA"]) == ["shown"]
    payload = await root(SETTING_SET, key="logs.levels", value="INFO NOPE=INFO")
    (error,) = payload["settingSet"]["errors"]
    assert "NOPE is no component" in error["message"]


async def test_recorder_without_a_store_drops_entries(environment: Environment) -> None:
    recorder = LogRecorder()
    assert not recorder.is_recorded(LogComponent.MTA, LogLevel.ERROR)
    recorder.enqueue_or_drop_entry(new_entry(environment, "dropped"))
    await recorder.flush_within_timeout()
    await recorder.stop()


def test_every_logger_of_the_project_has_a_component() -> None:
    unmapped = {
        path.with_suffix("").as_posix().replace("/", ".")
        for folder in ("graph", "mail", "merganser", "models", "resolvers")
        for path in Path(folder).rglob("*.py")
        if "logging.getLogger(__name__)" in path.read_text()
        and component_of_logger(path.with_suffix("").as_posix().replace("/", ".")) is None
    }
    # probes have their own entries, and the log store can't report its own failure
    assert unmapped == {
        "graph.http.health", "models.logs.postgres_store", "models.logs.recorder"
    }  # fmt: skip
    assert component_of_logger("mail.log") is None
    assert component_of_logger("asyncio") is None


async def test_manual_clock_decides_the_time_of_entries(
    log_environment: Environment, clock: ManualClock, root: GraphQLClient
) -> None:
    log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, "timed"))
    (node,) = await list_logs(root, filter={"query": "timed"})
    assert node["at"] == clock.time.isoformat().replace("+00:00", "Z")
