"""Weights from rank 0's GPU to those of the replicas, driven by the threads that supervise the replicas.

Every replica has a group of its own with rank 0 (``weight_sender``) and takes its own pass over the weights, one replica after the other.
One that dies within it ends its own group alone, and its supervisor, in whose thread the pass runs, replaces it. The new replica's first
weights go through the object store: rank 0 puts them there when somebody asks, as long as the ranks have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from onpolicy.distributed.remote_errors import one_line
from onpolicy.distributed.tasks import ActorLost
from onpolicy.distributed.weight_paths import WORDS, Place, Sender, WeightPath, said
from onpolicy.distributed.weight_sender import TransferGroup
from onpolicy.distributed.weight_transfer import WeightRefs
from onpolicy.rollout.vllm_transfer import Backend
from onpolicy.utils.faults import RoleLost

FAILURES = 2
"""Transfers in a row that may fail, each with its replica, before all weights go through the object store."""


class NotNow(Exception):
    """The ranks are at work, or have other weights by now; new ones will come."""


class SendingRanks(Protocol):
    """Trainer ranks, as ``RayTrainerGroup``. What fails because one of them is lost raises ``RoleLost``."""

    place: Place
    """Of rank 0."""
    size: int
    """Number of ranks."""
    incarnation: int
    """How often they were started."""
    changes: int
    """How often their weights have changed."""

    turn: Any
    """A ``threading.RLock`` that whoever calls them holds."""

    def gather(self, adapter: bool) -> WeightRefs: ...

    def ask_first(self, method: str, *arguments: Any, gather: bool = False) -> Any:
        """Calls a method of rank 0 (``ray_trainer_group.Rank``); with ``gather`` the others join it in gathering the weights."""
        ...


@dataclass(eq=False)
class Snapshot:
    """The ranks' weights at a sync; they can be had for as long as the ranks have them."""

    change: int
    """``SendingRanks.changes`` at that time."""
    refs: WeightRefs | None = None
    """Once they are in the object store."""
    incarnation: int = 0
    """``SendingRanks.incarnation`` when they were put there."""


@dataclass
class Link:
    """One replica."""

    path: WeightPath
    incarnation: int = 0
    """Of the ranks from which it had weights last."""
    number: int | None = None
    """Of its group with them."""


class DirectWeights:
    """Every method is called by the threads of supervisors, but for ``snapshot``."""

    def __init__(self, ranks: SendingRanks, *, timeout: float, say: Callable[[str], None]) -> None:
        """
        Args:
            ranks: of the trainer
            timeout: ``distributed.heartbeat_timeout_s``
            say: takes a line for the user
        """
        self.ranks, self._timeout, self._say = ranks, timeout, say
        self._links: dict[Any, Link] = {}
        self._numbers, self._left = count(1), list[int]()
        self._failures = 0
        self._told: set[str] = set()

    def sender(self) -> Sender:
        """For a replica that starts."""
        return Sender(self.ranks.place, self.ranks.size)

    def snapshot(self) -> Snapshot:
        """The weights as they are now, between two calls of the trainer."""
        return Snapshot(self.ranks.changes)

    def sync(self, actor: Any, snapshot: Snapshot, version: int) -> Any:
        """Brings a replica to these weights; returns Ray's reference to its answer.

        Raises:
            NotNow: the ranks work, or these weights are gone.
            ActorLost: the replica did not take them, or has some of them.
            RoleLost: a rank is lost.
        """
        link = self._links.get(actor) or self._links.setdefault(actor, Link(_path_of(actor)))
        backend = link.path.backend
        if backend is None or self._failures >= FAILURES or link.incarnation != self.ranks.incarnation:
            self._leave(link)
            refs = self._stored(snapshot)
            link.incarnation = snapshot.incarnation
            if link.path.why:
                self._tell(said(link.path.why))
            return actor.update_weights.remote(refs, version)
        with self._idle(snapshot):
            try:
                if link.number is None:
                    link.number = self._open(actor, backend)
                failed = self.ranks.ask_first("send", link.number, version, gather=True)
                self._check(failed, f"did not take the weights by {WORDS[backend]}")
            except RoleLost as lost:  # the next one to ask the ranks hears of it
                raise ActorLost(f"waits for weights from a trainer that is gone ({lost})") from lost
            self._failures = 0
        return actor.confirm_weights.remote(version)

    def forget(self, actor: Any) -> None:
        """The replica is gone."""
        link = self._links.pop(actor, None)
        if link is not None:
            self._leave(link)

    def _leave(self, link: Link) -> None:
        """Rank 0 closes the group when it opens the next one; ranks that are lost have taken theirs with them."""
        if link.number is not None and link.incarnation == self.ranks.incarnation:
            self._left.append(link.number)
        link.number = None

    def _stored(self, snapshot: Snapshot) -> WeightRefs:
        if snapshot.refs is None:
            with self._idle(snapshot):
                if snapshot.refs is None:
                    snapshot.incarnation, snapshot.refs = self.ranks.incarnation, self.ranks.gather(False)
        return snapshot.refs

    def _open(self, actor: Any, backend: Backend) -> int:
        group, left = TransferGroup(next(self._numbers), backend, self._timeout), self._left.copy()
        failed = self.ranks.ask_first("open_group", group, actor, left)
        del self._left[: len(left)]
        self._check(failed, f"did not join the trainer by {WORDS[backend]}")
        self._tell(f"replicas of the generator take weights by {WORDS[backend]}")
        return group.number

    def _check(self, failed: str, what: str) -> None:
        """Raises ActorLost where something failed: the replica may have some of the weights, or wait for more."""
        if not failed:
            return
        self._failures += 1
        if self._failures == FAILURES:
            self._tell(said(f"a replica {what} ({failed})"))
        raise ActorLost(f"{what} ({failed})")

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._say(line)

    @contextmanager
    def _idle(self, snapshot: Snapshot) -> Iterator[None]:
        """Inside, the ranks are this thread's, and have the snapshot's weights."""
        if not self.ranks.turn.acquire(blocking=False):
            raise NotNow
        try:
            if self.ranks.changes != snapshot.change:
                raise NotNow
            yield
        finally:
            self.ranks.turn.release()


def _path_of(actor: Any) -> WeightPath:
    import ray

    try:
        path: WeightPath = ray.get(actor.weight_path.remote())
    except ray.exceptions.RayError as error:
        raise ActorLost(f"did not say where it works ({one_line(error)})") from error
    return path
