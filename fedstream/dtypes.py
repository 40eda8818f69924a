"""Element types a tensor may have on the wire, and what numpy calls them."""

from __future__ import annotations

import enum

import ml_dtypes
import numpy as np


class DataType(enum.Enum):
    """An element type. The value is its name in canonical descriptions and in safetensors headers.

    Elements are little-endian; a boolean is one byte, 0 or 1.
    """

    BOOL = "BOOL"
    INT8 = "I8"
    INT16 = "I16"
    INT32 = "I32"
    INT64 = "I64"
    UINT8 = "U8"
    UINT16 = "U16"
    UINT32 = "U32"
    UINT64 = "U64"
    FLOAT16 = "F16"
    BFLOAT16 = "BF16"
    FLOAT32 = "F32"
    FLOAT64 = "F64"

    @property
    def numpy(self) -> np.dtype:
        """The little-endian numpy dtype."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize

    @property
    def is_floating(self) -> bool:
        """Whether values of this type are averaged; the others keep the base model's value."""
        return self in (DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT32, DataType.FLOAT64)

    @classmethod
    def of(cls, dtype: np.dtype) -> DataType:
        """The element type of a numpy dtype, of either byte order.

        Raises:
            ValueError: the dtype has no place on the wire (complex, object, string, ...).
        """
        try:
            return _BY_NUMPY[np.dtype(dtype).newbyteorder("<")]
        except KeyError:
            supported = ", ".join(member.name.lower() for member in cls)
            raise ValueError(f"a tensor of dtype {dtype} cannot travel; use one of {supported}") from None


_NUMPY: dict[DataType, np.dtype] = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.INT8: np.dtype("<i1"),
    DataType.INT16: np.dtype("<i2"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.UINT8: np.dtype("<u1"),
    DataType.UINT16: np.dtype("<u2"),
    DataType.UINT32: np.dtype("<u4"),
    DataType.UINT64: np.dtype("<u8"),
    DataType.FLOAT16: np.dtype("<f2"),
    DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    DataType.FLOAT32: np.dtype("<f4"),
    DataType.FLOAT64: np.dtype("<f8"),
}
_BY_NUMPY = {numpy_dtype: member for member, numpy_dtype in _NUMPY.items()}
