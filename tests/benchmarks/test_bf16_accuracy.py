"""bf16_accuracy.py: the same runs in both precisions, and the medians of each."""

import accuracy
import bf16_accuracy


def test_every_seed_is_run_in_both_precisions(monkeypatch):
    asked = []

    def run(recipe, data, seed, out, *options):
        asked.append((recipe, data, seed, options))
        figure = {"fp32": 10, "bf16": 20}[options[-1]] + seed
        return dict.fromkeys(bf16_accuracy.FIGURES, figure) | {"seed": seed}

    monkeypatch.setattr(accuracy, "run", run)
    found = bf16_accuracy.compare("default", "signs", [3, 1, 2], ["--size", "32"])
    common = ("--size", "32", "--precision")
    expected = [("default", "signs", seed, (*common, p)) for p in ("fp32", "bf16") for seed in (3, 1, 2)]
    assert asked == expected
    assert found["fp32"]["median_test_accuracy"] == 12 and found["bf16"]["median_test_accuracy"] == 22
    assert found["bf16"]["seeds"][3] == dict.fromkeys(bf16_accuracy.FIGURES, 23)
