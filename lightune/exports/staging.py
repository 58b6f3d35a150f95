"""A folder appears whole or not at all: it is written beside its place and renamed at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightune.errors import InputError, IntegrityError
from lightune.runtime import manifest


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """An empty draft folder that takes the place of `folder` once the block ends well; after an error nothing has changed.

    An exported model that stands there already is replaced; anything else is left alone.

    Raises:
        InputError: `folder` holds something else, or the disk is full or may not be written.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = _beside(folder)
        draft.mkdir()
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield draft
        _swap(draft, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise InputError(f"{folder} is no folder, expected a folder for the exported model. Choose another name.")
    others = sorted({path.name for path in folder.iterdir()} - _exported(folder))
    if others:
        raise InputError(f"{folder} holds {', '.join(others[:5])}, which no export has written. Choose another folder or empty this one.")


def _exported(folder: Path) -> set[str]:
    """The names of what an earlier export has written there, by its manifest."""
    try:
        return {*manifest.read_json(folder / manifest.NAME)["files"], manifest.NAME}
    except (IntegrityError, KeyError, TypeError):
        return set()


def _swap(draft: Path, folder: Path) -> None:
    """Put the draft in the folder's place; if that fails, the old folder is back where it was."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = _beside(folder)
    folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path) -> Path:
    """A name next to the folder, on the same disk, that nothing has."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder} cannot be written ({error.strerror or error}). Free some space there, or choose a folder that you may write."
    )
