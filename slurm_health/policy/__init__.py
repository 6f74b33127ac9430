"""The consequence of what is known: what to do with a node, what to do with the jobs that it hurt. Pure.

No I/O, no clock, no log: plain values in, plain values out. The controller carries out what is said here.
"""

from slurm_health.policy import budget, job, node, queue, touch

__all__ = ["budget", "job", "node", "queue", "touch"]
