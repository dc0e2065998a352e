"""Free memory as made-up systems report it, and the part of it for the cache."""

import pytest

from vllm_mha2mla.errors import EngineMemoryError
from vllm_mha2mla.memory import ENGINE_BYTES, cache_bytes, free_bytes

GIB = 1 << 30


@pytest.fixture
def system(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"

    def make(groups, memory_gib=16, **files):
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text(groups)
        meminfo = f"MemTotal: 999999999 kB\nMemAvailable: {memory_gib << 20} kB\n"
        (proc / "meminfo").write_text(meminfo)
        for folder, values in files.items():
            where = cgroups / folder.replace("__", "/").removeprefix("root").lstrip("/")
            where.mkdir(parents=True, exist_ok=True)
            for name, value in values.items():
                (where / f"memory.{name}").write_text(f"{value}\n")
        return free_bytes(proc, cgroups)

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


def test_the_machine_has_less_than_the_group_may_use(system):
    group = {"max": 32 * GIB, "current": 0, "stat": ""}
    assert system("0::/job\n", memory_gib=5, root__job=group) == 5 * GIB


def test_used_beyond_the_limit(system):
    group = {"max": GIB, "current": 2 * GIB, "stat": ""}
    assert system("0::/job\n", root__job=group) == 0


def test_no_information(tmp_path):
    assert free_bytes(tmp_path, tmp_path) is None


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
