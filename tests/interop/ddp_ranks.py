"""Two ranks with gloo: an accelerated model in DistributedDataParallel; run by test_copies."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn

sys.path.insert(0, str(Path(__file__).parent))

from stand_ins import PPNet

import protofast


def main(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = PPNet().eval()
    images = torch.rand(4, 3, 32, 32)
    whole = protofast.accelerate(PPNet()).eval()
    whole.load_state_dict(model.state_dict())
    parallel = nn.parallel.DistributedDataParallel(protofast.accelerate(model))
    protofast.accelerate(parallel)  # harmless, and sees through the wrapper
    logits, distances = parallel(images[2 * rank : 2 * rank + 2])
    (logits.square().mean() + distances.mean()).backward()
    logits, distances = whole(images)
    (logits.square().mean() + distances.mean()).backward()
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7)
    distributed.destroy_process_group()


torch.set_num_threads(1)
other = os.fork()  # so that torch is imported once for both
main(0 if other else 1, sys.argv[1])
if other:
    _, status = os.waitpid(other, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
