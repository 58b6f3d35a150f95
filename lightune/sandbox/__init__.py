"""Generated Python, run in a process of its own with limits on time, memory, files, processes and network.

What holds where is said in `Outcome.walls`, see `sandbox.walls`. Reading is limited to Python and the system's libraries where the kernel
has Landlock. A program can start no process and no thread. It passes when it comes to its end: leaving early, by `sys.exit(0)` or
`os._exit(0)`, is not passing, since the secret that says so is passed on after the last line alone. A program that searches its own
interpreter for that secret, or redefines what its tests compare, can still fool its tests, as anywhere where both share a process.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightune.errors import InputError

WALLS = ("network", "files", "folder", "processes", "signals")
KEPT_OUTPUT = 20_000  # bytes
KEPT_REPORT = 20_000
FOLDER_BYTES = 64 << 20
OPEN_FILES = 64
GRACE = 5.0  # seconds to end after being told to


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    reason: passed, assertion, error, syntax, memory, timeout, exited (before its end) or killed (by a signal). detail: the exception or signal.
    output: what it printed, errors included, the first KEPT_OUTPUT bytes; cut: how many bytes more there were. seconds: wall-clock.
    walls: those of WALLS that the kernel held; against the rest stood a hook of the interpreter.
    """

    passed: bool
    reason: str
    detail: str
    output: str
    cut: int
    seconds: float
    walls: tuple[str, ...]


def run_python(code: str, *, seconds: float = 10.0, memory_mb: int = 512) -> Outcome:
    """Run a program with its tests; it passes if its last line is reached.

    Args:
        seconds: most wall-clock time; of processor time one second more at most.
        memory_mb: most address space, Python's own included (about 30 MB).

    Raises:
        InputError: there are no resource limits on this system (Windows), or a limit is too small.
    """
    if os.name != "posix":
        raise InputError(f"Generated Python is run with the limits of Linux or macOS, this is {sys.platform}. Use one of them or WSL.")
    if seconds <= 0 or memory_mb < 64:
        raise InputError(f"Got seconds={seconds} and memory_mb={memory_mb}, expected more than 0 and at least 64.")
    secret = secrets.token_hex(16)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lightune-") as folder:
        Path(folder, "program.py").write_text(code, encoding="utf-8", errors="surrogatepass")
        process, report = _start(folder, secret, seconds, memory_mb)
        output, reported, late = _watch(process, report, start + seconds)
    taken = time.monotonic() - start
    facts, lines = _read_report(reported)
    passed = secret in lines and not late
    reason, detail = ("passed", "") if passed else ("timeout", f"more than {seconds:g} s") if late else _explain(facts)
    walls = tuple(name for name in WALLS if name in facts.get("walls", ()))
    return Outcome(passed, reason, detail, output.data.decode(errors="replace"), output.cut, round(taken, 4), walls)


def _start(folder: str, secret: str, seconds: float, memory_mb: int) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the file descriptor that its report comes from."""
    secret_out, secret_in = os.pipe()
    report_out, report_in = os.pipe()
    os.write(secret_in, secret.encode())
    os.close(secret_in)
    readable = {sys.base_prefix, sys.base_exec_prefix, "/usr", "/lib", "/lib64", "/bin"}
    settings = {"folder": folder, "report": report_in, "secret": secret_out, "readable": sorted(readable), "seconds": seconds}
    settings |= {"memory": memory_mb << 20, "disk": FOLDER_BYTES, "files": OPEN_FILES}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("walls.py")), json.dumps(settings)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={"PYTHONIOENCODING": "utf-8", "LC_ALL": "C.UTF-8"},
        pass_fds=(secret_out, report_in),
        start_new_session=True,
    )
    os.close(secret_out)
    os.close(report_in)
    return process, report_out


class _Kept:
    """The first bytes of a stream, and how many more came."""

    def __init__(self, most: int) -> None:
        self.most, self.data, self.cut = most, b"", 0

    def add(self, data: bytes) -> None:
        room = self.most - len(self.data)
        self.data += data[:room]
        self.cut += len(data) - len(data[:room])


def _watch(process: subprocess.Popen[bytes], report: int, deadline: float) -> tuple[_Kept, _Kept, bool]:
    """Read until both streams end or time is up, then see that nothing of the process is left."""
    assert process.stdout is not None
    kept = {process.stdout.fileno(): _Kept(KEPT_OUTPUT), report: _Kept(KEPT_REPORT)}
    late = False
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and not late:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                if data := os.read(key.fd, 1 << 16):
                    kept[key.fd].add(data)
                else:
                    selector.unregister(key.fd)
            late = time.monotonic() >= deadline and bool(selector.get_map())
    _end(process)
    output = kept[process.stdout.fileno()]
    process.stdout.close()
    os.close(report)
    return output, kept[report], late


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # walls.py passes it on as a kill
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_report(report: _Kept) -> tuple[dict[str, Any], list[str]]:
    """What the process said of itself, and the report's lines; what the program itself may have written there is passed over."""
    lines = report.data.decode(errors="replace").splitlines()
    facts: dict[str, Any] = {}
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        facts = found | facts if isinstance(found, dict) else facts  # the first word counts
    return facts, lines


def _explain(facts: dict[str, Any]) -> tuple[str, str]:
    """The reason and its detail of a program that neither passed nor ran out of time."""
    if number := facts.get("signal"):
        return "killed", signal.Signals(number).name
    name = str(facts.get("error", ""))
    reasons = {"": "exited", "SystemExit": "exited", "AssertionError": "assertion", "MemoryError": "memory"}
    reasons |= dict.fromkeys(("SyntaxError", "IndentationError", "TabError"), "syntax")
    return reasons.get(name, "error"), str(facts.get("detail", "")) or "left before its last line"
