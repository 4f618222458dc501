"""Creates, queries, reaches and deletes the hosts of a pod, through either of Google's APIs. No jax.

`Queued` is `gcloud compute tpus`: one queued resource with a node for each slice. It has all generations up to v6e.
`Compute` is Compute Engine: a managed instance group with a workload policy that joins its hosts into a slice, or one instance
for a slice of a single host. Only it has TPU7x. Names of flags are those of gcloud's reference; README.md says what could be
checked.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from lm.errors import UserError
from tpu.gcloud import Gcloud, GcloudFailed
from tpu.topologies import Topology

# Runtime versions of the TPU API, from Google's page "TPU software versions".
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclass(frozen=True)
class MachineType:
    """A machine type of Compute Engine."""

    name: str  # with {} for the number of chips
    chips: tuple[int, ...]  # per host
    image: str  # image family
    disk: str | None = None  # boot disk type; None: Compute Engine's default


MACHINES = {
    "v5p": MachineType("ct5p-hightpu-{}t", (4,), "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"),
    "v6e": MachineType("ct6e-standard-{}t", (1, 4, 8), "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"),
    "tpu7x": MachineType("tpu7x-standard-{}t", (1, 4), "ubuntu-accel-2404-amd64-tpu-tpu7x", "hyperdisk-balanced"),
}
IMAGES = "ubuntu-os-accelerator-images"  # the project that holds them


@dataclass(frozen=True)
class Wanted:
    """The pod that the command line asks for."""

    name: str
    topology: Topology
    slices: int = 1
    zone: str | None = None  # None: gcloud's own default
    project: str | None = None
    spot: bool = False
    flex_start: str | None = None  # maximum duration, "7d"
    runtime_version: str | None = None  # or the image family; None: that of the generation
    create_flags: tuple[str, ...] = ()  # more flags of the gcloud command that creates the hosts
    ssh_flags: tuple[str, ...] = ()  # more flags of `gcloud ... ssh` and `scp`

    @property
    def location(self) -> list[str]:
        """gcloud's flags for zone and project."""
        return [f"--{k}={v}" for k, v in (("zone", self.zone), ("project", self.project)) if v]


@dataclass(frozen=True)
class State:
    kind: Literal["absent", "waiting", "ready", "gone"]  # gone: it failed or was preempted, and has to be deleted
    detail: str  # Google's names of the states


ABSENT = State("absent", "does not exist")


class Queued:
    """A queued resource of the TPU API. A single node has its name; several are called NAME-0, NAME-1, ..."""

    tpus = ("compute", "tpus", "queued-resources")

    def __init__(self, wanted: Wanted, gcloud: Gcloud):
        self.wanted, self.gcloud = wanted, gcloud
        if wanted.topology.generation not in RUNTIMES:
            raise UserError(
                f"the TPU API does not know {wanted.topology.generation}; use --api=compute, or GKE (tpu/README.md)"
            )

    def create(self) -> None:
        w, t = self.wanted, self.wanted.topology
        if t.standard:
            shape = [f"--accelerator-type={t.accelerator}"]
        elif t.generation in ("v2", "v3", "v4"):  # others are requested by their number of chips only
            shape = [f"--type={t.generation}", f"--topology={str(t).partition(':')[2]}"]
        else:
            raise UserError(f"{t} cannot be requested from the TPU API, where {t.accelerator} has another shape or none")
        nodes = [f"--node-count={w.slices}", f"--node-prefix={w.name}"] if w.slices > 1 else [f"--node-id={w.name}"]
        flex = ["--provisioning-model=flex-start", f"--max-run-duration={w.flex_start}"] if w.flex_start else []
        self.gcloud(
            *(["alpha"] if flex else []),  # the only release track with these two flags
            *(*self.tpus, "create", w.name, *w.location, *nodes, *shape),
            f"--runtime-version={w.runtime_version or RUNTIMES[t.generation]}",
            *flex,
            *(["--spot"] if w.spot else []),
            *(*w.create_flags, "--quiet"),
        )

    def nodes(self) -> list[str]:
        w = self.wanted
        return [f"{w.name}-{i}" for i in range(w.slices)] if w.slices > 1 else [w.name]

    def state(self) -> State:
        w = self.wanted
        output = self.gcloud.query(*self.tpus, "describe", w.name, *w.location, "--format=json")
        if output is None:
            return ABSENT
        inner = json.loads(output).get("state", {}) if output else {"state": "ACTIVE"}  # empty in a dry run
        state = inner.get("state", "unknown")
        if state in ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING"):
            return State("gone", " ".join([state, *_messages(inner)]))
        if state != "ACTIVE":
            return State("waiting", state)
        # A node may have been preempted before its queued resource shows it.
        listed = json.loads(self.gcloud("compute", "tpus", "tpu-vm", "list", *w.location, "--format=json") or "[]")
        if self.gcloud.dry_run:
            return State("ready", "dry run")
        of = {node["name"].rpartition("/")[2]: node.get("state", "unknown") for node in listed}
        return _combined({node: of.get(node, "missing") for node in self.nodes()}, ready="READY", pending=_NODE_PENDING)

    def delete(self) -> bool:
        """Deletes all hosts; False if there were none."""
        words = ("delete", self.wanted.name, *self.wanted.location, "--force", "--quiet")
        return self.gcloud.query(*self.tpus, *words) is not None

    def copy(self, file: str, to: str) -> None:
        """Copies a local file to all hosts."""
        self.gcloud(*self.tpus, "scp", file, f"{self.wanted.name}:{to}", *self._ssh_flags("all", "all"))

    def shell(self, script: str, *, host: int | None = None, show: bool = False) -> str:
        """Runs a script on one host, or on all if `host` is None, and returns the output; `show` sends it to the terminal."""
        hosts = self.wanted.topology.hosts
        node, worker = ("all", "all") if host is None else map(str, divmod(host, hosts))
        return self.gcloud(
            *self.tpus, "ssh", self.wanted.name, *self._ssh_flags(node, worker), f"--command={script}", show=show
        )

    def _ssh_flags(self, node: str, worker: str) -> list[str]:
        w = self.wanted
        return [*w.location, f"--node={node}", f"--worker={worker}", "--batch-size=all", *w.ssh_flags, "--quiet"]


_NODE_PENDING = {"CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING", "UNHIDING"}
_INSTANCE_PENDING = {"PROVISIONING", "STAGING", "REPAIRING", "PENDING", "none"}


class Compute:
    """A slice in Compute Engine: a managed instance group in bulk mode (all hosts or none), or a single instance."""

    def __init__(self, wanted: Wanted, gcloud: Gcloud):
        self.wanted, self.gcloud = wanted, gcloud
        t = wanted.topology
        chips = t.chips if t.hosts == 1 else t.chip.chips_a_host
        if t.generation not in MACHINES or chips not in MACHINES[t.generation].chips:
            raise UserError(f"Compute Engine has no machine for {t}; use --api=queued")
        if wanted.slices > 1:
            raise UserError("several slices by Compute Engine are not supported; use --api=queued, or GKE (tpu/README.md)")
        if not wanted.zone or not wanted.project:
            raise UserError("Compute Engine needs --zone and --project: they are part of the name of the slice's policy")
        self.machine, self.chips = MACHINES[t.generation], chips
        self.group = t.hosts > 1
        self.region = wanted.zone.rpartition("-")[0]
        self.of_project = f"--project={wanted.project}"

    def create(self) -> None:
        w = self.wanted
        machine = [
            f"--machine-type={self.machine.name.format(self.chips)}",
            "--maintenance-policy=TERMINATE",
            f"--image-family={w.runtime_version or self.machine.image}",
            f"--image-project={IMAGES}",
            "--boot-disk-size=200GB",
            *([f"--boot-disk-type={self.machine.disk}"] if self.machine.disk else []),
            "--scopes=cloud-platform",
        ]
        if w.spot:  # a stopped host remains visible and is deleted with the rest; it cannot be restarted
            machine += ["--provisioning-model=SPOT", "--instance-termination-action=STOP"]
        if w.flex_start:
            machine += ["--provisioning-model=FLEX_START", f"--max-run-duration={w.flex_start}"]
            machine += ["--instance-termination-action=DELETE"]
        if not self.group:
            self.gcloud("compute", "instances", "create", w.name, *w.location, *machine, *w.create_flags, "--quiet")
            return
        shape, policy = str(w.topology).partition(":")[2], f"{self.region}/resourcePolicies/{w.name}"
        kinds = ("resource-policies", "instance-templates", "instance-groups")
        commands = (
            [
                *("create", "workload-policy", w.name, f"--region={self.region}", self.of_project),
                *("--type=HIGH_THROUGHPUT", f"--accelerator-topology={shape}", "--quiet"),
            ],
            ["create", w.name, self.of_project, *machine, *w.create_flags, "--quiet"],
            [
                *("managed", "create", w.name, *w.location, f"--size={w.topology.hosts}", f"--template={w.name}"),
                f"--workload-policy=projects/{w.project}/regions/{policy}",
                *("--target-size-policy-mode=bulk", "--default-action-on-vm-failure=do-nothing", "--quiet"),
            ],
        )
        for made, (kind, command) in enumerate(zip(kinds, commands, strict=True)):
            try:
                self.gcloud("compute", kind, *command)
            except GcloudFailed:
                for earlier in kinds[:made][::-1]:  # they would make the next attempt fail; others are not ours to remove
                    self._remove(earlier)
                raise

    def instances(self) -> dict[str, str] | None:
        """Instance -> status, sorted by name: {"pod-x1y2": "RUNNING", ...}. None if there is no group; {} in a dry run."""
        w = self.wanted
        if self.group:
            words = ["compute", "instance-groups", "managed", "list-instances", w.name]
        else:
            words = ["compute", "instances", "describe", w.name]
        output = self.gcloud.query(*words, *w.location, "--format=json")
        if not output:
            return None if output is None else {}
        listed = json.loads(output) if self.group else [json.loads(output)]
        # A group lists the URL of an instance, and `instanceStatus`, which is missing while it is pending.
        return dict(sorted((_name(i), i.get("instanceStatus", i.get("status")) or "none") for i in listed))

    def state(self) -> State:
        of = self.instances()
        if of is None:
            return ABSENT
        if self.gcloud.dry_run:
            return State("ready", "dry run")
        if not of:
            return State("waiting", "no hosts yet")
        missing = {f"host {i}": "missing" for i in range(len(of), self.wanted.topology.hosts)}
        return _combined(of | missing, ready="RUNNING", pending=_INSTANCE_PENDING)

    def delete(self) -> bool:
        """Deletes all hosts, template and policy; False if there were none."""
        kinds = ("instance-groups", "instance-templates", "resource-policies") if self.group else ("instances",)
        return any([self._remove(kind) for kind in kinds])  # a list: no short circuit

    def _remove(self, kind: str) -> bool:
        w = self.wanted
        words = {
            "instances": ["delete", w.name, *w.location],
            "instance-groups": ["managed", "delete", w.name, *w.location],
            "instance-templates": ["delete", w.name, self.of_project],
            "resource-policies": ["delete", w.name, f"--region={self.region}", self.of_project],
        }
        return self.gcloud.query("compute", kind, *words[kind], "--quiet") is not None

    def copy(self, file: str, to: str) -> None:
        """Copies a local file to all hosts."""
        self.gcloud.all([["compute", "scp", file, f"{host}:{to}", *self._ssh_flags()] for host in self._hosts()])

    def shell(self, script: str, *, host: int | None = None, show: bool = False) -> str:
        """Runs a script on one host, or on all if `host` is None, and returns the output; `show` sends it to the terminal."""
        hosts = self._hosts()
        if host is not None and host >= len(hosts):
            raise UserError(f"no host {host}; there are {len(hosts)}: {', '.join(hosts)}")
        commands = [["compute", "ssh", h, *self._ssh_flags(), f"--command={script}"] for h in hosts]
        return "".join(self.gcloud.all(commands)) if host is None else self.gcloud(*commands[host], show=show)

    def _hosts(self) -> list[str]:
        of = self.instances()
        if self.gcloud.dry_run:  # Compute Engine chooses the ends of their names
            return [
                f"{self.wanted.name}-HOST{i}" if self.group else self.wanted.name for i in range(self.wanted.topology.hosts)
            ]
        if not of:
            raise UserError(f"'{self.wanted.name}' has no hosts")
        return list(of)

    def _ssh_flags(self) -> list[str]:
        return [*self.wanted.location, *self.wanted.ssh_flags, "--quiet"]


Machines = Queued | Compute
APIS = {"queued": Queued, "compute": Compute}


def machines(wanted: Wanted, api: str | None, gcloud: Gcloud) -> Machines:
    """The pod's hosts through `api`, by default the one that has this generation."""
    return APIS[api or ("queued" if wanted.topology.generation in RUNTIMES else "compute")](wanted, gcloud)


def _name(instance: dict[str, Any]) -> str:
    return instance.get("instance", instance.get("name", "")).rpartition("/")[2]


def _messages(state: dict[str, Any]) -> list[str]:
    """The error messages nested anywhere in a state."""
    below = [_messages(v) for v in state.values() if isinstance(v, dict)]
    return ([str(state["message"])] if "message" in state else []) + [m for found in below for m in found]


def _combined(of: dict[str, str], *, ready: str, pending: set[str]) -> State:
    """The state of a pod from those of its hosts: "gone" if any host is neither ready nor pending."""
    unready = [f"{name} {state}" for name, state in of.items() if state != ready]
    if not unready:
        return State("ready", ready)
    gone = any(state not in pending | {ready} for state in of.values())
    return State("gone" if gone else "waiting", ", ".join(unready))
