"""Block diffusion between its two ends: blocks of one token are a chain of next tokens, one block is masked diffusion."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lm import config, flops, objectives
from lm.config import Attention, Block, Head, Mlp, Model, Stack
from lm.data.rows import Rows, pack, stack
from lm.errors import UserError
from lm.losses.log_probs import token_scores
from lm.models.mask import Mask
from lm.models.transformer import Transformer, head_params
from lm.objectives import Lengths, block_diffusion, masked_diffusion
from lm.recipes.pretrain import objective_of
from lm.types import Example
from tests.fakes import MemoryStore, random_params
from tests.unit.objectives.common import BOS, DATA, EOS, MASK, V, build, equal, first, rng, text, vocabulary

TEXT = np.array([BOS, 20, 21, 22, EOS], np.int32)
STACK = Stack(2, {"L": Block(Attention(2), Mlp(32))}, position=config.Rope())
DECODER, ENCODER = (Model(V, 16, head=Head(tied=False), **{name: STACK}) for name in ("decoder", "encoder"))


def test_docstring():
    make = lambda r: block_diffusion.decoder(TEXT, r, 0.7, block=2, mask_id=MASK, bos=BOS)
    e = first(make, lambda e: e.weights.tolist() == [0, 1, 2, 0, 1])
    equal(e.decoder.tokens, [*TEXT, BOS, MASK, MASK, 22, MASK])
    equal(e.decoder.positions, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    equal(e.decoder.blocks, [1, 1, 3, 3, 5, 0, 0, 2, 2, 4])
    equal(e.where, [5, 6, 7, 8, 9])
    equal(e.targets, TEXT.tolist())
    assert e.encoder is None and e.decoder.prefix is None


@pytest.fixture(scope="module")
def decoder():
    example = Example(None, block_diffusion.twice(TEXT, TEXT, 2), None, None)
    module = Transformer(DECODER)
    return module, random_params(module, jax.tree.map(lambda x: x[None], example), 0.3)


def nats(model, params, rows, lengths):
    """float [N, P] of rows that are padded to these lengths."""
    batch = stack([pack([row], lengths) for row in rows])
    sizes = dict(head_params=head_params, vocab_size=V)
    return batch, -np.asarray(token_scores(params, model.apply, batch, **sizes).log_probs)


def test_blocks_of_one_token_are_the_chain_of_next_tokens(decoder):
    """One pass over text and copy gives what as many passes give as there are tokens, each with a mask behind the text so far:
    -log p(text), with no bound. It does not depend on the draw."""
    tokens = text(12)
    rows = [block_diffusion.decoder(tokens, rng(s), block=1, mask_id=MASK, bos=BOS) for s in range(2)]
    batch, both = nats(*decoder, rows, Lengths(None, 24, 12, blocks=1))
    assert (batch.weights == 1).all() and np.array_equal(both[0], both[1])
    steps = [block_diffusion.twice(tokens[:i], np.array([MASK]), 1, i) for i in range(12)]
    asked = [Example(None, s, tokens[i : i + 1], np.ones(1, np.float32), np.array([i], np.int32)) for i, s in enumerate(steps)]
    _, alone = nats(*decoder, asked, Lengths(None, 24, 1, blocks=1))
    assert both[0] == pytest.approx(alone[:, 0], abs=1e-4)


def test_one_block_as_long_as_the_row_is_masked_diffusion(decoder):
    """The same masks, weights and losses as an encoder with the same parameters."""
    module, params = decoder
    encoder = Transformer(ENCODER), {("encoder" if name == "decoder" else name): tree for name, tree in params.items()}
    tokens = np.concatenate([[BOS], text(10), [EOS]]).astype(np.int32)
    for at in (0.1, 0.5, 0.9):
        noise = dict(mask_id=MASK, bos=BOS)
        block = block_diffusion.decoder(tokens, rng(3), at, block=12, **noise)
        whole = masked_diffusion.encoder(tokens, rng(3), at, **noise)
        assert block.decoder.tokens[12:].tolist() == whole.encoder.tokens.tolist()
        assert block.weights.tolist() == whole.weights.tolist()
        _, a = nats(module, params, [block], Lengths(None, 24, 12, blocks=12))
        _, b = nats(*encoder, [whole], Lengths(12, None))
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("block", [1, 3, 5])
def test_what_a_token_sees_in_a_packed_row(block):
    """By the rule in words, token by token, for two documents and padding; and as many pairs are in the ledger."""
    pieces = [block_diffusion.decoder(text(n, n), rng(n), block=block, mask_id=MASK, bos=BOS) for n in (7, 4)]
    row = pack(pieces, Lengths(None, 26, 13, blocks=block)).decoder
    mask = Mask(row.segments[None], row.segments[None], q_blocks=row.blocks[None], k_blocks=row.blocks[None])
    dense = np.asarray(mask.dense())[0]
    document, index = [0] * 14 + [1] * 8, [*range(7), *range(7), *range(4), *range(4)]
    copy = [False] * 7 + [True] * 7 + [False] * 4 + [True] * 4
    for q in range(22):
        for k in range(26):
            if k >= 22 or document[q] != document[k]:
                assert not dense[q, k]
                continue
            of_q, of_k = index[q] // block, index[k] // block
            wanted = of_q == of_k if copy[q] and copy[k] else not copy[k] and (of_k < of_q if copy[q] else of_k <= of_q)
            assert dense[q, k] == wanted
    assert flops._block_pairs(row.segments[None], row.blocks[None], None) == dense[:22, :22].sum()
    assert mask.blocks() == [(slice(0, 26), slice(0, 26))]


def test_documents_of_a_row_do_not_see_each_other(decoder):
    pieces = [block_diffusion.decoder(text(n, n), rng(n), 0.7, block=2, mask_id=MASK, bos=BOS) for n in (7, 4)]
    lengths = Lengths(None, 26, 13, blocks=2)
    module, params = decoder
    sizes = dict(head_params=head_params, vocab_size=V)
    score = lambda row: -np.asarray(token_scores(params, module.apply, stack([row]), **sizes).log_probs)[0]
    both = score(pack(pieces, lengths))
    assert both[:7] == pytest.approx(score(pack(pieces[:1], lengths))[:7], abs=1e-5)
    assert both[7:11] == pytest.approx(score(pack(pieces[1:], lengths))[:4], abs=1e-5)


def test_rows_hold_a_text_of_half_their_length():
    o = build(config.BlockDiffusion(4), "decoder")
    rows = Rows({"a": MemoryStore(text(900), [900])}, o, 0)
    batch = rows.rows(np.arange(32))
    assert batch.decoder.tokens.shape == (32, 64) and batch.targets.shape == batch.where.shape == (32, 32)
    assert batch.weights.sum(axis=1) == pytest.approx(np.full(32, 32.0))
    shares = (batch.weights.reshape(32, 8, 4) > 0).sum(axis=2)
    assert all(abs((shares == k).mean() - 0.25) < 0.05 for k in range(1, 5))  # each number of masks in a quarter of the blocks


def test_how_a_span_is_asked():
    span = objectives.prompts.Span(*(np.array(x, np.int32) for x in ([50, 51, 52], [53, 54, 55], [])), 3)
    asked = block_diffusion.ask(span, vocabulary(), block=2)
    equal(asked[0].decoder.tokens, [50, 51, 52, MASK])
    equal(asked[1].decoder.tokens, [50, 51, 52, 53, MASK, MASK])
    equal(asked[1].decoder.blocks, [1, 1, 3, 3, 4, 4])
    equal(asked[1].decoder.positions, [0, 1, 2, 3, 4, 5])
    equal(asked[2].decoder.tokens, [50, 51, 52, 53, 54, MASK])
    assert [int(e.decoder.tokens[e.where[0]]) for e in asked] == [MASK] * 3
    assert [e.targets.tolist() for e in asked] == [[53], [54], [55]]


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="objective.block=40 is longer than the text of a row, 32 tokens"):
        build(config.BlockDiffusion(40), "decoder")
    for position, words in ((config.Alibi(), "does not leave them in the text's order"), (config.Buckets(), "take rope")):
        run = config.Run(replace(DECODER, decoder=replace(STACK, position=position)), DATA, config.BlockDiffusion())
        with pytest.raises(UserError, match=words):
            objective_of(run, vocabulary())
    near = replace(STACK, blocks={"L": replace(STACK.blocks["L"], attention=Attention(2, window=4))})
    with pytest.raises(UserError, match="attention windows count tokens in the row"):
        objective_of(config.Run(replace(DECODER, decoder=near), DATA, config.BlockDiffusion()), vocabulary())
