"""The curves of a run's report."""

import pytest

from lm.training import report

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    "heldout,drawn",
    [
        ({"accuracy": 0.8, "nll": 0.5, "majority": 0.3}, {"heldout/accuracy", "majority 0.300"}),
        ({"exact": 0.8, "f1": 0.9, "nll": 0.5, "majority": 0.3}, {"heldout/exact", "heldout/f1", "majority 0.300"}),
        ({"accuracy": 0.1, "loss": 0.5, "bits_per_byte": 2.0}, {"heldout/bits_per_byte", "bigram 1.900"}),
    ],
)
def test_accuracies_are_drawn_beside_the_majority_and_bits_beside_baselines(heldout, drawn, monkeypatch):
    from matplotlib import axes, pyplot

    labels = []
    monkeypatch.setattr(axes.Axes, "plot", lambda self, *data, label, **style: labels.append(label))
    monkeypatch.setattr(axes.Axes, "axhline", lambda self, value, *, label, **style: labels.append(label))
    monkeypatch.setattr(pyplot.Figure, "savefig", lambda self, file, **settings: file.write(b""))
    rows = [{"step": step, **{f"heldout/{name}": value for name, value in heldout.items()}} for step in (1, 2)]
    report._curves(rows, {"heldout": heldout, "baselines": {"bigram": 1.9}})
    assert set(labels) - {"heldout/loss", "heldout/nll"} == drawn


def test_a_policys_figures_and_the_rewards_of_its_samples_are_shown(monkeypatch):
    from matplotlib import axes, pyplot

    labels = []
    monkeypatch.setattr(axes.Axes, "plot", lambda self, *data, label, **style: labels.append(label))
    monkeypatch.setattr(pyplot.Figure, "savefig", lambda self, file, **settings: file.write(b""))
    names = {"reward", "kl", "entropy", "clipped", "truncated", "length", "mismatch", "mismatch_max", "heldout/reward"}
    report._curves([{"step": step, **dict.fromkeys(names, 0.5)} for step in (1, 2)], {})
    assert set(labels) == names
    assert "reward 0.5<" in report._reward({"reward": 0.5}) and report._reward({"text": "a"}) == ""
