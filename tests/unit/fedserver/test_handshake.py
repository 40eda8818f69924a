"""Who may take part, and what is said to those who may not. A moment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedserver.coordinator.population import Introduction
from fedserver.handshake import (
    Decline,
    DeclineReason,
    TheirTensors,
    check_introduction,
    check_meaning,
    compare_schemas,
)
from fedstream import limits
from fedstream.dtypes import DataType
from fedstream.errors import InvalidRequest
from fedstream.schema import ModelSchema, TaskMeaning, TensorDifference, TensorSpec

pytestmark = pytest.mark.numpy_task

HELLO = Introduction("alpha", 1, "fedstream 0.1.0")
MEANING = TaskMeaning(("no", "yes"), "yes", "rgb 224x224; x / 127.5 - 1")


def message_of(decline: Decline | None) -> str:
    assert decline is not None
    return decline.message


@pytest.mark.parametrize(("lowest", "highest"), [(1, 1), (0, 1), (1, 9), (0, 9)])
def test_client_that_speaks_the_version_among_others_is_welcome(lowest: int, highest: int) -> None:
    assert check_introduction(HELLO, lowest, highest) is None


@pytest.mark.parametrize(
    ("lowest", "highest", "side"), [(2, 3, "the server"), (2, 2, "the server"), (0, 0, "the client")]
)
def test_client_without_a_version_in_common_is_told_which_side_to_upgrade(lowest: int, highest: int, side: str) -> None:
    message = f"this server speaks protocol version 1, the client {lowest} to {highest}: upgrade {side}"
    assert check_introduction(HELLO, lowest, highest) == Decline(DeclineReason.PROTOCOL, message)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a\n", "x" * 65, "-a"])
def test_client_with_an_unfit_name_is_told_the_rule_and_the_option(name: str) -> None:
    decline = check_introduction(replace(HELLO, name=name), 1, 1)
    assert decline == Decline(
        DeclineReason.NAME,
        "a name has 1 to 64 characters of a-z A-Z 0-9 . _ - and starts with a letter or digit: give another --name",
    )


def test_client_without_examples_is_told_to_check_its_folder() -> None:
    decline = check_introduction(replace(HELLO, num_examples=0), 1, 1)
    message = "the client has no training examples: check its data folder"
    assert decline == Decline(DeclineReason.EXAMPLES, message)


def test_client_that_means_the_same_is_welcome() -> None:
    assert check_meaning(MEANING, TaskMeaning(("no", "yes"), "yes", MEANING.preprocessing)) is None


def test_client_whose_classes_have_other_names_is_told_the_option_that_mends_it() -> None:
    theirs = TaskMeaning(("healthy", "tumour"), "tumour", MEANING.preprocessing)
    decline = check_meaning(MEANING, theirs)
    assert decline is not None
    assert decline.reason is DeclineReason.MEANING
    assert decline.message.startswith(
        "this federation's classes are no, yes, in that order; the client's are healthy, tumour. If its folders "
        "only have other names, start it with --classes no=healthy,yes=tumour "
    )


@pytest.mark.parametrize(
    "classes",
    [("yes", "no"), ("yes", "tumour"), ("healthy", "no"), ("no", "yes", "maybe"), ("no",), ()],
    ids=lambda classes: ",".join(classes) or "none",
)
def test_client_whose_classes_would_flip_or_do_not_pair_is_told_of_no_option_that_maps_them(
    classes: tuple[str, ...],
) -> None:
    message = message_of(check_meaning(MEANING, TaskMeaning(classes, "yes", MEANING.preprocessing)))
    assert message.startswith("this federation's classes are no, yes, in that order; the client's are ")
    assert "--classes" not in message
    assert "use the same task, version and settings on both sides" in message


def test_client_with_one_class_of_another_name_is_told_to_map_this_one() -> None:
    message = message_of(check_meaning(MEANING, TaskMeaning(("no", "tumour"), "tumour", MEANING.preprocessing)))
    assert "--classes no=no,yes=tumour " in message


def test_client_with_another_positive_class_is_told_both() -> None:
    message = message_of(check_meaning(MEANING, replace(MEANING, positive_class="no")))
    assert message == "the positive class is yes here and no at the client: set the client's task to yes"


def test_client_with_another_preprocessing_is_told_both() -> None:
    message = message_of(check_meaning(MEANING, replace(MEANING, preprocessing="grey 96x96")))
    assert message == (
        "preprocessing differs: here `rgb 224x224; x / 127.5 - 1`, at the client `grey 96x96`; use the same task "
        "version and settings"
    )


def test_site_that_says_it_has_more_examples_than_one_may_have_is_told_what_to_do() -> None:
    assert check_introduction(replace(HELLO, num_examples=500), 1, 1, 500) is None
    decline = check_introduction(replace(HELLO, num_examples=10_000_000), 1, 1, 500)
    assert decline is not None
    assert decline.reason is DeclineReason.EXAMPLES
    assert decline.message.startswith("the client has 10,000,000 training examples, and a site of this federation at")
    assert "--max-examples" in decline.message


def tensors(count: int, **changes: TensorSpec) -> ModelSchema:
    specs = [TensorSpec(f"t{number}", DataType.FLOAT32, (number,)) for number in range(count)]
    return ModelSchema(tuple(changes.get(spec.name, spec) for spec in specs))


def test_schemas_that_differ_in_one_tensor_are_told_with_both_sides_of_it() -> None:
    mine, yours = TensorSpec("t1", DataType.FLOAT32, (1,)), TensorSpec("t1", DataType.FLOAT16, (1,), trainable=False)
    assert compare_schemas(tensors(3), tensors(3, t1=yours)) == Decline(
        DeclineReason.SCHEMA,
        "the client's model differs from the federation's in 1 tensors. The first: server has t1 float32 (1,) "
        "trainable, client has t1 float16 (1,) frozen. Use the same task, version and settings on both sides",
        [TensorDifference(mine, yours)],
        0,
    )


def test_client_whose_digest_is_not_that_of_its_own_schema_is_told_so() -> None:
    decline = compare_schemas(tensors(3), tensors(3))
    assert decline.message.startswith("the client's schema_sha256 is not the digest of the schema that it sent")
    assert "R-SCH-2" in decline.message


@pytest.mark.parametrize(("lacking", "shown", "more"), [(20, 20, 0), (21, 20, 1), (300, 20, 280)])
def test_schemas_that_differ_in_many_tensors_are_told_twenty_and_the_count_of_the_rest(
    lacking: int, shown: int, more: int
) -> None:
    decline = compare_schemas(tensors(lacking + 1), tensors(1))
    assert [difference.mine.name for difference in decline.differences if difference.mine] == [
        f"t{number}" for number in range(1, shown + 1)
    ]
    assert (decline.more_differences, f" in {lacking} tensors." in decline.message) == (more, True)
    assert "client has no such tensor" in decline.message


def test_schemas_of_which_only_the_client_has_a_tensor_are_told_so() -> None:
    decline = compare_schemas(tensors(1), tensors(2))
    assert "server has no such tensor, client has t1 float32 (1,) trainable" in decline.message


def test_schemas_that_do_not_differ_after_all_are_told_without_an_example() -> None:
    decline = compare_schemas(tensors(2), tensors(2))
    assert (list(decline.differences), decline.more_differences) == ([], 0)


@pytest.mark.parametrize("count", [1, 40, 3_000])
def test_schema_that_comes_in_parts_is_told_as_a_whole_one_and_kept_as_far_as_it_is_shown(count: int) -> None:
    theirs = TheirTensors(tensors(2))
    strange = [TensorSpec(f"s{number}", DataType.FLOAT32, (1,)) for number in range(count)]
    specs = [*strange, *tensors(2)]
    for start in range(0, len(specs), 1_000):
        theirs.add(specs[start : start + 1_000])
    assert theirs.compare() == compare_schemas(tensors(2), ModelSchema(tuple(specs)))
    assert len(theirs._kept) <= 2 + limits.MAX_SHOWN_DIFFERENCES


def test_schema_of_too_many_tensors_or_one_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'t0' stands twice"):
        TheirTensors(tensors(2)).add([*tensors(2), *tensors(2)])
    strange = [TensorSpec(f"s{number}", DataType.FLOAT32, (1,)) for number in range(limits.MAX_TENSORS + 1)]
    with pytest.raises(InvalidRequest, match="at most 65536"):
        TheirTensors(tensors(2)).add(strange)
