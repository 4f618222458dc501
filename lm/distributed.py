"""Several processes of one run ("hosts"): how they find each other, meet, and end when one of them is missing.

    host 0                      host 1
    start   <- roll call ->     start       within LM_BARRIER_SECONDS, or an error that names who is not there
    barrier("restore")             barrier("restore")
    ...                         killed
    ends within LM_HEARTBEAT_SECONDS

On Cloud TPU slices, GKE and Kubernetes jobs, Slurm and Open MPI the hosts are found by themselves. Elsewhere each process
is told by three variables of its environment: JAX_COORDINATOR_ADDRESS=<host 0>:<port>, LM_PROCESSES=<how many> and
LM_PROCESS=<0, 1, ...>. A process that is told nothing and finds nothing is alone; LM_PROCESSES=1 says so where jax would
find others.
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
from jax._src import clusters, distributed  # no public name: what jax would detect, and barriers with a time-out
from jax.experimental import multihost_utils

from lm import process
from lm.errors import EXIT_HOST_MISSING, EXIT_INTERRUPTED, EXIT_PREEMPTED, HostMissing, UserError

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "LM_PROCESSES", "LM_PROCESS"
# Where one of these is set, a scheduler has started several processes and jax knows how to read which.
JOBS = (
    "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE",
    "JOB_COMPLETION_INDEX",
    "TPU_WORKER_HOSTNAMES",
    "TPU_PROCESS_ADDRESSES",
)
HEARTBEAT, BARRIER = 30, 600  # seconds, by default
ORDERLY = (0, EXIT_PREEMPTED, EXIT_INTERRUPTED)  # all hosts end with these together
LOST = ("Gloo", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED")  # in errors of collectives whose other end is gone
CHUNK = 2**26  # bytes of an array that travel to the hosts at once

_turn = count()  # each meeting has a name of its own; hosts hold the same meetings in the same order


def start() -> None:
    """Joins the other processes, if there are any. Call before anything touches a device. HostMissing, UserError."""
    if jax.distributed.is_initialized():
        return
    hosts = _told(os.environ)
    if hosts is None and _may_find(os.environ):
        hosts = _found()
    if hosts is None or hosts["num_processes"] == 1:
        return
    seconds = _seconds("LM_BARRIER_SECONDS", BARRIER)
    _roll_call(hosts["coordinator_address"], hosts["num_processes"], hosts["process_id"], seconds)
    jax.distributed.initialize(
        **hosts,
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=_seconds("LM_HEARTBEAT_SECONDS", HEARTBEAT),
        shutdown_timeout_seconds=3600,  # host 0 may be at its report: who is dead is found by the heartbeat
        cluster_detection_method="deactivate",
    )


def _told(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What the variables say: all three of them, or none but `LM_PROCESSES=1`."""
    if environment.get(PROCESSES) == "1":
        return dict(num_processes=1)
    given = [name for name in (PROCESSES, PROCESS) if name in environment]
    if not given:
        return None
    if lacking := [name for name in (ADDRESS, PROCESSES, PROCESS) if not environment.get(name)]:
        raise UserError(f"{given[0]} is set and {lacking[0]} is not; set {ADDRESS}, {PROCESSES} and {PROCESS}, or none of them")
    try:
        processes, process = int(environment[PROCESSES]), int(environment[PROCESS])
    except ValueError:
        processes, process = 0, 0
    if not 0 <= process < processes or not environment[ADDRESS].rpartition(":")[2].isdigit():
        raise UserError(
            f"{PROCESS}={environment[PROCESS]} of {PROCESSES}={environment[PROCESSES]} at {ADDRESS}={environment[ADDRESS]}: "
            "give a number from 0 on, how many there are, and <host 0>:<port>"
        )
    return dict(coordinator_address=environment[ADDRESS], num_processes=processes, process_id=process)


def _may_find(environment: Mapping[str, str]) -> bool:
    """Whether to ask jax at all: on a lone machine the question is not free, and in a lone Kubernetes pod it warns."""
    if any(name in environment for name in (ADDRESS, *JOBS)):
        return True
    platforms = environment.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def _found() -> dict[str, Any] | None:
    """What jax finds out about where it runs; None if nothing. Never None where a scheduler speaks of others: each would
    train by itself."""
    seconds, cure = _seconds("LM_BARRIER_SECONDS", BARRIER), f"set {ADDRESS}, {PROCESSES} and {PROCESS}, or {PROCESSES}=1 if"
    try:
        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        address, processes, process, devices = detect(os.environ.get(ADDRESS), None, None, None, None, seconds)
    except Exception as error:  # whatever a scheduler's variables or a metadata server may lack
        cause = (str(error).splitlines() or [""])[0]
        raise UserError(f"cannot find the other processes ({type(error).__name__}: {cause}); {cure} there are none") from error
    if processes is None or process is None:
        if named := next((name for name in (ADDRESS, *JOBS) if name in os.environ), None):
            raise UserError(f"{named} is set, and jax finds no other processes; {cure} there are none")
        return None
    return dict(coordinator_address=address, num_processes=processes, process_id=process, local_device_ids=devices)


def _seconds(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"{name}={value} is not a number of seconds; give a whole number from 1 on")
    return int(value)


# ------------------------------------------------------------------------------------------------------ meetings


def _roll_call(address: str, processes: int, process: int, seconds: float) -> None:
    """Waits until all are there, at the address that jax's service takes over then. Left to jax, a host that stays away ends
    the others with a stack trace that names nobody."""
    host, _, port = address.rpartition(":")
    missing = _answer(int(port), processes, seconds) if process == 0 else _report(host, int(port), process, seconds)
    if missing:
        raise _absent(missing, processes, "start", seconds)


def _answer(port: int, processes: int, seconds: float) -> list[int]:
    """Host 0: hears the others' numbers, tells all who is missing, and returns it."""
    end, here = time.monotonic() + seconds, dict[int, socket.socket]()
    try:
        both = socket.has_dualstack_ipv6()
        server = socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(f"port {port} of {ADDRESS} cannot be used ({error.strerror}); give a free one") from error
    with server:
        while len(here) < processes - 1 and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                line = server.accept()[0]
                line.settimeout(min(left, 10))
                number = line.recv(16)
            except OSError:  # the time is over, or somebody hung up
                continue
            if number.isdigit() and 0 < int(number) < processes:
                here[int(number)] = line
            else:  # not one of us
                line.close()
        missing = [i for i in range(1, processes) if i not in here]
        for line in here.values():
            with line:
                try:
                    line.sendall(json.dumps(missing).encode())
                except OSError:  # gone again: jax's own connection will miss it
                    continue
    return missing


def _report(host: str, port: int, process: int, seconds: float) -> list[int]:
    """Another host: says its number to host 0 as soon as that one listens; returns what it answers."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 10)) as line:
                line.sendall(str(process).encode())
                line.settimeout(left + seconds)  # host 0 may have come later, and waits as long
                answer = b""
                while piece := line.recv(4096):
                    answer += piece
            return json.loads(answer)
        except (OSError, ValueError):  # not listening yet, or gone before it answered
            time.sleep(min(0.2, max(end - time.monotonic(), 0)))
    return [0]


def barrier(name: str) -> None:
    """Waits until all hosts are here; HostMissing names those who are not after LM_BARRIER_SECONDS."""
    if not jax.distributed.is_initialized():
        return
    state, seconds = distributed.global_state, _seconds("LM_BARRIER_SECONDS", BARRIER)
    client: Any = state.client
    room = f"lm/{next(_turn)}/{name}"
    client.key_value_set(f"{room}/{state.process_id}", "here")
    try:
        client.wait_at_barrier(room, seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        here = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(room)}
        missing = sorted(set(range(state.num_processes)) - here)
        if not missing:  # all came, and then something else went wrong
            raise
        raise _absent(missing, state.num_processes, name, seconds) from error


def _absent(missing: list[int], processes: int, name: str, seconds: float) -> HostMissing:
    who = f"host {missing[0]}" if len(missing) == 1 else f"hosts {', '.join(map(str, missing))}"
    return HostMissing(
        f"{who} of {processes} did not arrive at '{name}' within {seconds:g} s (LM_BARRIER_SECONDS); see the log there, and "
        "start all again"
    )


# -------------------------------------------------------------------------------------------------- what hosts share


def is_main_process() -> bool:
    """Whether this is host 0, who alone writes and speaks."""
    return jax.process_index() == 0


def broadcast(value: int | None) -> int | None:
    """What host 0 has as `value`, at all hosts."""
    if jax.process_count() == 1:
        return value
    said = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if value is None else value)))
    return None if said < 0 else said


def fetched(x: Any) -> np.ndarray:
    """An array whole, at every host; all must ask for it."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def pieces(x: Any) -> Iterator[np.ndarray]:
    """The same along its first axis, some CHUNK bytes at a time: no device ever holds the whole."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        yield np.asarray(x)
        return
    rows = max(1, CHUNK * x.shape[0] // max(x.nbytes, 1))
    for first in range(0, x.shape[0], rows):
        yield fetched(_rows(x, first, min(rows, x.shape[0] - first)))


@partial(jax.jit, static_argnums=2)
def _rows(x: jax.Array, first: int, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, first, count)


# -------------------------------------------------------------------------------------------------------- the end


def run(main: Callable[[], int]) -> NoReturn:
    """Ends the process with what `main` returns, or in one line where it was interrupted or another host is missing.

    Of several, one that failed does not wait for the rest to end with it, as jax would have it: they may wait for this one.
    They notice that it is gone, and end as well.
    """
    me, together = distributed.global_state, False
    try:
        code = main()
        together = code in ORDERLY and not process.was_asked()  # a signal before the steps reached this host alone
    except HostMissing as missing:
        print(f"error: {missing}", file=sys.stderr)
        code = EXIT_HOST_MISSING
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in LOST):
            cause = str(error).splitlines()[0]
            print(f"error: host {me.process_id} of {me.num_processes} lost another one ({cause})", file=sys.stderr)
            code = EXIT_HOST_MISSING
        else:
            traceback.print_exc()
            code = 1
    if together or not jax.distributed.is_initialized():
        # A host that is done waits for host 0's report. Hosts that were told to end do so at once, whoever is told again.
        process.leave(code, waits=code == 0 and jax.distributed.is_initialized())
    sys.stdout.flush()
    sys.stderr.flush()
    if me.process_id == 0:  # jax's service goes with host 0, and aborts whoever is still there: let them speak first
        time.sleep(2)
    os._exit(code)
