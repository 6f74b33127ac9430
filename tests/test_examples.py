"""The examples are whole. The shell script is run in tests/cluster; torch is not there to run the other."""

import ast
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["resume.sh", "torchrun.sbatch"])
def test_a_script_is_one(name: str) -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / name)], check=True)


def test_the_training_compiles() -> None:
    ast.parse((EXAMPLES / "train.py").read_text())
