"""Held-out records: what a head gives, which words rank first, what is written; whatever the batch size."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm.data.examples import ExampleBuilder
from lm.data.records import Pair
from lm.data.rows import blank, pack, stack
from lm.evaluation.labelled import HeldOutRecords, Prompts, answer_losses, head_logits, majority
from lm.evaluation.qa_metrics import exact
from lm.losses.cross_entropy import token_losses
from lm.models.transformer import Transformer
from lm.types import Example
from tests.fakes import WORDS, WordTokenizer, small_model, small_params

TOKENIZER = WordTokenizer()
TEXTS = [np.array(ids, np.int32) for ids in ([7, 8], [9, 10, 11], [12], [4, 5, 6, 7], [21])]


def rows(examples, lengths):
    """As a run's rows: blank past the last."""
    return lambda index: stack([pack([examples[i]], lengths) if i < len(examples) else blank(lengths) for i in index])


def builder(architecture, prefix=False):
    return ExampleBuilder(TOKENIZER, architecture, length=6, answer=3, prefix=prefix)


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_a_heads_logits_are_those_of_each_row_alone(architecture):
    m = small_model(architecture, outputs=3)
    b, network, params = builder(architecture), Transformer(m), small_params(m)
    apply = jax.jit(network.apply)
    examples = [b.label_example(text, i % 3) for i, text in enumerate(TEXTS)]
    batch = rows(examples, b.label_lengths)
    found = head_logits(network, params, batch, count=5, batch_size=2)
    assert found.shape == (5, 3) and np.ptp(found) > 0.1
    for i in range(5):
        alone = apply({"params": params}, batch(np.array([i])))[0, 0]
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-5)


def test_each_answer_has_its_nats_and_tokens():
    m = small_model("decoder")
    b, network, params = builder("decoder"), Transformer(m), small_params(m)
    answers = [np.array(ids, np.int32) for ids in ([20, 2], [21, 22, 2], [23, 2], [24, 4, 2], [5, 2])]
    batch = rows([b.answer_example(t, a) for t, a in zip(TEXTS, answers, strict=True)], b.answer_lengths)
    everything: Example = batch(np.arange(5))
    losses = jax.jit(lambda p: token_losses(network.apply({"params": p}, everything), everything.targets))(params)
    each = np.asarray(losses) * everything.weights
    nats, tokens = answer_losses(network, params, batch, count=5, batch_size=2)
    assert nats == pytest.approx(each.sum(axis=1), rel=1e-5) and tokens.tolist() == [len(answer) for answer in answers]


@pytest.mark.parametrize("architecture,prefix", [("decoder", False), ("decoder", True), ("encoder_decoder", False)])
def test_prompts_give_the_same_in_any_batch(architecture, prefix):
    m = small_model(architecture)
    network, params = Transformer(m), jax.tree.map(lambda x: 3 * np.asarray(x), small_params(m))
    b = builder(architecture, prefix)
    prompts = Prompts(b, [b.prompt(text) for text in TEXTS])
    classes = ("yes", "very no")
    found, again = (prompts.class_log_probs(network, params, classes, batch_size=size) for size in (2, 5))
    assert found.shape == (5, 2) and np.ptp(found) > 0.1
    np.testing.assert_allclose(found, again, rtol=1e-5, atol=1e-5)
    few, many = (prompts.answers(network, params, batch_size=size) for size in (2, 5))
    assert few == many and len(few) == 5
    assert all(word in WORDS[3:] for answer in few for word in answer.split())  # neither padding nor marks
    assert max(len(answer.split()) for answer in few) <= 3


def test_majority_is_the_commonest_training_answer():
    assert majority(["a", "b", "b"], ["b", "a", "a", "b"], str.__eq__) == 0.5
    assert majority(["The Senate", "war"], ["senate.", "peace"], exact) == 0.5


def test_several_sources_have_figures_of_their_own():
    class Fixed(HeldOutRecords):
        def values(self, params):
            return {"exact": np.array([1.0, 0.0, 1.0]), "nll": np.array([1.0, 2.0, 3.0])}

    def figures(*sources):
        records = {name: [Pair("w1", "yes")] * 3 for name in sources}
        located = SimpleNamespace(records=lambda index: [(sources[i % len(sources)], 0) for i in index])
        settings = dict(records=records, trained=[Pair("w1", "yes")], classes=(), batch_size=2, mesh=None)
        return Fixed(None, located, np.arange(3), **settings)(None)

    whole = {"exact": pytest.approx(2 / 3), "nll": 2.0, "majority": 1.0, "items": 3.0}
    assert figures("a") == whole
    assert figures("a", "b") == whole | {"a/exact": 1.0, "b/exact": 0.0}
