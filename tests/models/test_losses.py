"""Laws of the loss and the metric for hierarchical labels, against explicit sums and sets."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from scdataloader.models.losses import HierarchicalCrossEntropy, HierarchicalF1


@st.composite
def hierarchies(draw):
    """A number of classes, and {code of an inner label: codes of its classes}."""
    n = draw(st.integers(1, 5))
    below = draw(st.lists(st.sets(st.integers(0, n - 1), min_size=1), max_size=4))
    return n, {n + place: sorted(codes) for place, codes in enumerate(below)}


@st.composite
def cells(draw, min_size=0):
    """A hierarchy, (B, n) logits, (B,) predicted classes and (B,) labels of it, some of them unknown."""
    n, hierarchy = draw(hierarchies())
    size = draw(st.integers(min_size, 8))
    rows = st.lists(st.floats(-30, 30), min_size=n, max_size=n)
    logits = torch.tensor(draw(st.lists(rows, min_size=size, max_size=size)), dtype=torch.float64).reshape(size, n)
    many = {"min_size": size, "max_size": size}
    labels = draw(st.lists(st.integers(-1, n + len(hierarchy) - 1), **many))
    predicted = draw(st.lists(st.integers(0, n - 1), **many))
    return n, hierarchy, logits, torch.tensor(predicted, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)


def classes_of(label, n, hierarchy):
    return {label} if label < n else set(hierarchy[label])


def f1(metric, predicted, labels):
    metric.update(predicted, labels)
    return metric.compute().item()


# --- the loss ---------------------------------------------------------------------------------------------------------


@given(cells())
def test_the_probability_of_a_label_is_the_sum_over_its_classes(drawn):
    n, hierarchy, logits, _, labels = drawn
    known = [
        -torch.log(sum(row[code] for code in classes_of(label, n, hierarchy)))
        for row, label in zip(logits.softmax(1), labels.tolist(), strict=True)
        if label >= 0
    ]
    expected = sum(known) / len(known) if known else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(HierarchicalCrossEntropy(n, hierarchy)(logits, labels), expected)


@given(cells(min_size=1))
def test_without_inner_labels_it_is_cross_entropy(drawn):
    n, _, logits, _, labels = drawn
    labels = labels.where(labels < n, -1)
    loss = HierarchicalCrossEntropy(n, {})(logits, labels)
    if (labels < 0).all():
        assert loss == 0
    else:
        torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, ignore_index=-1))


@given(cells(min_size=1))
def test_unknown_labels_add_nothing(drawn):
    n, hierarchy, logits, _, labels = drawn
    loss = HierarchicalCrossEntropy(n, hierarchy)
    torch.testing.assert_close(loss(logits, labels), loss(logits[labels >= 0], labels[labels >= 0]))
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert not logits.grad[labels < 0].any()


@given(cells(min_size=1), st.sampled_from([1.0, 1e3, 1e30]))
def test_gradients_are_finite_however_sure_the_model_is(drawn, scale):
    n, hierarchy, logits, _, labels = drawn
    logits = (logits * scale).float().requires_grad_()
    loss = HierarchicalCrossEntropy(n, hierarchy)(logits, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@given(cells(min_size=1))
def test_a_label_above_every_class_teaches_nothing(drawn):
    n, _, logits, _, labels = drawn
    logits.requires_grad_()
    loss = HierarchicalCrossEntropy(n, {n: range(n)})(logits, torch.full_like(labels, n))
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert logits.grad.abs().max() < 1e-12


@given(cells(min_size=1))
def test_a_finer_label_costs_at_least_as_much(drawn):
    n, hierarchy, logits, _, _ = drawn
    loss = HierarchicalCrossEntropy(n, hierarchy)
    for code, below in hierarchy.items():
        fine, coarse = (loss(logits, torch.full((len(logits),), label)) for label in (below[0], code))
        assert coarse <= fine + 1e-12


# --- the metric -------------------------------------------------------------------------------------------------------


@given(cells())
def test_f1_of_sets_with_all_that_is_above(drawn):
    n, hierarchy, _, predicted, labels = drawn
    codes = {label: classes_of(label, n, hierarchy) for label in range(n + len(hierarchy))}
    roots = {label for label in hierarchy if len(codes[label]) == n}
    above = {label: {label} | {inner for inner in hierarchy if codes[inner] >= codes[label]} for label in codes}
    shared = n_predicted = n_true = 0
    for guess, label in zip(predicted.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            doubtful = {other for other in codes if codes[other] & codes[label]} - above[label]
            guessed, true = above[guess] - doubtful - roots, above[label] - roots
            shared += len(guessed & true)
            n_predicted, n_true = n_predicted + len(guessed), n_true + len(true)
    expected = Fraction(2 * shared, max(n_predicted + n_true, 1))
    assert f1(HierarchicalF1(n, hierarchy), predicted, labels) == pytest.approx(float(expected))


@given(cells(min_size=1))
def test_without_inner_labels_f1_is_the_share_that_is_right(drawn):
    n, _, _, predicted, labels = drawn
    labels = labels.where(labels < n, -1)
    known = labels >= 0
    right = (predicted == labels)[known].double().mean().item() if known.any() else 0
    assert f1(HierarchicalF1(n, {}), predicted, labels) == pytest.approx(right)


@given(cells(min_size=1), st.data())
def test_whatever_is_below_the_label_is_right(drawn, data):
    n, hierarchy, _, _, labels = drawn
    predicted = torch.tensor(
        [data.draw(st.sampled_from(sorted(classes_of(max(label, 0), n, hierarchy)))) for label in labels.tolist()]
    )
    # labels above every class have no set at all
    told = [len(classes_of(label, n, hierarchy)) < n or label < n for label in labels.tolist() if label >= 0]
    assert f1(HierarchicalF1(n, hierarchy), predicted, labels) == (1 if any(told) else 0)


@given(cells(), st.integers(0, 8))
def test_parts_of_the_cells_add_up(drawn, cut):
    n, hierarchy, _, predicted, labels = drawn
    whole, first, second = (HierarchicalF1(n, hierarchy) for _ in range(3))
    second.update(predicted[cut:], labels[cut:])
    first.update(predicted[:cut], labels[:cut])
    first.merge_state(second)  # as ranks are brought together
    assert first.compute().item() == f1(whole, predicted, labels)


def test_a_mistake_costs_less_the_more_is_shared():
    """CD4 for CD8 (both T cells, both lymphocytes), for B (lymphocyte), for neuron."""
    cd4, cd8, b, neuron, t, lymphocyte, cell = range(7)
    hierarchy = {t: [cd4, cd8], lymphocyte: [cd4, cd8, b], cell: [cd4, cd8, b, neuron]}
    truth = torch.tensor([cd4])
    found = [f1(HierarchicalF1(4, hierarchy), torch.tensor([guess]), truth) for guess in (cd4, cd8, b, neuron)]
    assert found == pytest.approx([1, 4 / 6, 2 / 5, 0])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [HierarchicalCrossEntropy, HierarchicalF1])
@pytest.mark.parametrize("hierarchy", [{3: [0, 1], 5: [0]}, {2: [0]}, {3: []}, {3: [1, 3]}, {3: [-1]}])
def test_codes_that_do_not_fit_the_classes_are_refused(made, hierarchy):
    with pytest.raises(ValueError, match=r"inner labels with codes from 3 on, .* classes from 0 to 2"):
        made(3, hierarchy)


def test_a_code_past_the_last_is_refused():
    with pytest.raises(IndexError):
        HierarchicalCrossEntropy(3, {3: [0, 1]})(torch.zeros(1, 3), torch.tensor([4]))
