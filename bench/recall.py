"""What is found in the data of real machines, and what is found that is none.

    python bench/recall.py

Of ../shared/corpus: kernel logs, each with a table of its labelled lines; trees of /sys with a verdict each;
boards as value sets and nvidia-smi texts, loaded into the fake NVML library. Prints markdown. A line counts
as found only with the code and the device of its label; a machine only where all its findings, and none
else, are what its verdict says.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import corpus

from slurm_health import config, rules
from slurm_health.baseline import Expectations
from slurm_health.host import Host
from slurm_health.model import Finding, Severity
from slurm_health.replay import replay
from slurm_health.sandbox.library import build
from slurm_health.scan import scan

BOOK = rules.load()
Machine = tuple[str, dict[str, int], tuple[Finding, ...]]  # its name, the codes of its verdict, what is found


def main() -> None:
    if not corpus.LOGS:
        sys.exit(f"{corpus.CORPUS}: no data")
    alarms = lines_of_logs()
    with tempfile.TemporaryDirectory() as folder:
        machines = {"trees of /sys": list(trees(Path(folder))), "boards": list(boards(Path(folder)))}
    print(
        "\n| machines | as the verdict says | faults found | false findings |\n| --- | ---: | ---: | ---: |"
    )
    healthy = 0
    for kind, ones in machines.items():
        right = faults = hits = false = 0
        for _, wanted, found in ones:
            codes = Counter(one.code for one in found)
            right += codes == wanted
            faults += sum(wanted.values())
            hits += sum((codes & Counter(wanted)).values())
            false += sum((codes - Counter(wanted)).values())
            if not wanted:
                healthy += 1
                alarms += sum(one.severity is Severity.CRITICAL for one in found)
        print(f"| {kind} | {right} of {len(ones)} | {hits} of {faults} | {false} |")
    innocent = sum(any(word in log.stem for word in corpus.INNOCENT) for log in corpus.LOGS)
    print(f"\nFindings at critical on the {healthy} healthy machines, and in the {innocent} logs of healthy")
    print(f"machines and of nothing but applications' errors: {alarms}.")


def lines_of_logs() -> int:
    """Prints the recall of each kind of event; how many critical events the innocent logs show."""
    labelled, found, false = Counter[str](), Counter[str](), Counter[str]()
    lines = alarms = 0
    for log in corpus.LOGS:
        labels = corpus.labels(log)
        labelled.update(filter(None, (corpus.CLASSES.get(row["class"]) for row in labels.values())))
        innocent = any(word in log.stem for word in corpus.INNOCENT)
        with log.open(errors="surrogateescape") as file:
            for event in replay(file, BOOK):
                row = labels.get(event["line"], {"class": ""})
                kind = corpus.CLASSES.get(row["class"], "")
                right = kind and (event["code"], event["device"]) == (corpus.code(row), corpus.spelled(row))
                (found if right else false)[kind or event["code"]] += 1
                alarms += innocent and event["severity"] == "critical"
        lines += sum(1 for _ in log.open("rb"))
    print(f"{len(corpus.LOGS)} logs, {lines} lines, {sum(labelled.values())} of them events\n")
    print("| code | labelled lines | found, with device and code | recall | false findings |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for code in (
        *dict.fromkeys(corpus.CLASSES.values()),
        *sorted(false.keys() - set(corpus.CLASSES.values())),
    ):
        print(_row(code, labelled[code], found[code], false[code]))
    print(_row("all", sum(labelled.values()), sum(found.values()), sum(false.values())))
    return alarms


def _row(code: str, labelled: int, found: int, false: int) -> str:
    return f"| {code} | {labelled} | {found} | {found / labelled if labelled else 1:.1%} | {false} |"


def trees(folder: Path) -> Iterator[Machine]:
    for tree in corpus.TREES:
        name, root = corpus.unpacked(tree, folder / tree.name)
        site = config.load(str(corpus.configured(name, folder)))
        expected = Expectations(**site.expected("n1"))
        verdict = Counter(code for code, _ in corpus.EXPECTED[name][1])
        yield name, verdict, scan(Host(root), expected, BOOK, "/nowhere").findings


def boards(folder: Path) -> Iterator[Machine]:
    library = str(build(folder / "libnvidia-ml.so.1"))
    for name, lines in corpus.boards().items():
        root = folder / f"{name}.root"
        root.mkdir()
        corpus.told(root, lines)
        os.environ["SLURM_HEALTH_FAKE_NVML"] = str(root / "nvml")
        yield name, corpus.FAULTS.get(name, {}), scan(Host(root), Expectations(), BOOK, library).findings


if __name__ == "__main__":
    main()
