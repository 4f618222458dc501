"""The flags of `lm.show`: which rows they ask for, and mistakes in one line."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm import show
from lm.errors import UserError


def reading(count=20, steps=5, size=4):
    return SimpleNamespace(
        count=count,
        run=SimpleNamespace(train=SimpleNamespace(steps=steps)),
        numbers=lambda step: np.arange((step - 1) * size, step * size),
    )


def flags(*words):
    found = show.parser().parse(["--config=F", *words])
    show.check(found)
    return found


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ([], [0, 1]),
        (["--rows=6"], [0, 1, 2, 3, 4, 5]),
        (["--row=17"], [17]),
        (["--step=3"], [8, 9]),
        (["--step=4", "--rows=9"], [12, 13, 14, 15, 16, 17, 18, 19]),  # there are no more
        (["--split=holdout", "--rows=30"], [*range(20)]),
    ],
)
def test_rows_that_the_flags_ask_for(words, rows):
    assert show.numbers(reading(), flags(*words)).tolist() == rows


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--row=20"], "--row=20 is beyond the last: the run reads 20 rows, 0 to 19"),
        (["--row=20", "--split=holdout"], "--row=20 is beyond the last: the split has 20 rows, 0 to 19"),
        (["--step=6"], "--step=6 is beyond the last: train.steps is 5"),
    ],
)
def test_rows_beyond_the_last(words, cause):
    with pytest.raises(UserError) as error:
        show.numbers(reading(), flags(*words))
    assert str(error.value) == cause


def test_a_run_without_steps_has_no_training_rows():
    with pytest.raises(UserError, match="train.steps=0 trains on no row: give steps, or --split=holdout"):
        show.numbers(reading(count=0, steps=0), flags())


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ([], "--config is missing; python -m lm.show --help has examples"),
        (["--config=F", "--split=houldout"], "--split 'houldout' is not known; did you mean 'holdout'?"),
        (["--config=F", "--row=-1"], "--row=-1 is too small"),
        (["--config=F", "--rows=0"], "--rows=0 is too small"),
        (["--config=F", "--row=1", "--rows=2"], "--row=1 is one row, whatever --rows is: leave one out"),
        (["--config=F", "--row=1", "--step=2"], "--row=1 is one row, whatever --step is: leave one out"),
        (["--config=F", "--split=holdout", "--step=2"], "--step is of training rows, and --split=holdout is not trained on"),
        (["--config=F", "--text=a"], "--tokenizer shows what becomes of a text: give both, --tokenizer --text='...'"),
        (["--tokenizer"], "--tokenizer shows what becomes of a text: give both"),
        (["--config=F", "--against=F"], "--against compares tokenizers on a text: give --tokenizer --text='...' with it"),
        (["--tokenizer", "--text=a", "--rows=2"], "--rows is of rows, and --tokenizer shows none: leave one out"),
        (["--tokenizer", "--text=a\udce2"], "--text is not UTF-8: give text that is"),
        (["--config=F", "--out=/nowhere/show.html"], "--out=/nowhere/show.html is no name for a file in a folder that exists"),
        (["--config=F", "--out=/tmp"], "--out=/tmp is no name for a file"),
        (["--config=nowhere.py"], "no config"),
    ],
)
def test_mistakes_are_one_line(words, cause, capsys):
    assert show.main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {cause}") and err.count("\n") == 1 and not out
