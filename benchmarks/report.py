"""From what pytest-benchmark wrote to RESULTS.md and its pictures.

    python benchmarks/report.py results.json [more.json ...] [--out FOLDER]

Several files are put together (a GPU's beside a CPU's, say). FOLDER, by default the folder of this
file, gets RESULTS.md and plots/.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plots
from goals import (
    MEGABYTE,
    NAMES,
    STEPS,
    VARIANTS,
    Verdict,
    best_baseline,
    beyond_second_pass,
    has_baseline,
    in_words,
    never_slower,
    ratio,
    share_of_layer,
    verdicts,
)
from results import Result, Results, shape_of

HERE = Path(__file__).parent
COMMAND = """\
mkdir -p build && pytest --benchmark-only benchmarks/ --benchmark-json=build/benchmarks.json &&
  python benchmarks/report.py build/benchmarks.json"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write RESULTS.md from pytest-benchmark's JSON.")
    parser.add_argument("files", nargs="+", type=Path, help="from --benchmark-json")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write into")
    options = parser.parse_args(arguments)
    results = Results.read(options.files)
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = plots.draw(results, options.out / "plots")
    text = compose(results, [f"plots/{path.name}" for path in pictures])
    (options.out / "RESULTS.md").write_text(text, encoding="utf-8")
    print(options.out / "RESULTS.md")


def compose(results: Results, pictures: Sequence[str] = ()) -> str:
    """The whole page."""
    sections = [
        _opening(results),
        _goals(results),
        _notes(),
        _roofline(results),
        *(_layers(results, device) for device in ("cpu", "cuda")),
        _variants(results),
        _memory(results),
        _related(results),
        _scans(results),
        _training_step(results),
        _alignment_step(results),
        _jpeg(results),
        "\n".join(["## Scaling", "", *(f"![{Path(p).stem}]({p})" for p in pictures)]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _opening(results: Results) -> str:
    lines = [
        "# Results of benchmarks",
        "",
        "Made by one command, on a machine that does nothing else (about 12 minutes on two "
        "cores; add `--quick` for a first look in under 90 seconds):",
        "",
        f"```bash\n{COMMAND}\n```",
        "",
        "Times are medians; a ratio is the baseline's time divided by ours, measured one after the "
        "other in one process. The results of every implementation were compared with another's "
        "before it was timed, for projection and pruning on fewer images than are timed. "
        "[What each baseline is](baselines.py), [what is timed](layer_runs.py), "
        "[goals](goals.py).",
    ]
    for document in results.documents:
        lines += ["", _machine(document)]
    if not results.groups("cuda"):
        lines += [
            "",
            "**GPU: never run.** No benchmark, test or sanitizer of the CUDA kernels has run on a "
            "GPU yet; `benchmarks/gpu_check.sh FOLDER` does all of it in one command.",
        ]
    return "\n".join(lines)


def _machine(document: dict[str, Any]) -> str:
    machine, commit = document["machine_info"], document.get("commit_info", {})
    cpu = machine.get("cpu", {})
    rows = [
        ("date", document["datetime"][:16].replace("T", " ")),
        ("commit", commit.get("id", "")[:10] + (" (changed)" if commit.get("dirty") else "")),
        ("processor", f"{cpu.get('brand_raw', '')}, {machine['threads']} threads"),
        ("GPU", machine["gpu"] or "none"),
        ("system", f"{machine['system']} {machine['release']}, {machine['machine']}"),
        ("Python, torch", f"{machine['python_version']}, {machine['torch']}"),
        ("protofast", f"{machine['protofast']}, {machine['cpu_kernels']} kernels on the CPU"),
        ("compiler", machine["compiler"]),
    ]
    if machine["gpu"]:
        words = "used by PyTorch where it is faster" if machine.get("tf32", True) else "off"
        rows.append(("TF32 in the baselines", words))
    if machine["quick"]:
        rows.append(("selection", "--quick: few points, short timings"))
    return table(("machine", ""), rows)


def _goals(results: Results) -> str:
    head = ("what", "baseline", "goal", "baseline", "ours", "reached", "met")
    gpu = bool(results.groups("cuda"))
    return "## Goals\n\n" + table(head, (_goal_row(one, gpu) for one in verdicts(results)))


def _goal_row(one: Verdict, gpu: bool) -> Sequence[str]:
    if one.met is None:
        met = "not run: no GPU" if one.device == "cuda" and not gpu else "not measured"
    else:
        met = "yes" if one.met else "**no**"
    return (one.what, one.baseline, one.goal, one.theirs, one.ours, one.reached, met)


def _notes() -> str:
    """What was tried where a goal is not met, and where the time goes; written by hand."""
    path = HERE / "NOTES.md"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _roofline(results: Results) -> str:
    rows = []
    peak = results.fma_peak()
    if peak is not None:
        rows.append(("CPU multiply-adds in registers, float32", f"{peak / 1e9:.0f} GFLOP/s"))
    for device, place in (("cpu", "CPU"), ("cuda", "GPU")):
        bandwidth = results.bandwidth(device)
        if bandwidth is not None:
            words = f"{place} copy of 256 MiB, bytes read and written"
            rows.append((words, f"{bandwidth / 1e9:.1f} GB/s"))
        for size, rate in results.matrix_rates(device).items():
            rows.append((f"{place} torch.mm {size}, float32", f"{rate / 1e9:,.0f} GFLOP/s"))
    if not rows:
        return ""
    text = "Measured in the same run; the layer's percentage of the first line stands below.\n\n"
    return "## What the machine can do\n\n" + text + table(("ceiling", "measured"), rows)


def _layers(results: Results, device: str) -> str:
    """Every float32 group: the time of each layer, and ours against the best."""
    groups = [group for group in results.groups(device) if _is_plain(group["ours"])]
    if not groups:
        return ""
    names = (*NAMES, *VARIANTS)
    layers = [name for name in names if any(name in group for group in groups)]
    ceiling = results.fma_peak() if device == "cpu" else None
    rows = [_layer_row(group, layers, ceiling) for group in groups]
    head = ("step", "N", "P", "D", "grid", *layers, "**ours**", "spread", "rate", "best / ours")
    verdict = never_slower(results)
    place = "CPU" if device == "cpu" else "GPU"
    text = "Milliseconds, float32, NCHW. `rate`: GFLOP/s of the forward products"
    peak = ", and that as a part of floats' multiply-add peak, which integers exceed. "
    text += peak if ceiling else ". "
    text += "`spread`: ours, between the quartiles. `best / ours`: above 1, ours is faster than "
    text += "every baseline. `frozen`: ours with the prototypes packed once, for inference.\n\n"
    if device == "cpu":
        text += f"Never slower, over these and every other dtype and layout: {verdict.theirs}, "
        text += f"{verdict.ours}; {verdict.reached}.\n\n"
    return f"## The layer on the {place}\n\n{text}" + table(head, rows)


def _layer_row(
    group: dict[str, Result], layers: Sequence[str], ceiling: float | None
) -> Sequence[str]:
    ours = group["ours"]
    shape, steps = shape_of(ours), ours.info["steps"]
    times = [f"{group[name].median * 1e3:.3g}" if name in group else "-" for name in layers]
    rate = "-"
    if steps == "forward":
        reached = shape.flops / ours.median
        rate = f"{reached / 1e9:,.0f}"
        if ceiling:
            rate += f" ({100 * reached / ceiling:.0f} %)"
    best = best_baseline(group).median / ours.median if has_baseline(group) else float("nan")
    return (
        STEPS[steps],
        str(shape.N),
        f"{shape.P:,}",
        str(shape.D),
        f"{shape.H}x{shape.W}",
        *times,
        f"**{ours.median * 1e3:.3g}**",
        f"±{100 * ours.spread / ours.median / 2:.0f} %",
        rate,
        ratio(best) if best >= 1 else f"**{ratio(best)}**",
    )


def _is_plain(result: Result) -> bool:
    return result.info["layout"] == "nchw" and result.info["dtype"] == "float32"


def _variants(results: Results) -> str:
    rows = []
    for device in ("cpu", "cuda"):
        for group in results.groups(device):
            ours = group["ours"]
            if _is_plain(ours):
                continue
            plain = results.layer(shape_of(ours), ours.info["steps"], "ours", device=device)
            best = best_baseline(group) if has_baseline(group) else None
            rows.append(
                (
                    f"{device}, {STEPS[ours.info['steps']]}, {shape_of(ours)}",
                    ours.info["layout"].replace("_", "-"),
                    ours.info["dtype"],
                    in_words(ours.median),
                    "-" if plain is None else in_words(plain.median),
                    "-" if best is None else f"{in_words(best.median)} ({best.info['layer']})",
                )
            )
    if not rows:
        return ""
    head = ("what", "layout", "dtype", "ours", "ours, float32 NCHW", "best baseline")
    return "## Layouts and dtypes\n\n" + table(head, rows)


def _memory(results: Results) -> str:
    rows = []
    for device in ("cpu", "cuda"):
        for group in results.groups(device):
            sizes = {name: result.info.get("peak_bytes") for name, result in group.items()}
            ours = sizes.pop("ours")
            if ours is None:
                continue
            info = group["ours"].info
            for name, size in sizes.items():
                if size is not None and name in NAMES:
                    what = f"{device}, {STEPS[info['steps']]}, {shape_of(group['ours'])}"
                    mine, theirs = (f"{value / MEGABYTE:,.1f} MB" for value in (ours, size))
                    rows.append((what, NAMES[name], theirs, mine, f"1/{size / ours:.3g}"))
    if not rows:
        return ""
    text = "Growth of the process during one step, outputs and gradients included, each in a "
    text += "process of its own.\n\n"
    return (
        "## Peak extra memory\n\n"
        + text
        + table(("what", "baseline", "baseline's", "ours", "ratio"), rows)
    )


def _related(results: Results) -> str:
    rows = []
    for result in results.of("related"):
        operator, device, layer = (result.info[key] for key in ("operator", "device", "layer"))
        ours = [
            other.median
            for other in results.of("related")
            if (other.info["operator"], other.info["device"]) == (operator, device)
            and other.info["layer"] == "ours"
        ]
        what = f"{operator}, {device}, {NAMES.get(layer, layer)}"
        theirs = ratio(result.median / ours[0]) if ours else "-"
        rows.append((what, in_words(result.median), theirs))
    if not rows:
        return ""
    text = "Forward at the headline shape.\n\n"
    return "## Related operators\n\n" + text + table(("what", "time", "by ours"), rows)


def _scans(results: Results) -> str:
    rows = []
    for name in ("projection", "pruning"):
        for result in results.of(name):
            images, how = result.info["images"], result.info["layer"]
            rows.append(
                (
                    f"{name}, {result.info['device']}, {how}",
                    f"{images:,}",
                    f"{result.median:.3g} s",
                    f"{1e3 * result.median / images:.3g} ms",
                )
            )
    if not rows:
        return ""
    text = "2,000 prototypes of 200 classes, D = 128, 7x7, features given, in the order of the "
    text += "classes as in CUB-200-2011. The literal loops go over fewer images.\n\n"
    head = ("what", "images", "time", "per image")
    return "## Projection and pruning\n\n" + text + table(head, rows)


def _training_step(results: Results) -> str:
    found = {
        (result.info["device"], result.info["layer"]): result
        for result in results.of("training step")
    }
    if not found:
        return ""
    names = list(next(iter(found.values())).info["parts"])
    words = {"original": "original layer", "ours": "our layer"}
    head = ("part", *(f"{words[layer]}, {device}" for device, layer in found))
    rows = [
        (name, *(in_words(result.info["parts"][name]) for result in found.values()))
        for name in names
    ]
    totals = [sum(result.info["parts"].values()) for result in found.values()]
    rows.append(("whole step", *map(in_words, totals)))
    shares = [share_of_layer(result) for result in found.values()]
    rows.append(("**the layer's share**", *(f"**{100 * share:.2g} %**" for share in shares)))
    text = (
        "ResNet-18 from scratch, 32 images of 224x224, 2,000 prototypes, D = 128, Adam; means.\n\n"
    )
    return "## A training step\n\n" + text + table(head, rows)


def _alignment_step(results: Results) -> str:
    found = results.of("alignment step")
    if not found:
        return ""
    words = {"resnet18": "ResNet-18, 224x224", "small": "our small backbone, 96x96"}
    head = (
        "part",
        *(f"{words[result.info['layer']]}, {result.info['device']}" for result in found),
    )
    rows = [
        (name, *(in_words(result.info["parts"][name]) for result in found))
        for name in found[0].info["parts"]
    ]
    rows += [
        ("whole step", *(in_words(result.median) for result in found)),
        ("plain step", *(in_words(result.info["plain"]) for result in found)),
        ("**ratio**", *(f"**{ratio(result.median / result.info['plain'])}**" for result in found)),
    ]
    shares = [beyond_second_pass(result) / result.info["plain"] for result in found]
    rows.append(
        (
            "**beyond the second pass, of the plain step**",
            *(f"**{100 * share:.2g} %**" for share in shares),
        )
    )
    text = (
        "32 images, 2,000 prototypes, D = 128, Adam; one prototype for each image, all images "
        "compared. Plain and aligned steps take turns; medians.\n\n"
    )
    return "## A training step with the alignment loss\n\n" + text + table(head, rows)


def _jpeg(results: Results) -> str:
    words = {
        "ours": "**ours** (simplejpeg)",
        "pillow": "Pillow, image by image",
        "pillow ours": 'ours with codec="pillow"',
    }
    found = {result.info["layer"]: result for result in results.of("jpeg")}
    if not found:
        return ""
    rows = [
        (words[layer], in_words(result.median), in_words(result.median / result.info["images"]))
        for layer, result in found.items()
    ]
    one = next(iter(found.values())).info
    text = f"{one['images']} images of 224x224 at quality 20, 4:2:0, each in {one['threads']} "
    text += "threads.\n\n"
    return "## A JPEG round trip\n\n" + text + table(("what", "time", "per image"), rows)


if __name__ == "__main__":
    main()
