"""The recipes of preferred answers: the table's numbers and the config's, what a step costs, calibration."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm import config, flops
from lm.config import resolve
from lm.errors import UserError
from lm.evaluation.judged import calibration_error
from lm.losses.preference import METHODS
from lm.objectives import Lengths
from lm.recipes.preference import Preferring, method_of
from lm.training.ledger import of_a_row
from lm.types import Compared, Judged
from tests.fakes import small_model
from tests.unit.losses.test_preference import batch_of


def test_a_number_of_the_config_stands_before_that_of_the_table():
    assert method_of(config.Preference("simpo")) == METHODS["simpo"]
    given = method_of(config.Preference("simpo", beta=3.0, gamma=0.0, nll=0.5))
    assert (given.beta, given.gamma, given.nll, given.compare) == (3.0, 0.0, 0.5, "mean")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(method="ipo", smoothing=0.1), "recipe.smoothing=0.1 is of sigmoids, and ipo has none"),
        (dict(method="dpo", undesirable=2.0), "recipe.desirable and recipe.undesirable are of kto, and the method is dpo"),
        (dict(method="dop"), "did you mean 'dpo'"),
        (dict(beta=0.0), "beta"),
    ],
)
def test_settings_that_a_method_has_not_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        resolve.build(config.Preference, settings)


@pytest.mark.parametrize(("method", "passes"), [("dpo", 3 + 1), ("simpo", 3), ("kto", (3 + 1 + 2) / 2)])
def test_the_ledger_counts_both_answers_and_the_pass_of_the_reference(method, passes):
    """In forward passes over both answers; KTO has no backward pass over the mismatched ones."""
    model, batch = small_model("decoder"), batch_of("decoder", Judged if method == "kto" else Compared, blanks=0, rows=4)
    recipe = Preferring()
    recipe.reference = SimpleNamespace(params=None)
    task = recipe.task(config.Run(model, recipe=config.Preference(method)))
    rows = SimpleNamespace(rows=lambda index: batch, lengths=Lengths(None, 8, 4), bytes_a_row=9.0)
    found = of_a_row(task, rows, 4)
    both = sum(flops.of_rows(model, example).forward for example in batch.examples)
    assert found.flops == pytest.approx(passes * both / 4)
    assert (found.seen, found.loss_tokens) == (int(batch.tokens_read()) / 4, int(batch.tokens_asked()) / 4)


def test_a_model_is_calibrated_that_gives_each_preference_the_share_that_holds():
    """A preference that is turned round has the opposite margin; of nine in ten that hold, sigmoid(ln 9) = 0.9 is right."""
    held = np.r_[np.ones(90), -np.ones(10)]
    assert calibration_error(np.log(9) * held) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(1000 * held) == pytest.approx(0.1)
