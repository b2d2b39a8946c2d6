"""Labels as numbers, whatever they were written as, in one order of classes; what is no label is refused."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from transformers import PreTrainedModel

from policyprune.config.schema import Classification
from policyprune.errors import UsageError

GENERIC = re.compile(r"(label|class)?_?\d+")


@dataclass(frozen=True)
class ClassNames:
    """Names of the classes in the order of the labels; `ordered` is False where words in the data alone give them."""

    names: list[str]
    ordered: bool = True


def plain(name: object) -> str:
    """A class's name without what differs between spellings: case, spaces, hyphens, underscores."""
    return re.sub(r"[\W_]+", "_", str(name).strip().casefold()).strip("_")


def names_of(splits: dict[str, Dataset], config: Classification) -> ClassNames | None:
    """What the classes are called: by the config, by the data's own class names, or by the words in the data.

    None where nothing names them: the numbers in the data count then.
    """
    names_by_split = {split: _feature_names(rows, config) for split, rows in splits.items()}
    if config.classes == 1:
        return None
    if config.label_names:
        if len(config.label_names) != config.classes:
            raise UsageError(f"task.label_names: {len(config.label_names)} names for task.classes={config.classes}")
        if len(set(map(plain, config.label_names))) < config.classes:
            raise UsageError(f"task.label_names: {', '.join(config.label_names)} names two classes alike")
        for split, names in names_by_split.items():
            if names and set(map(plain, names)) != set(map(plain, config.label_names)):
                raise UsageError(
                    f"task.label_names: {', '.join(config.label_names)}, but {split} names its classes "
                    f"{', '.join(names)}; rename one of them, or task.label_names=[] takes the data's"
                )
        return ClassNames(list(config.label_names))
    stated = {split: names for split, names in names_by_split.items() if names}
    for split, names in stated.items():
        first_split, first = next(iter(stated.items()))
        if set(map(plain, names)) != set(map(plain, first)):
            raise UsageError(
                f"task.label_names: {split} names its classes {', '.join(names)}, {first_split} "
                f"{', '.join(first)}; rename them in the data"
            )
    if stated:
        return ClassNames(next(iter(stated.values())))
    words: set[str] = set()
    for rows in splits.values():
        labels = rows[config.label_column][:]
        words |= {label.strip() for label in labels if isinstance(label, str) and not _integer(label)} - {""}
    if not words:
        return None
    if len({plain(word) for word in words}) > config.classes:
        some = ", ".join(sorted(words)[:8])
        raise UsageError(f"task.classes: {config.classes}, but the labels are {len(words)} words: {some}")
    return ClassNames(sorted({plain(word): word for word in sorted(words)}.values()), ordered=False)


def _feature_names(rows: Dataset, config: Classification) -> list[str] | None:
    feature = rows.features[config.label_column]
    if not isinstance(feature, ClassLabel) or all(GENERIC.fullmatch(plain(name)) for name in feature.names):
        return None
    return list(feature.names)


def _numbered(rows: Dataset, config: Classification) -> list[int] | None:
    """The class of each stored value where the data's own names are numbers in some order, as in ["0", "10", "2"]."""
    feature = rows.features[config.label_column]
    if not isinstance(feature, ClassLabel):
        return None
    digits = [re.search(r"\d+$", plain(name)) for name in feature.names]
    numbers = [int(match[0]) for match in digits if match]
    return numbers if sorted(numbers) == list(range(len(digits))) else None


def labels_of(rows: Dataset, split: str, config: Classification, names: ClassNames | None) -> Tensor:
    """Class numbers (N,) int64 in the order of `names`, or scores (N,) float32 of a regression.

    UsageError for values that are none, with the first of them and how many there are.
    """
    values = list(rows[config.label_column])
    if config.classes == 1:
        return torch.tensor(_all(values, _score, "are no numbers", split, config), dtype=torch.float)
    feature_names, numbered = _feature_names(rows, config), _numbered(rows, config)
    order = {plain(name): index for index, name in enumerate(names.names if names else [])}

    def number(value: Any) -> int | None:
        if isinstance(value, str) and not _integer(value):
            return order.get(plain(value))
        if isinstance(value, str):
            value = int(value)
        if isinstance(value, float) and value.is_integer():  # as tables with a gap write whole numbers
            value = int(value)
        if names and not names.ordered:
            return None  # where words say what the classes are, a number says nothing
        if not isinstance(value, int) or not 0 <= value < config.classes:
            return None
        if feature_names and order:
            return order[plain(feature_names[value])]
        return numbered[value] if numbered else int(value)

    numbers = [] if names and not names.ordered else [f"0 to {config.classes - 1}"]
    choices = " or ".join([*numbers, *([", ".join(names.names)] if names else [])])
    return torch.tensor(_all(values, number, f"are not {choices}{_hint(values, config)}", split, config))


def _integer(text: str) -> bool:
    return re.fullmatch(r"\s*-?\d+\s*", text) is not None


def _score(value: Any) -> float | None:
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return score if math.isfinite(score) else None


def _hint(values: Sequence[Any], config: Classification) -> str:
    numbers = {int(value) for value in values if isinstance(value, int) or (isinstance(value, str) and _integer(value))}
    if numbers == {-1}:
        return "; -1 stands for labels that are kept secret, take another split"
    if numbers and min(numbers) == 1 and max(numbers) == config.classes:
        return "; count the classes from 0"
    return ""


def _all(
    values: Sequence[Any], convert: Callable[[Any], Any], fault: str, split: str, config: Classification
) -> list[Any]:
    converted = [convert(value) for value in values]
    wrong = [row for row, value in enumerate(converted) if value is None]
    if wrong:
        raise UsageError(
            f"task.label_column: {len(wrong)} of {len(converted)} labels of {split} {fault} (the first is "
            f"{values[wrong[0]]!r} in row {wrong[0] + 1})"
        )
    return converted


def model_names(model: PreTrainedModel) -> dict[str, int] | None:
    """The classes that a model names, without differences in spelling; None where it only counts them.

    UsageError where the two maps of its config contradict each other.
    """
    config = model.config
    by_id = _named({plain(name): int(index) for index, name in (config.id2label or {}).items()})
    by_label = _named({plain(name): int(index) for name, index in (config.label2id or {}).items()})
    if by_id and by_label and by_id != by_label:
        raise UsageError(
            f"model.source: id2label of its config.json has the classes {_ordered(by_id)}, label2id "
            f"{_ordered(by_label)}; mend the wrong one"
        )
    return by_id or by_label


def _named(classes: dict[str, int]) -> dict[str, int] | None:
    return None if not classes or all(GENERIC.fullmatch(name) for name in classes) else classes


def _ordered(classes: dict[str, int]) -> str:
    return ", ".join(sorted(classes, key=lambda name: classes[name]))


def aligned(labels: Tensor, names: ClassNames | None, model: PreTrainedModel) -> Tensor:
    """The labels in the order of the model's classes, where model and data name them; else as they are."""
    classes = model_names(model)
    if names is None or classes is None:
        return labels
    return torch.tensor([classes[plain(name)] for name in names.names])[labels]


def check_names(names: ClassNames | None, model: PreTrainedModel) -> None:
    """UsageError where labels that have names cannot be told apart in the model."""
    classes = model_names(model)
    if names is None:
        return
    if classes is None:
        if not names.ordered:
            raise UsageError(
                f"task.label_names: the labels are words ({', '.join(names.names)}), and the model counts its classes "
                f"only; give their order, as in task.label_names=[{','.join(names.names)}]"
            )
        return
    of_data = {plain(name) for name in names.names}
    if of_data - set(classes) or (names.ordered and set(classes) != of_data):
        raise UsageError(
            f"task.label_names: the data name their classes {', '.join(names.names)}, the model {', '.join(classes)}; "
            "rename them in the data or in the model's config.json (id2label, label2id)"
        )


def name_classes(model: PreTrainedModel, names: ClassNames, config: Classification) -> None:
    """Call the classes of a head that is to be trained as the data do, unless it has these names in another order.

    UsageError where the data have fewer names than the head has classes.
    """
    if len(names.names) != config.classes:
        raise UsageError(f"task.classes: {config.classes}, but the labels are only {', '.join(names.names)}")
    if set(model_names(model) or {}) != {plain(name) for name in names.names}:
        model.config.id2label = dict(enumerate(names.names))
        model.config.label2id = {name: index for index, name in enumerate(names.names)}
