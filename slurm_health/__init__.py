"""Node health and automatic requeue for Slurm."""

__version__ = "0.1.0"
