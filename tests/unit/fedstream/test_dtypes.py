"""Element types: their names, widths and numpy's words for them. A moment."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fedstream.dtypes import DataType

pytestmark = pytest.mark.numpy_task

TABLE = {
    DataType.BOOL: ("BOOL", "bool", 1, False),
    DataType.INT8: ("I8", "int8", 1, False),
    DataType.INT16: ("I16", "int16", 2, False),
    DataType.INT32: ("I32", "int32", 4, False),
    DataType.INT64: ("I64", "int64", 8, False),
    DataType.UINT8: ("U8", "uint8", 1, False),
    DataType.UINT16: ("U16", "uint16", 2, False),
    DataType.UINT32: ("U32", "uint32", 4, False),
    DataType.UINT64: ("U64", "uint64", 8, False),
    DataType.FLOAT16: ("F16", "float16", 2, True),
    DataType.BFLOAT16: ("BF16", "bfloat16", 2, True),
    DataType.FLOAT32: ("F32", "float32", 4, True),
    DataType.FLOAT64: ("F64", "float64", 8, True),
}


def test_data_types_as_a_table_are_what_the_contract_says() -> None:
    assert {one: (one.value, one.numpy.name, one.itemsize, one.is_floating) for one in DataType} == TABLE


@pytest.mark.parametrize("dtype", DataType)
def test_data_type_of_its_own_numpy_dtype_in_either_byte_order_is_itself(dtype: DataType) -> None:
    assert DataType.of(dtype.numpy) is dtype
    assert DataType.of(dtype.numpy.newbyteorder()) is dtype


@pytest.mark.parametrize("dtype", DataType)
def test_values_on_the_wire_are_little_endian(dtype: DataType) -> None:
    assert np.ones(1, dtype.numpy).tobytes() == np.ones(1, dtype.numpy.newbyteorder("<")).tobytes()
    if dtype is DataType.INT32:
        assert np.ones(1, dtype.numpy).tobytes() == b"\x01\x00\x00\x00"


@pytest.mark.parametrize(
    "dtype", ["complex64", "object", "U4", "S3", "datetime64[s]", ml_dtypes.float8_e4m3fn, ml_dtypes.int4]
)
def test_data_type_of_a_dtype_without_a_place_on_the_wire_is_refused_by_name(dtype: object) -> None:
    with pytest.raises(
        ValueError, match=r"cannot travel; use one of bool, int8, .*bfloat16, float32, float64"
    ) as caught:
        DataType.of(np.dtype(dtype))  # type: ignore[call-overload]
    assert str(np.dtype(dtype)) in str(caught.value)  # type: ignore[call-overload]
