"""The fenced blocks of a page of the documentation, and programs that follow it."""

import asyncio
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.time_limits import HANG_SECONDS

FENCE = re.compile(r"^( *)```([^\n]+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
MAX_LINE_BYTES = 1 << 20  # of the output of a program
FILE_NAME = re.compile(r"`([\w./-]+\.(?:graphql|conf))`")


@dataclass(frozen=True, slots=True)
class PageBlock:
    """A fenced block of the page, and the file name that the text before it mentions last."""

    kind: str
    text: str
    file_name: str


def page_blocks(path: Path) -> list[PageBlock]:
    """Return the fenced blocks of a page in order, also those in lists."""
    page = path.read_text()
    return [
        PageBlock(
            match[2],
            textwrap.dedent(match[1] + match[3]) if match[1] else match[3],
            (FILE_NAME.findall(page[: match.start()]) or [""])[-1],
        )
        for match in FENCE.finditer(page)
    ]


def block_texts(path: Path, kind: str) -> list[str]:
    """Return the texts of the fenced blocks of one kind on a page."""
    return [block.text for block in page_blocks(path) if block.kind == kind]


def substitute(text: str, replacements: Mapping[str, str]) -> str:
    """Return a text with all replacements at once."""
    pattern = "|".join(map(re.escape, replacements))
    return re.sub(pattern, lambda match: replacements[match[0]], text)


async def run_shell(
    block: str,
    folder: Path,
    env: Mapping[str, str],
    report_line: Callable[[str], None] | None = None,
    command_prefix: tuple[str, ...] = (),
) -> str:
    """Run commands in a folder with bash, which must all succeed. Returns their output.

    `command_prefix` is a command that runs bash, such as `ip netns exec NAME`.
    """
    command = (*command_prefix, "bash", "-euo", "pipefail", "-c", block)
    return await run_program(*command, folder=folder, env=env, report_line=report_line)


async def run_program(
    *command: str,
    folder: Path,
    env: Mapping[str, str],
    report_line: Callable[[str], None] | None = None,
) -> str:
    """Run a program in a folder, which must succeed. Returns its output and error output.

    `report_line` is called with each line as soon as the program has written it.
    """
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=dict(env), limit=MAX_LINE_BYTES,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout
    output = ""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            async for line in process.stdout:
                output += line.decode()
                if report_line:
                    report_line(line.decode())
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{command}\n{output}"
    return output
