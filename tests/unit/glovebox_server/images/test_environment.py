import pathlib

import pytest

from glovebox import errors
from glovebox_server.images import environment


def _fake_python(path: pathlib.Path, answer: str) -> str:
    path.write_text(f"#!/bin/sh\ncat <<'end'\n{answer}\nend\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_of_the_system_is_found() -> None:
    found = environment.find_python()

    assert found.path in ("/usr/bin/python3", "/usr/local/bin/python3")
    assert found.version >= (3, 9)


def test_a_python_outside_of_usr_is_refused(tmp_path: pathlib.Path) -> None:
    path = _fake_python(tmp_path / "python", '["/home/me/python", [3, 12, 1]]')

    with pytest.raises(errors.UnsupportedError, match=r"is /home/me/python, outside of /usr.*apt-get install python3"):
        environment.find_python(path)


@pytest.mark.parametrize("answer", ['["/usr/bin/python3", [3, 8, 20]]', "nonsense"])
def test_an_old_or_broken_python_is_refused(tmp_path: pathlib.Path, answer: str) -> None:
    with pytest.raises(errors.UnsupportedError, match=r"is 3\.8|does not start"):
        environment.find_python(_fake_python(tmp_path / "python", answer))


def test_no_python_at_all_says_what_to_install(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.UnsupportedError, match="apt-get install python3"):
        environment.find_python(str(tmp_path / "none"))


def test_another_python_is_another_environment() -> None:
    one = environment.Interpreter("/usr/bin/python3", (3, 11, 2))

    assert environment.key(one) == environment.key(one)
    assert environment.key(one) != environment.key(environment.Interpreter("/usr/bin/python3", (3, 12, 0)))
    assert environment.key(one) != environment.key(environment.Interpreter("/usr/local/bin/python3", (3, 11, 2)))


def test_every_requirement_is_locked_with_hashes_and_names_no_index() -> None:
    lock = environment._lock()

    assert "://" not in lock
    requirements = [line for line in lock.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert requirements
    for name in ("ipython", "matplotlib", "numpy", "pandas", "pillow", "pip", "requests"):
        assert any(line.startswith(f"{name}==") for line in requirements), name
    blocks = lock.split("\n" + "    # via")
    assert all("--hash=sha256:" in block for block in blocks[:-1])


def test_what_uv_says_is_in_the_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.UnsupportedError, match="No such file|not found|cannot uv venv"):
        environment.build(
            tmp_path / "here", environment.Interpreter(str(tmp_path / "none"), (3, 11, 0)), lambda step: None
        )
