"""An ASGI application whose requests are runs, for servers with an event loop in each worker."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import runmeter

runmeter.instrument(throttle=float(os.environ["WEB_AGENT_THROTTLE"]), instrumentations=False)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """`/RUN_ID/CALLS`: a run with so many calls, which takes turns with the others on its loop."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    _, run_id, calls = scope["path"].split("/")
    async with runmeter.run(run_id=run_id, thread_id="web"):
        for _ in range(int(calls)):
            runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
            await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"done"})
