"""What we ask of Slurm and do to it, whatever carries it there.

Every call has a deadline. `Unreachable` means that Slurm did not answer: nothing is known, nothing is done
now, and it is tried again later. `Rejected` carries Slurm's own words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from slurm_health.model import Job, Node


class SlurmError(Exception):
    """A call that brought nothing."""


class Unreachable(SlurmError):
    """No answer by the deadline, or nobody there."""


class Rejected(SlurmError):
    """Slurm answered no, in these words."""


@dataclass(frozen=True, slots=True)
class Site:
    """SlurmUser's uid, who may report like root; Slurm's release, such as (22, 5); when slurmctld was started
    (epoch, whole seconds); whether Slurm itself may run a job again at once that died where an epilog failed
    (sbatch(1), --requeue=expedite, from 25.11). All that differs between releases is named here.
    """

    user: int
    release: tuple[int, int]
    booted: float = 0.0
    expedites: bool = False

    @property
    def forgets_slowly(self) -> bool:
        """Whether slurmd takes 2 s to forget a revoked run. A run of the same job that comes sooner starts
        without its prolog on nodes that it had before (slurm_cred.c:_clear_expired_job_states, until 22.05).
        """
        return self.release < (23, 2)

    @property
    def loses_gpus(self) -> bool:
        """Whether the GPUs count as in use for ever that a job gets after it was requeued and then let go of
        its old node by DOWN alone. 22.05 counts so until slurmctld is started anew, 24.11 and 26.05 do not.
        """
        return self.release < (24, 11)


class Slurm(Protocol):
    """One way to reach Slurm. Names are Slurm's own; a job is named by its label (see model.Job)."""

    async def nodes(self, names: Iterable[str] = ()) -> dict[str, Node]:
        """The named nodes, or all; a name that Slurm does not know is absent."""

    async def jobs(self, ids: Iterable[int]) -> dict[int, Job]:
        """The jobs with these own ids, dead ones too while Slurm remembers them (MinJobAge)."""

    async def jobs_on(self, names: Iterable[str]) -> list[Job]:
        """The jobs that hold one of the nodes, and the dead ones that did while Slurm remembers them."""

    async def drain(self, names: Iterable[str], reason: str) -> None: ...

    async def down(self, names: Iterable[str], reason: str) -> None:
        """Ends all jobs there at once and lets go of those stuck in COMPLETING; Slurm itself requeues those
        that may be. Drain first: with ReturnToService=2 a node that answers serves again a moment later."""

    async def resume(self, names: Iterable[str]) -> None:
        """Ends drained and down alike."""

    async def requeue(self, label: str, incomplete: bool, hold: bool = False) -> None:
        """`incomplete`: only if it has not ended (a plain requeue resurrects finished jobs). `hold`: it
        stays pending until an admin releases it."""

    async def release(self, label: str) -> None: ...

    async def signal(self, label: str, name: str, steps: str) -> None:
        """Sends SIG`name` to the batch script alone ("batch"), or to all its steps and not to it ("all")."""

    async def start_now(self, label: str) -> None:
        """Ends the two-minute wait of a requeued job. Lost without a word while the job is COMPLETING."""

    async def standing(self, label: str) -> tuple[int, int]:
        """The job's priority and its nice value, which is taken off it."""

    async def set_nice(self, label: str, nice: int) -> None:
        """Of a heterogeneous job all components get it."""

    async def reserve(self, name: str, nodes: Iterable[str]) -> None:
        """Start no other job on these nodes, for a minute at most. What runs there goes on."""

    async def unreserve(self, name: str) -> None:
        """No such reservation is no error."""

    async def stranded(self) -> dict[str, str]:
        """The jobs (by label) that wait for what can no longer come, and for what: of each job waited for it
        says how it stands, "afterok:7(failed),afterany:9(unfulfilled)"."""

    async def set_dependency(self, label: str, dependency: str) -> None: ...

    async def tell(self, label: str, text: str) -> None:
        """A line in the stderr of the batch job, or of the srun or salloc whose it is."""

    async def comments(self, ids: Iterable[int]) -> dict[int, str]:
        """What the owners of these jobs (own ids) wrote with `sbatch --comment`: anything at all."""

    async def set_owners_comment(self, label: str, text: str) -> None: ...

    async def comment(self, label: str) -> str:
        """The job's AdminComment."""

    async def set_comment(self, label: str, text: str) -> None: ...

    async def ping(self) -> dict[str, bool]:
        """Whether each host's slurmctld answers, by the host's name, the primary first. The first one that
        does acts, or will once it has seen that those before it do not (SlurmctldTimeout)."""

    async def site(self) -> Site:
        """What does not change while slurmctld runs."""
