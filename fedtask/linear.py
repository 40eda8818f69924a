"""A tiny task without tensorflow: logistic regression on generated numbers. For tests, benchmarks and first steps.

It is made, trained and evaluated in milliseconds, and can be asked to carry any amount of further tensors (`tensors`,
`tensor_kib`) and to take any time for an epoch (`seconds`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from fedstream.dtypes import DataType
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning, TensorSpec
from fedtask.checkpoints import in_schema_order
from fedtask.division import divide, limited
from fedtask.metrics import binary_evaluation
from fedtask.settings import option, read_settings
from fedtask.task import (
    EpochReport,
    Evaluation,
    FineTuned,
    Metrics,
    Report,
    ReportWords,
    SiteOptions,
    SiteSummary,
    TaskError,
    Weights,
)

Floats = npt.NDArray[np.float64]

_VAL_FRACTION = 0.15
_HOLDOUT_EXAMPLES = 500
_TICK_SECONDS = 0.02
"""Longest time without a report while `seconds` pass: what a cancellation waits for at most."""
_EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class LinearSettings:
    """The task's settings."""

    features: int = option(10, "numbers per example", low=1, high=100_000)
    examples: int = option(200, "generated examples per site", low=4, high=10_000_000)
    noise: float = option(0.0, "share of labels that are flipped", low=0, high=0.5)
    data_seed: int = option(0, "seed of the generated examples", low=0)
    classes: str = option("no,yes", "the two class names, label 0 first")
    tensors: int = option(0, "further tensors that training changes", low=0, high=100_000)
    frozen_tensors: int = option(0, "further tensors that never change", low=0, high=100_000)
    tensor_kib: int = option(64, "size of each further tensor in KiB", low=1, high=2**21)
    seconds: float = option(0.0, "time an epoch takes at least, spent waiting", low=0, high=86_400)
    epochs: int = option(3, "epochs of the default plan", low=1, high=10_000)
    batch_size: int = option(32, "batch size of the default plan", low=1)
    learning_rate: float = option(0.5, "learning rate of the default plan", low=1e-9, high=100)
    patience: int = option(0, "epochs without a better validation loss until a fine-tune stops; 0 for never", low=0)


@dataclass(frozen=True, slots=True)
class _Examples:
    """`x` is `float64 [n, features]`, `y` is `int64 [n]`, 0 or 1."""

    x: Floats
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: npt.NDArray[np.int64]) -> _Examples:
        return _Examples(self.x[indices], self.y[indices])


class Linear:
    """Logistic regression by mini-batch gradient descent; see `fedtask.task.Task` for the members.

    A folder, where one is given, holds `train.npz` and perhaps `val.npz` (a holdout: `holdout.npz`) with arrays `x`
    `[n, features]` and `y` `[n]`.
    """

    report_words = ReportWords(loss="cross-entropy")

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = read_settings(LinearSettings, settings)
        self._classes = tuple(name.strip() for name in self._settings.classes.split(","))
        if len(self._classes) != 2 or not all(self._classes) or len(set(self._classes)) != 2:
            raise ValueError(f"setting classes is two names with a comma between, not {self._settings.classes!r}")
        self._train: _Examples | None = None
        self._val: _Examples | None = None
        self._holdout: _Examples | None = None

    def meaning(self) -> TaskMeaning:
        return TaskMeaning(self._classes, self._classes[1], f"{self._settings.features} numbers as they are")

    def schema(self) -> ModelSchema:
        length = self._settings.tensor_kib * 256
        further = [TensorSpec(f"further_{i:05d}", DataType.FLOAT32, (length,)) for i in range(self._settings.tensors)]
        frozen = [
            TensorSpec(f"frozen_{i:05d}", DataType.FLOAT32, (length,), trainable=False)
            for i in range(self._settings.frozen_tensors)
        ]
        weights = TensorSpec("weights", DataType.FLOAT32, (self._settings.features,))
        return ModelSchema((weights, TensorSpec("bias", DataType.FLOAT32, ()), *further, *frozen))

    def default_plan(self) -> Plan:
        chosen = self._settings
        return Plan(chosen.epochs, chosen.batch_size, chosen.learning_rate, chosen.patience, seed=0)

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        """Zeros for the regression, random numbers for the further tensors; or what the file `source` holds."""
        if source is not None:
            return self.read_model(Path(source))
        rng = np.random.default_rng([seed, 1])
        regression = {"weights", "bias"}
        return {
            spec.name: np.zeros(spec.shape, np.float32)
            if spec.name in regression
            else rng.standard_normal(spec.shape, np.float32)
            for spec in self.schema()
        }

    def open_site(self, options: SiteOptions) -> SiteSummary:
        train, val = self._generated_site(options) if options.folder is None else self._read_site(options)
        train = train.take(limited(train.y, options.max_examples, options.division_seed))
        self._train, self._val = train, val
        counts = {"train": self._counts(train), "val": self._counts(val)}
        return SiteSummary(len(train), counts, synthetic=options.folder is None)

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        if folder is None:
            self._holdout = self._generate(_HOLDOUT_EXAMPLES, stream=1)
        else:
            self._holdout = self._read(folder / "holdout.npz")
        counts = {"holdout": self._counts(self._holdout)}
        return SiteSummary(len(self._holdout), counts, synthetic=folder is None)

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        if self._train is None or self._val is None:
            raise TaskError("open_site comes before fine_tune")
        regression = _Regression(base["weights"].astype(np.float64), float(base["bias"]))
        base_scores = regression.scores(self._val, "base_")
        rng = np.random.default_rng([plan.seed, 2])
        history: list[Metrics] = []
        best, best_loss, best_epoch = regression.copy(), np.inf, 0
        for epoch in range(1, plan.epochs + 1):
            self._run_epoch(regression, plan, rng, epoch, report)
            history.append({**regression.scores(self._train, ""), **regression.scores(self._val, "val_")})
            report(EpochReport("training", epoch, plan.epochs, epoch / plan.epochs, history[-1]))
            loss = history[-1]["val_loss"]
            if plan.early_stopping_patience == 0 or loss is None or loss < best_loss:
                best, best_loss, best_epoch = regression.copy(), np.inf if loss is None else loss, epoch
            elif epoch - best_epoch >= plan.early_stopping_patience:
                break
        weights = self._moved(base, best, plan.seed)
        return FineTuned(weights, len(self._train), {**history[best_epoch - 1], **base_scores}, history)

    def evaluate(self, weights: Weights) -> Evaluation:
        if self._holdout is None:
            raise TaskError("open_holdout comes before evaluate")
        regression = _Regression(weights["weights"].astype(np.float64), float(weights["bias"]))
        return binary_evaluation(
            self._holdout.y, regression.probabilities(self._holdout.x), self._classes, self._classes[1]
        )

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        """Write `stem.safetensors`."""
        path = folder / f"{stem}.safetensors"
        save_file({name: np.asarray(values, order="C") for name, values in weights.items()}, path)
        return [path]

    def read_model(self, path: Path) -> Weights:
        """Read a `.safetensors` or `.npz` file with the tensors of the schema."""
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as file:
                    tensors = {name: np.asarray(file[name]) for name in file.files}
            else:
                tensors = load_file(path)
        except FileNotFoundError:
            raise TaskError(f"there is no file {path}") from None
        except Exception as error:  # the readers' own errors for bad content have no common parent
            raise TaskError(f"{path} is neither a .safetensors nor an .npz file: {error}") from error
        return in_schema_order(self.schema(), tensors, path)

    def _run_epoch(
        self, regression: _Regression, plan: Plan, rng: np.random.Generator, epoch: int, report: Report
    ) -> None:
        assert self._train is not None
        started = time.monotonic()
        order = rng.permutation(len(self._train))
        for start in range(0, len(order), plan.batch_size):
            regression.step(self._train.take(order[start : start + plan.batch_size]), plan.learning_rate)
        while (elapsed := time.monotonic() - started) < self._settings.seconds:
            fraction = (epoch - 1 + elapsed / self._settings.seconds) / plan.epochs
            report(EpochReport("training", epoch, plan.epochs, fraction))
            time.sleep(min(_TICK_SECONDS, self._settings.seconds - elapsed))

    def _moved(self, base: Weights, regression: _Regression, seed: int) -> dict[str, np.ndarray]:
        """Every tensor of the schema; the further ones moved by a number of their own, which costs next to nothing."""
        rng = np.random.default_rng([seed, 3])
        trained: dict[str, np.ndarray] = {
            "weights": regression.weights.astype(np.float32),
            "bias": np.array(regression.bias, np.float32),
        }
        for spec in self.schema():
            if spec.name not in trained:
                moves = spec.trainable
                trained[spec.name] = base[spec.name] + np.float32(rng.normal()) if moves else base[spec.name]
        return trained

    def _generated_site(self, options: SiteOptions) -> tuple[_Examples, _Examples]:
        examples = self._generate(self._settings.examples * options.num_shards, stream=0)
        shards = divide(examples.y, options.num_shards, options.division, options.division_seed)
        return _split(examples.take(shards[options.shard]))

    def _read_site(self, options: SiteOptions) -> tuple[_Examples, _Examples]:
        assert options.folder is not None
        train = self._read(options.folder / "train.npz")
        if options.num_shards > 1:
            shards = divide(train.y, options.num_shards, options.division, options.division_seed)
            return _split(train.take(shards[options.shard]))
        val = options.folder / "val.npz"
        return (train, self._read(val)) if val.exists() else _split(train)

    def _generate(self, num_examples: int, stream: int) -> _Examples:
        truth = np.random.default_rng([self._settings.data_seed, 4]).standard_normal(self._settings.features)
        rng = np.random.default_rng([self._settings.data_seed, 5, stream])
        x = rng.standard_normal((num_examples, self._settings.features))
        flipped = rng.random(num_examples) < self._settings.noise
        return _Examples(x, ((x @ truth > 0) ^ flipped).astype(np.int64))

    def _read(self, path: Path) -> _Examples:
        try:
            with np.load(path, allow_pickle=False) as file:
                x, y = np.asarray(file["x"], np.float64), np.asarray(file["y"], np.int64)
        except FileNotFoundError:
            raise TaskError(f"looked for {path}, with arrays x and y, and found no such file") from None
        except Exception as error:  # numpy's and zipfile's errors for bad content have no common parent
            raise TaskError(f"{path} is no .npz file with arrays x and y of numbers: {error}") from error
        if x.ndim != 2 or x.shape[1] != self._settings.features or y.shape != x.shape[:1] or not len(y):
            wanted = f"x [n, {self._settings.features}] and y [n] with n of 1 or more"
            raise TaskError(f"{path} has x {list(x.shape)} and y {list(y.shape)}; wanted {wanted}")
        if not np.isin(y, (0, 1)).all():
            raise TaskError(f"{path} has labels other than 0 and 1")
        return _Examples(x, y)

    def _counts(self, examples: _Examples) -> dict[str, int]:
        return dict(zip(self._classes, np.bincount(examples.y, minlength=2).tolist(), strict=True))


@dataclass(slots=True)
class _Regression:
    weights: Floats
    bias: float

    def copy(self) -> _Regression:
        return _Regression(self.weights.copy(), self.bias)

    def probabilities(self, x: Floats) -> Floats:
        # tanh form: exp would overflow for large negative logits.
        return np.asarray(0.5 * (1 + np.tanh(0.5 * (x @ self.weights + self.bias))), np.float64)

    def step(self, batch: _Examples, learning_rate: float) -> None:
        error = self.probabilities(batch.x) - batch.y
        self.weights -= learning_rate * (error @ batch.x) / len(batch)
        self.bias -= learning_rate * float(error.mean())

    def scores(self, examples: _Examples, prefix: str) -> Metrics:
        """Mean cross-entropy and accuracy, `None` where there is no example."""
        if not len(examples):
            return {f"{prefix}loss": None, f"{prefix}accuracy": None}
        p = np.clip(self.probabilities(examples.x), _EPSILON, 1 - _EPSILON)
        loss = -np.where(examples.y == 1, np.log(p), np.log1p(-p)).mean()
        return {f"{prefix}loss": float(loss), f"{prefix}accuracy": float(((p > 0.5) == examples.y).mean())}


def _split(examples: _Examples) -> tuple[_Examples, _Examples]:
    num_val = int(len(examples) * _VAL_FRACTION)
    indices = np.arange(len(examples))
    return examples.take(indices[num_val:]), examples.take(indices[:num_val])
