"""Free memory as made-up systems report it, and the part of it for the cache."""

import pytest

from vllm_mha2mla.errors import EngineMemoryError
from vllm_mha2mla.memory import ENGINE_BYTES, cache_bytes, free_bytes

GIB = 1 << 30


@pytest.fixture
def system(tmp_path):
    def make(groups, memory_gib=16, mounts="", **files):
        process = tmp_path / "proc" / "self"
        process.mkdir(parents=True)
        (process / "cgroup").write_text(groups)
        (process / "mountinfo").write_text(mounts)
        meminfo = f"MemTotal: 999999999 kB\nMemAvailable: {memory_gib << 20} kB\n"
        (tmp_path / "proc" / "meminfo").write_text(meminfo)
        for folder, values in files.items():
            inside = folder.replace("__", "/").removeprefix("root").lstrip("/")
            where = tmp_path / "sys" / "fs" / "cgroup" / inside
            where.mkdir(parents=True, exist_ok=True)
            for name, value in values.items():
                (where / f"memory.{name}").write_text(f"{value}\n")
        return free_bytes(tmp_path)

    return make


def test_machine_without_control_groups(system):
    assert system("") == 16 * GIB


def test_version_2(system):
    group = {"max": 8 * GIB, "current": 3 * GIB, "stat": f"anon 5\ninactive_file {GIB}\nfile 7"}
    assert system("0::/user/job\n", root__user__job=group) == 6 * GIB


def test_a_parents_limit_counts(system):
    parent = {"max": 4 * GIB, "current": GIB, "stat": "inactive_file 0"}
    group = {"max": "max", "current": GIB, "stat": "inactive_file 0"}
    assert system("0::/user/job\n", root__user=parent, root__user__job=group) == 3 * GIB


def test_container_whose_group_is_mounted_as_the_root(system):
    root = {"max": 2 * GIB, "current": GIB, "stat": "inactive_file 0"}
    assert system("0::/docker/0123abcd\n", root=root) == GIB


def test_version_1(system):
    group = {
        "limit_in_bytes": 8 * GIB,
        "usage_in_bytes": 7 * GIB,
        "stat": f"inactive_file 0\ntotal_inactive_file {2 * GIB}",
    }
    root = {"limit_in_bytes": 9223372036854771712, "usage_in_bytes": 9 * GIB, "stat": ""}
    assert system("7:cpu:/job\n4:memory:/job\n0::/\n", memory=root, memory__job=group) == 3 * GIB


def mount(kind, mounted, top="/", options="rw"):
    """A line of mountinfo as Linux writes it."""
    return f"35 31 0:32 {top} {mounted} rw,nosuid,relatime shared:9 - {kind} {kind} {options}\n"


def test_systemds_slices_limit_what_is_in_them(system):
    """Only inner groups have files of this kind; a slice is throttled above ``MemoryHigh``."""
    user = {"max": "max", "high": 6 * GIB, "current": 2 * GIB, "stat": "inactive_file 0"}
    scope = {"max": 5 * GIB, "high": "max", "current": GIB // 2, "stat": "inactive_file 0"}
    none = {"max": "max", "high": "max", "current": 2 * GIB, "stat": ""}
    free = system(
        "0::/user.slice/user-0.slice/run-7.scope\n",
        mounts=mount("cgroup2", "/sys/fs/cgroup", options="rw,nsdelegate,memory_recursiveprot"),
        **{"root__user.slice": none, "root__user.slice__user-0.slice": user},
        **{"root__user.slice__user-0.slice__run-7.scope": scope},
    )
    assert free == 4 * GIB


def test_container_of_version_1_with_groups_inside(system):
    """Docker mounts the container's own group, and a program in it may make groups below."""
    own = {"limit_in_bytes": 8 * GIB, "usage_in_bytes": 3 * GIB, "stat": "total_inactive_file 0"}
    inner = {"limit_in_bytes": 4 * GIB, "usage_in_bytes": GIB, "stat": "total_inactive_file 0"}
    free = system(
        "12:hugetlb:/docker/ab12\n4:memory,cpu:/docker/ab12/job\n0::/docker/ab12\n",
        mounts=mount("cgroup", "/sys/fs/cgroup/cpu", "/docker/ab12", "rw,cpu,cpuacct")
        + mount("cgroup", "/sys/fs/cgroup/memory,cpu", "/docker/ab12", "rw,memory,cpu")
        + mount("cgroup2", "/sys/fs/cgroup/unified"),
        **{"root__memory,cpu": own, "root__memory,cpu__job": inner},
    )
    assert free == 3 * GIB


def test_container_of_version_2_that_sees_the_hosts_paths(system):
    own = {"max": 8 * GIB, "current": 3 * GIB, "stat": "inactive_file 0"}
    free = system(
        "0::/system.slice/docker-ab12.scope\n",
        mounts=mount("cgroup2", "/sys/fs/cgroup", "/system.slice/docker-ab12.scope"),
        root=own,
    )
    assert free == 5 * GIB


def test_a_path_outside_of_what_is_mounted(system):
    """A process that was moved into another's container: paths begin with ``/..``."""
    own = {"max": 3 * GIB, "current": GIB, "stat": ""}
    assert system("0::/../other\n", root=own) == 2 * GIB


def test_no_limit_in_version_1_is_a_large_number(system):
    root = {"limit_in_bytes": 9223372036854771712, "usage_in_bytes": GIB, "stat": ""}
    assert system("4:memory:/\n", memory_gib=5, memory=root) == 5 * GIB


def test_the_machine_has_less_than_the_group_may_use(system):
    group = {"max": 32 * GIB, "current": 0, "stat": ""}
    assert system("0::/job\n", memory_gib=5, root__job=group) == 5 * GIB


def test_used_beyond_the_limit(system):
    group = {"max": GIB, "current": 2 * GIB, "stat": ""}
    assert system("0::/job\n", root__job=group) == 0


def test_no_information(tmp_path):
    assert free_bytes(tmp_path) is None


def test_half_of_what_is_left(system):
    free = ENGINE_BYTES + 3 * GIB + 8 * GIB
    assert cache_bytes(free, 3 * GIB, one_request=GIB, all_requests=100 * GIB) == 4 * GIB


def test_no_more_than_requests_can_fill():
    assert cache_bytes(100 * GIB, GIB, one_request=1000, all_requests=5000) == 5000


def test_more_than_half_where_one_request_needs_it():
    free = ENGINE_BYTES + 4 * GIB
    assert cache_bytes(free, 0, one_request=3 * GIB, all_requests=30 * GIB) == 3 * GIB
    # All there is; the engine then says which length would fit.
    assert cache_bytes(free, 0, one_request=5 * GIB, all_requests=50 * GIB) == 4 * GIB


def test_not_enough_for_the_engine_itself():
    with pytest.raises(EngineMemoryError, match=r"2\.00 GiB of memory are free.*3\.00 GiB beside"):
        cache_bytes(2 * GIB, 3 * GIB - ENGINE_BYTES, one_request=1, all_requests=9)
