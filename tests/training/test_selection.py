import torch
from torch import nn

from nm2trt.training import sparsify


def reasons(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {entry.name: (entry.pattern, entry.reason) for entry in sparsify(model, optimizer, **options).report()}


def test_every_kind_of_layer_gets_a_pattern_or_a_reason():
    shared = nn.Linear(32, 32)
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 32, 7),
            "depthwise": nn.Conv2d(32, 32, 3, groups=32),
            "grouped": nn.Conv2d(32, 32, 3, groups=4),
            "narrow": nn.Conv2d(32, 32, 3, groups=16),
            "conv1d": nn.Conv1d(16, 8, 3),
            "conv3d": nn.Conv3d(16, 8, 3),
            "up": nn.ConvTranspose2d(32, 32, 2),
            "odd": nn.Linear(30, 32),
            "attention": nn.MultiheadAttention(32, 4),
            "one": shared,
            "embedding": nn.Embedding(10, 32),
            "norm": nn.LayerNorm(32),
            "head": nn.Linear(32, 10),
        }
    )
    found = reasons(model, pattern="2:4")
    assert {name for name, (pattern, _) in found.items() if pattern} == {
        "grouped.weight",
        "conv1d.weight",
        "conv3d.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "one.weight",
    }
    assert "shorter than M = 4" in found["stem.weight"][1]
    assert "depthwise" in found["depthwise.weight"][1]
    assert "shorter than M = 4" in found["narrow.weight"][1]
    assert "transposed" in found["up.weight"][1]
    assert "30 is no multiple" in found["odd.weight"][1]
    assert "Embedding.weight" in found["embedding.weight"][1]
    assert "classifier" in found["head.weight"][1]
    assert "norm.weight" not in found


def test_globs_choose_patterns_and_exclusions():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4))
    found = reasons(model, pattern="2:4", layer_patterns={"*": "1:4", "1": "2:8"}, exclude=["2"])
    assert [pattern for pattern, _ in found.values()] == ["1:4", "2:8", None, "1:4"]
    assert found["2.weight"][1] == "excluded by '2'"


class Tied(nn.Module):
    def __init__(self, partner):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = partner
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 4)


def test_a_weight_of_two_linears_is_sparse_once():
    found = reasons(Tied(nn.Linear(16, 16)), pattern="2:4")
    assert found["first.weight"][0] == "2:4"
    assert found["second.weight"] == (None, "is the weight of first.weight")


def test_a_weight_that_an_embedding_reads_too_stays_dense():
    model = Tied(nn.Embedding(16, 16))
    model.body = nn.Linear(16, 16)
    found = reasons(model, pattern="2:4", layer_patterns={"body": "2:4"})
    assert found["first.weight"] == (None, "shares its weight with second.weight, which reads it otherwise")
    assert found["second.weight"][0] is None
    assert found["body.weight"][0] == "2:4"
