"""experiments/bound: equal FLOPs, and a table of what was measured."""

from experiments.bound import run
from lm import config


def test_the_models_are_the_quickstarts_and_the_schedule_grows_with_the_steps():
    causal = run.run_of(10, None)
    assert causal.model.decoder and causal.train.steps == 3100 and causal.optimizer.schedule.decay == 1000
    assert isinstance(causal.objective, config.Causal)


def test_the_table_has_a_row_for_each_run():
    heldout = {"loss": 3.0, "bits_per_byte": 1.57051}
    bounds = {"sum": {"bits_per_byte": 2.1, "error": 0.0123}, "sampled": {"bits_per_byte": 2.2, "error": float("nan")}}
    common = {"model_flops": 5.4e12, "tokens_seen": 1000}
    text = run.table(
        {
            "causal 1": common | {"heldout": heldout},
            "masked_diffusion 1": common | {"heldout": {"bits_per_byte_bound": 2.25}, "bounds": bounds},
        }
    )
    rows = [line for line in text.splitlines() if " x |" in line]
    assert rows[0] == "| next token, 1 x | 5.4e+12 | 1,000 | 1.5705 |  |  |"
    assert rows[1].endswith("| 2.2500 (bound, one draw a window) | 2.1000 ± 0.0123 | 2.2000 |")
