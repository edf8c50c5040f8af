"""Minimal stand-ins of PPNet and TESNet, written from what the papers and their code compute.

Attributes, state-dict keys, signatures and formulas are those of the originals; the backbone is one
convolution. The distances take the expanded form, |z|^2 - 2 z.p + |p|^2, clamped at 0.
This file needs torch alone: a process that has it, and no protofast, can load what was pickled.
"""

import torch
from torch import nn
from torch.nn import functional as F


class PPNet(nn.Module):
    def __init__(
        self,
        prototype_shape=(12, 8, 1, 1),
        num_classes=3,
        prototype_activation_function="log",
        img_size=32,
    ):
        super().__init__()
        self.img_size = img_size
        self.prototype_shape = prototype_shape
        self.num_prototypes = prototype_shape[0]
        self.num_classes = num_classes
        self.epsilon = 1e-4
        self.prototype_activation_function = prototype_activation_function
        per_class = self.num_prototypes // num_classes
        self.prototype_class_identity = torch.zeros(self.num_prototypes, num_classes)
        for j in range(self.num_prototypes):
            self.prototype_class_identity[j, j // per_class] = 1
        self.proto_layer_rf_info = [4, 8, 11, 3.5]
        self.features = nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6), nn.ReLU())
        depth = prototype_shape[1]
        self.add_on_layers = nn.Sequential(
            nn.Conv2d(6, depth, 1), nn.ReLU(), nn.Conv2d(depth, depth, 1), nn.Sigmoid()
        )
        self.prototype_vectors = nn.Parameter(torch.rand(prototype_shape), requires_grad=True)
        self.ones = nn.Parameter(torch.ones(prototype_shape), requires_grad=False)
        self.last_layer = nn.Linear(self.num_prototypes, num_classes, bias=False)
        own = self.prototype_class_identity.t()
        self.last_layer.weight.data.copy_(own - 0.5 * (1 - own))

    def conv_features(self, x):
        return self.add_on_layers(self.features(x))

    def _l2_convolution(self, x):
        squares = F.conv2d(x**2, self.ones)
        norms = (self.prototype_vectors**2).sum(dim=(1, 2, 3)).view(-1, 1, 1)
        return F.relu(squares + (norms - 2 * F.conv2d(x, self.prototype_vectors)))

    def prototype_distances(self, x):
        return self._l2_convolution(self.conv_features(x))

    def distance_2_similarity(self, distances):
        if self.prototype_activation_function == "log":
            return torch.log((distances + 1) / (distances + self.epsilon))
        if self.prototype_activation_function == "linear":
            return -distances
        return self.prototype_activation_function(distances)

    def forward(self, x):
        distances = self.prototype_distances(x)
        least = -F.max_pool2d(-distances, kernel_size=distances.shape[2:])
        least = least.view(-1, self.num_prototypes)
        return self.last_layer(self.distance_2_similarity(least)), least

    def push_forward(self, x):
        features = self.conv_features(x)
        return features, self._l2_convolution(features)

    def prune_prototypes(self, prototypes_to_prune):
        keep = sorted(set(range(self.num_prototypes)) - set(prototypes_to_prune))
        self.prototype_vectors = nn.Parameter(self.prototype_vectors.data[keep])
        self.prototype_shape = list(self.prototype_vectors.size())
        self.num_prototypes = self.prototype_shape[0]
        self.last_layer.in_features = self.num_prototypes
        self.last_layer.weight.data = self.last_layer.weight.data[:, keep]
        self.ones = nn.Parameter(self.ones.data[keep], requires_grad=False)
        self.prototype_class_identity = self.prototype_class_identity[keep]


class TESNet(PPNet):
    """Distances are negative projections; -cos is what the losses see. It cannot be pruned."""

    prune_prototypes = None

    def _cosine_convolution(self, x):
        return -F.conv2d(F.normalize(x, dim=1), F.normalize(self.prototype_vectors, dim=1))

    def _project2basis(self, x):
        return F.conv2d(x, F.normalize(self.prototype_vectors, dim=1))

    def prototype_distances(self, x):
        features = self.conv_features(x)
        return self._project2basis(features), self._cosine_convolution(features)

    def forward(self, x):
        projections, cosines = self.prototype_distances(x)
        window = projections.shape[2:]
        least = -F.max_pool2d(-cosines, window).view(-1, self.num_prototypes)
        largest = F.max_pool2d(projections, window).view(-1, self.num_prototypes)
        return self.last_layer(largest), least

    def push_forward(self, x):
        features = self.conv_features(x)
        return features, -self._project2basis(features)


class WithMaps(PPNet):
    """A descendant that can return its maps as well."""

    def forward(self, x, return_all_similarities=False):
        logits, least = super().forward(x)
        if return_all_similarities:
            return logits, least, self.distance_2_similarity(self.prototype_distances(x))
        return logits, least


class Focal(PPNet):
    """A descendant whose activations are something else."""

    def forward(self, x):
        distances = self.prototype_distances(x)
        least, mean = distances.flatten(2).amin(2), distances.flatten(2).mean(2)
        activations = self.distance_2_similarity(least) - self.distance_2_similarity(mean)
        return self.last_layer(activations), least


def reciprocal(distances):
    """An activation function of one's own."""
    return 1 / (1 + distances)


def shape_name(shape):
    return "x".join(str(size) for size in shape)


def on_features(kind, shape, num_classes, activation="log"):
    """A network whose images are its features, [N, D, H, W]."""
    network = kind(shape, num_classes, activation)
    network.features, network.add_on_layers = nn.Identity(), nn.Identity()
    return network
