import pytest
from helpers import nm2trt_inline

from nm2trt.errors import ConfigError
from nm2trt.training.config import TrainConfig, load_config
from nm2trt.training.recipes import RECIPES


def test_the_papers_recipe():
    """design/sr-ste.md's figures, written out again."""
    config = load_config(None, {"recipe": "imagenet-paper"})
    assert (config.batch_size, config.epochs, config.warmup_epochs) == (256, 120, 5)
    assert (config.lr, config.momentum, config.weight_decay, config.decay) == (0.1, 0.9, 5e-5, 2e-4)
    assert (config.method, config.pattern) == ("sr-ste", "2:4")


def test_options_win_over_the_file_and_both_over_the_recipe(tmp_path):
    (tmp_path / "c.toml").write_text('recipe = "imagenet-paper"\nepochs = 90\nlr = 0.2\n')
    config = load_config(tmp_path / "c.toml", {"lr": "0.4"})
    assert (config.epochs, config.lr, config.batch_size) == (90, 0.4, 256)
    config = load_config(tmp_path / "c.toml", {"recipe": "finetune", "init": "net.pt"})
    assert (config.epochs, config.lr, config.batch_size) == (90, 0.2, 64)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_written_configuration_is_the_same_again(name, tmp_path):
    config = load_config(None, {"recipe": name, "init": "net.pt", "epochs": 50})
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "c.toml", {}) == config


def test_recipes_name_only_settings_and_the_help_names_all_recipes():
    for settings in RECIPES.values():
        assert settings.keys() <= TrainConfig.model_fields.keys()
    text = " ".join(nm2trt_inline("train", "--help").stdout.split())
    for name in RECIPES:
        assert f"{name}:" in text


def test_mistakes():
    with pytest.raises(ConfigError, match=r"recipe = 'imagenet'.*'imagenet-paper', 'finetune' or 'transformer'"):
        load_config(None, {"recipe": "imagenet"})
    with pytest.raises(ConfigError, match="finetune starts from a trained network, give its checkpoint as init"):
        load_config(None, {"recipe": "finetune"})


def test_the_records_hold_no_path_of_the_machine(tmp_path):
    config = load_config(None, {"init": str(tmp_path / "net.pt"), "data_dir": str(tmp_path)})
    assert str(tmp_path) not in str(config.recorded())
    assert config.recorded()["init"] == "net.pt"
