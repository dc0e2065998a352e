"""Run as a script in several processes: our command, with accelerate's FSDP on CPUs.

accelerate chooses FSDP where it finds GPUs; torch's FSDP 2 needs none.
"""

from accelerate.state import DistributedType, PartialState

from conversion import cli


def allow_cpus():
    started = PartialState.__init__

    def start(self, *args, **kwargs):
        started(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = start


if __name__ == "__main__":
    allow_cpus()
    cli.main()
