"""Mutations of files: bytes for every format, and the inside of containers whose checksums would hide the damage."""

import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes], bytes]

INTEGERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 1000, 2**15, 2**16, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
            2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
SCALARS = ("0", "-1", "1", "1e309", "-1e-400", "nan", ".nan", ".inf", "null", "true", "~", "''", '""', "[]", "{}",
           "99999999999999999999", "9" * 5000, "0x", "1_0", "2020-13-45", "1:60:60", "[[1]]", "{a: 1}", '{"a": 1}',
           "- - -", "*a", "&a [*a]", "!!python/object:os.system x", "\x00", "\ufeff", "\u2028", "é", "../../x",
           "/etc/x", "a" * 300)  # fmt: skip


def _set_bytes(rng: random.Random, data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def _place(rng: random.Random, data: bytes) -> int:
    """Anywhere, but half the time among the first bytes, where headers are."""
    return rng.randrange(min(len(data), 128) if rng.random() < 0.5 else len(data))


def flip(rng: random.Random, data: bytes) -> bytes:
    place = _place(rng, data)
    return _set_bytes(rng, data, place, bytes([data[place] ^ (1 << rng.randrange(8))]))


def integer(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(INTEGERS) if rng.random() < 0.7 else rng.getrandbits(64)
    return _set_bytes(rng, data, _place(rng, data), (value % 256**size).to_bytes(size, rng.choice(("little", "big"))))


def remove(rng: random.Random, data: bytes) -> bytes:
    first = _place(rng, data)
    return data[:first] + data[first + rng.randint(1, 32) :]


def repeat(rng: random.Random, data: bytes) -> bytes:
    first = _place(rng, data)
    piece = data[first : first + rng.randint(1, 64)]
    return data[:first] + piece * rng.choice((2, 3, 20)) + data[first:]


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.randint(1, 64))


def move(rng: random.Random, data: bytes) -> bytes:
    first, piece = _place(rng, data), rng.randint(1, 32)
    rest = data[:first] + data[first + piece :]
    place = rng.randrange(len(rest) + 1)
    return rest[:place] + data[first : first + piece] + rest[place:]


BYTES: tuple[Mutation, ...] = (flip, flip, integer, integer, integer, remove, repeat, truncate, extend, move)


def in_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four byte mutations, one after the other."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if data:
            data = rng.choice(BYTES)(rng, data)
    return data


def in_text(rng: random.Random, data: bytes) -> bytes:
    """One to four tokens replaced, removed, repeated, or nested deeply; also line by line."""
    text = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(6)
        if kind == 5:
            lines = text.splitlines(keepends=True)
            if lines:
                line = rng.randrange(len(lines))
                lines[line : line + 1] = rng.choice(([], [lines[line]] * 3, [lines[line][1:]], ["  " + lines[line]]))
            text = "".join(lines)
            continue
        tokens = list(re.finditer(r"\"[^\"\n]*\"|[\w.+-]+|[\[\]{}:,]", text))
        if not tokens:
            return text.encode()
        token = rng.choice(tokens)
        if kind == 4:  # deep
            opening = rng.choice(("[", "{a: ", '{"a": ', "("))
            new = opening * rng.choice((3, 50, 2000)) + token[0]
        else:
            new = (rng.choice(SCALARS), rng.choice(tokens)[0], "", str(rng.choice(INTEGERS)))[kind]
        text = text[: token.start()] + new + text[token.end() :]
    return text.encode("utf-8", "surrogatepass")


def in_png(rng: random.Random, data: bytes) -> bytes:
    """The content of a chunk, with the checksums made right again; the image data itself before it is deflated."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        chunks.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + size]])
        place += 12 + size
    chosen = rng.choice(chunks)
    if chosen[0] == b"IDAT" and rng.random() < 0.5:
        chosen[1] = zlib.compress(in_bytes(rng, zlib.decompress(chosen[1])))
    elif chosen[1]:
        chosen[1] = in_bytes(rng, chosen[1])
    if rng.random() < 0.1:
        chunks.insert(rng.randrange(len(chunks)), list(rng.choice(chunks)))
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return data[:8] + body


def in_zip(inside: Mutation = in_bytes) -> Mutation:
    """The content of a member, or its name, packed again."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
        chosen = rng.randrange(len(members))
        name, content, method = members[chosen]
        if rng.random() < 0.1:
            name = in_bytes(rng, name.encode()).decode("latin-1") or "x"
        elif content:
            content = inside(rng, content)
        if rng.random() < 0.1:
            method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        members[chosen] = (name, content, method)
        if rng.random() < 0.05:
            members.insert(rng.randrange(len(members)), rng.choice(members))
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that repeat
            for name, content, method in members:
                info = zipfile.ZipInfo(name or "x")
                info.compress_type = method
                archive.writestr(info, content)
        return stream.getvalue()

    return mutate


def in_npy(rng: random.Random, data: bytes) -> bytes:
    """The header's text, with its length made right again half the time."""
    size = struct.unpack("<H", data[8:10])[0]
    header = in_text(rng, data[10 : 10 + size])
    length = struct.pack("<H", len(header) % 2**16) if rng.random() < 0.5 else data[8:10]
    return data[:8] + length + header + data[10 + size :]


def in_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The JSON header, with its length made right again half the time."""
    (size,) = struct.unpack("<Q", data[:8])
    header = in_text(rng, data[8 : 8 + size])
    if rng.random() < 0.3:
        values = json.loads(data[8 : 8 + size])
        entry = values[rng.choice(list(values))]
        if "data_offsets" in entry:
            entry["data_offsets"][rng.randrange(2)] = rng.choice(INTEGERS)
            entry["shape"] = [rng.choice(INTEGERS) for _ in entry["shape"]] if rng.random() < 0.5 else entry["shape"]
        header = json.dumps(values).encode()
    length = struct.pack("<Q", len(header)) if rng.random() < 0.8 else data[:8]
    return length + header + data[8 + size :]


def mutated(rng: random.Random, seeds: Sequence[bytes], inside: Sequence[Mutation]) -> bytes:
    """One seed changed, by bytes or by one of the mutations of its format; now and then two seeds joined."""
    data = rng.choice(seeds)
    if rng.random() < 0.03:
        other = rng.choice(seeds)
        return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    if inside and rng.random() < 0.6:
        data = rng.choice(inside)(rng, data)
        return in_bytes(rng, data) if data and rng.random() < 0.1 else data
    return in_bytes(rng, data)
