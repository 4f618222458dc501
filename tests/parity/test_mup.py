"""muP against the `mup` package of its authors (github.com/microsoft/mup): rates, decay, multipliers, and training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, optim
from lm.config.widening import widened

mup = pytest.importorskip("mup")
torch = pytest.importorskip("torch")

VOCAB, BASE, WIDTH, RATE, DECAY, STEPS = 11, 8, 32, 0.02, 0.3, 6
M = WIDTH // BASE
DECAYED = ("up.weight", "down.weight", "head.weight")  # of a head that is its own


class Net(torch.nn.Module):
    """A feed-forward layer between embeddings and logits, of the paper's three kinds of parameters."""

    def __init__(self, width: int, tied: bool) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(VOCAB, width)
        torch.nn.init.normal_(self.tokens.weight, std=0.1)
        self.up, self.down = torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width)
        # A MuSharedReadout of its own would have a bias as long as the width (mup 1.0.0).
        shared = mup.MuSharedReadout(self.tokens.weight, bias=False)
        self.head = shared if tied else mup.MuReadout(width, VOCAB, bias=False)
        self.bias = torch.nn.Parameter(torch.zeros(VOCAB))

    def forward(self, ids: Any) -> Any:
        x = self.tokens(ids)
        return self.head(x + self.down(torch.relu(self.up(x)))) + self.bias


def theirs(tied: bool) -> Any:
    torch.manual_seed(0)
    net = Net(WIDTH, tied)
    mup.set_base_shapes(net, Net(BASE, tied), delta=Net(2 * BASE, tied))
    return net


def ours(net: Any, tied: bool, scale: float) -> dict[str, Any]:
    """The same function's parameters. A bias is inside of the multiplier here, and outside there; so is the root of m that the
    head's matrix begins with."""
    of = lambda layer: {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}
    bias = net.bias.detach().numpy() / scale
    head = {"bias": bias} if tied else {"out": {"kernel": net.head.weight.detach().numpy().T * scale, "bias": bias}}
    params = {"embed": {"embedding": net.tokens.weight.detach().numpy()}, "ffn": {"up": of(net.up), "down": of(net.down)}}
    return jax.tree.map(jnp.array, params | {"head": head})


def logits(params: Any, ids: np.ndarray, scale: float) -> jax.Array:
    table, layer, head = params["embed"]["embedding"], params["ffn"], params["head"]
    x = table[ids]
    x = x + jax.nn.relu(x @ layer["up"]["kernel"] + layer["up"]["bias"]) @ layer["down"]["kernel"] + layer["down"]["bias"]
    out = head["out"] if "out" in head else {"kernel": table.T, "bias": head["bias"]}
    return (x @ out["kernel"] + out["bias"]) * scale


def multiplier(tied: bool) -> float:
    stack = config.Stack(1, {"L": config.Block(config.Attention(M), config.Mlp(2 * WIDTH))})
    model = widened(config.Model(VOCAB, WIDTH, decoder=stack, head=config.Head(tied)), BASE)
    assert model.head is not None and model.head.scale is not None
    return model.head.scale


def their_optimizer(net: Any) -> Any:
    named = dict(net.named_parameters())
    names = [name for name in DECAYED if name in named and not (name == "head.weight" and named[name] is net.tokens.weight)]
    decayed = [named.pop(name) for name in names]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": list(named.values()), "weight_decay": 0.0}]
    return mup.MuAdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-15)


@pytest.mark.parametrize("tied", [True, False])
def test_rates_and_decay_are_those_of_mup(tied):
    """In their units: a parameter of ours that is c times theirs moves c times as far."""
    net, scale = theirs(tied), multiplier(tied)
    rates = {p: (g["lr"] / RATE, g["lr"] * g["weight_decay"]) for g in their_optimizer(net).param_groups for p in g["params"]}
    factors = optim.width_factors(ours(net, tied, scale), M)
    assert factors["ffn"]["up"]["kernel"] == rates[net.up.weight][0] == 1 / M
    assert factors["ffn"]["down"]["kernel"] == rates[net.down.weight][0] == 1 / M
    assert rates[net.up.weight][1] == pytest.approx(RATE * DECAY), "decay as at the base's width"
    assert factors["embed"]["embedding"] == rates[net.tokens.weight][0] == 1
    assert factors["ffn"]["up"]["bias"] == rates[net.up.bias][0] == 1
    assert net.head.width_mult() == M
    head = factors["head"] if tied else factors["head"]["out"]
    assert head["bias"] * scale == rates[net.bias][0] == 1
    if tied:
        assert scale == 1 / M
    else:
        assert head["kernel"] / scale == rates[net.head.weight][0] == 1 and scale * scale == 1 / M


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_trains_as_with_mup(tied):
    """The same logits after some steps of AdamW, from the same function."""
    net, scale = theirs(tied), multiplier(tied)
    ids, targets = np.arange(VOCAB), np.roll(np.arange(VOCAB), 3)
    params = ours(net, tied, scale)
    before = np.asarray(logits(params, ids, scale))
    np.testing.assert_allclose(before, net(torch.tensor(ids)).detach().numpy(), rtol=1e-5, atol=1e-6)

    adamw = their_optimizer(net)
    for _ in range(STEPS):
        adamw.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.tensor(ids)), torch.tensor(targets)).backward()
        adamw.step()

    settings: Any = dict(learning_rate=RATE, schedule=config.Schedule("constant", warmup=0), weight_decay=DECAY, eps=1e-15)
    tx, _ = optim.make(config.Optimizer(base_width=BASE, **settings), STEPS, width=WIDTH)
    state = tx.init(params)
    loss = lambda p: -jnp.mean(jax.nn.log_softmax(logits(p, ids, scale))[ids, targets])

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        change, state = tx.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(jnp.add, params, change), state

    for _ in range(STEPS):
        params, state = step(params, state)
    after = np.asarray(logits(params, ids, scale))
    np.testing.assert_allclose(after, net(torch.tensor(ids)).detach().numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(after - before).mean() > 0.1
