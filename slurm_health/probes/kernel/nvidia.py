"""What NVIDIA's drivers say: Xid, GPUs off the bus, NVSwitch errors.

https://docs.nvidia.com/deploy/xid-errors/ ("Xid (PCI:address): code, pid, name, ..."); for NVSwitch the
appendix of https://docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide/. Words:
open-gpu-kernel-modules, nv.c (off the bus at start), osapi.c and os.c (off the bus later, Xid),
nvswitch_print (SXid).
"""

from __future__ import annotations

from slurm_health.probes.kernel.event import ANY, Event, grammar
from slurm_health.probes.kernel.nvlink import LINK_XIDS, decode
from slurm_health.probes.nvidia import address, recovery_action

_ADDRESS = r"(?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
_INSTANCE = r"(?: GPU-I:\d{1,3}(?: GPU-CI:\d{1,3})?)?"  # the MIG instance that it happened in
_WHO = r"pid=(?:'<unknown>'|\d{1,10}), "
# at most 15 characters, commas among them; nor can a program hide its Xid by a line break in its name
_NAMED = _WHO + "name=(?s:.{0,15}), "
_XID = grammar(rf"NVRM: Xid \({_ADDRESS}{_INSTANCE}\): (\d{{1,5}})(?:,(?: ((?:{_NAMED})?{ANY}*))?)?")
_SXID = grammar(rf"nvidia-nvswitch\d{{1,3}}: SXid \({_ADDRESS}\): (\d{{1,6}}), ({ANY}*)")
_PROCESS = rf"(?:{_NAMED}|{_WHO})?"
_PID = grammar(r"pid='?(\d{1,10})'?(?:,|$)")
_LINK = grammar(
    _PROCESS + r"([A-Z][A-Z0-9_/]*(?: Degraded)?) +(Fatal|Nonfatal) +XC\d+ +i\d+ +Link +-?\d+ "
    r"\((0x[0-9a-f]+)(?: (0x[0-9a-f]+))?(?:[ )]|0x[0-9a-f]+)*"
)
_RECOVERY = grammar(
    _PROCESS + r"GPU recovery action changed from 0x[0-9a-fA-F]+ \([^()]*\) to 0x([0-9a-fA-F]+) \([^()]*\)"
)
_OFF = grammar(
    r"NVRM: GPU (?:at )?(?:PCI:)?((?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
    r"(?:: GPU)? has fallen off the bus\.?"
)
# one message of two or three lines, as the driver prints it when it finds a GPU so while it starts
_BREAK = r"(?: |\nNVRM: )"
_OFF_AT_START = grammar(
    rf"NVRM: The NVIDIA GPU {_ADDRESS}{_BREAK}\(PCI ID: [0-9a-fA-F]{{4}}:[0-9a-fA-F]{{4}}\){_BREAK}"
    rf"installed in this system has{_BREAK}fallen off the bus and is not responding to commands\."
)
_REGISTERS = grammar(r"Data \{|Severity \d+ Engine instance ")
_WORD = grammar(r"(Fatal|Non-fatal)(?:[, ].*)?")


def xid(text: str) -> Event | None:
    """An Xid. The detail is what an opinion may need: for NVLink 5 what NVIDIA's catalogue says of this unit
    and status ("reset", "ignore", "follow"), or the line's own word where it has no such row; for 154 the
    new recovery action, by its number.
    """
    match = _XID.fullmatch(text)
    if not match:
        return None
    code, rest = int(match[2]), match[3] or ""
    pid = _PID.match(rest)
    detail = ""
    if code in LINK_XIDS and (link := _LINK.fullmatch(rest)):
        info, status = int(link[3], 16), int(link[4], 16) if link[4] else None
        detail = decode(code, link[1], info, status) or link[2].lower()
    elif code == 154 and (change := _RECOVERY.fullmatch(rest)):
        detail = recovery_action(int(change[1], 16))
    return Event("kernel.xid", address(match[1]), code, int(pid[1]) if pid else 0, detail)


def off_bus(text: str) -> Event | None:
    """A GPU that fell off the bus: beside its Xid 79, or instead of it when the driver finds it so."""
    if match := _OFF.fullmatch(text) or _OFF_AT_START.fullmatch(text):
        name = match[1] if match[1].count(":") > 1 else f"0000:{match[1]}"
        return Event("kernel.gpu", address(name), "off_bus")
    return None


def sxid(text: str) -> Event | None:
    """An NVSwitch error; not the registers that follow in lines of their own."""
    match = _SXID.fullmatch(text)
    if not match or _REGISTERS.match(match[3]):
        return None
    word = _WORD.fullmatch(match[3])
    detail = word[1].lower().replace("-", "") if word else ""
    return Event("kernel.sxid", address(match[1]), int(match[2]), detail=detail)
