"""Type names: what may be written, and that what is written down reads back."""

from __future__ import annotations

import pyarrow as pa
import pytest

from cortex.errors import ColumnError, KeyTypeError, UsageError, ValueTypeError
from cortex.job.output_types import OutputTypes
from cortex.job.types import KNOWN_NAMES, arrow_type, check_type, type_class, type_name
from cortex.kernels.wider import wider_type

TYPES = [
    pa.null(), pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(),
    pa.uint32(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.large_string(),
    pa.string_view(),
    pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(7), pa.date32(), pa.date64(), pa.time32("s"),
    pa.time32("ms"), pa.time64("us"), pa.time64("ns"), pa.duration("s"), pa.duration("ns"), pa.timestamp("s"),
    pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.timestamp("us", "Europe/Paris"),
    pa.timestamp("ms", "+02:00"),
    pa.decimal128(12, 2), pa.decimal128(38, 0), pa.decimal256(50, 10), pa.decimal128(5, -2),
    pa.list_(pa.int64()), pa.struct([]),
    pa.struct([("f0", pa.string()), ("a b", pa.struct([("x,`y", pa.decimal128(9, 3))]))]),
]  # fmt: skip

WIDER = [
    pa.struct([("f0", pa.null()), ("a b", pa.struct([("x,`y", pa.decimal128(9, 3))]))]),
    pa.struct([("f0", pa.string()), ("a b", pa.null())]),
    pa.struct([("f0", pa.null()), ("a b", pa.struct([("x,`y", pa.null())]))]),
    pa.struct([("f0", pa.timestamp("us", "+02:00"))]),
    pa.struct([("f0", pa.null())]),
    pa.list_(pa.null()),
]


@pytest.mark.parametrize("arrow", TYPES, ids=str)
def test_what_is_written_reads_back(arrow: pa.DataType) -> None:
    assert arrow_type(type_name(arrow)) == arrow


@pytest.mark.parametrize("name", KNOWN_NAMES)
def test_every_known_name_is_a_type(name: str) -> None:
    assert type_class(arrow_type(name)) != "other"
    check_type(name)
    check_type(f" {name.upper()} " if "[" not in name else name)


@pytest.mark.parametrize(
    ("name", "arrow"),
    [
        ("str", pa.string()),
        (" Int64 ", pa.int64()),
        ("float", pa.float64()),
        ("date", pa.date32()),
        ("timestamp", pa.timestamp("us")),
        ("timestamp[ms,tz=UTC]", pa.timestamp("ms", "UTC")),
        ("decimal(12,2)", pa.decimal128(12, 2)),
        ("Decimal( 12 )", pa.decimal128(12, 0)),
        ("numeric(3, 3)", pa.decimal128(3, 3)),
        ("list<struct<a: int>>", pa.list_(pa.struct([("a", pa.int64())]))),
    ],
)
def test_short_forms(name: str, arrow: pa.DataType) -> None:
    assert arrow_type(name) == arrow


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("strng", "did you mean string?"),
        ("", "not a column type"),
        ("timestamp[xs]", "s ms us ns"),
        ("time64[s]", "us ns"),
        ("time64[us, tz=UTC]", "only a timestamp"),
        ("timestamp[us, tz=Europe/Berln]", "did you mean Europe/Berlin?"),
        ("timestamp[us, tz=Mars/Phobos]", "no time zone 'Mars/Phobos'"),
        ("timestamp[us, tz=../etc/passwd]", "an offset such as +02:00"),
        ("timestamp[us, tz=Europe]", "no time zone 'Europe'"),
        ("timestamp[us, tz=+0200]", "an offset such as +02:00"),
        ("decimal(39,2)", "1 to 38"),
        ("decimal(0)", "1 to 38"),
        ("decimal(2,3)", "do not fit"),
        ("struct<a>", "no field"),
        ("list<strng>", "in 'list<strng>'"),
        ("list<" * 20 + "int64" + ">" * 20, "nested"),
        ("map<string, int64>", "not a column type"),
        ("getattr", "not a column type"),
    ],
)
def test_what_is_no_type(name: str, said: str) -> None:
    for read in (arrow_type, check_type):
        with pytest.raises(UsageError) as caught:
            read(name)
        assert said in str(caught.value)


def test_a_type_no_job_can_use_still_has_a_name() -> None:
    odd = pa.map_(pa.string(), pa.int64())
    assert type_class(odd) == "other"
    with pytest.raises(UsageError):
        arrow_type(type_name(odd))


@pytest.mark.parametrize("first", [*TYPES, *WIDER], ids=str)
def test_types_agree_by_name_just_when_they_agree(first: pa.DataType) -> None:
    """What the scheduler says of names is what merges and writers say of the types."""
    for second in (*TYPES, *WIDER):
        wider = wider_type(first, second)
        one, other = (OutputTypes(columns=(("c", type_name(kind)),)) for kind in (first, second))
        if wider is None:
            with pytest.raises(ColumnError, match="'c'"):
                one.joined(other)
        else:
            assert one.joined(other).columns == (("c", type_name(wider)),)


def test_what_rows_of_two_tasks_are_together() -> None:
    nothing, ints = OutputTypes(), OutputTypes("int", "int")
    for types in (ints, OutputTypes("none", "none"), OutputTypes("int"), nothing):
        assert ints.joined(types) == types.joined(ints) == ints
    assert OutputTypes("none", "none").joined(OutputTypes("none")) == OutputTypes("none", "none")
    for other in (OutputTypes("str", "int"), OutputTypes("tuple(int)", "int")):
        with pytest.raises(KeyTypeError, match="int and "):
            ints.joined(other)
    with pytest.raises(ValueTypeError, match="float and int"):
        ints.joined(OutputTypes("int", "float"))
    table = OutputTypes(columns=(("a", "int64"), ("b", "null")))
    assert table.joined(nothing) == nothing.joined(table) == table
    for names in (("b", "a"), ("a",), ("a", "b", "c")):
        with pytest.raises(ColumnError, match="different columns"):
            table.joined(OutputTypes(columns=tuple((name, "int64") for name in names)))
