"""benchmarks/spmd_programs.py: reading collectives from HLO; scaling.py: the model by hand; cost.py: one row."""

import dataclasses
import functools
import importlib
import io
import itertools
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from fcn_jax import sharding

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
NARROW = {"width": 2, "fc_width": 64, "side": 33}

HLO = """\
HloModule jit_step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body.1 (state: (s32[], f32[10,3])) -> (s32[], f32[10,3]) {
  %all-reduce.1 = bf16[10,3]{1,0:T(8,128)} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[10,3]) tuple(%i, %q)
}

%condition.1 (state: (s32[], f32[10,3])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.2 (a: f32[5], b: f32[2,2]) -> f32[5] {
  %all-reduce = (f32[5]{0}, f32[2,2]{1,0}, /*index=2*/f32[]) all-reduce(%a, %b), replica_groups={{0,1,2,3},{4,5,6,7}}
  %while.3 = (s32[]) while(%t), condition=%condition.1, body=%body.1, backend_config={"known_trip_count":{"n":"7"}}
  %all-gather = f32[16,4]{1,0} all-gather(%d), replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
  %reduce-scatter.9 = f32[2]{0} reduce-scatter(%e), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  %user = f32[5]{0} add(%all-reduce, %all-reduce), metadata={op_name="all-reduce("}
  ROOT %collective-permute = u8[6]{0} collective-permute(%f), source_target_pairs={{0,1},{1,0}}
}
"""


@pytest.fixture(scope="module")
def programs():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("spmd_programs")


@pytest.fixture(scope="module")
def scaling(programs):
    return importlib.import_module("scaling")


def test_collectives_of_a_written_program(programs):
    found = [(r["op"], r["dtype"], r["bytes"], r["group"], r["times"]) for r in programs.collectives(HLO)]
    assert found == [
        ("all-reduce", "f32", 20, 4, 1),
        ("all-reduce", "f32", 16, 4, 1),
        ("all-reduce", "f32", 4, 4, 1),
        ("all-reduce", "bf16", 60, 8, 7),  # in the loop
        ("all-gather", "f32", 256, 4, 1),
        ("reduce-scatter", "f32", 64, 8, 1),  # 8 parts of 2
        ("collective-permute", "u8", 6, 0, 1),
    ]
    assert programs.total(programs.collectives(HLO), "all-reduce") == 20 + 16 + 4 + 7 * 60


def test_what_cannot_be_read_is_refused(programs):
    with pytest.raises(ValueError, match="unknown length"):
        programs.collectives(HLO.replace('"n":"7"', ""))
    with pytest.raises(ValueError, match="asynchronous"):
        programs.collectives(HLO.replace("all-gather(%d)", "all-gather-start(%d)"))


def test_collectives_of_compiled_programs(programs):
    mesh = sharding.make_mesh(jax.devices()[:4])
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec()
    )

    def looped(x):
        return jax.lax.scan(lambda total, row: (total + summed(row), None), jnp.zeros(250), x)[0]

    for function, shape, times in ((summed, (1000,), 1), (looped, (3, 1000), 3)):
        text = jax.jit(function).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text()
        records = [r for r in programs.collectives(text) if r["op"] == "all-reduce"]
        assert [(r["dtype"], r["bytes"], r["group"], r["times"]) for r in records] == [("f32", 1000, 4, times)]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("divided", [False, True])
def test_the_real_step_communicates_gradients_alone(programs, scaling, divided):
    case = programs.Case(4, 1, geometry="same", divided=divided, **NARROW)
    record = programs.read(programs.compile_step(case))
    parameters = sum(
        kernel[-1] + functools.reduce(int.__mul__, kernel)
        for *_, kernel, _ in scaling.convolutions("same", NARROW["side"], NARROW["width"], NARROW["fc_width"])
    )
    reduced = programs.total(record["collectives"], "all-reduce")
    assert 4 * parameters <= reduced < 4 * parameters + 200
    gathered = programs.total(record["collectives"], "all-gather")
    assert (0.5 * 4 * parameters < gathered < 4 * parameters) if divided else gathered == 0
    assert record["flops"] > 0
    assert record["memory"] > record["state"] > 0
    if not divided:
        programs.check(case, record, parameters)
        with pytest.raises(ValueError, match="communicates"):
            programs.check(case, record, parameters // 2)


def test_a_convolution_counted_by_hand(scaling):
    layers = {name: shapes for name, *shapes in scaling.convolutions("caffe")}
    assert layers["conv1_1"] == [(500, 500, 3), (3, 3, 3, 64), (698, 698, 64)]
    assert layers["fc6"] == [(22, 22, 512), (7, 7, 512, 4096), (16, 16, 4096)]
    assert scaling.parameters() == 134_362_751
    flops, maps, _ = scaling.by_hand("caffe", "float32")
    assert 1.0e12 < flops < 1.2e12
    assert scaling.by_hand("caffe", "bfloat16")[1] == maps / 2


def test_ring_and_links_by_hand(scaling):
    assert scaling.ring(1, 1e9, 1e9) == 0
    assert scaling.ring(2, 1e9, 1e9) == 1.0
    assert scaling.ring(4, 1e9, 1e9) == 1.5
    v5e, v5p, h100, _ = scaling.CHIPS
    size = 8e9
    assert v5e.all_reduce(1, size) == v5p.all_reduce(1, size) == h100.all_reduce(1, size) == 0
    assert v5e.all_reduce(4, size) == pytest.approx(1.5 * 8 / 100)  # 2x2 without wrap-around: one link an axis
    assert v5e.all_reduce(256, size) == pytest.approx(2 * 255 / 256 * 8 / 200)  # 16x16 torus: two
    assert v5e.all_reduce(128, size) == pytest.approx(2 * 127 / 128 * 8 / 150)  # 8x16: the longer axis alone wraps
    assert v5p.all_reduce(64, size) == pytest.approx(2 * 63 / 64 * 8 / 600)
    assert h100.all_reduce(8, size) == pytest.approx(2 * 7 / 8 * 8 / 450)
    assert h100.all_reduce(32, size) == pytest.approx(2 * 7 / 8 * 8 / 450 + 2 * 3 / 4 * 1 / 50)


@pytest.fixture
def program(scaling):
    """1 TFLOP and 10 GB an image, 5 GB besides, 500 MB of gradients."""
    return scaling.Program("bfloat16", (0.0, 1e12), (5e9, 1e10), (1e9, 1e9), (3e9, 2e9), (("all-reduce", 5e8),))


def test_step_and_crossover_by_hand(scaling, program):
    link = functools.partial(scaling.ring, bandwidth=1e11)
    chip = scaling.Chip("a chip", 100e12, 10e12, 1e12, 16e9, link)
    assumed = scaling.Assumed(compute=0.5, links=0.5)
    assert scaling.compute_seconds(program, chip, 4, assumed) == pytest.approx(4 / 50)  # memory: 45 / 1000
    assert scaling.link_seconds(program, chip, 2, assumed) == pytest.approx(0.01)
    assert scaling.step_seconds(program, chip, 2, 4, assumed, 0) == pytest.approx(0.09)
    assert scaling.step_seconds(program, chip, 2, 4, assumed, 1) == pytest.approx(0.08)
    assert scaling.weak_efficiency(program, chip, 2, assumed, 0, images=4) == pytest.approx(8 / 9)
    assert scaling.strong_efficiency(program, chip, 2, assumed, 0, batch=8) == pytest.approx(8 / 9)
    assert scaling.crossover(program, chip, 2, assumed) == pytest.approx(0.5)  # 0.5 TFLOP at 50 TFLOP/s
    assert scaling.fits(program, chip) == 6
    halves = dataclasses.replace(program, collectives=(("all-gather", 5e8), ("reduce-scatter", 5e8)))
    assert scaling.link_seconds(halves, chip, 2, assumed) == scaling.link_seconds(program, chip, 2, assumed)


def test_efficiency_falls_and_overlap_helps(programs, scaling, program):
    assumed = scaling.Assumed()
    for chip in (*scaling.CHIPS, scaling.ETHERNET):
        for efficiency in (scaling.weak_efficiency, scaling.strong_efficiency):
            low, high = ([efficiency(program, chip, n, assumed, o) for n in programs.DEVICES] for o in (0, 1))
            assert all(0 < a <= b <= 1 + 1e-9 for a, b in zip(low, high, strict=True))
            assert low[0] == pytest.approx(1)
        strong = [scaling.strong_efficiency(program, chip, n, assumed, 0) for n in programs.DEVICES]
        steps = [n * e for n, e in zip(programs.DEVICES, strong, strict=True)]  # speed
        assert steps == sorted(steps)


def test_line_through_records(programs, scaling):
    record = {"partitioned": []}
    pairs = [
        (programs.Case(8, n), {**record, "flops": 1.0 + n, "bytes": 4.0 + 2 * n, "memory": 3.0 * n}) for n in (1, 4, 9)
    ]
    partitioned = [{"op": "all-reduce", "dtype": "bf16", "bytes": 10, "group": 8, "times": 2}]
    p = scaling.program(pairs, "bfloat16", partitioned)
    assert p.flops == pytest.approx((1, 1))
    assert p.bytes == pytest.approx((4, 1))  # maps halve
    assert p.collectives == (("all-reduce", 20),)
    assert p.at("bytes", 3) == pytest.approx(7)


def titles(text):
    """The headings and the first rows of the tables."""
    lines = text.splitlines()
    return [a for a, b in itertools.pairwise(lines) if a.startswith("#") or b.startswith("|---")]


def test_tables_of_made_up_programs(programs, scaling, capsys):
    def record(case):
        parts = [("all-reduce", "f32", 4), ("all-gather", "f32", 4)][: 1 + case.divided]
        if case.dtype == "bfloat16":
            parts[0] = ("all-reduce", "bf16", 2)
        arrays = [
            {"op": op, "dtype": dtype, "bytes": size * scaling.parameters(), "group": case.devices, "times": 1}
            for op, dtype, size in parts
        ]
        arrays = arrays if case.devices > 1 else []
        size = {
            "flops": 1e12 * case.images,
            "bytes": 1e10 * case.images,
            "memory": 1e9 + 2e9 * case.images,
            "state": 1e9,
        }
        return {**size, "collectives": arrays, "partitioned": arrays}

    results = {case: record(case) for case in programs.cases()}
    for case in (programs.Case(8, 4), programs.Case(256, 4, divided=True), programs.Case(1, 4)):
        programs.check(case, results[case], scaling.parameters())
    scaling.show(results, scaling.Assumed())
    printed = capsys.readouterr().out
    assert "same program [True, True]" in printed
    assert "| TPU v5e | bfloat16 |" in printed
    # The page has these sections and tables.
    page = (BENCHMARKS / "results" / "scaling_tables.md").read_text()
    written = io.StringIO()
    scaling.show(results, scaling.Assumed(), written)
    assert written.getvalue() == printed
    assert titles(page) == titles(printed)
    for block in printed.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


def test_the_cost_of_an_update_is_that_of_the_page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cost = importlib.import_module("cost")
    found = cost.flops(cost.load(BENCHMARKS.parent / "configs" / "fcn8s.py", "demo"), "fcn8s")
    page = (BENCHMARKS / "results" / "speed.md").read_text()
    assert f"| fcn8s.py:demo | fcn8s | 8 | {found / 1e12:.3g} |" in page
