"""The train step, compiled for meshes of devices that need not exist, and what XLA says it costs each of them.

Used by scaling.py, which starts it anew for each program: the number of devices is fixed when JAX starts.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import types
from unittest import mock

import jax

from fcn_jax import checkpoint, sharding, train_state
from fcn_jax import config as config_lib
from fcn_jax.models import fcn
from fcn_jax.models.spec import GEOMETRIES
from fcn_jax.run import context
from fcn_jax.run import stage as stage_lib

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WEAK = 4  # images a device
STRONG = 256  # images of a global batch
CLASSES = 21


@dataclasses.dataclass(frozen=True)
class Case:
    """One program: FCN-8s, `images` a device, over `devices`; `divided` is config.sharding.params."""

    devices: int
    images: int
    geometry: str = "caffe"
    dtype: str = "float32"
    divided: bool = False
    accumulate: int = 1
    optimizer: str = "sgd"
    width: int = 64
    fc_width: int = 4096
    side: int = 500


def cases():
    """All that are compiled: weak and strong scaling, parameters divided, and what one number of devices can show."""
    found = []
    for geometry in GEOMETRIES:
        found += [Case(n, WEAK, geometry) for n in DEVICES]
        found += [Case(n, STRONG // n, geometry) for n in DEVICES]
        found += [Case(n, WEAK, geometry, divided=True) for n in DEVICES]
        found += [Case(8, WEAK, geometry, "bfloat16", divided=divided) for divided in (False, True)]
    found += [Case(8, WEAK, optimizer="adamw", divided=divided) for divided in (False, True)]
    found += [Case(8, WEAK, accumulate=2)]
    return list(dict.fromkeys(found))


def configured(case):
    """configs/fcn8s.py with what the case changes."""
    path = ROOT / "configs/fcn8s.py"
    spec = importlib.util.spec_from_file_location("configs_fcn8s", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    c.network, c.steps, c.learning_rate = "fcn8s", (1,), (1e-4,)
    c.model.geometry, c.model.dtype = case.geometry, case.dtype
    c.model.width, c.model.fc_width = case.width, case.fc_width
    c.data.batch_size, c.data.accumulate = case.images * case.devices, case.accumulate
    c.optim.name, c.sharding.params = case.optimizer, case.divided
    config_lib.validate(c)
    return c


def compile_step(case):
    """The update that train.train_and_evaluate would run over the first devices of this process, compiled."""
    c = configured(case)
    names = tuple(map(str, range(CLASSES)))
    palette, heads = ((0, 0, 0),) * CLASSES, (("label", "", CLASSES),)
    split = types.SimpleNamespace(class_names=names, palette=palette, heads=heads, inputs={"colour": ()}, scales={})
    mesh = sharding.make_mesh(jax.devices()[: case.devices])
    run, (stage, *_) = context.Run(c, pathlib.Path(), mesh, split, split, None, None), config_lib.stages(c)
    spec = run.spec(stage)
    optimizer = stage_lib.make_optimizer(run, stage, lambda step: 1e-4)
    create = functools.partial(train_state.create_train_state, optimizer=optimizer)
    abstract = jax.eval_shape(create, fcn.abstract_params(spec))
    abstract = checkpoint.with_sharding(abstract, sharding.place(abstract, mesh, divided=c.sharding.params))
    with mock.patch.object(sharding, "check_memory", return_value=0):  # this machine is not meant to hold it
        return stage_lib.compile_update(run, stage, optimizer, abstract, (case.side, case.side))


def read(compiled, partitioned=None):
    """What a program costs each device, as a dict; `partitioned` is its text right after XLA's SPMD partitioner."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "memory": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        "state": memory.argument_size_in_bytes,
        "collectives": collectives(compiled.as_text()),
        "partitioned": None if partitioned is None else collectives(partitioned),
    }


def child(case, dump):
    """`read` of a case in this process, whose XLA_FLAGS `measure` has set."""
    began = time.monotonic()
    compiled = compile_step(case)
    texts = list(dump.glob("*jit_train_step*after_spmd-partitioning*"))
    partitioned = texts[0].read_text() if len(texts) == 1 and case.accumulate == 1 else None
    return {**read(compiled, partitioned), "seconds": time.monotonic() - began}


def measure(case, cache):
    """`read` of a case, from a process with so many devices or from the cache."""
    name = "-".join(str(value) for value in dataclasses.astuple(case))
    path = cache / f"{name}-{sources()}.json"
    if not path.exists():
        with tempfile.TemporaryDirectory() as dump:
            flags = (
                f"--xla_force_host_platform_device_count={case.devices} --xla_dump_to={dump}"
                " --xla_dump_hlo_module_re=jit_train_step --xla_dump_hlo_pass_re=spmd-partitioning"
            )
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
            command = (sys.executable, __file__, json.dumps(dataclasses.asdict(case)), dump)
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{case}: {result.stderr[-2000:]}")
        cache.mkdir(parents=True, exist_ok=True)
        path.write_text(result.stdout.splitlines()[-1])
        print(f"compiled {name} in {json.loads(path.read_text())['seconds']:.0f} s", file=sys.stderr)
    return json.loads(path.read_text())


@functools.cache
def sources():
    """A hash of what the programs depend on."""
    files = [ROOT / f"fcn_jax/{name}.py" for name in ("train_state", "steps", "optim", "losses")]
    files += [*sorted((ROOT / "fcn_jax/models").glob("*.py")), ROOT / "configs/fcn8s.py"]
    functions = (stage_lib.compile_update, stage_lib._gather, sharding.place, sharding.gather, compile_step, configured)
    text = [path.read_text() for path in files] + [inspect.getsource(f) for f in functions] + [jax.__version__]
    return hashlib.sha256("".join(text).encode()).hexdigest()[:12]


# --- collectives in HLO text ------------------------------------------------------------------------------------------

WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
WIDTH |= {"f64": 8, "s64": 8, "u64": 8, "c64": 8}
OPERATIONS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
INSTRUCTION = re.compile(rf" = (?P<shape>\(.*?\)|\S+) (?P<op>{OPERATIONS})(?P<start>-start)?\(")
CALLED = re.compile(r"\b(body|calls|to_apply|condition)=%?([\w.\-]+)")


def collectives(text):
    """Every collective of an HLO module: [{'op', 'dtype', 'bytes', 'group', 'times'}], one for each array in it.

    bytes are of the whole array: the result of all-reduce and all-gather, the operand of reduce-scatter. group is the
    number of devices that take part, times how often an execution of the module runs it: loops are unrolled.

    Raises:
      ValueError: an asynchronous collective, or a loop around one whose number of iterations is not known.
    """
    computations, entry = _computations(text)

    @functools.cache
    def inside(name):
        found = []
        for line in computations.get(name, ()):
            match = INSTRUCTION.search(line)
            if match:
                if match["start"]:
                    raise ValueError(f"asynchronous, which is not read here: {line.strip()[:100]}")
                found += [(record, 1) for record in _arrays(match["op"], match["shape"], _group(line))]
            for role, called in CALLED.findall(line):
                below = inside(called)
                if below and role == "body":
                    trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                    if not trips:
                        raise ValueError(f"collectives in a loop of unknown length: {line.strip()[:100]}")
                    below = tuple((record, times * int(trips[1])) for record, times in below)
                found += below
        return tuple(found)

    return [{**dict(record), "times": times} for record, times in inside(entry)]


def _computations(text):
    """{name: its lines} and the name of the entry."""
    computations, entry, name = {}, None, None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header and not line.startswith("HloModule"):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif line.startswith("}"):
            name = None
        elif name:
            computations[name].append(line)
    return computations, entry


def _arrays(op, shape, group):
    """A record, as a tuple of items, for each array of a result's shape."""
    records = []
    for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        size = math.prod(int(n) for n in sizes.split(",") if n) * WIDTH[dtype]
        size *= group if op == "reduce-scatter" else 1
        records.append((("op", op), ("dtype", dtype), ("bytes", size), ("group", group)))
    return records


def _group(line):
    """How many devices take part: {{0,1},{2,3}}, [2,2]<=[4], or mesh['x'=4,'y'=2] {'x'}; 0 where it does not say."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", line)
    if iota:
        return int(iota[1])
    mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 0


def total(records, op=None, dtype=None):
    """Bytes an execution of the arrays of an operation and a type."""
    wanted = [r for r in records if op in (None, r["op"]) and dtype in (None, r["dtype"])]
    return sum(r["bytes"] * r["times"] for r in wanted)


def check(case, record, parameters):
    """Raises ValueError unless only gradients, divided parameters and scalars are communicated.

    Args:
      parameters: their number.
    """
    wanted = {"all-reduce": 4 * parameters} if case.devices > 1 else {}
    limit = 4096  # the loss and the norms
    if case.divided and case.devices > 1:
        wanted["all-gather"] = total(record["collectives"], "all-gather")
        if not 0.95 * 4 * parameters < wanted["all-gather"] <= 4 * parameters:
            raise ValueError(f"{case}: all-gather of {wanted['all-gather']} bytes")
    wanted = {op: size * (case.accumulate if op == "all-reduce" else 1) for op, size in wanted.items()}
    found = {r["op"]: total(record["collectives"], r["op"]) for r in record["collectives"]}
    if found.keys() != wanted.keys() or any(not 0 <= found[op] - wanted[op] <= limit for op in wanted):
        raise ValueError(f"{case} communicates {found} bytes, expected {wanted}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", type=json.loads, help="the fields of a Case as JSON")
    parser.add_argument("dump", type=pathlib.Path, help="where XLA_FLAGS has the partitioned program written")
    options = parser.parse_args()
    print(json.dumps(child(Case(**options.case), options.dump)))
