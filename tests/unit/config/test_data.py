"""Sections of the data: what a kind of source can hold, and what a recipe can read."""

import pytest

from lm import config
from lm.errors import UserError

MODEL = config.Model(100, 16, decoder=config.Stack(1, {"L": config.Block(config.Attention(2), config.Mlp(16))}))


@pytest.mark.parametrize(
    "kind,format", [("text", "pair"), ("package", "messages"), ("package", "feedback"), ("cloze", "labelled")]
)
def test_kinds_without_records_of_a_format_are_refused(kind, format):
    with pytest.raises(UserError, match=rf"format={format} of x: a source of kind {kind} has format="):
        config.Source(kind=kind, path="x", format=format)


@pytest.mark.parametrize(
    "kind,format,what",
    [("package", "labelled", "a set's name"), ("cloze", "pair", "'spans' or"), ("tfds", "text", "a builder's name")],
)
def test_a_name_is_no_url(kind, format, what):
    with pytest.raises(UserError, match=rf"path=gs://a/b is not read, {what}"):
        config.Source(kind=kind, path="gs://a/b", format=format)
    config.Source(kind="jsonl", path="gs://a/b", format="labelled")


def test_what_a_held_out_source_or_a_head_does_not_use_is_refused():
    with pytest.raises(UserError, match="weight=2 of sotu: with use=holdout no row is trained on; leave it out"):
        config.Source(use="holdout", weight=2.0)
    with pytest.raises(UserError, match="recipe.compare=symbols is about written answers, and how=head writes none"):
        config.Finetune(compare="symbols")
    config.Finetune("text", compare="symbols")


def test_pretraining_reads_no_records():
    data = config.Data(sources={"mine": config.Source(kind="jsonl", path="x", format="pair")})
    with pytest.raises(UserError, match="data.sources.mine has records of format=pair, and pretraining reads texts"):
        config.Run(MODEL, data)
    config.Run(MODEL, data, recipe=config.Finetune("text", 16, 8))
