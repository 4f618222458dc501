"""What a run prints."""

from types import SimpleNamespace

import numpy as np

from lm.recipes.finetune import FineTuning
from lm.recipes.pretrain import Pretraining
from lm.training.display import Display


def test_it_says_what_text_is_in_no_row_and_why(capsys):
    plan = SimpleNamespace(abstract=SimpleNamespace(params={"head": np.zeros(3)}))
    made = SimpleNamespace(plan=plan, frozen=None, flops_per_step=2.0)
    for recipe, why in ((FineTuning, "a text keeps both its ends"), (Pretraining, "documents too short for the objective")):
        Display(10, 0).introduce(made, {"train": 0.25, "holdout": 0.0}, recipe.why_left_out)
        said = capsys.readouterr().err
        assert "25.0% of the train text is in no row: " in said and why in said and "holdout" not in said
