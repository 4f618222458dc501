"""Masked tokens are chosen, replaced and kept as often as by transformers' collator."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from lm.objectives import masked  # noqa: E402

BOS, EOS, MASK, RESERVED, V, ROWS, N = 1, 2, 4, 20, 500, 400, 256


class Tokenizer:
    """What the collator asks of one."""

    mask_token, pad_token_id, padding_side = "[MASK]", 0, "right"

    def get_special_tokens_mask(self, ids, already_has_special_tokens):
        return [int(i < RESERVED) for i in ids]

    def convert_tokens_to_ids(self, token):
        return MASK

    def __len__(self):
        return V


def shares(before, after, chosen):
    """Of the open places: masked, replaced, chosen but kept."""
    kinds = (after == MASK) & chosen, (after != MASK) & (after != before) & chosen, (after == before) & chosen
    return np.array([k.sum() / (before >= RESERVED).sum() for k in kinds])


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_rates(rate):
    tokens = np.concatenate([[BOS], np.random.default_rng(0).integers(RESERVED, V, N - 2), [EOS]])
    before = np.tile(tokens, (ROWS, 1))
    torch.manual_seed(0)
    collator = hf.DataCollatorForLanguageModeling(Tokenizer(), mlm=True, mlm_probability=rate)
    after, labels = collator.torch_mask_tokens(torch.tensor(before))
    theirs = shares(before, after.numpy(), labels.numpy() != -100)

    settings = dict(rate=rate, mask=0.8, random=0.1, mask_id=MASK, text=np.arange(V) >= RESERVED, ids=np.arange(RESERVED, V))
    ours, chosen = np.empty_like(before), np.zeros(before.shape, bool)
    for i in range(ROWS):
        ours[i], places = masked.noise(tokens, np.random.default_rng(i), **settings)
        chosen[i, places] = True
    np.testing.assert_allclose(shares(before, ours, chosen), theirs, atol=0.006)
    np.testing.assert_allclose(theirs / rate, [0.8, 0.1, 0.1], atol=0.02)
