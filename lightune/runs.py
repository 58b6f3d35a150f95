"""The run folder: what went in, what happened, what came out. Reports and later verbs read these files only.

RUN/recipe.toml  environment.json  data.json  steps.jsonl  checkpoints/  model/  artifacts/NAME/  evaluation.json  run.json  report.html  card.md
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lightune.errors import InputError, IntegrityError

PACKAGES = ("lightune", "torch", "transformers", "tokenizers", "numpy", "onnxruntime", "onnx", "accelerate", "scikit-learn", "safetensors")


@dataclass(frozen=True)
class Run:
    """A run folder and its files."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Where unfinished training is kept."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """The saved model."""
        return self.folder / "model"

    @property
    def artifacts(self) -> Path:
        """One folder for each exported model."""
        return self.folder / "artifacts"

    @property
    def record(self) -> dict[str, Any]:
        """run.json."""
        return self.read("run.json")

    def read(self, name: str) -> Any:
        """A JSON file of the run.

        Raises:
            InputError: it is not there (the run has not come so far).
            IntegrityError: it is damaged.
        """
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{str(self.folder)!r} has no {name}: it is no finished run. Finish it: lightune fit --resume {self.folder}"
            ) from None
        except (ValueError, OSError) as error:
            raise IntegrityError(f"{path} cannot be read ({error}). Restore it, or run again.") from None

    def write(self, name: str, value: Any) -> Path:
        """Write text or JSON so that a reader sees the old file or the new one, never half of one."""
        path = self.folder / name
        text = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
        with full_disk_told(path):
            passing = path.with_name(f".{path.name}.writing")
            passing.write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8", errors="replace")
            passing.replace(path)
        return path

    def append(self, name: str, value: dict[str, Any]) -> None:
        """Add one JSON line."""
        with full_disk_told(self.folder / name), open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")

    def cut_steps(self, last: int) -> None:
        """Forget the facts of steps after `last`: a resumed run writes them again."""
        path = self.folder / "steps.jsonl"
        if path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    fact = json.loads(line)
                except ValueError:  # the line on which the process was killed
                    break
                if fact["step"] <= last:
                    kept.append(line)
            self.write("steps.jsonl", "\n".join(kept) + "\n" * bool(kept))


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a message with a cure."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Cannot write {str(path)!r}: {error.strerror or error}. Free some space, or give another folder with --out."
        ) from None


def new_run(folder: str | Path, *, overwrite: bool = False) -> Run:
    """An empty run folder.

    Raises:
        InputError: it exists and is not empty, or cannot be written.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not overwrite:
        raise InputError(
            f"The run folder {str(path)!r} exists and is not empty. Give another with --out, go on with it by --resume {path}, or replace it by --overwrite."
        )
    with full_disk_told(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    return Run(path)


def open_run(folder: str | Path) -> Run:
    """An existing run.

    Raises:
        InputError: the folder is no run.
    """
    path = Path(folder)
    if not (path / "recipe.toml").is_file():
        raise InputError(f"{str(path)!r} is no run folder: it has no recipe.toml. Give the folder that lightune fit wrote.")
    return Run(path)


def free_name(stem: str, parent: Path = Path("runs")) -> Path:
    """`runs/STEM`, or `runs/STEM-2` and so on where that exists."""
    clean = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"
    found, number = parent / clean, 1
    while found.exists():
        number += 1
        found = parent / f"{clean}-{number}"
    return found


def describe_environment(seed: int) -> dict[str, Any]:
    """The machine and the packages, for environment.json."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    pages = (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names else 0
    )
    return {
        "python": sys.version.split()[0], "platform": platform.platform(), "cpu": processor_name(), "cores": os.cpu_count(),
        "memory_bytes": pages, "packages": versions, "seed": seed,
    }  # fmt: skip


def processor_name() -> str:
    """What this machine's processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
