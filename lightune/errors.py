"""What can go wrong, in five classes.

    LightuneError
    ├── InputError        the user's data, path, name or option is wrong          exit code 2
    │   └── MissingExtra  an optional dependency is not installed                 exit code 2
    ├── IntegrityError    a file is truncated, tampered with or half-written      exit code 2
    └── CheckFailed       a measured result does not hold what was asked of it    exit code 1

Every message says what was wrong, the value, what was expected, and the cure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LightuneError(Exception):
    """The root of every error that Lightune raises on purpose."""

    exit_code = 2


class InputError(LightuneError):
    """The user's data, path, name or option is wrong."""


class MissingExtra(InputError):
    """An optional dependency is not installed."""

    def __init__(self, needed_for: str, package: str, extra: str) -> None:
        super().__init__(f"{needed_for} needs the package {package!r}, which is not installed. Install it: pip install 'lightune[{extra}]'")


class IntegrityError(LightuneError):
    """A file is truncated, tampered with or half-written."""


class CheckFailed(LightuneError):
    """A measured result does not hold what was asked of it: parity, a budget, a least score."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the known name nearest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a table."""
    known = sorted(known)
    return InputError(f"Unknown {kind} {name!r}. Known: {', '.join(known)}.{nearest(name, known)}")
