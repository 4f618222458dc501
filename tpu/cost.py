"""What a run costs: FLOPs by `lm.flops`, days and chip-hours at an MFU, money at a price. Needs no device.

  python -m tpu.cost --config=configs/pod.py:llama2_7b_v5e --tokens=2e12
  python -m tpu.cost --config=configs/pod.py:gpt3_175b_v5p --config.pod.price=2

Tokens are the positions in the rows of all stacks; without --tokens, those of the config's steps. Each row counts as a single
document, for which attention costs most. FLOPs are model FLOPs, and `mfu` is their share of the chips' peak, as `lm.train` logs
it: recomputation and masked pairs do not count. There is no default price: give yours, in USD per chip-hour.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm import cli, config, flops
from lm.errors import UserError
from tpu import topologies

if TYPE_CHECKING:
    from lm import objectives


@dataclass(frozen=True)
class Cost:
    tokens: float
    tokens_a_row: int
    rows_a_step: int
    parts: flops.Flops  # forward pass of one row
    chips: int
    peak: float  # FLOP/s, all chips together
    mfu: float
    price: float | None

    @property
    def flops(self) -> float:
        """Model FLOPs of the forward and backward passes over all tokens."""
        return self.parts.train * self.tokens / self.tokens_a_row

    @property
    def steps(self) -> float:
        return self.tokens / (self.tokens_a_row * self.rows_a_step)

    @property
    def hours(self) -> float:
        return self.flops / (self.peak * self.mfu) / 3600

    @property
    def chip_hours(self) -> float:
        return self.chips * self.hours

    @property
    def money(self) -> float | None:
        """USD; None without a price."""
        return None if self.price is None else self.price * self.chip_hours


def lengths(run: config.Run) -> "objectives.Lengths":
    """The objective's `Lengths` for the run; needs no tokenizer."""
    from lm import objectives
    from lm.objectives.dummy_vocabulary import DummyVocabulary

    if not isinstance(run.recipe, config.Pretrain):
        raise UserError("only pretraining has a cost before its data is read: see python -m lm.train --dry_run")
    return objectives.build(run.objective, run.model.architecture, run.data, DummyVocabulary.of(run)).lengths


def of(run: config.Run, tokens: float | None = None) -> Cost:
    """The cost of training on `tokens`, by default those of the run's steps. Raises UserError if the config has no pod."""
    if run.pod is None:
        raise UserError("the config has no pod section: set --config.pod.topology=v5e:16x16, or another")
    from lm.recipes import task

    rows = lengths(run)
    each = (rows.encoder or 0) + (rows.decoder or 0)
    sizes: dict[str, Any] = dict(encoder=rows.encoder, decoder=rows.decoder, blocks=rows.blocks)
    passes = [flops.count(m, batch=1, predicted=p, **sizes) for m, p in task(run).passes(rows)]
    topology = topologies.parse(run.pod.topology)
    chips = topology.chips * run.pod.slices
    return Cost(
        tokens=run.train.steps * run.train.batch_size * each if tokens is None else tokens,
        tokens_a_row=each,
        rows_a_step=run.train.batch_size,
        parts=sum(passes, flops.Flops()),
        chips=chips,
        peak=chips * topology.chip.flops,
        mfu=run.pod.mfu,
        price=run.pod.price,
    )


def show(cost: Cost, pod: config.Pod) -> str:
    """The cost as text, one figure per line."""
    parts, forward = cost.parts, cost.parts.forward
    shares = ", ".join(f"{name} {share / forward:.1%}" for name, share in vars(parts).items() if share)
    lines = [
        (f"{cost.tokens:,.0f}", f"tokens: {cost.steps:,.0f} steps of {cost.rows_a_step:,} rows of {cost.tokens_a_row:,}"),
        (f"{parts.train / cost.tokens_a_row:.4g}", f"model FLOPs a token: {shares}"),
        (f"{cost.flops:.4g}", "model FLOPs in all"),
        (f"{cost.chips:,}", f"chips, {pod.slices} x {pod.topology}, at {cost.mfu:.0%} of {cost.peak:.4g} FLOP/s"),
        (f"{cost.hours / 24:,.1f}", "days"),
        (f"{cost.chip_hours:,.0f}", "chip-hours"),
    ]
    if cost.money is None:
        lines.append(("?", "USD: give yours for an hour of a chip as --config.pod.price=..."))
    else:
        lines.append((f"{cost.money:,.0f}", f"USD, at {cost.price:g} for an hour of a chip"))
    return "\n".join(f"{figure:>22}  {what}" for figure, what in lines)


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if flags.tokens is not None and not flags.tokens > 0:
        raise UserError(f"--tokens={flags.tokens:g} is too small; give a number of tokens, such as --tokens=2e12")
    run = cli.load(flags)
    cost = of(run, flags.tokens)
    assert run.pod
    print(show(cost, run.pod))
    return 0


def parser() -> cli.Parser:
    p = cli.parser("tpu.cost", __doc__, config=True)
    p.add_argument("--tokens", type=float, help="to train on; by default those of the config's steps")
    return p


if __name__ == "__main__":
    cli.enter(main)
