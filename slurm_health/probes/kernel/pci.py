"""PCI Express advanced error reporting (AER) and containment (DPC), Linux 3.10 to 6.x.

drivers/pci/pcie/aer.c: one error is told twice, by the root port that was sent the message
(aer_print_port_info, aer_print_source) and by the device that made it (aer_print_error), or by neither where
firmware comes first (pci_print_aer). drivers/pci/pcie/dpc.c (dpc_process_error): a port that took its link
down. The registers in the lines that follow are no events.
"""

from __future__ import annotations

from slurm_health.probes.kernel.event import PCI, Event, grammar
from slurm_health.probes.nvidia import address

# aer_error_severity_string; "Uncorrectable" and "Correctable" since 6.13
_SEVERITY = r"(Correct(?:ed|able)|Uncorrect(?:ed|able) \((?:Non-)?Fatal\))"
_DRIVER = r"[A-Za-z0-9_.-]{1,64}"
_REPORT = grammar(
    rf"{_DRIVER} ({PCI}): (?:AER: )?(?:Multiple )?{_SEVERITY} error (?:message )?received(?: from |: )"
    rf"(?:({PCI})|id=([0-9a-f]{{4}}))(?: \(no details found\)?)?"
)
_ERROR = grammar(
    rf"{_DRIVER} ({PCI}): (?:AER: )?(?:PCIe|CXL) Bus Error: severity={_SEVERITY}, "
    r"type=(?:(?:Physical|Data Link|Transaction) Layer|(?:Una|Ina)ccessible), "
    r"(?:id=[0-9a-f]{4})?\((?:Receiver|Requester|Completer|Transmitter|Unregistered Agent) ID\)"
)
_REGISTERS = grammar(
    rf"{_DRIVER} ({PCI}): (?:AER: )?aer_status: 0x([0-9a-f]{{8}}), aer_mask: 0x[0-9a-f]{{8}}"
)
# bits that only an uncorrected error's status has: <linux/pci_regs.h>, PCI_ERR_UNC_DLP and those from
# PCI_ERR_UNC_UNX_COMP on. Bits 12 to 15 mean one thing or the other, and may be no more than corrected.
_UNCORRECTED = 0xFFFF0030
_CONTAINED = grammar(
    rf"{_DRIVER} ({PCI})(?::pcie[0-9a-f]{{3}})?: DPC:? containment event, status:0x([0-9a-f]{{4}})(?:"
    rf" source:0x([0-9a-f]{{4}})|, ERR_(?:NON)?FATAL received from ({PCI})|: [A-Za-z ]{{1,64}} detected)"
)


def aer(text: str) -> Event | None:
    """An AER error of the device that made it: "fatal", "nonfatal" or "corrected". A link that its port took
    down is "fatal", whatever the error was.
    """
    if report := _REPORT.fullmatch(text):
        return Event("kernel.aer", _source(report[1], report[3], report[4]), _class(report[2]))
    if error := _ERROR.fullmatch(text):
        return Event("kernel.aer", address(error[1]), _class(error[2]))
    if registers := _REGISTERS.fullmatch(text):
        uncorrected = int(registers[2], 16) & _UNCORRECTED
        return Event("kernel.aer", address(registers[1]), "nonfatal" if uncorrected else "corrected")
    if contained := _CONTAINED.fullmatch(text):
        return _containment(contained[1], int(contained[2], 16), contained[4], contained[3])
    return None


def _containment(port: str, status: int, named: str | None, number: str | None) -> Event | None:
    """By the status' trigger reasons (PCI_EXP_DPC_STATUS_TRIGGER_RSN): 1 and 2 came from a device behind the
    port, 3 has others behind it, of which only 0 is an error: software can trigger it, too.
    """
    reason, other = status >> 1 & 3, status >> 5 & 3
    if reason == 3 and other:
        return None
    return Event("kernel.aer", _source(port, named, number) if reason in (1, 2) else address(port), "fatal")


def _class(severity: str) -> str:
    if severity.startswith("Correct"):
        return "corrected"
    return "nonfatal" if "Non-Fatal" in severity else "fatal"


def _source(port: str, named: str | None, number: str | None) -> str:
    """Who sent the message. Bus 0, device 0 is no source: some ports lose it (is_error_source), so they
    stand for what is behind them.
    """
    domain = port.partition(":")[0]
    if number:
        bus, rest = divmod(int(number, 16), 256)
        named = f"{domain}:{bus:02x}:{rest >> 3:02x}.{rest & 7}"
    return address(port if named is None or named.endswith(":00:00.0") else named)
