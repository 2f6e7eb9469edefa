"""The processes of a test run share a fork server, which ends the commands of ended processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.servers.forked_process import ROOT, RUN_ID, run_forked
from tests.support.time_limits import HANG_SECONDS

POLL_INTERVAL = 0.02  # seconds
CLIENT = """
import sys
from pathlib import Path
from tests.support.servers.forked_process import ForkedProcess, ProcessStreams

folder = Path(sys.argv[1])
streams = ProcessStreams(folder / "stdout", stdin=folder / "stdin")
print(ForkedProcess(["--version"], {}, streams).pid, flush=True)
sys.stdin.read()
"""


def parent_of_process(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


def test_command_ends_with_its_client_and_others_continue(tmp_path: Path) -> None:
    assert run_forked(["--version"], {}).returncode == 0
    os.mkfifo(tmp_path / "stdin")  # without a writer, the command waits when it opens this file
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTEST_XDIST_TESTRUNUID": RUN_ID},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with client:
        assert client.stdout
        command_pid = int(client.stdout.readline())
        server_pid = parent_of_process(command_pid)
        client.kill()
    for _ in range(int(HANG_SECONDS / POLL_INTERVAL)):
        if not Path(f"/proc/{command_pid}").exists():
            break
        time.sleep(POLL_INTERVAL)
    assert not Path(f"/proc/{command_pid}").exists()
    assert Path(f"/proc/{server_pid}").exists()
    assert run_forked(["--version"], {}).returncode == 0
