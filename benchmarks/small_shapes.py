"""Every operator on a GPU, by every path, both ways, on small shapes: for compute-sanitizer.

The shapes are awkward on purpose: one location, one image, sizes that no tile divides.
"""

import itertools
import os

import torch

from protofast import _build
from protofast.ops import distance_map, masked_view, nearest_patch

SHAPES = (  # N, P, D, H, W
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 7),
    (3, 65, 33, 7, 7),
    (5, 130, 64, 7, 7),
    (2, 200, 130, 14, 14),
    (1, 17, 512, 5, 3),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = (("squared_l2", "log"), ("l2", "exp"), ("dot", "linear"), ("cosine", "linear"))


def main() -> None:
    capability = torch.cuda.get_device_capability()
    paths = ["plain"]
    if capability >= (8, 0):
        paths.append("tensor_cores")
    if capability == (9, 0) and "90a" in _build.facts()["cuda_architectures"]:
        paths.append("wgmma")
    for path in paths:
        os.environ["PROTOFAST_GPU"] = path
        run_all()
    torch.cuda.synchronize()
    print("all operators ran")


def run_all() -> None:
    for (n, p, d, h, w), dtype in itertools.product(SHAPES, DTYPES):
        torch.manual_seed(0)
        features = torch.rand(n, d, h, w, device="cuda").to(dtype)
        prototypes = torch.rand(p, d, device="cuda").requires_grad_()
        for layout in (torch.contiguous_format, torch.channels_last):
            maps = features.contiguous(memory_format=layout).requires_grad_()
            for metric, similarity in PAIRS:
                found = nearest_patch(maps, prototypes, metric=metric, similarity=similarity)
                loss = found.activations.sum() + found.distances.sum()
                torch.autograd.grad(loss, (maps, prototypes))
            index = torch.arange(n * 2, device="cuda").view(n, 2) % p
            for chosen in (None, index):
                distances = distance_map(maps, prototypes, index=chosen)
                torch.autograd.grad(distances.sum(), (maps, prototypes))
        images = torch.rand(n, 3, 30, 17, device="cuda").to(dtype).requires_grad_()
        views = masked_view(images, features[:, :4], fill=(0.5, 0.4, 0.3)).views
        torch.autograd.grad(views.sum(), images)


if __name__ == "__main__":
    main()
