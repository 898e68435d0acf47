"""A service for a port inside a sandbox: HTTP, server-sent events and WebSockets. The standard library only; run inside.

`python3 port_service.py PORT`. Sent in as a file, so it may import nothing of ours.
"""

import asyncio
import base64
import hashlib
import json
import struct
import sys
import urllib.parse

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode, payload=b"", fin=True):
    """One frame of a server's."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", fin << 7 | opcode, size)
    elif size < 65536:
        head = struct.pack("!BBH", fin << 7 | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", fin << 7 | opcode, 127, size)
    return head + payload


async def read_frame(reader):
    """A client's frame: fin, opcode, payload."""
    first, second = await reader.readexactly(2)
    size = second & 127
    if size > 125:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
    mask = await reader.readexactly(4)
    data = await reader.readexactly(size)
    keys = (mask * (size // 4 + 1))[:size]
    plain = (int.from_bytes(data, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")
    return bool(first & 128), first & 15, plain


class Service:
    """What the requests share."""

    def __init__(self):
        self.arrived = 0
        self.all_here = asyncio.Event()
        self.told = 0
        self.tell = asyncio.Event()
        self.left = 0
        self.closed_with = None
        self.flooded = 0

    async def serve(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in lines)}
            target = urllib.parse.urlsplit(line.split()[1])
            query = dict(urllib.parse.parse_qsl(target.query))
            answer = getattr(self, "on_" + target.path.strip("/"))
            await answer(reader, writer, {"line": line, "headers": headers, "query": query})
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def say(self, writer, body, status="200 OK"):
        data = body.encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\nX-From: inside\r\n\r\n".encode() + data)

    # HTTP

    async def on_state(self, reader, writer, request):
        state = {"left": self.left, "closed_with": self.closed_with, "flooded": self.flooded}
        self.say(writer, json.dumps(state))

    async def on_refuse(self, reader, writer, request):
        self.say(writer, "not here", request["query"]["status"])

    async def on_barrier(self, reader, writer, request):
        """Nobody is answered before all are here: only truly concurrent requests get through."""
        self.arrived += 1
        mine = self.arrived
        if self.arrived == int(request["query"]["of"]):
            self.all_here.set()
        await self.all_here.wait()
        self.say(writer, str(mine))

    # Server-sent events

    async def on_events(self, reader, writer, request):
        """One event at once, and one more for each `/next`; until the client leaves."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\r\n")
        events = asyncio.ensure_future(self.send_events(writer))
        await reader.read()
        events.cancel()
        self.left += 1

    async def send_events(self, writer):
        number = 0
        while True:
            writer.write(f"data: {number}\n\n".encode())
            self.told = number
            await writer.drain()
            await self.tell.wait()
            self.tell.clear()
            number += 1

    async def on_next(self, reader, writer, request):
        self.tell.set()
        self.say(writer, str(self.told))

    # WebSockets

    def accept(self, writer, request):
        headers = request["headers"]
        digest = hashlib.sha1((headers["sec-websocket-key"] + GUID).encode()).digest()
        lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"]
        lines.append("Sec-WebSocket-Accept: " + base64.b64encode(digest).decode())
        if "sec-websocket-protocol" in headers:
            lines.append("Sec-WebSocket-Protocol: " + headers["sec-websocket-protocol"].split(",")[-1].strip())
        writer.write("\r\n".join([*lines, "", ""]).encode())

    async def on_hello(self, reader, writer, request):
        """Tells what it was asked with, then echoes."""
        self.accept(writer, request)
        writer.write(frame(TEXT, json.dumps(request).encode()))
        await self.on_echo(reader, writer, request, accepted=True)

    async def on_echo(self, reader, writer, request, accepted=False):
        if not accepted:
            self.accept(writer, request)
        try:
            while True:
                fin, opcode, payload = await read_frame(reader)
                if opcode == CLOSE:
                    self.closed_with = [int.from_bytes(payload[:2], "big"), payload[2:].decode()]
                writer.write(frame(PONG if opcode == PING else opcode, payload, fin))
                await writer.drain()
                if opcode == CLOSE:
                    return
        finally:
            self.left += 1

    async def on_close(self, reader, writer, request):
        """Closes first."""
        self.accept(writer, request)
        query = request["query"]
        writer.write(frame(CLOSE, struct.pack("!H", int(query["code"])) + query["reason"].encode()))
        await read_frame(reader)

    async def on_flood(self, reader, writer, request):
        """As many bytes as one asks for, in messages of 64 KiB, and as fast as they are taken."""
        self.accept(writer, request)
        message = frame(BINARY, bytes(65536))
        self.flooded = 0
        while self.flooded < int(request["query"]["bytes"]):
            writer.write(message)
            await writer.drain()
            self.flooded += 65536
        writer.write(frame(CLOSE, struct.pack("!H", 1000)))
        await read_frame(reader)

    async def on_raw(self, reader, writer, request):
        """Sends any bytes after the 101."""
        self.accept(writer, request)
        writer.write(bytes.fromhex(request["query"]["hex"]))
        await reader.read()
        self.left += 1


async def main():
    service = Service()
    served = await asyncio.start_server(service.serve, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    print("ready", flush=True)
    await served.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
