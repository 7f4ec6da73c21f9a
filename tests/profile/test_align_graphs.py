"""CUDA graphs are replayed by all variants of a comparison, or by none."""

import pytest

from nm2trt.profile.runners.runner import align_graphs


class Graphed:
    def __init__(self, has_graph):
        self.has_graph = has_graph

    def drop_graph(self):
        self.has_graph = False


class Plain:
    pass


@pytest.mark.parametrize(
    ("before", "after"),
    [([True, True], [True, True]), ([True, False, True], [False, False, False]), ([False], [False]), ([], [])],
)
def test_one_without_a_graph_takes_the_others(before, after):
    runners = [Graphed(one) for one in before]
    align_graphs([*runners, Plain()])
    assert [runner.has_graph for runner in runners] == after
