"""Hold so much memory that vLLM's default share is not free; say so, and wait for standard input.

A process of its own, as the other programs of a machine are.
"""

import mmap
import sys

from vllm.config import CacheConfig
from vllm.utils.cpu_resource_utils import get_memory_node_info

# Others may end meanwhile.
MARGIN = 512 << 20
PAGE = 4096


def main():
    node = get_memory_node_info()
    wanted = int(node.total_memory * CacheConfig.gpu_memory_utilization)
    held = mmap.mmap(-1, max(0, node.available_memory - wanted) + MARGIN)
    for page in range(0, len(held), PAGE):
        held[page] = 1
    sys.stdout.write("held\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
