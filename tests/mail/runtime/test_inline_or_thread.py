"""Jobs that are done on the event loop as long as they are short."""

import asyncio
import threading
import time
from datetime import UTC, datetime

import pytest

from mail import sieve
from mail.filters.script_cache import cached_program
from mail.mime import parse_structure
from mail.runtime import inline_or_thread
from mail.sieve import ParsedSieveMessage, SieveEnvelope, SieveEnvironment
from tests.support.servers.loop_step_timer import measure_steps

KEY = ("script", 4711)
SLOW = "(a|b|ab|[a-c]+|.?)*x$"
SCRIPT = 'require ["regex"]; ' + " ".join(
    f'if header :regex "subject" "{SLOW}{nth}" {{ discard; }}' for nth in range(20)
)


def here() -> int:
    return threading.get_ident()


async def test_a_job_that_takes_too_long_goes_on_in_a_thread() -> None:
    loop_thread = here()
    assert (await inline_or_thread.run_inline_or_in_thread({KEY: here}, in_memory=True))[
        KEY
    ] != loop_thread, "unknown at first"
    assert (await inline_or_thread.run_inline_or_in_thread({KEY: here}, in_memory=True))[
        KEY
    ] == loop_thread

    def slow() -> int:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            inline_or_thread.check_time_limit()
        return here()

    found, steps = await measure_steps(
        inline_or_thread.run_inline_or_in_thread({KEY: slow}, in_memory=True)
    )
    assert found[KEY] != loop_thread
    assert steps.most < 0.05, str(steps)
    assert (await inline_or_thread.run_inline_or_in_thread({KEY: here}, in_memory=True))[
        KEY
    ] != loop_thread, "it was slow"


async def test_slow_expressions_of_a_script_leave_the_event_loop() -> None:
    raw = b"Subject: " + b"ab" * 2_000 + b"\r\n\r\nHello\r\n"
    letter = ParsedSieveMessage(raw, parse_structure(raw))
    program = cached_program(SCRIPT)

    def run() -> int:
        envelope = SieveEnvelope("carol@example.com", "ada@example.org")
        with pytest.raises(sieve.SieveRunError, match="takes too long"):
            sieve.run_script(program, letter, envelope, around)
        return here()

    around = SieveEnvironment(datetime.now(UTC))
    for _ in range(80):  # its account has had short scripts for a while
        await inline_or_thread.run_inline_or_in_thread({("script", 1): here}, in_memory=True)
    begun = time.thread_time()
    await asyncio.to_thread(run)
    found, steps = await measure_steps(
        inline_or_thread.run_inline_or_in_thread({("script", 1): run}, in_memory=True)
    )
    assert found["script", 1] != here()
    assert steps.most < 0.05, str(steps)
    assert time.thread_time() - begun < 1
