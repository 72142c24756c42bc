"""Formatting of counts, names and sizes."""

from conresnet_training.reporting import case_count, listed, product, time_left


def test_case_count_uses_singular_and_plural():
    assert [case_count(count) for count in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]


def test_long_lists_of_names_are_shortened():
    names = [f"case_{number}" for number in range(30)]
    assert listed(names[:2]) == "case_0, case_1"
    assert listed(names).startswith("case_0, ") and listed(names).endswith("case_19 and 10 more")
    assert listed(names[:3], 2) == "case_0, case_1 and 1 more"


def test_sizes_are_rounded():
    assert product([1.0, 2.5, 0.123456]) == "1 x 2.5 x 0.1235"
    assert product([0.1234567], digits=6) == "0.123457"


def test_time_left_is_rounded_to_minutes():
    expected = {0.0: "1 s", 59.4: "59 s", 59.6: "1 min", 100.0: "2 min", 3599.0: "1 h 0 min", 11_970.0: "3 h 20 min"}
    assert {seconds: time_left(seconds) for seconds in expected} == {
        seconds: f"about {text} left" for seconds, text in expected.items()
    }
