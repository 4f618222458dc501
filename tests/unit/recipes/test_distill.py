"""A distillation's task: what it is made of, what it costs, and students begun with some layers of their teacher."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from lm import config, flops
from lm.config import Attention, Block, Distill, Head, Mlp, Model, Rope, Stack
from lm.errors import UserError
from lm.generation.tools import Answer
from lm.losses.distill import TopK, cosine_distance, divergence
from lm.models.transformer import Transformer, abstract_params, stack_groups
from lm.objectives import Lengths
from lm.recipes import distill, on_policy, taught
from lm.recipes.rollout import gathered
from lm.training.ledger import of_a_row
from lm.training.mapped import Thinned, thinned_model
from lm.types import Example, TokenStream
from tests.fakes import small_params

V, D, B, T = 32, 16, 2, 8
BLOCK = Block(Attention(2), Mlp(32))


def decoder(width=D, layers=2, **stack):
    return Model(V, width, decoder=Stack(layers, {"L": BLOCK}, position=Rope(), **stack), head=Head(bias=True))


def batch():
    """Two rows, the second with two documents and padding."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(1, V, (2, B, T)).astype(np.int32)
    segments = np.array([[1] * T, [1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
    positions = np.array([np.arange(T), [0, 1, 2, 0, 1, 2, 0, 0]], np.int32)
    return Example(None, TokenStream(tokens, positions, segments), targets, (segments > 0).astype(np.float32))


def made(student, teacher, objective=None, **settings):
    run = config.Run(student, objective=objective or config.Causal(), recipe=Distill("there", **settings))
    return distill.task(run, SimpleNamespace(model=teacher, params=None))


SETTINGS = dict(logits=0.7, labels=0.2, hidden=0.3, relations=0.4, temperature=2.0, beta=0.25)


def test_the_loss_is_the_weighted_sum_of_its_parts():
    student, teacher = decoder(layers=1), decoder(layers=2)
    what, example = made(student, teacher, **SETTINGS), batch()

    @jax.jit
    def everything(own, theirs):
        apply = lambda m, p, method: Transformer(m).apply({"params": p}, example, method=method)
        both = lambda method: [apply(m, p, method) for m, p in ((student, own), (teacher, theirs))]
        scores = what.scores(own, theirs, example)
        return what.loss(own, theirs, example, rngs=None), scores, both("__call__"), both("hidden")

    (mean, parts), held_out, logits, hidden = everything(small_params(student, 0), small_params(teacher, 1))
    real = example.weights
    average = lambda x: float((x * real).sum() / real.sum())
    apart = average(divergence(*logits, beta=0.25, temperature=2.0))
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[0])), example.targets[..., None], -1)[..., 0]
    expected = {"divergence": apart, "cross_entropy": -average(chosen), "hidden": average(cosine_distance(*hidden))}
    for name, value in expected.items():
        assert float(parts[name].mean) == pytest.approx(value, rel=1e-4)
    names = dict(logits="divergence", labels="cross_entropy", hidden="hidden", relations="relations")
    total = sum(SETTINGS[weight] * float(parts[name].mean) for weight, name in names.items())
    assert float(mean.mean) == pytest.approx(total, rel=1e-5) and float(mean.weight) == real.sum()
    assert float(held_out["loss"].mean) == pytest.approx(expected["cross_entropy"], rel=1e-4)
    assert float(held_out["divergence"].mean) == pytest.approx(apart, rel=1e-4)


def test_what_a_scanned_stack_hands_out_is_that_of_the_unrolled_one():
    """Loss and gradient, with student and teacher scanned, the former with its activations computed anew."""
    student, teacher, example = decoder(), decoder(width=24), batch()
    settings = SETTINGS | dict(hidden=0.0)
    own, theirs = small_params(student, 0), small_params(teacher, 1)
    plain = made(student, teacher, **settings)
    scanned = made(decoder(scan=True, remat="full"), decoder(width=24, scan=True), **settings)
    loss = lambda what: jax.jit(jax.value_and_grad(lambda p, f: what.loss(p, f, example, rngs=None)[0].total))
    value, gradient = loss(plain)(own, theirs)
    other, stacked = loss(scanned)(stack_groups(own), stack_groups(theirs))
    assert float(value) == pytest.approx(float(other), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), stack_groups(gradient), stacked)


def test_masked_diffusion_gives_the_mask_no_probability_in_either_model():
    encoder = Model(V, D, encoder=Stack(1, {"L": BLOCK}, position=Rope()))
    rows, where = batch().decoder, np.array([[1, 3], [0, 4]], np.int32)
    tokens = rows.tokens.copy()
    np.put_along_axis(tokens, where, 4, axis=1)
    targets, weights = np.full((B, 2), 7, np.int32), np.array([[1, 2.5], [1, 0]], np.float32)
    example = Example(rows.replace(tokens=tokens), None, targets, weights, where)
    what = made(encoder, encoder, config.MaskedDiffusion(), logits=1.0, labels=0.0)
    params = [small_params(encoder, seed) for seed in range(2)]
    apply = lambda p: Transformer(encoder).apply({"params": p}, example)
    (got, _), logits = jax.jit(lambda *p: (what.loss(*p, example, rngs=None), [apply(q) for q in p]))(*params)
    without = [np.delete(np.asarray(x), 4, axis=-1) for x in logits]
    np.testing.assert_allclose(got.total, (weights * divergence(*without)).sum(), rtol=1e-4)


def test_a_step_costs_three_passes_of_the_student_and_one_of_the_teacher():
    """As many FLOPs as XLA counts, and as the ledger does; twice as many of the teacher's would be seen."""
    student, teacher = (Model(512, w, decoder=Stack(2, {"L": replace(BLOCK, ffn=Mlp(4 * w))})) for w in (64, 128))
    what, lengths = made(student, teacher, logits=1.0, labels=0.0), Lengths(None, 64)
    stream = TokenStream(*(np.ones((B, 64), np.int32) for _ in range(3)))
    example = Example(None, stream, stream.tokens, np.ones((B, 64), np.float32))
    params, frozen = abstract_params(student), abstract_params(teacher)
    gradient = jax.grad(lambda p, f, e: what.loss(p, f, e, rngs=None)[0].total)
    xla = jax.jit(gradient).lower(params, frozen, example).cost_analysis()["flops"]
    count = lambda passes: [flops.count(m, batch=B, decoder=64, predicted=p, causal_share=1.0) for m, p in passes]
    (own,), (theirs,) = count(what.passes(lengths)), count(what.reads(lengths))
    assert own.train + theirs.forward == pytest.approx(xla, rel=0.05) and theirs.forward > 0.5 * own.train
    rows = SimpleNamespace(rows=lambda index: example, lengths=lengths, bytes_a_row=1.0)
    alone = replace(what, reads=lambda lengths: [])
    teachers = of_a_row(what, rows, B).flops - of_a_row(alone, rows, B).flops
    assert teachers == pytest.approx(flops.of_rows(teacher, example).forward / B)


# ----------------------------------------------------------------------------------- begun with some layers of another


class Saved:
    """A saved model of four layers, of two kinds, whose arrays have the number of their layer in them."""

    folder = "there"

    def __init__(self, scan):
        kinds = {"A": BLOCK, "B": Block(Attention(2), Mlp(48))}
        self.model = Model(V, D, decoder=Stack(4, kinds, pattern="AB", scan=scan), head=Head())

    def params(self):
        def filled(path, x):
            if path[1] == "groups":
                layer = np.arange(2) * 2 + int(path[2][-1])
                return np.broadcast_to(layer.reshape(2, *[1] * (len(x.shape) - 1)), x.shape).astype(x.dtype)
            layer = 2 * int(path[1][-1]) + int(path[2][-1]) if path[1].startswith("group_") else 9
            return np.full(x.shape, layer, x.dtype)

        return unflatten_dict({path: filled(path, x) for path, x in flatten_dict(abstract_params(self.model)).items()})


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("taken", [(0, 3), (2, 1), (2, 3, 0, 1), (0, 1, 2, 3)])
def test_a_student_begins_with_the_layers_that_are_named(scan, taken):
    thin = Thinned(Saved(scan), {"decoder": taken})
    assert thin.model.decoder.num_layers == len(taken) and thin.folder == "there"
    found = flatten_dict(thin.params(abstract_params(thin.model, jax.devices()[0])))
    for path, x in found.items():
        if not path[1].startswith("group"):
            assert np.all(np.asarray(x) == 9)
        elif scan:
            assert [int(x[i].reshape(-1)[0]) for i in range(len(x))] == list(taken[int(path[2][-1]) :: 2])
        else:
            assert np.all(np.asarray(x) == taken[2 * int(path[1][-1]) + int(path[2][-1])])


def test_layers_that_a_model_has_not_or_in_another_order_are_refused():
    model = Saved(False).model
    for layers, words in (
        ({"decoder": (0, 4)}, "layers 0 to 3"),
        ({"decoder": ()}, "layers 0 to 3"),
        ({"decoder": (0, 2)}, "repeat the kinds 'AB'"),
        ({"encoder": (0,)}, "has none"),
    ):
        with pytest.raises(UserError, match=words):
            thinned_model(model, layers)


# ---------------------------------------------------------------------------------------------- the student's own texts


def test_an_on_policy_loss_is_the_sum_of_what_both_predict_after_each_prefix(beta=0.5):
    """The distributions over each written token, one prefix at a time: a missing shift gives another number."""
    student, teacher = decoder(), decoder(width=24)
    prompt, answers = np.array([1, 7, 8], np.int32), ([9, 2], [5, 6, 2])
    written = [Answer(None, 0, ids, [True] * len(ids), [-1.0] * len(ids)) for ids in answers]
    lengths = Lengths(None, T, predicted=3)
    rollouts = gathered([(None, prompt)] * 2, written, np.array([1.0, 0.0]), lengths, ends=(2,))
    run = config.Run(student, recipe=config.OnPolicy(teacher="there", beta=beta))
    what = on_policy.task(run, SimpleNamespace(model=teacher, params=None))
    params = small_params(student, 0), small_params(teacher, 1)
    mean, more = jax.jit(lambda p, f: what.loss(p, f, rollouts, rngs=None))(*params)
    prefixes = [np.concatenate([prompt, answer[:n]]) for answer in answers for n in range(len(answer))]
    tokens = np.stack([np.pad(prefix, (0, T - len(prefix))) for prefix in prefixes]).astype(np.int32)
    real = np.stack([np.arange(T) < len(prefix) for prefix in prefixes]).astype(np.int32)
    rows = Example(None, TokenStream(tokens, np.arange(T, dtype=np.int32) * real, real), None, None)
    last = lambda m, p: Transformer(m).apply({"params": p}, rows)[np.arange(5), real.sum(1) - 1]
    expected = jax.jit(lambda p, f: divergence(last(student, p), last(teacher, f), beta=beta).sum())(*params)
    assert float(mean.total) == pytest.approx(float(expected), rel=1e-4) and float(mean.weight) == 5
    assert float(more["reward"].mean) == 0.5


def test_two_runs_at_once_ask_a_teacher_once(tmp_path):
    recipe, train = Distill("there", top_k=2, teacher_sha256="0"), config.Train(steps=3, batch_size=2)
    run = config.Run(decoder(), data=config.Data(cache=str(tmp_path / "cache")), recipe=recipe, train=train)
    rows, asked, found = SimpleNamespace(rows=lambda index: {"tokens": np.repeat(index[:, None], T, 1)}), [], []
    known = lambda index: TopK(np.zeros((len(index), T, 3), np.float32), np.zeros((len(index), T, 2), np.int32))
    predict = lambda: asked.append(time.sleep(0.2)) or known  # long enough for all to have found nothing
    open_it = lambda: found.append(taught.kept(run, rows, predict, fingerprint="1", progress=False))
    threads = [threading.Thread(target=open_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(asked) == 1
    assert {kept.folder for kept in found} == {*(tmp_path / "cache").glob("teacher-*")}
