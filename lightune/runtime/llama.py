"""llama.cpp, as the package xllamacpp carries it, called through its C interface (llama.h): a model, its tokens, and slots that it decodes in.

The package's own server is not used: it opens a port, takes over the process's signals and gives no logits of a text.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lightune.errors import InputError, IntegrityError, LightuneError, MissingExtra
from lightune.runtime.scheduling import Chunk
from lightune.runtime.tokenization import characters

ROOM = 512  # bytes set aside for a struct whose size depends on the version; callees read what they know of it
BATCH = 512  # most tokens of one call of `decode`
LOG_ERROR = 4
_last_errors: deque[str] = deque(maxlen=8)


class _Opaque(ctypes.Structure):
    """Parameters as llama.cpp's defaults fill them; the first numbers of a context's are known."""

    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * (ROOM - 16)),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_POINTER, _INT, _TEXT, _BOOL, _SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_bool, ctypes.c_size_t
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_POINTER, _POINTER)),
    "llama_model_default_params": (_Opaque, ()),
    "llama_context_default_params": (_Opaque, ()),
    "llama_model_load_from_file": (_POINTER, (_TEXT, _Opaque)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_init_from_model": (_POINTER, (_POINTER, _Opaque)),
    "llama_free": (None, (_POINTER,)),
    "llama_n_ctx_seq": (ctypes.c_uint32, (_POINTER,)),
    "llama_set_n_threads": (None, (_POINTER, _INT, _INT)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_seq_rm": (_BOOL, (_POINTER, _INT, _INT, _INT)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_model_n_ctx_train": (_INT, (_POINTER,)),
    "llama_model_has_encoder": (_BOOL, (_POINTER,)),
    "llama_model_meta_val_str": (_INT, (_POINTER, _TEXT, _TEXT, _SIZE)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_vocab_is_eog": (_BOOL, (_POINTER, _INT)),
    "llama_vocab_is_control": (_BOOL, (_POINTER, _INT)),
    "llama_vocab_bos": (_INT, (_POINTER,)),
    "llama_vocab_eos": (_INT, (_POINTER,)),
    "llama_vocab_get_add_bos": (_BOOL, (_POINTER,)),
    "llama_vocab_get_text": (_TEXT, (_POINTER, _INT)),
    "llama_tokenize": (_INT, (_POINTER, _TEXT, _INT, ctypes.POINTER(_INT), _INT, _BOOL, _BOOL)),
    "llama_token_to_piece": (_INT, (_POINTER, _INT, _TEXT, _INT, _INT, _BOOL)),
    "llama_batch_init": (_Batch, (_INT, _INT, _INT)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (_INT, (_POINTER, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_POINTER, _INT)),
}


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _keep_errors(level: int, text: bytes | None, _: Any) -> None:
    """llama.cpp's log goes nowhere; what it says of errors is kept for our own."""
    if level == LOG_ERROR and text:
        _last_errors.append(text.decode("utf-8", "replace").strip())


@lru_cache(maxsize=1)
def library() -> Any:
    """llama.cpp's functions, silenced.

    Raises:
        MissingExtra: xllamacpp is not installed. InputError: its version has another interface than we know.
    """
    found = importlib.util.find_spec("xllamacpp")
    folder = Path(found.origin).parent if found and found.origin else None
    path = (
        next((item for pattern in ("xllamacpp*.so", "xllamacpp*.pyd") for item in sorted(folder.glob(pattern))), None) if folder else None
    )
    if path is None:
        raise MissingExtra("Generating from a GGUF file", "xllamacpp", "generate")
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise _other_interface(str(error)) from error
    defaults = loaded.llama_context_default_params()
    if (defaults.n_ctx, defaults.n_batch, defaults.n_ubatch, defaults.n_seq_max) != (512, 2048, 512, 1):
        raise _other_interface("its parameters lie elsewhere")
    loaded.llama_log_set(ctypes.cast(_keep_errors, _POINTER), None)
    loaded.llama_backend_init()
    return loaded


def _other_interface(problem: str) -> InputError:
    return InputError(
        f"xllamacpp {version('xllamacpp')} has another interface than expected ({problem}). "
        "Install the version that was tested: pip install -U 'lightune[generate]'."
    )


class Llama:
    """A GGUF file, opened.

    Args:
        context: most tokens of one slot. slots: sequences that are decoded side by side.

    vocabulary_size: v. trained_length: tokens that the model was made for. context: what one slot really has.
    """

    def __init__(self, path: Path, *, threads: int, context: int | None, slots: int) -> None:
        self._lib = library()
        _last_errors.clear()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise IntegrityError(f"llama.cpp cannot load {path} ({_reason()}). Copy the file again, or update xllamacpp.")
        if self._lib.llama_model_has_encoder(self._model):
            self._lib.llama_model_free(self._model)
            raise InputError(f"{path} has an encoder, expected a decoder alone. Run it with transformers.")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary_size = self._lib.llama_vocab_n_tokens(self._vocab)
        self.trained_length = self._lib.llama_model_n_ctx_train(self._model)
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = slots * (context or self.trained_length), BATCH, BATCH, slots
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            self._lib.llama_model_free(self._model)
            raise InputError(f"llama.cpp has no room for {slots} slots of {context} tokens ({_reason()}). Lower context or slots.")
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self.context = min(self._lib.llama_n_ctx_seq(self._context), context or self.trained_length)
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = self._lib.llama_batch_init(BATCH, 0, 1)

    def decode(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        """See `scheduling.Decoder`."""
        batch, places, size = self._batch, [], 0
        for chunk in chunks:
            outputs = []
            for offset, token in enumerate(chunk.tokens):
                wanted = offset >= len(chunk.tokens) - chunk.outputs
                batch.token[size], batch.pos[size], batch.logits[size] = token, chunk.position + offset, wanted
                batch.n_seq_id[size], batch.seq_id[size][0] = 1, chunk.slot
                outputs += [size] * wanted
                size += 1
            places.append(outputs)
        batch.n_tokens = size
        _last_errors.clear()
        if code := self._lib.llama_decode(self._context, batch):
            raise LightuneError(f"llama.cpp could not compute the next step (code {code}, {_reason()}).")
        return [np.stack([self._logits(place) for place in outputs]) if len(outputs) > 1 else self._views(outputs) for outputs in places]

    def _views(self, places: list[int]) -> np.ndarray:
        return self._logits(places[0])[None] if places else np.empty((0, self.vocabulary_size), dtype=np.float32)

    def _logits(self, place: int) -> np.ndarray:
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, place), (self.vocabulary_size,))

    def forget(self, slot: int, keep: int) -> int:
        """See `scheduling.Decoder`; a model whose memory cannot be cut, as recurrent ones, forgets everything."""
        if self._lib.llama_memory_seq_rm(self._memory, slot, keep, -1):
            return keep
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return 0

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text."""
        size = self._lib.llama_model_meta_val_str(self._model, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def tokenize(self, text: str) -> list[int]:
        """Token ids of text; special tokens in it are recognised, none are added."""
        data = characters(text).encode()
        room = len(data) + 8
        buffer = (_INT * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, room, False, True)
        if count < 0:
            buffer = (_INT * -count)()
            count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, -count, False, True)
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        buffer = ctypes.create_string_buffer(256)
        size = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]

    def text(self, token: int) -> str:
        """A token as the file writes it, "" for no token (-1)."""
        return "" if token < 0 else self._lib.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")

    @property
    def bos(self) -> str:
        """The token that begins a text, "" where there is none."""
        return self.text(self._lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> str:
        """The token that ends a text, "" where there is none."""
        return self.text(self._lib.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether texts begin with `bos`."""
        return self._lib.llama_vocab_get_add_bos(self._vocab)

    def special(self) -> frozenset[int]:
        """The control tokens."""
        return frozenset(token for token in range(self.vocabulary_size) if self._lib.llama_vocab_is_control(self._vocab, token))

    def ends(self) -> frozenset[int]:
        """The tokens that end an answer, as llama.cpp knows them."""
        return frozenset(token for token in range(self.vocabulary_size) if self._lib.llama_vocab_is_eog(self._vocab, token))

    def close(self) -> None:
        """Give the memory back; nothing may be called afterwards."""
        if self._context:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = self._model = None


def _reason() -> str:
    return "; ".join(_last_errors) or "it gives no reason"
