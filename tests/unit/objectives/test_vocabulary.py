"""Which ids are texts."""

import numpy as np

from lm import objectives
from tests.unit.objectives.common import RESERVED, V, vocabulary


def test_special_tokens_are_none_of_texts():
    special = np.isin(np.arange(V), [*range(RESERVED), 100, 101, V - 1])
    v = vocabulary(special=special)
    np.testing.assert_array_equal(objectives.of_texts(v, V + 3), [*~special, False, False, False])
    assert objectives.of_texts(v, 50).tolist() == (~special[:50]).tolist()
