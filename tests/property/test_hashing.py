"""XXH64 of generated strings, sliced anywhere, against the xxhash package."""

import pyarrow as pa
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.kernels.hashing import NULL_HASH, hash_columns

short = st.text(max_size=40)
sized = st.builds(
    lambda n, c: (c * n).encode()[:n].decode(errors="ignore"), st.integers(0, 5000), st.characters()
)
safe = st.one_of(st.none(), short, sized).filter(
    lambda v: v is None or not any(0xD800 <= ord(c) < 0xE000 for c in v)
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(safe, max_size=60),
    st.integers(0, 30),
    st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]),
)
def test_strings_hash_as_the_package_does(values, offset, data_type):
    column = pa.array(values, data_type)[offset:]
    expected = [NULL_HASH if v is None else xxhash.xxh64_intdigest(v.encode()) for v in values[offset:]]
    assert hash_columns([column]).tolist() == expected
    assert hash_columns([column.cast(pa.string()).dictionary_encode()]).tolist() == expected
