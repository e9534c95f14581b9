"""NT-Xent: the losses against loops, their groups, and what they hold in memory."""

import math
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erw.align import Repa
from erw.ops import REFERENCE
from erw.types import Targets, TeacherSpec
from tiny import MODEL

TAU = 0.1


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def loop_over_images(z: Tensor, target: Tensor, first: int, group: int, tau: float) -> Tensor:
    """(B,) by the formula, a token at a time: the images of the group are the classes, its own is the right one."""
    z, u = z / z.norm(dim=-1, keepdim=True), target / target.norm(dim=-1, keepdim=True)
    losses = []
    for i in range(len(z)):
        row = first + i
        members = [j for j in range(len(u)) if j // group == row // group]
        terms = []
        for n in range(z.shape[1]):
            logits = torch.stack([z[i, n] @ u[j, n] for j in members]) / tau
            terms.append(-torch.log_softmax(logits, dim=0)[members.index(row)])
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses)


def loop_over_tokens(z: Tensor, target: Tensor, tau: float) -> Tensor:
    """(B,) by the formula: the tokens of the image are the classes."""
    z, u = z / z.norm(dim=-1, keepdim=True), target / target.norm(dim=-1, keepdim=True)
    losses = []
    for student, teacher in zip(z, u, strict=True):
        terms = []
        for n in range(len(student)):
            logits = torch.stack([student[n] @ teacher[m] for m in range(len(teacher))]) / tau
            terms.append(-torch.log_softmax(logits, dim=0)[n])
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses)


# ---- against loops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(("first", "images", "group"), [(0, 6, 6), (0, 12, 4), (3, 7, 4), (5, 2, 4), (4, 4, 4), (1, 1, 2)])
def test_in_batch_loss_and_gradient_are_the_loops(first, images, group, tau):
    z, target = normal(images, 5, 7).requires_grad_(), normal(12, 5, 7, seed=1)
    mine = REFERENCE.nt_xent_alignment(z, target, first=first, group=group, tau=tau)
    theirs = loop_over_images(z, target, first, group, tau)
    torch.testing.assert_close(mine, theirs)
    weights = normal(images, seed=2)  # so that a gradient in the wrong row would show
    torch.testing.assert_close(torch.autograd.grad(mine @ weights, z), torch.autograd.grad(theirs @ weights, z))


@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("images", [1, 16, 19])  # logits are held for 16 at a time
def test_in_image_loss_and_gradient_are_the_loops(images, tau):
    z, target = normal(images, 4, 6).requires_grad_(), normal(images, 4, 6, seed=1)
    mine, theirs = REFERENCE.nt_xent_in_image(z, target, tau=tau), loop_over_tokens(z, target, tau)
    torch.testing.assert_close(mine, theirs)
    weights = normal(images, seed=2)
    torch.testing.assert_close(torch.autograd.grad(mine @ weights, z), torch.autograd.grad(theirs @ weights, z))


def test_gradients_pass_gradcheck():
    z, target = normal(5, 2, 3).requires_grad_(), normal(8, 2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda z: REFERENCE.nt_xent_alignment(z, target, first=2, group=4, tau=0.5), z)
    assert torch.autograd.gradcheck(lambda z: REFERENCE.nt_xent_in_image(z, target[:5], tau=0.5), z)


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 5, 8, 12, 24])
def test_losses_do_not_depend_on_the_split_into_micro_batches(micro):
    group, z, target = 6, normal(24, 3, 5), normal(24, 3, 5, seed=1)
    whole = REFERENCE.nt_xent_alignment(z, target, first=0, group=group, tau=TAU)
    for start in range(0, 24, micro):
        low = start // group * group
        high = -(-(start + micro) // group) * group
        part = REFERENCE.nt_xent_alignment(z[start : start + micro], target[low:high], first=start - low, group=group, tau=TAU)
        torch.testing.assert_close(part, whole[start : start + micro])


def test_images_of_other_groups_do_not_matter_and_those_of_the_group_do():
    z, target = normal(4, 3, 5), normal(12, 3, 5, seed=1)
    base = REFERENCE.nt_xent_alignment(z, target, first=4, group=4, tau=TAU)
    for row, matters in [(3, False), (4, True), (7, True), (8, False)]:
        changed = target.clone()
        changed[row] = normal(3, 5, seed=9)
        assert (REFERENCE.nt_xent_alignment(z, changed, first=4, group=4, tau=TAU) == base).all() != matters


@pytest.mark.parametrize(("align", "group"), [("cosine", 1), ("nt-xent", 4), ("nt-xent-in-image", 1)])
def test_of_the_methods_losses_it_alone_looks_at_the_other_images_of_the_group(align, group):
    method = Repa(depth=2, projector_width=24, align=align, group_images=4)
    assert method.group == group
    heads = method.build_heads(MODEL, (TeacherSpec(name="test", width=12, grid=4),))
    taps, tokens = {2: torch.randn(2, MODEL.tokens, MODEL.width)}, torch.randn(8, MODEL.tokens, 12)
    base = method.loss(heads, taps, Targets((tokens,), first=1), REFERENCE)
    second = method.loss(heads, {2: taps[2][1:]}, Targets((tokens,), first=2), REFERENCE)
    torch.testing.assert_close(second, base[1:])
    for row, changes in [(0, [group == 4] * 2), (1, [True, group == 4]), (2, [group == 4, True]), (4, [False, False])]:
        other = tokens.clone()
        other[row] = torch.randn_like(other[row])
        losses = method.loss(heads, taps, Targets((other,), first=1), REFERENCE)
        assert ((losses - base).abs() > 1e-6).tolist() == changes, row


# ---- known values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_a_perfect_match_among_orthogonal_negatives_has_its_known_value(tau):
    # e^(1 / tau) against the group - 1 negatives' e^0; lengths do not matter.
    expected = math.log(1 + 7 * math.exp(-1 / tau))
    basis = torch.eye(8, dtype=torch.float64)
    tokens = torch.stack([basis.roll(n, dims=0) for n in range(3)], dim=1)
    losses = REFERENCE.nt_xent_alignment(3 * tokens, 0.2 * tokens, first=0, group=8, tau=tau)
    torch.testing.assert_close(losses, torch.full_like(losses, expected))
    losses = REFERENCE.nt_xent_in_image(3 * basis.expand(2, 8, 8), 0.2 * basis.expand(2, 8, 8), tau=tau)
    torch.testing.assert_close(losses, torch.full_like(losses, expected))


def test_a_constant_representation_cannot_tell_its_positive_apart():
    z, target = normal(6, 4, 5), torch.ones(6, 4, 5, dtype=torch.float64)
    losses = REFERENCE.nt_xent_alignment(z, target, first=0, group=6, tau=TAU)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(6)))
    losses = REFERENCE.nt_xent_in_image(z, target, tau=TAU)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(4)))


# ---- precision --------------------------------------------------------------------------------------------------------

LOSSES = {
    "in batch": lambda z, target: REFERENCE.nt_xent_alignment(z, target, first=2, group=6, tau=TAU),
    "in image": lambda z, target: REFERENCE.nt_xent_in_image(z, target[2:10], tau=TAU),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_halves_are_computed_in_fp32_under_autocast_too(loss, autocast):
    z, target = normal(8, 16, 32, dtype=torch.bfloat16).requires_grad_(), normal(12, 16, 32, seed=1, dtype=torch.bfloat16)
    exact = z.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(exact, target.double()).sum(), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = loss(z, target)
    losses.sum().backward()
    assert losses.dtype == torch.float32 and z.grad.dtype == torch.bfloat16
    torch.testing.assert_close(losses.double(), loss(exact, target.double()), rtol=1e-5, atol=1e-5)
    # The gradient alone is rounded to bf16, once.
    torch.testing.assert_close(z.grad.double(), wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_the_teacher_gets_no_gradient(loss):
    z, target = normal(8, 3, 5).requires_grad_(), normal(12, 3, 5, seed=1).requires_grad_()
    loss(z, target).sum().backward()
    assert target.grad is None and z.grad.abs().amax(dim=(1, 2)).min() > 0


# ---- memory -----------------------------------------------------------------------------------------------------------


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make: the largest, those alive, and the most at any time."""

    def __init__(self):
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, out)):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._track(tensor.untyped_storage(), made=any(tensor is leaf for leaf in tree_leaves(out)))
        return out

    def _track(self, storage: torch.UntypedStorage, made: bool) -> None:
        key, size = storage._cdata, storage.nbytes() if made else 0
        self._known.add(key)
        self.alive += size
        self.largest, self.peak = max(self.largest, size), max(self.peak, self.alive)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def measured(loss, z: Tensor) -> tuple[int, int, int]:
    """Bytes of the largest tensor, of the most alive at once, and of what the graph keeps between forward and backward."""
    z = z.requires_grad_()
    with Memory() as memory:
        losses = loss(z)
        kept = memory.alive
        losses.sum().backward()
    return memory.largest, memory.peak, kept


def dense(z: Tensor, target: Tensor, group: int) -> Tensor:
    """The same loss the plain way, which holds all logits: what the measurement has to tell apart."""
    z, u = torch.nn.functional.normalize(z, dim=-1), torch.nn.functional.normalize(target, dim=-1)
    z, u = (x.unflatten(0, (-1, group)).transpose(1, 2) for x in (z, u))
    return -(z @ u.transpose(-1, -2) / TAU).log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1).mean(dim=1).flatten()


N, G, D = 5, 64, 4
LOGITS = N * G * G * 8
TOKENS = G * N * D * 8


def in_batch(groups: int) -> tuple[int, int, int]:
    """`measured` over so many groups of G images."""
    target = normal(groups * G, N, D, seed=1)
    return measured(lambda z: REFERENCE.nt_xent_alignment(z, target, first=0, group=G, tau=TAU), normal(groups * G, N, D))


def test_the_measurement_sees_what_the_plain_way_holds():
    z, target = normal(4 * G, N, D), normal(4 * G, N, D, seed=1)
    torch.testing.assert_close(dense(z, target, G), REFERENCE.nt_xent_alignment(z, target, first=0, group=G, tau=TAU))
    largest, peak, kept = measured(lambda z: dense(z, target, G), z)
    assert largest == 4 * LOGITS and kept > 4 * LOGITS and peak > 8 * LOGITS


def test_in_batch_logits_exist_for_one_group_at_a_time():
    one, four = in_batch(1), in_batch(4)
    assert one[0] == four[0] == LOGITS
    # The backward of one group takes a few such tensors; more groups add tokens only, none of which the graph copies.
    assert one[1] < 6 * LOGITS and four[1] < one[1] + 3 * 2 * TOKENS
    assert four[2] <= 4 * one[2] < TOKENS


def test_in_image_logits_exist_for_sixteen_images_at_a_time():
    tokens, width, found = 48, 3, []
    for images in (16, 64):
        z, target = normal(images, tokens, width), normal(images, tokens, width, seed=1)
        found.append(measured(lambda z, target=target: REFERENCE.nt_xent_in_image(z, target, tau=TAU), z))
    logits, image = 16 * tokens * tokens * 8, tokens * width * 8
    few, many = found
    assert few[0] == many[0] == logits
    assert few[1] < 6 * logits and many[1] < few[1] + 48 * 2 * image
    assert many[2] <= 4 * few[2] < 16 * image
