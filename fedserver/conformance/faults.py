"""What a scene lets go wrong in a call of the transfer; each fault concerns one call."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status

from fedstream.errors import ProtocolError
from fedstream.status import to_status


@dataclass(frozen=True, slots=True)
class Refused:
    """The call ends by a rule, or, where there is no `error`, as a broken network or a crashed server ends it.

    In a stream of chunks so many bytes of data come through first; `loses` says that those of them that were not
    told to be committed are lost.
    """

    error: ProtocolError | None = None
    after_bytes: int = 0
    loses: bool = False
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE


class Damage(enum.Enum):
    """What is wrong with one chunk, or one manifest, on its way to the client."""

    CRC = "a chunk that does not match its crc32c"
    DATA = "a chunk with other bytes and the crc32c of these"
    GAP = "a chunk that leaves some bytes out"
    OTHER_MODEL = "the manifest of another model"
    DISORDER = "missing tensors that do not ascend"


Fault = Refused | Damage


async def refuse(context: Any, fault: Refused) -> NoReturn:
    """End a call so."""
    if fault.error is None:
        await context.abort(fault.code, "the connection was cut by the conformance scene")
    else:
        status = rpc_status.to_status(to_status(fault.error))
        await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort ends the call")
