"""`python -m lm.train` in which every process but the first grades answers in its own way."""

import sys

import jax
import numpy as np

from lm import distributed, train
from lm.recipes.graders import Graders

graded = Graders.__call__


def disturbed(self, answers, records):
    rewards, parts = graded(self, answers, records)
    return rewards + jax.process_index() * np.arange(len(rewards)) % 3, parts


if __name__ == "__main__":
    Graders.__call__ = disturbed
    distributed.run(lambda: train.main(sys.argv[1:]))
