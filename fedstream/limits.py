"""Bounds on what is taken from the network, checked before anything is allocated. Sizes in bytes."""

from __future__ import annotations

import re

PROTOCOL_VERSION = 1

MAX_TENSORS = 65_536
"""Tensors in a manifest. An index list of that many stays below 200 KB, far under gRPC's message limit."""

MAX_TENSOR_NAME_BYTES = 256
MAX_AXES = 32
MAX_TENSORS_PER_PART = 1_000
MAX_PART_BYTES = 1 << 20

MAX_MODEL_BYTES = 64 << 30
"""A model's values, unencoded. A declared size beyond it is refused before a byte of body is taken."""

MIN_CHUNK_BYTES = 1
DEFAULT_CHUNK_BYTES = 1 << 20
"""What a chunk is where nobody says how large it may be."""

MAX_CHUNK_BYTES = (4 << 20) - (64 << 10)
"""gRPC's default message limit is 4 MiB and is never raised; 64 KiB are left for framing."""

MAX_METADATA_BYTES = 16 << 10
"""Metadata (headers) of a call. This protocol's own calls have none; proxies add some."""

WINDOW_BYTES = 4 << 20
"""Bytes of an upload that may be in flight beyond `committed_size`: the most that is ever sent twice."""

MAX_ID_BYTES = 64
MAX_REASON_BYTES = 1_024
MAX_METRICS = 64
MAX_UNDEFINED_REASON_BYTES = 128
"""Why a metric has no value. A round's record keeps it of every metric of every site."""

MAX_CLASS_NAMES = 1_000
MAX_CLASS_NAME_BYTES = 128
MAX_PREPROCESSING_BYTES = 1_024
MAX_PLAN_SETTINGS = 64
MAX_PLAN_SETTING_BYTES = 256
MAX_SHOWN_DIFFERENCES = 20

_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and lone surrogates: Python has them for file names that are not UTF-8, UTF-8 has not."""

_UNSHOWN = re.compile(_CONTROL.pattern[:-1] + "\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What of somebody else's words may not reach a terminal or a table: also marks that turn lines and their direction."""


def is_client_name(name: str) -> bool:
    """Whether `name` may name a client: it stands in logs, tables and file names, so it holds nothing else."""
    return _CLIENT_NAME.fullmatch(name) is not None


def is_tensor_name(name: str) -> bool:
    """Whether `name` may name a tensor: 1 to 256 bytes of UTF-8 without control characters."""
    return name != "" and is_plain_text(name, MAX_TENSOR_NAME_BYTES)


def is_plain_text(text: str, max_bytes: int) -> bool:
    """Whether `text` is one line of at most `max_bytes` bytes of UTF-8 without control characters."""
    return not _CONTROL.search(text) and len(text.encode()) <= max_bytes


def clip_reason(text: str, max_bytes: int = MAX_REASON_BYTES) -> str:
    """`text` as it may be shown: one line, control characters replaced, at most `max_bytes` bytes of UTF-8."""
    line = _UNSHOWN.sub(" ", text).strip()
    return line.encode()[:max_bytes].decode(errors="ignore")
