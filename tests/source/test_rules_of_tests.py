"""Tests wait for events, not for a time."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLEEP_MODULES = ("asyncio", "time")
DELAYED_PEER = "it delays a peer, a load or a write of the test"
TESTED_TIME = "the time is tested: a lease, a lock, a pause or a state lasts shorter or longer"
OTHER_PROCESS = "a process of its own does not show when it has reached this state"
LIBRARY_PAUSE = "it shortens the pause in the loop of a library"
TO_REPLACE = "it guesses: replace it by an event"  # no new ones
SLEEPS_OUTSIDE_LOOPS = {
    "auth/passwords/test_breached_passwords.py RangeServiceHandler.do_GET": DELAYED_PEER,
    "cache/test_cache_maintenance.py test_flush_waits_for_writes_only.write": DELAYED_PEER,
    "connectors/test_connector_oauth_refusals.py answer_nothing": DELAYED_PEER,
    "e2e/delivery/test_crash_during_push.py"
    " test_push_of_killed_server_is_sent_again_after_restart.respond": DELAYED_PEER,
    "e2e/delivery/test_crash_during_webhook.py"
    " test_webhook_of_killed_server_is_sent_again_after_restart.respond": DELAYED_PEER,
    "e2e/hostile_clients/test_request_fuzzing.py send_request.receive_message": DELAYED_PEER,
    "e2e/operation/test_sign_in_under_load.py"
    " test_sign_in_flood_is_refused_and_other_requests_are_served.sign_in": DELAYED_PEER,
    "execution/test_loader_errors.py Part.broken": DELAYED_PEER,
    "execution/test_loader_errors.py load_doubled": DELAYED_PEER,
    "files/test_uploads.py test_stalled_body_times_out.stalled_body": DELAYED_PEER,
    "health/test_service_probes.py"
    " test_old_state_of_a_slow_service_is_not_shown.answer_slowly": DELAYED_PEER,
    "cli/test_cli_connectors.py test_run_of_killed_process_is_taken_over": TESTED_TIME,
    "e2e/delivery/test_duplicate_delivery.py"
    " test_reply_that_waits_for_database_causes_no_second_copy": TESTED_TIME,
    "e2e/delivery/test_duplicate_delivery.py"
    " test_server_killed_before_storing_reply_stores_it_at_its_next_start": TESTED_TIME,
    "e2e/hostile_clients/test_half_open_connections.py end_credentials.wait": TESTED_TIME,
    "health/test_service_probes.py test_old_state_of_a_slow_service_is_not_shown": TESTED_TIME,
    "health/test_service_probes.py test_probes_end_when_nobody_asks": TESTED_TIME,
    "mail/network/test_gated_server.py test_refusal_holds_only_a_moment": TESTED_TIME,
    "mail/network/test_gated_server.py test_too_many_open_files_pause_the_server": TESTED_TIME,
    "store/test_process_leases.py test_clock_step_does_not_end_a_lease": TESTED_TIME,
    "store/test_process_leases.py test_pause_of_the_observer_marks_no_process_dead": TESTED_TIME,
    "store/test_process_leases.py test_resume_from_suspend_marks_no_process_dead": TESTED_TIME,
    "store/test_stale_row_locks.py test_readiness_requires_a_writable_database": TESTED_TIME,
    "cluster/test_two_servers_on_one_host.py"
    " test_state_set_at_one_server_is_enforced_at_the_other": OTHER_PROCESS,
    "e2e/hostile_clients/test_half_open_connections.py"
    " test_aborted_transfers_leave_no_files_or_messages": OTHER_PROCESS,
    "e2e/operation/test_bans_of_processes.py"
    " test_all_processes_refuse_after_failures_and_after_restart": OTHER_PROCESS,
    "e2e/operation/test_sign_in_under_load.py busy_machine": OTHER_PROCESS,
    "e2e/recovery/test_postgres_restore.py"
    " test_failover_under_running_server_is_detected_if_commits_are_lost": OTHER_PROCESS,
    "support/clients/browser_driver.py GraphiQLPage.start_subscription": OTHER_PROCESS,
    "support/servers/acme/acme_platforms.py _short_pauses": LIBRARY_PAUSE,
    "mail/delivery/test_success_dsn_after_crash.py"
    " test_owed_report_is_sent_once_by_a_later_search": TO_REPLACE,
    "mail/delivery/test_success_dsn_after_crash.py"
    " test_running_worker_sends_an_owed_report": TO_REPLACE,
    "mail/queue/test_queue_leases.py test_stop_waits_for_reply_after_dot": TO_REPLACE,
    "mail/storage/blobs/test_blob_garbage_collection.py"
    " test_blob_referenced_during_collection_is_kept": TO_REPLACE,
    "oauth/test_smtp_token_sign_in.py test_message_in_data_ends_before_its_session": TO_REPLACE,
    "oauth/test_smtp_token_sign_in.py test_session_stays_open_when_another_token_ends": TO_REPLACE,
    "store/test_stale_row_locks.py test_locked_account_delays_no_other_account": TO_REPLACE,
    "store/test_stale_row_locks.py"
    " test_many_locked_accounts_leave_connections_for_others": TO_REPLACE,
    "store/test_store_outage.py test_announced_shutdown_of_a_connection_is_unavailable": TO_REPLACE,
    "store/test_tables_and_codecs.py"
    " test_transaction_cancelled_in_a_statement_blocks_no_other": TO_REPLACE,
}


def is_sleep(node: ast.AST) -> bool:
    """True for a call of `asyncio.sleep` or `time.sleep`, unless it is `sleep(0)`."""
    if not isinstance(node, ast.Call) or not node.args:
        return False
    function, seconds = node.func, node.args[0]
    is_named_sleep = (isinstance(function, ast.Name) and function.id == "sleep") or (
        isinstance(function, ast.Attribute)
        and function.attr == "sleep"
        and ast.unparse(function.value) in SLEEP_MODULES
    )
    return is_named_sleep and not (isinstance(seconds, ast.Constant) and seconds.value == 0)


def functions_that_sleep_outside_loops(node: ast.AST, name: str = "") -> Iterator[str]:
    """Yield the qualified names of functions that sleep, except in a loop that looks again."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            child_name = f"{name}.{child.name}".lstrip(".")
            yield from functions_that_sleep_outside_loops(child, child_name)
        elif isinstance(child, ast.For | ast.AsyncFor | ast.While):
            yield from nested_functions_that_sleep(child, name)
        else:
            if is_sleep(child):
                yield name
            yield from functions_that_sleep_outside_loops(child, name)


def nested_functions_that_sleep(loop: ast.AST, name: str) -> Iterator[str]:
    """Yield those of the functions that a loop defines."""
    for child in ast.iter_child_nodes(loop):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            wrapper = ast.Module([child], [])
            yield from functions_that_sleep_outside_loops(wrapper, name)
        else:
            yield from nested_functions_that_sleep(child, name)


def test_no_test_sleeps_instead_of_waiting_for_an_event() -> None:
    sleeping = {
        f"{path.relative_to(ROOT / 'tests').as_posix()} {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in functions_that_sleep_outside_loops(ast.parse(path.read_text()))
    }
    unexpected = sorted(sleeping - SLEEPS_OUTSIDE_LOOPS.keys())
    assert not unexpected, "wait for an event, or write a marker and assert that it comes next"
    assert not sorted(SLEEPS_OUTSIDE_LOOPS.keys() - sleeping), "delete these exceptions"


def test_every_form_of_sleep_outside_a_loop_is_detected() -> None:
    source = """
async def waits(): await asyncio.sleep(0.1)
async def waits_by_constant(): await asyncio.sleep(2 * SECONDS)
def blocks():
    with closing(x):
        time.sleep(1)
def blocks_by_name(): sleep(1)
class Peer:
    async def answer(self): await asyncio.sleep(1)
async def polls():
    while not is_done():
        await asyncio.sleep(0.01)
async def yields(): await asyncio.sleep(0)
def outer():
    for item in items:
        def inner(): time.sleep(1)
        with closing(item):
            time.sleep(0.01)
"""
    assert list(functions_that_sleep_outside_loops(ast.parse(source))) == [
        "waits",
        "waits_by_constant",
        "blocks",
        "blocks_by_name",
        "Peer.answer",
        "outer.inner",
    ]
