"""Which ids are texts, and what a decoder begins with."""

import numpy as np
import pytest

from lm import config, objectives
from lm.errors import UserError
from lm.objectives.prompts import Span, examples
from tests.unit.objectives.common import BOS, RESERVED, V, text, vocabulary


def test_special_tokens_are_none_of_texts():
    special = np.isin(np.arange(V), [*range(RESERVED), 100, 101, V - 1])
    v = vocabulary(special=special)
    np.testing.assert_array_equal(objectives.of_texts(v, V + 3), [*~special, False, False, False])
    assert objectives.of_texts(v, 50).tolist() == (~special[:50]).tolist()


@pytest.mark.parametrize("objective", [config.SpanCorruption(), config.Prefix(), config.Denoise(), config.Masked()])
def test_a_decoder_begins_with_padding_where_there_is_no_bos(objective):
    """T5's tokenizer has none. All else that is asked is the same."""
    span = Span(text(6, 1), np.array([30, 31, 33]), text(5, 2), 3)
    for kind, way in objectives.span_prompts("encoder_decoder", objective).items():
        with_bos = examples(way, kind, span, vocabulary())
        without = examples(way, kind, span, vocabulary(bos_id=None, pad_id=0))
        for one, other in zip(with_bos, without, strict=True):
            assert one.decoder.tokens[0] == BOS and other.decoder.tokens[0] == 0
            np.testing.assert_array_equal(one.decoder.tokens[1:], other.decoder.tokens[1:])
            np.testing.assert_array_equal(one.encoder.tokens, other.encoder.tokens)
    with pytest.raises(UserError, match="the tokenizer has neither bos nor pad, with which a decoder begins"):
        objectives.decoder_start(vocabulary(bos_id=None, pad_id=None))
