"""The coordinate check of muP on tiny models, and the best rates that the study of widths finds in made-up losses."""

import numpy as np
import pytest

from experiments.width import coordinates
from experiments.width import study as width
from lm.config import Attention, Block, Mlp, Model, Norm, Optimizer, Run, Schedule, Stack
from lm.types import Example, TokenStream

CONSTANT = Schedule("constant", warmup=0)


def test_coordinates_move_by_the_same_at_every_width():
    """The paper's check (figure 5): under muP no layer moves more because it is wide; in the standard parametrization layers
    and logits do, about as the width."""

    def make(width: int) -> tuple[Run, Example]:
        block = Block(Attention(width // 16), Mlp(2 * width), norm=Norm("rms"))
        tokens = ((np.arange(32) * np.array([[1], [2], [3], [5]])) % 37).astype(np.int32)
        stream = TokenStream(tokens, np.tile(np.arange(32, dtype=np.int32), (4, 1)), np.ones_like(tokens))
        made = Model(37, width, decoder=Stack(1, {"L": block}))
        return Run(made), Example(None, stream, np.roll(tokens, -1, axis=1), np.ones(tokens.shape, np.float32))

    optimizer = Optimizer(learning_rate=2.0**-6, schedule=CONSTANT)
    found = coordinates.by_width(make, optimizer, widths=(64, 256), seeds=2, steps=4)
    standard, mup = (coordinates.slopes(found[kind]) for kind in ("standard", "mup"))
    assert list(standard) == list(mup) == ["embedding", "layer 1", "logits"]
    for name in ("layer 1", "logits"):
        assert standard[name] > 0.5 and abs(mup[name]) < 0.25
    assert abs(standard["embedding"]) < 0.1 and abs(mup["embedding"]) < 0.1


def made_up(best: dict[tuple[str, int], float]) -> dict:
    """Results of all cells, with two seeds: a parabola about the best octave of each kind and width."""
    results: dict = {}
    for kind in width.KINDS:
        for size in width.WIDTHS:
            for octave in width.RATES[width.kind_at(kind, size)]:
                loss = 5 + 0.1 * (octave - best[kind, size]) ** 2
                result = lambda seed, loss=loss: {"metrics": {width.LOSS: loss + seed}, "flags": {}, "ledger": {}}
                results[width.key(kind, size, octave)] = {seed: result(seed) for seed in range(2)}
    return results


def test_best_rates_are_the_minima_of_parabolas(tmp_path):
    falling = {("standard", size): -7.25 - np.log2(size / 64) * 2 / 3 for size in width.WIDTHS}
    results = made_up(falling | {("mup", size): -7.25 for size in width.WIDTHS})
    found = width.best_rates(results)
    assert found["mup"][0]["metrics"][width.MOVED] == pytest.approx(0, abs=1e-9)
    assert found["standard"][1]["metrics"][width.MOVED] == pytest.approx(-2)
    assert found["standard"][0]["metrics"][width.TAKEN] == pytest.approx(5 + 0.1 * 2.25**2)
    assert found["standard"][0]["metrics"][width.LOST] == pytest.approx(0.1 * (2.25**2 - 0.25**2))
    text = width.analyse(results, tmp_path)
    assert "| 512 | 2^-9.2, 2^-9.2 | 2^-7.2, 2^-7.2 |" in text and (tmp_path / "rates.png").stat().st_size > 10_000


def test_a_best_rate_at_the_end_of_the_grid_is_none():
    assert width.best_octave({-9: 3.0, -8: 2.0, -7: 1.0}) is None
    assert width.best_octave({-9: 1.0, -7: 3.0}) is None and width.best_octave({}) is None
    assert width.best_octave({-9: 2.0, -8: 1.0, -7: 2.0}) == -8
