"""The search for a config that fits, with a simulated memory: the state, and activations per row."""

from lm import sharding
from lm.training.advice import Outcome, candidates, rows_of, search

MESH = {"slice": 1, "data": 4, "fsdp": 2, "sequence": 1, "expert": 1, "tensor": 1}
KEPT = {"none": 100.0, "dots": 40.0, "full": 5.0}  # activations per row of a microbatch
KEY = "model.decoder.remat"


class Memory:
    """A device's memory: `weights` sharded over fsdp and tensor, and KEPT per row of a microbatch. `tried`: compiled
    candidates."""

    def __init__(self, weights, capacity, batch_size=64, mesh=MESH):
        self.weights, self.capacity, self.batch_size, self.mesh, self.tried = weights, capacity, batch_size, mesh, []

    def state(self, c):
        return self.weights / (self._size(c, "fsdp") * self._size(c, "tensor"))

    def _size(self, c, axis):
        return c.changes.get(f"mesh.{axis}", self.mesh[axis])

    def outcome(self, c):
        peak = self.state(c) + KEPT[c.remat] * c.load
        return Outcome(peak <= self.capacity, peak, self.state(c))

    def attempt(self, c):
        self.tried.append(c)
        return self.outcome(c)

    def search(self, **settings):
        found = candidates(self.mesh, self.batch_size, 1, {KEY: "none"})
        rows = self.mesh["data"] * self.mesh["fsdp"]
        load, state = self.batch_size / rows, self.weights / self.mesh["fsdp"]
        first = ("none", load, Outcome(False, state + KEPT["none"] * load, state))
        settings = dict(capacity=self.capacity, state=self.state, attempt=self.attempt) | settings
        return search(found, first=first, **settings), found


def test_the_cheapest_that_fits_is_found():
    """Pruning is safe: whatever the memory, no candidate before the answer fits."""
    for weights in (10, 1000, 3000):
        for capacity in (90, 200, 450, 900, 1600):
            memory = Memory(weights, capacity)
            answer, found = memory.search(tries=99)
            first = next((c for c in found if memory.outcome(c).fits), None)
            assert answer == first, (weights, capacity)


def test_few_are_compiled():
    memory = Memory(weights=1000, capacity=530)
    answer, found = memory.search()
    assert answer is not None and len(memory.tried) <= 3 < len(found)


def test_no_more_are_compiled_than_asked_for():
    """Every attempt fails by little, so none rules out the next one."""
    memory = Memory(weights=10, capacity=500)
    stubborn = lambda c: memory.tried.append(c) or Outcome(False, 501, 500)
    assert memory.search(attempt=stubborn, state=lambda c: 1.0, tries=3)[0] is None and len(memory.tried) == 3


def test_a_state_that_is_too_large_is_not_compiled():
    memory = Memory(weights=4000, capacity=990)  # fits only when sharded over 8 devices
    answer, _ = memory.search()
    sizes = [memory._size(c, "fsdp") * memory._size(c, "tensor") for c in memory.tried]
    assert answer is not None and set(sizes) == {8}


def test_what_the_config_refuses_is_passed_over():
    memory = Memory(weights=1000, capacity=530)
    answer, _ = memory.search(state=lambda c: None if "mesh.tensor" not in c.changes else memory.state(c))
    assert answer is not None and all("mesh.tensor" in c.changes for c in memory.tried)


def test_candidates_divide_the_batch_and_keep_the_devices():
    for c in candidates(MESH, 48, 2, {KEY: "dots"}):
        sizes = MESH | {k.removeprefix("mesh."): n for k, n in c.changes.items() if k.startswith("mesh.")}
        product, rows = 1, sizes["data"] * sizes["fsdp"]
        for n in sizes.values():
            product *= n
        assert product == 8 and 48 % (rows * c.changes.get("train.microbatches", 2)) == 0
        assert c.changes.get(KEY) in (None, "full")  # never less remat than the config has


def test_candidates_come_in_order_of_their_cost():
    found = candidates(MESH, 64, 1, {KEY: "none", "model.encoder.remat": "none"})
    assert [c.slowdown for c in found] == sorted(c.slowdown for c in found)
    assert all(("model.encoder.remat" in c.changes) == (KEY in c.changes) for c in found)


def test_flags():
    found = candidates(MESH, 64, 1, {KEY: "none"})
    changes = {"mesh.data": 2, "mesh.fsdp": 4}
    assert next(c for c in found if c.changes == changes).flags == "--config.mesh.data=2 --config.mesh.fsdp=4"


def test_what_is_kept_is_given_up_before_the_batch():
    """By itself, or with a policy that keeps less; never for one that keeps more."""
    changes = lambda now: [dict(c.changes) for c in candidates(MESH, 8, 1, {KEY: now})]
    keep = "model.decoder.keep"
    assert {keep: ()} in changes("full, kept") and {keep: ()} in changes("dots, kept")
    assert {KEY: "full", keep: ()} in changes("dots, kept") and {KEY: "full"} in changes("dots")
    assert not any(c.get(KEY) in ("none", "dots") for c in changes("full, kept")) and not any(
        keep in c for c in changes("dots")
    )
    assert next(c for c in candidates(MESH, 8, 1, {KEY: "full, kept"}) if keep in c.changes).flags.endswith('keep="()"')


def test_rows_are_split_by_the_axes_that_sharding_names():
    mesh = {axis: 2 for axis in ("slice", "data", "fsdp", "expert", "tensor", "sequence")}
    assert rows_of(mesh) == 2 ** len(sharding.ROWS) and all(rows_of(mesh | {axis: 6}) == 48 for axis in sharding.ROWS)
