"""Jobs run on the event loop while they are short, else in a thread."""

import itertools
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from mail import sieve
from mail.filters.script_cache import compile_script_cached
from mail.mime import parse_structure
from mail.runtime import inline_or_thread
from mail.sieve import ParsedSieveMessage, SieveEnvelope, SieveEnvironment
from tests.support.servers.loop_step_timer import MAX_STEP_SECONDS, measure_steps

SLOW_PATTERN = "(a|b|ab|[a-c]+|.?)*x$"
SLOW_SCRIPT = 'require ["regex"]; ' + " ".join(
    f'if header :regex "subject" "{SLOW_PATTERN}{nth}" {{ discard; }}' for nth in range(20)
)


def thread_id() -> int:
    return threading.get_ident()


async def run_job(job: Callable[[], int], user_id: int) -> int:
    """Run a job for the script of a user and return its result."""
    key = ("script", user_id)
    return (await inline_or_thread.run_inline_or_in_thread({key: job}, in_memory=True))[key]


async def test_slow_job_runs_in_thread() -> None:
    loop_thread = thread_id()
    user_ids = itertools.count(4711)

    def run_slowly() -> int:
        deadline = time.thread_time() + 0.2
        while time.thread_time() < deadline:
            inline_or_thread.require_inline_time_left()
        return thread_id()

    async def run_short_and_slow_jobs() -> None:
        user_id = next(user_ids)
        assert await run_job(thread_id, user_id) != loop_thread, "unknown at first"
        assert await run_job(thread_id, user_id) == loop_thread
        assert await run_job(run_slowly, user_id) != loop_thread
        assert await run_job(thread_id, user_id) != loop_thread, "it was slow"

    _, steps = await measure_steps(run_short_and_slow_jobs)
    assert steps.longest_seconds <= MAX_STEP_SECONDS, str(steps)


async def test_slow_sieve_regex_runs_in_thread() -> None:
    raw = b"Subject: " + b"ab" * 2_000 + b"\r\n\r\nHello\r\n"
    message = ParsedSieveMessage(raw, parse_structure(raw))
    program = compile_script_cached(SLOW_SCRIPT)

    def run_script() -> int:
        envelope = SieveEnvelope("carol@example.com", "ada@example.org")
        with pytest.raises(sieve.SieveRunError, match="takes too long"):
            sieve.run_script(program, message, envelope, sieve_environment)
        return thread_id()

    async def run_short_scripts_and_slow_script() -> int:
        for _ in range(80):  # the user had only short scripts before
            await run_job(thread_id, 1)
        return await run_job(run_script, 1)

    sieve_environment = SieveEnvironment(datetime.now(UTC))
    script_thread, steps = await measure_steps(run_short_scripts_and_slow_script)
    assert script_thread != thread_id()
    assert steps.longest_seconds <= MAX_STEP_SECONDS, str(steps)
