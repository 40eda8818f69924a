"""Model files of clients, aggregated and scored without a server, give what the federation gave, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedserver.exit_codes import ExitCode
from tests.support.processes import RunningServer, Said, Stage, stage

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]

SITES = ("site_0", "site_1")
TASK = ("--task", "linear", "--task-set", "tensors=3", "--task-set", "tensor_kib=1")


@dataclass(frozen=True, slots=True)
class Federation:
    """A federation of two rounds that is over, and the files of its last one. `models` are the clients', by rank."""

    scene: Stage
    server: RunningServer
    strategy: str
    base: Path
    result: Path
    models: tuple[str, ...]

    @property
    def last_round(self) -> Any:
        """Its record."""
        return self.server.summary["details"]["rounds"][-1]

    @property
    def examples(self) -> str:
        """The clients' training examples, as `--examples` takes them."""
        return ",".join(str(one["num_examples"]) for one in self.last_round["contributions"])

    def offline(self, *words: str) -> Said:
        """Run `fedserver` with the task of this federation."""
        return self.scene.command("fedserver", *words, *TASK)

    def aggregate(self, out: str, *options: str) -> Mapping[str, np.ndarray]:
        """What `fedserver aggregate` writes."""
        said = self.offline("aggregate", *self.models, "--strategy", self.strategy, "--out", out, *options)
        assert (said.status, said.err) == (0, "")
        assert said.out.startswith(f"wrote {out}\n")
        return load_file(self.scene.folder / out)


@pytest.fixture(scope="module", params=["rank_decay", "fedavg"])
def federation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation with each of two strategies; its sites have different numbers of examples."""
    with stage(tmp_path_factory.mktemp(request.param)) as scene:
        rules = ("--rounds", "2", "--min-clients", "2", "--holdout", "phantom", "--strategy", request.param)
        server = scene.server(*rules, tensors=3, tensor_kib=1)
        clients = [
            scene.client(name, server.listening, "--division", "quantity", shard=f"{number}/2")
            for number, name in enumerate(SITES)
        ]
        assert [client.wait() for client in clients] == [0, 0]
        assert server.wait() == 0
        for number in (1, 2):
            export = ("export", "--state", str(server.state), "--round", str(number), "--stem", f"round_{number}")
            said = scene.command("fedserver", *export, "--out", ".")  # the task is the federation's
            assert said.status == 0, said.err
        files = tuple(f"{name}/client_{name}_model.safetensors" for name in SITES)
        base, result = (scene.folder / f"round_{number}.safetensors" for number in (1, 2))
        yield Federation(scene, server, request.param, base, result, files)


def bits(tensors: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Every tensor's bytes."""
    return {name: values.tobytes() for name, values in tensors.items()}


def test_models_aggregated_offline_are_the_federations_bit_for_bit(federation: Federation) -> None:
    counts = federation.examples.split(",")
    assert counts[0] != counts[1]
    made = federation.aggregate("again.safetensors", "--examples", federation.examples, "--base", str(federation.base))
    assert bits(made) == bits(load_file(federation.result))
    assert bits(made) != bits(load_file(federation.base))


def test_models_aggregated_without_their_base_agree_within_a_unit_in_the_last_place(federation: Federation) -> None:
    made = federation.aggregate("near.safetensors", "--examples", federation.examples)
    for name, expected in load_file(federation.result).items():
        largest = max(np.abs(load_file(federation.scene.folder / model)[name]).max() for model in federation.models)
        assert np.abs(made[name].astype(float) - expected.astype(float)).max() <= np.spacing(np.float32(largest))


@pytest.mark.parametrize("federation", ["rank_decay"], indirect=True)  # the only one that weighs by rank
def test_order_of_the_files_is_their_rank(federation: Federation) -> None:
    made = federation.aggregate("ranked.safetensors")
    first, second = (load_file(federation.scene.folder / model) for model in federation.models)
    shares = np.array([1.0, 0.1 / 1.1])
    shares /= shares.sum()
    for name, values in made.items():
        expected = shares[0] * first[name].astype(float) + shares[1] * second[name].astype(float)
        largest = np.float32(max(np.abs(first[name]).max(), np.abs(second[name]).max()))
        assert np.abs(values.astype(float) - expected).max() <= np.spacing(largest)
    assert [one["weight"] for one in federation.last_round["contributions"]] == pytest.approx(list(shares))


def test_model_evaluated_offline_has_the_scores_of_its_round(federation: Federation) -> None:
    said = federation.offline("evaluate", str(federation.result), "--holdout", "phantom", "--json")
    assert said.status == 0
    assert said.json == federation.last_round["evaluation"]


def test_model_evaluated_offline_is_shown_with_every_score(federation: Federation) -> None:
    said = federation.offline("evaluate", str(federation.result), "--holdout", "phantom")
    metrics = federation.last_round["evaluation"]["metrics"]
    lines = said.out.splitlines()
    shown = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in lines if line.startswith("│")}
    assert shown == {name: f"{value:.4f}" for name, value in metrics.items()}
    assert "These are generated phantom images, not patients." in said.out


def test_model_of_other_settings_is_refused_with_where_they_are_given(federation: Federation) -> None:
    model = str(federation.result)
    said = federation.scene.command("fedserver", "evaluate", model, "--holdout", "phantom", "--task", "linear")
    assert said.status == ExitCode.BAD_CONFIGURATION
    assert "holds another model: " in said.err
    assert said.err.endswith("which the federation's report lists, give them with --task-set NAME=VALUE\n")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no file, not even of root")
def test_aggregate_to_a_folder_that_takes_no_file_says_so_before_the_work(federation: Federation) -> None:
    words = ("--strategy", "uniform", "--out", "/proc/self/x.safetensors")
    said = federation.offline("aggregate", *federation.models, *words)
    assert (said.status, said.out) == (ExitCode.BAD_CONFIGURATION, "")
    assert said.err.startswith("fedserver: --out: /proc/self cannot be written (")


def test_aggregate_with_a_holdout_shows_the_scores(federation: Federation) -> None:
    options = ("--examples", federation.examples, "--base", str(federation.base), "--holdout", "phantom")
    out = ("--strategy", federation.strategy, "--out", "scored.safetensors")
    said = federation.offline("aggregate", *federation.models, *out, *options)
    accuracy = federation.last_round["evaluation"]["metrics"]["accuracy"]
    assert said.status == 0
    assert f"{accuracy:.4f}" in next(line for line in said.out.splitlines() if line.startswith("│ accuracy"))


# What is wrong is named. These need models, but no federation.


def model_file(folder: Path, name: str, **changes: np.ndarray) -> str:
    tensors = {"weights": np.ones(10, np.float32), "bias": np.zeros((), np.float32), **changes}
    save_file(tensors, folder / name)
    return name


def refused(scene: Stage, *words: str) -> str:
    """The message with which `fedserver aggregate` refuses; it writes nothing."""
    said = scene.command("fedserver", "aggregate", "--task", "linear", "--out", "out.safetensors", *words)
    assert (said.status, said.out) == (ExitCode.BAD_CONFIGURATION, "")
    assert not (scene.folder / "out.safetensors").exists()
    return said.err.removeprefix("fedserver: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "fedavg weighs each model by its training examples: give --examples, or use --strategy uniform"),
        (["--examples", "3"], "--examples takes 2 positive numbers, one per model, such as 400,320; not '3'"),
        (["--examples", "3,0"], "--examples takes 2 positive numbers, one per model, such as 400,320; not '3,0'"),
        (["--examples", "a,b"], "--examples takes 2 positive numbers, one per model, such as 400,320; not 'a,b'"),
        (["--strategy", "median"], "unknown strategy 'median'; choose one of fedavg, uniform, rank_decay"),
    ],
)
def test_aggregate_with_wrong_options_says_what_it_takes(scene: Stage, options: list[str], message: str) -> None:
    models = [model_file(scene.folder, "a.safetensors"), model_file(scene.folder, "b.safetensors")]
    assert refused(scene, *models, *options) == message


def test_aggregate_of_models_that_do_not_agree_names_the_file_and_the_tensor(scene: Stage) -> None:
    good = model_file(scene.folder, "a.safetensors")
    other = model_file(scene.folder, "b.safetensors", weights=np.ones(3, np.float32))
    message = "b.safetensors holds another model: weights is float32 [3] there and float32 [10] here"
    assert refused(scene, good, other, "--strategy", "uniform") == message
    assert refused(scene, good, "c.safetensors", "--strategy", "uniform") == "there is no file c.safetensors"


def test_aggregate_of_a_model_that_is_not_finite_leaves_nobody_out_in_silence_and_names_the_file(scene: Stage) -> None:
    good = model_file(scene.folder, "a.safetensors")
    broken = model_file(scene.folder, "b.safetensors", bias=np.array(np.nan, np.float32))
    for models in ((good, broken), (broken, good)):
        said = refused(scene, *models, "--strategy", "uniform")
        assert said.startswith("b.safetensors cannot be aggregated: tensor 'bias' holds nan at index []; ")


def test_aggregate_into_an_ending_that_the_task_does_not_write_says_which_it_does(scene: Stage) -> None:
    good = model_file(scene.folder, "a.safetensors")
    said = scene.command("fedserver", "aggregate", "--task", "linear", "--out", "out.h5", good)
    message = "fedserver: out.h5: this task writes .safetensors; give --out one of these endings\n"
    assert (said.status, said.err) == (ExitCode.BAD_CONFIGURATION, message)


def test_aggregate_into_a_folder_that_is_not_there_says_so(scene: Stage) -> None:
    good = model_file(scene.folder, "a.safetensors")
    for out, words in (
        ("nodir/x.safetensors", "there is no folder nodir; make it"),
        (".", ". is a folder; give --out"),
    ):
        said = scene.command("fedserver", "aggregate", "--task", "linear", "--strategy", "uniform", "--out", out, good)
        assert (said.status, said.out) == (ExitCode.BAD_CONFIGURATION, "")
        assert said.err.startswith(f"fedserver: {words}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--stem", "a/b"), "--stem is a name of a file, and 'a/b' is none; --out says where"),
        (("--out", "/dev/null/x"), "/dev/null/x cannot be made a folder to write to: Not a directory"),
        (("--task", "linear"), "the model is not this task's: its tensors have other names"),
    ],
)
@pytest.mark.parametrize("federation", ["fedavg"], indirect=True)
def test_export_that_cannot_be_made_says_which_option_is_wrong(
    federation: Federation, options: tuple[str, ...], words: str
) -> None:
    said = federation.scene.command("fedserver", "export", "--state", str(federation.server.state), *options)
    assert said.status == ExitCode.BAD_CONFIGURATION
    assert said.err.startswith(f"fedserver: {words}")
    assert said.err.count("\n") == 1
