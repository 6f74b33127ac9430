"""python -m slurm_health"""

from slurm_health.cli import main

main()
