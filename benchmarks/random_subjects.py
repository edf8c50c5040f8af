"""What the benchmarks of audits attack: a ResNet-18 with random weights and random images."""

import torch

from protofast import ProtoPNet
from protofast.audits.audit import Subject
from protofast.data import ImageSet, MemoryImageSet
from protofast.models.backbones import build_backbone

SIZE, CLASSES = 224, 200


def make_model(device: str, *, size: int = SIZE, apart: float = 0.02) -> ProtoPNet:
    """With random weights; its prototypes lie `apart` from features of random images."""
    torch.manual_seed(0)
    model = ProtoPNet(
        build_backbone("resnet18"), num_classes=CLASSES, input_size=(size, size)
    ).eval()
    with torch.no_grad():
        patches = model.features(torch.rand(4, 3, size, size)).permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randint(len(patches), (model.num_prototypes,))
        noise = apart * torch.randn_like(model.prototypes)
        model.prototypes.copy_(patches[chosen] + noise)
    return model.to(device)


def make_subject(model: ProtoPNet, count: int) -> Subject:
    """Images of coarse random squares, which the model names rightly: labels are what it says."""
    generator = torch.Generator().manual_seed(1)
    size, squares = model.input_size, (model.input_size[0] // 16, model.input_size[1] // 16)
    coarse = torch.randint(0, 256, (count, 3, *squares), generator=generator, dtype=torch.uint8)
    pixels = coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)
    device, dtype = model.prototypes.device, model.prototypes.dtype
    with torch.no_grad():
        named = model(pixels.to(device, dtype) / 255).logits.argmax(dim=1).cpu()
    source = ImageSet(
        classes=[str(c) for c in range(CLASSES)],
        labels=named,
        names=[str(n) for n in range(count)],
        channels=3,
        size=size,
    )
    return Subject(
        name="random",
        model=model,
        images=MemoryImageSet(pixels, source=source),
        predictions=named,
        correct_in_all=torch.ones(count, dtype=torch.bool),
    )
