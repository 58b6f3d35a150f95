"""A server under load: many clients for some minutes, some of which leave in the middle of an answer.

Usage: python benchmarks/serve_load.py MODEL [--clients 64] [--seconds 120] [--slots 4] [--queue 64] [--tokens 16] [--context 512] [--out FILE]
MODEL is what `lightune serve` serves and generates: a run, an artefact or a .gguf file. Needs the packages openai and psutil.
Every client asks again and again by OpenAI's client: a third whole answers, a third streams, a third streams that it leaves after a few chunks. A client
that is told 429 waits as long as it is told. Lost is a request that was neither answered whole, nor left on purpose, nor refused with 429.
At the end as many long streams as there are slots are opened and left all at once: the seconds until no slot is taken are told.
Writes benchmarks/results/serve_load.json: counts, p50 and p95 of whole answers and of first chunks, tokens/s, resident memory every five seconds.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import psutil

parser = argparse.ArgumentParser()
(
    parser.add_argument("model"),
    parser.add_argument("--clients", type=int, default=64),
    parser.add_argument("--seconds", type=float, default=120),
)
(
    parser.add_argument("--slots", type=int, default=4),
    parser.add_argument("--queue", type=int, default=64),
    parser.add_argument("--tokens", type=int, default=16),
)
parser.add_argument("--context", type=int, default=512), parser.add_argument("--threads", type=int, default=None)
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "serve_load.json"))
args = parser.parse_args()
MAIN = """
import json, sys
from lightune.serving.opening import open_served
from lightune.serving.server import serve
from lightune.serving.settings import Settings
settings = Settings(**json.loads(sys.argv[2]))
serve(open_served(["model=" + sys.argv[1]], settings), settings, tell=lambda sentence: print(sentence, flush=True))
"""
QUESTIONS = (
    "What is a bicycle?",
    "Name three rivers of Europe.",
    "How do I list the files of a folder?",
    "Why is the sky blue?",
    "Tell me a short story.",
)


class Tally:
    """What the clients saw."""

    def __init__(self):
        self.counts = dict.fromkeys(("whole", "streamed", "left", "refused", "lost"), 0)
        self.whole, self.first, self.errors, self.tokens = [], [], [], 0


async def ask(client, tally, draw):
    """One request of a kind that is drawn."""
    kind = draw.choice(("whole", "streamed", "left"))
    options = {
        "model": "model",
        "max_tokens": args.tokens,
        "temperature": 0.7,
        "messages": [{"role": "user", "content": draw.choice(QUESTIONS)}],
    }
    began = time.monotonic()
    try:
        if kind == "whole":
            done = await client.chat.completions.create(**options)
            tally.tokens += done.usage.completion_tokens
            assert done.choices[0].finish_reason in ("stop", "length")
        else:
            await follow(client, tally, options, draw.randint(1, 8) if kind == "left" else None, began)
        if kind != "left":
            tally.whole.append(time.monotonic() - began)
        tally.counts[kind] += 1
    except openai.RateLimitError as error:
        tally.counts["refused"] += 1
        await asyncio.sleep(float(error.response.headers["retry-after"]))
    except (openai.APIError, AssertionError) as error:
        tally.counts["lost"] += 1
        tally.errors.append(f"{type(error).__name__}: {error}"[:200])


async def follow(client, tally, options, leave_after, began):
    """Read a stream, to its end or until it is left."""
    finish = None
    async with await client.chat.completions.create(stream=True, **options) as chunks:
        seen = 0
        async for chunk in chunks:
            if not seen:
                tally.first.append(time.monotonic() - began)
            seen += 1
            finish = chunk.choices[0].finish_reason or finish
            if seen == leave_after:
                return
    tally.tokens += seen - 2
    assert leave_after or finish in ("stop", "length")


async def talk(address, tally, until, number):
    """One client, which asks until the time is over."""
    draw = random.Random(number)
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300) as client:
        while time.monotonic() < until:
            await ask(client, tally, draw)


async def watch(process, until):
    """Resident bytes of the server every five seconds."""
    found = []
    while time.monotonic() < until:
        found.append(process.memory_info().rss)
        await asyncio.sleep(5)
    return found


async def free_slots(address):
    """Seconds from the moment at which clients leave every slot until all are free."""
    options = {
        "model": "model",
        "max_tokens": args.context // 2,
        "messages": [{"role": "user", "content": "Count: 1 2 3 4 5 6 7"}],
        "stream": True,
    }
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        streams = await asyncio.gather(*(client.chat.completions.create(**options) for _ in range(args.slots)))
        for stream in streams:
            await anext(aiter(stream))
        taken = await in_flight(address)
        began = time.monotonic()
        for stream in streams:
            await stream.close()
        while await in_flight(address):
            await asyncio.sleep(0.01)
        return {"slots_taken": taken, "seconds": round(time.monotonic() - began, 3)}


async def in_flight(address):
    async with httpx.AsyncClient(trust_env=False) as http:
        lines = (await http.get(f"{address}/metrics")).text.splitlines()
    return int(next(float(line.split()[-1]) for line in lines if line.startswith("lightune_in_flight{")))


async def load(address, process):
    tally, until = Tally(), time.monotonic() + args.seconds
    memory, *_ = await asyncio.gather(watch(process, until), *(talk(address, tally, until, number) for number in range(args.clients)))
    return tally, memory, await free_slots(address)


def quantiles(values):
    return {name: round(float(np.quantile(values, share)), 3) for name, share in (("p50", 0.5), ("p95", 0.95))} if values else None


def main():
    settings = {"port": 0, "slots": args.slots, "queue": args.queue, "context": args.context, "threads": args.threads}
    process = subprocess.Popen([sys.executable, "-c", MAIN, args.model, json.dumps(settings)], stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().split()[-1]
    began = time.monotonic()
    tally, memory, freed = asyncio.run(load(address, psutil.Process(process.pid)))
    seconds = time.monotonic() - began
    process.send_signal(signal.SIGTERM)
    result = {
        "command": "python benchmarks/serve_load.py " + " ".join([Path(args.model).name, *sys.argv[2:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} usable cores", "settings": settings, "clients": args.clients,
        "seconds": round(seconds, 1), "requests": tally.counts, "errors": tally.errors[:10], "answer_seconds": quantiles(tally.whole),
        "first_chunk_seconds": quantiles(tally.first), "tokens_per_second": round(tally.tokens / seconds, 1),
        "resident_bytes": memory, "clients_that_left": freed, "exit_code": process.wait(60),
    }  # fmt: skip
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


main()
