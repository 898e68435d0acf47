import pathlib

import pytest

from glovebox import errors
from glovebox_server import config


def load(folder, toml=None, **environ):
    if toml is not None:
        (folder / "config.toml").write_text(toml)
    return config.load({"GLOVEBOX_DATA_DIR": str(folder), "HOME": "/nowhere", **environ})


def test_defaults(tmp_path):
    settings = load(tmp_path)
    assert (settings.host, settings.port, settings.domain, settings.runtimes) == (
        "127.0.0.1",
        3000,
        None,
        ("namespace",),
    )
    assert settings.data_dir == tmp_path
    assert settings.limits.max_timeout_hours == 24


def test_default_folder():
    home = pathlib.Path("/home/u")
    assert config.default_data_dir(root=True, home=home) == pathlib.Path("/var/lib/glovebox")
    assert config.default_data_dir(root=False, home=home) == pathlib.Path("/home/u/.local/share/glovebox")


def test_file_then_environment(tmp_path):
    toml = 'port = 1\nruntimes = ["a", "b"]\n[limits]\nmax_sandboxes = 5\nidle_timeout_s = 9\n[resources]\ncpu_count = 0.5\n'
    settings = load(tmp_path, toml)
    assert (settings.port, settings.runtimes, settings.limits.max_sandboxes) == (1, ("a", "b"), 5)
    assert (settings.limits.idle_timeout_s, settings.resources.cpu_count) == (9, 0.5)
    settings = load(
        tmp_path,
        GLOVEBOX_PORT="2",
        GLOVEBOX_RUNTIMES="c, d",
        GLOVEBOX_LIMITS_MAX_SANDBOXES="6",
        GLOVEBOX_LIMITS_IDLE_TIMEOUT_S="none",
        GLOVEBOX_DOMAIN="",
    )
    assert (settings.port, settings.runtimes, settings.limits.max_sandboxes) == (2, ("c", "d"), 6)
    assert (settings.limits.idle_timeout_s, settings.domain) == (None, None)
    assert settings.resources.cpu_count == 0.5


@pytest.mark.parametrize(
    ("toml", "environ", "message"),
    [
        ("", {"GLOVEBOX_PORT": "http"}, r"setting port \(GLOVEBOX_PORT\): .*not 'http'"),
        ("", {"GLOVEBOX_PORT": "70000"}, "setting port"),
        ("", {"GLOVEBOX_LIMITS_MAX_SANDBOXES": "-1"}, r"setting limits .*max_sandboxes must be greater than 0"),
        ("", {"GLOVEBOX_LIMITS_MAX_SANDBOXES": "x"}, r"limits.max_sandboxes \(GLOVEBOX_LIMITS_MAX_SANDBOXES\)"),
        ("", {"GLOVEBOX_LIMITS_DEFAULT_TIMEOUT_S": "90000"}, "default_timeout_s is longer"),
        ("", {"GLOVEBOX_LOG_LEVEL": "loud"}, "setting log_level"),
        ("", {"GLOVEBOX_RUNTIMES": ""}, "setting runtimes"),
        ("prot = 3", {}, "setting prot"),
        ("[limits]\nmax = 3", {}, "setting limits.max"),
        ("limits = 3", {"GLOVEBOX_LIMITS_MAX_SANDBOXES": "1"}, "setting limits must be a table"),
        ("port = ", {}, "settings file .*config.toml cannot be read"),
        ('data_dir = "/x"', {}, "setting data_dir cannot stand"),
    ],
)
def test_bad_settings_are_named(tmp_path, toml, environ, message):
    with pytest.raises(errors.InvalidRequestError, match=message):
        load(tmp_path, toml, **environ)


def test_unknown_variable_is_told(tmp_path, capsys):
    load(tmp_path, GLOVEBOX_PROT="3")
    assert "GLOVEBOX_PROT" in capsys.readouterr().out
