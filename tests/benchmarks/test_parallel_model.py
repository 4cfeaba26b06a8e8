"""parallel_model.py: what a ring takes, what is hidden, and a network that is found again."""

import doctest

import numpy as np
import parallel_model
import parallel_tables
import pytest
from parallel_model import NETWORKS, Network, efficiency, fitted, hidden, predictions, ring


def test_the_examples_of_the_functions():
    failed, tried = doctest.testmod(parallel_model)
    assert tried >= 7 and not failed


@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_a_ring_is_the_time_of_its_messages_one_after_the_other(nodes):
    network, seconds = Network(1e-3, 1000.0), 0.0
    for _ in ("sums of a part", "copies of a part"):
        for _ in range(nodes - 1):
            seconds += network.alpha + 600 / nodes / network.beta
    assert ring(600, nodes, network) == pytest.approx(seconds)


def test_two_ranks_wait_two_latencies_and_for_all_bytes():
    assert ring(1e6, 2, Network(25e-6, 20e6)) == pytest.approx(50e-6 + 1e6 / 20e6)


def test_gigabits_of_a_second_are_bits():
    assert NETWORKS["25 Gb/s"].beta == 3.125e9 and NETWORKS["400 Gb/s"].beta == 50e9


def test_two_thirds_of_a_step_can_hide_a_sum():
    assert efficiency(3, 2, overlap=True) == 1 and hidden(3, 2) == 1
    assert efficiency(3, 3, overlap=True) == 0.75 and hidden(3, 3) == pytest.approx(2 / 3)
    assert efficiency(3, 3, overlap=False) == 0.5


def test_a_network_is_found_again_though_the_sums_are_measured_unevenly():
    true, rng = Network(3e-6, 8e9), np.random.default_rng(0)
    sizes = [4.0**power for power in range(1, 13)]
    seconds = [ring(size, 4, true) * rng.uniform(0.95, 1.05) for size in sizes]
    found = fitted(sizes, seconds, 4)
    assert found.alpha == pytest.approx(true.alpha, rel=0.1)
    assert found.beta == pytest.approx(true.beta, rel=0.1)


def test_the_prediction_for_64_machines_by_hand():
    rows = {(row["what"].split()[0], row["network"]): row for row in predictions([64])[:6]}
    summing = 126 * (10e-6 + 102e6 / 64 / 12.5e9)
    row = rows["H100", "100 Gb/s"]
    assert row["sum_seconds"] == round(summing, 4) == 0.0173
    assert row["without_overlap"] == round(0.1024 / (0.1024 + summing), 3) == 0.855
    assert row["with_overlap"] == 1
    assert rows["CPU", "25 Gb/s"]["without_overlap"] == 0.94


def test_every_case_network_and_number_of_machines_is_predicted():
    rows = predictions()
    assert len({(row["what"], row["network"], row["nodes"]) for row in rows}) == len(rows) == 3 * 3 * 6
    assert all(0 < row["without_overlap"] <= row["with_overlap"] <= 1 for row in rows)


def test_the_table_has_a_line_for_each_case_and_a_column_for_each_network():
    text = parallel_tables.predicted({"predictions": predictions()})
    assert text.splitlines()[0].endswith("| machines | 25 Gb/s | 100 Gb/s | 400 Gb/s |")
    assert "| H100 of 2,500 pictures/s, 64 a GPU | 64 | 27 / 33% | 60 / 99% | 85 / 100% |" in text
