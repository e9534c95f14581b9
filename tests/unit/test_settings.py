"""Settings: strict, frozen, and the same after a trip through JSON."""

import dataclasses
import json
import math

import pytest

from erw.config import config_from_dict
from erw.errors import UserError
from erw.options import parse
from erw.presets import PRESETS, preset
from erw.settings import override, to_dict


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_checks_and_survives_json(name):
    config = preset(name)
    if not config.data.fit:  # else the dataset has a say first
        config.check()
    assert config_from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert PRESETS[name].__doc__


def test_overrides_reach_nested_fields_and_types():
    config, dry = parse(["digits-erw", "--model.depth", "4", "--optim.betas=0.8,0.95", "--optim.ema_half_life",
                         "0.9999@256", "--model.rope", "true", "--ds-config", "zero3", "--dry-run"])  # fmt: skip
    assert dry and config.model.depth == 4 and config.model.rope is True
    assert config.optim.betas == (0.8, 0.95)
    assert config.optim.ema_half_life == pytest.approx(256 * math.log(0.5) / math.log(0.9999))
    assert config.optim.ema_decay(256) == pytest.approx(0.9999)
    assert config.engine.ds_config == "zero3"


def test_overrides_are_checked_together():
    # Each alone would contradict the preset; together they fit.
    config = override(preset("digits-sit"), ["--model.width", "36", "--model.num_heads", "3"])
    assert config.model.width == 36


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("digits-sit").model.depth = 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digits-srt"], "did you mean digits-sit"),
        (["digits-sit", "--model.dpeth", "3"], "did you mean --model.depth"),
        (["digits-sit", "--model.depth", "three"], "takes a whole number, not 'three'"),
        (["digits-sit", "--model.rope", "perhaps"], "takes true or false"),
        (["digits-sit", "--engine.precision", "fp8"], "one of fp32, bf16, fp16, autocast"),
        (["digits-sit", "--optim.betas", "0.9,x"], "numbers with commas between"),
        (["digits-sit", "--optim.ema_half_life", "fast"], "DECAY@BATCH"),
        (["digits-sit", "--model.depth"], "needs a value"),
        (["digits-sit", "stray"], "options are --section.field VALUE"),
        (["--model.depth", "3"], "a preset comes first"),
    ],
)
def test_bad_options_say_what_and_how(arguments, says):
    with pytest.raises(UserError, match=says):
        parse(arguments)


def test_json_with_unknown_or_wrong_keys_is_refused():
    data = to_dict(preset("digits-sit"))
    data["model"]["colour"] = 1
    with pytest.raises(UserError, match="colour"):
        config_from_dict(data)
    data = to_dict(preset("digits-sit"))
    data["model"]["depth"] = "six"
    with pytest.raises(UserError, match="depth"):
        config_from_dict(data)
    data = to_dict(preset("digits-sit"))
    data["method"]["name"] = "rapa"
    with pytest.raises(UserError, match="repa"):
        config_from_dict(data)
