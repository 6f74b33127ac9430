"""Memory and machine check errors: EDAC, MCE, firmware's own records (GHES), pages that were lost.

drivers/edac/edac_mc.c (edac_ce_error, edac_ue_error) and edac_device.c (edac_device_handle_ue),
arch/x86/kernel/cpu/mce/core.c (print_mce, mce_notify_irq), drivers/edac/mce_amd.c (amd_decode_mce),
drivers/firmware/efi/cper.c (cper_estatus_print), mm/memory-failure.c (action_result). Of the many lines of
one error the one that says how bad it is is the event.
"""

from __future__ import annotations

from slurm_health.probes.kernel.event import ANY, Event, grammar

_EDAC = grammar(
    rf"EDAC MC\d{{1,3}}: (?:\d{{1,5}} (CE|UE) "
    rf"(?:{ANY}{{0,64}}\bon {ANY}{{1,512}} \({ANY}{{0,512}}page:0x[0-9a-f]+ offset:0x[0-9a-f]+ {ANY}*|"
    rf"[^\[\]\x00-\x1f\x7f]*\bon [^\[\]\x00-\x1f\x7f]+)|(CE|UE) (?:page|row) {ANY}+)"
)
_CACHE = grammar(rf"EDAC DEVICE\d{{1,3}}: (CE|UE): {ANY}{{1,64}} instance: {ANY}{{1,64}} block: {ANY}+")
_BANK = grammar(
    rf"(?:mce: )?\[Hardware Error\]: CPU \d{{1,5}}: Machine Check(?: Exception)?: [0-9a-f]{{1,16}} "
    rf"Bank \d{{1,3}}: ([0-9a-f]{{16}}){ANY}*"
)
_LOGGED = grammar(r"(?:mce: )?\[Hardware Error\]: Machine check events logged")
_ACCESS = grammar(
    r"mce: (?:Uncorrected hardware memory error in user-access|Kernel accessed poison in user space) "
    r"at [0-9a-f]+"
)
_AMD = grammar(
    r"\[Hardware Error\]: (Corrected error, no action required|Deferred error, no action required|"
    r"Uncorrected, software (?:restartable|containable) error|System Fatal error)\."
)
_FIRMWARE = grammar(
    r"(?:\{\d{1,10}\})?\[Hardware Error\]: event severity: (recoverable|fatal|corrected|info)"
)
_PAGE = grammar(rf"Memory failure: 0x[0-9a-f]+: recovery action for {ANY}{{1,64}}: [A-Za-z]+")
_UNCORRECTED = 1 << 61  # MCi_STATUS.UC, Intel SDM 3B 16.3.2.2, AMD APM 2 9.3.2.1


def memory(text: str) -> Event | None:
    """How bad it is: "corrected", "deferred" (poisoned, not yet used), "uncorrected"; "recoverable" or
    "fatal" (firmware's words, of memory or of something else); "logged" (told to another program, how bad is
    not said).
    """
    value = ""
    if match := _EDAC.fullmatch(text):
        value = "corrected" if "CE" in (match[1], match[2]) else "uncorrected"
    elif match := _CACHE.fullmatch(text):
        value = "corrected" if match[1] == "CE" else "uncorrected"
    elif match := _BANK.fullmatch(text):
        value = "uncorrected" if int(match[1], 16) & _UNCORRECTED else "corrected"
    elif match := _AMD.fullmatch(text):
        value = match[1].partition(" ")[0].rstrip(",").lower().replace("system", "uncorrected")
    elif match := _FIRMWARE.fullmatch(text):
        value = match[1]
    elif _ACCESS.fullmatch(text) or _PAGE.fullmatch(text):
        value = "uncorrected"
    elif _LOGGED.fullmatch(text):
        value = "logged"
    return Event("kernel.memory", "", value) if value else None
