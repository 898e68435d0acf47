"""Fuzz the protocol's decoder: `python tests/fuzz/fuzz_wire.py [SECONDS]`, or with atheris where it is installed.

Whatever the bytes and however they are cut: frames, or ProtocolError; never another exception, never more than one
frame held, and the same frames as when fed at once.
"""

import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "src"))

from glovebox_guest import wire

_KINDS = range(wire.HELLO, wire.PONG + 1)


def check(data: bytes) -> None:
    """One input: the first bytes say how the rest is cut."""
    cuts, stream = data[:4], data[4:]
    whole = _decode([stream])
    pieces, at = [], 0
    while at < len(stream):
        size = (cuts[len(pieces) % len(cuts)] if cuts else 0) + 1
        pieces.append(stream[at : at + size])
        at += size
    cut = _decode(pieces)
    # Cut up, the frames before an error are seen, which at once are lost with it.
    assert cut[: len(whole)] == whole, "the frames depend on how the stream is cut"


def _decode(pieces: list[bytes]) -> list[wire.Frame]:
    decoder, assemblers, credit = wire.Decoder(), {}, wire.Credit()
    frames: list[wire.Frame] = []
    try:
        for piece in pieces:
            for frame in decoder.feed(piece):
                frames.append(frame)
                if frame.kind in (wire.HELLO, wire.OPEN, wire.EVENT, wire.END):
                    assemblers.setdefault(frame.channel, wire.Assembler(4096)).add(frame)
                elif frame.kind == wire.CREDIT:
                    credit.give(wire.decode_credit(frame))
                elif frame.kind == wire.DATA:
                    credit.spend(len(frame.body))
            assert decoder.buffered_bytes < wire.HEADER.size + wire.MAX_BODY_BYTES
    except wire.ProtocolError:
        pass
    return frames


def _some_input(chance: random.Random) -> bytes:
    """Mostly frames, some of them damaged."""
    stream = bytearray(chance.randbytes(4))
    for _ in range(chance.randrange(8)):
        kind = chance.choice(_KINDS)
        channel = 0 if kind in (wire.HELLO, wire.PING, wire.PONG) else chance.choice((1, 2, 2**32 - 1))
        body = chance.choice((b"", b"{}", b'{"a":[1]}', chance.randbytes(4), chance.randbytes(chance.randrange(300))))
        flags = chance.choice((0, 0, 0, 1, wire.MORE, chance.randrange(256)))
        stream += wire.HEADER.pack(len(body), channel, kind, flags) + body
    for _ in range(chance.choice((0, 0, 1, 4))):
        stream[chance.randrange(len(stream))] = chance.randrange(256)
    return bytes(stream)


def main() -> None:
    """Fuzz for as long as asked, or for as long as atheris likes."""
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is not None:
        atheris.instrument_all()
        atheris.Setup(sys.argv, check)
        atheris.Fuzz()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    seed = random.SystemRandom().randrange(2**32)
    chance, deadline, count = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        data = _some_input(chance)
        try:
            check(data)
        except BaseException:
            print(f"failed: {data!r}", file=sys.stderr)
            raise
        count += 1
    print(f"{count} inputs, no failure (seed {seed})")


if __name__ == "__main__":
    main()
