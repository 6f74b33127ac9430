"""Packaging of slurm-health: metadata, dependencies, entry point, data files."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "slurm_health/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="slurm-health",
    version=VERSION,
    description="Node health and automatic requeue for Slurm",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["slurm_health", "slurm_health.*"]),
    package_data={
        "slurm_health": ["*.toml", "sandbox/*.c", "sandbox/*.sh", "sandbox/*.toml"],
    },
    data_files=[
        ("share/slurm-health/prolog", ["prolog/slurm-health.sh"]),
        ("share/slurm-health/epilog", ["epilog/slurm-health.sh"]),
    ],
    install_requires=[
        "aiohttp>=3.9",  # web.py, sinks/notify.py
        "alembic>=1.13",  # ledger/
        "click>=8.1",  # cli/
        "ClusterShell>=1.9",  # hostlists
        "nvidia-ml-py>=12.535",  # probes/gpu/
        "psutil>=5.9",  # sandbox
        "pydantic>=2.5",  # config.py
        "SQLAlchemy>=2.0.20",  # ledger/
    ],
    extras_require={
        "postgresql": ["psycopg[binary]>=3.1"],  # where two controllers share a ledger
        "pyslurm": ["pyslurm"],
        "test": ["hypothesis", "psycopg[binary]>=3.1", "pytest>=7.4", "pytest-xdist>=3.3"],
        "dev": ["mypy", "ruff"],
    },
    entry_points={"console_scripts": ["slurm-health = slurm_health.cli:main"]},
)
