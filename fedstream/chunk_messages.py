"""Messages that carry a chunk, to and from bytes without the copies that protobuf makes: the fast path of transfers.

To write a chunk of 1 MiB, protobuf copies it three times (into the chunk, with the chunk into the request, and into the
result), and to read one twice, each time into memory that the system must find and clear first. Here it is one copy to
write, and none to read: what is read points into the message.

The bytes are those that protobuf writes: fields in order, no field that has its default. Whatever is read that does not
look just like that, such as a message with a field of a later version, is left to protobuf, and so are all errors.
"""

from __future__ import annotations

from typing import NamedTuple

from fedstream import wire
from fedstream.body import Chunk
from fedstream.v1 import transfer_pb2

_LONGEST_VARINT = 9
"""Bytes of a varint that is read here; one of ten may be larger than 64 bits."""

# A tag is a field's number times 8, and how it is written: 0 for a varint, 5 for 4 bytes, 2 for a length and bytes.
_UPLOAD_ID, _CHUNK_OF_WRITE, _CHUNK_OF_READ = 0x0A, 0x12, 0x0A
_WRITE_OFFSET, _CRC32C, _DATA = 0x08, 0x15, 0x1A


class WrittenChunk(NamedTuple):
    """A `WriteChunksRequest`."""

    upload_id: str
    chunk: Chunk


def encode_write_chunks(upload_id: str, chunk: Chunk) -> bytes:
    """A serialised `WriteChunksRequest`."""
    name, head = upload_id.encode(), _head_of(chunk)
    before = bytes((_UPLOAD_ID,)) + _varint(len(name)) + name if name else b""
    return b"".join((before, bytes((_CHUNK_OF_WRITE,)), _varint(len(head) + len(chunk.data)), head, chunk.data))


def encode_read_chunks(chunk: Chunk) -> bytes:
    """A serialised `ReadChunksResponse`."""
    head = _head_of(chunk)
    return b"".join((bytes((_CHUNK_OF_READ,)), _varint(len(head) + len(chunk.data)), head, chunk.data))


def _head_of(chunk: Chunk) -> bytes:
    """What stands before the data in a `Chunk`."""
    head = bytearray()
    if chunk.write_offset:
        head += bytes((_WRITE_OFFSET,)) + _varint(chunk.write_offset)
    if chunk.crc32c:
        head += bytes((_CRC32C,)) + chunk.crc32c.to_bytes(4, "little")
    if chunk.data:
        head += bytes((_DATA,)) + _varint(len(chunk.data))
    return bytes(head)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth bit."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_write_chunks(message: bytes) -> WrittenChunk:
    """The `WriteChunksRequest` that `message` is; the chunk's data points into it.

    Raises:
        DecodeError: it is none.
    """
    reader = _Reader(message)
    try:
        upload_id = str(reader.span(), "utf-8") if reader.takes(_UPLOAD_ID) else ""
        return WrittenChunk(upload_id, reader.chunk(_CHUNK_OF_WRITE))
    except (_Unusual, IndexError, UnicodeDecodeError):
        request = transfer_pb2.WriteChunksRequest.FromString(message)
        return WrittenChunk(request.upload_id, wire.read_chunk(request.chunk))


def decode_read_chunks(message: bytes) -> Chunk:
    """The chunk of the `ReadChunksResponse` that `message` is; its data points into it.

    Raises:
        DecodeError: it is none.
    """
    try:
        return _Reader(message).chunk(_CHUNK_OF_READ)
    except (_Unusual, IndexError):
        return wire.read_chunk(transfer_pb2.ReadChunksResponse.FromString(message).chunk)


class _Unusual(Exception):
    """This is for protobuf to read."""


class _Reader:
    """Reads fields in the order in which protobuf writes them. An `IndexError` is a message that ends too early."""

    def __init__(self, message: bytes) -> None:
        self._message = memoryview(message)
        self._place = 0

    def takes(self, tag: int) -> bool:
        """Whether this field comes next; then it is entered."""
        found = self._place < len(self._message) and self._message[self._place] == tag
        self._place += found
        return found

    def varint(self) -> int:
        """The varint that comes next."""
        value = 0
        for shift in range(0, 7 * _LONGEST_VARINT, 7):
            byte = self._message[self._place]
            self._place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise _Unusual

    def span(self) -> memoryview:
        """A length and so many bytes."""
        length = self.varint()
        return self._bytes(length)

    def _bytes(self, length: int) -> memoryview:
        start, self._place = self._place, self._place + length
        if self._place > len(self._message):
            raise _Unusual
        return self._message[start : self._place]

    def chunk(self, tag: int) -> Chunk:
        """The message's last field, a chunk."""
        if not self.takes(tag) or self.varint() != len(self._message) - self._place:
            raise _Unusual
        write_offset = self.varint() if self.takes(_WRITE_OFFSET) else 0
        crc32c = int.from_bytes(self._bytes(4), "little") if self.takes(_CRC32C) else 0
        data = self.span() if self.takes(_DATA) else b""
        if self._place != len(self._message):
            raise _Unusual
        return Chunk(write_offset, crc32c, data)
