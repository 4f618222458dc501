"""Old names of commands and modules: whoever uses one is told the new one."""

import importlib.abc
from collections.abc import Sequence
from typing import Any

from lm.errors import UserError

COMMANDS = {  # python -m <old> -> what to type
    "lm.data.prepare": "python -m lm.prepare --config=FILE",
    "lm.recipes.finetune": "python -m lm.train --config=configs/finetune.py:TASK --config.train.init_from=D --workdir=E",
}
MODULES = {  # that a config file or a script may import
    "lm.foreign": "lm.untrusted",
    "lm.generate": "lm.generation",
    "lm.ranges": "lm.config.ranges",
    "lm.replaced": "lm.losses.replaced",
    "lm.resolve": "lm.config.resolve",
    "lm.shell": "lm.cli and lm.process",
    "lm.shown": "lm.redact",
    "lm.whole": "lm.integrity",
    "lm.data.clean": "lm.data.corpus.clean",
    "lm.data.dedup": "lm.data.corpus.dedup",
    "lm.data.intact": "lm.data.corpus.integrity",
    "lm.data.pairs": "lm.data.examples",
    "lm.data.prepare": "lm.data.corpus.prepare",
    "lm.data.sotu": "lm.data.corpus.sotu",
    "lm.data.sources": "lm.data.corpus.sources",
    "lm.data.stages": "lm.data.corpus.stages",
    "lm.data.store": "lm.data.corpus.store",
    "lm.data.trial": "lm.data.tokenizer_check",
    "lm.data.words": "lm.data.word_boundaries",
    "lm.models.products": "lm.models.matmul",
    "lm.models.splash": "lm.models.kernels.splash",
    "lm.models.tiny": "lm.models.miniature",
    "lm.objectives.marks": "lm.objectives.special_tokens",
    "lm.objectives.middle": "lm.objectives.fim",
    "lm.objectives.standin": "lm.objectives.dummy_vocabulary",
    "lm.objectives.stretch": "lm.objectives.mass",
    "lm.recipes.ledger": "lm.training.ledger",
    "lm.recipes.resume": "lm.training.resume",
    "lm.recipes.tasks": "lm.training.task",
}


class Finder(importlib.abc.MetaPathFinder):
    """Asked last, for modules that nobody has found."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in MODULES:
            raise ImportError(f"{fullname} is {MODULES[fullname]} now: import that", name=fullname)


def check_command(words: Sequence[str]) -> None:
    """UserError if this command line of Python (`sys.orig_argv`) starts a command by its old name."""
    for i, word in enumerate(words[1:], 1):
        if word.startswith("-m") and not word.startswith("--"):
            name = word[2:] or next(iter(words[i + 1 :]), "")
            if name in COMMANDS:
                raise UserError(f"python -m {name} is another command now: {COMMANDS[name]}")
            return
