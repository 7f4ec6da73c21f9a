import pytest

from nm2trt.errors import ConfigError, InputError, MachineError, Nm2trtError


def test_a_message_is_one_line_of_what_where_and_how():
    error = InputError("is truncated:\n  10 of 20 bytes", where="a/b.safetensors", hint="copy it again")
    assert str(error) == "a/b.safetensors: is truncated: 10 of 20 bytes; copy it again"


@pytest.mark.parametrize(("kind", "code"), [(Nm2trtError, 3), (ConfigError, 2), (InputError, 3), (MachineError, 4)])
def test_exit_codes_are_those_of_the_command_line(kind, code):
    assert kind("x").exit_code == code
