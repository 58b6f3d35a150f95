"""Files as streams: decompressed as they are read, and their encoding known before the first row is parsed."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from lightune.errors import InputError, MissingExtra

CHUNK = 1 << 20
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16, so it is tried before it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What a Chinese text is full of; text in another encoding that happens to decode as GB 18030 is not.
COMMON_CHINESE = frozenset("的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过，。！、：？")


@dataclass(frozen=True)
class Scan:
    """What one pass over a text file found: its encoding, and how many bytes it has once decompressed."""

    encoding: str
    guessed: bool
    bytes: int


def compression(path: Path) -> str | None:
    """'gzip', 'zstandard', or None, by the file's name."""
    return {".gz": "gzip", ".zst": "zstandard"}.get(path.suffix.lower())


def digest(path: Path) -> str:
    """The sha256 of the file as it lies on the disk."""
    found = hashlib.sha256()
    with _open(path) as stream:
        while chunk := stream.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}. Give a file that you may read.") from problem


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed. A truncated or damaged archive is an InputError wherever in it the damage is."""
    damage: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    kind = compression(path)
    if kind == "zstandard":
        try:
            import zstandard
        except ImportError:
            raise MissingExtra(f"reading {path.name}", "zstandard", "zst") from None
        damage += (zstandard.ZstdError,)
    with _open(path) as raw:
        stream = {"gzip": lambda: gzip.GzipFile(fileobj=raw), "zstandard": lambda: io.BufferedReader(_Zstandard(raw), CHUNK)}.get(
            kind or "", lambda: raw
        )()
        try:
            yield cast(BinaryIO, stream)
        except damage as problem:
            raise InputError(
                f"{path} is truncated, or is no {kind} file ({problem or type(problem).__name__}). Copy or download it again, whole."
            ) from problem


class _Zstandard(io.RawIOBase):
    """Zstandard frames as a stream. The package's own reader takes a cut frame for the end of the file; this one raises EOFError."""

    def __init__(self, raw: BinaryIO) -> None:
        self._chunks, self._left = _zstandard_chunks(raw), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = chunk
        taken = self._left[: len(buffer)]
        buffer[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)


def _zstandard_chunks(raw: BinaryIO) -> Iterator[bytes]:
    import zstandard

    frame = None
    while chunk := raw.read(1 << 16):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame is not complete")


@contextmanager
def open_text(path: Path, encoding: str, newline: str = "") -> Iterator[TextIO]:
    """The file's text. `newline` as in `open`: "" keeps every line end as it is and splits at each kind, "\\n" splits at that alone."""
    with open_bytes(path) as stream:
        yield io.TextIOWrapper(stream, encoding=encoding, newline=newline)


def scan(path: Path, encoding: str | None = None) -> Scan:
    """Read the whole file once to know that it decodes, in which encoding, and that no NUL stands in it.

    Without `encoding`: by the byte order mark, else UTF-8, else GB 18030 or Windows-1252 where the bytes speak plainly for one of them.

    Raises:
        InputError: empty, truncated, not decodable (with the line), or with NUL bytes (with the line).
    """
    with open_bytes(path) as stream:
        head = stream.read(4)
    if not head:
        raise InputError(f"{path} is empty. Give a file with at least one row.")
    marked = next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), None)
    name = _text_encoding(encoding) if encoding else marked or "utf-8-sig"
    try:
        return Scan(name, marked is None and not encoding, _decode(path, name))
    except UnicodeError as problem:
        other = None if encoding or marked else _other_encoding(path)
        if other is None:
            raise InputError(f"{path}: {problem}. Name the encoding it was saved in, such as encoding='gb18030' or 'cp1252'.") from problem
    try:
        return Scan(other, True, _decode(path, other))
    except UnicodeError as problem:
        raise InputError(f"{path}: {problem}. Save the file as UTF-8.") from problem


def _text_encoding(name: str) -> str:
    try:
        found = codecs.lookup(name)
        codecs.getincrementaldecoder(name)
    except LookupError:
        found = None
    if found is None or not getattr(found, "_is_text_encoding", True):
        raise InputError(
            f"Unknown encoding {name!r}. Known: utf-8, utf-16, gb18030, big5, shift_jis, euc_kr, cp1252, latin-1 and Python's others."
        )
    return "utf-8-sig" if found.name == "utf-8" else found.name


def _decode(path: Path, encoding: str) -> int:
    """Decode the whole file and return its bytes, or raise UnicodeError with the line."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, size, final = 1, 0, False
    with open_bytes(path) as stream:
        while not final:
            chunk = stream.read(CHUNK)
            size, final = size + len(chunk), not chunk
            try:
                text = decoder.decode(chunk, final)
            except UnicodeError as problem:
                line += _lines_before(problem, encoding)
                raise UnicodeError(f"line {line} is not {encoding.removesuffix('-sig')} ({_bad_byte(problem)})") from problem
            if (at := text.find("\0")) >= 0:
                raise _nul(path, line + text.count("\n", 0, at), encoding)
            line += text.count("\n")
    return size


def _lines_before(problem: UnicodeError, encoding: str) -> int:
    return problem.object[: problem.start].decode(encoding, "replace").count("\n") if isinstance(problem, UnicodeDecodeError) else 0


def _bad_byte(problem: UnicodeError) -> str:
    return f"byte 0x{problem.object[problem.start]:02x}" if isinstance(problem, UnicodeDecodeError) else str(problem)


def _nul(path: Path, line: int, encoding: str) -> InputError:
    with open_bytes(path) as stream:
        head = stream.read(1 << 12)
    even, odd = head[::2].count(0), head[1::2].count(0)
    wide = "utf-16" not in encoding and abs(even - odd) > len(head) // 8
    cure = (
        f"It looks like UTF-16: encoding='utf-16-{'le' if odd > even else 'be'}'"
        if wide
        else "It is no text file, or damaged: save it again"
    )
    return InputError(f"{path}: line {line} has a NUL byte. {cure}, or remove the NUL bytes.")


def _other_encoding(path: Path) -> str | None:
    """The encoding of a file that is not UTF-8: 'gb18030', 'cp1252', or None where the bytes do not speak plainly."""
    sample = _non_ascii_lines(path)
    whole = sum(not character.isascii() for character in sample.decode("utf-8", "ignore"))
    if whole > sample.decode("utf-8", "replace").count("\ufffd"):
        return None  # mostly good UTF-8: damaged, and another encoding would read all of it wrong
    for encoding, plausible in (("gb18030", _is_chinese), ("cp1252", _is_western)):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(sample)  # the sample may end inside a character
        except UnicodeDecodeError:
            continue
        if plausible([character for character in text if not character.isspace()]):
            return encoding
    return None


def _non_ascii_lines(path: Path) -> bytes:
    lines, size = [], 0
    with open_bytes(path) as stream:
        while (line := stream.readline(CHUNK)) and size < CHUNK:
            if not line.isascii():
                lines.append(line)
                size += len(line)
    return b"".join(lines)


def _is_chinese(characters: list[str]) -> bool:
    foreign = [character for character in characters if not character.isascii()]
    return sum(character in COMMON_CHINESE for character in foreign) >= 0.05 * len(foreign)


def _is_western(characters: list[str]) -> bool:
    """Accented letters and typographic marks are the exception in a Western text; elsewhere nearly every letter would be one."""
    return sum(not character.isascii() for character in characters) <= 0.3 * len(characters)
