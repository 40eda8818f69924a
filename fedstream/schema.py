"""What a model looks like without its values: the thing two ends must agree on before any weight moves."""

from __future__ import annotations

import enum
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fedstream import limits
from fedstream.dtypes import DataType

RESERVED_NAME = "__metadata__"
"""The safetensors format keeps notes about the file under this name."""


class TensorRole(enum.Enum):
    """What a tensor is for, so that a policy can treat normalisation statistics by themselves."""

    WEIGHT = "weight"
    STATISTIC = "statistic"
    """A running statistic, such as BatchNorm's moving mean or variance; never trained by gradient."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor's name, element type and shape, and how it takes part.

    `shape` is `()` for a scalar; an axis may have length 0.
    """

    name: str
    dtype: DataType
    shape: tuple[int, ...]
    trainable: bool = True
    role: TensorRole = TensorRole.WEIGHT

    @property
    def num_elements(self) -> int:
        """Product of the axis lengths; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's values, unencoded."""
        return self.num_elements * self.dtype.itemsize

    def flaw(self) -> str | None:
        """Why no tensor may be like this, for people; `None` if one may."""
        is_short = len(self.name) <= _REMEMBERED_NAME and len(self.shape) <= limits.MAX_AXES
        look = _flaw_of if is_short else _flaw_of.__wrapped__
        return look(self.name, self.dtype, self.shape)

    def describe(self) -> str:
        """`block_3_expand/kernel float32 (1, 1, 24, 144) trainable`, as messages to people show it."""
        kind = "trainable" if self.trainable else "frozen"
        if self.role is TensorRole.STATISTIC:
            kind += " statistic"
        return f"{self.name} {self.dtype.name.lower()} {self.shape} {kind}"

    def canonical_line(self) -> bytes:
        """The tensor's line in the canonical description; see `ModelSchema.canonical_bytes`."""
        shape = ",".join(str(length) for length in self.shape)
        trainable = "trainable" if self.trainable else "frozen"
        return f"{self.name}\t{self.dtype.value}\t{shape}\t{trainable}\t{self.role.value}\n".encode()


_REMEMBERED, _REMEMBERED_NAME = 4096, 256
"""How many tensors are remembered as looked at, and up to which length of name: the same ones come with every update,
and what strangers send must not fill memory."""


@functools.lru_cache(_REMEMBERED)
def _flaw_of(name: str, dtype: DataType, shape: tuple[int, ...]) -> str | None:
    if not limits.is_tensor_name(name):
        return f"tensor name {name[:80]!r} is empty, too long or has control characters"
    if name == RESERVED_NAME:
        return f"a tensor cannot be called {RESERVED_NAME}: the safetensors format keeps that name for itself"
    if len(shape) > limits.MAX_AXES:
        return f"tensor {name} has {len(shape)} axes; at most {limits.MAX_AXES} are allowed"
    if any(length < 0 for length in shape):
        return f"tensor {name} has an axis of negative length"
    # An axis of length 0 does not excuse the others: numpy cannot make an array of shape (2**63, 0).
    if math.prod(length or 1 for length in shape) * dtype.itemsize > limits.MAX_MODEL_BYTES:
        return f"tensor {name} is larger than the {limits.MAX_MODEL_BYTES} bytes that a model may have"
    return None


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One place where two schemas disagree; `None` stands for a tensor that side does not have."""

    mine: TensorSpec | None
    yours: TensorSpec | None


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """The tensors of a model, in order. The order is part of the schema.

    Raises:
        ValueError: a name stands twice, a tensor has a flaw (see `TensorSpec.flaw`), or there is too much of them all.
    """

    tensors: tuple[TensorSpec, ...]
    _by_name: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {spec.name: spec for spec in self.tensors}
        if len(by_name) != len(self.tensors):
            seen: set[str] = set()
            twice = next(spec.name for spec in self.tensors if spec.name in seen or seen.add(spec.name))  # type: ignore[func-returns-value]
            raise ValueError(f"tensor name {twice!r} stands twice in the schema; names must be unique")
        flaw = next((flaw for spec in self.tensors if (flaw := spec.flaw())), None)
        if flaw is not None:
            raise ValueError(flaw)
        if len(self) > limits.MAX_TENSORS or self.size_bytes > limits.MAX_MODEL_BYTES:
            bounds = f"at most {limits.MAX_TENSORS} and {limits.MAX_MODEL_BYTES}"
            raise ValueError(f"a model of {len(self)} tensors and {self.size_bytes} bytes is too large: {bounds}")
        object.__setattr__(self, "_by_name", by_name)

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> TensorSpec:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def size_bytes(self) -> int:
        """Bytes of all values, unencoded."""
        return sum(spec.size_bytes for spec in self.tensors)

    def canonical_bytes(self) -> bytes:
        """The byte form that is hashed: a header line, then one tab-separated line per tensor, in order.

        Names cannot hold control characters (see `fedstream.limits`), so the form is unambiguous.
        """
        return b"fedstream schema v1\n" + b"".join(spec.canonical_line() for spec in self.tensors)

    def digest(self) -> bytes:
        """sha256 of `canonical_bytes`, 32 bytes."""
        return hashlib.sha256(self.canonical_bytes()).digest()

    def differences(self, yours: ModelSchema) -> list[TensorDifference]:
        """Where `yours` differs from this schema: by name first, then, if only the order differs, by place."""
        by_name = list(_differences_by_name(self, yours))
        if by_name or self.tensors == yours.tensors:
            return by_name
        pairs = zip(self.tensors, yours.tensors, strict=True)
        return [TensorDifference(mine, other) for mine, other in pairs if mine != other]


def _differences_by_name(mine: ModelSchema, yours: ModelSchema) -> Iterable[TensorDifference]:
    for spec in mine:
        other = yours._by_name.get(spec.name)
        if other != spec:
            yield TensorDifference(spec, other)
    for spec in yours:
        if spec.name not in mine:
            yield TensorDifference(None, spec)


@dataclass(frozen=True, slots=True)
class TaskMeaning:
    """What a task's outputs and inputs mean, so that no site flips labels or rescales images in silence.

    `class_names` are in label order (label 0 first). `preprocessing` is a short stable description of what happens to
    an image before the model sees it, such as `rgb 224x224 bilinear; x / 127.5 - 1`.
    """

    class_names: tuple[str, ...]
    positive_class: str
    preprocessing: str

    def canonical_bytes(self) -> bytes:
        """The byte form that is hashed: a header line, then one line per field, class names tab-separated."""
        lines = ("fedstream meaning v1", "\t".join(self.class_names), self.positive_class, self.preprocessing)
        return "".join(f"{line}\n" for line in lines).encode()

    def digest(self) -> bytes:
        """sha256 of `canonical_bytes`, 32 bytes."""
        return hashlib.sha256(self.canonical_bytes()).digest()
