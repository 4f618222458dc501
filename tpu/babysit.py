"""Keeps a run going on machines that may be preempted: creates them again, sets them up and launches until it is done. No jax.

A preempted spot host is deleted and created again, never restarted. Errors are not retried for ever: exit code 2 (a user's
mistake) stops at once, and so does the same failure at the same step twice in a row. Decisions depend on the state that Google
and the hosts report, not on memory, so the babysitter may be stopped and started again at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lm.errors import EXIT_HOST_MISSING, EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from tpu.gcloud import GcloudFailed
from tpu.machines import State
from tpu.remote import Host

TROUBLE = 10  # consecutive failures of gcloud, or refused requests, before it gives up
GRACE = 2  # polls that find the run on some hosts only before the rest is stopped: these may be about to end


@dataclass(frozen=True)
class Actions:
    """The actions of a babysitter; each may raise GcloudFailed."""

    state: Callable[[], State]
    create: Callable[[], None]  # returns when the request is made
    delete: Callable[[], None]
    setup: Callable[[], None]
    launch: Callable[[], None]
    look: Callable[[], list[Host]]
    stop: Callable[[], None]  # stops the hosts that still run; they save


def babysit(do: Actions, hosts: int, *, sleep: Callable[[], None], say: Callable[[str], None]) -> None:
    """Returns when the run has ended with exit code 0 on all `hosts` hosts. Raises UserError if it needs the user.

    sleep: waits until the next poll.
    say: prints a line.
    """
    trouble, refused, partial, failed, detail = 0, 0, 0, None, None
    while True:
        try:
            state = do.state()
            if (state.kind, state.detail) != detail:
                say(f"{state.kind}: {state.detail}")
            detail = state.kind, state.detail
            if state.kind == "absent":
                do.create()
                failed = None  # the failure may have been caused by the preemption
            elif state.kind == "gone":
                do.delete()
                say("deleted; it will be created again")
                refused += 1
                if refused == TROUBLE:
                    raise UserError(f"{TROUBLE} requests in a row failed, the last: {state.detail}")
            elif state.kind == "ready":
                refused = 0
                seen = do.look()
                verdict = judge(seen, hosts)
                partial = partial + 1 if verdict == "partial" else 0
                if verdict == "done":
                    return
                if verdict == "stopped":
                    raise UserError("the run was stopped by `kill`; launch it again to go on")
                if verdict == "failed":
                    failed = _again(seen, failed)
                if verdict in ("start", "failed"):
                    say("launching" if verdict == "start" else f"launching again after {failed}")
                    if any(h.state == "bare" for h in seen):
                        do.setup()
                    do.launch()
                if partial > GRACE:
                    say("some hosts ended and others did not: stopping the rest")
                    do.stop()
            trouble = 0
        except GcloudFailed as error:
            trouble += 1
            say(f"error {trouble} of {TROUBLE}: {error}")
            if trouble == TROUBLE:
                raise
        sleep()


def judge(seen: list[Host], hosts: int) -> str:
    """The state of the run on `hosts` hosts, given those that answered: `running`, `done`, `stopped` (by `kill`), `failed`,
    `start` (not launched yet, or it saved and can continue), or `partial` (it ended on some hosts only, or some do not
    answer)."""
    states = [h.state for h in seen]
    codes = [h.code for h in seen if h.state == "ended"]
    if len(seen) >= hosts and codes == [0] * len(seen):
        return "done"
    if "running" in states:
        ending = len(seen) >= hosts and all(h.state == "running" or h.code == 0 for h in seen)
        return "running" if ending else "partial"
    if len(seen) < hosts:
        return "partial"
    if any(h.stopped for h in seen):
        return "stopped"
    if "lost" in states or any(code not in (0, EXIT_PREEMPTED) for code in codes):
        return "failed"
    return "start"


def _again(seen: list[Host], before: str | None) -> str:
    """Describes the failure. Raises UserError if it is a user's mistake, or equals the failure `before`."""
    bad = [h for h in seen if h.state == "lost" or h.code not in (0, EXIT_PREEMPTED, None)]
    # The host that ended first: the others end with EXIT_HOST_MISSING because it did.
    worst = min(bad, key=lambda h: (h.code != EXIT_USER_ERROR, h.code == EXIT_HOST_MISSING))
    # Without the host and its last line, which may differ between two occurrences of the same failure.
    failure = ("a death without an exit code" if worst.code is None else f"exit code {worst.code}") + f" at step {worst.step}"
    if worst.code == EXIT_USER_ERROR:
        raise UserError(f"the run ended with a mistake in its input, on {worst.name}: {worst.last}")
    if failure == before:
        raise UserError(f"the run failed twice in the same way, {failure}; the last line of {worst.name}: {worst.last}")
    return failure
