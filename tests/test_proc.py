"""The proc package against this machine's processes, and against machines faked in tmp_path."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsmem import proc

MIB = 1 << 20
WAIT_S = 30
UNLIMITED_V1 = "9223372036854771712\n"

MAPPER = """
import fcntl, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
if "lock" in sys.argv: fcntl.flock(fd, fcntl.LOCK_SH)
held = mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if "map" in sys.argv else None
if held: os.close(fd)
if "fork" in sys.argv and os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.readline()
if held: held.close()
else: os.close(fd)
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def held_file(tmp_path: Path) -> Path:
    path = tmp_path / "object with blanks"
    path.write_bytes(b"x" * 8192)
    return path


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def pids_of(path: Path) -> list[int]:
    return [holder.pid for holder in proc.holders([identity(path)]).by_file[identity(path)]]


@contextmanager
def process(code: str, *arguments: str) -> Iterator[tuple[int, Callable[[], str]]]:
    """A Python process that printed its pid (perhaps a child's), and how to let it go a step further."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    with child:
        try:

            def line() -> str:
                assert child.stdout is not None
                assert select.select([child.stdout], [], [], WAIT_S)[0], "the process is silent"
                return child.stdout.readline().strip()

            def step() -> str:
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
                return line()

            yield int(line()), step
        finally:
            child.stdin.close()  # both readline() of the process, and of its child, return
            child.wait(WAIT_S)


@pytest.mark.parametrize("how", [("map",), ("lock",), ("map", "lock"), ("map", "fork"), ("lock", "fork")])
def test_a_holder_is_found_once_and_is_gone_when_it_closes(held_file: Path, how: tuple[str, ...]) -> None:
    with process(MAPPER, str(held_file), *how) as (pid, step):
        assert pids_of(held_file) == [pid]
        assert step() == "closed"
        assert pids_of(held_file) == []


def test_a_holder_that_is_killed_is_gone(held_file: Path) -> None:
    with process(MAPPER, str(held_file), "map", "lock") as (pid, _):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert pids_of(held_file) == []  # a zombie holds nothing


def test_an_open_descriptor_alone_holds_nothing(held_file: Path) -> None:
    with process(MAPPER, str(held_file)):
        assert pids_of(held_file) == []


def test_parent_and_fork_child_both_hold_a_map(held_file: Path) -> None:
    ready, say = os.pipe()
    with held_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        child = os.fork()
        if child == 0:
            os.write(say, b"!")
            signal.pause()
        try:
            os.read(ready, 1)
            assert pids_of(held_file) == sorted([os.getpid(), child])
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(ready)
            os.close(say)


def test_private_and_deleted_and_writable_maps_count(held_file: Path) -> None:
    wanted = identity(held_file)
    with held_file.open("r+b") as file, mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, offset=4096):
        held_file.unlink()
        assert [holder.pid for holder in proc.holders([wanted]).by_file[wanted]] == [os.getpid()]


def test_each_file_has_its_own_holders(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"x" * 4096)
    mapped, locked, free = (identity(path) for path in paths)
    with (
        paths[0].open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
        paths[1].open("rb") as other,
    ):
        fcntl.flock(other, fcntl.LOCK_EX)
        found = proc.holders([mapped, locked, free]).by_file
    assert {file: [holder.pid for holder in who] for file, who in found.items()} == {
        mapped: [os.getpid()],
        locked: [os.getpid()],
        free: [],
    }


def test_no_files_reads_nothing(tmp_path: Path) -> None:
    assert proc.holders([], proc=tmp_path / "missing").by_file == {}


def test_the_command_of_a_holder_is_short_and_safe_on_a_terminal(held_file: Path) -> None:
    nasty = "\x1b[31mred\n" + "long" * 100
    with process(MAPPER, str(held_file), "map", nasty) as (pid, _):
        assert pids_of(held_file) == [pid]
    code = "import sys; sys.argv[0]\n" + MAPPER
    assert len(code) > 60
    with process(MAPPER, str(held_file), "map") as (_, _step):
        (holder,) = proc.holders([identity(held_file)]).by_file[identity(held_file)]
    assert holder.command.isprintable()
    assert len(holder.command) == 60 and holder.command.endswith("…")
    assert holder.command.startswith(Path(sys.executable).name + r" -c \nimport")


def fake_process(
    root: Path, pid: int, maps: str, *, command: bytes = b"", uid: int | None = None, locks: str = ""
) -> Path:
    directory = root / str(pid)
    for name in ("fd", "fdinfo", "ns"):
        (directory / name).mkdir(parents=True)
    (directory / "maps").write_text(maps)
    (directory / "ns" / "mnt").symlink_to("mnt:[1]")
    (directory / "cmdline").write_bytes(command)
    (directory / "comm").write_text("kept name\n")
    (directory / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    if locks:
        (directory / "fd" / "7").symlink_to("/dev/shm/x/object (deleted)")
        (directory / "fdinfo" / "7").write_text(f"pos:\t0\nflags:\t0100000\n{locks}")
    return directory


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A /proc with one tmpfs, device 0:27, and no process but 'self'."""
    root = tmp_path / "proc"
    (root / "self" / "ns").mkdir(parents=True)
    (root / "self" / "ns" / "mnt").symlink_to("mnt:[1]")
    (root / "self" / "mountinfo").write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:27 / /dev/shm rw - tmpfs tmpfs rw\n"
        f"3 1 0:5 / {root} rw - proc proc rw,hidepid=invisible\n"
    )
    return root


def maps_line(device: str, inode: int, path: str = "/x") -> str:
    return f"7f0000000000-7f0000001000 r--s 00000000 {device} {inode}      {path}\n"


def test_devices_are_compared_as_the_kernel_writes_them_and_paths_cannot_pose_as_inodes(
    machine: Path,
) -> None:
    wanted = (os.makedev(0, 27), 5)
    fake_process(machine, 10, maps_line("00:1b", 5), command=b"/usr/bin/python\0train.py\0")
    fake_process(machine, 11, maps_line("00:1b", 55) + maps_line("00:1c", 5))
    fake_process(machine, 12, maps_line("08:01", 9, "/tmp/a 00:1b 5 "))
    fake_process(machine, 13, maps_line("08:01", 9), locks="lock:\t1: FLOCK  ADVISORY  READ 1 00:1b:5 0 EOF\n")
    fake_process(machine, 14, maps_line("08:01", 9), locks="lock:\t1: FLOCK  ADVISORY  READ 1 00:1b:6 0 EOF\n")
    found = proc.holders([wanted], proc=machine)
    assert found.by_file == {wanted: (proc.Holder(10, "python train.py"), proc.Holder(13, "kept name"))}
    assert found.unreadable == () and found.complete


def test_a_subvolume_device_that_no_mount_shows_is_matched_by_inode_on_btrfs_only(machine: Path) -> None:
    wanted = (os.makedev(0, 99), 5)
    with (machine / "self" / "mountinfo").open("a") as file:
        file.write("4 1 0:40 / /data rw - btrfs /dev/sdb rw\n")
    fake_process(machine, 10, maps_line("00:28", 5))
    fake_process(machine, 11, maps_line("00:1b", 5))
    assert [holder.pid for holder in proc.holders([wanted], proc=machine).by_file[wanted]] == [10]


def test_refused_processes_are_named_and_only_our_own_make_it_incomplete(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (os.makedev(0, 27), 5)
    refused = {fake_process(machine, pid, "", uid=uid) for pid, uid in ((1, 4242), (20, 0), (21, 7))}
    really_open = os.open

    def refusing(path: str, flags: int, *rest: int) -> int:
        if Path(path).name == "maps" and Path(path).parent in refused:
            raise PermissionError(13, "Permission denied", path)
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    others = proc.holders([wanted], proc=machine)
    assert others.unreadable == (1, 20, 21) and others.hidden and others.complete
    refused.add(fake_process(machine, 22, "", uid=4242))
    assert not proc.holders([wanted], proc=machine).complete
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not proc.holders([wanted], proc=machine).hidden


def test_processes_that_end_during_the_scan_are_left_out(machine: Path) -> None:
    wanted = (os.makedev(0, 27), 5)
    (machine / "30").mkdir()  # its files are gone already
    half = fake_process(machine, 31, maps_line("00:1b", 5))
    (half / "fd").rmdir()  # it ended between maps and fd
    assert proc.holders([wanted], proc=machine) == proc.Holders({wanted: ()}, hidden=os.geteuid() != 0, complete=True)


def test_memory_of_shows_what_a_process_touches(tmp_path: Path) -> None:
    before = proc.memory_of(os.getpid())
    with mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"x" * (32 * MIB))
        after = proc.memory_of(os.getpid())
    for name in ("rss_bytes", "anonymous_bytes", "private_bytes"):
        assert 31 * MIB < getattr(after, name) - getattr(before, name) < 70 * MIB, name
    # What is shared with processes that end meanwhile, or are forked from the same parent, counts more or less of it.
    assert 24 * MIB < after.pss_bytes - before.pss_bytes < 70 * MIB
    assert after.rss_bytes >= after.private_bytes


def test_memory_of_adds_up_smaps_where_there_is_no_rollup(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    one = "7f00-7f01 r--p 0 00:00 0\nRss: 8 kB\nPss: 4 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 2 kB\n"
    (tmp_path / "5" / "smaps").write_text(one + one + "Anonymous: 3 kB\nVmFlags: rd mr\n")
    found = proc.memory_of(5, proc=tmp_path)
    assert (found.rss_bytes, found.pss_bytes, found.private_bytes) == (16384, 8192, 6144)
    assert found.anonymous_bytes == 3072
    assert found.pss_shared_memory_bytes is None


def test_a_process_that_is_not_there() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(ProcessLookupError):
        proc.memory_of(ended.pid)
    with pytest.raises(ProcessLookupError):
        proc.process_start_time(ended.pid)


def test_start_time_with_parentheses_in_the_command(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    fields = ["S", *(str(number) for number in range(4, 53))]
    (tmp_path / "5" / "stat").write_text(f"5 (a) R 1 (b) ) {' '.join(fields)}\n")
    assert proc.process_start_time(5, proc=tmp_path) == 22
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    mine_s = proc.process_start_time(os.getpid()) / os.sysconf("SC_CLK_TCK")
    assert 0 < mine_s <= uptime_s


def test_free_huge_pages_counts_whole_ones(tmp_path: Path) -> None:
    assert proc.free_huge_pages(proc=tmp_path) is None
    orders = "7 " * 9
    (tmp_path / "buddyinfo").write_text(
        f"Node 0, zone      DMA {orders} 1 3\nNode 0, zone    DMA32 {orders} 2 5\n"
        f"Node 1, zone   Normal {orders} 1 0\n\n"
    )
    assert proc.free_huge_pages(proc=tmp_path) == 2 + 2 * 5 + 1
    assert (proc.free_huge_pages() or 0) >= 0


@pytest.mark.parametrize(("text", "expected"), [("6.1.0-13-amd64\n", (6, 1)), ("5.15.0\n", (5, 15)), ("?", None)])
def test_kernel_release(tmp_path: Path, text: str, expected: tuple[int, int] | None) -> None:
    assert proc.kernel_release(proc=tmp_path) is None
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/osrelease").write_text(text)
    assert proc.kernel_release(proc=tmp_path) == expected


def test_huge_page_bytes(tmp_path: Path) -> None:
    assert proc.huge_page_bytes(sys=tmp_path) is None
    (tmp_path / "kernel/mm/transparent_hugepage").mkdir(parents=True)
    (tmp_path / "kernel/mm/transparent_hugepage/hpage_pmd_size").write_text("2097152\n")
    assert proc.huge_page_bytes(sys=tmp_path) == 2 << 20


def test_memory_available_counts_free_swap(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 300 kB\nShmem: 50 kB\n"
        "SwapTotal: 90 kB\nSwapFree: 60 kB\nHugePages_Total: 7\n"
    )
    assert proc.memory_available(proc=tmp_path) == 360 * 1024
    assert proc.memory(proc=tmp_path).shared_bytes == 50 * 1024
    assert 0 < proc.memory().available_bytes <= proc.memory().total_bytes


def test_sysctl_and_limits(tmp_path: Path) -> None:
    shmmax = proc.sysctl("kernel.shmmax")
    assert shmmax is not None and shmmax > 0
    assert proc.sysctl("kernel.shmmax", proc=tmp_path) is None
    soft, hard = proc.rlimit_open_files()
    assert soft is not None and soft > 0 and (hard is None or hard >= soft)
    assert len(proc.rlimit_memlock()) == 2


def cgroup_machine(tmp_path: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    """A /proc and the control groups' files; {fs} in `mountinfo` is where they lie."""
    fs = tmp_path / "fs"
    for name, text in files.items():
        (fs / name).parent.mkdir(parents=True, exist_ok=True)
        (fs / name).write_text(text)
    root = tmp_path / "proc"
    (root / "self").mkdir(parents=True)
    (root / "self" / "cgroup").write_text(cgroup)
    (root / "self" / "mountinfo").write_text(mountinfo.format(fs=fs))
    return root


def test_cgroup_v2_through_every_ancestor(tmp_path: Path) -> None:
    root = cgroup_machine(
        tmp_path,
        "0::/user.slice/job.scope\n",
        "1 0 0:30 / {fs} rw - cgroup2 cgroup2 rw\n",
        {
            "user.slice/job.scope/memory.max": "max\n",  # no limit
            "user.slice/job.scope/memory.current": "1000\n",
            "user.slice/job.scope/memory.stat": "anon 5\ninactive_file 200\nactive_file 7\n",
            "user.slice/job.scope/cpu.max": "max 100000\n",
            "user.slice/memory.max": "5000\n",
            "user.slice/memory.current": "3000\n",
            "user.slice/memory.stat": "inactive_file 400\n",
            "user.slice/cpu.max": "150000 100000\n",
            "cgroup.procs": "",
        },
    )
    fs = str(tmp_path / "fs")
    (parent,) = proc.cgroup_memory(proc=root)  # the job's own has no limit
    assert parent == proc.CgroupMemory(f"{fs}/user.slice", 2, 5000, 3000, 400)
    assert parent.free_bytes == 2400
    assert proc.cgroup_cpus(proc=root) == 1.5
    assert proc.usable_cpus(proc=root) == min(2, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("counted", "charged"),
    [
        (["a.slice/job.scope", "a.slice"], "a.slice/job.scope"),
        (["a.slice"], "a.slice"),  # the controller is not enabled further down: the ancestor pays
        ([], None),  # the root group counts nothing
    ],
)
def test_who_is_charged_in_v2(tmp_path: Path, counted: list[str], charged: str | None) -> None:
    root = cgroup_machine(
        tmp_path,
        "0::/a.slice/job.scope\n",
        "1 0 0:30 / {fs} rw - cgroup2 cgroup2 rw\n",
        {"cgroup.procs": "", **{f"{group}/memory.current": "1\n" for group in counted}},
    )
    assert proc.cgroup_charged(proc=root) == (None if charged is None else str(tmp_path / "fs" / charged))


def test_cgroup_v1_in_a_hybrid_hierarchy(tmp_path: Path) -> None:
    root = cgroup_machine(
        tmp_path,
        "5:memory:/jobs/one\n3:cpu,cpuacct:/jobs\n1:name=systemd:/\n0::/elsewhere\n",
        "1 0 0:30 / {fs}/memory rw - cgroup cgroup rw,memory\n"
        "2 0 0:31 / {fs}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "3 0 0:32 / {fs}/unified rw - cgroup2 cgroup2 rw\n",
        {
            "memory/jobs/one/memory.limit_in_bytes": "8192\n",
            "memory/jobs/one/memory.usage_in_bytes": "9000\n",
            "memory/jobs/one/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            "memory/jobs/memory.limit_in_bytes": UNLIMITED_V1,
            "memory/jobs/memory.usage_in_bytes": "9000\n",
            "memory/jobs/memory.stat": "inactive_file 1\n",
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
            "memory/memory.usage_in_bytes": "9999\n",
            "memory/memory.stat": "",
            "cpu/jobs/cpu.cfs_quota_us": "50000\n",
            "cpu/jobs/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "unified/elsewhere/cgroup.procs": "",
        },
    )
    (group,) = proc.cgroup_memory(proc=root)
    assert (Path(group.path).name, group.version, group.limit_bytes) == ("one", 1, 8192)
    assert proc.cgroup_charged(proc=root) == group.path
    assert group.reclaimable_bytes == 100 and group.free_bytes == 0  # over its limit: not below zero
    assert proc.cgroup_cpus(proc=root) == 0.5
    assert proc.usable_cpus(proc=root) == 1


@pytest.mark.parametrize(
    ("group", "mount_root", "directory"),
    [("/docker/ab12", "/docker/ab12", "."), ("/docker/ab12/job", "/docker/ab12", "job"), ("/../x", "/", ".")],
)
def test_cgroup_mounted_in_a_container(tmp_path: Path, group: str, mount_root: str, directory: str) -> None:
    root = cgroup_machine(
        tmp_path,
        f"4:memory:{group}\n",
        f"1 0 0:30 {mount_root} {{fs}} rw - cgroup cgroup rw,memory\n",
        {
            f"{directory}/memory.limit_in_bytes": "64\n",
            f"{directory}/memory.usage_in_bytes": "4\n",
        },
    )
    (found,) = proc.cgroup_memory(proc=root)
    assert (found.path, found.limit_bytes) == (str((tmp_path / "fs" / directory).resolve()), 64)


def test_no_cgroups(tmp_path: Path) -> None:
    root = cgroup_machine(tmp_path, "", "1 0 8:1 / / rw - ext4 /dev/sda rw\n", {})
    (root / "self" / "cgroup").unlink()
    assert proc.cgroup_memory(proc=root) == ()
    assert proc.cgroup_charged(proc=root) is None
    assert proc.cgroup_cpus(proc=root) is None
    assert proc.usable_cpus(proc=root) == len(os.sched_getaffinity(0))


def test_cgroups_of_this_machine() -> None:
    quota = proc.cgroup_cpus()
    assert quota is None or (quota > 0 and math.isfinite(quota))
    charged = proc.cgroup_charged()
    assert charged is None or Path(charged).is_dir()
    for group in proc.cgroup_memory():
        assert Path(group.path).is_dir()
        assert 0 < group.limit_bytes < 1 << 60 and group.free_bytes >= 0


def mount_machine(tmp_path: Path, mountinfo: str) -> Path:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(mountinfo)
    return tmp_path


def test_mount_of_takes_the_visible_mount(tmp_path: Path) -> None:
    root = mount_machine(
        tmp_path,
        "25 24 0:23 / /nowhere/shm rw - tmpfs first rw,size=4k\n"
        "24 27 0:6 / /nowhere rw - devtmpfs dev rw\n"
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "30 25 0:27 / /nowhere/shm rw shared:7 master:3 - tmpfs second rw,size=8k,huge=within_size\n"
        "40 27 0:41 / /data rw - ext4 /dev/sdb rw\n"
        "41 40 0:42 / /data/in rw - nfs4 server:/in rw\n"
        "42 40 0:43 / /data ro,nosuid - xfs cover rw\n"
        r"43 27 0:44 /sub /with\040blank\134 rw - ext4 /dev/s\011c ro" + "\n",
    )
    assert proc.mount_of("/nowhere/shm/object", proc=root).source == "second"
    assert proc.mount_of("/nowhere/shm/object", proc=root).options["huge"] == "within_size"
    assert proc.mount_of("/nowhere/shmem", proc=root).source == "dev"
    covered = proc.mount_of("/data/in/file", proc=root)  # /data/in lies under what covers /data
    assert (covered.fstype, covered.point, covered.read_only) == ("xfs", "/data", True)
    assert "rw" not in covered.options  # the mount is read-only, though its file system is not
    blank = proc.mount_of("/with blank\\/a", proc=root)
    assert (blank.point, blank.source, blank.root, blank.read_only) == (
        "/with blank\\",
        "/dev/s\tc",
        "/sub",
        True,
    )
    assert proc.mount_of("/elsewhere", proc=root).device == (254, 0)
    assert not proc.mount_of("/elsewhere", proc=root).read_only


def test_mount_of_resolves_links_and_a_chroot_has_no_root_mount(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere/there")
    root = mount_machine(tmp_path, "5 99 0:9 / /nowhere rw - tmpfs t rw\n")
    assert proc.mount_of(tmp_path / "link" / "x", proc=root).point == "/nowhere"
    assert proc.mount_of("/usr", proc=root).fstype == "unknown"


def test_mount_of_agrees_with_the_kernel(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    assert f"mnt_id:\t{proc.mount_of(tmp_path).id}" in lines


@pytest.mark.parametrize(
    "fstype", ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs", "glusterfs"]
)
def test_network_file_systems(fstype: str) -> None:
    assert proc.is_network_fs(fstype)


def test_fuse_is_network_but_for_the_local_ones() -> None:
    assert proc.is_network_fs("fuse.sshfs") and proc.is_network_fs("fuse.juicefs") and proc.is_network_fs("fuse")
    for fstype in ("tmpfs", "ext4", "xfs", "btrfs", "zfs", "overlay", "fuseblk", "fuse.mergerfs", "unknown"):
        assert not proc.is_network_fs(fstype), fstype


@pytest.mark.parametrize(
    ("fstype", "option", "switch", "expected"),
    [
        ("tmpfs", None, "never", "never"),
        ("tmpfs", "within_size", "never", "within_size"),
        ("tmpfs", "advise", "within_size", "advise"),
        ("tmpfs", "always", "deny", "never"),
        ("tmpfs", None, "force", "always"),
        ("tmpfs", None, "always", "never"),  # 'always' there is about memfd and SysV, not about mounts
        ("tmpfs", "always", None, "never"),
        ("ext4", "always", "force", "never"),
    ],
)
def test_huge_pages(
    tmp_path: Path, fstype: str, option: str | None, switch: str | None, expected: proc.HugePages
) -> None:
    words = ["always", "within_size", "advise", "never", "deny", "force"]
    if switch is not None:
        directory = tmp_path / "kernel/mm/transparent_hugepage"
        directory.mkdir(parents=True)
        text = " ".join(f"[{word}]" if word == switch else word for word in words)
        (directory / "shmem_enabled").write_text(text + "\n")
    options = {"rw": ""} | ({"huge": option} if option else {})
    assert proc.huge_pages(proc.Mount("/m", fstype, "m", options), sys=tmp_path) == expected


@pytest.mark.parametrize(
    ("nvidia", "amd", "environ", "expected"),
    [
        (0, 0, {}, 0),
        (4, 0, {}, 4),
        (4, 0, {"CUDA_VISIBLE_DEVICES": "1,3"}, 2),
        (4, 0, {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (4, 0, {"CUDA_VISIBLE_DEVICES": "0,-1,2"}, 1),
        (1, 0, {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, 1),
        (0, 2, {"CUDA_VISIBLE_DEVICES": "0"}, 2),
        (0, 2, {"HIP_VISIBLE_DEVICES": "0"}, 1),
    ],
)
def test_visible_gpus(tmp_path: Path, nvidia: int, amd: int, environ: dict[str, str], expected: int) -> None:
    for number in range(nvidia):
        (tmp_path / f"proc/driver/nvidia/gpus/0000:0{number}:00.0").mkdir(parents=True)
    for number in range(amd + 1):  # node 0 is the CPU
        node = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 8\nsimd_count {256 if number else 0}\n")
    assert proc.visible_gpus(proc=tmp_path / "proc", sys=tmp_path / "sys", environ=environ) == expected
