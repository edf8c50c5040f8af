"""Where batch norm cannot learn: from a single image of which it sees a single place."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from protofast.data import ImageSet
from protofast.errors import DataError
from protofast.models import ProtoPNet
from protofast.scan import evaluating


def check_single_images(model: ProtoPNet, images: ImageSet, smallest_batch: int) -> None:
    """Makes sure that every training batch gives each batch norm more than one value per channel.

    Args:
        model: The network.
        images: The training images.
        smallest_batch: Images in the smallest batch, or of it that pass through the network alone.

    Raises:
        DataError: It does not. (Leaving the batch out instead would take its image from each
            epoch, and change the results of networks that can learn from it.)
    """
    if smallest_batch > 1 or len(images) == 0:
        return
    lonely: list[str] = []

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:  # [1, channels, 1, 1]
            lonely.append(names[module])

    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, _BatchNorm)
    }
    handles = [module.register_forward_pre_hook(look) for module in names]
    try:
        with evaluating(model):
            model.features(images.image(0)[None].to(model.mean.device).float() / 255)
    finally:
        for handle in handles:
            handle.remove()
    if lonely:
        raise DataError(
            f"batch norm cannot learn from one image of which {lonely[0]} sees a single place, and "
            f"the smallest batch of the {len(images)} training images holds just one (or "
            "one that the alignment loss compares): choose another training.batch_size, or "
            "larger images (data.size), or a larger training.alignment.fraction"
        )
