"""A user who wants to act on others' jobs, on a node, or on whoever reads of it: nothing comes of it."""

import json
import os
import shutil
import subprocess

import pytest
from conftest import NOBODY, OF_NOBODY
from receivers import mail_host, webhook
from test_cluster_access import as_nobody, forged, sealed_by, send
from test_cluster_ranks import seen

pytestmark = pytest.mark.cluster

CONTROLS = {chr(code) for code in (*range(9), *range(11, 32), 127, *range(128, 160), 0x202E, 0x2028)}


def requeued_off(cluster, job, node, code):
    """The job came back once, elsewhere; its incident."""
    incident = cluster.ran_again(node=node, code=code)
    cluster.until(lambda: [count for count, _, _ in cluster.runs(job)], [0, 1])
    assert node not in cluster.nodes_of(job)
    assert [one["job"] for one in incident["jobs"]] == [job]
    return incident


def test_no_words_of_a_user_reach_a_terminal_a_log_or_a_mails_header(cluster):
    words = "\x1b[2J\x1b]0;owned\x07\r\nBcc: all@site.example\r\n\r\n\u202e\x9b31m OWNED"
    name, comment = f"x{words}", f"slurm-health: requeue=1 {words}=1; " + "y" * 700
    with webhook() as hook, mail_host() as host:
        site = f'webhook = "http://127.0.0.1:{hook.port}/"\nmail = ["root"]\nsmtp = "127.0.0.1:{host.port}"'
        with cluster.configured(f"[notify]\n{site}\ngather = 0"):
            asked = (f"--job-name={name}", f"--comment={comment}", "--open-mode=append")
            job = cluster.running("sleep 300", "--gpus=8", *asked, *OF_NOBODY)
            [node] = cluster.nodes_of(job)
            incident = requeued_off(cluster, job, node, cluster.xid(node))
            cluster.until(lambda: len(hook.taken) > 0 and len(host.taken) > 0, True)
            shown = [
                cluster.health("job", job).stdout,
                as_nobody(cluster, "job", job).stdout,
                cluster.health("incidents", "show", str(incident["id"])).stdout,
                cluster.health("status").stdout,
                json.dumps(cluster.health_json("job", job), ensure_ascii=False),
                cluster.log("ctld/controller.out"),
                cluster.log(f"nodes/{node}/log/node.out"),
                cluster.output(job),
                cluster.ask("squeue", "-h", "-j", job, "-O", "admin_comment:1000"),
                *(json.dumps(said, ensure_ascii=False) for _, _, said in hook.taken),
                *(letter.as_string() + letter.get_content().replace("\r", "") for _, letter in host.taken),
            ]
            for text in shown:
                assert not CONTROLS & set(text)
            assert all(to == ["root"] and letter["Bcc"] is None for to, letter in host.taken)
            assert "is not understood" in cluster.output(
                job
            )  # its comment was read, and told to itself alone


MARKING = """
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void mark(void) {{
    FILE *file = fopen("{0}/mark", "a");
    if (file && fprintf(file, "%d\\n", getuid())) fclose(file);
}}
"""


@pytest.fixture
def evil(cluster):
    """A folder of a user's: programs, a library and start files that note as whom they run."""
    folder = cluster.jobs / "evil"
    folder.mkdir(exist_ok=True)
    (folder / "mark").write_text("")
    (folder / "mark").chmod(0o666)
    note = f"/usr/bin/id -u >> {folder}/mark"
    for name in ("sh", "dash", "cat", "date", "printf", "sleep", "scontrol", "squeue", "python3"):
        (folder / name).write_text(f"#!/bin/sh\n{note}\n")
        (folder / name).chmod(0o755)
    (folder / "env").write_text(f"{note}\n")
    (folder / "sitecustomize.py").write_text(
        f"import os; open('{folder}/mark', 'a').write(f'{{os.getuid()}}\\n')"
    )
    (folder / "mark.c").write_text(MARKING.format(folder))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "mark.so", folder / "mark.c"], check=True)
    (folder / "config.toml").write_text('mode = "observe"\n')
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    return folder


def test_no_environment_of_a_user_reaches_our_hooks_and_daemons(cluster, evil):
    theirs = {
        "PATH": f"{evil}:/usr/bin:/bin",
        "LD_PRELOAD": f"{evil}/mark.so",
        "LD_LIBRARY_PATH": evil,
        "ENV": f"{evil}/env",
        "BASH_ENV": f"{evil}/env",
        "PYTHONPATH": evil,
        "IFS": "o",
        "PS4": "$(id)",
        "SLURM_HEALTH_RUN": evil,
        "SLURM_HEALTH_CONFIG": f"{evil}/config.toml",
        "fail_closed": 1,
        "SLURM_HEALTH_NVML_LIBRARY": f"{evil}/mark.so",
        "SLURMD_NODENAME": "n4",
        "run": evil,
        "SLURM_JOB_UID": 0,
        "SLURM_JOB_GPUS": "",
        "SPANK_SLURM_HEALTH": "requeue=99",
        "SLURM_JOB_ID": 1,
    }
    script = "/bin/sleep 300 & wait"
    # Not by --export: for any list of it newer slurmds ask a login shell, which nobody has not.
    user = ["setpriv", "--reuid=nobody", f"--regid={NOBODY.pw_gid}", "--clear-groups", "env"]
    user += [f"{key}={value}" for key, value in theirs.items()]
    how = ["--gpus=8", "--nodelist=n1", "--chdir=/", "--output=/dev/null", f"--wrap={script}"]
    job = cluster.ask(*user, shutil.which("sbatch"), "--parsable", *how)
    card = cluster.box.layout.node("n1") / f"run/jobs/{job}.0"
    cluster.until(lambda: card.exists() and card.read_text(), bool)
    # It does what it can do, as itself: first in sbatch, then in the job.
    cluster.until(lambda: (evil / "mark").read_text().split(), lambda seen: len(seen) > 1)
    lines = card.read_text().splitlines()
    assert {f"job={job}", f"uid={NOBODY.pw_uid}", "gpus=0,1,2,3,4,5,6,7"} <= set(lines)
    assert not any(line.startswith("asked=") for line in lines)
    code = cluster.xid("n1")
    incident = cluster.incident(lambda one: one["jobs"], node="n1", code=code)
    assert [(one["job"], one["user"]) for one in incident["jobs"]] == [(job, "nobody")]
    cluster.until(lambda: cluster.reason("n1"), lambda said: code in said)
    cluster.until(lambda: "\nended=" in card.read_text(), True)  # the epilog knew it too
    assert set((evil / "mark").read_text().split()) == {str(NOBODY.pw_uid)}
    assert not [file for file in evil.iterdir() if file.name.startswith(("jobs", "verdict", job))]
    assert all(cluster.serves(name) for name in ("n2", "n3", "n4"))


def test_no_request_of_a_user_does_anything_to_anybody(cluster):
    job = cluster.running("sleep 300", "--gpus=4")
    [node] = cluster.nodes_of(job)
    report = json.loads(forged(node))
    report["cards"] = [{"job": int(job), "restarts": 0, "devices": ["0000:5d:00.0"], "started": 1.0}]
    # Each from an address of its own: of one, no two refusals are logged in a minute.
    for last, (path, said) in enumerate(
        (
            ("/v1/report", report),
            ("/v1/report", {**report, "node": "n1,n2,n3,n4"}),
            ("/v1/decision", {"node": node, "known": ""}),
            ("/v1/pause", {"seconds": 0, "reason": "x", "nodes": ""}),
            ("/v1/incidents/1/close", {}),
        ),
        40,
    ):
        body = json.dumps(said).encode()
        as_user = sealed_by(cluster, NOBODY.pw_uid, path, body)
        assert send(cluster, path, body, as_user, f"127.0.0.{last}")[0] == 403
    for name in (job, f"{job}_1", "0", str(10**11)):
        assert json.loads(as_nobody(cluster, "job", name, "--json").stdout) == []
    for name in ("-1", f"{job};1", f"{job}/../../status", "$(id)", "1\n2", ""):
        assert cluster.health("job", "--", name).returncode == 64
    assert cluster.incidents() == []
    assert (cluster.state(job), cluster.restarts(job)) == ("RUNNING", 0)
    assert all(cluster.serves(name) for name in cluster.names)
    assert cluster.health_json("status")["pauses"] == []


PLANTING = """
for run in {folder}/nodes/*/run; do
    for name in 4711.0 {victim}.0 {victim}.1 $SLURM_JOB_ID.1; do
        printf 'job=%s\\nuid=0\\ngpus=0,1,2,3,4,5,6,7\\nrestarts=0\\nuptime=1\\n' 4711 > $run/jobs/$name
        ln -sf /etc/passwd $run/jobs/$name
        ln -f {jobs}/planted $run/jobs/$name
        mkfifo $run/jobs/$name
        rm -f $run/jobs/$name
    done
    mv $run/jobs $run/jobs.old; rm -rf $run/jobs; mkdir $run/jobs; ln -s {jobs} $run/jobs
    printf 'bad 999999 mine\\n' > $run/verdict
    mv {jobs}/planted $run/verdict; ln -sf {jobs}/planted $run/verdict
done
id -u > {jobs}/planting.done
sleep 300
"""


def test_nothing_can_be_planted_among_the_cards(cluster):
    victim = cluster.running("sleep 300", "--gpus=4")
    before = {path: path.stat().st_ino for path in cluster.folder.glob("nodes/*/run/jobs/*")}
    planted = cluster.jobs / "planted"
    planted.write_text(f"job={victim}\nuid=0\ngpus=4,5,6,7\nrestarts=0\nuptime=1\n")
    os.chown(planted, NOBODY.pw_uid, NOBODY.pw_gid)
    script = PLANTING.format(folder=cluster.folder, jobs=cluster.jobs, victim=victim)
    evil = cluster.running(script, "--gpus=4", *OF_NOBODY)
    done = cluster.jobs / "planting.done"
    assert cluster.until(lambda: done.exists() and done.read_text(), bool) == f"{NOBODY.pw_uid}\n"
    [node], [mine] = cluster.nodes_of(evil), cluster.nodes_of(victim)
    after = {path: path.stat() for path in cluster.folder.glob("nodes/*/run/jobs/*")}
    card = cluster.box.layout.node(node) / f"run/jobs/{evil}.0"
    assert set(after) == {*before, card}
    assert all(status.st_uid == 0 for status in after.values())
    assert {path: after[path].st_ino for path in before} == before
    assert [cluster.verdict(name) for name in cluster.names] == ["ok"] * cluster.NODES
    # Nor does one count that lies there all the same: the fault is the other job's.
    litter = cluster.box.layout.node(node) / f"run/jobs/{victim}.9"
    litter.write_text(planted.read_text().replace("restarts=0", "restarts=9"))
    os.chown(litter, NOBODY.pw_uid, NOBODY.pw_gid)
    assert node == mine
    gpu = int(cluster.runs(evil)[0][2].split(",")[0])
    requeued_off(cluster, evil, node, cluster.xid(node, gpu=gpu))
    assert (cluster.state(victim), cluster.restarts(victim)) == ("RUNNING", 0)
    litter.unlink()
    done.unlink()


def test_a_process_that_says_it_is_anothers_is_not(cluster):
    """Neither is the other job drawn into a fault of this one's GPU, nor does it get a rank there."""
    victim = cluster.running("sleep 300", "--gpus=4")
    pid = cluster.jobs / "liar"
    pid.unlink(missing_ok=True)
    lie = f"SLURM_JOB_ID={victim} SLURM_JOBID={victim} SLURM_PROCID=9 SLURM_RESTART_COUNT=0"
    liar = cluster.running(f"env {lie} sh -c 'echo $$ > {pid}; exec sleep 300'", "--gpus=4", *OF_NOBODY)
    cluster.until(lambda: pid.exists() and pid.read_text(), bool)
    [node] = cluster.nodes_of(liar)
    assert cluster.nodes_of(victim) == (node,)
    mine, its = (int(cluster.runs(job)[0][2].split(",")[0]) for job in (victim, liar))
    with seen(cluster, node, mine, int(pid.read_text())):  # on the other's GPU
        code = cluster.xid(node, gpu=mine, code=(48, 95, 79))
    incident = requeued_off(cluster, victim, node, code)
    assert [one["ranks"] for one in incident["jobs"]] == [""]
    again = cluster.running("sleep 300", "--gpus=8")
    with seen(cluster, node, its, int(pid.read_text())):  # and on its own
        code = cluster.xid(node, gpu=its, code=(62, 119))
    requeued_off(cluster, liar, node, code)
    assert (cluster.state(again), cluster.restarts(again)) == ("RUNNING", 0)
    assert (cluster.state(victim), cluster.restarts(victim)) == ("RUNNING", 1)
