"""Baselines: probabilities that are probabilities, and bits that are counted as a neural model's are."""

import json
import lzma

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation import xz
from lm.evaluation.baselines import NGram, _codes, _discounts, _joined, _last, baselines, of_prepared

BOS, EOS, V = 0, 7, 8


@pytest.fixture(scope="module")
def documents():
    """A chain over 1..6 that mostly counts upwards."""
    rng = np.random.default_rng(0)

    def one():
        ids = [int(rng.integers(1, 7))]
        for _ in range(rng.integers(0, 30)):
            ids.append(ids[-1] % 6 + 1 if rng.random() < 0.7 else int(rng.integers(1, 7)))
        return np.array([BOS, *ids, EOS], np.int32)

    return [one() for _ in range(60)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_in_every_context(documents, order):
    model = NGram.fit(documents[:20], order=order, vocab_size=V)
    p = model.probability(np.arange(V**order)).reshape(-1, V)  # every context, seen or not
    assert np.allclose(p.sum(1), 1, atol=1e-12) and p.min() > 0


def test_codes_predict_every_token_after_bos():
    codes = _codes([np.array([0, 3, 7]), np.array([0, 7]), np.array([0])], 3, 10)
    assert codes.tolist() == [3, 37, 7]  # (0,0)->3, (0,3)->7, (0,0)->7


def test_a_probability_by_hand():
    model = NGram.fit([np.array([0, 1, 1, 2])], order=2, vocab_size=4)
    one, two = model.levels
    # Bigrams 01, 11, 12, once each: n1 = 3, the rest 0 and so taken as 1: y = 3/5, discount 1 - 2 * 3/5 / 3 = 3/5.
    assert two.discounts[0] == pytest.approx(0.6)
    # Before 1 came two different tokens, before 2 one: counts 2 and 1, n1 = n2 = 1: y = 1/3, d1 = 1/3, d2 = 2 - 1 = 1.
    assert one.discounts[:2] == (pytest.approx(1 / 3), pytest.approx(1))
    unigram_1 = (2 - 1) / 3 + (1 / 3 + 1) / 3 / 4
    assert model.probability(np.array([1 * 4 + 1]))[0] == pytest.approx((1 - 0.6) / 2 + 0.6 * 2 / 2 * unigram_1)


def test_longer_contexts_help_where_there_is_structure(documents):
    train, held = documents[:50], documents[50:]
    nats = [NGram.fit(train, order=n, vocab_size=V).nats(held) for n in (1, 2)]
    assert nats[1] < 0.8 * nats[0]
    # and no model of the chain can be below its entropy by much
    count = sum(len(d) - 1 for d in held)
    assert nats[1] / count > 1.0


def test_odd_counts_keep_discounts_inside():
    for counts in ([5, 5, 5], [1], [1, 1, 2, 3, 3, 3, 3, 4] * 3):
        assert all(0 < d < k for k, d in enumerate(_discounts(np.array(counts)), 1))


def test_too_large_a_vocabulary(documents):
    with pytest.raises(ValueError, match="too large for an n-gram of order 3"):
        NGram.fit(documents, order=3, vocab_size=1 << 21)


def test_xz_in_one_pass_equals_two():
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, 6).astype(np.uint8)) for _ in range(300)]
    text = lambda n: b" ".join(words[i] for i in rng.integers(0, 300, n))
    before, after = text(30_000), text(2_000)
    size = lambda data: len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=xz.FILTERS))
    assert xz.sizes(before, after) == (size(before), size(before + after))


def test_baselines(documents):
    texts = ["".join(chr(97 + i) for i in d[1:-1]) for d in documents]
    found = baselines(texts[:50], texts[50:], train_tokens=documents[:50], heldout_tokens=documents[50:], vocab_size=V)
    size = sum(map(len, texts[50:]))
    nats = NGram.fit(documents[:50], order=3, vocab_size=V).nats(documents[50:])
    assert found["bytes"] == size and found["trigram"] == pytest.approx(nats / np.log(2) / size)
    assert set(found) == {"xz", "xz_after_train", "bigram", "trigram", "bytes", "seconds"}
    assert found["bigram"] < found["xz"] and 0 < found["xz_after_train"] < found["xz"]


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_of_a_long_text_the_end_is_the_same_and_the_rest_is_dropped(size):
    texts = [b"abc", b"", b"defg", b"h", b"ijk"]
    last = _last(iter(texts), size)
    assert _joined(last)[-size:] == _joined(texts)[-size:]
    assert len(last) == len(texts) if size == 100 else sum(map(len, last)) - len(last[0]) < size


def test_no_held_out_text(documents):
    with pytest.raises(ValueError, match="no held-out bytes"):
        baselines(["a"], [], train_tokens=documents, heldout_tokens=[], vocab_size=V)


def test_of_prepared(tmp_path, monkeypatch):
    from lm import atomic, config
    from lm.data.corpus.prepare import prepare

    words = "war peace law bank road state people union".split()
    for i in range(12):
        rng = np.random.default_rng(i)
        (tmp_path / f"{i}.txt").write_text(" ".join(rng.choice(words, 200)))
    data = config.Data(
        sources={"t": config.Source(kind="text", path=str(tmp_path / "*.txt"))},
        tokenizer=config.Tokenizer(vocab_size=400),
        cache=str(tmp_path / "cache"),
        holdout=0.2,
    )
    prepared = prepare(data, progress=False)
    found = of_prepared(prepared)
    assert found["bytes"] == prepared.holdout["t"].num_bytes
    assert np.log2(8) / 5.5 < found["bigram"] < 1.2  # eight words of about 5.4 bytes with their space
    assert of_prepared(prepared) == found and (prepared.path / "baselines.json").exists()
    for damaged in ("[1]", json.dumps(found)[:-9], json.dumps(found | {"xz": np.nan})):
        (prepared.path / "baselines.json").write_text(damaged)
        with pytest.warns(UserWarning, match=r"baselines\.json is damaged; the baselines are computed again"):
            assert of_prepared(prepared) | {"seconds": 0} == found | {"seconds": 0}
    (prepared.path / "baselines.json").unlink()
    (prepared.path / "baselines.json" / "a").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"baselines\.json is damaged"):
        assert of_prepared(prepared) | {"seconds": 0} == found | {"seconds": 0}
    assert of_prepared(prepared).keys() == found.keys() and (prepared.path / "baselines.json.bad" / "a").exists()
    (prepared.path / "baselines.json").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match=r"not kept, as .*baselines\.json .*\(No space left"):
        patch.setattr(atomic, "write_bytes", full)
        assert of_prepared(prepared) | {"seconds": 0} == found | {"seconds": 0}
    (prepared.path / "t" / "train.jsonl.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"train\.jsonl\.gz is not as it was written"):
        of_prepared(prepared)
    nothing = prepare(config.Data(**vars(data) | {"holdout": 0.0}), progress=False)
    with pytest.raises(UserError, match="baselines need held-out documents"):
        of_prepared(nothing)


def test_damaged_texts_cost_a_run_its_baselines_and_no_more(monkeypatch):
    from types import SimpleNamespace

    from lm import config
    from lm.evaluation import baselines as measured
    from lm.recipes.pretrain import Pretraining

    def damaged(prepared):
        raise UserError("corrupt prepared data: train.jsonl.gz")

    parts = SimpleNamespace(data=None, run=SimpleNamespace(evaluate=config.Evaluate(baselines=True)))
    monkeypatch.setattr(measured, "of_prepared", damaged)
    with pytest.warns(UserWarning, match=r"no baselines: corrupt prepared data: train\.jsonl\.gz"):
        assert Pretraining().baselines(parts) is None
