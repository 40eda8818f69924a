"""Who may join, and who is picked. A moment."""

from __future__ import annotations

import pytest

from fedserver.coordinator.population import (
    MAX_STRANGERS,
    STOPPED_REASON,
    Client,
    ClientState,
    Introduction,
    Population,
    select_cohort,
)

pytestmark = pytest.mark.numpy_task


def hello(name: str, num_examples: int = 10) -> Introduction:
    return Introduction(name, num_examples, "fedstream 0.1.0")


def facts(client: Client) -> tuple[ClientState, str, float, float]:
    return client.state, client.reason, client.first_seen, client.last_seen


def test_client_that_comes_goes_and_comes_again_keeps_its_record() -> None:
    population = Population()
    first = population.connect(hello("a"), 1.0)
    first.rounds_completed = 3
    population.seen("a", 2.0)
    population.disconnect("a", ClientState.DISCONNECTED, "the connection was lost")
    assert facts(population["a"]) == (ClientState.DISCONNECTED, "the connection was lost", 1.0, 2.0)
    again = population.connect(hello("a", 20), 5.0)
    assert facts(again) == (ClientState.CONNECTED, "", 1.0, 5.0)
    assert (again.rounds_completed, again.introduction.num_examples, again.name) == (3, 20, "a")
    assert ("a" in population, "b" in population) == (True, False)


def test_client_that_left_or_was_declined_may_come_again() -> None:
    population = Population()
    population.connect(hello("a"), 1.0)
    population.disconnect("a", ClientState.LEFT, "done")
    population.decline(hello("b"), "no examples", 3.0)
    assert [facts(client) for client in population] == [
        (ClientState.LEFT, "done", 1.0, 1.0),
        (ClientState.DECLINED, "no examples", 3.0, 3.0),
    ]
    population.decline(hello("a"), "other model", 4.0)
    assert facts(population["a"]) == (ClientState.DECLINED, "other model", 1.0, 4.0)
    for name in "ab":
        population.connect(hello(name), 5.0)
    assert [client.name for client in population.connected] == ["a", "b"]


def test_client_declined_under_the_name_of_a_connected_one_does_not_push_it_out() -> None:
    population = Population()
    population.connect(hello("a", 40), 1.0)
    population.decline(hello("a", 1), "other model", 2.0)
    assert facts(population["a"]) == (ClientState.CONNECTED, "", 1.0, 1.0)
    assert population["a"].introduction == hello("a", 40)


def test_stream_that_ends_after_a_newer_one_took_over_or_the_client_left_changes_nothing() -> None:
    population = Population()
    population.connect(hello("a"), 1.0)
    population.disconnect("a", ClientState.LEFT, "done")
    population.disconnect("a", ClientState.DISCONNECTED, "the connection was lost")
    assert facts(population["a"]) == (ClientState.LEFT, "done", 1.0, 1.0)


def test_sign_of_life_is_noted() -> None:
    population = Population()
    population.connect(hello("a"), 1.0)
    population.seen("a", 9.0)
    population.seen("b", 9.0)
    assert (population["a"].last_seen, "b" in population) == (9.0, False)


def test_population_is_listed_by_name_and_only_the_connected_can_be_picked() -> None:
    population = Population()
    for name in ("c", "a", "d", "b"):
        population.connect(hello(name), 1.0)
    population.disconnect("b", ClientState.LEFT, "")
    population.disconnect("c", ClientState.DISCONNECTED, "")
    assert [client.name for client in population] == ["a", "b", "c", "d"]
    assert [client.name for client in population.connected] == ["a", "d"]


# Those of an earlier process.


@pytest.mark.parametrize(
    ("kept", "recalled"),
    [
        ((ClientState.CONNECTED, ""), (ClientState.DISCONNECTED, STOPPED_REASON)),
        ((ClientState.DISCONNECTED, "the connection was lost"), (ClientState.DISCONNECTED, "the connection was lost")),
        ((ClientState.LEFT, "done"), (ClientState.LEFT, "done")),
        ((ClientState.DECLINED, "other model"), (ClientState.DECLINED, "other model")),
    ],
)
def test_client_that_is_recalled_is_known_and_not_connected(
    kept: tuple[ClientState, str], recalled: tuple[ClientState, str]
) -> None:
    population = Population()
    population.credit("a")
    population.recall(Client(hello("a", 40), kept[0], 1.0, 2.0, kept[1]))
    expected = Client(hello("a", 40), recalled[0], 1.0, 2.0, recalled[1], rounds_completed=1)
    assert list(population) == [expected]
    assert (population.connected, "a" in population) == ([], True)


def test_client_that_is_recalled_and_comes_again_keeps_when_it_was_first_seen() -> None:
    population = Population()
    population.recall(Client(hello("a"), ClientState.CONNECTED, 1.0, 2.0))
    assert facts(population.connect(hello("a", 20), 9.0)) == (ClientState.CONNECTED, "", 1.0, 9.0)
    assert [client.introduction.num_examples for client in population.connected] == [20]


def test_client_that_said_hello_before_the_recall_stays_as_it_is_now() -> None:
    changed: list[str] = []
    population = Population(changed.append)
    population.decline(hello("a"), "upgrade the client", 9.0)
    changed.clear()
    population.recall(Client(hello("a", 40), ClientState.CONNECTED, 1.0, 2.0))
    assert facts(population["a"]) == (ClientState.DECLINED, "upgrade the client", 1.0, 9.0)
    assert changed == ["a"]


def test_change_of_a_client_is_told_and_a_sign_of_life_is_not() -> None:
    changed: list[str] = []
    population = Population(changed.append)
    population.connect(hello("a"), 1.0)
    population.seen("a", 2.0)
    population.decline(hello("b"), "no examples", 3.0)
    population.decline(hello("a"), "other model", 4.0)  # it is connected, and stays
    population.disconnect("a", ClientState.LEFT, "done")
    population.disconnect("a", ClientState.DISCONNECTED, "lost")  # it is gone already
    population.recall(Client(hello("c"), ClientState.CONNECTED, 1.0, 2.0))
    assert changed == ["a", "b", "a"]


def test_names_that_are_made_up_push_out_older_ones_of_their_kind_and_nobody_else() -> None:
    changed: list[str] = []
    population = Population(changed.append)
    for name in ("contributor", "leaver", "here"):
        population.connect(hello(name), 1.0)
    population.credit("contributor")
    for name in ("contributor", "leaver"):
        population.disconnect(name, ClientState.LEFT, "done")
    for number in range(MAX_STRANGERS + 2):
        population.decline(hello(f"n{number}"), "other model", 3.0)
    population.decline(hello("n2"), "other model", 4.0)  # once more: now it is the newest
    changed.clear()
    population.decline(hello("last"), "other model", 5.0)
    names = {client.name for client in population}
    expected = {f"n{number}" for number in range(4, MAX_STRANGERS + 2)} | {"n2", "last"}
    assert names == expected | {"contributor", "leaver", "here"}
    assert changed == ["last", "n3"]


def test_clients_recalled_are_as_bounded_as_those_that_are_met() -> None:
    population = Population()
    for number in range(MAX_STRANGERS + 1):
        population.recall(Client(hello(f"n{number}"), ClientState.CONNECTED, 1.0, 2.0))
    assert (len(list(population)), "n0" in population) == (MAX_STRANGERS, False)


def test_reason_that_a_client_made_long_is_kept_short() -> None:
    population = Population()
    population.decline(hello("a"), "classes " * 10_000, 1.0)
    assert len(population["a"].reason.encode()) <= 1_024


# The cohort.


def clients(names: str) -> list[Client]:
    return [Client(hello(name), ClientState.CONNECTED, 0.0, 0.0) for name in names]


def picked(names: str, size: int, seed: int, round_number: int) -> str:
    return "".join(client.name for client in select_cohort(clients(names), size, seed, round_number))


@pytest.mark.parametrize("size", [0, 5, 6])
def test_cohort_that_takes_all_is_everyone_by_name(size: int) -> None:
    assert picked("ecabd", size, 1, 1) == "abcde"


def test_cohort_is_the_same_whatever_the_order_in_which_clients_came_and_in_every_version() -> None:
    expected = ["acfg", "acfg", "befh", "begh", "cdeg"]
    assert [picked("abcdefgh", 4, 17, number) for number in range(1, 6)] == expected
    assert [picked("hgfedcba", 4, 17, number) for number in range(1, 6)] == expected


def test_cohort_changes_with_the_seed_and_the_round_and_is_always_by_name() -> None:
    cohorts = {picked("abcdefgh", 4, seed, number) for seed in range(5) for number in range(5)}
    assert len(cohorts) > 15
    assert all(list(cohort) == sorted(cohort) and len(set(cohort)) == 4 for cohort in cohorts)


def test_cohort_over_many_rounds_picks_everyone_about_as_often() -> None:
    times = "".join(picked("abcdefgh", 4, 0, number) for number in range(400))
    assert all(150 < times.count(name) < 250 for name in "abcdefgh")


def test_cohort_does_not_touch_the_list_it_was_given() -> None:
    given = clients("cba")
    select_cohort(given, 2, 0, 1)
    assert [client.name for client in given] == ["c", "b", "a"]
