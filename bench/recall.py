"""How many of the labelled lines of real kernel logs are found, and what is found that is none.

    python bench/recall.py [FOLDER]

FOLDER (../shared/corpus/kmsg) holds logs (*.log) and beside each a table of its labelled lines (*.csv: line,
class, device, ...). Prints markdown: for each kind of event the labelled lines, those found as that kind, the
recall, and the lines found that carry no such label.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

from slurm_health.logformats import messages
from slurm_health.probes.kernel import parse_message

# labels -> the reading that a line with such a label must yield; every other label must yield nothing
KINDS = {
    "xid": "kernel.xid",
    "sxid": "kernel.sxid",
    "nvrm_lost": "kernel.gpu",
    "mlx5_access_reg": "kernel.mlx5",
    "mlx5_module_error": "kernel.mlx5",
    "mlx5_module_temp": "kernel.mlx5",
    "md_failure": "kernel.disk",
    "nvme_dead": "kernel.disk",
    "nvme_path": "kernel.disk",
    "nvme_timeout": "kernel.disk",
    "buffer_io_error": "kernel.disk",
    "fs_io_error": "kernel.filesystem",
    "fs_readonly": "kernel.filesystem",
    "hung_task": "kernel.hung_task",
    "soft_lockup": "kernel.lockup",
    "oom_cgroup": "kernel.oom",
    "oom_constraint": "kernel.oom",
    "oom_global": "kernel.oom",
    "oom_invoked": "kernel.oom",
}


def main(folder: Path) -> None:
    logs = sorted(folder.glob("*.log"))
    if not logs:
        sys.exit(f"{folder}: no logs")
    labelled, found, false = Counter[str](), Counter[str](), Counter[str]()
    lines = 0
    for log in logs:
        with log.with_suffix(".csv").open() as file:
            labels = {int(row["line"]): row["class"] for row in csv.DictReader(file)}
        labelled.update(KINDS[label] for label in labels.values() if label in KINDS)
        with log.open(errors="surrogateescape") as file:
            for number, text in messages(file):
                if event := parse_message(text):
                    true = KINDS.get(labels.get(number, "")) == event.name
                    (found if true else false)[event.name] += 1
        lines += sum(1 for _ in log.open("rb"))
    print(f"{len(logs)} logs, {lines} lines, {sum(labelled.values())} of them events\n")
    print("| reading | labelled lines | found | recall | false findings |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in dict.fromkeys(KINDS.values()):
        print(_row(name, labelled[name], found[name], false[name]))
    print(_row("all", sum(labelled.values()), sum(found.values()), sum(false.values())))


def _row(name: str, labelled: int, found: int, false: int) -> str:
    return f"| {name} | {labelled} | {found} | {found / labelled if labelled else 1:.1%} | {false} |"


if __name__ == "__main__":
    main(
        Path(sys.argv[1])
        if len(sys.argv) > 1
        else Path(__file__).resolve().parents[1].with_name("shared") / "corpus/kmsg"
    )
