"""Whether the function that a model wrote passes its tests. The program runs in the sandbox of `lm.evaluation.sandbox`."""

from typing import Any

from lm.evaluation import sandbox


def passed(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """1 if the first program written for a question of HumanEval ends without an error, and 0 if it does not."""
    written = results[0] if isinstance(results[0], str) else results[0][0]
    program = f"{doc['prompt']}{written}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(sandbox.run(program).ok)}
