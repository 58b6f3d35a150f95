"""How a server listens and what it allows."""

from __future__ import annotations

from dataclasses import dataclass

from lightune.options import check, option

KEYS_VARIABLE = "LIGHTUNE_API_KEYS"


@dataclass(frozen=True)
class Settings:
    """The options of a server. Sizes are in bytes, times in seconds."""

    host: str = option("127.0.0.1", "address to listen on; any but a loopback address lets other machines in")
    port: int = option(8000, "port to listen on; 0 takes a free one", low=0, high=65535)
    slots: int = option(4, "answers of one generating model that are computed side by side", low=1, high=256)
    queue: int = option(64, "most requests that wait for one model; further ones are told to come back later", low=0)
    timeout: float = option(300.0, "most seconds from a request to the end of its answer", above=0.0, high=86400.0)
    max_body: int = option(1 << 20, "most bytes of a request", low=1024)
    max_prompt: int | None = option(None, "most tokens of a prompt; by default what the model takes", low=1)
    max_tokens: int = option(1024, "most tokens of a chat's answer where the request names no limit", low=1)
    context: int | None = option(None, "tokens of prompt and answer that each slot of a GGUF file has memory for", low=16)
    keys: str | None = option(None, f"a file of API keys, one a line; they may also stand in {KEYS_VARIABLE}, with blanks between")
    grace: float = option(30.0, "most seconds for running answers to end when the server is stopped", low=0.0, high=86400.0)
    threads: int | None = option(None, "processor threads of each model; all cores by default", low=1)

    def __post_init__(self) -> None:
        check(self)
