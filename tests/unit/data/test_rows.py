"""Row i is a function of (seed, i) alone; every token has its turn; documents in a row do not see each other."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import config, objectives
from lm.config import Attention, Block, Buckets, Learned, Mlp, Model, Rope, Stack
from lm.data.rows import Rows, blank, fill, fitted, mixture, mixture_weights, pack, permute, shares, stack
from lm.errors import UserError
from lm.losses.cross_entropy import token_losses
from lm.models.transformer import Transformer
from lm.recipes.pretrain import rows_of
from lm.types import WORD, Example, TokenStream
from tests.fakes import MemoryStore

BOS, EOS, MASK, RESERVED, V = 1, 2, 3, 20, 1500
VOCABULARY = SimpleNamespace(
    vocab_size=V,
    bos_id=BOS,
    eos_id=EOS,
    mask_id=MASK,
    sentinel_ids=tuple(range(4, 20)),
    special=np.arange(V) < RESERVED,
    boundaries=lambda tokens: np.full(len(tokens), WORD),
    sentence_ends=lambda tokens: tokens % 7 == 0,
)


def store_of(lengths, seed=0, unique=False):
    """Documents that each begin with bos and end with eos."""
    total, ends = int(sum(lengths)), np.cumsum(lengths)
    tokens = np.arange(total) + RESERVED if unique else np.random.default_rng(seed).integers(RESERVED, V, total)
    tokens[ends - lengths], tokens[ends - 1] = BOS, EOS
    return MemoryStore(tokens, lengths)


def documents(n=40, seed=0, low=2, high=60):
    return np.random.default_rng(seed).integers(low, high, n)


def objective(c=None, architecture="decoder", length=32):
    data = config.Data(encoder_length=length, decoder_length=length)
    return objectives.build(c or config.Causal(), architecture, data, VOCABULARY)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


MIXTURES = {
    "decoder": (config.Causal(), config.FillInMiddle(), config.SpanCorruption()),
    "encoder": (config.Masked(), config.NextSentence()),
    "encoder_decoder": (config.Prefix(), config.SpanCorruption(0.5, 6.0), config.SpanCorruption(), config.Denoise()),
}


def suiting(c, architecture):
    if c is not config.Mixture:
        return c(**REQUIRED.get(c, {})), architecture
    parts = {f"p{i}": config.Part(part, mode=f"m{i}" if i else None) for i, part in enumerate(MIXTURES[architecture])}
    return config.Mixture(parts), architecture


GENERATOR = Model(V, 16, encoder=Stack(1, {"L": Block(Attention(2), Mlp(16))}))
REQUIRED: dict[type, dict] = {config.ReplacedTokens: dict(generator=GENERATOR)}
SUITING = [suiting(c, architecture) for architecture, c in objectives.pairs()]
ids = lambda value: value if isinstance(value, str) else type(value).__name__

# -------------------------------------------------------------------------------------------------- index arithmetic


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 1024, 1025, 4097])
@pytest.mark.parametrize("key", [(0, 0, 0), (1, 2, 3)])
def test_permute_is_a_permutation(size, key):
    out = permute(np.arange(size), size, key)
    np.testing.assert_array_equal(np.sort(out), np.arange(size))
    np.testing.assert_array_equal(out[::-1], permute(np.arange(size)[::-1], size, key))  # each index by itself


def test_permute_mixes_and_depends_on_the_key():
    size = 5000
    a, b = (permute(np.arange(size), size, (0, 0, e)) for e in range(2))
    for x, y in ((a, np.arange(size)), (a, b), (a[1:], a[:-1])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.05
    assert (a == b).mean() < 0.01


def test_permute_of_a_trillion():
    index = np.arange(0, 10**12, 10**10)
    out = permute(index, 10**12, (0,))
    assert len(np.unique(out)) == len(index) and out.min() >= 0 and out.max() < 10**12


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [3, 1], [0.7, 0.2, 0.1], [5, 2, 2, 1], [0, 3, 1]])
def test_mixture_has_the_shares_everywhere(weights):
    source, number = mixture(np.arange(3000), weights)
    expected = np.array(weights) / sum(weights)
    for stretch in (source, source[:100], source[1234:1334]):
        np.testing.assert_allclose(np.bincount(stretch, minlength=len(weights)) / len(stretch), expected, atol=0.03)
    for s in range(len(weights)):  # the rows of a source in their order, none left out
        np.testing.assert_array_equal(number[source == s], np.arange((source == s).sum()))


def test_a_source_of_no_weight_is_not_read_and_weights_that_are_no_shares_are_refused():
    assert set(mixture(np.arange(3000), [1, 0])[0]) == {0}
    for weights in ([2, -1], [0, 0]):
        with pytest.raises(UserError, match=r"data.sources.\*.weight are .*none below 0, not all 0"):
            mixture(np.arange(3), weights)


@pytest.mark.parametrize(
    "temperature,expected", [(None, (3 / 4, 1 / 4)), (1.0, (3 / 7, 4 / 7)), (2.0, (3 / 5, 2 / 5)), (1e9, (3 / 4, 1 / 4))]
)
def test_a_temperature_weighs_sources_by_their_sizes(temperature, expected):
    """Weight times size to the power of 1 / temperature: by size at 1, as the weights say where it is infinite."""
    sizes = {"small": 1000, "large": 4000}
    sources = {"small": config.Source(weight=3.0), "large": config.Source(path="stdlib")}
    found = mixture_weights(config.Data(sources, temperature=temperature), sizes)
    np.testing.assert_allclose(shares([*found.values()]), expected, rtol=1e-6)


def test_mixture_starts_anywhere():
    source, number = mixture(np.arange(2000), [0.6, 0.4])
    later = mixture(np.arange(777, 2000), [0.6, 0.4])
    same((source[777:], number[777:]), later)


# ------------------------------------------------------------------------------------------------- the one position


@pytest.mark.parametrize("c,architecture", SUITING, ids=ids)
def test_rows_depend_on_seed_and_index_alone(c, architecture):
    """Batches made whole, by slices as 2 and 4 processes make them, and by another object started in mid-epoch."""
    stores = {"a": store_of(documents()), "b": store_of(documents(seed=1), seed=1)}
    make = lambda: Rows(stores, objective(c, architecture), 7, {"a": 3.0, "b": 1.0})
    rows, size = make(), 8
    epoch = rows.windows(stores["a"])
    for step in (0, 1, epoch // size // 2, 5 * epoch // size + 1):
        index = np.arange(step * size, (step + 1) * size)
        whole = rows.rows(index)
        for processes in (2, 4):
            parts = [make().rows(part) for part in np.split(index, processes)]
            same(whole, jax.tree.map(lambda *xs: np.concatenate(xs), *parts))
        same(whole, jax.tree.map(lambda x: x[::-1], make().rows(index[::-1])))
    other = Rows(stores, rows.objective, 8, rows.weights).rows(np.arange(size))
    mine = rows.rows(np.arange(size))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (other, mine)), strict=True))


def windows_read(rows, index):
    """First tokens of rows over a store of unique tokens, which tell where their windows began."""
    return rows.rows(index).decoder.tokens[:, 0]


def test_an_epoch_reads_each_window_once():
    store = store_of([1500], unique=True)
    rows = Rows({"a": store}, objective(), 0)
    n = rows.windows(store)
    epochs = [windows_read(rows, np.arange(e * n, (e + 1) * n)) for e in range(3)]
    for starts in epochs:
        starts = np.sort(starts)
        assert len(np.unique(starts)) == n and (np.diff(starts[1:]) == 32).all()
    assert len({int(np.sort(e)[1]) for e in epochs}) > 1  # each with its own offset
    assert (epochs[0] != epochs[1]).any()
    covered = np.concatenate([s + np.arange(32) for s in epochs[0][:, None]])
    assert len(np.unique(covered)) > 1500 - 2 * 33


@pytest.mark.parametrize("dynamic", [True, False])
def test_static_masks_stay_and_dynamic_ones_change(dynamic):
    store = store_of([2000])
    rows = Rows({"a": store}, objective(config.Masked(dynamic=dynamic), "encoder"), 0)
    n = rows.windows(store)
    seen = []
    for e in range(2):
        batch = rows.rows(np.arange(e * n, (e + 1) * n))
        seen.append({tuple(r) for r in np.concatenate([batch.encoder.tokens, batch.where, batch.targets], axis=1)})
    assert len(seen[0]) == n
    assert (seen[0] == seen[1]) == (not dynamic)
    assert not dynamic or not seen[0] & seen[1]


# ---------------------------------------------------------------------------------------------------- held-out rows


@pytest.mark.parametrize("lengths", [[2], [9], [33], [34], [5, 1, 2, 40, 33, 32, 31, 2], documents(50), documents(300, high=5)])
@pytest.mark.parametrize("length", [8, 32])
def test_every_heldout_token_is_predicted_once(lengths, length):
    store = store_of(lengths, unique=True)
    rows = Rows({"a": store}, objective(length=length), 0, shuffle=False)
    batch = rows.rows(np.arange(rows.count + 3))  # what goes past the end has no weight
    predicted = batch.targets[batch.weights > 0]
    assert len(predicted) == store.num_tokens - store.num_documents
    inner = np.setdiff1d(np.arange(store.num_tokens), [*store.offsets[:-1], *(store.offsets[1:] - 1)]) + RESERVED
    np.testing.assert_array_equal(np.sort(predicted[predicted >= RESERVED]), inner)
    assert batch.weights[rows.count :].sum() == 0
    assert set(np.unique(batch.weights)) <= {0.0, 1.0}


def test_heldout_rows_of_several_sources():
    stores = {name: store_of(documents(9, seed=s), seed=s) for s, name in enumerate("abc")}
    rows = Rows(stores, objective(), 0, shuffle=False)
    total = rows.rows(np.arange(rows.count)).weights.sum()
    assert total == sum(s.num_tokens - s.num_documents for s in stores.values())


@pytest.mark.parametrize("c", [config.Masked(), config.Masked(dynamic=False)], ids=["dynamic", "static"])
def test_runs_of_all_seeds_are_evaluated_on_equal_rows(c):
    """And each trains on rows of its own."""
    data = SimpleNamespace(train={"a": store_of(documents())}, holdout={"a": store_of(documents(9, seed=1))})
    model = Model(V, 8, encoder=Stack(1, {"L": Block(Attention(2), Mlp(8))}))
    runs = [config.Run(model, objective=c, train=config.Train(seed=seed)) for seed in (0, 7)]
    first, other = (rows_of(run, data, objective(c, "encoder")) for run in runs)
    index = np.arange(first["holdout"].count)
    same(first["holdout"].rows(index), other["holdout"].rows(index))
    assert (first["train"].rows(index).encoder.tokens != other["train"].rows(index).encoder.tokens).any()


def loses_text(c):
    """Causal rows predict each token once, which a test of their own holds; a pair from elsewhere is without a half; texts of
    a token or two have no vector."""
    parts = [part.objective for part in c.parts.values()] if isinstance(c, config.Mixture) else [c]
    return isinstance(c, config.Causal | config.Contrastive) or any(isinstance(part, config.NextSentence) for part in parts)


@pytest.mark.parametrize("c,architecture", [p for p in SUITING if not loses_text(p[0])], ids=ids)
def test_heldout_rows_hold_all_the_text(c, architecture):
    """Where documents are long, each token of the text stands in exactly one row, as input or as target."""
    store = store_of([700], unique=True)
    rows = Rows({"a": store}, objective(c, architecture, length=64), 0, shuffle=False)
    batch = rows.rows(np.arange(rows.count))
    arrays = [s.tokens for s in (batch.encoder, batch.decoder) if s is not None] + [batch.targets]
    held = set(np.concatenate([a.ravel() for a in arrays]).tolist())
    assert len(held & set(range(RESERVED + 1, RESERVED + 699))) >= 698 - 3  # a last piece may be too short for noise


SHORT = [c for c in SUITING if c[1] == "encoder"]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("c,architecture", [(c, a) for c, a in SHORT if not loses_text(c)], ids=ids)
def test_short_documents_are_in_the_rows(n, c, architecture):
    """Rows of nothing but documents of n tokens, their ends among them: every token is there, and the rate is met."""
    o = objective(c, architecture, length=128)
    rows = Rows({"a": store_of([n] * 300, unique=False)}, o, 0)
    batch = rows.rows(np.arange(40))
    window = o.lengths.encoder
    assert ((batch.encoder.segments > 0).sum(axis=1) == window).all() and rows.left_out(np.arange(40)) == 0
    if type(c) is config.Masked:
        due = 0.15 * 40 * window * (n - 2) / n
        assert abs(batch.weights.sum() - due) <= 5 * max(due, 1) ** 0.5


@pytest.mark.parametrize("c,architecture", [p for p in SHORT if not loses_text(p[0])], ids=ids)
def test_heldout_rows_of_short_documents_hold_each_token_once(c, architecture):
    store = store_of(documents(300, low=2, high=6), unique=True)
    rows = Rows({"a": store}, objective(c, architecture, length=64), 0, shuffle=False)
    batch = rows.rows(np.arange(rows.count))
    read = batch.encoder.tokens.copy()
    counted = batch.weights > 0
    where = np.broadcast_to(np.arange(read.shape[1]), read.shape) if batch.where is None else batch.where
    row = np.arange(len(read))[:, None].repeat(where.shape[1], 1)
    read[row[counted], where[counted]] = batch.targets[counted]
    np.testing.assert_array_equal(read[batch.encoder.segments > 0], store.tokens)
    assert rows.left_out(np.arange(rows.count)) == 0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_near_empty_documents_are_read_under_next_sentence(n):
    """Nothing is asked about a text that cannot be cut in two; what a row has no room for is counted."""
    o = objective(config.NextSentence(), "encoder", length=67)
    rows = Rows({"a": store_of([n] * 100)}, o, 0, shuffle=False)
    batch = rows.rows(np.arange(rows.count))
    firsts = (batch.encoder.tokens == BOS).sum()
    assert firsts > 0.7 * 100 and (batch.encoder.types > 0).any() == (n > 3)
    kept = 1 - rows.left_out(np.arange(rows.count))
    assert 0.7 < kept <= 1 and (n > 3 or kept == 1)


@pytest.mark.parametrize("c,architecture", SUITING, ids=ids)
def test_what_is_left_out_is_counted(c, architecture):
    """Against the segments of the rows, text by text: of documents from 2 to 9 tokens some are too short, or do not fit."""
    o = objective(c, architecture, length=64)
    store = store_of(documents(200, low=2, high=10), unique=True)
    rows = Rows({"a": store}, o, 0, shuffle=False)
    share = rows.left_out(np.arange(rows.count))
    assert 0 <= share < 0.6 and rows.left_out(np.arange(rows.count, rows.count + 3)) == 0
    if type(c) in (config.Causal, config.Masked, config.Deshuffle):
        assert share == 0
    if type(c) is config.SpanCorruption:  # documents of less than two tokens between their ends
        short = np.diff(store.offsets)
        assert share >= short[short < 4].sum() / store.num_tokens - 0.02 > 0


def test_predictions_past_the_room_leave_their_text():
    o = objective(config.Masked(0.9, mask=1.0, random=0.0), "encoder", length=64)
    few = replace(o, lengths=replace(o.lengths, predicted=16))
    tokens = np.arange(RESERVED, RESERVED + 64)
    row = fill(tokens, np.array([20, 40]), few, np.random.default_rng(0))
    assert (row.encoder.segments > 0).all() and row.weights.sum() == 16
    np.testing.assert_array_equal(tokens[row.where], row.targets)


def test_too_little_text():
    with pytest.raises(UserError, match="'a' has 20 tokens in this split, and a row takes"):
        Rows({"a": store_of([20])}, objective(), 0)


# ----------------------------------------------------------------------------------------------------------- packing


def model_for(architecture):
    block = Block(Attention(2), Mlp(32))
    stack_ = lambda cross, position: Stack(2, {"L": Block(Attention(2), Mlp(32), cross=cross)}, position=position)
    match architecture:
        case "decoder":
            return Model(V, 16, decoder=Stack(2, {"L": block}, position=Rope()))
        case "encoder":
            return Model(V, 16, encoder=Stack(2, {"L": block}, position=Learned(64)))
    return Model(V, 16, stack_(False, Buckets(8, 16)), stack_(True, Buckets(8, 16)))


CASES = [
    (config.Causal(), "decoder"),
    (config.Prefix(), "decoder"),
    (config.Masked(), "encoder"),
    (config.SpanCorruption(), "encoder_decoder"),
]


@pytest.mark.parametrize("c,architecture", CASES, ids=ids)
def test_packed_documents_do_not_see_each_other(c, architecture):
    """Another text in the middle document changes no other document's loss by a bit; alone in a row it is the same."""
    o = objective(c, architecture, length=64)
    rng = np.random.default_rng(0)
    pieces = [o.make(rng.integers(RESERVED, V, n).astype(np.int32), np.random.default_rng(n)) for n in (17, 14, 20)]
    stream = lambda s: s and TokenStream(np.where(s.tokens < RESERVED, s.tokens, V - 1), s.positions, s.segments, s.prefix)
    middle = pieces[1]
    changed = Example(stream(middle.encoder), stream(middle.decoder), middle.targets[::-1], middle.weights, middle.where)
    rows = [pieces, [pieces[0], changed, pieces[2]], *([p] for p in pieces)]
    batch = stack([pack(row, o.lengths) for row in rows])

    model = Transformer(model_for(architecture))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
    params = jax.tree.map(lambda x: (rng.normal(size=x.shape) * 0.3).astype(x.dtype), shapes)
    per_token = jax.jit(lambda example: token_losses(model.apply(params, example), example.targets))
    one = lambda i: np.asarray(per_token(jax.tree.map(lambda x: x[i : i + 1], batch)))[0]
    ends = np.cumsum([0, *(len(p.targets) for p in pieces)])
    places = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    packed, perturbed = one(0), one(1)
    for k in (0, 2):
        np.testing.assert_array_equal(packed[places[k]], perturbed[places[k]])
    assert (packed[places[1]] != perturbed[places[1]]).all()
    for k in range(3):
        alone = one(2 + k)[: len(pieces[k].targets)]
        np.testing.assert_allclose(packed[places[k]], alone, rtol=0, atol=2e-5)


def test_pack_docstring():
    causal = lambda *tokens: objectives.causal.decoder(np.array([*tokens, 0]), None)
    row = pack([causal(5, 6, 7), causal(8, 9)], objective(length=8).lengths)
    assert row.decoder.tokens.tolist() == [5, 6, 7, 8, 9, 0, 0, 0]
    assert row.decoder.positions.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert row.decoder.segments.tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert row.weights.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("c,architecture", SUITING, ids=ids)
def test_windows_cut_into_many_documents_fit(c, architecture):
    """Every document is in the row as a segment of its own; the noised forms never overflow."""
    o = objective(c, architecture, length=64)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(RESERVED, V, o.window).astype(np.int32)
        cuts = np.sort(rng.choice(np.arange(1, o.window), rng.integers(0, 12), replace=False))
        row = fill(tokens, cuts, o, rng, tokens[::-1] if o.needs_other else None)
        assert jax.tree.map(np.shape, row) == jax.tree.map(np.shape, blank(o.lengths))
        stream = row.decoder or row.encoder
        if row.where is not None:
            counted = row.where[row.weights > 0]
            assert (stream.segments[counted] > 0).all() and len(np.unique(counted)) == len(counted)
        else:
            assert (stream.segments[row.weights > 0] > 0).all()
        pieces = np.split(tokens, cuts)
        long_enough = sum(len(p) >= 4 for p in pieces)
        assert long_enough - 2 <= stream.segments.max() <= sum(len(p) >= o.shortest for p in pieces)


FROM_NOTHING = [config.Masked(), config.Denoise(), config.Deshuffle()]


@pytest.mark.parametrize("c", [*FROM_NOTHING, config.Mixture({"a": config.Part(FROM_NOTHING[1])})], ids=ids)
def test_ends_without_text_are_no_segment(c):
    """A window may begin with the eos of a document that lies before it, and end with the bos of the next."""
    o = objective(c, "encoder_decoder", length=32)
    text = np.arange(RESERVED, RESERVED + 10)
    tokens = np.concatenate([[EOS], [BOS, *text, EOS], [BOS, EOS], [BOS, 20, EOS], [BOS]]).astype(np.int32)
    cuts = np.array([1, 13, 15, 18])
    segments, left_out = fitted(tokens, cuts, o, np.random.default_rng(0))
    assert len(segments) == 2 and left_out == 0
    assert all((s.targets >= RESERVED).any() for s in segments)
    # Nor is there one where a piece has to be shortened to its bos.
    long = np.concatenate([[BOS], np.arange(RESERVED, RESERVED + o.window - 4), [EOS], [BOS, 20]]).astype(np.int32)
    for room in range(1, 6):
        small = replace(o, lengths=replace(o.lengths, decoder=o.window - 3 + room))
        row = fitted(long, np.array([len(long) - 2]), small, np.random.default_rng(0))[0]
        assert all((s.targets >= RESERVED).any() for s in row)


CAUSAL_OR_NOT = {"a": config.Part(config.Causal()), "b": config.Part(config.FillInMiddle(1.0))}


@pytest.mark.parametrize("c", [config.FillInMiddle(), config.Mixture(CAUSAL_OR_NOT)], ids=ids)
def test_what_fits_is_not_taken_more_often(c):
    """Two pieces that are both rearranged overflow the row: the second is shortened, and its coin not thrown again."""
    o = objective(c, length=64)
    tokens, mark = np.arange(RESERVED, RESERVED + o.window), VOCABULARY.sentinel_ids[-3]
    second = 0
    for seed in range(600):
        row = fill(tokens, np.array([30]), o, np.random.default_rng(seed)).decoder
        assert row.segments.max() == 2
        second += mark in row.tokens[row.segments == 2]
    assert abs(second / 600 - 0.5) < 0.07  # 3.5 sigma; thrown again, it is 0.375


def test_where_points_into_the_packed_row():
    o = objective(config.Masked(), "encoder", length=64)
    a, b = (np.arange(30 + k, 60 + k, dtype=np.int32) for k in (0, 40))
    row = pack([o.make(a, np.random.default_rng(0)), o.make(b, np.random.default_rng(1))], o.lengths)
    text = np.concatenate([a, b])
    counted = row.weights > 0
    np.testing.assert_array_equal(text[row.where[counted]], row.targets[counted])
