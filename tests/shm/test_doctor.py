"""The doctor on machines made up field by field, and the gathering of limits on a machine in tmp_path."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dsmem import proc
from dsmem.shm import limits as gathering
from dsmem.shm.doctor import Check, examine
from dsmem.shm.limits import Limits, Root, Space, ipc_removed_at_logout, system_limits

MIB, GIB = 1 << 20, 1 << 30

TMPFS = Space("/dev/shm", "tmpfs", 32 * GIB, 30 * GIB, 1000, False, "within_size")
DISK = Space("/home", "ext4", 900 * GIB, 500 * GIB, 1000, False, "never")
RAM_DISK = replace(TMPFS, point="/mnt/ram")
ROOT = Root("/dev/shm/dsmem-1000", "directory", 1000, 0o700, False, True)
HEALTHY = Limits(
    uid=1000,
    shared_memory=TMPFS,
    store=TMPFS,
    root=ROOT,
    memory=proc.Memory(64 * GIB, 50 * GIB, 2 * GIB, 8 * GIB, 8 * GIB),
    cgroups=(),
    shmmax_bytes=18446744073692774399,
    shmall_pages=18446744073692774399,
    shmem_enabled="never",
    memlock_bytes=8 * MIB,
    memlock_hard_bytes=8 * MIB,
    rdma=False,
    open_files=1024,
    open_files_hard=1 << 20,
    ipc_removed_at_logout=False,
    container=False,
)


def check(name: str, **changes: Any) -> Check:
    (found,) = (one for one in examine(limits=replace(HEALTHY, **changes)).checks if one.name == name)
    return found


def test_a_healthy_machine_is_all_ok() -> None:
    diagnosis = examine(limits=HEALTHY)
    assert diagnosis.worst == "ok"
    assert {(one.state, one.mend) for one in diagnosis.checks} == {("ok", None)}
    assert len({one.name for one in diagnosis.checks}) == len(diagnosis.checks)


def test_the_worst_check_is_the_state_of_all() -> None:
    assert examine(limits=replace(HEALTHY, ipc_removed_at_logout=True)).worst == "warn"
    assert examine(limits=replace(HEALTHY, ipc_removed_at_logout=True, shared_memory=None)).worst == "bad"


@pytest.mark.parametrize(
    ("space", "state", "says", "mend"),
    [
        (None, "bad", "missing", "sudo mount -t tmpfs -o size=50%,mode=1777 tmpfs /dev/shm"),
        (DISK, "bad", "ext4", "sudo mount -t tmpfs -o size=50%,mode=1777 tmpfs /dev/shm"),
        (replace(TMPFS, read_only=True), "bad", "read-only", "sudo mount -o remount,rw /dev/shm"),
        (
            replace(TMPFS, size_bytes=64 * MIB, free_bytes=MIB),
            "bad",
            "63.0 MiB of 64.0 MiB",
            "sudo mount -o remou",
        ),
        (replace(TMPFS, free_bytes=0), "bad", "32.0 GiB of 32.0 GiB used: full", "dsmem shm clean --unused"),
        (replace(TMPFS, free_bytes=2 * GIB), "warn", "nearly full", "dsmem shm clean --unused"),
        (replace(TMPFS, files_free=0), "bad", "inodes", "dsmem shm clean --unused"),
        (
            replace(TMPFS, size_bytes=8 * GIB, free_bytes=8 * GIB),
            "warn",
            "small for 64.0 GiB",
            "sudo mount -o remount,size=50% /dev/shm",
        ),
        (replace(TMPFS, size_bytes=None, free_bytes=None, files_free=None), "ok", "no size limit", None),
    ],
)
def test_shared_memory(space: Space | None, state: str, says: str, mend: str | None) -> None:
    found = check("shared memory", shared_memory=space)
    assert (found.state, says in found.detail) == (state, True), found
    assert found.mend == mend if mend is None else (found.mend or "").startswith(mend)


def test_dockers_default_is_mended_by_docker() -> None:
    space = replace(TMPFS, size_bytes=64 * MIB, free_bytes=64 * MIB)
    found = check("shared memory", shared_memory=space, store=space, container=True)
    assert found.state == "bad" and "Docker's default" in found.detail
    assert found.mend == "docker run --shm-size=32g …"


def test_a_bad_dev_shm_matters_less_when_the_store_has_its_own_memory() -> None:
    assert check("shared memory", shared_memory=None, store=RAM_DISK).state == "warn"
    assert check("shared memory", shared_memory=None, store=DISK).state == "bad"


def test_root_needs_no_sudo() -> None:
    assert check("shared memory", shared_memory=None, uid=0).mend == (
        "mount -t tmpfs -o size=50%,mode=1777 tmpfs /dev/shm"
    )


@pytest.mark.parametrize(
    ("root", "state", "says", "mend"),
    [
        (replace(ROOT, kind="missing", owner_uid=None, mode=None), "ok", "not made yet", None),
        (replace(ROOT, mode=0o755), "ok", "mode 755", None),
        (replace(ROOT, mode=0o770), "bad", "mode 770", "chmod 700 /dev/shm/dsmem-1000"),
        (replace(ROOT, kind="symlink", path="/dev/shm/a b"), "bad", "symlink", "rm '/dev/shm/a b'"),
        (replace(ROOT, kind="symlink", owner_uid=7), "bad", "uid 7, not to 1000", "export DSMEM_ROOT="),
        (replace(ROOT, owner_uid=0), "bad", "uid 0, not to 1000", "export DSMEM_ROOT="),
        (replace(ROOT, kind="other"), "bad", "not a directory", "export DSMEM_ROOT="),
        (replace(ROOT, kind="unreachable", owner_uid=None), "bad", "cannot be reached", "export DSMEM_ROOT="),
        (replace(ROOT, network=True), "bad", "network", "export DSMEM_ROOT="),
    ],
)
def test_store(root: Root, state: str, says: str, mend: str | None) -> None:
    found = check("store", root=root)
    assert (found.state, says in found.detail) == (state, True), found
    assert found.mend == mend if mend is None else (found.mend or "").startswith(mend)


def test_store_on_a_disk_or_on_a_read_only_mount() -> None:
    assert check("store", store=DISK).state == "warn"
    assert check("store", store=replace(TMPFS, read_only=True)).state == "bad"


def test_memory_that_is_promised_but_not_there() -> None:
    tight = replace(HEALTHY.memory, available_bytes=3 * GIB, swap_free_bytes=GIB)
    found = check("memory", memory=tight)
    assert found.state == "warn" and "30.0 GiB free, but no more than 4.0 GiB fit" in found.detail
    some = replace(HEALTHY.memory, available_bytes=20 * GIB, swap_free_bytes=0)
    assert check("memory", memory=some).state == "ok"
    assert "no more than 20.0 GiB fit" in check("memory", memory=some).detail
    assert check("memory", memory=tight, store=DISK).state == "ok"


def test_swap() -> None:
    assert "none" in check("swap", memory=replace(HEALTHY.memory, swap_total_bytes=0, swap_free_bytes=0)).detail
    assert check("swap", memory=replace(HEALTHY.memory, swap_free_bytes=GIB)).state == "warn"


def group(limit: int, used: int, *, path: str = "/sys/fs/cgroup/job", reclaimable: int = 0) -> proc.CgroupMemory:
    return proc.CgroupMemory(path, 2, limit, used, reclaimable)


def test_who_is_charged_is_told() -> None:
    assert check("cgroup").detail == "no memory limit"
    for groups in ((), (group(16 * GIB, GIB),)):
        found = check("cgroup", cgroups=groups, charged_cgroup="/sys/fs/cgroup/job/mine")
        assert found.detail.endswith(
            "what is pinned is charged to the group of who pins it, also after its end: here /sys/fs/cgroup/job/mine"
        )


def test_cgroup_states_and_the_tightest_group() -> None:
    roomy = group(60 * GIB, GIB)
    assert check("cgroup", cgroups=(roomy,)).state == "ok"
    assert check("cgroup", cgroups=(group(100 * GIB, 99 * GIB),)).state == "ok"  # more than the machine has
    small = check("cgroup", cgroups=(roomy, group(16 * GIB, GIB)))
    assert small.state == "warn" and "15.0 GiB free of 16.0 GiB" in small.detail
    assert "charged to the group of who pins it" in small.detail
    assert check("cgroup", cgroups=(group(40 * GIB, 39 * GIB),)).state == "warn"
    assert check("cgroup", cgroups=(group(40 * GIB, 39 * GIB, reclaimable=20 * GIB),)).state == "ok"
    assert check("cgroup", cgroups=(group(16 * GIB, 16 * GIB),)).state == "bad"


@pytest.mark.parametrize(
    ("path", "container", "mend"),
    [
        ("/sys/fs/cgroup/job", False, f"sudo sh -c 'echo {32 * GIB} > /sys/fs/cgroup/job/memory.max'"),
        (
            "/sys/fs/cgroup/a.slice/b.scope",
            False,
            f"sudo systemctl set-property b.scope MemoryMax={32 * GIB}",
        ),
        (
            "/sys/fs/cgroup/user@1000.service/app.slice/x.scope",
            False,
            f"systemctl --user set-property x.scope MemoryMax={32 * GIB}",
        ),
        ("/sys/fs/cgroup", True, f"docker update --memory={32 * GIB} --memory-swap={32 * GIB} CONTAINER"),
    ],
)
def test_who_raises_a_cgroup_limit(path: str, container: bool, mend: str) -> None:
    assert check("cgroup", cgroups=(group(16 * GIB, GIB, path=path),), container=container).mend == mend


def test_huge_pages() -> None:
    never = replace(TMPFS, huge_pages="never")
    found = check("huge pages", store=never)
    assert (found.state, found.mend) == ("warn", "sudo mount -o remount,huge=within_size /dev/shm")
    assert check("huge pages", store=never, shmem_enabled=None).state == "ok"
    assert check("huge pages", store=DISK).state == "ok"
    taken = check("huge pages", store=never, free_huge_pages=4096)
    assert (taken.state, taken.detail) == ("ok", "taken one by one, 4096 (8.0 GiB) are free")
    few = check("huge pages", store=never, free_huge_pages=100)
    assert few.state == "warn" and "100 are free" in few.detail and "compact_memory" in (few.mend or "")
    denied = check("huge pages", store=never, shmem_enabled="deny").mend or ""
    assert "shmem_enabled" in denied and denied.endswith("remount,huge=within_size /dev/shm")


def test_remove_ipc_matters_only_below_dev_shm() -> None:
    assert check("RemoveIPC", ipc_removed_at_logout=True).mend == "loginctl enable-linger"
    assert check("RemoveIPC", ipc_removed_at_logout=True, store=RAM_DISK).state == "ok"


def test_unnamed_files() -> None:
    assert check("O_TMPFILE", root=replace(ROOT, unnamed_files=False)).state == "warn"
    assert check("O_TMPFILE", root=replace(ROOT, unnamed_files=None)).state == "ok"


def test_open_files() -> None:
    assert check("open files", open_files=None, open_files_hard=None).state == "ok"
    assert check("open files", open_files=256).mend == "ulimit -n 1048576"
    assert check("open files", open_files=256, open_files_hard=None).mend == "ulimit -n 65536"
    assert check("open files", open_files=256, open_files_hard=512).mend is None


def test_memlock_matters_where_there_is_rdma() -> None:
    assert check("memlock").state == "ok" and "8.0 MiB" in check("memlock").detail
    assert check("memlock", rdma=True, memlock_bytes=None).state == "ok"
    assert check("memlock", rdma=True, memlock_hard_bytes=None).mend == "ulimit -l unlimited"
    assert "limits.d" in (check("memlock", rdma=True).mend or "")
    assert (check("memlock", rdma=True, container=True).mend or "").startswith("docker run --ulimit memlock=-1")


def test_system_v_limits_are_told_and_never_matter() -> None:
    found = check("kernel.shmmax", shmmax_bytes=32 * MIB, shmall_pages=100)
    assert found.state == "ok"
    assert "32.0 MiB" in found.detail and "100 pages" in found.detail and "dsmem needs neither" in found.detail
    assert check("kernel.shmmax").detail.startswith("no limit, kernel.shmall no limit")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine run by systemd, with a user 'ann', uid 1000."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "removed"),
    [
        ({}, True),
        ({"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\n"}, True),
        ({"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=no\n"}, False),  # as Red Hat builds it
        ({"etc/systemd/logind.conf": "[Login]\nRemoveIPC = off\n"}, False),
        ({"usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, False),
        (
            {
                "usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=no\n",
                "etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\n",
            },
            True,
        ),
        ({"etc/systemd/logind.conf.d/10-ipc.conf": "[Login]\nRemoveIPC=no\n"}, False),
        (
            {
                "etc/systemd/logind.conf.d/10-a.conf": "[Login]\nRemoveIPC=no\n",
                "usr/lib/systemd/logind.conf.d/20-b.conf": "[Login]\nRemoveIPC=yes\n",
            },
            True,
        ),
        (
            {
                "etc/systemd/logind.conf.d/20-b.conf": "[Login]\nRemoveIPC=no\n",
                "run/systemd/logind.conf.d/20-b.conf": "[Login]\nRemoveIPC=yes\n",
            },
            False,
        ),
        ({"var/lib/systemd/linger/ann": ""}, False),
        ({"var/lib/systemd/linger/bob": ""}, True),
        ({"etc/login.defs": "#SYS_UID_MAX 5000\nSYS_UID_MAX   1000\n"}, False),
    ],
)
def test_remove_ipc_as_systemd_reads_it(machine: Path, files: dict[str, str], removed: bool) -> None:
    for name, text in files.items():
        write(machine / name, text)
    assert ipc_removed_at_logout(1000, user="ann", machine=machine) is removed


def test_remove_ipc_spares_root_system_users_and_machines_without_systemd(machine: Path, tmp_path: Path) -> None:
    assert not ipc_removed_at_logout(0, user="root", machine=machine)
    assert not ipc_removed_at_logout(999, user="daemon", machine=machine)
    assert not ipc_removed_at_logout(1000, user="ann", machine=tmp_path / "other")
    assert not ipc_removed_at_logout(3_999_999_999, machine=machine)  # nobody's


def test_root_as_found(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "root"
    missing = gathering.root_of(path)
    assert (missing.kind, missing.mode, missing.owner_uid) == ("missing", None, None)
    path.mkdir(parents=True)
    path.chmod(0o750)
    found = gathering.root_of(path)
    assert (found.kind, found.mode, found.owner_uid, found.network) == (
        "directory",
        0o750,
        os.geteuid(),
        False,
    )
    assert list(path.iterdir()) == []
    link = tmp_path / "link"
    link.symlink_to(path)
    assert gathering.root_of(link).kind == "symlink"
    (tmp_path / "file").write_text("")
    assert gathering.root_of(tmp_path / "file").kind == "other"
    assert gathering.root_of(tmp_path / "file" / "below").kind == "missing"


@pytest.mark.parametrize(
    ("error", "expected"),
    [(errno.EOPNOTSUPP, False), (errno.EISDIR, False), (errno.EACCES, None), (errno.ENOSPC, None)],
)
def test_unnamed_files_as_the_kernel_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, expected: bool | None
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        found = gathering.root_of(tmp_path)
    assert found.unnamed_files is expected


def test_a_root_below_a_closed_directory_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refuse)
    assert gathering.root_of(tmp_path / "closed").kind == "unreachable"


def test_containers_are_known_by_their_marks(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda rw\n")
    assert not gathering.in_container(machine=tmp_path)
    write(tmp_path / "proc/self/mountinfo", "1 0 0:9 / / rw - overlay overlay rw\n")
    assert gathering.in_container(machine=tmp_path)
    write(tmp_path / "proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda rw\n")
    write(tmp_path / ".dockerenv", "")
    assert gathering.in_container(machine=tmp_path)


def test_limits_of_this_machine_are_plain_json(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = system_limits(tmp_path / "root")
    assert sorted(tmp_path.rglob("*")) == before
    assert json.loads(json.dumps(asdict(found)))["memory"]["total_bytes"] == found.memory.total_bytes
    assert found.root.path == str(tmp_path / "root") and found.root.kind == "missing"
    vfs = os.statvfs(tmp_path)
    assert found.store.size_bytes == vfs.f_blocks * vfs.f_frsize
    assert system_limits(tmp_path, shared_memory=tmp_path / "none").shared_memory is None


def test_the_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSMEM_ROOT", str(tmp_path / "here"))
    (tmp_path / "here").mkdir(mode=0o700)
    diagnosis = examine()
    assert diagnosis.limits.root.path == str(tmp_path / "here")
    assert diagnosis.limits.root.mode == stat.S_IMODE((tmp_path / "here").stat().st_mode)
