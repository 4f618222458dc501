"""`experiments.speed.tuning` without its contenders: figures to speeds, and the faster dtype of each in the table."""

from experiments.speed import tuning


def test_speeds_of_a_round():
    figures = dict(seconds=4.0, rollout=1.0, tokens=1200.0)
    assert tuning.speeds("sft", figures | {"rollout": 0.0}) == {"step": 300}
    assert tuning.speeds("grpo", figures) == {"step": 300, "rollout": 1200, "update": 400}


def test_a_ratio_is_of_the_faster_dtype_of_each_in_every_round():
    rounds = lambda *speeds, others=0.0: [{"step": speed, "others": others} for speed in speeds]
    found = {
        "trl float32": rounds(100.0, 110.0, 120.0),
        "trl bfloat16": rounds(50.0, 500.0, 40.0),
        "ours float32": rounds(100.0, 90.0, 80.0),
        "ours bfloat16": rounds(200.0, 165.0, 120.0, others=0.2),
    }
    result = dict(model="W2", task="sft", rounds=found)
    expected = ("W2", "sft", "step", "float32", "110", "bfloat16", "165", "1.50", "1.00-2.00", "0.20!")
    assert list(tuning.rows(result)) == [expected]
    alone = dict(result, rounds={name: of for name, of in found.items() if name.startswith("ours")})
    assert next(tuning.rows(alone))[3:8] == ("", "", "bfloat16", "165", "")
    text = tuning.markdown(dict(machine=dict(cpu="a CPU", cores=2), jax_python="Python 3.12.1", results=[result]))
    assert text.splitlines()[4] == "| " + " | ".join(expected) + " |" and text.splitlines()[3].count("|") == 11


def test_an_unknown_task_is_named(capsys):
    assert tuning.main(["--tasks=sft,dpo"]) == 2
    assert "unknown dpo; known: sft, sft_packed, grpo, grpo_kl" in capsys.readouterr().err
