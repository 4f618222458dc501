"""A mixture of tasks told in words as a run: each is tested, the one that is held out too, and no row was of it."""

import json
from pathlib import Path

from lm import recipes
from lm.config import resolve
from tests.unit.data.corpus.test_told import registry  # noqa: F401  a fixture

CONFIG = Path(__file__).parents[2] / "configs" / "life" / "told.py"


def test_a_mixture_of_tasks_is_a_run(registry, tmp_path):  # noqa: F811
    more = {"data.cache": str(tmp_path), "data.tokenizer.vocab_size": "600", "model.vocab_size": "600", "model.width": "32"}
    more |= {f"model.{name}.num_layers": "1" for name in ("encoder", "decoder")}
    more |= {
        "train.steps": "2",
        "train.batch_size": "8",
        "evaluate.every": "2",
        "evaluate.rows": "3",
        "log.tensorboard": "False",
    }
    found = recipes.train(resolve.load(f"{CONFIG}:encoder_decoder/effects", more), tmp_path / "run", quiet=True)
    tasks = {"verses", "sarcasm", "sentiment", "topics", "questions", "effects", "spam"}
    assert {name for name in found["heldout"] if name.endswith("/exact")} >= {f"{name}/exact" for name in tasks}
    saved = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert saved["data"]["sources"]["effects"]["weight"] == 0.0
