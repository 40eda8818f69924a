"""Tasks for tests, used as `module:Class`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedstream.dtypes import DataType
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning, TensorSpec
from fedtask.metrics import binary_evaluation
from fedtask.task import Evaluation, FineTuned, Report, SiteOptions, SiteSummary, Weights


class Shapes:
    """Random tensors of awkward shapes; training adds a constant. Settings: `large_mib` of the largest tensor."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._large_mib = float(settings.get("large_mib", "0.001"))

    def meaning(self) -> TaskMeaning:
        return TaskMeaning(("no", "yes"), "yes", "none")

    def schema(self) -> ModelSchema:
        return ModelSchema(
            (
                TensorSpec("scalar", DataType.FLOAT32, ()),
                TensorSpec("flags", DataType.BOOL, (3,), trainable=False),
                TensorSpec("empty", DataType.FLOAT32, (4, 0, 2)),
                TensorSpec("half", DataType.BFLOAT16, (5, 3)),
                TensorSpec("double", DataType.FLOAT64, (7,)),
                TensorSpec("large", DataType.FLOAT32, (int(self._large_mib * 2**18),)),
            )
        )

    def default_plan(self) -> Plan:
        return Plan(1, 1, 1.0, 0, 0)

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        return random_weights(self.schema(), seed)

    def open_site(self, options: SiteOptions) -> SiteSummary:
        return SiteSummary(10, {"train": {"no": 5, "yes": 5}}, synthetic=True)

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        return SiteSummary(4, {"holdout": {"no": 2, "yes": 2}}, synthetic=True)

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        trained = {name: values + 1 if values.dtype == np.float32 else values for name, values in base.items()}
        return FineTuned({name: np.asarray(values) for name, values in trained.items()}, 10, {}, [{"loss": 0.0}])

    def evaluate(self, weights: Weights) -> Evaluation:
        return binary_evaluation(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.6, 0.9]), ("no", "yes"), "yes")

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        return []

    def read_model(self, path: Path) -> Weights:
        raise NotImplementedError


class Talkative(Shapes):
    """Fails with a long line and a wall of numbers."""

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        raise RuntimeError("x" * 1000 + "\n" + "\n".join(["0.123 " * 200] * 50))


class Quitting(Shapes):
    """Ends its process after ten long lines."""

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        sys.stderr.write("".join(f"{number} {'y' * 1000}\n" for number in range(10)))
        sys.stderr.flush()
        os._exit(9)


class Helped(Shapes):
    """Starts a helper that would run for a minute, as a pool of data loaders does, and is killed beside it.

    The helper holds the worker's pipes. Settings: with `apart` it has a session of its own.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__({})
        self._apart = "apart" in settings

    def open_site(self, options: SiteOptions) -> SiteSummary:
        helper = subprocess.Popen(["sleep", "60"], start_new_session=self._apart)
        return SiteSummary(helper.pid, {}, synthetic=True)

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("nobody survives that")


class Piped(Shapes):
    """Has others work for it while it opens a site: a program that reads its input to the end, and forked processes.

    A site's examples are as many as they have counted together.
    """

    def open_site(self, options: SiteOptions) -> SiteSummary:
        said = subprocess.run(["cat"], stdout=subprocess.PIPE, check=True).stdout
        with multiprocessing.get_context("fork").Pool(2) as pool:
            counted = sum(pool.map(abs, [-2, 1]))
        return SiteSummary(counted + len(said), {}, synthetic=True)


class Advancing(Shapes):
    """Shows a bar of progress that never ends its line, and is killed while it does when it is to train."""

    def open_site(self, options: SiteOptions) -> SiteSummary:
        for _ in range(700):  # more than one line of the worker's answers may have
            sys.stderr.write("\r" + "#" * 99_999)
        return super().open_site(options)

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        sys.stderr.write("\r 10%\r 20%\r")
        sys.stderr.write("out of film\n\n")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("nobody survives that")


class Killed(Shapes):
    """Is killed when it makes its first model or opens a holdout, as by a system without memory.

    Settings: `deaths`, a file with one letter for each time that it is still to die.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__({})
        self._deaths = Path(settings["deaths"])

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        self._die()
        return super().initial_weights(seed, source)

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        self._die()
        return super().open_holdout(folder, classes)

    def _die(self) -> None:
        if left := self._deaths.read_text():
            self._deaths.write_text(left[1:])
            os.kill(os.getpid(), signal.SIGKILL)


class Slow(Shapes):
    """Takes a minute to read a site's data or to make its first model, and hears nothing meanwhile."""

    def open_site(self, options: SiteOptions) -> SiteSummary:
        print("reading the data", file=sys.stderr, flush=True)
        time.sleep(60)
        return super().open_site(options)

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        print("making the model", file=sys.stderr, flush=True)
        time.sleep(60)
        return super().initial_weights(seed, source)


class Deaf(Shapes):
    """Trains for an hour without a report, and hears nothing meanwhile."""

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        print("training", file=sys.stderr, flush=True)
        time.sleep(3600)
        raise AssertionError("nobody waits for that")


class SlowEnd(Shapes):
    """Takes a minute to write a model for people, and hears nothing meanwhile."""

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        print("writing the model", file=sys.stderr, flush=True)
        time.sleep(60)
        return super().export(weights, folder, stem)


class Unplugged(Shapes):
    """Moves the folder `state` away from beside the models for people when the last of them is written.

    So does a disk that is unplugged or unmounted then. Settings: `last`, with which that one's name begins.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__({})
        self._last = settings["last"]

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        state = folder / "state"
        if stem.startswith(self._last) and state.exists():
            state.rename(folder / "away")
        return super().export(weights, folder, stem)


def random_weights(schema: ModelSchema, seed: int) -> dict[str, np.ndarray]:
    """Different random values for every tensor."""
    generator = np.random.default_rng(seed)
    return {spec.name: _random(generator, spec) for spec in schema}


def _random(generator: np.random.Generator, spec: TensorSpec) -> np.ndarray:
    if spec.dtype is DataType.BOOL:
        return generator.integers(0, 2, spec.shape).astype(np.bool_)
    # Few enough bits that they lie on any round's grid: a mean over a single update gives back its very bits.
    return np.asarray(generator.integers(-127, 128, spec.shape) / 64).astype(spec.dtype.numpy)
