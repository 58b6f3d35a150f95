"""Run as a script inside the sandbox's process: raise the walls, then run a program and say whether it came to its end.

``python -I -S walls.py SETTINGS``, JSON with the keys of `main`. Standard library alone; nothing of the package is imported.
Walls are the kernel's where it permits them: new namespaces for the network, other processes and a folder in memory of bounded size;
Landlock for files; resource limits. Where it does not, an audit hook of the interpreter refuses sockets, processes, signals and writing
elsewhere, which stops a careless program but not a determined one. The first line of the report says which it was.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000  # sched.h
NAMESPACES = NEW_MOUNTS | NEW_IPC | NEW_PROCESSES | NEW_NETWORK
REST, PRIVATE, NO_SETUID_OR_DEVICES = 0x4000, 0x40000, 0x2 | 0x4  # mount.h
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same numbers on every architecture
EXECUTE, WRITE, READ, LIST = 1, 2, 4, 8
RIGHTS = {1: 13, 2: 14}  # how many rights on files the first versions of Landlock know: renaming across folders and truncating came later
NO_NEW_PRIVILEGES, KEEP_CAPABILITIES, DIE_WITH_PARENT = 38, 8, 1  # prctl.h
READ_ANY_FILE = 1 << 2  # CAP_DAC_READ_SEARCH
NOBODY = 65534
BANNED = (
    "socket.",
    "subprocess.",
    "os.fork",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.system",
    "os.kill",
    "ctypes.",
    "pty.",
    "signal.",
)
CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

libc: Any = None


def main(settings: dict[str, Any]) -> int:
    """settings: report and secret (file descriptors), folder, readable (folders), seconds, memory and disk (bytes), files (count)."""
    global libc
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    with open(os.path.join(settings["folder"], "program.py"), encoding="utf-8") as file:
        code = file.read()
    apart = _unshare()
    worker = os.fork()  # the first process of the new namespace: with it die all others in it
    if worker:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(worker, signal.SIGKILL))
        status = os.waitpid(worker, 0)[1]
        if os.WIFSIGNALED(status):
            os.write(settings["report"], json.dumps({"signal": os.WTERMSIG(status)}).encode() + b"\n")
        return os.waitstatus_to_exitcode(status) & 0xFF
    _raise_walls(settings, apart)
    return _run(code, settings)


def _unshare() -> bool:
    """Leave the machine's network, processes and mounts; in a new user namespace where only that may."""
    if libc is None:
        return False
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(NAMESPACES | (NEW_USER if user else 0)):
        return False
    if user:  # the same ids inside, without which no file can be made
        for name, entry in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(entry)
    return True


def _raise_walls(settings: dict[str, Any], apart: bool) -> None:
    import resource

    folder, report = settings["folder"], settings["report"]
    in_memory = apart and _mount(folder, settings["disk"])
    if not in_memory and not os.geteuid():
        os.chown(folder, NOBODY, NOBODY)
    os.chdir(folder)
    sealed = _seal(folder, settings["readable"])
    alone = _drop_root()
    walls = {"network": apart, "files": sealed, "folder": in_memory, "processes": alone, "signals": apart}
    os.write(report, json.dumps({"walls": [name for name, stands in walls.items() if stands]}).encode() + b"\n")
    sys.addaudithook(_refuse(folder, () if apart and sealed and alone else BANNED))
    seconds = int(settings["seconds"]) + 1
    limits = {"CPU": seconds, "AS": settings["memory"], "FSIZE": settings["disk"], "NOFILE": settings["files"], "CORE": 0, "NPROC": 1}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def _mount(folder: str, size: int) -> bool:
    """A folder in memory of bounded size over the given one, seen by this process alone."""
    if libc.mount(None, b"/", None, REST | PRIVATE, None):
        return False
    return libc.mount(b"tmpfs", folder.encode(), b"tmpfs", NO_SETUID_OR_DEVICES, f"size={size},mode=777".encode()) == 0


def _seal(folder: str, readable: list[str]) -> bool:
    """Landlock: everything in the folder, reading in the readable ones, nothing elsewhere."""
    if libc is None or libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    every = (1 << RIGHTS.get(version, 15)) - 1
    handled = struct.pack("Q", every)
    rules = libc.syscall(LANDLOCK_CREATE, handled, len(handled), 0)
    if rules < 0:
        return False
    allowed = {folder: every} | dict.fromkeys(readable, EXECUTE | READ | LIST) | dict.fromkeys(DEVICES, READ | WRITE)
    for path, rights in allowed.items():
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    sealed = libc.syscall(LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return sealed


def _drop_root() -> bool:
    """Become nobody where this is root, whom no limit on processes binds; reading stays, for Python may lie in root's own home."""
    if os.geteuid():
        return True
    if libc is None or libc.prctl(KEEP_CAPABILITIES, 1, 0, 0, 0):
        return False
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        return False
    version = struct.pack("Ii", 0x20080522, 0)
    libc.capset(version, struct.pack("6I", READ_ANY_FILE, READ_ANY_FILE, 0, 0, 0, 0))
    libc.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    return True


def _refuse(folder: str, banned: tuple[str, ...]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook against the banned events and changes outside of the folder (Landlock lets a user change modes and times)."""
    real = os.path.realpath(folder)

    def inside(path: Any) -> bool:
        return isinstance(path, int) or os.path.realpath(os.fsdecode(path)).startswith(real + os.sep)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(banned):
            raise PermissionError(f"{event} is not permitted here")
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        paths = args[:1] if writes else [part for part in args[:2] if isinstance(part, (str, bytes))] if event in CHANGING else ()
        if any(not inside(path) and path != os.devnull for path in paths):
            raise PermissionError(f"{event} of {paths[0]!r} is not permitted here")

    return hook


def _run(code: str, settings: dict[str, Any]) -> int:
    """Run the program. At its end, and only there, the secret is read and passed on: no other way out says that it passed."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    sys.argv, sys.path[:0] = ["program.py"], [settings["folder"]]
    try:
        exec(compile(code, "program.py", "exec"), module.__dict__)
        sys.stdout.flush()
    except BaseException as error:
        what = "".join(traceback.format_exception_only(error)).strip()
        os.write(settings["report"], json.dumps({"error": type(error).__name__, "detail": what[:2000]}).encode() + b"\n")
        traceback.print_exc(limit=-5)
        return 1
    os.write(settings["report"], os.read(settings["secret"], 64) + b"\n")
    os._exit(0)  # without what the program left for the interpreter's end


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
