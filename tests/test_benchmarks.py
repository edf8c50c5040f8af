"""The benchmarks' own parts: baselines compute what they claim, the report tells the truth."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import protofast
from protofast.ops import reference

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs the folder benchmarks/ of a checkout", allow_module_level=True)
sys.path.append(str(BENCHMARKS))

import baselines  # noqa: E402
import goals  # noqa: E402
import layer_runs  # noqa: E402
import report  # noqa: E402
from results import Results  # noqa: E402


@pytest.mark.parametrize("layer", ["original", "eager", "batched", "chunked", "ours"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_every_layer_computes_the_same(layer, layout, monkeypatch):
    monkeypatch.setattr(baselines, "TILE_BYTES", 2000)  # several chunks, the last one smaller
    run = layer_runs.Run(layer_runs.Shape(5, 13, 8, 3, 4), "both", layer, layout)
    inputs = layer_runs.make_inputs(run)
    found = layer_runs.make_step(run, inputs, baselines.fresh(layer))()
    wide = inputs.features.detach().double(), inputs.prototypes.detach().double()
    outputs = reference.nearest_patch(*wide, "squared_l2", "log", 1e-4)
    grads = [gradient.double() for gradient in inputs.gradients]
    expected = reference.nearest_patch_backward(
        *grads, *wide, *outputs[1:], "squared_l2", "log", 1e-4
    )
    for one, other in zip(found, (*outputs[:2], *expected), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_a_wrong_result_is_not_timed():
    run = layer_runs.Run(layer_runs.Shape(2, 3, 4, 2, 2), "both", "ours")
    right = layer_runs.make_step(run, layer_runs.make_inputs(run), baselines.fresh("ours"))()
    layer_runs.check(run, right, right)
    for place in range(4):
        wrong = [part.clone() for part in right]
        wrong[place].view(-1)[0] += 0.01
        with pytest.raises(AssertionError, match=f"result {place} is off"):
            layer_runs.check(run, tuple(wrong), right)


def test_runs_of_a_group_follow_each_other_and_bear_distinct_names():
    for quick in (True, False):
        for device in ("cpu", "cuda"):
            runs = layer_runs.runs(quick=quick, device=device)
            names = [str(run) for run in runs]
            assert len(set(names)) == len(names)
            groups = [run.group for run in runs]
            changes = sum(a != b for a, b in itertools.pairwise(groups))
            assert changes == len(set(groups)) - 1
            assert all(runs[groups.index(group)].layer == "ours" for group in groups)


def _row(name, median, **info):
    stats = {"median": median, "min": median, "iqr": 0.0, "rounds": 5}
    return {"fullname": name, "stats": stats, "extra_info": info}


def _layer_row(layer, median, shape=layer_runs.HEADLINE, steps="both", **more):
    run = layer_runs.Run(shape, steps, layer)
    return _row(str(run), median, measured="layer", **json.loads(json.dumps(run.facts())), **more)


def _document(rows):
    machine = {
        "cpu": {"brand_raw": "A processor"},
        "system": "Linux",
        "release": "6",
        "machine": "x86_64",
        "node": "a-name-that-is-nobodys-business",
        "python_version": "3.11",
        "torch": "2",
        "threads": 2,
        "gpu": None,
        "quick": False,
        "protofast": "0.1.0",
        "cpu_kernels": "avx2",
        "compiler": "GNU",
    }
    commit = {"id": "0123456789abcdef", "dirty": False}
    document = {"datetime": "2026-01-02T03:04:05", "benchmarks": rows}
    return {**document, "machine_info": machine, "commit_info": commit}


def test_the_report_says_what_is_met_what_is_not_and_what_never_ran(tmp_path):
    rows = [
        _layer_row("ours", 0.010, peak_bytes=8_000_000),
        _layer_row("original", 0.120, peak_bytes=160_000_000),
        _layer_row("compiled", 0.030),
        _layer_row("chunked", 0.009),
        _row("fma", 0.01, measured="roofline", device="cpu", flops=2_000_000_000),
        _row("loop", 20.0, measured="projection", device="cpu", images=600, layer="original"),
        _row("ours", 0.5, measured="projection", device="cpu", images=6000, layer="ours"),
    ]
    (tmp_path / "results.json").write_text(json.dumps(_document(rows)))
    report.main([str(tmp_path / "results.json"), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    lines = text.splitlines()

    def goal(*words):
        found = [line for line in lines if all(word in line for word in (*words, "|"))]
        assert len(found) == 1, (words, found)
        return [cell.strip() for cell in found[0].split("|")]

    assert goal(str(layer_runs.HEADLINE), "CPU forward + backward", "≥ 11x")[-3:-1] == [
        "12x",
        "yes",
    ]
    assert goal(str(layer_runs.HEADLINE), "CPU forward + backward", "≥ 3.3x")[-2] == "**no**"
    assert goal("≤ 1/17")[-3:-1] == ["1/20", "yes"]
    assert goal("never slower", "best of all")[-2] == "**no**"
    assert goal("GPU forward, bfloat16", "N256")[-2] == "not run: no GPU"
    assert goal("CPU projection of 6,000")[-3:-1] == ["400x", "yes"]
    assert goal("CPU pruning of 6,000", "original loop")[-2] == "not measured"
    assert "**GPU: never run.**" in text
    assert "0123456789" in text
    assert "nobodys-business" not in text


def test_the_report_says_whether_a_gpus_baselines_used_tf32():
    for tf32, words in ((False, "off"), (True, "used by PyTorch where it is faster")):
        document = _document([])
        document["machine_info"] |= {"gpu": "A GPU", "tf32": tf32}
        assert f"| TF32 in the baselines | {words} |" in report.compose(Results([document]))
    assert "TF32" not in report.compose(Results([_document([])])).split("## Goals")[0]


def test_everything_that_can_run_can_be_reported(tmp_path):
    slowness = {"ours": 1.0, "frozen": 0.9, "tensor_cores": 0.5}
    rows = []
    for device in ("cpu", "cuda"):
        for run in layer_runs.runs(quick=device == "cuda", device=device):
            seconds = 1e-5 + run.shape.flops / 2e11 * slowness.get(run.layer, 3.0)
            memory = {"peak_bytes": 1000} if run.memory else {}
            facts = json.loads(json.dumps(run.facts()))
            rows.append(_row(str(run), seconds, measured="layer", **facts, **memory))
    for layer, seconds in (("original", 0.1), ("ours", 0.01)):
        parts = {"backbone, forward": 1.0, "prototype layer, forward": seconds}
        facts = {"device": "cpu", "layer": layer, "parts": parts}
        rows.append(_row(f"step-{layer}", 1 + seconds, measured="training step", **facts))
    for backbone in ("resnet18", "small"):
        parts = {"second pass, forward": 0.4} | dict.fromkeys(goals.BEYOND_SECOND_PASS, 0.02)
        facts = {"device": "cpu", "layer": backbone, "parts": parts, "plain": 1.0}
        rows.append(_row(f"aligned-{backbone}", 1.9, measured="alignment step", **facts))
    for layer, seconds in (("ours", 0.02), ("eager", 0.05)):
        facts = {"operator": "dot_and_cosine", "device": "cpu", "layer": layer}
        rows.append(_row(f"related-{layer}", seconds, measured="related", **facts))
    (tmp_path / "results.json").write_text(json.dumps(_document(rows)))
    report.main([str(tmp_path / "results.json"), "--out", str(tmp_path)])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| dot_and_cosine, cpu, best eager form | 50 ms | 2.5x |" in text
    assert "slower at 0" in text
    assert "GPU: never run" not in text
    assert "| 9.1 % | 0.99 % | 0.99 % | yes |" in text
    assert "| ≤ 2x | 1 s | 1.9 s | 1.9x | yes |" in text
    assert "| ≤ 5 % | 1 s | 80 ms | 8 % | **no** |" in text
    assert "| **ratio** | **1.9x** | **1.9x** |" in text
    pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(pictures) == 4
    assert all(f"plots/{name}" in text for name in pictures)


def test_the_floor_is_the_products_over_the_peak():
    rows = [
        _layer_row("ours", 0.0125, steps="forward"),
        _row("fma", 0.01, measured="roofline", device="cpu", flops=2_000_000_000),
    ]
    verdict = goals.verdicts(Results([_document(rows)]))[0]
    assert layer_runs.HEADLINE.flops == 2_007_040_000
    assert verdict.theirs == "10 ms"
    assert verdict.reached == "1.25x"
    assert verdict.met


def test_without_compiled_operators_benchmarks_refuse_in_one_line(tmp_path):
    shutil.copytree(
        Path(protofast.__file__).parent,
        tmp_path / "protofast",
        ignore=shutil.ignore_patterns("*.so", "build_facts.json", "__pycache__"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--benchmark-only", str(BENCHMARKS), "-q"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    said = (done.stdout + done.stderr).strip().splitlines()
    assert len(said) == 1
    assert "benchmarks need protofast's compiled operators" in said[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it would run")
def test_the_check_on_a_gpu_says_where_there_is_none(tmp_path):
    done = subprocess.run(
        [BENCHMARKS / "gpu_check.sh", tmp_path / "out"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == "no usable GPU here: nothing was run\n"
    assert (tmp_path / "out" / "summary.txt").read_text() == done.stdout
