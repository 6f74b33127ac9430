"""What NVIDIA's (Mellanox') adapters report, drivers/net/ethernet/mellanox/mlx5/core of Linux 4.18 to 6.x.

mlx5_core_err and its kind print "mlx5_core ADDRESS: function:line:(pid N): words"; older drivers, and the
collectors of logs, leave parts of that out. Cables plugged and the slot's power ("27W") are no faults.
"""

from __future__ import annotations

from slurm_health.probes.kernel.event import ANY, PCI, Event, grammar

_HEAD = (
    rf"(?:mlx5_core(?: ({PCI}))?: )?(?:[A-Za-z0-9_.@-]{{1,15}}: )?"
    rf"(?:(?:{PCI}:)?[a-z0-9_]{{3,64}}(?::\d{{1,6}})?(?::\(pid \d{{1,10}}\))?: )?"
)
_COMMAND = r"(?:[A-Z0-9_]+|unknown command opcode)\(0x[0-9a-f]+\)"
_WORDS = tuple(
    (value, grammar(_HEAD + words))
    for value, words in (
        # health.c: poll_health, print_health_info, mlx5_health_try_recover
        ("compromised", r"device's health compromised(?: - reached miss count)?\.?"),
        ("compromised", r"Fatal error \d{1,10} detected"),
        ("unrecoverable", r"synd 0x[0-9a-f]+: unrecoverable hardware error\.?"),
        ("unrecoverable", r"Health issue observed, unrecoverable hardware error, severity\(\d+\) [A-Z]+:"),
        (
            "unrecoverable",
            r"health recovery (?:failed|"
            r"flow aborted(?:, PCI reads still not working| since the nic state is invalid))",
        ),
        ("issue", r"Health issue observed, [A-Za-z0-9 /_-]{1,64}\n?, severity\([0-4]\) [A-Z]+:"),
        # hsynd_str, some with a line break of their own; older drivers name it only here
        ("issue", r"synd 0x[0-9a-f]{1,2}: (?!un)[A-Za-z ]{1,64}\n?"),
        # cmd.c: cb_timeout_handler, wait_func_handle_exec_timeout
        (
            "command_leak",
            rf"(?:(?:cmd\[\d+\]: )?{_COMMAND} (?:Async, )?)?timeout\. "
            r"Will cause a leak of a command resource\.?",
        ),
        # cmd.c: mlx5_cmd_out_err, before 5.18 mlx5_cmd_check
        (
            "command_failed",
            rf"{_COMMAND} op_mod\(0x[0-9a-f]+\) failed, status [A-Za-z ()]{{1,64}}\(0x[0-9a-f]+\), "
            r"syndrome \(0x[0-9a-f]+\)(?:, err\(-?\d+\))?",
        ),
        # events.c: port_module, temp_warn
        (
            "hot",
            r"Port module event\[[a-z]+\]: module \d{1,3}, (?:Cable error, )?High Temperature(?: detected)?",
        ),
        (
            "hot",
            r"High temperature on sensors with bit set (?:0x)?[0-9a-f]+ (?:0x)?[0-9a-f]+"
            r"(?:\.|, sensor name.{1,200})?",
        ),
        ("module", r"Port module event\[[a-z]+\]: module \d{1,3}, Cable error, [A-Za-z0-9 (/).]{1,128}"),
    )
)
# as others quote it, with or without words around it; its meaning is weak enough to bear that
_ACCESS_REG = grammar(
    rf"(?:mlx5_core ({PCI}): |(?:[\w.-]{{1,32}} ){{0,2}})mlx5_cmd_(?:out_err|check)"
    r"(?::\d{1,6}:\(pid \d{1,10}\))?: "
    rf"ACCESS_REG(?:\(0x[0-9a-f]+\))?(?: op_mod\(0x[0-9a-f]+\))? failed(?:[ ,]{ANY}*)?"
)


def mlx5(text: str) -> Event | None:
    """An adapter whose health is lost ("compromised", "unrecoverable"), that does not answer or fails
    commands ("command_leak", "command_failed"), whose module is "hot" or bad ("module"), or that has another
    "issue".
    """
    for value, words in _WORDS:
        if match := words.fullmatch(text):
            return Event("kernel.mlx5", match[1] or "", value)
    if match := _ACCESS_REG.fullmatch(text):
        return Event("kernel.mlx5", match[1] or "", "command_failed")
    return None
