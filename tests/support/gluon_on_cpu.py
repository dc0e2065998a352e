"""``hopper.py`` in Triton's interpreter: its arithmetic and its order of copies, without a GPU.

Gluon's functions are stood in for by Triton's, which differ in that they take no layouts. Copies
into shared memory arrive as late as the waits allow, so that a product that reads a tile before its
copy, or a copy that comes before the last product with a tile, gives wrong results here too.
Layouts, barriers and fences are not checked: those need the GPU.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path
from unittest import mock

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

import vllm_mha2mla.kernels.cuda

FILE = Path(vllm_mha2mla.kernels.cuda.__file__).with_name("hopper.py")
GLUON = "triton.experimental.gluon"


class Shared:
    """A tensor in shared memory, and where in it a view begins."""

    def __init__(self, storage, index=None, transposed=False):
        self.storage, self.at, self.transposed = storage, index, transposed

    def index(self, stage):
        """One of the tiles; its number may be a tensor of the interpreter."""
        return Shared(
            self.storage, int(stage.handle.data[0]) if hasattr(stage, "handle") else stage
        )

    def permute(self, _):
        return Shared(self.storage, self.at, transposed=True)

    def store(self, value):
        self.storage[self.at] = value

    def load(self):
        value = self.storage[self.at]
        return tl.trans(value) if self.transposed else value


class Copies:
    """Groups of copies that have been started: each becomes visible when it is waited for."""

    def __init__(self):
        self.open, self.groups = [], []

    def start(self, target, pointer, mask):
        self.open.append((target, tl.load(pointer, mask=mask, other=0.0)))

    def commit_group(self):
        self.groups.append(self.open)
        self.open = []

    def wait_group(self, pending):
        while len(self.groups) > int(pending):
            for target, value in self.groups.pop(0):
                target.store(value)


def allocate_shared_memory(dtype, shape, layout, value=None):
    return Shared({None: value})


def warpgroup_mma(a, b, acc, use_acc=True, is_async=False):
    product = tl.dot(a.load(), b.load(), input_precision="ieee")
    return product + acc if use_acc else product


def late(name):
    """A function of Triton as it is when called: the interpreter replaces them while it runs."""
    return lambda *arguments, **options: getattr(tl, name)(*arguments, **options)


def without_layout(name, count):
    return lambda *arguments: getattr(tl, name)(*arguments[:count])


def stand_ins(copies):
    language = types.ModuleType(f"{GLUON}.language")
    elementwise = ("where", "maximum", "minimum", "exp2", "log2", "multiple_of", "cdiv")
    for name in (*elementwise, "load", "store", "max", "sum", "program_id", "num_programs"):
        setattr(language, name, late(name))
    for name, count in (("arange", 2), ("zeros", 2), ("full", 3)):
        setattr(language, name, without_layout(name, count))
    for name in ("constexpr", "static_range", "int32", "int64", "float32"):
        setattr(language, name, getattr(tl, name))
    for name in ("BlockedLayout", "NVMMADistributedLayout", "NVMMASharedLayout", "SliceLayout"):
        setattr(language, name, lambda *_: None)
    language.convert_layout = lambda value, _: value
    language.allocate_shared_memory = allocate_shared_memory
    gluon = types.ModuleType(GLUON)
    gluon.jit, gluon.language = triton.jit, language
    ampere = types.ModuleType(f"{GLUON}.language.nvidia.ampere")
    ampere.async_copy = types.SimpleNamespace(
        async_load=copies.start, commit_group=copies.commit_group, wait_group=copies.wait_group
    )
    hopper = types.ModuleType(f"{GLUON}.language.nvidia.hopper")
    hopper.fence_async_shared = lambda: None
    hopper.warpgroup_mma = warpgroup_mma
    hopper.warpgroup_mma_wait = lambda pending, deps: deps[0]
    return {module.__name__: module for module in (gluon, language, ampere, hopper)}


def hopper_on_cpu():
    """The module ``hopper.py`` whose kernel the interpreter runs."""
    spec = importlib.util.spec_from_file_location("hopper_on_cpu", FILE)
    module = importlib.util.module_from_spec(spec)
    with (
        mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}),
        mock.patch.dict(sys.modules, stand_ins(Copies())),
    ):
        import triton.experimental

        with mock.patch.object(triton.experimental, "gluon", sys.modules[GLUON], create=True):
            spec.loader.exec_module(module)
    module.tl = tl  # the interpreter looks for it in a kernel's module
    for function in list(vars(module).values()):
        if isinstance(function, InterpretedFunction):
            # It knows constants by the words "tl.constexpr" only.
            rewritten = function.rewrite()
            rewritten.__annotations__ = dict.fromkeys(rewritten.__annotations__, "constexpr")
    return module
