"""The linear probe against scikit-learn's logistic regression on the same features: real digits, a few columns constant."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from erw.data import digits
from erw.errors import UserError
from erw.probe.linear import LinearProbe, fit

ROWS = 400


@cache
def splits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels (N, 64), not scaled alike, and labels of ``ROWS`` training digits and of the held-out ones."""
    (images, labels), (held_out, answers) = digits.load("train"), digits.load("held_out")
    scale = torch.linspace(0.1, 20, 64)
    return images[:ROWS].flatten(1) * scale + 3, labels[:ROWS], held_out.flatten(1) * scale + 3, answers


@cache
def fitted(strength: float) -> LinearProbe:
    features, labels, _, _ = splits()
    return fit(features, labels, strength)


def by_sklearn(strength: float) -> tuple[LogisticRegression, np.ndarray]:
    """Its model of the batch-normed features, and those of the held-out images."""
    features, labels, held_out, _ = (x.double().numpy() if x.is_floating_point() else x.numpy() for x in splits())
    mean, deviation = features.mean(axis=0), np.sqrt(features.var(axis=0) + 1e-5)
    model = LogisticRegression(C=strength, tol=1e-7, max_iter=5000).fit((features - mean) / deviation, labels)
    return model, (held_out - mean) / deviation


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_it_is_scikit_learns(strength):
    probe, (model, normed) = fitted(strength), by_sklearn(strength)
    held_out, answers = splits()[2:]
    assert probe.converged
    assert np.abs(probe.weight.numpy() - model.coef_).max() < 2e-3 < np.abs(model.coef_).max() / 50
    ours, theirs = probe.bias.numpy(), model.intercept_  # alike up to a constant, which changes no prediction
    assert np.abs((ours - ours.mean()) - (theirs - theirs.mean())).max() < 2e-2
    assert np.array_equal(probe.predict(held_out).numpy(), model.predict(normed))
    assert probe.accuracy(held_out, answers) == model.score(normed, answers.numpy()) > 0.85


def test_faults_would_show():
    """Another strength, no norm, and judging on what it was fitted on all give other figures than scikit-learn's."""
    features, labels, held_out, answers = splits()
    weight = by_sklearn(1.0)[0].coef_
    per_image = fit(features, labels, strength=1.0 / ROWS)  # as if the loss were a sum over images of 1 / N
    assert np.abs(per_image.weight.numpy() - weight).max() > 0.1
    bare = LogisticRegression(tol=1e-4, max_iter=200).fit(features.numpy(), labels.numpy())
    assert np.abs(bare.coef_ - weight).max() > 0.1
    assert fitted(1.0).accuracy(features, labels) > fitted(1.0).accuracy(held_out, answers) + 0.02


def test_classes_that_it_never_saw_count_as_wrong():
    features, labels, held_out, answers = splits()
    some = labels < 5
    probe = fit(features[some], labels[some])
    assert probe.classes.tolist() == [0, 1, 2, 3, 4]
    assert probe.accuracy(held_out[answers >= 5], answers[answers >= 5]) == 0
    assert probe.accuracy(held_out[answers < 5], answers[answers < 5]) > 0.85


def test_what_cannot_be_fitted_is_refused():
    features, labels, *_ = splits()
    with pytest.raises(UserError, match="needs images of two classes, these 400 have 1"):
        fit(features, torch.zeros_like(labels))
    with pytest.raises(UserError, match="NaN or infinity"):
        fit(features * torch.inf, labels)
