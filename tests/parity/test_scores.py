"""Scores of whole texts equal what transformers' models give, window by window."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from lm import config  # noqa: E402
from lm.data import tokenizer as tokenizers  # noqa: E402
from lm.data.word_boundaries import WORD  # noqa: E402
from lm.evaluation import text_scores  # noqa: E402
from tests.parity.tiny import BERT, GPT, both, causal  # noqa: E402

SIZE = 400
TEXTS = ["The unbelievable cat sat on a mat, and the dog did not. " * 3, "A cat."]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train([text * 20 for text in TEXTS], config.Tokenizer(vocab_size=SIZE))


def log_probs(theirs, ids):
    with torch.no_grad():
        return torch.log_softmax(theirs(torch.tensor(np.asarray(ids)[None]).long()).logits[0], -1).numpy()


@pytest.mark.parametrize(("length", "stride"), [(200, 100), (16, 5), (16, 15), (8, 1)])
def test_a_causal_text_is_read_in_overlapping_windows(length, stride, tokenizer, tmp_path):
    """Every token once, the first `length` at once, then `stride` of them at a time with the tokens before them in sight."""
    theirs, ours = both(causal("GPT2LMHeadModel", "GPT2Config", **GPT | dict(vocab_size=SIZE, n_positions=200)), tmp_path)
    found = text_scores.score(*ours, config.Causal(), tokenizer, TEXTS, length=length, stride=stride)
    for text, score in zip(TEXTS, found, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(text).tolist()]
        wanted, done = 0.0, 1
        while done < len(ids):
            upto = min(len(ids), length if done == 1 else done + stride)
            window = ids[max(0, upto - length) : upto]
            table = log_probs(theirs, window)
            for place in range(done, upto):
                at = place - max(0, upto - length)
                wanted -= table[at - 1, ids[place]]
            done = upto
        assert score.nats == pytest.approx(wanted, rel=1e-5) and score.tokens == len(ids) - 1
        assert score.bytes == len(text.encode()) and score.normalised
        assert score.perplexity == pytest.approx(np.exp(wanted / (len(ids) - 1)), rel=1e-5)


def test_a_masked_text_hides_the_rest_of_a_word(tokenizer, tmp_path):
    """The pseudo-log-likelihood that goes through each word from left to right (arXiv 2305.10588)."""
    theirs, ours = both(
        causal("BertForMaskedLM", "BertConfig", **BERT | dict(vocab_size=SIZE, max_position_embeddings=200)), tmp_path
    )
    found = text_scores.score(*ours, config.Masked(), tokenizer, TEXTS, length=200, stride=100)
    for text, score in zip(TEXTS, found, strict=True):
        ids = np.array([tokenizer.bos_id, *tokenizer.encode(text).tolist(), tokenizer.eos_id])
        begins = [i for i in range(1, len(ids) - 1) if tokenizer.boundaries(ids[1:-1])[i - 1] == WORD]
        wanted = 0.0
        for i in range(1, len(ids) - 1):
            word_end = next((b for b in begins if b > i), len(ids) - 1)
            shown = ids.copy()
            shown[i:word_end] = tokenizer.mask_id
            wanted -= log_probs(theirs, shown)[i, ids[i]]
        assert score.nats == pytest.approx(wanted, rel=1e-5) and not score.normalised
        assert len(begins) < len(ids) - 2  # some words have several tokens


def test_a_long_masked_text_has_context_on_both_sides(tokenizer, tmp_path):
    theirs, ours = both(causal("BertForMaskedLM", "BertConfig", **BERT | dict(vocab_size=SIZE)), tmp_path)
    found = text_scores.score(*ours, config.Masked(), tokenizer, TEXTS[:1], length=20, stride=6)
    assert found[0].tokens == len(tokenizer.encode(TEXTS[0])) > 30 and found[0].nats > 0
