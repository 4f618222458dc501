"""What engines of texts never write, and how much room their slots have."""

from dataclasses import replace

import numpy as np
import pytest

from lm.config import Learned, Sampling
from lm.errors import UserError
from lm.generation.engine import Engine, Request
from lm.generation.text_engine import engine_for, never_written, rounded, slot_length, text_engine
from tests.engines import made, prompts
from tests.fakes import WordTokenizer, small_model

TOKENIZER = WordTokenizer()


@pytest.mark.parametrize(
    ("size", "most", "room"), [(1, None, 64), (64, None, 64), (65, None, 128), (50, 60, 60), (61, 60, 61), (65, 100, 100)]
)
def test_room_is_rounded_up_but_not_past_what_was_learned(size, most, room):
    assert rounded(size, most) == room


def test_a_slot_has_room_for_a_last_token_that_is_not_read():
    config = small_model("decoder")
    few = replace(config, decoder=replace(config.decoder, position=Learned(40)))
    assert slot_length(config, 38) == 64 and slot_length(few, 38) == 41 == slot_length(few, 41)
    model, params = made()
    with pytest.raises(UserError, match="the texts take 41 positions of the decoder, which has learned 40: ask for fewer"):
        engine_for([Request(np.zeros(20, np.int32), 22)], type(model)(few), params, TOKENIZER, slots=1, ends=())


def test_special_tokens_and_ids_of_no_text_are_never_written():
    size = TOKENIZER.vocab_size + 3
    never = never_written(TOKENIZER, size, (TOKENIZER.eos_id,))
    special = np.flatnonzero(TOKENIZER.special)
    assert never[special[special != TOKENIZER.eos_id]].all() and never[-3:].all() and not never[TOKENIZER.eos_id]
    assert not never[: size - 3][~TOKENIZER.special].any()


def test_an_engine_has_as_many_slots_as_samples_and_ends_where_it_is_told():
    class Other(Engine):
        pass

    model = made()
    hot = Sampling(temperature=50.0, seed=2)
    requests = [Request(p, 40, hot, samples=2) for p in prompts(3, 9)]
    engine = engine_for(requests, *model, TOKENIZER, slots=16, ends=[TOKENIZER.eos_id])
    assert len(engine._texts) == 4 and engine.length == 64
    written = engine.write(requests)
    assert [len(samples) for samples in written] == [2, 2]
    tokens = {w.token for samples in written for some in samples for w in some}
    assert not tokens & ({*np.flatnonzero(TOKENIZER.special).tolist()} - {TOKENIZER.eos_id})
    assert any(some[-1].token == TOKENIZER.eos_id for samples in written for some in samples)
    assert type(text_engine(Other, *model, TOKENIZER, ends=(), slots=1, length=8)) is Other
