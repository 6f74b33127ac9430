"""A PyTorch training that loses at most SAVE_EACH steps, however often its job is requeued.

Run it with torchrun (see torchrun.sbatch). It saves each SAVE_EACH steps, and when USR1 or TERM comes: TERM
is what Slurm sends before a requeue, and KillWait (30 s) later it kills.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

CHECKPOINT = Path(os.environ.get("CHECKPOINT", f"checkpoint.{os.environ.get('SLURM_JOB_ID', '0')}.pt"))
STEPS, SAVE_EACH = 10_000, 500

leave = False


def on_signal(number: int, frame: object) -> None:
    """Between two steps: a checkpoint that is written in a handler may be of half a step."""
    global leave
    leave = True


def save(step: int, model: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
    """Whole or not at all: a job may be killed while it writes."""
    if dist.get_rank() == 0:
        fresh = CHECKPOINT.with_suffix(".new")
        state = {"step": step, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, fresh)
        fresh.replace(CHECKPOINT)
    dist.barrier()


def main() -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, on_signal)
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.manual_seed(dist.get_rank())
    model = DistributedDataParallel(torch.nn.Linear(1024, 1024).to(device))
    optimizer = torch.optim.AdamW(model.parameters())
    step = 0
    if CHECKPOINT.exists():
        state = torch.load(CHECKPOINT, map_location=device)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    if dist.get_rank() == 0:
        why = os.environ.get("SLURM_HEALTH_REASON")
        print(f"begins at step {step}" + (f"; last time: {why}" if why else ""), flush=True)
    while step < STEPS:
        batch = torch.randn(64, 1024, device=device)
        loss = (model(batch) - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        # All ranks must agree to leave after the same step, or those that go on wait for the others for ever.
        asked = torch.tensor(float(leave), device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked.item() or step % SAVE_EACH == 0:
            save(step, model, optimizer)
        if asked.item():
            sys.exit(1)  # not 0, which says that all is done
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
