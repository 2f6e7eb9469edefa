"""Jobs run on the event loop while they are short, else in a thread."""

import asyncio
import threading
import time
from datetime import UTC, datetime

import pytest

from mail import sieve
from mail.filters.script_cache import compile_script_cached
from mail.mime import parse_structure
from mail.runtime import inline_or_thread
from mail.sieve import ParsedSieveMessage, SieveEnvelope, SieveEnvironment
from tests.support.servers.loop_step_timer import measure_steps

JOB_KEY = ("script", 4711)
SLOW_PATTERN = "(a|b|ab|[a-c]+|.?)*x$"
SLOW_SCRIPT = 'require ["regex"]; ' + " ".join(
    f'if header :regex "subject" "{SLOW_PATTERN}{nth}" {{ discard; }}' for nth in range(20)
)


def thread_id() -> int:
    return threading.get_ident()


async def test_slow_job_runs_in_thread() -> None:
    loop_thread = thread_id()
    assert (await inline_or_thread.run_inline_or_in_thread({JOB_KEY: thread_id}, in_memory=True))[
        JOB_KEY
    ] != loop_thread, "unknown at first"
    assert (await inline_or_thread.run_inline_or_in_thread({JOB_KEY: thread_id}, in_memory=True))[
        JOB_KEY
    ] == loop_thread

    def run_slowly() -> int:
        deadline = time.thread_time() + 0.2
        while time.thread_time() < deadline:
            inline_or_thread.check_time_limit()
        return thread_id()

    results, steps = await measure_steps(
        inline_or_thread.run_inline_or_in_thread({JOB_KEY: run_slowly}, in_memory=True)
    )
    assert results[JOB_KEY] != loop_thread
    assert steps.most < 0.05, str(steps)
    assert (await inline_or_thread.run_inline_or_in_thread({JOB_KEY: thread_id}, in_memory=True))[
        JOB_KEY
    ] != loop_thread, "it was slow"


async def test_slow_sieve_regex_runs_in_thread() -> None:
    raw = b"Subject: " + b"ab" * 2_000 + b"\r\n\r\nHello\r\n"
    message = ParsedSieveMessage(raw, parse_structure(raw))
    program = compile_script_cached(SLOW_SCRIPT)

    def run_script() -> int:
        envelope = SieveEnvelope("carol@example.com", "ada@example.org")
        with pytest.raises(sieve.SieveRunError, match="takes too long"):
            sieve.run_script(program, message, envelope, sieve_environment)
        return thread_id()

    sieve_environment = SieveEnvironment(datetime.now(UTC))
    for _ in range(80):  # the user had only short scripts before
        await inline_or_thread.run_inline_or_in_thread({("script", 1): thread_id}, in_memory=True)
    started_at = time.thread_time()
    await asyncio.to_thread(run_script)
    results, steps = await measure_steps(
        inline_or_thread.run_inline_or_in_thread({("script", 1): run_script}, in_memory=True)
    )
    assert results["script", 1] != thread_id()
    assert steps.most < 0.05, str(steps)
    assert time.thread_time() - started_at < 1
