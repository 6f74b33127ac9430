"""GPUs, from NVML (https://docs.nvidia.com/deploy/nvml-api/) and from the PCI bus.

NVML can block for ever inside the driver, so it lives in a process of its own that can be abandoned
(library.py); `Worker` is the daemon's side of it.
"""

from slurm_health.probes.gpu.pci import pci
from slurm_health.probes.gpu.worker import LIBRARY, Worker

__all__ = ["LIBRARY", "Worker", "pci"]
