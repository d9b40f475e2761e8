"""What a process that serves says, as it starts, of an environment and bounds that are hardly meant so."""

import resource

from tests.serving import serving


def warnings(said: list[str]) -> list[str]:
    """The lines that warn, without time and level."""
    return [line.partition(" warning  ")[2].rstrip("\n") for line in said if " warning  " in line]


def test_variables_that_look_like_settings_and_are_none_are_named() -> None:
    with serving([], inside=("env", "VAE_API_KEY_FILE=keys.toml", "vae_log_level=info", "VAE_XYZ=1")) as server:
        assert warnings(server.said) == [
            "VAE_API_KEY_FILE: no setting has this name, it is ignored; is VAE_API_KEYS_FILE meant?",
            "VAE_XYZ: no setting has this name, it is ignored",
        ]


def test_open_files_are_raised_to_what_connections_may_take() -> None:
    with serving([], inside=("sh", "-c", 'ulimit -Sn 200; exec "$@"', "sh")) as server:
        assert warnings(server.said) == []
        soft, _ = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        assert soft == 1250


def test_a_hard_bound_on_open_files_below_what_connections_may_take_is_told() -> None:
    with serving([], inside=("sh", "-c", 'ulimit -n 200; exec "$@"', "sh")) as server:
        (said,) = warnings(server.said)
        assert said == (
            "open files: got a bound of 200, expected 1250 for max_connections 1000 and what else is open; "
            "raise `ulimit -n`, or lower max_connections"
        )
