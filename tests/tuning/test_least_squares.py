"""Scales of the kept units: what they solve, improve and look at, and what happens where there are none."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForSequenceClassification

import residuals
from encoders import make_encoder
from harness import validated
from policyprune.pruning.prunable import PrunableModel
from policyprune.pruning.space import Space
from policyprune.tuning.fit import fit
from policyprune.tuning.least_squares import NormalEquations
from policyprune.tuning.options import CG2, LSMR
from policyprune.tuning.solvers import cg2
from policyprune.tuning.teacher_student import Lesson

LENGTHS = [[24, 21, 19, 16, 12, 9], [8, 7, 7, 6, 5, 4, 4, 3]]
SETTINGS: dict[str, Any] = {"sequences": 8, "damp": 1e-2, "tolerance": 1e-6, "iterations": 200, "limit": 10.0}
TUNINGS = {"cg2": CG2(**SETTINGS), "lsmr": LSMR(**SETTINGS)}
Report = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Subject(PrunableModel):
    """A dense model, its units and calibration batches with padding."""

    batches: list[dict[str, Tensor]]

    @property
    def last(self) -> int:
        return len(self.adapter.layers) - 1

    def logits(self, masks: Tensor | None) -> list[Tensor]:
        """Outputs under masks or scales (n,), of the tokens that are not padding."""
        with self.masking() as masking, torch.no_grad():
            masking.set(None if masks is None else masks.float()[None])
            found = [self.model(**batch).logits for batch in self.batches]
        return [x[b["attention_mask"].bool()] if x.dim() == 3 else x for x, b in zip(found, self.batches, strict=True)]

    def block_outputs(self, masks: Tensor | None, first_token: bool) -> dict[tuple[int, str], Tensor]:
        """What each block is fitted to, in plain forwards of the whole model: (tokens, d).

        It is the output of its output projection, in post-norm families with the residual, as the norm behind takes it;
        in the others every token divided by the root mean square of the dense residual behind the layer.
        """
        weights = self.weights(first_token)
        seen: dict[tuple[int, str], list[Tensor]] = {(b.layer, b.kind): [] for b in self.adapter.blocks}
        rows: list[Tensor] = []
        norms = {(b.layer, b.kind): b.norm for b in self.adapter.blocks}

        def collect(key: tuple[int, str]) -> Any:
            def hook(module: Any, args: Any, out: Tensor) -> None:
                first = first_token and key[0] == self.last
                reached = args[0] if norms[key] else out
                seen[key].append(reached[:, 0] if first else reached[rows[-1]])

            return hook

        handles = [
            self.model.get_submodule(b.norm or b.out).register_forward_hook(collect((b.layer, b.kind)))
            for b in self.adapter.blocks
        ]
        with self.masking() as masking, torch.no_grad():
            masking.set(None if masks is None else masks.float()[None])
            for batch in self.batches:
                rows.append(batch["attention_mask"].bool())
                self.model(**batch)
        for handle in handles:
            handle.remove()
        found = {key: torch.cat(parts).double() for key, parts in seen.items()}
        return {key: own if norms[key] else own * weights[key[0]] for key, own in found.items()}

    def weights(self, first_token: bool) -> list[Tensor]:
        """Of the tokens that count, in each layer: (tokens, 1)."""
        rows = [batch["attention_mask"].bool() for batch in self.batches]
        found = []
        for index, parts in enumerate(residuals.weights(self.model, self.adapter, self.batches)):
            first = first_token and index == self.last
            found.append(torch.cat([x[:, 0] if first else x[own] for x, own in zip(parts, rows, strict=True)]))
        return found


def batches_of(seed: int = 1) -> list[dict[str, Tensor]]:
    torch.manual_seed(seed)
    found = []
    for lengths in LENGTHS:
        attention = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(5, 300, attention.shape) * attention + 2 * (1 - attention)
        found.append({"input_ids": ids, "attention_mask": attention})
    return found


@pytest.fixture(params=["bert", "llama"])
def subject(request: pytest.FixtureRequest, tiny_llama: Any) -> Subject:
    model = make_encoder(num_labels=3) if request.param == "bert" else tiny_llama(attention_bias=True, mlp_bias=True)
    return subject_of(model)


def subject_of(model: Any, units: tuple[str, ...] = ("attention", "ffn"), batches: Any = None) -> Subject:
    prunable = PrunableModel.of(model, units)
    return Subject(model, prunable.adapter, prunable.space, batches or batches_of())


def some_mask(space: Space, keep: float = 0.7, seed: int = 5) -> Tensor:
    return torch.rand(space.n, generator=torch.Generator().manual_seed(seed)) < keep


def tuned(subject: Subject, mask: Tensor, solver: Any = None, first_token: bool = False) -> tuple[Tensor, Report]:
    """Scales and report, by the solver of this name, or by a function in its place."""
    with pytest.MonkeyPatch.context() as patched:
        if callable(solver):
            patched.setattr(CG2, "solve", solver)
        tuning = TUNINGS[solver if isinstance(solver, str) else "cg2"]
        fitted = tuning.fit(subject, mask, Lesson(subject.batches, first_token))
        compensation, report = fitted.compensation, fitted.report
    assert compensation.scales is not None
    return compensation.scales, report


def outcomes(report: Report) -> dict[tuple[int, str], str]:
    return {(row["layer"], row["kind"]): row["outcome"] for row in report}


@pytest.mark.parametrize("keep", [0.3, 0.7])
@pytest.mark.parametrize("name", TUNINGS)
def test_no_block_gets_worse_and_some_get_better(subject: Subject, name: str, keep: float) -> None:
    _, report = tuned(subject, some_mask(subject.space, keep), name)
    assert [(row["layer"], row["kind"]) for row in report] == [(b.layer, b.kind) for b in subject.adapter.blocks]
    assert all(row["error"] <= row["binary_error"] for row in report)
    tuned_rows = [row for row in report if row["outcome"] == "tuned"]
    assert all(row["error"] < row["binary_error"] for row in tuned_rows)
    assert len([row for row in tuned_rows if row["error"] < 0.95 * row["binary_error"]]) >= 2


@pytest.mark.parametrize("first_token", [False, True])
def test_reported_errors_are_those_of_whole_forwards(subject: Subject, first_token: bool) -> None:
    """Each block sees what the tuned blocks before it produce, and aims at the dense model's output."""
    mask = some_mask(subject.space)
    scales, report = tuned(subject, mask, first_token=first_token)
    wanted = subject.block_outputs(None, first_token)
    got = subject.block_outputs(scales, first_token)
    for row in report:
        key = row["layer"], row["kind"]
        expected = float((got[key] - wanted[key]).square().sum())
        assert row["error"] == pytest.approx(expected, rel=1e-2, abs=1e-4 * float(wanted[key].square().sum()))


def test_binary_errors_are_those_of_a_block_with_its_binary_mask(subject: Subject) -> None:
    mask = some_mask(subject.space)
    scales, report = tuned(subject, mask)
    wanted = subject.block_outputs(None, False)
    for row in report:
        key = row["layer"], row["kind"]
        binary = scales.clone()
        subject.space.views(binary)[key].copy_(subject.space.views(mask.float())[key])
        expected = float((subject.block_outputs(binary, False)[key] - wanted[key]).square().sum())
        assert row["binary_error"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", TUNINGS)
def test_nothing_pruned_needs_no_scales(subject: Subject, name: str) -> None:
    scales, _ = tuned(subject, torch.ones(subject.space.n, dtype=torch.bool), name)
    torch.testing.assert_close(scales, torch.ones(subject.space.n), atol=0.02, rtol=0)


def test_pruned_units_have_scale_zero_and_the_mask_stays_as_it_was(subject: Subject) -> None:
    mask = some_mask(subject.space)
    before = mask.clone()
    scales, _ = tuned(subject, mask)
    assert torch.equal(mask, before)
    assert (scales.dtype, scales.shape) == (torch.float32, (subject.space.n,))
    assert not scales[~mask].any()
    assert scales[mask].all()
    assert (scales[mask] != 1).any()


@pytest.mark.parametrize("name", TUNINGS)
def test_the_tuned_model_is_closer_to_the_dense_one(subject: Subject, name: str) -> None:
    mask = some_mask(subject.space)
    scales, _ = tuned(subject, mask, name)
    dense, binary, fitted = (subject.logits(masks) for masks in (None, mask, scales))
    far, near = (
        sum(float((x - y).square().sum()) for x, y in zip(dense, other, strict=True)) for other in (binary, fitted)
    )
    assert near < 0.95 * far


def test_padding_has_no_say(subject: Subject) -> None:
    mask = some_mask(subject.space)
    expected, _ = tuned(subject, mask)
    other = []
    for batch in subject.batches:
        attention = functional.pad(batch["attention_mask"], (0, 6))
        ids = torch.where(attention.bool(), functional.pad(batch["input_ids"], (0, 6)), 77)
        other.append({"input_ids": ids, "attention_mask": attention})
    found, _ = tuned(subject_of(subject.model, batches=other), mask)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)


def test_without_an_attention_mask_all_tokens_count(subject: Subject) -> None:
    mask = some_mask(subject.space)
    bare = [{"input_ids": batch["input_ids"]} for batch in subject.batches]
    full = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in bare]
    found, expected = (tuned(subject_of(subject.model, batches=batches), mask)[0] for batches in (bare, full))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
    assert not torch.allclose(found, tuned(subject, mask)[0], atol=5e-3)


def test_the_first_token_matters_in_the_last_layer_alone(subject: Subject) -> None:
    mask = some_mask(subject.space)
    all_tokens, first = (subject.space.views(tuned(subject, mask, first_token=flag)[0]) for flag in (False, True))
    for (layer, kind), view in all_tokens.items():
        assert torch.equal(view, first[layer, kind]) == (layer < subject.last), (layer, kind)


@dataclass(frozen=True)
class Batch:
    """What the tuning asks of a task."""

    encoded: dict[str, Tensor]

    @property
    def lengths(self) -> Tensor:
        return self.encoded["attention_mask"].sum(1)

    def inputs(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self.encoded.items()}

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_classifier_is_tuned_on_the_token_that_it_reads(family: str, tiny_llama: Any) -> None:
    """An encoder's head reads the first token, a decoder's the last: there the first token has seen nothing."""
    if family == "bert":
        model: Any = make_encoder(num_labels=2)
    else:
        model = LlamaForSequenceClassification(tiny_llama().config).eval().requires_grad_(False)
        model.model.load_state_dict(tiny_llama().model.state_dict())
    config = validated(
        "task=glue/sst2",
        "budget=flops",
        "optimizer=kwon",
        "tuning=cg2",
        "tuning.damp=0.01",
    )
    prunable, task = PrunableModel.of(model), Batch(batches_of()[0])
    mask = some_mask(prunable.units)
    found = prunable.units.views(fit(prunable, mask, task, config.tuning).compensation.scales)  # type: ignore[arg-type]
    fitted = task.lengths[:-1]  # the last one is held out
    batches = [task.inputs(fitted.argsort(stable=True))]
    first = config.tuning.fit(prunable, mask, Lesson(batches, True)).compensation  # type: ignore[arg-type]
    expected = prunable.units.views(first.scales)  # type: ignore[arg-type]
    same = [torch.equal(found[key], expected[key]) for key in found if key[0] == len(prunable.adapter.layers) - 1]
    assert same == [family == "bert"] * 2


NOTHING = {
    "none": lambda right: None,
    "not a number": lambda right: torch.full_like(right, torch.nan),
    "infinite": lambda right: torch.full_like(right, torch.inf),
    "beyond the limit": lambda right: torch.full_like(right, 9.5),
    "beyond the negative limit": lambda right: torch.full_like(right, -11.5),
    "worse": lambda right: torch.full_like(right, 5.0),
}


@pytest.mark.parametrize("call", [0, 3, 5])
@pytest.mark.parametrize("kind", NOTHING)
def test_a_block_that_fails_stays_binary_and_the_others_are_tuned(subject: Subject, kind: str, call: int) -> None:
    calls = []

    def solver(tuning: CG2, matrix: Tensor, right: Tensor) -> Tensor | None:
        calls.append(len(right))
        return (
            NOTHING[kind](right) if len(calls) == call + 1 else cg2(matrix, right, tuning.tolerance, tuning.iterations)
        )

    mask = some_mask(subject.space)
    scales, report = tuned(subject, mask, solver)
    block = subject.adapter.blocks[call]
    own = subject.space.views(mask)[block.layer, block.kind]
    assert torch.equal(subject.space.views(scales)[block.layer, block.kind], own.float())
    assert report[call]["error"] == report[call]["binary_error"]
    found = outcomes(report)
    expected = {"none": "no solution", "not a number": "no solution", "infinite": "no solution", "worse": "no gain"}
    assert found.pop((block.layer, block.kind)) == expected.get(kind, "beyond the limit")
    assert set(found.values()) == {"tuned"}
    assert calls == [int(subject.space.views(mask)[b.layer, b.kind].sum()) for b in subject.adapter.blocks]


def test_a_block_without_units_is_left_out(subject: Subject) -> None:
    mask = some_mask(subject.space)
    for key in ((0, "attention"), (1, "ffn")):
        subject.space.views(mask)[key].zero_()
    scales, report = tuned(subject, mask)
    keys = {(b.layer, b.kind) for b in subject.adapter.blocks}
    assert set(outcomes(report)) == keys - {(0, "attention"), (1, "ffn")}
    assert not scales[~mask].any()


def test_only_the_units_of_the_space_are_tuned(subject: Subject) -> None:
    subject = subject_of(subject.model, ("ffn",))
    scales, report = tuned(subject, some_mask(subject.space))
    assert scales.shape == (subject.space.n,)
    assert {row["kind"] for row in report} == {"ffn"}


def test_the_model_is_as_it_was(subject: Subject) -> None:
    before = [x.clone() for x in subject.logits(None)]
    tuned(subject, some_mask(subject.space))
    hooks = [h for m in subject.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not hooks
    assert all(torch.equal(x, y) for x, y in zip(subject.logits(None), before, strict=True))


def test_a_failing_solver_leaves_no_hooks(subject: Subject) -> None:
    def solver(*arguments: Any) -> Tensor:
        raise ArithmeticError("as asked")

    with pytest.raises(ArithmeticError):
        tuned(subject, some_mask(subject.space), solver)
    hooks = [h for m in subject.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not hooks


WIDTHS = pytest.mark.parametrize("width", [1, 5])
UNITS, OUT = 4, 6
TOKENS = (7, 3, 12)  # of the batches


def token_batches(width: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs (tokens, F) and targets (tokens, d)."""
    return [(torch.randn(tokens, UNITS * width), torch.randn(tokens, OUT)) for tokens in TOKENS]


def explicit(weight: Tensor, width: int, seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A (tokens * d, units), column by column, and b, float64."""
    x, target = (torch.cat(part).double() for part in zip(*seen, strict=True))
    columns = []
    for unit in range(weight.shape[1] // width):
        own = slice(unit * width, (unit + 1) * width)
        columns.append((x[:, own] @ weight.double()[:, own].T).flatten())
    return torch.stack(columns, 1), target.flatten()


def equations_of(weight: Tensor, width: int, seen: list[tuple[Tensor, Tensor]]) -> NormalEquations:
    equations = NormalEquations(weight, width)
    for x, target in seen:
        equations.add(x, target)
    return equations


@WIDTHS
def test_matrix_and_right_hand_side_are_those_of_the_columns(width: int) -> None:
    weight, seen = torch.randn(OUT, UNITS * width), token_batches(width)
    a, b = explicit(weight, width, seen)
    matrix, right = equations_of(weight, width, seen).system()
    assert matrix.shape == (UNITS, UNITS)
    assert (matrix.dtype, right.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(matrix, a.T @ a, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(right, a.T @ b, rtol=1e-5, atol=1e-4)


@WIDTHS
@given(values=st.lists(st.floats(-3, 3), min_size=UNITS, max_size=UNITS))
def test_error_is_the_squared_distance_to_the_target(width: int, values: list[float]) -> None:
    torch.manual_seed(1)
    weight, seen = torch.randn(OUT, UNITS * width), token_batches(width)
    a, b = explicit(weight, width, seen)
    scales = torch.tensor(values, dtype=torch.float64)
    expected = float((a @ scales - b).square().sum())
    assert equations_of(weight, width, seen).error(scales) == pytest.approx(expected, rel=1e-5, abs=1e-3)


@WIDTHS
def test_batches_add_up(width: int) -> None:
    weight, seen = torch.randn(OUT, UNITS * width), token_batches(width)
    one = equations_of(weight, width, [tuple(torch.cat(part) for part in zip(*seen, strict=True))])  # type: ignore[list-item]
    many = equations_of(weight, width, seen)
    for left, right in zip(one.system(), many.system(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    assert many.error(torch.ones(UNITS).double()) == pytest.approx(one.error(torch.ones(UNITS).double()), rel=1e-5)


@WIDTHS
def test_half_precision_inputs_are_summed_in_full_precision(width: int) -> None:
    weight = torch.randn(OUT, UNITS * width).bfloat16()
    seen = [(x.bfloat16(), target.bfloat16()) for x, target in token_batches(width)]
    a, b = explicit(weight.float(), width, [(x.float(), target.float()) for x, target in seen])
    matrix, right = equations_of(weight, width, seen).system()
    torch.testing.assert_close(matrix, a.T @ a, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(right, a.T @ b, rtol=1e-5, atol=1e-4)
