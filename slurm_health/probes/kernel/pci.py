"""PCI Express advanced error reporting (AER), drivers/pci/pcie/aer.c of Linux 3.10 to 6.x.

One error is told twice: by the root port that was sent the message (aer_print_port_info, aer_print_source)
and by the device that made it (aer_print_error). The registers in the lines that follow are no events.
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


def aer(text: str) -> Event | None:
    """An AER error of the device that made it: "fatal", "nonfatal" or "corrected"."""
    if report := _REPORT.fullmatch(text):
        return Event("kernel.aer", _source(report[1], report[3], report[4]), _class(report[2]))
    if error := _ERROR.fullmatch(text):
        return Event("kernel.aer", address(error[1]), _class(error[2]))
    return None


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
