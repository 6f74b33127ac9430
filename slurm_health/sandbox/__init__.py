"""A real Slurm on this machine over fake GPUs and links, with faults to inject."""


class SandboxError(Exception):
    """Something the sandbox cannot do, in words for the person who asked for it."""
