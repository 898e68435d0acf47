"""Runs real contexts in the template's Python, for test_contexts and its neighbours: JSON lines in, JSON lines out.

In: {"id", "call": a method of Contexts, ...parameters} or {"id", "call": "cancel" | "credit" | "quit"}.
Out: {"id", "event"}, {"id", "data", "stream"}, and {"id", "answer"} or {"id", "refused"} at the end.
"""

import asyncio
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "..", "src"))
from glovebox_guest import contexts, kernel, reaper, refusals, wire


class Channel:
    def __init__(self, call_id, credit):
        self.cancelled = asyncio.Event()
        self._id = call_id
        self._credit = credit
        self._changed = asyncio.Event()

    async def event(self, message):
        try:
            wire.encode_json(message)
        except ValueError as error:
            raise refusals.Refused("resource_exhausted", str(error)) from error
        if not self.cancelled.is_set():
            say(self._id, event=message)

    async def data(self, stream, data):
        # Without credit, as the real channel: wait until there is some, or nobody listens.
        while self._credit is not None and self._credit <= 0 and not self.cancelled.is_set():
            self._changed.clear()
            await self._changed.wait()
        if self._credit is not None:
            self._credit -= len(data)
        if not self.cancelled.is_set():
            say(self._id, data=data.decode("latin-1"), stream=stream)

    def give(self, credit):
        self._credit += credit
        self._changed.set()

    def cancel(self):
        self.cancelled.set()
        self._changed.set()


def say(call_id, **words):
    sys.stdout.write(json.dumps({"id": call_id, **words}) + "\n")
    sys.stdout.flush()


class Driver:
    def __init__(self):
        self.environment = {"GLOBAL": "everywhere"}
        self.reaper = reaper.Reaper()
        self.contexts = contexts.Contexts(self.reaper, lambda: self.environment)
        self.channels = {}
        self.tasks = set()

    async def run(self):
        self.reaper.start()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=2**26)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        say(0, answer="ready")
        while True:
            line = await reader.readline()
            if not line:
                break
            words = json.loads(line)
            task = loop.create_task(self.call(words.pop("id"), words.pop("call"), words))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        await self.contexts.close()

    async def call(self, call_id, name, words):
        try:
            if name in ("cancel", "give"):
                getattr(self.channels[words.pop("target")], name)(**words)
                answer = {}
            elif name == "memory":
                with open("/proc/self/status") as status:
                    answer = {"kib": next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))}
            elif name == "configure":
                answer = self.environment = words["environment"]
            elif name == "prepare":
                answer = self.contexts.prepare()
            elif name == "descriptors":
                answer = {"count": len(os.listdir("/proc/self/fd"))}
            elif name == "execute":
                self.channels[call_id] = channel = Channel(call_id, words.pop("credit", None))
                answer = await self.contexts.execute(channel, words.pop("code"), **words)
            else:
                answer = await getattr(self.contexts, name)(**words)
        except refusals.Refused as refused:
            say(call_id, refused=[refused.code, refused.message])
        else:
            say(call_id, answer=answer)


if sys.argv[1:] != ["--cold"]:
    kernel.warm(sys.argv[1:])
asyncio.run(Driver().run())
