"""How a server ends: what runs is finished, what is new is refused, within a limit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_servers import Live, Start, wait_until
from parrots import Parrot
from tiny_artifacts import make_artifact

from lightune.errors import InputError
from lightune.serving.server import listen
from lightune.serving.settings import Settings

MAIN = """
import json, sys
from lightune.serving.opening import open_served
from lightune.serving.server import serve
from lightune.serving.settings import Settings
settings = Settings(**json.loads(sys.argv[2]))
serve(open_served([sys.argv[1]], settings), settings, tell=lambda sentence: print(sentence, flush=True))
print("ended", flush=True)
"""


def ask_later(live: Live, text: str, **options: Any) -> tuple[threading.Thread, list[Any]]:
    """A chat in a thread, and where its answer or its error will lie."""
    client, found = live.openai(), []

    def go() -> None:
        try:
            found.append(client.chat.completions.create(model="parrot", messages=[{"role": "user", "content": text}], **options))
        except openai.APIError as error:
            found.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    return thread, found


def test_what_runs_and_waits_is_finished_and_what_is_new_is_503(start: Start) -> None:
    parrot = Parrot(pause=0.05)
    live = start(parrot, slots=1, grace=20)
    first, answers = ask_later(live, "one two three four five six seven eight nine ten")
    second, later = ask_later(live, "and I waited")
    wait_until(lambda: live.service.active == 2 and parrot.running == 1)
    live.server.stop()
    http = live.http()
    response = http.post("/v1/chat/completions", json={"model": "parrot", "messages": [{"role": "user", "content": "new"}]})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "stopping")
    assert response.headers["retry-after"]
    assert http.get("/ready").status_code == 503
    assert http.get("/health").status_code == 200
    for thread in (first, second, live.thread):
        thread.join(10)
    assert answers[0].choices[0].message.content.endswith("nine ten")
    assert later[0].choices[0].message.content == "and I waited"
    assert not live.thread.is_alive()


@pytest.mark.parametrize("stream", [True, False])
def test_what_still_runs_at_the_limit_is_ended_and_told(start: Start, stream: bool) -> None:
    parrot = Parrot(pause=0.02, max_length=100_000)
    live = start(parrot, grace=0.3)
    if stream:
        with live.openai().chat.completions.create(
            model="parrot", messages=[{"role": "user", "content": "forever"}], max_tokens=50_000, stream=True
        ) as chunks:
            next(chunks)
            live.server.stop()
            with pytest.raises(openai.APIError, match="being stopped"):
                list(chunks)
    else:
        thread, found = ask_later(live, "forever", max_tokens=50_000)
        wait_until(lambda: parrot.running == 1)
        live.server.stop()
        thread.join(5)
        assert found[0].status_code == 503
    live.thread.join(5)
    assert not live.thread.is_alive()
    wait_until(lambda: parrot.running == 0)


def test_a_server_without_work_stops_at_once(start: Start) -> None:
    live = start(grace=60)
    assert live.http().get("/health").status_code == 200
    began = time.monotonic()
    live.server.stop()
    live.thread.join(5)
    assert time.monotonic() - began < 3


def test_a_port_that_is_taken_is_told(start: Start) -> None:
    port = int(start().url.rpartition(":")[2])
    with pytest.raises(InputError, match=f"port {port}: .*in use"):
        listen(Settings(port=port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_serves_an_artefact_and_ends_well_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    folder = make_artifact(tmp_path / "words")
    options = json.dumps({"port": 0, "threads": 1})
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, f"mine={folder}", options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = process.stdout.readline().split()[-1]
        with httpx.Client(trust_env=False) as http:
            answer = http.post(f"{address}/predict", json={"texts": ["good film"]}).json()
        assert answer["model"] == "mine"
        assert set(answer["answers"][0]["probabilities"]) == {"no", "perhaps", "yes"}
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_serving_an_artefact_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys; from lightune.serving import app, opening, server; from lightune.serving.settings import Settings\n"
    code += f"opening.open_served([{str(make_artifact(tmp_path / 'words'))!r}], Settings(threads=1))\n"
    code += "assert not {'torch', 'transformers', 'sklearn', 'pandas'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
