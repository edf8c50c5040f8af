"""A checkpoint is whole or it is refused; nothing in it is executed."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from protofast.errors import CheckpointError
from protofast.training.checkpoint import load_checkpoint, save_checkpoint

TENSORS = {
    "float32": torch.tensor([1.5, -0.0, float("inf"), 1e-42]),
    "float64": torch.rand(2, 3, dtype=torch.float64),
    "bfloat16": torch.rand(5).bfloat16(),
    "int64": torch.tensor([2**62, -1]),
    "uint8": torch.arange(256).to(torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
    "strided": torch.rand(4, 6).t(),
    "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
}
FACTS = {"place": {"step": 3}, "text": 'ü "quoted"\n', "list": [1, 2.5, None, True]}


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, TENSORS, FACTS)
    tensors, facts = load_checkpoint(path)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype
        assert tensors[name].shape == expected.shape
        assert tensors[name].tolist() == expected.tolist()
    assert torch.signbit(tensors["float32"][1])
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "no temporary file is left"


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    whole = torch.rand(6)
    path = tmp_path / "shared.safetensors"
    save_checkpoint(path, {"whole": whole, "half": whole[:3], "same": whole}, {})
    tensors, _ = load_checkpoint(path)
    assert torch.equal(tensors["half"], whole[:3])
    assert torch.equal(tensors["same"], whole)


def test_any_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, TENSORS, FACTS)
    content = path.read_bytes()
    lengths = {0, 1, 7, 8, 9, 100, len(content) - 1, len(content) // 2}
    lengths |= set(random.Random(0).sample(range(len(content)), 40))
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"one\.safetensors is cut short or damaged"):
            load_checkpoint(path)


def test_any_flipped_bit_in_the_tensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, TENSORS, FACTS)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in random.Random(0).sample(range(start, len(content)), 40):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.rand(2)}, foreign)
    newer = tmp_path / "newer.safetensors"
    facts = {"format": 99, "checksum": 0, "facts": {}}
    save_file({"weight": torch.rand(2)}, newer, {"protofast": json.dumps(facts)})
    pickled = tmp_path / "pickled.safetensors"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    pickled.write_bytes(pickle.dumps(Evil()))
    torch.save({"weight": torch.rand(2)}, tmp_path / "torch.safetensors")
    for path in (foreign, newer, pickled, tmp_path / "torch.safetensors"):
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(newer)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "missing.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, {"n": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(path, {"a": torch.zeros(3)}, {"n": float("nan")})
    assert load_checkpoint(path)[1] == {"n": 1}
    gone = tmp_path / "gone" / "one.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        save_checkpoint(gone, {}, {})
    assert caught.value.filename == str(gone)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
