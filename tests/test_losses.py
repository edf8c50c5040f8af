import pytest
import torch
from torch.nn import functional as F

from protofast.losses import classification_loss, cluster_loss, last_layer_l1, separation_loss


def original_terms(distances, labels, prototype_class, max_dist):
    """Cluster and separation as the released code of ProtoPNet has them (train_and_test.py)."""
    own = (labels.unsqueeze(1) == prototype_class).to(distances.dtype)
    inverted, _ = torch.max((max_dist - distances) * own, dim=1)
    cluster = torch.mean(max_dist - inverted)
    inverted, _ = torch.max((max_dist - distances) * (1 - own), dim=1)
    return cluster, torch.mean(max_dist - inverted)


@pytest.fixture
def random_case():
    torch.manual_seed(0)
    distances = torch.rand(12, 15, dtype=torch.float64) * 100
    labels = torch.arange(12) % 5
    prototype_class = torch.arange(5).repeat_interleave(3)
    return distances, labels, prototype_class


def test_cluster_and_separation_are_the_originals_below_max_dist(random_case):
    distances, labels, prototype_class = random_case
    mine = distances.clone().requires_grad_()
    theirs = distances.clone().requires_grad_()
    cluster, separation = original_terms(theirs, labels, prototype_class, max_dist=128)
    (cluster_loss(mine, labels, prototype_class) * 0.8).backward()
    (separation_loss(mine, labels, prototype_class) * -0.08).backward()
    (0.8 * cluster - 0.08 * separation).backward()
    torch.testing.assert_close(cluster_loss(distances, labels, prototype_class), cluster.detach())
    torch.testing.assert_close(
        separation_loss(distances, labels, prototype_class), separation.detach()
    )
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_cluster_has_a_gradient_beyond_max_dist(random_case):
    distances, labels, prototype_class = random_case
    far = (distances + 200).requires_grad_()
    saturated, _ = original_terms(far, labels, prototype_class, max_dist=128)
    assert saturated.item() == 128
    loss = cluster_loss(far, labels, prototype_class)
    assert loss.item() > 200
    loss.backward()
    assert torch.equal((far.grad != 0).sum(dim=1), torch.ones(12, dtype=torch.int64))


def test_ties_send_the_gradient_to_one_prototype():
    distances = torch.ones(1, 4, requires_grad=True)
    cluster_loss(distances, torch.tensor([0]), torch.zeros(4, dtype=torch.int64)).backward()
    assert torch.equal(distances.grad, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_an_image_whose_class_has_no_prototype_does_not_count(random_case):
    distances, labels, prototype_class = random_case
    pruned = prototype_class != 2
    left, classes = distances[:, pruned].requires_grad_(), prototype_class[pruned]
    loss = cluster_loss(left, labels, classes)
    others = labels != 2
    torch.testing.assert_close(loss, cluster_loss(left[others], labels[others], classes))
    loss.backward()
    assert left.grad.isfinite().all()
    assert (left.grad[labels == 2] == 0).all()


def test_one_class_owning_every_prototype_has_nothing_to_separate():
    distances = torch.rand(3, 4, requires_grad=True)
    labels, classes = torch.tensor([1, 1, 0]), torch.ones(4, dtype=torch.int64)
    loss = separation_loss(distances, labels, classes)
    torch.testing.assert_close(loss, distances[2].min())
    loss.backward()
    assert distances.grad.isfinite().all()
    nothing = separation_loss(distances[:2], labels[:2], classes)
    assert nothing.item() == 0
    nothing.backward()
    assert distances.grad.isfinite().all()


def test_without_any_prototype_both_are_zero():
    distances, labels = torch.zeros(3, 0, requires_grad=True), torch.tensor([0, 1, 2])
    classes = torch.zeros(0, dtype=torch.int64)
    (
        cluster_loss(distances, labels, classes) + separation_loss(distances, labels, classes)
    ).backward()
    assert cluster_loss(distances, labels, classes).item() == 0


def test_classification_loss_and_class_weights():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    torch.testing.assert_close(classification_loss(logits, labels), F.cross_entropy(logits, labels))
    weights = torch.tensor([1.0, 2.0, 5.0])
    each = F.cross_entropy(logits, labels, reduction="none") * weights[labels]
    torch.testing.assert_close(
        classification_loss(logits, labels, weights), each.sum() / weights[labels].sum()
    )
    with pytest.raises(ValueError, match=r"each of the 3 classes; got shape \[2\]"):
        classification_loss(logits, labels, weights[:2])
    halves = classification_loss(logits.bfloat16(), labels, weights.double())
    assert halves.dtype == torch.bfloat16
    for useless in (0.0, -1.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="class_weights must be positive numbers"):
            classification_loss(logits, labels, torch.tensor([1.0, useless, 1.0]))


def test_without_images_every_loss_is_zero():
    logits = torch.zeros(0, 3, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    for weights in (None, torch.ones(3)):
        loss = classification_loss(logits, labels, weights)
        loss.backward()
        assert loss.item() == 0
    assert cluster_loss(torch.zeros(0, 2), labels, torch.tensor([0, 1])).item() == 0


def test_no_label_is_silently_skipped():
    logits, labels = torch.randn(3, 2), torch.tensor([0, -100, 1])
    with pytest.raises(ValueError, match=r"labels must lie in 0...1; got -100...1"):
        classification_loss(logits, labels)
    # Where values are not looked at, PyTorch does, and does not know -100 either.
    compiled = torch.compile(classification_loss, backend="eager")
    with pytest.raises((IndexError, RuntimeError), match=r"-100 is out of bounds"):
        compiled(logits, labels)


def test_l1_does_not_look_at_own_class_weights():
    weight = torch.tensor([[torch.inf, 2.0], [-1.0, torch.nan]], requires_grad=True)
    loss = last_layer_l1(weight, torch.tensor([0, 1]))
    assert loss.item() == 3.0
    loss.backward()
    assert torch.equal(weight.grad, torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))


def test_l1_counts_off_class_weights_alone():
    weight = torch.tensor([[1.0, -0.5, 0.25], [-2.0, 3.0, 0.0]], requires_grad=True)
    loss = last_layer_l1(weight, torch.tensor([0, 1, 1]))
    assert loss.item() == 0.5 + 0.25 + 2.0
    loss.backward()
    assert torch.equal(weight.grad, torch.tensor([[0.0, -1.0, 1.0], [-1.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"weight must be \[C, P\]"):
        last_layer_l1(weight, torch.tensor([0, 1]))


def test_labels_that_do_not_fit_are_named():
    distances, classes = torch.rand(3, 4), torch.tensor([0, 0, 1, 1])
    with pytest.raises(TypeError, match=r"labels must be int64; got torch.float32"):
        cluster_loss(distances, torch.zeros(3), classes)
    with pytest.raises(ValueError, match=r"each of the 3 images; got shape \[2\]"):
        separation_loss(distances, torch.tensor([0, 1]), classes)
    with pytest.raises(ValueError, match=r"got shape \[3, 2\]"):
        classification_loss(torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must lie in 0...1; got 0...7"):
        classification_loss(torch.rand(3, 2), torch.tensor([0, 7, 1]))
    with pytest.raises(ValueError, match=r"distances must be \[N, P\] and prototype_class \[P\]"):
        cluster_loss(distances, torch.tensor([0, 1, 1]), classes[:3])
