"""`protofast evaluate`."""

from protofast.cli.console import print_note
from protofast.cli.finish import evaluate_run, read_data
from protofast.cli.options import Checkpoint, Device, Run, Threads, choose_device
from protofast.training import RunFolder


def evaluate(
    run: Run,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Test a run: accuracy, balanced accuracy, AUROC, confusion matrix, per-class table.

    Writes RUN/evaluation/: metrics.json, confusion.csv, per_class.csv and predictions.csv.
    """
    chosen = choose_device(device, threads)
    folder = RunFolder.open(run)
    folder.resolve(checkpoint)  # before the images are read
    data = read_data(folder.settings)
    evaluate_run(folder, checkpoint, data, chosen)
    print_note(f"written to {folder.path / 'evaluation'}")
