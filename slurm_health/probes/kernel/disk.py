"""Disks and the file systems on them.

block/blk-core.c (blk_print_req_error), fs/buffer.c (buffer_io_error), drivers/nvme/host (nvme_timeout,
nvme_warn_reset, nvme_error_detected, nvme_log_error, nvme_remove_dead_ctrl, nvme_ns_head_submit_bio),
drivers/md (error handlers), drivers/scsi (scsi_device_state_check, scsi_eh_offline_sdevs, sd_eh_action),
fs/ext4/super.c, fs/jbd2/journal.c, fs/xfs/xfs_fsops.c (xfs_do_force_shutdown) and xfs_error.c, fs/iomap
(iomap_finish_ioend), fs/btrfs/messages.c. What they say of a full disk is no fault, nor is a file system that
its admin shut down, nor a disk that refuses to forget (discard) what it need not forget.
"""

from __future__ import annotations

from slurm_health.probes.kernel.event import ANY, DISK, Event, grammar

_BLOCK = r"(?:(?:blk_update_request|print_req_error|end_request): )?"  # who said it, until 5.16
_ARRAY = r"md/(?:raid\d*|linear):?(md[A-Za-z0-9_-]+): "
_DISKS = tuple(
    (value, grammar(words))
    for value, words in (
        # the controller
        (
            "timeout",
            r"nvme (nvme\d+): I/O (?:tag )?\d+ (?:[^\[\]\x00-\x1f\x7f]{1,80} )?QID \d+ timeout"
            r"(?:, [a-z ]+(?: req_op:\w+\(\d+\) size:\d+)?)?",
        ),
        (
            "reset",
            rf"nvme (nvme\d+): controller is down; will reset(?:: CSTS=0x[0-9a-f]+, PCI_STATUS{ANY}*)?",
        ),
        (
            "reset",
            r"nvme (nvme\d+): (?:frozen state error detected, reset controller|"
            r"resetting controller due to (?:AER|persistent internal error))",
        ),
        ("dead", r"nvme (nvme\d+): failure state error detected, request disconnect"),
        ("dead", r"nvme (nvme\d+): IO queues (?:lost|not created)"),
        ("dead", r"nvme (nvme\d+): Removing after probe failure(?: status: -?\d+)?"),
        ("dead", r"nvme (nvme\d+): Disabling device after reset failure: -?\d+"),
        (
            "dead",
            r"nvme (nvme\d+): Device not ready; aborting (?:initialisation|reset)(?:, CSTS=0x[0-9a-f]+)?",
        ),
        ("dead", r"block (nvme\d+n\d+): no available path - failing I/O"),
        (
            "dead",
            rf"sd \d+:\d+:\d+:\d+: (?:\[({DISK})\] )?(?:tag#\d+ )?"
            r"(?:rejecting I/O to offline device|Device offlined - not ready after error recovery|"
            r"Medium access timeout failure\. Offlining disk!)",
        ),
        ("dead", rf"{_ARRAY}Disk failure on {DISK} detected, failing array\.?"),
        ("dead", rf"{_ARRAY}Cannot continue operation \(\d+/\d+ failed\)\."),
        ("degraded", rf"{_ARRAY}Disk failure on {DISK}, disabling device\.(?:\nmd/{ANY}*)?"),
        # what was to be read or written
        ("medium", rf"{_BLOCK}critical medium error, dev ({DISK}), sector \d+{ANY}*"),
        (
            "io",
            rf"{_BLOCK}(?:I/O|critical target(?!{ANY}*:\((?:DISCARD|SECURE_ERASE|WRITE_ZEROES)\))|"
            r"recoverable transport|timeout|protection|device offline) "
            rf"error, dev ({DISK}), sector \d+{ANY}*",
        ),
        ("io", rf"{_ARRAY}(?:{DISK}: )?unrecoverable I/O read error for block \d+"),
        # taken away, be it by its admin (SDEV_DEL)
        ("io", rf"sd \d+:\d+:\d+:\d+: (?:\[({DISK})\] )?(?:tag#\d+ )?rejecting I/O to dead device"),
        ("io", rf"Buffer I/O error on dev(?:ice)? ({DISK}), logical block \d+(?:, [a-z ]+)?"),
        (
            "io",
            r"(nvme\d+(?:c\d+)?n\d+): (?!Dataset Management|Write Zeroes)[A-Za-z0-9/ -]+\(0x[0-9a-f]+\) "
            r"@ LBA \d+, \d+ blocks, "
            rf"{ANY}{{1,64}} \(sct 0x[0-9a-f]+ / sc 0x[0-9a-f]+\)[A-Z ]*",
        ),
    )
)
_ON = rf"(?:\(({DISK})\))"
_BTRFS = rf"\(device ({DISK})(?::? state [A-Z]+)?\)"
_FILESYSTEMS = tuple(
    (value, grammar(words))
    for value, words in (
        ("readonly", rf"(?:(?:EXT[234]-fs|XFS|BTRFS|F2FS-fs)(?: {_ON})?: )?Remounting filesystem read-only"),
        (
            "readonly",
            rf"BTRFS (?:info|error|warning) {_BTRFS}: forced readonly",
        ),
        (
            "shutdown",
            rf"XFS {_ON}: (?:Filesystem has been shut down due to log error \(0x[0-9a-f]+\)\.|"
            rf"(?!User initiated){ANY}{{1,200}}[Ss]hutting [Dd]own filesystem{ANY}*|"
            rf"xfs_do_force_shutdown\(0x[0-9a-f]+\) called from {ANY}+)",
        ),
        ("error", rf"(?:EXT[234]-fs|XFS|BTRFS)(?: {_ON})?: I/O error while writing superblock"),
        ("error", rf"EXT[234]-fs error \(device ({DISK})\)(?::| in) {ANY}+"),
        ("error", rf"EXT4-fs warning \(device ({DISK})\): ext4_end_bio:\d+: I/O error {ANY}+"),
        ("error", rf"EXT4-fs {_ON}: failed to convert unwritten extents to written extents -- {ANY}+"),
        ("error", rf"EXT[234]-fs {_ON}: previous I/O error to superblock detected"),
        ("error", rf"Aborting journal on device ({DISK}?)(?:-\d+)?\."),
        (
            "error",
            rf"JBD2: (?:Error -?\d+ detected when updating|I/O error when updating) journal superblock for "
            rf"({DISK}?)(?:-\d+)?\.",
        ),
        ("error", rf"JBD2: Detected IO errors(?: -?\d+)? while flushing file data on ({DISK}?)(?:-\d+)?"),
        (
            "error",
            rf"JBD2: previous I/O error detected for journal superblock update for ({DISK}?)(?:-\d+)?\.",
        ),
        (
            "error",
            rf"XFS {_ON}: (?:(?:Metadata )?[Cc]orruption (?:{ANY}{{1,80}} )?[Dd]etected|"
            r"Metadata CRC error detected|Internal error [A-Za-z0-9_ !=()>-]{1,128} at line \d+ of file )"
            rf"{ANY}*",
        ),
        ("error", rf"XFS {_ON}: (?:[Mm]etadata|[Ll]og) I/O [Ee]rror:? {ANY}+"),
        ("error", rf"(?:XFS {_ON}|({DISK})): writeback error on inode \d+, offset \d+, sector \d+"),
        ("error", rf"BTRFS (?:error|critical) {_BTRFS}: {ANY}+"),
        ("error", rf"BTRFS warning {_BTRFS}: csum failed {ANY}+"),
        ("error", rf"BTRFS: error {_BTRFS} in {ANY}+: errno={ANY}+"),
    )
)
# for want of space (ENOSPC) or of memory
_FULL = grammar(rf"BTRFS{ANY}*errno=-28\b{ANY}*|{ANY}*(?:\berror -?28\)?|: Out of memory)")


def disk(text: str) -> Event | None:
    """A disk that is "dead", was "reset" or timed out ("timeout"), has a bad "medium", or failed ("io"); an
    array that goes on without a member ("degraded").
    """
    for value, words in _DISKS:
        if match := words.fullmatch(text):
            return Event("kernel.disk", match[1] or "", value)
    return None


def filesystem(text: str) -> Event | None:
    """A file system with an "error", that took itself down ("shutdown") or went "readonly"."""
    for value, words in _FILESYSTEMS:
        if match := words.fullmatch(text):
            device = next(filter(None, match.groups()), "")
            return None if _FULL.fullmatch(text) else Event("kernel.filesystem", device, value)
    return None
