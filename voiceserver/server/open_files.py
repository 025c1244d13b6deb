"""How the limit of open files is shared out: what the server itself needs comes first, then connections.

Rule: a worker that dies comes back, a log is written and a page is read however many callers there are.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Mapping
from typing import Final, NamedTuple

from voiceserver.pool import Pool
from voiceserver.transport.unopened import SocketLimits

# Logs, pages, certificates, the event loop, name look-ups.
_OWN: Final = 48
# A worker's channel, lifeline and pidfd while it starts, and those of a stage's workers for suspects.
_PER_WORKER: Final = 8
_SUSPECTS: Final = 2
_PER_FORKSERVER: Final = 8
# Requests on the way to one endpoint.
_PER_ENDPOINT: Final = 256
_LEAST_SOCKETS: Final = 16
# Of the sockets, those that need not be calls.
_UNOPENED_SHARE: Final = 8
_LEAST_UNOPENED: Final = 8
_MOST_UNOPENED: Final = 1_024


class FileBudget(NamedTuple):
    """``calls``: connections that may be upgraded at once."""

    calls: int
    sockets: SocketLimits


def raise_limit() -> None:
    """Raise this process's limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def own_files(pools: Mapping[str, Pool]) -> int:
    """What the server and its workers need, apart from endpoints."""
    local = [pool.stats() for pool in pools.values() if not pool.is_remote]
    return _OWN + sum(_PER_FORKSERVER + _PER_WORKER * (len(stats.workers) + _SUSPECTS) for stats in local)


def share_out(pools: Mapping[str, Pool], limit: int) -> FileBudget:
    """``limit``: of open files of one process. A limit that is far too low leaves some sockets all the same."""
    left = max(limit - own_files(pools), _LEAST_SOCKETS)
    remotes = sum(pool.is_remote for pool in pools.values())
    # A call has one request on its way at most.
    sockets = max(left // (1 + remotes), left - remotes * _PER_ENDPOINT)
    unopened = min(max(sockets // _UNOPENED_SHARE, _LEAST_UNOPENED), _MOST_UNOPENED)
    return FileBudget(sockets - unopened, SocketLimits(sockets, unopened))


def budget_now(pools: Mapping[str, Pool]) -> FileBudget:
    """Of the limit as it is at this moment."""
    return share_out(pools, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
