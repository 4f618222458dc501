"""Runs of several processes ("hosts"): how they connect, wait for each other, and exit when one of them is gone.

    host 0                      host 1
    start   <- roll call ->     start       within LM_BARRIER_SECONDS, or an error that names the missing hosts
    barrier("restore")          barrier("restore")
    ...                         killed
    exits within LM_HEARTBEAT_SECONDS

On Cloud TPU slices, GKE and Kubernetes jobs, Slurm and Open MPI, jax detects the hosts. Elsewhere, three environment
variables describe them to each process: JAX_COORDINATOR_ADDRESS=<host 0>:<port>, LM_PROCESSES=<number of processes> and
LM_PROCESS=<index of this one, from 0>. Without these variables, and where jax detects nothing, the process runs alone.
LM_PROCESSES=1 runs a process alone where jax would detect others.
"""

import importlib.util
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import clusters, distributed  # private: jax's cluster detection, and its client, whose barriers have a timeout
from jax.experimental import multihost_utils

from lm import process
from lm.errors import EXIT_HOST_MISSING, EXIT_INTERRUPTED, EXIT_PREEMPTED, HostMissing, UserError

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "LM_PROCESSES", "LM_PROCESS"
# A scheduler sets one of these when it starts several processes. jax reads the details from its other variables.
JOBS = (
    "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE",
    "JOB_COMPLETION_INDEX",
    "TPU_WORKER_HOSTNAMES",
    "TPU_PROCESS_ADDRESSES",
)
HEARTBEAT, BARRIER = 30, 600  # default timeouts in seconds
ORDERLY = (0, EXIT_PREEMPTED, EXIT_INTERRUPTED)  # exit codes that all hosts of a run return together
LOST = (
    "Gloo",
    "UNAVAILABLE",
    "ABORTED",
    "DEADLINE_EXCEEDED",
)  # in the messages of collectives that fail because another host is gone
CHUNK = 2**26  # bytes that `pieces` gathers at a time

_barrier_ids = count()  # makes the names of barriers unique; all hosts reach the same barriers in the same order


def start() -> None:
    """Connects to the other processes of the run, if there are any. Must be called before anything initializes a device.

    Raises HostMissing if some do not connect within LM_BARRIER_SECONDS, and UserError if the environment is inconsistent.
    """
    if jax.distributed.is_initialized():
        return
    hosts = _from_environment(os.environ)
    if hosts is None and _should_detect(os.environ):
        hosts = _detect()
    if hosts is None or hosts["num_processes"] == 1:
        return
    seconds = seconds_of("LM_BARRIER_SECONDS", BARRIER)
    _roll_call(hosts["coordinator_address"], hosts["num_processes"], hosts["process_id"], seconds)
    jax.distributed.initialize(
        **hosts,
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=seconds_of("LM_HEARTBEAT_SECONDS", HEARTBEAT),
        shutdown_timeout_seconds=3600,  # host 0 may still be writing its report; the heartbeat detects dead hosts
        cluster_detection_method="deactivate",
    )


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize` that our variables give, or None if they are not set.

    UserError if only some are set, except `LM_PROCESSES=1`, or if they are not valid.
    """
    if environment.get(PROCESSES) == "1":
        return dict(num_processes=1)
    set_names = [name for name in (PROCESSES, PROCESS) if name in environment]
    if not set_names:
        return None
    if unset := [name for name in (ADDRESS, PROCESSES, PROCESS) if not environment.get(name)]:
        raise UserError(
            f"{set_names[0]} is set and {unset[0]} is not; set {ADDRESS}, {PROCESSES} and {PROCESS}, or none of them"
        )
    try:
        processes, process = int(environment[PROCESSES]), int(environment[PROCESS])
    except ValueError:
        processes, process = 0, 0
    if not 0 <= process < processes or not environment[ADDRESS].rpartition(":")[2].isdigit():
        raise UserError(
            f"{PROCESS}={environment[PROCESS]} of {PROCESSES}={environment[PROCESSES]} at {ADDRESS}={environment[ADDRESS]}: "
            "give the index of this process (from 0), the number of processes, and <host 0>:<port>"
        )
    return dict(coordinator_address=environment[ADDRESS], num_processes=processes, process_id=process)


def _should_detect(environment: Mapping[str, str]) -> bool:
    """Whether to run jax's cluster detection. It takes time on a single machine, and warns in a single Kubernetes pod."""
    if any(name in environment for name in (ADDRESS, *JOBS)):
        return True
    platforms = environment.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def _detect() -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize` that jax detects, or None if it detects no cluster.

    UserError if detection fails or finds nothing although a scheduler's variables are set: otherwise each process would
    train on its own.
    """
    seconds, cure = seconds_of("LM_BARRIER_SECONDS", BARRIER), f"set {ADDRESS}, {PROCESSES} and {PROCESS}, or {PROCESSES}=1 if"
    try:
        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        address, processes, process, devices = detect(os.environ.get(ADDRESS), None, None, None, None, seconds)
    except Exception as error:  # jax raises many types, depending on the scheduler or metadata server
        cause = (str(error).splitlines() or [""])[0]
        raise UserError(f"cannot find the other processes ({type(error).__name__}: {cause}); {cure} there are none") from error
    if processes is None or process is None:
        if named := next((name for name in (ADDRESS, *JOBS) if name in os.environ), None):
            raise UserError(f"{named} is set, and jax detects no other processes; {cure} there are none")
        return None
    return dict(coordinator_address=address, num_processes=processes, process_id=process, local_device_ids=devices)


def seconds_of(name: str, default: int) -> int:
    """The timeout in the environment variable `name`, in seconds."""
    value = os.environ.get(name, str(default))
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"{name}={value} is not a number of seconds; give an integer of at least 1")
    return int(value)


# ------------------------------------------------------------------------------------------------------ barriers


def _roll_call(address: str, processes: int, process: int, seconds: float) -> None:
    """Waits until all processes have reported to host 0, at the address where jax's coordinator listens afterwards.

    Raises HostMissing with the missing hosts. Without it, jax aborts with a stack trace that does not name them.
    """
    host, _, port = address.rpartition(":")
    missing = _collect(int(port), processes, seconds) if process == 0 else _report(host, int(port), process, seconds)
    if missing:
        raise _missing_error(missing, processes, "start", seconds)


def _collect(port: int, processes: int, seconds: float) -> list[int]:
    """Host 0's side: accepts one connection per process, sends the list of missing indices to all, and returns it."""
    end, connected = time.monotonic() + seconds, dict[int, socket.socket]()
    try:
        both = socket.has_dualstack_ipv6()
        server = socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(f"port {port} of {ADDRESS} cannot be used ({error.strerror}); give a free one") from error
    with server:
        while len(connected) < processes - 1 and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                peer = server.accept()[0]
                peer.settimeout(min(left, 10))
                number = peer.recv(16)
            except OSError:  # timed out, or the peer closed the connection
                continue
            if number.isdigit() and 0 < int(number) < processes:
                connected[int(number)] = peer
            else:  # not a process of this run
                peer.close()
        missing = [i for i in range(1, processes) if i not in connected]
        for peer in connected.values():
            with peer:
                try:
                    peer.sendall(json.dumps(missing).encode())
                except OSError:  # it died since; jax.distributed.initialize will report that
                    continue
    return missing


def _report(host: str, port: int, process: int, seconds: float) -> list[int]:
    """The other hosts' side: sends this process's index to host 0, retrying until it listens. Returns the missing indices that
    host 0 replies with, or [0] if it does not reply in time."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 10)) as peer:
                peer.sendall(str(process).encode())
                peer.settimeout(left + seconds)  # host 0 may have started later than this process, and waits `seconds` too
                reply = b""
                while piece := peer.recv(4096):
                    reply += piece
            return json.loads(reply)
        except (OSError, ValueError):  # host 0 does not listen yet, or closed the connection before it replied
            time.sleep(min(0.2, max(end - time.monotonic(), 0)))
    return [0]


def barrier(name: str) -> None:
    """Waits until all hosts call this. HostMissing, after LM_BARRIER_SECONDS, names those that did not."""
    if not jax.distributed.is_initialized():
        return
    state, seconds = distributed.global_state, seconds_of("LM_BARRIER_SECONDS", BARRIER)
    client: Any = state.client
    key = f"lm/{next(_barrier_ids)}/{name}"
    client.key_value_set(f"{key}/{state.process_id}", "arrived")
    try:
        client.wait_at_barrier(key, seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        arrived = {int(entry.rpartition("/")[2]) for entry, _ in client.key_value_dir_get(key)}
        missing = sorted(set(range(state.num_processes)) - arrived)
        if not missing:  # all hosts arrived, so the cause is another one
            raise
        raise _missing_error(missing, state.num_processes, name, seconds) from error


def _missing_error(missing: list[int], processes: int, name: str, seconds: float) -> HostMissing:
    who = f"host {missing[0]}" if len(missing) == 1 else f"hosts {', '.join(map(str, missing))}"
    return HostMissing(
        f"{who} of {processes} did not arrive at '{name}' within {seconds:g} s (LM_BARRIER_SECONDS); see the log there, and "
        "restart all hosts"
    )


# ------------------------------------------------------------------------------------------------ shared values


def process_id() -> int:
    """Index of this process among those that `start` connected, from 0. Unlike jax's, it needs no device."""
    return distributed.global_state.process_id or 0


def is_main_process() -> bool:
    """Whether this is host 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def broadcast(value: int | None) -> int | None:
    """Returns host 0's `value`, an int32 of at least 0 or None, on all hosts. All hosts must call it."""
    if jax.process_count() == 1:
        return value
    received = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if value is None else value)))
    return None if received < 0 else received


def broadcast_array(x: np.ndarray) -> np.ndarray:
    """Returns host 0's array, bit by bit, on all hosts, which give arrays of one shape and a dtype of 4 or 8 bytes. All hosts
    must call it."""
    if jax.process_count() == 1:
        return x
    return np.asarray(multihost_utils.broadcast_one_to_all(np.ascontiguousarray(x).view(np.uint32))).view(x.dtype)


def fetched(x: Any) -> np.ndarray:
    """Returns the complete array in host memory, on every host. All hosts must call it: it gathers what others hold."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def pieces(x: Any) -> Iterator[np.ndarray]:
    """Yields the array in host memory in slices along axis 0, of about CHUNK bytes if it must be gathered from other hosts.

    No device then needs memory for the complete array. All hosts must iterate to the end.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        yield np.asarray(x)
        return
    rows = max(1, CHUNK * x.shape[0] // max(x.nbytes, 1))
    for first in range(0, x.shape[0], rows):
        yield fetched(_rows(x, first, min(rows, x.shape[0] - first)))


@partial(jax.jit, static_argnums=2)
def _rows(x: jax.Array, first: int, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, first, count)


# ----------------------------------------------------------------------------------------------------------- exit


def run(main: Callable[[], int]) -> NoReturn:
    """Runs `main` and exits with the code that it returns; prints one line and exits with EXIT_HOST_MISSING if a host is gone.

    A host that failed exits at once, and skips jax's shutdown barrier: the others may be waiting for it elsewhere. They
    detect that it is gone and exit too.
    """
    me, all_exit = distributed.global_state, False
    try:
        code = main()
        all_exit = code in ORDERLY and not process.was_asked()  # outside of training steps a signal stops this host only
    except HostMissing as missing:
        print(f"error: {missing}", file=sys.stderr)
        code = EXIT_HOST_MISSING
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and any(text in str(error) for text in LOST):
            cause = str(error).splitlines()[0]
            print(
                f"error: host {me.process_id} of {me.num_processes} lost its connection to another host ({cause})",
                file=sys.stderr,
            )
            code = EXIT_HOST_MISSING
        else:
            traceback.print_exc()
            code = 1
    if all_exit or not jax.distributed.is_initialized():
        # A host that has finished waits for host 0's report, and a signal may kill it. After a signal all hosts exit now, and
        # further signals are ignored.
        process.leave(code, waits=code == 0 and jax.distributed.is_initialized())
    sys.stdout.flush()
    sys.stderr.flush()
    if me.process_id == 0:  # jax's coordinator stops with host 0 and aborts the other hosts: let them print their errors first
        time.sleep(2)
    os._exit(code)
