"""Programs that try to pass without passing, to last, to grow, to get out. Times are generous: the machine may be busy."""

from __future__ import annotations

import json
import os
import sys
from itertools import combinations
from pathlib import Path

import pytest

from lightune import sandbox
from lightune.errors import InputError
from lightune.sandbox import run_python
from lightune.sandbox.problems import extract_code, pass_at_k, read_problem, run_samples

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
SECONDS = 20.0
MBPP = {
    "text": "Double a number.",
    "task_id": 7,
    "test_setup_code": "import math",
    "test_list": ["assert double(2) == 4", "assert double(math.e) > 5"],
}
HUMANEVAL = {
    "task_id": "HumanEval/x",
    "prompt": 'from typing import List\n\n\ndef first(xs: List[int]) -> int:\n    """ The first one. """\n',
    "entry_point": "first",
    "test": "\n\ndef check(candidate):\n    assert candidate([3, 4]) == 3\n",
}


def run(code: str, seconds: float = SECONDS, memory_mb: int = 256) -> sandbox.Outcome:
    return run_python(code, seconds=seconds, memory_mb=memory_mb)


@pytest.fixture(scope="module")
def walls() -> tuple[str, ...]:
    return run("pass").walls


def test_a_program_that_comes_to_its_end_passes() -> None:
    outcome = run("import sys\nprint('hello')\nprint('there', file=sys.stderr)\nassert 1 + 1 == 2")
    assert outcome.passed
    assert (outcome.reason, outcome.detail, outcome.cut) == ("passed", "", 0)
    assert sorted(outcome.output.split()) == ["hello", "there"]
    assert set(outcome.walls) <= set(sandbox.WALLS)
    assert 0 < outcome.seconds < SECONDS


@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        ("assert 1 == 2, 'unequal'", "assertion", "AssertionError: unequal"),
        ("{}['x']", "error", "KeyError: 'x'"),
        ("def f(:", "syntax", "SyntaxError"),
        ("x = 'a\0b'", "syntax", "null bytes"),
        ("def f(): f()\nf()", "error", "RecursionError"),
        ("input()", "error", "EOFError"),
    ],
)
def test_a_failure_says_what_it_was(code: str, reason: str, detail: str) -> None:
    outcome = run(code)
    assert not outcome.passed
    assert outcome.reason == reason
    assert detail in outcome.detail


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "import atexit, os; atexit.register(os._exit, 0); import sys; sys.exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed\\n' * 3)\n    except OSError: pass\nos._exit(0)",
        "import os, threading\nthreading.Timer(0, os._exit, [0]).start()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.abort()",
        "import os; os.closerange(3, 64)",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_leaving_early_is_not_passing(code: str) -> None:
    outcome = run(f"{code}\nassert False, 'the tests'")
    assert not outcome.passed
    assert outcome.reason in ("exited", "error", "killed", "assertion")


@pytest.mark.parametrize(
    "code",
    ["while True: pass", "import time; time.sleep(600)", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass"],
)
def test_an_endless_program_is_stopped_in_time(code: str) -> None:
    outcome = run(code, seconds=1.5)
    assert outcome.reason == "timeout"
    assert not outcome.passed
    assert 1.5 <= outcome.seconds < 1.5 + sandbox.GRACE


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not hold RLIMIT_AS")
@pytest.mark.parametrize("code", ["x = bytearray(1 << 31)", "x = []\nwhile True: x.append(bytearray(1 << 22))", "x = 'a' * (1 << 33)"])
def test_memory_is_bounded(code: str) -> None:
    outcome = run(code)
    assert (outcome.passed, outcome.reason) == (False, "memory")


def test_a_flood_of_output_is_cut_and_counted() -> None:
    outcome = run("import os\nfor _ in range(1024): os.write(1, bytes(65) * (1 << 14))", seconds=60)  # 1.09 GB
    assert outcome.passed
    assert len(outcome.output) == sandbox.KEPT_OUTPUT
    assert outcome.cut == 1024 * 65 * (1 << 14) - sandbox.KEPT_OUTPUT


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true') and exit(1)",
        "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()",
    ],
)
def test_no_process_can_be_started(code: str) -> None:
    outcome = run(code)
    assert not outcome.passed
    assert outcome.reason in ("error", "exited")


def test_a_fork_bomb_leaves_nothing_behind() -> None:
    def count() -> int:
        return sum("walls.py" in _command(path) for path in Path("/proc").glob("[0-9]*/cmdline"))

    before = count()
    run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", seconds=1.5)
    run("import os\nos.setsid()\nwhile True: pass", seconds=1.5)
    assert count() <= before


def _command(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', PORT), 5)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT', timeout=5)",
    ],
)
def test_there_is_no_network(code: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # somebody listens, so that only the wall can be the reason
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        outcome = run(code.replace("PORT", str(port)))
    assert (outcome.passed, outcome.reason) == (False, "error")


def test_files_are_written_in_the_own_folder_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    target = tmp_path / "out.txt"
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    kept.chmod(0o666)
    for code in (
        f"open({str(target)!r}, 'w')",
        f"open({str(kept)!r}, 'w')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.mkdir({str(target)!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.chmod({str(kept)!r}, 0)",
        f"import os; os.symlink({str(kept)!r}, 'link'); open('link', 'a')",
    ):
        outcome = run(code)
        assert (outcome.passed, outcome.reason) == (False, "error"), code
    past_the_hook = f"import ctypes, os; assert ctypes.CDLL(None).open({os.fsencode(target)!r}, os.O_CREAT | os.O_WRONLY, 0o666) == -1"
    if "files" in run("pass").walls:
        assert run(past_the_hook).passed
    assert not target.exists()
    assert kept.read_text() == "kept"
    assert run(
        "open('a.txt', 'w').write('x'); assert open('a.txt').read() == 'x'; import os; os.mkdir('b'); os.rename('a.txt', 'b/c')"
    ).passed


def test_files_have_a_largest_size() -> None:
    outcome = run("f = open('big', 'wb')\nfor _ in range(200): f.write(bytes(1 << 20))\nf.flush()")
    assert not outcome.passed
    assert outcome.reason in ("error", "killed")
    many = "for n in range(100):\n    with open(f'f{n}', 'wb') as file: file.write(bytes(1 << 20))"
    if "folder" in outcome.walls:
        assert run(many).detail.startswith("OSError: [Errno 28]")  # no space left
    assert not run("kept = [open('a', 'w') for _ in range(500)]").passed


def test_what_is_not_python_or_the_system_cannot_be_read(walls: tuple[str, ...]) -> None:
    if "files" not in walls:
        pytest.skip("the kernel has no Landlock")
    for path in ("/etc/passwd", __file__, str(Path.home()), "/proc/self/environ"):
        outcome = run(f"import os; os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read()")
        assert outcome.detail.startswith("PermissionError"), path
    assert run("import json, decimal, sqlite3, zoneinfo, unicodedata; open('/dev/null', 'w').write('x')").passed


def test_other_processes_are_out_of_reach(walls: tuple[str, ...]) -> None:
    if "signals" not in walls:
        pytest.skip("the kernel permits no namespace")
    victim = os.getpid()
    assert run(f"import os; os.kill({victim}, 0)").detail.startswith("ProcessLookupError")
    run("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    assert run("import os; assert os.getppid() == 0").passed


def test_it_sees_nothing_of_the_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_MINE", "hush")
    assert run("import os, sys; assert 'TOKEN_OF_MINE' not in os.environ; assert not any('site-packages' in p for p in sys.path)").passed
    assert run("try:\n    import lightune\nexcept ImportError: pass\nelse: raise SystemExit").passed


def test_it_cannot_raise_its_own_limits() -> None:
    code = "import resource as r\ntry: r.setrlimit(r.RLIMIT_NPROC, (100, 100))\nexcept ValueError: pass\nelse: raise SystemExit"
    assert run(code).passed
    assert run(
        "import os\ntry: os.setuid(0)\nexcept PermissionError: pass\nelse: assert os.getuid() == USER".replace("USER", str(os.getuid()))
    ).passed


def test_the_hook_holds_where_the_kernel_does_not(tmp_path: Path) -> None:
    """The interpreter's own wall, in a process that has no other."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(sandbox.__file__).parent)!r})
import walls, os, socket, subprocess
sys.addaudithook(walls._refuse({str(tmp_path)!r}, walls.BANNED))
def refused(work):
    try: work()
    except PermissionError: return True
open({str(tmp_path / "in.txt")!r}, 'w').close()
os.rename({str(tmp_path / "in.txt")!r}, {str(tmp_path / "moved.txt")!r})
assert refused(lambda: socket.socket())
assert refused(lambda: os.kill(os.getppid(), 0))
assert refused(lambda: os.fork())
assert refused(lambda: os.system('true'))
assert refused(lambda: subprocess.run(['true']))
assert refused(lambda: open({str(tmp_path.parent / "out.txt")!r}, 'w'))
assert refused(lambda: os.rename({str(tmp_path / "moved.txt")!r}, {str(tmp_path.parent / "moved.txt")!r}))
"""
    import subprocess

    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_bounds_are_checked() -> None:
    with pytest.raises(InputError, match="memory_mb=8"):
        run_python("pass", memory_mb=8)


def test_code_is_taken_from_its_fence() -> None:
    assert extract_code("x = 1\n") == "x = 1\n"
    assert extract_code("Sure:\n```python\nx = 1\n```\nand\n```\ny\n```") == "x = 1\n"
    assert extract_code("```\na\n```\n```py\nb\n```") == "b\n"
    assert extract_code("```python\nx = 1\n") == "x = 1\n"  # cut off
    assert extract_code("text\n    return 1") == "text\n    return 1"


def test_mbpp_and_humaneval_rows_become_programs() -> None:
    mbpp, humaneval = read_problem(MBPP), read_problem(HUMANEVAL)
    assert "assert double(2) == 4" in mbpp.prompt
    right, wrong = "```python\ndef double(x):\n    return 2 * x\n```", "def double(x): return x"
    assert [outcome.passed for outcome in run_samples(mbpp, [right, wrong, right], seconds=SECONDS)] == [True, False, True]
    whole = "```python\ndef first(xs: List[int]) -> int:\n    return xs[0]\n```"
    assert [outcome.passed for outcome in run_samples(humaneval, ["    return xs[0]", "    return xs[-1]", whole], seconds=SECONDS)] == [
        True,
        False,
        True,
    ]
    with pytest.raises(InputError, match="expected text and test_list"):
        read_problem({"question": ""})


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 5), (4, 0, 2), (4, 4, 1), (5, 3, 3)])
def test_pass_at_k_is_the_share_of_all_choices_with_one_that_passes(samples: int, passed: int, k: int) -> None:
    choices = list(combinations([True] * passed + [False] * (samples - passed), k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(any(choice) for choice in choices) / len(choices))


def test_pass_at_k_needs_enough_samples() -> None:
    assert 0 < pass_at_k(10_000, 1, 100) < 0.011  # no overflow
    with pytest.raises(InputError, match="pass@3 of 2"):
        pass_at_k(2, 1, 3)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("name", "parts"), [("humaneval", ("test",)), ("mbpp", ("test", "train", "validation", "prompt"))])
def test_the_known_solutions_pass(shared_data: Path, name: str, parts: tuple[str, ...]) -> None:
    texts = [(shared_data / name / f"{part}.jsonl").read_text(encoding="utf-8") for part in parts]
    rows = [json.loads(line) for text in texts for line in text.split("\n") if line]
    failed = {}
    for row in rows:
        solution = row.get("canonical_solution") or row["code"]
        outcome = run_samples(read_problem(row), [solution], seconds=60)[0]
        if not outcome.passed:
            failed[row["task_id"]] = outcome.detail
    assert failed == {}
