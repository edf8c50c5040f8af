"""`protofast evaluate`."""

from protofast.cli.console import print_path
from protofast.cli.options import Checkpoint, Device, Moved, Run, Threads, choose_device


def evaluate(
    run: Run,
    checkpoint: Checkpoint = "best",
    moved: Moved = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Test a run: accuracy, balanced accuracy, AUROC, confusion matrix, per-class table.

    Writes RUN/evaluation/: metrics.json, confusion.csv, per_class.csv and predictions.csv. Reads
    the test images only.

    Examples:
      protofast evaluate runs/cub
      protofast evaluate runs/cub --checkpoint latest --device cpu
    """
    from protofast.cli.runs import evaluate_run, open_run, place_of_images, read_test_images

    chosen = choose_device(device, threads)
    folder = open_run(run, checkpoint)
    test = read_test_images(folder, place_of_images(folder, moved))
    evaluate_run(folder, checkpoint, test, chosen)
    print_path("written to", folder.path / "evaluation")
