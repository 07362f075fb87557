# SPDX-License-Identifier: Apache-2.0
"""Plans of several batch sizes in one file: what went in comes out, or an error."""

from hypothesis import example, given
from hypothesis import strategies as st
import pytest

from trt_segmentation.engines.tensorrt.plans import pack, unpack
from trt_segmentation.errors import InputError

OTHERS = st.dictionaries(st.integers(2, 16), st.binary(min_size=1, max_size=50), max_size=4)


@example(first=b'trt_segmentation plans\n', others={})
@given(first=st.binary(min_size=1, max_size=50), others=OTHERS)
def test_what_went_in_comes_out_ascending(first, others):
    plans = {1: first, **others}
    found = unpack(pack(plans))
    assert found == plans and list(found) == sorted(plans)


def test_a_plan_for_one_image_is_the_library_s_own_file():
    assert pack({1: b'a plan'}) == b'a plan' and unpack(b'a plan') == {1: b'a plan'}


@pytest.mark.parametrize('change', [
    lambda data: data[:-1], lambda data: data + b'x', lambda data: data.replace(b'"2"', b'"x"'),
    lambda data: data.replace(b'{', b'['), lambda data: data[:data.index(b'{')],
    lambda data: data.replace(b'"1"', b'"3"'),
])
def test_damage_is_an_error(change):
    data = pack({1: b'first', 2: b'second'})
    with pytest.raises(InputError, match='the plan is damaged'):
        unpack(change(data))
