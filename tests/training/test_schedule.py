import math

import pytest

from nm2trt.training.schedule import cosine_with_warmup


def test_warm_up_is_linear_then_half_a_cosine_to_zero():
    factors = [cosine_with_warmup(step, steps=10, warmup_steps=2) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[8] == pytest.approx((1 + math.cos(math.pi * 0.75)) / 2)
    assert factors[10] == pytest.approx(0.0)
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_no_warm_up_starts_at_the_peak():
    assert cosine_with_warmup(0, steps=5, warmup_steps=0) == 1.0
