"""Serve models over HTTP: chat and completions as OpenAI's clients expect them, `/predict` for every other task.

from lightune.serving.opening import open_served
from lightune.serving.server import serve
from lightune.serving.settings import Settings

serve(open_served(["runs/support", "chat=runs/chat"], settings := Settings(port=8080)), settings)

What flows, one way: a request passes `gate` (keys, limits, counts), becomes a typed body (`bodies`), a `Job` in the `Line` of its model
(`queueing`), and what the line's threads answer goes out in the form that the client expects (`replies`). Needs the extra `serve`.
"""
